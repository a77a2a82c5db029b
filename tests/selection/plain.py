"""The selection on plain lists, row after row: slow; the one on columns is compared with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.duplicates.groups import SPLIT_RANK, components, kept
from pipeline.duplicates.pairs import Pairs
from pipeline.selection.rules import PAIRS, Selection, columns_of, flags
from pipeline.store import Store


@dataclass(frozen=True)
class Plain:
    """All planned images in plan order, one value for each."""

    image_id: list[str]
    source: list[str]
    split: list[str]
    shard: list[str]
    unit: NDArray[np.int64]
    failed: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]
    concepts: Mapping[str, NDArray[np.float64]]


MORE: dict[str, list[str]] = {"embeddings": [], "quality": ["concepts"]}


def plain(store: Store) -> Plain:
    """Read all of a run."""
    ids: list[str] = []
    source: list[str] = []
    split: list[str] = []
    shards: list[str] = []
    units: list[int] = []
    failed: list[bool] = []
    parts: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    concepts: list[dict[str, float]] = []
    number: dict[str, int] = {}
    have = {name: store.shards(name) for name in MORE}
    scored = {table: [*columns_of(table), *more] for table, more in MORE.items()}
    for shard in store.shards("plan"):
        here = {table: columns for table, columns in scored.items() if shard in have[table]}
        found = store.aligned(
            shard, {"plan": ["source", "split", "pair_id"], "images": ["error"], **here}
        )
        plan, images = found["plan"], found["images"]
        mine = plan["image_id"].to_pylist()
        ids += mine
        source += plan["source"].to_pylist()
        split += plan["split"].to_pylist()
        shards += [shard] * len(mine)
        failed += [error is not None for error in images["error"].to_pylist()]
        for own, pair in zip(mine, plan["pair_id"].to_pylist(), strict=True):
            units.append(number.setdefault(pair or own, len(number)))
        for table in have:
            for column in columns_of(table):
                if table not in found:
                    parts[column].append(np.full(len(mine), np.nan))
                    continue
                kind = pa.float64() if column != "width_ok" else pa.int8()
                values = found[table][column].cast(kind)
                parts[column].append(np.array(values.to_pylist(), dtype=np.float64))
        if "quality" in found:
            concepts += [dict(row or {}) for row in found["quality"]["concepts"].to_pylist()]
        else:
            concepts += [{}] * len(mine)
    names = sorted({name for row in concepts for name in row})
    return Plain(
        ids,
        source,
        split,
        shards,
        np.array(units, dtype=np.int64),
        np.array(failed, dtype=np.bool_),
        {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()},
        {name: np.array([row.get(name, np.nan) for row in concepts]) for name in names},
    )


def _by_unit(known: Plain, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which images belong to a unit with a marked variant."""
    units = int(known.unit.max()) + 1 if len(known.unit) else 0
    found = np.zeros(units, np.bool_)
    found[known.unit[marked]] = True
    return found


@dataclass(frozen=True)
class Selected:
    """The reason of every image (or None), and the image that it is a near duplicate of."""

    reason: list[str | None]
    duplicate_of: list[str | None]
    similarity: list[float | None]


def select(
    known: Plain,
    rules: Selection,
    wanted: Mapping[tuple[str, str], int | None],
    pairs: pa.Table,
    review: Mapping[str, str],
) -> Selected:
    """Give every image its reason.

    Args:
        known: images in plan order; quotas are filled in this order, after what people keep.
        rules: thresholds.
        wanted: generations of each source and split; None: all.
        pairs: DUPLICATES rows; those below the thresholds are ignored.
        review: decision by image id.
    """
    units = int(known.unit.max()) + 1 if len(known.unit) else 0
    reason: list[str | None] = [None] * units
    decision = np.array([review.get(i, "") for i in known.image_id], dtype=object)
    asked = {"failed": known.failed, "review": decision == "drop"}
    asked |= flags(known, rules)  # type: ignore[arg-type]
    spared = _by_unit(known, decision == "keep")
    for why, marked in asked.items():
        for unit in np.flatnonzero(_by_unit(known, marked)).tolist():
            if why not in ("failed", "review") and spared[unit]:
                continue
            if reason[unit] is None:
                reason[unit] = why
    first = np.full(units, -1, np.int64)  # the first image of each unit
    first[known.unit[::-1]] = np.arange(len(known.unit))[::-1]
    twin, near = _duplicates(known, rules, pairs, reason, first, spared)
    kept: Counter[tuple[str, str]] = Counter()
    for unit in np.argsort(~spared, kind="stable").tolist():  # what a person keeps comes first
        at = first[unit]
        key = (known.source[at], known.split[at])
        if reason[unit] is not None:
            continue
        quota = wanted.get(key)
        if quota is not None and kept[key] >= quota:
            reason[unit] = "surplus"
        else:
            kept[key] += 1
    return Selected(
        [reason[unit] for unit in known.unit],
        [known.image_id[twin[unit]] if unit in twin else None for unit in known.unit.tolist()],
        [near.get(int(unit)) for unit in known.unit],
    )


def _duplicates(
    known: Plain,
    rules: Selection,
    pairs: pa.Table,
    reason: list[str | None],
    first: NDArray[np.int64],
    spared: NDArray[np.bool_],
) -> tuple[dict[int, int], dict[int, float]]:
    """Drop all but one unit of every group; return the kept image and the similarity of each.

    A `spared` unit, which a person keeps, stays beside a kept one of its own split.
    """
    row_of = {image: i for i, image in enumerate(known.image_id)}
    least = {"pixels": 0.0 if rules.exact_duplicates else np.inf}
    for rule in PAIRS:
        value = getattr(rules, rule.setting)
        least[rule.column] = np.inf if value is None else value
    edges: dict[tuple[int, int], float] = {}
    for row in pairs.to_pylist():
        one, other = row_of.get(row["image_id"]), row_of.get(row["other_id"])
        if one is None or other is None or row["similarity"] < least[row["kind"]]:
            continue
        a, b = sorted((int(known.unit[one]), int(known.unit[other])))
        if a != b and reason[a] is None and reason[b] is None:
            edges[a, b] = max(edges.get((a, b), -1.0), row["similarity"])
    if not edges:
        return {}, {}
    one, other = np.array(list(edges), dtype=np.int64).T
    group = components(len(first), [Pairs(one, other, np.array(list(edges.values())))])
    units = np.unique(np.concatenate([one, other]))
    at = first[units]
    stays = kept(
        group[units],
        [
            np.array([SPLIT_RANK[known.split[i]] for i in at]),
            -known.scores["clip_score"][at],
            np.array([known.image_id[i] for i in at]),
        ],
    )
    keeper = dict(zip(group[units[stays]].tolist(), units[stays].tolist(), strict=True))
    best: dict[int, float] = {}
    for pair, similarity in edges.items():
        for unit in pair:
            best[unit] = max(best.get(unit, -1.0), similarity)
    twin: dict[int, int] = {}
    near: dict[int, float] = {}
    for unit in units[~stays].tolist():
        keeps = keeper[int(group[unit])]
        if spared[unit] and known.split[first[unit]] == known.split[first[keeps]]:
            continue
        reason[unit] = "duplicate"
        twin[unit] = int(first[keeps])
        near[unit] = edges.get((min(keeps, unit), max(keeps, unit)), best[unit])
    return twin, near
