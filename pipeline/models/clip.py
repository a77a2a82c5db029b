"""An open_clip model, checked and loaded: images and sentences in, vectors of length 1 out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from pipeline import AigiError
from pipeline.files import file_sha256, folder_sha256
from pipeline.models.device import pick_device
from pipeline.models.hub import Place, check_sha256, loading
from pipeline.models.weights import Part, compare, digest, header, shapes
from pipeline.pixels import RGB
from pipeline.settings import Count, Location, Settings

if TYPE_CHECKING:
    import torch


class Embeddings(Settings):
    """The `images` and `plan` tables in, the `embeddings` table out: CLIP vectors and scores."""

    model: str = Field("ViT-B-32", description="name in open_clip, or hf-hub:ORG/NAME")
    pretrained: str = Field(
        "laion2b_s34b_b79k", description="open_clip's tag of the weights; not used with hf-hub:"
    )
    folder: Location | None = Field(
        None, description="a model on this machine in open_clip's layout; replaces the two above"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the weight file, checked before any work: open_clip takes no revision",
    )
    batch_size: Count = Field(64, description="images or sentences embedded at once")
    decode_threads: Count | None = Field(None, description="null: all cores, up to 8")
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the computation (autocast); the weights stay float32"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Embeddings:
        if self.model.startswith("local-dir:"):
            raise ValueError("give a model on this machine as folder, not as model: local-dir:")
        return self


CONFIG = "open_clip_config.json"
# The names that open_clip itself takes before any pickled file of the same folder.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
HUB = "hf-hub:"
SECTION = "embeddings"  # of a workflow, where settings of a model usually stand

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
"""float32, N x D, each row of length 1."""


def in_hub(settings: Embeddings) -> str | None:
    """The Hub repository that `model` names, if it names one and no folder replaces it."""
    named = settings.folder is None and settings.model.startswith(HUB)
    return settings.model.removeprefix(HUB) if named else None


def read_config(place: Place) -> dict[str, Any]:
    """The `model_cfg` of a folder or Hub repository in open_clip's layout: sizes and tokenizer.

    Raises:
        AigiError: there is none, or it is damaged.
    """
    path = place.file(CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)["model_cfg"]
        int(found["embed_dim"])
        found["text_cfg"].get("hf_tokenizer_name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AigiError(
            f"{place.where}: {path}: not a configuration of open_clip ({type(error).__name__}: "
            f"{error}). Copy the model anew."
        ) from error
    return found


def model_config(settings: Embeddings, where: str = SECTION) -> dict[str, Any]:
    """The `model_cfg` of open_clip: sizes and tokenizer. No weights are read.

    Args:
        where: section of the settings, for messages.

    Raises:
        AigiError: no such model, or its configuration is damaged.
    """
    if (place := _place(settings, where)) is not None:
        return read_config(place)
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(settings.model)
    if config is None:
        raise AigiError(
            f"{where}.model: {settings.model}: open_clip has no such model. Set it to one "
            f"of {', '.join(open_clip.list_models()[:8])}, … (open_clip.list_models()), or to "
            f"{HUB}ORG/NAME."
        )
    return config


def _place(settings: Embeddings, where: str) -> Place | None:
    """Where the model is; None: where one of open_clip's tags says."""
    repository = in_hub(settings)
    if settings.folder is None and repository is None:
        return None
    return Place.of(where, settings.folder, repository or "")


