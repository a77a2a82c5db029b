"""Folders or Hub ids of our trained networks in, codecs of the benchmark out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.learned.bitstream import QUALITY_STEPS, in_steps, quality_steps
from pipeline.models.hub import Place
from pipeline.pixels import RGB

if TYPE_CHECKING:
    from pipeline.learned.codec import LearnedCodec

TWENTIETHS = 20
"""Steps between two qualities of a network that a search tries: of 3 % of the rate each."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained network, with the prompt of every image or without.

    Attributes:
        codec: of `pipeline.learned`.
        quality: of those that it codes at, or between two of them.
        prompts: false codes every image with an empty prompt.
        effort: of the search for cheaper files.
    """

    codec: LearnedCodec
    quality: float
    prompts: bool
    effort: int = 0

    @property
    def loaded(self) -> Mapping[str, str]:
        """Digests of the weights of its parts."""
        return self.codec.loaded

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file of a uint8 H x W x 3 image, prompt included."""
        prompt = prompt if self.prompts else ""
        return self.codec.encode(image, prompt, self.quality, self.effort)

    def decode(self, data: bytes) -> RGB:
        """The image of a file: uint8, H x W x 3."""
        return self.codec.decode(data)


def points(models: Sequence[str]) -> list[tuple[str, int]]:
    """All models at each of their qualities, in order: a network may code at several rates."""
    return [(model, q) for model in models for q in range(1, _qualities(model) + 1)]


def point(points: Sequence[tuple[str, int]], quality: float) -> tuple[str, float]:
    """The model and its own quality that a quality of all models means.

    Args:
        points: as `points` gives them; they count from 1.
        quality: from 1 to their number; a fraction lies between two qualities of one network.

    Raises:
        AigiError: it lies between two models, or between the steps that a file can have.
    """
    steps = quality_steps(quality)
    model, own = points[steps // QUALITY_STEPS - 1]
    if not steps % QUALITY_STEPS:
        return model, own
    above = points[steps // QUALITY_STEPS]
    if above != (model, own + 1):
        raise AigiError(
            f"quality {quality:g} lies between two models, {model} and {above[0]}. Fractions are "
            "between qualities of one network."
        )
    return model, in_steps(own * QUALITY_STEPS + steps % QUALITY_STEPS)


def grid(points: Sequence[tuple[str, int]]) -> tuple[float, ...]:
    """Qualities for a search: all points, and twentieths between those of one network."""
    found = []
    for number, (model, own) in enumerate(points, 1):
        between = points[number : number + 1] == [(model, own + 1)]
        found += [number + step / TWENTIETHS for step in range(TWENTIETHS if between else 1)]
    return tuple(found)


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


def learned(
    model: str, quality: float, device: str, text: str | None, prompts: bool, effort: int = 0
) -> Learned:
    """A network from a folder, or of a Hub id (`ORG/NAME[@REVISION]`), without lossless files.

    What is measured is the network: an image without any error would decide the mean of a curve.

    The one that was loaded last stays in memory, for a search tries many of its qualities.

    Raises:
        AigiError: there is none, or it is damaged.
    """
    from pipeline.learned.codec import load

    name, revision = _place(model)
    files = [path for folder in filter(None, (name, text)) for path in Path(folder).glob("*.*")]
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(files))
    key = (name, revision, device, text, stamps)
    if key not in _LAST:
        _LAST.clear()  # one network goes before the next one comes
        _LAST[key] = load(name, revision, device, text, lossless=False)
    return Learned(_LAST[key], quality, prompts, effort)


_LAST: dict[object, LearnedCodec] = {}
"""The network that was loaded last, by its place and the times of its files."""


def prompt_bytes(data: bytes) -> int:
    """How many bytes of a file hold the prompt."""
    from pipeline.learned import bitstream

    return bitstream.prompt_bytes(data)
