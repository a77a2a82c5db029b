"""Prompts and their vectors in; how far a choice of them spreads, beside a random one, out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.prompts.diversity import features
from pipeline.prompts.vectors import LENGTH, Vectors, rounded

MOST_TOPICS = 4_096
_FITTED = 65_536  # prompts from which topics are found
_ROUNDS = 10
_BLOCK = 2_048
_ASKED = 10_000  # prompts whose nearest one is looked for


class Spread(NamedTuple):
    """How far some prompts spread; of all but `nearest`, more is better.

    Attributes:
        words: distinct words and pairs of words.
        topics: clusters of the pool with a prompt among them, of `clusters`.
        nearest: mean cosine of a prompt and the one nearest to it, -1 to 1; NaN: it is alone.
        vendi: effective number of different prompts, at least 1 (Friedman & Dieng 2023, The Vendi
            Score), by the cosines of their vectors.
    """

    words: int
    topics: int
    clusters: int
    nearest: float
    vendi: float


SPREADS = pa.schema(
    [
        ("choice", pa.string()),
        ("words", pa.int64()),
        ("topics", pa.int64()),
        ("clusters", pa.int64()),
        ("nearest", pa.float64()),
        ("vendi", pa.float64()),
    ]
)
"""How far choices of prompts spread: a row each."""


def topics_of(vectors: Vectors, clusters: int) -> NDArray[np.int64]:
    """The cluster of each prompt, by k-means of directions (Dhillon & Modha 2001).

    Args:
        vectors: of all prompts, in random order.
    """
    some = vectors[-_FITTED:]
    centres = some[-clusters:]  # not the first ones: these are a random choice
    for _ in range(_ROUNDS):
        mine = _assigned(some, centres)
        order = np.argsort(mine, kind="stable")
        there, starts = np.unique(mine[order], return_index=True)
        sums = np.add.reduceat(some[order].astype(np.float64), starts, axis=0)
        moved = centres.copy()
        moved[there] = rounded(sums)
        if (moved == centres).all():
            break
        centres = moved
    return _assigned(vectors, centres)


def _assigned(vectors: Vectors, centres: Vectors) -> NDArray[np.int64]:
    parts = [
        (vectors[start : start + _BLOCK] @ centres.T).argmax(axis=1)
        for start in range(0, len(vectors), _BLOCK)
    ]
    return np.concatenate(parts)


def _nearest(vectors: Vectors) -> float:
    if len(vectors) < 2:
        return math.nan
    found = []
    asked = min(_ASKED, len(vectors))
    for start in range(0, asked, _BLOCK):
        similar = vectors[start : min(start + _BLOCK, asked)] @ vectors.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        found.append(similar.max(axis=1))
    return float(np.concatenate(found).mean(dtype=np.float64) / LENGTH**2)


def _vendi(vectors: Vectors) -> float:
    # K/n and V'V/n have the same eigenvalues, but for zeros.
    products = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    values = np.linalg.eigvalsh(products / max(np.trace(products), 1e-12))
    values = values[values > 1e-12]
    # The last digits depend on the library and its threads.
    return round(float(np.exp(-(values * np.log(values)).sum())), 6)


def spreads(
    texts: Sequence[str], vectors: Vectors, choices: Mapping[str, Sequence[int]]
) -> dict[str, Spread]:
    """How far each of some choices spreads, all of the same size.

    Args:
        texts, vectors: the pool, in random order.
        choices: indices of prompts, by name.
    """
    size = max(map(len, choices.values()))
    clusters = max(2, min(size // 2, MOST_TOPICS))
    topics = topics_of(vectors, clusters)
    found: dict[str, Any] = {}
    for name, chosen in choices.items():
        some = np.asarray(chosen)
        found[name] = Spread(
            len({feature for one in chosen for feature in features(texts[one])}),
            len(np.unique(topics[some])),
            clusters,
            _nearest(vectors[some]),
            _vendi(vectors[some]),
        )
    return found
