"""Scores of a run in, one row an image for the rules out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.selection.rules import columns_of
from pipeline.store import Store


@dataclass(frozen=True)
class Candidates:
    """All planned images in plan order: arrays of shape (n,), one value for each image.

    `unit` (int64, from 0) numbers the generations: variants of one generation share it. `failed` is
    bool. `scores` contains the columns that rules compare, `concepts` a probability of 0 to 1 for
    each concept, both as float64 with NaN for what is not known.
    """

    image_id: list[str]
    source: list[str]
    split: list[str]
    shard: list[str]
    unit: NDArray[np.int64]
    failed: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]
    concepts: Mapping[str, NDArray[np.float64]]


_MORE = {"embeddings": [], "quality": ["concepts"]}
"""Tables of scores, and what is read of them beside the columns that rules are about."""


def candidates(store: Store) -> Candidates:
    """Read plan, errors and scores of a run: n images; missing tables give NaN (float64).

    Raises:
        AigiError: a shard has other rows than the plan.
    """
    ids: list[str] = []
    source: list[str] = []
    split: list[str] = []
    shards: list[str] = []
    units: list[int] = []
    failed: list[bool] = []
    parts: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    concepts: list[dict[str, float]] = []
    number: dict[str, int] = {}
    have = {name: store.shards(name) for name in _MORE}
    scored = {table: [*columns_of(table), *more] for table, more in _MORE.items()}
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
    return Candidates(
        ids,
        source,
        split,
        shards,
        np.array(units, dtype=np.int64),
        np.array(failed, dtype=np.bool_),
        {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()},
        {name: np.array([row.get(name, np.nan) for row in concepts]) for name in names},
    )
