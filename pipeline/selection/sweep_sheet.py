"""Lines of a sweep in, a contact sheet of their examples out: what a threshold means, to look at.

The image on the right of a near duplicate is the one that would stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline import AigiError
from pipeline.selection.sweep import Drop
from pipeline.store import Store

THUMB = 144
COLUMNS = 10
_GAP, _LINE = 6, 18


def _thumbs(store: Store, wanted: set[str]) -> dict[str, Image.Image]:
    """Images of these ids, at most `THUMB` a side; those that failed are left out."""
    found: dict[str, Image.Image] = {}
    for shard in store.shards("images"):
        ids = store.read("images", shard, ["image_id"])["image_id"].to_pylist()
        rows = [row for row, name in enumerate(ids) if name in wanted]
        for row, rgb, _ in store.images("images", shard, rows):
            thumb = Image.fromarray(rgb)
            thumb.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
            found[ids[row]] = thumb
    return found


def draw(store: Store, lines: Sequence[Drop], path: Path) -> None:
    """Write the sheet, a row or more for every line that has examples.

    Raises:
        AigiError: there is nothing to show, a stored image is damaged, or the file cannot be
            written as an image.
    """
    shown = [line for line in lines if line.examples]
    if not shown:
        raise AigiError("sweep: no threshold would drop an image, so there is nothing to show")
    thumbs = _thumbs(store, {name for line in shown for name in (*line.examples, *line.twins)})
    cell = THUMB + _GAP
    width = COLUMNS * cell + _GAP
    strips: list[Image.Image] = []
    for line in shown:
        pictures: list[str] = []
        for number, name in enumerate(line.examples):
            pictures += [name, *line.twins[number : number + 1]]
        height = _LINE + -(-len(pictures) // COLUMNS) * (cell + _LINE)
        strip = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(strip)
        said = f"{line.setting} {line.threshold:.4g}: {line.dropped:,} of {line.scored:,}"
        pen.text((_GAP, 3), said + (" (now)" if line.current else ""), "black")
        for number, name in enumerate(pictures):
            x, y = _GAP + number % COLUMNS * cell, _LINE + number // COLUMNS * (cell + _LINE)
            if name in thumbs:
                strip.paste(thumbs[name], (x, y))
            pen.text((x, y + THUMB), name[:16], "black")
            if line.twins and number % 2 == 0:
                pen.line((x, y - 2, x + cell + THUMB, y - 2), "red", 2)
        strips.append(strip)
    tops = np.cumsum([0, *(strip.height for strip in strips)]).tolist()
    sheet = Image.new("RGB", (width, tops[-1]), "white")
    for top, strip in zip(tops, strips, strict=False):
        sheet.paste(strip, (0, top))
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise AigiError(f"sweep: {path}: cannot be written as an image: {error}") from error
