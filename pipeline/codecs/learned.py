"""Folders or Hub ids of our trained networks in, codecs of the benchmark out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.models.hub import Place
from pipeline.pixels import RGB

if TYPE_CHECKING:
    from pipeline.learned.codec import LearnedCodec


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained network, with the prompt of every image or without.

    Attributes:
        codec: of `pipeline.learned`.
        quality: of those that it codes at.
        prompts: false codes every image with an empty prompt.
    """

    codec: LearnedCodec
    quality: int
    prompts: bool

    @property
    def loaded(self) -> Mapping[str, str]:
        """Digests of the weights of its parts."""
        return self.codec.loaded

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file of a uint8 H x W x 3 image, prompt included."""
        return self.codec.encode(image, prompt if self.prompts else "", self.quality)

    def decode(self, data: bytes) -> RGB:
        """The image of a file: uint8, H x W x 3."""
        return self.codec.decode(data)


def points(models: Sequence[str]) -> list[tuple[str, int]]:
    """All models at each of their qualities, in order: a network may code at several rates."""
    return [(model, q) for model in models for q in range(1, _qualities(model) + 1)]


def _place(model: str) -> tuple[str, str | None]:
    """A folder, or a Hub id and the revision behind its `@`."""
    if Path(model).is_dir():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


@lru_cache(maxsize=64)
def _qualities(model: str) -> int:
    from pipeline.learned.sizes import read

    name, revision = _place(model)
    folder = name if Path(name).is_dir() else None
    try:
        path = Path(Place("codec", "models", folder, name, revision).file("config.json"))
        return read(path).qualities
    except AigiError:
        return 1  # where it is loaded, it is said what is wrong


def learned(model: str, quality: int, device: str, text: str | None, prompts: bool) -> Learned:
    """Load a network from a folder, or of a Hub id (`ORG/NAME[@REVISION]`).

    Raises:
        AigiError: there is none, or it is damaged.
    """
    from pipeline.learned.codec import load

    name, revision = _place(model)
    return Learned(load(name, revision, device, text), quality, prompts)


def prompt_bytes(data: bytes) -> int:
    """How many bytes of a file hold the prompt."""
    from pipeline.learned.bitstream import pack_prompt, unpack

    return len(pack_prompt(unpack(data)[0].prompt))
