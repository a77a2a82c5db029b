"""A run in, one self-contained HTML file out that shows what was made, dropped, and why.

Counts are of all rows; pictures are a sample, drawn by the hash that an image's id is.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from pipeline.charts import histogram
from pipeline.dataset.counts import reject_reasons
from pipeline.dataset.detection import detect
from pipeline.dataset.selection import REASONS, near_pairs_of
from pipeline.dataset.sweep import SWEPT
from pipeline.dwt_dct import READ
from pipeline.learned.logs import logs
from pipeline.pages.measured import measured
from pipeline.pages.page import render, visible
from pipeline.pages.planned import planned
from pipeline.pages.section import Gallery, Section, Shown, Table
from pipeline.pages.thumbnails import Place, pictures, thumbnails
from pipeline.pages.trained import training
from pipeline.progress import duration
from pipeline.run import RUN_WORKFLOW, Status, status
from pipeline.tables import Store

SIDE = 160  # pixels of a thumbnail
MOST_PICTURES = 600
"""Thumbnails of a page: of pictures that compress as badly as noise, below 12 MB."""
_SHEET, _EXAMPLES, _GROUPS, _MEMBERS = 240, 8, 24, 4  # pictures; examples are of each reason
_READ_BACK = 8  # pictures of each mark, source and split
_SPLITS = ("train", "validation", "test")
_VEILED = ("nsfw", "concept")
_MEANING = {
    "clip_score": "cosine of picture and prompt",
    "nsfw": "safety checker, above 0: flagged",
    "black": "share of nearly black pixels",
    "blank": "share of the commonest colour",
    "luminance_std": "levels of 255",
    "entropy": "bits of the luminance histogram",
    "blockiness": "1: no grid of a JPEG",
}


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Values of a column that are there and finite."""
    values: NDArray[np.float64] = column.drop_null().cast(pa.float64()).to_numpy()
    return values[np.isfinite(values)]


