"""The run of a preview in; a page and a contact sheet of its images, with their costs, out."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from pipeline import AigiError
from pipeline.images.preview import Cost
from pipeline.pages.page import render
from pipeline.pages.planned import planned
from pipeline.pages.section import Gallery, Section, Shown, Table, counted
from pipeline.pages.thumbnails import Place, pictures, thumbnails
from pipeline.pixels import RGB
from pipeline.shown import one_line
from pipeline.store import Store

_SIDE, _QUALITY = 384, 80
"""Most pixels of a side of an image on the page; its quality as WebP."""
_CELL, _GAP, _HEAD, _LINES, _COLUMNS = 224, 10, 26, 3, 6
"""Of the sheet: pixels of a cell, between cells and of a heading; lines of a prompt; columns."""
_FAILED = Image.new("RGB", (_CELL, _CELL), "#eee")
MOST = 600
"""Images of a page or sheet; of each source as many."""
_COLUMNS_SHOWN = (
    "source", "split", "shard", "row", "text", "width", "height", "error", "watermark",
)  # fmt: skip

HEADINGS = ("source", "size", "images", "batch", "s an image", "s to load", "GiB at most", "hours")


def cost_rows(costs: Sequence[Cost], planned_images: Mapping[tuple[str, str], int]) -> list[Any]:
    """Cells of a table of costs, under HEADINGS.

    Args:
        planned_images: of the whole plan, by source and size; the last column is for all of them.
    """
    found = []
    for cost in costs:
        size = f"{cost.width}x{cost.height}"
        whole = planned_images.get((cost.source, size))
        found.append(
            (
                cost.source,
                size,
                counted(cost.images),
                "" if cost.batch is None else str(cost.batch),
                f"{cost.seconds:.3g}",
                f"{cost.loading:.3g}" if cost.loading else "",
                "" if cost.peak is None else f"{cost.peak / (1 << 30):.2f}",
                "" if whole is None else f"{whole * cost.seconds / 3600:.3g}",
            )
        )
    return found


def said_of(costs: Sequence[Cost]) -> str:
    """On what the costs were measured."""
    words = {"device": "of the device", "process": "of the process", "": "not known"}
    devices = ", ".join(dict.fromkeys(cost.device for cost in costs))
    memory = ", ".join(dict.fromkeys(words[cost.memory] for cost in costs))
    return f"On {devices}; memory {memory}; hours of one such device for the whole plan."


def _by_source(store: Store) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The first images of each source, as rows, and how many there are in all."""
    table = planned(store).select(_COLUMNS_SHOWN)
    names = pc.unique(table["source"]).to_pylist()
    if not names:
        raise AigiError(f"{store.url}: no images to show")
    each = max(1, MOST // len(names))
    found = {
        name: table.filter(pc.equal(table["source"], name)).slice(0, each).to_pylist()
        for name in names[:MOST]
    }
    return found, table.num_rows


def _facts(row: Mapping[str, Any]) -> str:
    size = f"{row['width']}x{row['height']}" if row["width"] else f"failed: {row['error']}"
    mark = "" if row["watermark"] in (None, "none") else f", {row['watermark']}"
    return f"{row['split']}, {size}{mark}"


def page(store: Store, rows: Sequence[Sequence[str]], said: str) -> str:
    """The page of a preview.

    Args:
        rows: of costs, as `cost_rows` has them.
        said: beside the costs.

    Raises:
        AigiError: there are no images, or one is damaged.
    """
    sources, whole = _by_source(store)
    galleries, failed = [], []
    for name, images in sources.items():
        shown = [
            Shown(Place(row["shard"], row["row"]), row["text"], _facts(row))
            for row in images
            if row["width"]
        ]
        galleries.append(Gallery(name, shown))
        failed += [(name, row["text"], row["error"] or "") for row in images if not row["width"]]
    places = [one.place for gallery in galleries for one in gallery.pictures]
    costs = Table("What an image costs", HEADINGS, rows, len(HEADINGS) - 2)
    sections = [Section("images", "Images", galleries=galleries)]
    if rows:
        sections.append(Section("costs", "Costs", [said], [costs]))
    if failed:
        table = Table("Failed images", ("source", "prompt", "error"), failed)
        sections.insert(0, Section("failed", "Failed images", tables=[table]))
    count = sum(len(gallery.pictures) for gallery in galleries)
    left = whole - sum(map(len, sources.values()))
    return render(
        "report.html",
        run=store.url,
        summary=f"Preview, at full settings: images {counted(count)}, sources {len(sources)}."
        + (f" {len(failed)} failed." if failed else "")
        + (f" {counted(left)} more are not shown." if left else ""),
        sections=sections,
        pictures=thumbnails(store, places, _SIDE, _QUALITY),
    )


def sheet(store: Store) -> bytes:
    """A contact sheet of a preview: a heading for each source, and each image over its prompt.

    Returns: a WebP file.

    Raises:
        AigiError: there are no images, or one is damaged.
    """
    sources, _ = _by_source(store)
    every = [row for rows in sources.values() for row in rows if row["width"]]
    small = {
        place: _thumbnail(rgb)
        for place, rgb in pictures(store, [Place(row["shard"], row["row"]) for row in every])
    }
    font, heading = ImageFont.load_default(11), ImageFont.load_default(15)
    high = _CELL + _LINES * 14 + _GAP
    rows_of = {name: -(-len(rows) // _COLUMNS) for name, rows in sources.items()}
    width = min(_COLUMNS, max(map(len, sources.values()))) * (_CELL + _GAP) + _GAP
    whole = Image.new("RGB", (width, sum(_HEAD + n * high for n in rows_of.values())), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for name, rows in sources.items():
        pen.text((_GAP, top + _HEAD - 7), name, "black", heading, anchor="ls")
        for number, row in enumerate(rows):
            x = _GAP + number % _COLUMNS * (_CELL + _GAP)
            y = top + _HEAD + number // _COLUMNS * high
            image = small.get(Place(row["shard"], row["row"])) or _FAILED
            whole.paste(image, (x, y))
            text = one_line(row["text"] or "")
            lines = textwrap.wrap(text, 40, max_lines=_LINES, placeholder=" …")
            pen.text((x, y + image.height + 2), "\n".join(lines), "black", font)
        top += _HEAD + rows_of[name] * high
    file = io.BytesIO()
    whole.save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def _thumbnail(rgb: RGB) -> Image.Image:
    picture = Image.fromarray(rgb)
    picture.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS, reducing_gap=3)
    return picture
