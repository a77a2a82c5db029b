"""Bookkeeping of duplicates by plain Python, a row at a time: what that on columns must give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.duplicates.duplicates import HASH_BITS, _counts, _moved
from pipeline.duplicates.groups import equal_pairs
from pipeline.duplicates.hashes import hash_pairs
from pipeline.duplicates.pairs import Pairs, gathered
from pipeline.store import Store


@dataclass(frozen=True)
class _Rows:
    """Images in the order in which they are joined: old shards first."""

    image_id: pa.Array
    unit: NDArray[np.int64]  # one number for all variants of a generation
    pixels: list[str | None]
    scope: NDArray[np.int64]
    held: NDArray[np.bool_]
    old: int


def _rows(store: Store, shards: list[str], old: int, scope: str) -> _Rows:
    """`old` is a number of shards here, and of rows in the answer."""
    image_id: list[str] = []
    unit: list[int] = []
    number: dict[str, int] = {}
    pixels: list[str | None] = []
    source: list[str] = []
    split: list[str] = []
    before = 0
    for place, shard in enumerate(shards):
        found = store.aligned(
            shard, {"plan": ["source", "split", "pair_id"], "images": ["pixels_sha256"]}
        )
        plan, images = found["plan"], found["images"]
        ids = plan["image_id"].to_pylist()
        image_id += ids
        for pair, own in zip(plan["pair_id"].to_pylist(), ids, strict=True):
            unit.append(number.setdefault(pair or own, len(number)))
        pixels += images["pixels_sha256"].to_pylist()
        source += plan["source"].to_pylist()
        split += plan["split"].to_pylist()
        if place < old:
            before += len(ids)
    names = {name: i for i, name in enumerate(dict.fromkeys(source))}
    return _Rows(
        pa.array(image_id, pa.string()),
        np.array(unit, np.int64),
        pixels,
        np.array([names[name] if scope == "source" else 0 for name in source], np.int64),
        np.array([name != "train" for name in split], np.bool_),
        before,
    )


def _hashes(store: Store, shards: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    parts: list[int | None] = []
    for shard in shards:
        table = store.read("quality", shard, ["perceptual_hash"])
        parts += table["perceptual_hash"].to_pylist()
    which = np.array([i for i, value in enumerate(parts) if value is not None], np.int64)
    return np.array([value for value in parts if value is not None], np.uint64), which


def found(store: Store, shards: list[str], old: int, scope: str) -> list[tuple[str, str, str]]:
    """Pairs of equal pixels and of near hashes, in order."""
    rows: Any = _rows(store, shards, old, scope)
    hashes, which = _hashes(store, shards)
    near = gathered(_moved(hash_pairs(hashes, 4), which))
    kinds = {
        "pixels": gathered(equal_pairs(rows.pixels)),
        "hash": Pairs(near.first, near.second, 1 - near.measure / HASH_BITS),
    }
    return [
        (rows.image_id[int(a)].as_py(), rows.image_id[int(b)].as_py(), kind)
        for kind, pairs in kinds.items()
        for a, b, counts in zip(pairs.first, pairs.second, _counts(pairs, rows), strict=True)
        if counts
    ]
