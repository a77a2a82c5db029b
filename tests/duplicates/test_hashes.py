"""Perceptual hashes: what they stay near to, and pairs of them against brute force."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.duplicates.hashes import hash_pairs
from pipeline.duplicates.pairs import gathered
from pipeline.scores.measures import perceptual_hash
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene
from tests.duplicates.test_pairs import as_set


@given(
    n=st.integers(0, 60),
    bits=st.integers(1, 64),
    distance=st.integers(0, 64),
    flips=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
@example(60, 64, 3, 4, 0)
@example(60, 2, 2, 0, 0)
@settings(max_examples=150, deadline=None)
def test_hash_pairs_are_brute_force(
    n: int, bits: int, distance: int, flips: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    hashes = (
        [int(value) for value in random.integers(0, 2**bits, n, np.uint64, endpoint=False)]
        if bits < 64
        else [int(value) for value in random.integers(0, 2**64, n, np.uint64)]
    )
    for k in range(n // 2, n):  # the second half: copies of the first with some bits flipped
        flipped = random.choice(64, random.integers(0, flips + 1), replace=False).tolist()
        hashes[k] = hashes[k - n // 2] ^ sum(1 << bit for bit in flipped)
    found = gathered(hash_pairs(np.array(hashes, np.uint64), distance))
    differ = {
        (i, j): (hashes[i] ^ hashes[j]).bit_count() for i in range(n) for j in range(i + 1, n)
    }
    assert as_set(found) == {pair for pair, count in differ.items() if count <= distance}
    for i, j, count in zip(found.first, found.second, found.measure, strict=True):
        assert count == differ[int(i), int(j)]


def test_hash_pairs_of_many_rows_compares_few() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 50_000, np.uint64)
    hashes[40_000:] = hashes[:10_000] ^ np.uint64(0b1001 << 20)
    found = gathered(hash_pairs(hashes, 3))
    assert found.first.tolist() == list(range(10_000))
    assert found.second.tolist() == list(range(40_000, 50_000))


def test_distances_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 64"):
        list(hash_pairs(np.zeros(2, np.uint64), 65))


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return [render(draw_scene(seed), 256, 256, seed) for seed in range(24)]


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def encoded(rgb: NDArray[np.uint8], form: str, quality: int) -> NDArray[np.uint8]:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, form, quality=quality)
    return np.array(Image.open(out).convert("RGB"))


def test_hash_stays_near_when_a_picture_is_encoded_or_resized(
    pictures: list[NDArray[np.uint8]],
) -> None:
    for rgb in pictures:
        image = Image.fromarray(rgb)
        changed = {
            "jpeg 90": encoded(rgb, "JPEG", 90),
            "jpeg 50": encoded(rgb, "JPEG", 50),
            "webp 60": encoded(rgb, "WEBP", 60),
            "half": np.array(image.resize((128, 128), Image.Resampling.LANCZOS)),
            "larger": np.array(image.resize((300, 290), Image.Resampling.BICUBIC)),
        }
        found = {name: distance(rgb, other) for name, other in changed.items()}
        assert max(found.values()) <= 6, found


def test_hash_of_different_pictures_is_far(pictures: list[NDArray[np.uint8]]) -> None:
    hashes = np.array([perceptual_hash(rgb) for rgb in pictures], np.uint64)
    found = gathered(hash_pairs(hashes, 64)).measure
    assert len(found) == 24 * 23 // 2
    assert found.min() > 6
    assert 20 < np.median(found) < 40


def test_hash_is_what_it_is_defined_to_be(pictures: list[NDArray[np.uint8]]) -> None:
    """By the sums of the definition, one coefficient at a time."""
    rgb = pictures[0]
    luma = 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]
    small = luma.reshape(32, 8, 32, 8).mean((1, 3))
    at = np.arange(32) + 0.5
    values = []
    for v, u in sorted(
        ((v, u) for v in range(32) for u in range(32)), key=lambda f: (f[0] + f[1], f)
    )[1:65]:
        wave = np.outer(np.cos(np.pi * v * at / 32), np.cos(np.pi * u * at / 32))
        norm = math.sqrt((1 if v == 0 else 2) * (1 if u == 0 else 2)) / 32
        values.append(round(16 * norm * float((wave * small).sum())))
    middle = np.median(values)
    assert perceptual_hash(rgb) == int("".join(str(int(value > middle)) for value in values), 2)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (32, 32), (33, 31), (700, 20)])
def test_hash_takes_any_size(size: tuple[int, int]) -> None:
    assert perceptual_hash(np.full((*size, 3), 77, np.uint8)) == 0
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert 0 <= perceptual_hash(noise) < 1 << 64


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4)])
def test_hash_refuses_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8 H x W x 3"):
        perceptual_hash(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="expected uint8 H x W x 3"):
        perceptual_hash(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