def _tagged(settings: Embeddings, config: dict[str, Any], where: str) -> tuple[Place, str]:
    """The weight file of one of open_clip's tags: its place, and its name there."""
    import open_clip

    model = settings.model
    known = open_clip.get_pretrained_cfg(model, settings.pretrained)
    if not known:
        raise AigiError(
            f"{where}.pretrained: {settings.pretrained}: open_clip has no such weights of "
            f"{model}. Set it to one of: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or '(there are none)'}"
        )
    if bool(known.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = model.removesuffix("-quickgelu")
        other = f"{other}-quickgelu" if other == model else other
        raise AigiError(
            f"{where}.model: {model}: the weights {settings.pretrained} were trained with "
            f"another activation (quick_gelu), and would give poor vectors. Set it to {other}."
        )
    repository, file = os.path.split(known.get("hf_hub", ""))
    if not repository:
        raise AigiError(
            f"{where}.pretrained: {settings.pretrained}: there are only pickled weights of it, "
            "which are not read. Take other weights, or convert these and give them as folder."
        )
    place = Place(f"{where}.pretrained", f"{where}.folder", repository=repository)
    return place, f"{os.path.splitext(file)[0]}.safetensors" if file else WEIGHTS[0]


def wanted_files(settings: Embeddings, where: str = SECTION) -> tuple[Place, tuple[str, ...]]:
    """Where the model is, and its files there: configuration and weights, or a tag's weights.

    Raises:
        AigiError: open_clip has no such model or weights.
    """
    if (place := _place(settings, where)) is not None:
        return place, (CONFIG, WEIGHTS[0])
    place, file = _tagged(settings, model_config(settings, where), where)
    return place, (file,)


def find_weights(settings: Embeddings, where: str = SECTION) -> str:
    """Path of the safetensors file that open_clip will read; downloaded if need be.

    Args:
        where: section of the settings, for messages.

    Raises:
        AigiError: there is none, or it is not the expected one.
    """
    config, place = model_config(settings, where), _place(settings, where)
    if place is None:
        tagged, file = _tagged(settings, config, where)
        path = tagged.file(file)
    else:
        name = WEIGHTS[0]
        if settings.folder is not None:
            there = (n for n in WEIGHTS if os.path.isfile(os.path.join(settings.folder, n)))
            name = next(there, name)
        path = place.file(name)
    if settings.sha256 is not None:
        check_sha256(f"{where}.sha256", path, file_sha256(path), settings.sha256)
    return path


def check_weights(settings: Embeddings, where: str = SECTION) -> None:
    """Check that the model is there, the expected one and complete, before any work.

    Args:
        where: section of the settings, for messages.

    Raises:
        AigiError: there is none, it is another one, or its file does not have its tensors.
    """
    file = find_weights(settings, where)
    check_tensors(_part(settings, where), *_names(settings, where), file)


def _names(settings: Embeddings, where: str) -> tuple[str, str | None]:
    """What open_clip calls the model, and the tag of its weights."""
    name = settings.model if settings.folder is None else f"local-dir:{settings.folder}"
    return name, settings.pretrained if _place(settings, where) is None else None


def _part(settings: Embeddings, where: str) -> Part:
    if (place := _place(settings, where)) is not None:
        return Part(place.where, place)
    return Part(f"{where}.pretrained", f"{settings.model}, {settings.pretrained}")


def check_tensors(part: Part, name: str, tag: str | None, file: str) -> None:
    """Compare a model of open_clip with the file of its weights, which are not read.

    Args:
        part: for errors.
        name, tag: as for `open_model`.

    Raises:
        AigiError: tensors are missing, unexpected or of another shape; or the file is damaged.
    """
    import logging

    import open_clip
    import torch
    from open_clip.convert import convert_state_dict

    found = header(part, file)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it would warn that the weights are random
    try:
        with loading(part.where, part.model), torch.device("meta"):
            model = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, device="meta"
            )
    finally:
        logging.getLogger().setLevel(level)
    expected = shapes(model.state_dict())
    # What open_clip makes of files of other times and origins. But it also stretches position
    # embeddings of another shape, without a word: here they are refused.
    empty = {key: torch.empty(shape, device="meta") for key, shape in found.items()}
    if next(iter(empty), "").startswith("module"):
        empty = {key.removeprefix("module."): value for key, value in empty.items()}
    empty = convert_state_dict(model, empty)
    if "positional_embedding" in empty and not hasattr(model, "positional_embedding"):
        empty = open_clip.convert_to_custom_text_state_dict(empty)
    found = shapes(empty)
    if "logit_bias" in expected:
        found.setdefault("logit_bias", expected["logit_bias"])  # it is 0 then
    for scalar in {"logit_scale", "logit_bias"} & expected.keys() & found.keys():
        if math.prod(found[scalar]) == 1:
            found[scalar] = expected[scalar]
    compare(part, expected, found)


def identity(settings: Embeddings, where: str = SECTION) -> dict[str, Any]:
    """Which model it is, as records of stages name it.

    Args:
        where: section of the settings, for messages.

    Raises:
        AigiError: a folder has no weights.
    """
    if settings.folder is not None:
        # A folder has no name to go by: its content says which model it is.
        return {"folder": folder_sha256(settings.folder, find_weights(settings, where))}
    left_out = {"pretrained"} if in_hub(settings) else set()
    named: dict[str, Any] = settings.model_dump(
        mode="json", include={"model", "pretrained", "sha256"} - left_out
    )
    return named


def cosine(one: Vectors, other: Vectors) -> float:
    """Of two vectors of length 1, D numbers each; rounding does not take it over 1.

    Args:
        one, other: float32, shape (D,).

    Returns:
        -1 to 1.
    """
    return min(1.0, max(-1.0, float(np.dot(one.astype(np.float64), other.astype(np.float64)))))


