"""Scores of a run in, one row an image for the rules out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.columns import Growing, fingerprints, is_in
from pipeline.plan.units import Units, ids_of, numbered
from pipeline.selection.rules import columns_of
from pipeline.stage import Compute
from pipeline.store import Store

Int32 = NDArray[np.int32]
_MOST_ROWS = (1 << 31) - 1
_A_TASK = 32  # shards that a task of Ray reads


@dataclass(frozen=True)
class Asked:
    """The rows of some images that were asked for by id.

    Attributes:
        ids: those that were asked for, each once: n of them.
        row: int32, shape (m,), rows of the plan in their order, one for each that has such an id.
        which: int32, shape (m,), which of `ids` it has.
    """

    ids: pa.Array
    row: Int32
    which: Int32

    def row_of(self, ids: pa.ChunkedArray) -> Int32:
        """The row of each id that was asked for, shape (k,): the last one; -1 where none has it."""
        last = np.full(len(self.ids) + 1, -1, np.int32)
        last[self.which] = self.row
        at = pc.index_in(ids, self.ids).fill_null(len(self.ids))
        found: Int32 = last[at.to_numpy()]
        return found

    def strangers(self) -> list[str]:
        """Ids that no row has, sorted."""
        there = np.zeros(len(self.ids), np.bool_)
        there[self.which] = True
        return sorted(self.ids.filter(pa.array(~there)).to_pylist())


@dataclass(frozen=True)
class Candidates:
    """All planned images in plan order: arrays of shape (n,), one value for each image.

    `place` (int32) says which of `places`, pairs of source and split, an image is in; these are
    numbered as they come first. `unit` (int32, from 0) numbers the generations in the same way:
    variants of one generation share it. `failed` is bool. `scores` contains the columns that rules
    compare, `concepts` a probability of 0 to 1 for each concept, in the float type of their
    table with NaN for what is not known.

    Ids are not held: they would take as much memory as all else. `shards` has the first row of
    each shard of the plan, `ids` reads those of some rows (int, ascending or not), and `asked` has
    the rows of ids that were asked for.
    """

    places: list[tuple[str, str]]
    place: Int32
    shards: Mapping[str, int]
    unit: Int32
    failed: NDArray[np.bool_]
    scores: Mapping[str, NDArray[Any]]
    concepts: Mapping[str, NDArray[Any]]
    ids: Callable[[NDArray[Any]], pa.Array]
    asked: Asked

    @property
    def units(self) -> int:
        """How many generations there are."""
        return int(self.unit.max()) + 1 if len(self.unit) else 0

    def parts(self) -> Iterator[tuple[str, slice]]:
        """Every shard that has rows, and which."""
        bounds = pairwise([*self.shards.values(), len(self.unit)])
        for name, (start, end) in zip(self.shards, bounds, strict=True):
            if start < end:
                yield name, slice(start, end)


_MORE = {"embeddings": [], "quality": ["concepts"]}
"""Tables of scores, and what is read of them beside the columns that rules are about."""


class _Scores:
    """Columns that may begin late: what is not there is NaN."""

    def __init__(self) -> None:
        self.columns: dict[str, Growing] = {}

    def add(self, name: str, start: int, values: NDArray[Any]) -> None:
        if name not in self.columns:
            self.columns[name] = Growing(values.dtype, start, np.nan)
        column = self.columns[name]
        column.add(np.full(start - len(column), np.nan, values.dtype))
        column.add(values)

    def whole(self, name: str, rows: int) -> NDArray[Any]:
        if name not in self.columns:
            return np.broadcast_to(np.float32(np.nan), rows)
        column = self.columns[name]
        column.add(np.full(rows - len(column), np.nan, np.float32))
        return column.values()


def _floats(column: pa.ChunkedArray) -> NDArray[Any]:
    """Numbers or truth values as floats, NaN for null."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not pa.types.is_float32(column.type):
        column = column.cast(pa.float32() if pa.types.is_int8(column.type) else pa.float64())
    return np.asarray(column.to_numpy())


def _by_concept(column: pa.ChunkedArray) -> Iterator[tuple[str, NDArray[Any]]]:
    """The probabilities of each concept, shape (n,), of a column of maps."""
    rows, found, start = len(column), dict[str, NDArray[Any]](), 0
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        inside = slice(int(offsets[0]), int(offsets[-1]))
        row = start + np.repeat(np.arange(len(chunk)), np.diff(offsets))
        there = chunk.is_valid().to_numpy(zero_copy_only=False)[row - start]
        keys = chunk.keys[inside].dictionary_encode()
        values = chunk.items[inside].to_numpy(zero_copy_only=False)
        codes = keys.indices.to_numpy()
        for code, name in enumerate(keys.dictionary.to_pylist()):
            mine = there & (codes == code)
            if mine.any():
                into = found.setdefault(name, np.full(rows, np.nan, values.dtype))
                into[row[mine]] = values[mine]
        start += len(chunk)
    yield from found.items()


