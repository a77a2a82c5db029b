"""Samples of a release in, one picture that shows them, a row for each config, out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image, ImageDraw, ImageFont

from pipeline.pixels import RGB

SHEET = "sheet.webp"
CANDIDATES = 8
"""Samples of one config; as many are shown as find room."""

_WIDTH, _HEIGHT, _GAP, _LABEL = 1200, 160, 8, 24  # pixels; height is that of a thumbnail
_QUALITY = 85


class Sample(NamedTuple):
    """Where one image of a release stands."""

    image_id: str
    picture: str  # the same for all variants of one picture
    split: str
    shard: str
    row: int
    width: int
    height: int


class Drawn(Protocol):
    """Where images are read: `pipeline.store.Store`, or several of them."""

    def images(
        self, table: str, shard: str, rows: Iterable[int], columns: Sequence[str] = ()
    ) -> Iterator[tuple[int, RGB, dict[str, Any]]]:
        """As `Store.images`."""
        ...


class Shown(NamedTuple):
    """One thumbnail of the sheet."""

    config: str
    split: str
    text: str


def _thumbnail_size(sample: Sample) -> tuple[int, int]:
    """Width and height in pixels: as high as the row, but never wider than three times that."""
    scale = min(_HEIGHT / sample.height, 3 * _HEIGHT / sample.width)
    return max(1, round(sample.width * scale)), max(1, round(sample.height * scale))


def _that_fit(samples: Iterable[Sample]) -> list[Sample]:
    """Samples in their order, but for those that find no room in the row any more."""
    kept, left = [], _WIDTH - _GAP
    for sample in samples:
        width = _thumbnail_size(sample)[0] + _GAP
        if width <= left:
            kept.append(sample)
            left -= width
    return kept


def _read(store: Drawn, sample: Sample) -> tuple[RGB, str]:
    """Pixels and prompt of one image."""
    ((_, rgb, values),) = store.images("release", sample.shard, [sample.row], ["text"])
    return rgb, values["text"]


def draw(store: Drawn, samples: Mapping[str, list[Sample]]) -> tuple[bytes, list[Shown]]:
    """Draw the contact sheet of a release.

    Args:
        samples: at most `CANDIDATES` of each config, in the order in which they are shown.

    Returns:
        A WebP file, and what it shows, from left to right and from top to bottom.

    Raises:
        AigiError: a picture cannot be decoded.
    """
    chosen = {config: _that_fit(found) for config, found in samples.items()}
    high = _LABEL + _HEIGHT + _GAP
    sheet = Image.new("RGB", (_WIDTH, high * len(chosen) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    shown = []
    for number, (config, found) in enumerate(chosen.items()):
        x, y = _GAP, number * high
        pen.text((x, y + _LABEL - 6), config, "black", ImageFont.load_default(15), anchor="ls")
        for sample in found:
            rgb, text = _read(store, sample)
            width, height = _thumbnail_size(sample)
            small = Image.fromarray(rgb).resize(
                (width, height), Image.Resampling.LANCZOS, reducing_gap=3
            )
            sheet.paste(small, (x, y + _LABEL))
            x += width + _GAP
            shown.append(Shown(config, sample.split, text))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=_QUALITY, method=6)
    return file.getvalue(), shown