def open_model(
    where: str,
    name: str,
    config: dict[str, Any],
    tag: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Any, Any, Any]:
    """A model of open_clip, how it takes images, and its tokenizer.

    Args:
        where: section of the settings, for messages.
        name: open_clip's, `hf-hub:ORG/NAME`, or `local-dir:FOLDER`.
        config: its `model_cfg`.
        tag: of its weights, for one of open_clip's own names.

    Raises:
        AigiError: it cannot be loaded.
    """
    import open_clip

    # A configuration can ask for code of its own; only this tokenizer would listen to it.
    code = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    with loading(where, name):
        model, _, prepare = open_clip.create_model_and_transforms(
            name, pretrained=tag, device=device, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(name, **code)
    words, others = tokenizer(["a cat", "two dogs"])
    if words.equal(others):
        # What transformers makes of a folder without a vocabulary.
        raise AigiError(
            f"{where}: {name}: its tokenizer knows no words: its files are missing or "
            "damaged. Copy or download the model anew."
        )
    return model, prepare, tokenizer


def untrained(config: dict[str, Any]) -> Any:
    """An `open_clip.model.CLIP` with random weights, of a `model_cfg`."""
    from open_clip.model import CLIP

    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


class Clip:
    """A loaded CLIP model: images and sentences in, vectors of length 1 out.

    Batches are cut from what is given, in order; float32 sums depend on their size.

    Attributes:
        size: numbers of a vector.
        logit_scale: what the model multiplies cosines with before a softmax.
        loaded: digest of its weights, in float32.

    Args:
        settings: which model, and how it is run.
        device: auto, cpu, cuda, cuda:N or mps.
        where: section of the settings, for messages.

    Raises:
        AigiError: no such model or device, or the model cannot be loaded.
    """

    def __init__(self, settings: Embeddings, device: str = "auto", where: str = SECTION) -> None:
        self.settings, self.device, self.where = settings, pick_device(device), where
        config = model_config(settings, where)
        check_weights(settings, where)
        name, tag = _names(settings, where)
        model, self.prepare_image, self.tokenizer = open_model(
            where, name, config, tag, self.device
        )
        self.loaded = digest(_part(settings, where), model)
        self.model: Any = model.eval().requires_grad_(False)
        self.size = int(config["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.exp())

    def prepare(self, rgb: RGB) -> torch.Tensor:
        """An image as the model takes it: float32, 3 x S x S, normalised. Safe in threads."""
        prepared: torch.Tensor = self.prepare_image(Image.fromarray(rgb))
        return prepared

    def prepared_vectors(self, pictures: Sequence[torch.Tensor]) -> Vectors:
        """Vectors (float32, N x D, length 1) of images that went through `prepare`.

        Args:
            pictures: float32, 3 x S x S each, any finite values.

        Raises:
            AigiError: out of memory, or a vector is no number.
        """
        import torch

        return self._in_batches(
            pictures, lambda part: self.model.encode_image(torch.stack(part).to(self.device))
        )

    def image_vectors(self, pictures: Sequence[RGB]) -> Vectors:
        """Vectors (float32, N x D, length 1) of images: uint8, H x W x 3, of any sizes."""
        size = self.settings.batch_size
        parts = [
            self.prepared_vectors([self.prepare(rgb) for rgb in pictures[start : start + size]])
            for start in range(0, len(pictures), size)
        ]
        return np.concatenate(parts) if parts else self.prepared_vectors([])

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors of sentences; what is longer than the model reads is cut off.

        Returns:
            float32, N x D, length 1, so each number is within -1 to 1.
        """
        return self._in_batches(
            texts, lambda part: self.model.encode_text(self.tokenizer(part).to(self.device))
        )

    def _in_batches(self, given: Sequence[T], encode: Callable[[list[T]], torch.Tensor]) -> Vectors:
        import torch

        size, kind = self.settings.batch_size, self.settings.precision
        vectors = np.empty((len(given), self.size), np.float32)
        for start in range(0, len(given), size):
            try:
                with (
                    torch.inference_mode(),
                    torch.autocast(
                        self.device.type, getattr(torch, kind), enabled=kind != "float32"
                    ),
                ):
                    found = encode(list(given[start : start + size]))
            except torch.OutOfMemoryError as error:
                raise AigiError(
                    f"{self.where}: {self.device} ran out of memory with batch_size {size}; "
                    "set a smaller one"
                ) from error
            unit = torch.nn.functional.normalize(found.float(), dim=-1)
            vectors[start : start + size] = unit.cpu().numpy()
        if not np.isfinite(vectors).all():
            raise AigiError(
                f"{self.where}: not a number in a vector: the model overflows in {kind}, or its "
                "weights are damaged. Set precision to bfloat16 or float32."
            )
        return vectors
