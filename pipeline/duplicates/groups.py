"""Near pairs in; groups of rows, and the one row of each group that stays, out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.bounds import Int64
from pipeline.duplicates.pairs import Pairs

SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}
"""First of the keys for `kept`: what is held out stays, and training gives way."""


def components(n: int, pairs: Iterable[Pairs]) -> Int64:
    """Connected components.

    Args:
        n: number of rows.
        pairs: as they come; they are not kept.

    Returns: int64, shape (n,), the least row (0 to n - 1) that is connected with each row.
    """
    parent = np.arange(n)
    for some in pairs:
        a, b = _roots(parent, some.first), _roots(parent, some.second)
        while True:
            apart = a != b
            if not apart.any():
                break
            a, b = a[apart], b[apart]
            # The least root wins, so that parents never grow and no ring can close.
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
            a, b = _roots(parent, a), _roots(parent, b)
        parent[some.first] = _roots(parent, some.first)
        parent[some.second] = _roots(parent, some.second)
    return _roots(parent, parent)


def _roots(parent: Int64, rows: Int64) -> Int64:
    while True:
        above = parent[rows]
        if np.array_equal(above, rows):
            return above
        rows = above


def equal_pairs(keys: Sequence[Hashable | None]) -> Iterator[Pairs]:
    """Every pair of rows with one key, for example the sha256 of pixels, once each; measure 1.

    A row whose key is None is alone. Rows are int64, 0 to n - 1 for n keys; measures are float64.
    """
    seen: dict[Hashable, int] = {}
    group = np.array([-1 if key is None else seen.setdefault(key, len(seen)) for key in keys], int)
    order = np.argsort(group, kind="stable")
    order = order[np.count_nonzero(group < 0) :]
    ends = np.searchsorted(group[order], group[order], side="right")
    first = np.arange(len(order))
    step = 0
    while len(first):
        step += 1
        first = first[first + step < ends[first]]
        yield Pairs(order[first], order[first + step], np.ones(len(first)))


def kept(groups: NDArray[Any], keys: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Which rows stay: of each group, the one with the least keys.

    Args:
        groups: n labels, shape (n,), of any dtype that can be sorted.
        keys: arrays of n, as sortable, the first one decides first; NaN is greater than any
            number. For images: `SPLIT_RANK` of the split, minus the CLIP score, the id. Where all
            are equal, the first row stays.

    Returns: bool, shape (n,), true once in each group.
    """
    ranks = [np.unique(key, return_inverse=True)[1] for key in reversed(keys)]
    order = np.lexsort([*ranks, groups])
    first = np.ones(len(groups), np.bool_)
    first[1:] = groups[order[1:]] != groups[order[:-1]]
    result = np.zeros(len(groups), np.bool_)
    result[order[first]] = True
    return result
