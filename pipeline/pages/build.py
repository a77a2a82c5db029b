"""Tables of a run in, the report's sections about building it out: counts, prompts, scores."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.charts import histogram
from pipeline.marks.detection import detect
from pipeline.marks.dwt_dct import READ
from pipeline.pages.gallery import lowest_section
from pipeline.pages.section import (
    Section,
    Table,
    by_reason,
    counted,
    floats_of,
    named,
    share_of,
)
from pipeline.pages.thumbnails import Place, pictures
from pipeline.prompts.choice import spread_of
from pipeline.prompts.sweep import limits_of, sweep
from pipeline.release.counts import reject_reasons
from pipeline.selection.rules import PAIRS, RULES
from pipeline.selection.sweep import SWEPT
from pipeline.settings import SPLITS
from pipeline.shown import one_line
from pipeline.status import Status
from pipeline.store import Store

_READ_BACK = 8  # images of each mark, source and split


def flow_section(store: Store, stages: Sequence[Status], images: pa.Table) -> Section:
    """Counts in and out of every stage."""
    rows: list[tuple[str, str, int, str]] = []
    made = {stage.table: stage.rows for stage in stages}
    refused = {shard: by_reason(reject_reasons(store, shard)) for shard in ("prompts", "plan")}
    if "prompts" in made:
        looked = made["prompts"] + refused["prompts"].total()
        rows.append(("prompts", f"{looked:,} captions", made["prompts"], named(refused["prompts"])))
    total, failed = images.num_rows, int(pc.sum(pc.is_valid(images["error"])).as_py() or 0)
    before = f"{made['prompts']:,} prompts" if "prompts" in made else "imported images"
    rows.append(("plan", before, total, named(refused["plan"])))
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
        rows.append(("selection", f"{total:,} planned", kept, named(reasons)))
        if "release" in made:
            rows.append(("release", f"{kept:,} kept", made["release"], ""))
    most = max(max(out for _, _, out, _ in rows), 1)
    return Section(
        "flow",
        "From captions to release",
        [
            "What went into every stage, what came out, and what was left out for which reason. "
            "Captions are read until there are enough; captions that were not read are not counted."
        ],
        [
            Table(
                "Stages",
                ("stage", "in", "left out, or found", "out"),
                [(stage, before, left, counted(out)) for stage, before, out, left in rows],
                1,
                [out / most for _, _, out, _ in rows],
            )
        ],
    )


def _thresholds(store: Store) -> Table:
    """What other thresholds of the filters would refuse."""
    return Table(
        "Captions that thresholds refuse, each alone",
        ("setting", "refused from this threshold on", "threshold", "refused"),
        [
            (
                f"prompts.filters.{line.setting}",
                one_line(" | ".join(line.examples)),
                f"{line.threshold:g}" + " (now)" * line.current,
                counted(line.refused),
            )
            for line in sweep(limits_of(store), store, 2)
        ],
        2,
    )


def _spread(spread: pa.Table) -> Table:
    """How far the chosen prompts spread, beside as many at random."""
    return Table(
        "How far the prompts spread",
        (
            *("choice", "words and pairs", "topics"),
            *("cosine to the nearest", "different ones (Vendi)"),
        ),
        [
            (
                row["choice"],
                counted(row["words"]),
                f"{row['topics']:,} of {row['clusters']:,}",
                "" if math.isnan(row["nearest"]) else f"{row['nearest']:.3f}",
                f"{row['vendi']:.1f}",
            )
            for row in spread.to_pylist()
        ],
        1,
    )


def prompts_section(store: Store, images: pa.Table) -> Section:
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
                        named({why: n for (of, why), n in refused.items() if of == source}),
                        counted(counts[source]),
                    )
                    for source in sources
                ],
                1,
            )
        )
        if (spread := spread_of(store)) is not None:
            tables.append(_spread(spread))
        if store.shards("texts"):
            tables.append(_thresholds(store))
        tokens = floats_of(prompts["tokens"])
        charts.append(
            histogram("Tokens of a prompt", tokens, "CLIP tokens", up="prompts", whole=True)
        )
        texts = prompts["text"]
    else:
        texts = pc.unique(images["text"])
        text.append("This run has no prompts table: its captions came with the images.")
    words = np.array([len(text.split()) for text in texts.to_pylist()], np.float64)
    charts.insert(0, histogram("Words of a prompt", words, "words", up="prompts", whole=True))
    text.append(f"{len(texts):,} distinct prompts.")
    return Section("prompts", "Prompts", text, tables, charts)


def images_section(images: pa.Table) -> Section:
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
        key=lambda row: (row[0], SPLITS.index(row[1]), -row[3]),
    )
    order = sorted(planned_of, key=lambda key: (key[0], SPLITS.index(key[1])))
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
                    (*key, counted(planned_of[key]), counted(kept_of[key]),
                     share_of(kept_of[key], planned_of[key]))
                    for key in order
                ],
                3,
                [planned_of[key] / most for key in order],
            ),
            Table(
                "Resolution of all images, in pixels",
                ("source", "split", "size", "images"),
                [(source, split, size, counted(count)) for source, split, size, count in shown],
                1,
            ),
        ],
    )  # fmt: skip


def scores_section(images: pa.Table, rules: Mapping[str, Any], pairs: pa.Table) -> Section:
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
                counted(len(values)),
                "" if limit is None else counted(beyond),
                *(f"{value:.3g}" for value in quantiles),
            )
        )

    for rule in SWEPT:
        values = floats_of(images[rule.column])
        add(rule.column, values, rule.meaning, rules.get(rule.setting), rule.side == "below")
    concepts: dict[str, list[float]] = defaultdict(list)
    for found in images["concepts"].drop_null().to_pylist():
        for name, value in found:
            concepts[name].append(value)
    meaning = next(rule.meaning for rule in RULES if rule.setting == "max_concepts")
    for name, found in sorted(concepts.items()):
        limit = (rules.get("max_concepts") or {}).get(name)
        add(one_line(name), np.array(found), meaning, limit, False)
    for rule in PAIRS:
        mine = pairs.filter(pc.equal(pairs["kind"], rule.column))
        limit, values = rules.get(rule.setting), floats_of(mine["similarity"])
        add(f"pairs ({rule.column})", values, rule.meaning, limit, False, "pairs")
    return Section(
        "scores",
        "Scores and thresholds",
        [
            "These are the scores of all images that were made. Red bars are beyond the threshold. "
            "An image may have been dropped for an earlier reason, and people overrule scores."
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


def watermarks_section(store: Store, images: pa.Table) -> Section | None:
    """Counts of watermarked images, and how much is read from their marks."""
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
        cells.append((*key, name, counted(counts[key]), counted(kept[key]), whole, right))
    return Section(
        "watermarks",
        "Watermarks",
        [
            "The table covers the sources and splits with a watermark. Invisible marks are looked "
            f"for in up to {each} images of each row; in unmarked images, half of the bits are "
            "right by chance. The command aigi watermark detect examines any image."
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
    """The mark looked for in some images of this row, how often it is whole, and the right bits."""
    mark, source, split = key
    beside = [other for other, *place in rows if place == [source, split] and other in READ]
    name = mark if mark in READ else next(iter(beside), None)
    if name is None or (mark != "none" and mark not in READ):
        return "", "", ""
    mine = pc.and_(pc.equal(images["source"], source), pc.equal(images["split"], split))
    marked = pc.and_(mine, pc.equal(pc.fill_null(images["watermark"], "none"), mark))
    places = [Place(row["shard"], row["row"]) for row in lowest_section(images, marked, most)]
    found = [detect(rgb, name) for _, rgb in pictures(store, places)]
    if not found:
        return "", "", ""
    shares = [one.bit_accuracy for one in found if one.bit_accuracy is not None]
    whole = sum(bool(one.whole) for one in found)
    return name, f"{whole} of {len(found)}", f"{np.mean(shares):.3f}" if shares else ""