def _named(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def _by_reason(counts: Counter[tuple[str, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, reason), count in counts.items():
        found[reason] += count
    return found


# --- Sections ----------------------------------------------------------------------------------


def _flow(store: Store, stages: Sequence[Status], images: pa.Table) -> Section:
    """Counts in and out of every stage."""
    rows: list[tuple[str, str, int, str]] = []
    made = {stage.table: stage.rows for stage in stages}
    refused = {shard: _by_reason(reject_reasons(store, shard)) for shard in ("prompts", "plan")}
    if "prompts" in made:
        looked = made["prompts"] + refused["prompts"].total()
        rows.append(
            ("prompts", f"{looked:,} captions", made["prompts"], _named(refused["prompts"]))
        )
    total, failed = images.num_rows, int(pc.sum(pc.is_valid(images["error"])).as_py() or 0)
    before = f"{made['prompts']:,} prompts" if "prompts" in made else "imported pictures"
    rows.append(("plan", before, total, _named(refused["plan"])))
    if "images" in made:
        gone = "" if not failed else f"failed {failed:,}"
        rows.append(("images", f"{total:,} planned", made["images"] - failed, gone))
    for table, column in (("embeddings", "clip_score"), ("quality", "entropy")):
        if table in made:
            there = len(images) - images[column].null_count
            rows.append((table, f"{total - failed:,} images", there, ""))
    if "duplicates" in made:
        pairs = f"{made['duplicates']:,} near pairs found"
        rows.append(("duplicates", f"{total - failed:,} images", total - failed, pairs))
    if "selection" in made:
        reasons = Counter(images["reason"].drop_null().to_pylist())
        kept = int(pc.sum(images["keep"]).as_py() or 0)
        rows.append(("selection", f"{total:,} planned", kept, _named(reasons)))
        if "release" in made:
            rows.append(("release", f"{kept:,} kept", made["release"], ""))
    most = max(max(out for _, _, out, _ in rows), 1)
    return Section(
        "flow",
        "From captions to release",
        [
            "What went into every stage, what came out, and what was left out for which reason. "
            "Captions are read until there are enough; those never looked at are not counted."
        ],
        [
            Table(
                "Stages",
                ("stage", "in", "left out, or found", "out"),
                [(stage, before, left, _count(out)) for stage, before, out, left in rows],
                1,
                [out / most for _, _, out, _ in rows],
            )
        ],
    )


def _prompts(store: Store, images: pa.Table) -> Section:
    """Lengths and sources of prompts; captions that were refused."""
    tables, charts, text = [], [], []
    if store.shards("prompts"):
        prompts = store.read_all("prompts", ["text", "source", "tokens"])
        counts = Counter(prompts["source"].to_pylist())
        refused = reject_reasons(store, "prompts")
        sources = sorted({*counts, *(source for source, _ in refused)})
        tables.append(
            Table(
                "Prompts by source",
                ("source", "refused", "kept"),
                [
                    (
                        source,
                        _named({why: n for (of, why), n in refused.items() if of == source}),
                        _count(counts[source]),
                    )
                    for source in sources
                ],
                1,
            )
        )
        tokens = _floats(prompts["tokens"])
        charts.append(
            histogram("Tokens of a prompt", tokens, "CLIP tokens", up="prompts", whole=True)
        )
        texts = prompts["text"]
    else:
        texts = pc.unique(images["text"])
        text.append("This run has no prompts table: captions came with the pictures.")
    words = np.array([len(text.split()) for text in texts.to_pylist()], np.float64)
    charts.insert(0, histogram("Words of a prompt", words, "words", up="prompts", whole=True))
    text.append(f"{len(texts):,} different prompts.")
    return Section("prompts", "Prompts", text, tables, charts)


def _images(images: pa.Table) -> Section:
    """Images by source and split, and their resolution."""
    keys = ["source", "split"]
    grouped = images.select([*keys, "keep", "error"])
    planned_of: Counter[tuple[str, str]] = Counter()
    kept_of: Counter[tuple[str, str]] = Counter()
    for row in (
        grouped.group_by([*keys, "keep"], use_threads=False).aggregate([([], "count_all")])
    ).to_pylist():
        planned_of[row["source"], row["split"]] += row["count_all"]
        kept_of[row["source"], row["split"]] += row["count_all"] if row["keep"] else 0
    sizes = images.group_by(["source", "split", "width", "height"], use_threads=False).aggregate(
        [([], "count_all")]
    )
    size_rows = sorted(
        (
            (row["source"], row["split"], f"{row['width']}x{row['height']}", row["count_all"])
            for row in sizes.to_pylist()
            if row["width"] is not None
        ),
        key=lambda row: (row[0], _SPLITS.index(row[1]), -row[3]),
    )
    order = sorted(planned_of, key=lambda key: (key[0], _SPLITS.index(key[1])))
    most = max(planned_of.values(), default=1)
    shown = size_rows[:60]
    return Section(
        "images",
        "Images",
        [f"The first 60 of {len(size_rows):,} sizes are shown."] * (len(shown) < len(size_rows)),
        [
            Table(
                "Images by source and split",
                ("source", "split", "planned", "kept", "share kept"),
                [
                    (*key, _count(planned_of[key]), _count(kept_of[key]),
                     _share(kept_of[key], planned_of[key]))
                    for key in order
                ],
                3,
                [planned_of[key] / most for key in order],
            ),
            Table(
                "Resolution, in pixels, of all that was made",
                ("source", "split", "size", "images"),
                [(source, split, size, _count(count)) for source, split, size, count in shown],
                1,
            ),
        ],
    )  # fmt: skip


def _lowest(images: pa.Table, chosen: pa.ChunkedArray, count: int) -> list[dict[str, Any]]:
    """At most so many of the chosen rows that have a picture: those of the lowest ids."""
    there = images.filter(pc.and_(pc.fill_null(chosen, False), pc.is_valid(images["width"])))
    lowest = heapq.nsmallest(count, there["image_id"].to_pylist())
    rows = there.filter(pc.is_in(there["image_id"], pa.array(lowest, pa.string()))).to_pylist()
    return sorted(rows, key=lambda row: str(row["image_id"]))


def _shown(row: Mapping[str, Any], facts: str = "") -> Shown:
    facts = facts or row["split"]
    if (row["watermark"] or "none") != "none":
        facts += f", {row['watermark']}"
    return Shown(Place(row["shard"], row["row"]), row["text"], facts)


def _sheets(images: pa.Table) -> Section:
    """Pictures of every source."""
    names = sorted(pc.unique(images["source"]).to_pylist())
    each = max(4, min(24, _SHEET // max(1, len(names))))
    galleries = []
    for name in names[: _SHEET // 4]:
        mine = pc.equal(images["source"], name)
        # Before a selection, of all that was made.
        kept = pc.and_(mine, pc.fill_null(images["keep"], True))
        rows = _lowest(images, kept, each)
        if rows:
            galleries.append(Gallery(name, [_shown(row) for row in rows]))
    return Section(
        "sheets",
        "Contact sheets",
        [f"At most {each} kept images of each source, drawn by their hash."],
        galleries=galleries,
    )


def _scores(images: pa.Table, rules: Mapping[str, Any], pairs: pa.Table) -> Section:
    """Histograms of all scores, with the thresholds."""
    charts = []
    rows: list[Sequence[str]] = []

    def add(
        name: str,
        values: NDArray[np.float64],
        meaning: str,
        limit: float | None,
        low: bool,
        up: str = "images",
    ) -> None:
        if not len(values):
            return
        charts.append(histogram(name, values, meaning, limit, low, up))
        beyond = (
            0 if limit is None else int((values < limit).sum() if low else (values > limit).sum())
        )
        quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
        rows.append(
            (
                name,
                "" if limit is None else f"{'at least' if low else 'at most'} {limit:g}",
                _count(len(values)),
                "" if limit is None else _count(beyond),
                *(f"{value:.3g}" for value in quantiles),
            )
        )

    for setting, (name, low) in SWEPT.items():
        add(name, _floats(images[name]), _MEANING[name], rules.get(setting), low)
    concepts: dict[str, list[float]] = defaultdict(list)
    for found in images["concepts"].drop_null().to_pylist():
        for name, value in found:
            concepts[name].append(value)
    for name, values in sorted(concepts.items()):
        limit = (rules.get("max_concepts") or {}).get(name)
        add(visible(name), np.array(values), "probability of the concept", limit, False)
    for kind, setting in (("vector", "min_similarity"), ("hash", "min_hash_similarity")):
        mine = pairs.filter(pc.equal(pairs["kind"], kind))
        limit = rules.get(setting)
        add(
            f"pairs ({kind})",
            _floats(mine["similarity"]),
            "similarity of near pictures",
            limit,
            False,
            "pairs",
        )
    return Section(
        "scores",
        "Scores and thresholds",
        [
            "Of all images that were made. What a threshold speaks against is red; a row may have "
            "been dropped for an earlier reason, and people overrule scores."
        ],
        [
            Table(
                "Scores",
                ("score", "rule", "images", "beyond it", "least", "5 %", "median", "95 %", "most"),
                rows,
                7,
            )
        ]
        if rows
        else [],
        charts,
    )


def _dropped(images: pa.Table) -> Section | None:
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
        rows = _lowest(images, pc.equal(images["reason"], reason), _EXAMPLES)
        pictures = [_shown(row, f"{row['source']}, {row['split']}") for row in rows]
        if pictures:
            galleries.append(Gallery(f"Dropped: {reason}", pictures, reason in _VEILED))
    return Section(
        "dropped",
        "Dropped, and why",
        [f"Up to {_EXAMPLES} examples of each reason. Those that may be unsafe are folded away."],
        [
            Table(
                "Images dropped, by reason and source",
                ("reason", *sources, "all"),
                [
                    (
                        reason,
                        *(_count(counts[reason, source]) for source in sources),
                        _count(sum(counts[reason, source] for source in sources)),
                    )
                    for reason in found
                ],
                len(sources) + 1,
            )
        ],
        galleries=galleries,
    )


def _groups(images: pa.Table) -> Section | None:
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
            f"{len(members):,} groups; {len(galleries):,} of them are shown, the one that stays "
            "first, the others with their similarity to it or to the nearest of the group."
        ],
        [
            Table(
                "Groups by size",
                ("images in a group", "groups"),
                [(_count(size), _count(count)) for size, count in sorted(sizes.items())],
                2,
            )
        ],
        galleries=galleries,
    )


def _watermarks(store: Store, images: pa.Table) -> Section | None:
    """Counts of marked pictures, and what reads of their marks."""
    grouped = images.group_by(
        ["watermark", "source", "split", "keep"], use_threads=False
    ).aggregate([([], "count_all")])
    counts: Counter[tuple[str, str, str]] = Counter()
    kept: Counter[tuple[str, str, str]] = Counter()
    for row in grouped.to_pylist():
        key = (row["watermark"] or "none", row["source"], row["split"])
        counts[key] += row["count_all"]
        kept[key] += row["count_all"] if row["keep"] else 0
    if {mark for mark, _, _ in counts} == {"none"}:
        return None
    rows = sorted(key for key in counts if key[0] != "none" or any(
        mark != "none" and (source, split) == key[1:] for mark, source, split in counts
    ))  # fmt: skip
    each = max(1, min(_READ_BACK, 160 // len(rows)))
    cells = []
    for key in rows:
        name, whole, right = _read_back(store, images, key, rows, each)
        cells.append((*key, name, _count(counts[key]), _count(kept[key]), whole, right))
    return Section(
        "watermarks",
        "Watermarks",
        [
            "Of sources and splits that ask for a mark. Invisible marks are looked for in up to "
            f"{each} pictures each, and in unmarked ones beside them, where chance gives half of "
            "the bits. The command aigi watermark detect looks at any picture."
        ],
        [
            Table(
                "Images by watermark",
                (
                    *("watermark", "source", "split", "looked for"),
                    *("planned", "kept", "whole message", "bits right"),
                ),
                cells,
                4,
            )
        ],
    )


def _read_back(
    store: Store,
    images: pa.Table,
    key: tuple[str, str, str],
    rows: Sequence[tuple[str, str, str]],
    most: int,
) -> tuple[str, str, str]:
    """Of some pictures with this mark, source and split: which mark is read, how often, bits."""
    mark, source, split = key
    beside = [other for other, *place in rows if place == [source, split] and other in READ]
    name = mark if mark in READ else next(iter(beside), None)
    if name is None or (mark != "none" and mark not in READ):
        return "", "", ""
    mine = pc.and_(pc.equal(images["source"], source), pc.equal(images["split"], split))
    marked = pc.and_(mine, pc.equal(pc.fill_null(images["watermark"], "none"), mark))
    places = [Place(row["shard"], row["row"]) for row in _lowest(images, marked, most)]
    found = [detect(rgb, name) for _, rgb in pictures(store, places)]
    if not found:
        return "", "", ""
    shares = [one.bit_accuracy for one in found if one.bit_accuracy is not None]
    whole = sum(bool(one.whole) for one in found)
    return name, f"{whole} of {len(found)}", f"{np.mean(shares):.3f}" if shares else ""


def _libraries(versions: str | None) -> str:
    """Names and versions, of the JSON text that images have."""
    return ", ".join(f"{name} {number}" for name, number in json.loads(versions or "{}").items())


def _environment(store: Store, stages: Sequence[Status], images: pa.Table | None) -> Section | None:
    """Timings, and what made the pictures."""
    tables = []
    if stages:
        tables.append(
            Table(
                "Timings",
                ("stage", "state", "shards", "rows", "MB", "time", "rows/s"),
                [
                    (
                        stage.table,
                        stage.state + (f", {stage.failed:,} failed" if stage.failed else ""),
                        *(
                            (
                                f"{stage.done:,} of {stage.done + stage.missing:,}",
                                _count(stage.rows),
                                f"{stage.bytes / 1e6:,.1f}",
                            )
                            if stage.done + stage.missing
                            else ("", "", "")  # a stage without a table, as the manifest
                        ),
                        duration(stage.seconds),
                        f"{stage.rows / stage.seconds:,.1f}"
                        if stage.seconds and stage.rows
                        else "",
                    )
                    for stage in stages
                ],
                5,
            )
        )
    if images is not None:
        made = images.group_by(
            ["source", "device", "batch_size", "versions"], use_threads=False
        ).aggregate([([], "count_all")])
        tables.append(
            Table(
                "What made the images",
                ("source", "device", "batch", "libraries", "images"),
                sorted(
                    (
                        row["source"],
                        row["device"],
                        "" if row["batch_size"] is None else str(row["batch_size"]),
                        _libraries(row["versions"]),
                        _count(row["count_all"]),
                    )
                    for row in made.to_pylist()
                    if row["device"] is not None
                ),
                1,
            )
        )
    settings = store.read_json(RUN_WORKFLOW)
    code = (
        []
        if settings is None
        else [("The whole workflow", yaml.safe_dump(settings, allow_unicode=True))]
    )
    if not tables and not code:
        return None
    return Section("environment", "Timings and environment", tables=tables, code=code)


# --- The page ----------------------------------------------------------------------------------


def _sections(store: Store, stages: Sequence[Status]) -> Iterator[Section | None]:
    images = None
    if store.shards("plan"):
        images = planned(store)
        rules = (store.read_json("_stages", "selection.json") or {}).get("settings", {})
        yield _flow(store, stages, images)
        yield _prompts(store, images)
        yield _images(images)
        yield _sheets(images)
        yield _scores(images, rules, near_pairs_of(store))
        yield _dropped(images)
        yield _groups(images)
        yield _watermarks(store, images)
    yield from measured(store)
    if trained := logs(store):
        yield training(trained)
    yield _environment(store, stages, images)


def _summary(stages: Sequence[Status], codecs: int) -> str:
    """One line on how far the run is."""
    rows = {stage.table: stage.rows for stage in stages}
    told = [
        f"{rows[table]:,} {words}"
        for table, words in (
            ("prompts", "prompts"),
            ("plan", "images planned"),
            ("images", "made"),
            ("release", "released"),
            ("characteristics", "pictures characterised"),
            ("alignments", "pictures scored for alignment"),
            ("measurements", "measurements of codecs"),
        )
        if table in rows
    ]
    if codecs:
        told.append(f"{codecs:,} codec{'s' * (codecs > 1)} in training or trained")
    undone = [stage.table for stage in stages if stage.state != "done"]
    return ", ".join(told) + (f". Not finished: {', '.join(undone)}." if undone else ".")


def charts(sections: Sequence[Section]) -> dict[str, str]:
    """The charts of a report by the name that a file can have, on a white ground."""
    return {
        f"{section.name}-{number:02d}.svg": svg.replace(
            'role="img"', 'role="img" style="background:#fff"', 1
        )
        for section in sections
        for number, svg in enumerate(section.charts, 1)
    }


def report(store: Store) -> tuple[str, list[Section]]:
    """The page of a run, whatever stages it has, and the sections that it is made of.

    Raises:
        AigiError: no run, or one whose tables do not belong together.
    """
    stages = status(store)
    sections = [section for section in _sections(store, stages) if section is not None]
    galleries = [gallery for section in sections for gallery in section.galleries]
    places = {shown.place for gallery in galleries for shown in gallery.pictures}
    small = thumbnails(store, places, SIDE, 75)
    page = render(
        "report.html",
        run=store.url,
        summary=_summary(stages, len(logs(store))),
        sections=sections,
        pictures=small,
    )
    return page, sections
