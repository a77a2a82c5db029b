"""The prompts table in; the prompts that each source may use in a split, counted, then read, out.

Shards are read when their prompts are needed, and one after another: what is held is a count for
each shard, and the two that were read last.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.store import Store

_HELD = 2
COLUMNS = ("prompt_id", "text")


@dataclass(frozen=True)
class Stated:
    """Splits that import lists state of prompts, which win over those of the prompts table.

    Attributes:
        prompts: their ids, strings, each once.
        splits: of each, a string.
    """

    prompts: pa.Array
    splits: pa.Array

    @classmethod
    def of_mapping(cls, splits: Mapping[str, str]) -> Stated:
        """The same, given splits by the ids of prompts."""
        return cls(pa.array(splits.keys(), pa.string()), pa.array(splits.values(), pa.string()))

    def of(self, prompts: pa.ChunkedArray, splits: pa.ChunkedArray) -> pa.ChunkedArray:
        """The splits of some prompts, where those of the table are these."""
        if not len(self.prompts):
            return splits
        at = pc.index_in(prompts, value_set=self.prompts)
        return pc.coalesce(self.splits.take(at.combine_chunks()), splits)


@dataclass
class Usable:
    """Prompts that a source may use in a split, in the order of the table, numbered from 0.

    Attributes:
        captions: sources of captions that count; None: all.
        counts: of these prompts, by shard.
    """

    store: Store
    stated: Stated
    split: str
    captions: Collection[str] | None
    counts: Mapping[str, int]
    _ends: NDArray[np.int64] = field(init=False)
    _held: OrderedDict[int, pa.Table] = field(init=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._ends = np.cumsum(np.array(list(self.counts.values()), np.int64))

    def __getstate__(self) -> dict[str, Any]:
        """Without the prompts that it holds: another process reads those that it needs."""
        return {**self.__dict__, "_held": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _shard(self, number: int) -> pa.Table:
        if (found := self._held.get(number)) is None:
            shard = list(self.counts)[number]
            found = self.store.read("prompts", shard, [*COLUMNS, "source", "split"])
            mine = pc.equal(self.stated.of(found["prompt_id"], found["split"]), self.split)
            if self.captions is not None:
                mine = pc.and_(
                    mine, pc.is_in(found["source"], pa.array(self.captions, pa.string()))
                )
            found = found.select(COLUMNS).filter(mine).combine_chunks()
            self._held[number] = found
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return found

    def take(self, at: NDArray[np.int64]) -> pa.Table:
        """Ids and texts of some of them: `prompt_id` and `text`.

        Args:
            at: int64, shape (n,), numbers from 0; fastest where they ascend.
        """
        shard = np.searchsorted(self._ends, at, side="right")
        cuts = np.flatnonzero(np.diff(shard)) + 1
        found = []
        for part in np.split(at, cuts) if len(at) else []:
            number = int(np.searchsorted(self._ends, part[0], side="right"))
            start = int(self._ends[number - 1]) if number else 0
            found.append(self._shard(number).take(pa.array(part - start)))
        if not found:
            return pa.table({name: pa.array([], pa.string()) for name in COLUMNS})
        return pa.concat_tables(found).combine_chunks()


class Prompts:
    """The prompts table of a run, counted once by shard, split and source of captions.

    Args:
        stated: splits that import lists state.
    """

    def __init__(self, store: Store, stated: Stated) -> None:
        self.store, self.stated = store, stated
        self.counts = dict(self._counted())

    def _counted(self) -> Iterator[tuple[str, Counter[tuple[str, str]]]]:
        for shard in self.store.shards("prompts"):
            more = ["prompt_id"] if len(self.stated.prompts) else []
            rows = self.store.read("prompts", shard, [*more, "source", "split"])
            if more:
                split = self.stated.of(rows["prompt_id"], rows["split"])
                rows = rows.set_column(rows.schema.get_field_index("split"), "split", split)
            grouped = rows.group_by(["split", "source"], use_threads=False)
            found: Counter[tuple[str, str]] = Counter()
            for row in grouped.aggregate([([], "count_all")]).to_pylist():
                found[row["split"], row["source"]] = row["count_all"]
            yield shard, found

    def all(self) -> Counter[tuple[str, str]]:
        """How many there are, by split and source of captions."""
        found: Counter[tuple[str, str]] = Counter()
        for counts in self.counts.values():
            found += counts
        return found

    def usable(self, split: str, captions: Collection[str] | None) -> Usable:
        """Those of a split whose captions come from some sources; None: from any."""
        counts = {}
        for shard, found in self.counts.items():
            mine = (
                count
                for (own, source), count in found.items()
                if own == split and (captions is None or source in captions)
            )
            if total := sum(mine):
                counts[shard] = total
        return Usable(self.store, self.stated, split, captions, counts)
