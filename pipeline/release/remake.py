"""What made an image in, the image again out, by models that this machine's user trusts.

A file or release that names a model may be anybody's. Nothing is loaded on its word alone: a model
must be in a folder that the user names, come with aigi, be in the cache of the Hub already, or be
confirmed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import AigiError
from pipeline.marks.names import embed
from pipeline.models.hub import Place
from pipeline.outside import Unreachable
from pipeline.pixels import RGB
from pipeline.release.making import Making, weights_digest

if TYPE_CHECKING:
    from pipeline.images.diffusion.diffuser import Diffuser

_TINY = Path(__file__).resolve().parents[1] / "tiny" / "weights"
EMBEDDED = {("aigi/tiny-sd", "v1"): "sd", ("aigi/tiny-sdxl", "v1"): "sdxl"}
"""Models that come with aigi, and their folders."""
_DECIDING = (
    "pipeline", "model", "revision", "scheduler", "dtype", "vae", "slicing", "compiled",
)  # fmt: skip
"""Fields that decide how a pipeline is loaded; the others are arguments of a call."""


class OtherWeights(AigiError):
    """This machine's copy of a model is not the one that made an image."""


class Untrusted(Unreachable):
    """Models that nobody on this machine has confirmed; no fault of an image."""


def folder_of(making: Making, folders: Mapping[str, str]) -> str | None:
    """Where this machine has the model: a folder that was named, or one that comes with aigi."""
    if making.model in folders:
        return folders[making.model]
    embedded = EMBEDDED.get((making.model, making.revision))
    return None if embedded is None else str(_TINY / embedded)


def unconfirmed(
    making: Making, folders: Mapping[str, str], trusted: Collection[str] = ()
) -> list[str]:
    """The models that would be loaded on the word of a file alone, a line each.

    Args:
        trusted: Hub ids that the user has confirmed.

    Raises:
        AigiError: a folder of this name is here, which some libraries would take.
    """
    places = [Place.of("recipe", folder_of(making, folders), making.model, making.revision)]
    if making.vae:
        places.append(Place.of("recipe.vae", None, making.vae))
    found = []
    for place in places:
        if place.folder is None and os.path.exists(place.repository):
            raise AigiError(
                f"recipe: {place.repository}: here, this is a folder; run the command in another "
                "folder"
            )
        if place.repository not in trusted and not place.held():
            found.append(f"model {place}")
    return found


def name_of(making: Making) -> str:
    """The model in words: its name and revision, and another VAE if it has one."""
    return f"{making.model}@{making.revision}" + (f" with VAE {making.vae}" if making.vae else "")


def needed(making: Making, folders: Mapping[str, str]) -> str:
    """The model that a decoder needs, in words: its name, and the bytes of its weights."""
    place = Place.of("recipe", folder_of(making, folders), making.model, making.revision)
    name = name_of(making)
    if place.folder is None and not place.held():
        return f"{name} (weights not on this machine, so their size is not known)"
    folder = place.fetch()
    size = sum(path.stat().st_size for path in Path(folder).glob("*/*.safetensors"))
    return f"{name} ({size:,} bytes of weights)"


class Remaker:
    """Images again; the last pipeline stays loaded.

    Args:
        device: of this machine.
        folders: of models, by their Hub ids.
        trusted: Hub ids that the user has confirmed.
        where: what names the models, for the message that they are not confirmed.
        remedy: how to confirm them: a sentence.

    Attributes:
        loaded: digests of the weights of the last pipeline, by its model, dtype and component.
    """

    def __init__(
        self,
        device: str = "auto",
        folders: Mapping[str, str] = MappingProxyType({}),
        trusted: Collection[str] = (),
        where: str = "recipe",
        remedy: str = "Confirm them first.",
    ) -> None:
        self.device, self.folders, self.trusted = device, dict(folders), frozenset(trusted)
        self.where, self.remedy = where, remedy
        self.loaded: dict[str, str] = {}
        self._key: tuple[Any, ...] | None = None
        self._diffuser: Diffuser | None = None

    @property
    def kind(self) -> str:
        """The kind of its device: cpu, cuda or mps."""
        from pipeline.models.device import pick_device

        return pick_device(self.device).type

    @property
    def parameters(self) -> int:
        """Numbers of the last pipeline, all its components together."""
        import torch

        if self._diffuser is None:
            return 0
        modules = self._diffuser.pipe.components.values()
        return sum(
            parameter.numel()
            for module in modules
            if isinstance(module, torch.nn.Module)
            for parameter in module.parameters()
        )

    def _open(self, making: Making) -> Diffuser:
        from pipeline.images.diffusion.diffuser import Diffuser

        key = tuple(getattr(making, name) for name in _DECIDING)
        if self._diffuser is None or self._key != key:
            if asked := unconfirmed(making, self.folders, self.trusted):
                raise Untrusted(
                    f"{self.where}: to make the image again, this machine would load:\n"
                    + "".join(f"  {line}\n" for line in asked)
                    + self.remedy
                )
            self._diffuser, self.loaded = None, {}  # the old one goes first
            local = making.local(folder_of(making, self.folders))
            self._diffuser = Diffuser("recipe", making.spec(), local, self.device)
            name = f"{name_of(making)} {making.dtype}"
            parts = self._diffuser.loaded.items()
            self._key, self.loaded = key, {f"{name} {part}": sha for part, sha in parts}
        # Tiling is looked up at each call.
        self._diffuser.local = making.local(folder_of(making, self.folders))
        return self._diffuser

    def weights(self, making: Making) -> bytes:
        """4 bytes of the digest of the weights, as they are loaded here.

        Raises:
            AigiError: the model is missing or cannot be loaded.
        """
        return weights_digest(self._open(making).loaded)

    def images(self, making: Making) -> list[RGB]:
        """All images of the batch (uint8, H x W x 3), with their mark.

        Raises:
            AigiError: the model is missing, or makes no image of this.
        """
        import torch

        diffuser = self._open(making)
        threads = torch.get_num_threads()
        torch.set_num_threads(making.threads)
        names = (
            "text", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed",
            "options",
        )  # fmt: skip
        row = {name: getattr(making, name) for name in names}
        try:
            made = diffuser.generate([row] * making.batch)
        finally:
            torch.set_num_threads(threads)
        found = []
        for picture in made:
            if picture.rgb is None or picture.batch_size != making.batch:
                why = picture.error or f"only {picture.batch_size} images fit into memory at once"
                raise AigiError(f"recipe: {making.model}: the image cannot be made again: {why}")
            found.append(np.ascontiguousarray(embed(picture.rgb, making.watermark)))
        return found
