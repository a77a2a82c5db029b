"""Vectors of prompts in; those that stand best for all of them (facility location) out.

A choice is worth the sum, over all prompts, of the similarity to the nearest chosen one
(Krause & Golovin 2014, Submodular Function Maximization, section 1). Each prompt looks at its
`NEAR` nearest ones alone (Wei, Iyer & Bilmes 2014, Fast Multi-Stage Submodular Maximization).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.prompts.vectors import Vectors

NEAR = 32
"""Prompts for which one may stand, or that may stand for it."""
_GROUP = 4_096
"""Prompts of one part of a large pool: the nearest are looked for in the parts beside it."""
_PARTS = 8
_BLOCK = 512


def _parts(vectors: Vectors) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Prompts, and those among which their nearest are looked for; every prompt comes once."""
    count = len(vectors)
    number = -(-count // _GROUP)
    if number <= _PARTS:
        yield np.arange(count), np.arange(count)
        return
    # Prompts come in random order, so the first ones are as good as any.
    pivots = vectors[:number]
    mine = np.concatenate(
        [
            (vectors[start : start + _GROUP] @ pivots.T).argmax(axis=1)
            for start in range(0, count, _GROUP)
        ]
    )
    members = [np.flatnonzero(mine == part) for part in range(number)]
    beside = np.argsort(-(pivots @ pivots.T), axis=1, kind="stable")[:, :_PARTS]
    for part in range(number):
        if len(members[part]):
            yield members[part], np.sort(np.concatenate([members[one] for one in beside[part]]))


def _nearest(
    similar: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the `most` largest of each row; of equal ones, the first."""
    if similar.shape[1] <= most:
        rows, columns = np.nonzero(similar > 0)
        return rows, columns
    limit = np.partition(similar, -most, axis=1)[:, -most, None]
    rows, columns = np.nonzero(similar > limit)
    tied_rows, tied = np.nonzero(similar == limit)
    left = most - np.bincount(rows, minlength=len(similar))
    place = np.arange(len(tied)) - np.searchsorted(tied_rows, tied_rows)
    some = place < left[tied_rows]
    rows, columns = np.append(rows, tied_rows[some]), np.append(columns, tied[some])
    positive = similar[rows, columns] > 0
    return rows[positive], columns[positive]


def stands_for(vectors: Vectors, near: int = NEAR) -> Any:
    """Similarities of prompts to those that may stand for them: scipy CSC, N x N, int64.

    A column has the prompts for which it may stand.
    """
    from scipy.sparse import coo_array

    rows, columns, values = [], [], []
    for mine, others in _parts(vectors):
        among = vectors[others].T
        for start in range(0, len(mine), _BLOCK):
            some = mine[start : start + _BLOCK]
            similar = vectors[some] @ among
            row, column = _nearest(similar, near)
            rows.append(some[row].astype(np.int32))
            columns.append(others[column].astype(np.int32))
            values.append(similar[row, column].astype(np.int32))
    shape = (len(vectors), len(vectors))
    every = (np.concatenate(rows), np.concatenate(columns))
    return coo_array((np.concatenate(values), every), shape=shape).tocsc()


def most_covering(vectors: Vectors, count: int, first: int = 0, near: int = NEAR) -> list[int]:
    """Indices of `count` prompts that stand best for all, in the order of choice.

    Greedy. The gain of a prompt only falls as others are chosen, so a stale upper bound in a heap
    is checked again only when it comes to the top (Minoux 1978).

    Args:
        vectors: of all prompts, in random order.
        first: prompts at the beginning that are chosen already.
        near: for how many each one may stand.
    """
    table = stands_for(vectors, near)
    ends, rows, values = table.indptr.tolist(), table.indices, table.data.astype(np.int64)
    best = np.zeros(len(vectors), np.int64)

    def gain(one: int) -> int:
        span = slice(ends[one], ends[one + 1])
        return int(np.maximum(values[span] - best[rows[span]], 0).sum())

    def choose(one: int) -> None:
        span = slice(ends[one], ends[one + 1])
        best[rows[span]] = np.maximum(best[rows[span]], values[span])

    chosen = list(range(min(first, count)))
    for one in chosen:
        choose(one)
    heap = [(-gain(one), one) for one in range(len(chosen), len(vectors))]
    heapq.heapify(heap)
    while heap and len(chosen) < count:
        one = heap[0][1]
        fresh = (-gain(one), one)
        if len(heap) > 1 and fresh > min(heap[1:3]):
            heapq.heapreplace(heap, fresh)
            continue
        heapq.heappop(heap)
        chosen.append(one)
        choose(one)
    return chosen
