"""Tables of a run in, the report's sections with images out: sheets, dropped ones, duplicates."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pages.section import Gallery, Section, Shown, Table, counted
from pipeline.pages.thumbnails import Place
from pipeline.selection.rules import REASONS

_SHEET, _EXAMPLES, _GROUPS, _MEMBERS = 240, 8, 24, 4  # pictures; examples are of each reason


_VEILED = ("nsfw", "concept")


def lowest_section(images: pa.Table, chosen: pa.ChunkedArray, count: int) -> list[dict[str, Any]]:
    """At most `count` of the chosen rows that have an image: those with the lowest ids."""
    there = images.filter(pc.and_(pc.fill_null(chosen, False), pc.is_valid(images["width"])))
    lowest = heapq.nsmallest(count, there["image_id"].to_pylist())
    rows = there.filter(pc.is_in(there["image_id"], pa.array(lowest, pa.string()))).to_pylist()
    return sorted(rows, key=lambda row: str(row["image_id"]))


def _shown(row: Mapping[str, Any], facts: str = "") -> Shown:
    facts = facts or row["split"]
    if (row["watermark"] or "none") != "none":
        facts += f", {row['watermark']}"
    return Shown(Place(row["shard"], row["row"]), row["text"], facts)


def sheets_section(images: pa.Table) -> Section:
    """Images of every source."""
    names = sorted(pc.unique(images["source"]).to_pylist())
    each = max(4, min(24, _SHEET // max(1, len(names))))
    galleries = []
    for name in names[: _SHEET // 4]:
        mine = pc.equal(images["source"], name)
        # Before a selection, of all that was made.
        kept = pc.and_(mine, pc.fill_null(images["keep"], True))
        rows = lowest_section(images, kept, each)
        if rows:
            galleries.append(Gallery(name, [_shown(row) for row in rows]))
    return Section(
        "sheets",
        "Contact sheets",
        [f"Up to {each} kept images of each source, drawn by their hash."],
        galleries=galleries,
    )


def dropped_section(images: pa.Table) -> Section | None:
    """Counts and examples of every reason."""
    if images["keep"].null_count == len(images):
        return None
    counts: Counter[tuple[str, str]] = Counter(
        zip(images["reason"].to_pylist(), images["source"].to_pylist(), strict=True)
    )
    sources = sorted({source for _, source in counts})
    found = [reason for reason in REASONS if any(reason == why for why, _ in counts)]
    galleries = []
    for reason in found:
        rows = lowest_section(images, pc.equal(images["reason"], reason), _EXAMPLES)
        pictures = [_shown(row, f"{row['source']}, {row['split']}") for row in rows]
        if pictures:
            galleries.append(Gallery(f"Dropped: {reason}", pictures, reason in _VEILED))
    return Section(
        "dropped",
        "Dropped images and reasons",
        [f"Up to {_EXAMPLES} examples of each reason. Images that may be unsafe are hidden."],
        [
            Table(
                "Dropped images by reason and source",
                ("reason", *sources, "all"),
                [
                    (
                        reason,
                        *(counted(counts[reason, source]) for source in sources),
                        counted(sum(counts[reason, source] for source in sources)),
                    )
                    for reason in found
                ],
                len(sources) + 1,
            )
        ],
        galleries=galleries,
    )


def groups_section(images: pa.Table) -> Section | None:
    """Near duplicates beside the one that stays."""
    gone = images.filter(pc.is_valid(images["duplicate_of"]))
    if not len(gone):
        return None
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in gone.to_pylist():
        members[row["duplicate_of"]].append(row)
    some = sorted(members)[:_GROUPS]
    stays = {
        row["image_id"]: row
        for row in images.filter(
            pc.is_in(images["image_id"], pa.array(some, pa.string()))
        ).to_pylist()
    }
    galleries = []
    for number, name in enumerate(some, 1):
        mine = sorted(members[name], key=lambda row: str(row["image_id"]))
        pictures = [_shown(stays[name], f"stays: {stays[name]['source']}, {stays[name]['split']}")]
        pictures += [
            _shown(row, f"{row['similarity']:.3f}: {row['source']}, {row['split']}")
            for row in mine[: _MEMBERS - 1]
        ]
        veiled = any(row["reason"] in _VEILED for row in (stays[name], *mine))
        more = len(mine) - (_MEMBERS - 1)
        title = f"Group {number}" + (f", and {more:,} more" if more > 0 else "")
        galleries.append(Gallery(title, pictures, veiled))
    sizes = Counter(len(rows) + 1 for rows in members.values())
    return Section(
        "duplicates",
        "Duplicate groups",
        [
            f"There are {len(members):,} groups, of which {len(galleries):,} are shown. The first "
            "image stays; the others have their similarity to it or to the nearest in the group."
        ],
        [
            Table(
                "Groups by size",
                ("images in a group", "groups"),
                [(counted(size), counted(count)) for size, count in sorted(sizes.items())],
                2,
            )
        ],
        galleries=galleries,
    )
