"""Shards of the plan in; which images are variants of one generation, and ids of some rows, out.

Of each image, 4 bytes stay; its id and that of its pair are read again where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.columns import Growing, fingerprints, is_in, repeated
from pipeline.store import Store

Int32 = NDArray[np.int32]


def _generations(plan: pa.Table) -> pa.DictionaryArray:
    """What each row shares with its variants: the dictionary has each once, as they come first."""
    pair = plan["pair_id"]
    if pair.null_count < len(pair):
        pair = pc.if_else(pc.equal(pc.binary_length(pair), 0), None, pair)
        key = pc.coalesce(pair, plan["image_id"])
    else:
        key = plan["image_id"]
    found = key.combine_chunks().dictionary_encode()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def numbered(plan: pa.Table) -> tuple[Int32, NDArray[np.uint64]]:
    """Which generation each row of a shard is of, from 0 as they come first; and 64 bits of each.

    Args:
        plan: with `image_id` and `pair_id`.
    """
    key = _generations(plan)
    return key.indices.to_numpy(), fingerprints(key.dictionary)


class Units:
    """Numbers of generations, as they come first, though those of one may be in two shards."""

    def __init__(self) -> None:
        self.unit, self.count = Growing(np.int32), 0
        self.prints = Growing(np.uint64)

    def add(self, numbers: Int32, prints: NDArray[np.uint64]) -> None:
        """Add the rows of a shard, as `numbered` gives them."""
        self.unit.add(numbers + np.int32(self.count))
        self.prints.add(prints)
        self.count += len(prints)

    def whole(self, store: Store, shards: Iterable[str]) -> Int32:
        """The number of each row: here what has numbers from two shards gets the first one."""
        unit = self.unit.values()
        again = repeated(self.prints.values())
        del self.prints
        if not len(again):
            return unit
        first = np.arange(self.count, dtype=np.int32)
        number: dict[str, int] = {}
        start = 0
        for shard in shards:
            keys = _generations(store.read("plan", shard, ["image_id", "pair_id"])).dictionary
            for at in np.flatnonzero(is_in(fingerprints(keys), again)).tolist():
                first[start + at] = number.setdefault(keys[at].as_py(), start + at)
            start += len(keys)
        new = np.cumsum(first == np.arange(self.count, dtype=np.int32), dtype=np.int32) - 1
        found: Int32 = new.astype(np.int32)[first][unit]
        return found


def ids_of(store: Store, shards: Mapping[str, int]) -> Callable[[NDArray[Any]], pa.Array]:
    """What reads the ids of some rows of the plan, which are not held.

    Args:
        shards: the number of the first row of each.
    """
    names, starts = list(shards), np.array([*shards.values()], np.int64)

    def ids(rows: NDArray[Any]) -> pa.Array:
        order = np.argsort(rows, kind="stable")
        ascending = np.asarray(rows, np.int64)[order]
        of = np.searchsorted(starts, ascending, side="right") - 1
        parts = []
        for shard in np.unique(of).tolist():
            here = ascending[of == shard] - starts[shard]
            column = store.read("plan", names[shard], ["image_id"])["image_id"]
            parts.append(column.take(pa.array(here)).combine_chunks())
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(parts or [pa.array([], pa.string())]).take(pa.array(back))

    return ids