def _places(plan: pa.Table) -> tuple[list[tuple[str, str]], Int32]:
    """Pairs of source and split as they come first, and the number of each row's."""
    pair = plan.select(["source", "split"]).combine_chunks()
    source = pair["source"].combine_chunks().dictionary_encode()
    split = pair["split"].combine_chunks().dictionary_encode()
    both = source.indices.to_numpy() * len(split.dictionary) + split.indices.to_numpy()
    codes, first, back = np.unique(both, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(codes), np.int32)
    number[order] = np.arange(len(codes), dtype=np.int32)
    at = pair.take(pa.array(first[order]))
    pairs = list(zip(at["source"].to_pylist(), at["split"].to_pylist(), strict=True))
    return pairs, number[back]


_PLAN = ["source", "split", "pair_id"]


@dataclass(frozen=True)
class _Shard:
    """What is read of one shard of the plan, n rows.

    Attributes:
        places, place: as of `_places`.
        numbers, prints: as of `numbered`.
        scores, concepts: by column.
        hits, names: numbers of the rows whose ids may be asked for, and these ids.
    """

    places: list[tuple[str, str]]
    place: Int32
    numbers: Int32
    prints: NDArray[np.uint64]
    failed: NDArray[np.bool_]
    scores: dict[str, NDArray[Any]]
    concepts: dict[str, NDArray[Any]]
    hits: NDArray[np.int64]
    names: list[str]


def _read(
    store: Store, prints: NDArray[np.uint64], shards: Sequence[tuple[str, Sequence[str]]]
) -> list[_Shard]:
    """Read shards, each with those tables of scores that have it.

    Args:
        prints: of the ids that are asked for, ascending.
    """
    found = []
    for shard, tables in shards:
        scored = {table: [*columns_of(table), *_MORE[table]] for table in tables}
        read = store.aligned(shard, {"plan": _PLAN, "images": ["error"], **scored})
        plan, ids = read["plan"], read["plan"]["image_id"]
        hits = np.empty(0, np.int64)
        if len(prints):
            hits = np.flatnonzero(is_in(fingerprints(ids), prints))
        columns = ((table, column) for table in tables for column in columns_of(table))
        concepts = _by_concept(read["quality"]["concepts"]) if "quality" in read else ()
        found.append(
            _Shard(
                *_places(plan),
                *numbered(plan),
                read["images"]["error"].is_valid().to_numpy(),
                {column: _floats(read[table][column]) for table, column in columns},
                dict(concepts),
                hits,
                ids.take(pa.array(hits)).to_pylist(),
            )
        )
    return found


def _all_read(
    store: Store, prints: NDArray[np.uint64], compute: Compute | None
) -> Iterator[tuple[str, _Shard]]:
    """Every shard of the plan, in order: read here, or some at a time in tasks of Ray."""
    have = {name: store.shards(name) for name in _MORE}
    shards = [(name, [t for t in _MORE if name in have[t]]) for name in store.shards("plan")]
    if compute is None or compute.ray is None:
        for shard in shards:
            yield shard[0], _read(store, prints, [shard])[0]
        return
    from pipeline.cluster import with_ray

    groups = [shards[start : start + _A_TASK] for start in range(0, len(shards), _A_TASK)]
    # What all have in common is sent once.
    read = with_ray(partial(_read, store, prints), ((group,) for group in groups), compute, store)
    for group, found in zip(groups, read, strict=True):
        yield from zip((name for name, _ in group), found, strict=True)


def candidates(
    store: Store, asked: pa.Array | None = None, compute: Compute | None = None
) -> Candidates:
    """Read plan, errors and scores of a run: n images; missing tables give NaN.

    Some 50 bytes stay of an image whose scores are all there.

    Args:
        asked: ids of images whose rows are asked for, each once.
        compute: where shards are read; None: here.

    Raises:
        AigiError: a shard has other rows than the plan; or there are more than int32 numbers.
    """
    asked = pa.array([], pa.string()) if asked is None else asked
    number = {name: place for place, name in enumerate(asked.to_pylist())}
    row, which = Growing(np.int32), Growing(np.int32)
    places: dict[tuple[str, str], int] = {}
    place, failed, units = Growing(np.int32), Growing(np.bool_), Units()
    scores, concepts = _Scores(), _Scores()
    shards: dict[str, int] = {}
    start = 0
    for shard, found in _all_read(store, np.sort(fingerprints(asked)), compute):
        shards[shard] = start
        if start + len(found.place) > _MOST_ROWS:
            raise AigiError(f"{store.url}: more than {_MOST_ROWS:,} images; make several runs")
        mine = np.array([number.get(name, -1) for name in found.names], np.int32)
        row.add((start + found.hits[mine >= 0]).astype(np.int32))
        which.add(mine[mine >= 0])
        own = [places.setdefault(pair, len(places)) for pair in found.places]
        place.add(np.array(own, np.int32)[found.place])
        failed.add(found.failed)
        units.add(found.numbers, found.prints)
        for columns, read in ((scores, found.scores), (concepts, found.concepts)):
            for name, values in read.items():
                columns.add(name, start, values)
        start += len(found.place)
    return Candidates(
        list(places),
        place.values(),
        shards,
        units.whole(store, shards),
        failed.values(),
        {name: scores.whole(name, start) for table in _MORE for name in columns_of(table)},
        {name: concepts.whole(name, start) for name in sorted(concepts.columns)},
        ids_of(store, shards),
        Asked(asked, row.values(), which.values()),
    )
