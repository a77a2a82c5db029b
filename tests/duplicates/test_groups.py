"""Groups are what can be reached; one row of each stays, by the stated order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.duplicates.groups import SPLIT_RANK, components, equal_pairs, kept
from pipeline.duplicates.pairs import Pairs, gathered


def pairs_of(edges: list[tuple[int, int]]) -> Pairs:
    first, second = np.array(edges or np.empty((0, 2)), np.int64).T
    return Pairs(np.minimum(first, second), np.maximum(first, second), np.ones(len(first)))


@given(
    n=st.integers(1, 30),
    edges=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60),
    cut=st.integers(0, 60),
)
def test_components_are_what_can_be_reached(n: int, edges: list[tuple[int, int]], cut: int) -> None:
    edges = [(a % n, b % n) for a, b in edges]
    groups = [{row} for row in range(n)]
    for a, b in edges:
        one, two = (next(g for g in groups if row in g) for row in (a, b))
        if one is not two:
            groups.remove(two)
            one |= two
    expected = [min(next(g for g in groups if row in g)) for row in range(n)]
    found = components(n, [pairs_of(edges[:cut]), pairs_of(edges[cut:])])
    assert found.tolist() == expected


def test_components_of_a_long_chain_and_of_nothing() -> None:
    order = np.random.default_rng(0).permutation(20_000)
    chain = pairs_of(list(zip(order[1:].tolist(), order[:-1].tolist(), strict=True)))
    assert not components(20_000, [chain]).any()
    assert components(0, []).shape == (0,)
    assert components(3, []).tolist() == [0, 1, 2]


@given(st.lists(st.none() | st.sampled_from("abcd"), max_size=20))
def test_equal_keys_are_pairs(keys: list[str | None]) -> None:
    found = gathered(equal_pairs(keys))
    expected = [
        (i, j)
        for i, key in enumerate(keys)
        for j in range(i + 1, len(keys))
        if key is not None and key == keys[j]
    ]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert (found.measure == 1).all()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(list(SPLIT_RANK)),
            st.sampled_from([0.1, 0.2, 0.3, math.nan]),
        ),
        max_size=25,
    ),
    st.randoms(),
)
def test_one_row_of_each_group_is_kept(rows: list[tuple[int, str, float]], random: Any) -> None:
    ids = [f"{k:02d}" for k in range(len(rows))]
    random.shuffle(ids)
    groups = np.array([group for group, _, _ in rows], np.int64)
    split = np.array([SPLIT_RANK[name] for _, name, _ in rows], np.int64)
    score = np.array([value for _, _, value in rows])
    found = kept(groups, [split, -score, np.array(ids, object)])
    for group in set(groups.tolist()):
        best = min(
            (row for row in range(len(rows)) if groups[row] == group),
            key=lambda row: (
                ("test", "validation", "train").index(rows[row][1]),
                math.inf if math.isnan(score[row]) else -score[row],
                ids[row],
            ),
        )
        assert [row for row in range(len(rows)) if groups[row] == group and found[row]] == [best]
    assert found.sum() == len(set(groups.tolist()))


def test_the_first_row_is_kept_where_keys_are_equal() -> None:
    assert kept(np.array([5, 5, 2, 2]), [np.zeros(4)]).tolist() == [True, False, True, False]
