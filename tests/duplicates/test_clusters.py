"""The join cluster by cluster against exact brute force, and against the plain join."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.duplicates import clusters as module
from pipeline.duplicates.clusters import Arguments, clustered_pairs, divide, part_pairs, parts
from pipeline.duplicates.pairs import Pairs, gathered, near_pairs
from tests.duplicates.test_pairs import KINDS, as_set, brute, made
from tests.perf.pairs import clip_like


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(0, 40),
    d=st.integers(1, 30),
    dtype=st.sampled_from([np.float16, np.float32]),
    tau=st.floats(0, 1, exclude_min=True) | st.sampled_from([0.9, 0.99, 1.0]),
    count=st.integers(1, 12),
    scopes=st.none() | st.integers(1, 5),
    held=st.booleans(),
    old=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_clusters_find_what_brute_force_finds(
    kind: str,
    n: int,
    d: int,
    dtype: type,
    tau: float,
    count: int,
    scopes: int | None,
    held: bool,
    old: int,
    seed: int,
) -> None:
    x = made(kind, n, d, seed, dtype)
    random = np.random.default_rng(seed)
    labels = None if scopes is None else random.integers(-2, scopes, n)
    out = random.random(n) < 0.3 if held else None
    old = min(old, n)
    found = clustered_pairs(x, tau, divide(x, tau, count), scopes=labels, held=out, old=old)
    assert as_set(gathered(found)) == brute(x, tau, labels, out, old)


def test_clusters_find_the_same_and_compare_less() -> None:
    x = clip_like(6000, 64)
    tau = 0.97
    whole = gathered(near_pairs(x, tau))
    clusters = divide(x, tau, 300)
    assert clusters.share < 0.5
    compared = 0

    def counting(given: Iterator[Arguments]) -> Iterator[Pairs]:
        nonlocal compared
        for arguments in given:
            rows, old = len(arguments[0]), arguments[4]
            compared += (rows - old) * (rows + old) // 2
            yield part_pairs(*arguments)

    found = gathered(clustered_pairs(x, tau, clusters, join=counting))
    assert len(found) > 30
    np.testing.assert_array_equal(found.first, whole.first)
    np.testing.assert_array_equal(found.second, whole.second)
    assert (found.measure == whole.measure).all()
    assert compared / (6000**2 / 2) == pytest.approx(clusters.share, rel=0.01)


def test_pairs_across_clusters_are_found_once() -> None:
    """On a circle every border between clusters has pairs, in one halo or in both."""
    angle = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 900))
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    clusters = divide(x, 0.999, 12)
    found = gathered(clustered_pairs(x, 0.999, clusters))
    across = clusters.home[found.first] != clusters.home[found.second]
    assert across.sum() > 12 * 5
    assert as_set(found) == as_set(gathered(near_pairs(x, 0.999)))
    whole = [len(part_pairs(x[p.rows], 0.999, 0 * p.rows, p.rows < 0, p.old, "cpu"))
             for p in parts(clusters)]  # fmt: skip
    assert sum(whole) > len(found), "no pair lies in two halos, so this shows nothing"


def test_centres_decide_only_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    x = made("clusters", 80, 8, 3, np.float16)
    expected = brute(x, 0.97)
    assert expected
    centres = torch.from_numpy(made("gauss", 9, 8, 5, np.float32))
    centres[4] = centres[2]  # equal ones have no plane between them
    monkeypatch.setattr(module, "_centres", lambda *_: centres)
    assert as_set(gathered(clustered_pairs(x, 0.97, divide(x, 0.97, 9)))) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.where(np.arange(9)[:, None] == 7, 0, x), "row 7 has norm 0, not 1"),
        (lambda x: np.where(np.arange(9)[:, None] == 3, np.nan, x), "row 3 has norm nan"),
        (lambda x: x.astype(np.float64), "expected n x d of float16 or float32"),
    ],
)
def test_vectors_are_refused(change: Any, words: str) -> None:
    x = change(made("gauss", 9, 4, 0, np.float32))
    with pytest.raises(AigiError, match=words):
        divide(x, 0.9, 2)
