"""Our texture beside scikit-image's, for any picture, distance and angle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.analysis.texture import PROPERTIES, cooccurrences, offset, properties, texture

THEIRS = {name: "ASM" if name == "asm" else name for name in PROPERTIES}
ANGLES = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]


@pytest.fixture(scope="module")
def oracle() -> Any:
    return pytest.importorskip("skimage.feature", reason="scikit-image is not installed")


Pictures = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 255)
) | st.integers(0, 255).map(lambda level: np.full((5, 4), level, np.uint8))


@settings(max_examples=40)
@given(
    Pictures,
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.sampled_from([*ANGLES, math.pi, 5 * math.pi / 4, 0.3]), min_size=1, max_size=3),
    st.booleans(),
)
def test_equal_to_scikit_image(
    oracle: Any, grey: Any, distances: list[int], angles: list[float], symmetric: bool
) -> None:
    counts = cooccurrences(grey, distances, angles)
    theirs = oracle.graycomatrix(grey, distances, angles, 256, symmetric=symmetric)
    ours = counts + counts.transpose(1, 0, 2, 3) if symmetric else counts
    assert np.array_equal(ours, theirs)
    shares = oracle.graycomatrix(grey, distances, angles, 256, symmetric=symmetric, normed=True)
    found = properties(counts, symmetric)
    for name, values in found.items():
        # Theirs is in nats, ours in bits, as everywhere else.
        unit = math.log(2) if name == "entropy" else 1.0
        wanted = oracle.graycoprops(shares, THEIRS[name])
        if name == "correlation":  # with a single level, theirs is 1 or rounding over rounding
            levels = [(theirs.sum(axis=axis) > 0).sum(axis=0) for axis in (0, 1)]
            wanted = np.where(np.minimum(*levels) <= 1, 1.0, wanted)
        assert np.allclose(values * unit, wanted, rtol=1e-9, atol=1e-9), name


def test_equal_on_a_large_picture(oracle: Any) -> None:
    noise = np.random.default_rng(0)
    grey = np.clip(noise.normal(120, 40, (300, 401)), 0, 255).astype(np.uint8)
    shares = oracle.graycomatrix(grey, [1, 3], ANGLES, 256, symmetric=True, normed=True)
    found = texture(grey, [1, 3], ANGLES)
    for name in PROPERTIES:
        unit = math.log(2) if name == "entropy" else 1.0
        assert found[name] * unit == pytest.approx(oracle.graycoprops(shares, THEIRS[name]).mean())


def test_known_textures() -> None:
    flat = texture(np.full((8, 8), 7, np.uint8), [1], ANGLES)
    assert flat == pytest.approx(
        {
            "contrast": 0, "dissimilarity": 0, "homogeneity": 1, "asm": 1, "energy": 1,
            "correlation": 1, "entropy": 0,
        },
        abs=1e-12,
    )  # fmt: skip
    board = np.indices((9, 9)).sum(axis=0) % 2 * np.uint8(255)
    found = texture(board, [1], [0.0, math.pi / 2])
    assert found["contrast"] == 255**2 and found["correlation"] == pytest.approx(-1)
    assert found["entropy"] == pytest.approx(1), "two pairs, equally often: one bit"
    assert texture(board, [1], [math.pi / 4])["contrast"] == 0


def test_directions() -> None:
    assert [offset(2, angle) for angle in ANGLES] == [(0, 2), (1, 1), (2, 0), (1, -1)]
