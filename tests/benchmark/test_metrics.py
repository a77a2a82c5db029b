"""Distances agree with their definitions, and with figures of another implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline import AigiError
from pipeline.benchmark.metrics import ms_ssim, ms_ssim_db, ms_ssim_scales, psnr
from pipeline.pixels import CAP_DB, RGB, decibels
from pipeline.training.distortion import scales_of


def pair(seed: int, height: int, width: int) -> tuple[RGB, RGB]:
    """Coloured squares, and the same with noise; equal everywhere."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3))
    squares = np.kron(coarse, np.ones((16, 16, 1), np.int64))[:height, :width]
    noisy = np.clip(squares + random.integers(-25, 26, squares.shape), 0, 255)
    return squares.astype(np.uint8), noisy.astype(np.uint8)


def test_psnr_is_its_definition() -> None:
    one = np.zeros((4, 5, 3), np.uint8)
    other = one.copy()
    other[0, 0, 0] = 255  # one of 60 samples: an error of 255^2 / 60
    assert psnr(one, other) == pytest.approx(10 * math.log10(60))
    assert psnr(other, one) == psnr(one, other)
    assert psnr(one, one) == CAP_DB == 100
    # A single step in a large picture is above the cap.
    one = np.zeros((1500, 1500, 3), np.uint8)
    other = one.copy()
    other[7, 7, 1] = 1
    assert psnr(one, other) == CAP_DB


def test_decibels_are_of_any_peak() -> None:
    assert decibels(1, 1e-3) == pytest.approx(30)
    assert decibels(255**2, 255**2) == 0
    assert decibels(1, 1e-11) == decibels(255**2, 0) == CAP_DB
    assert math.isnan(decibels(1, math.nan))  # what went wrong does not look perfect


def test_differences_do_not_wrap_around() -> None:
    dark, light = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(dark, light) == psnr(light, dark) == 0


# By pytorch-msssim 1.0.0 on the same pictures.
@pytest.mark.parametrize(
    ("seed", "height", "width", "expected"),
    [(0, 176, 200, 0.963710), (1, 161, 333, 0.960301), (2, 256, 163, 0.960541)],
)
def test_ms_ssim_agrees_with_another_implementation(
    seed: int, height: int, width: int, expected: float
) -> None:
    one, other = pair(seed, height, width)
    assert ms_ssim(one, other) == pytest.approx(expected, abs=2e-6)
    assert ms_ssim_scales(one, other) == 5


def test_small_pictures_have_fewer_scales() -> None:
    assert [scales_of(side, 500) for side in (10, 11, 20, 21, 41, 81, 160, 161, 4000)] == [
        *(0, 1, 1, 2, 3, 4, 4, 5, 5)
    ]
    for metric in (ms_ssim, ms_ssim_scales):
        assert metric(*pair(0, 10, 300)) is None
    for side in (11, 37, 60, 100, 160):
        one, other = pair(3, side, 190)
        found = ms_ssim(one, other)
        assert found is not None and 0 < found < 1
        assert ms_ssim_scales(one, other) == scales_of(side, 190) < 5
    # Exponents are divided by their sum: a cut of a large picture stays near to it.
    whole, cut = ms_ssim(*pair(0, 176, 200)), ms_ssim(*(p[:150, :150] for p in pair(0, 176, 200)))
    assert whole is not None and cut is not None and abs(whole - cut) < 0.02


def test_ms_ssim_of_equal_and_of_opposite_pictures() -> None:
    one, _ = pair(4, 180, 180)
    equal, opposite = ms_ssim(one, one), ms_ssim(one, 255 - one)
    assert equal == 1 and ms_ssim_db(1) == CAP_DB
    assert opposite is not None and 0 <= opposite < 0.1
    assert ms_ssim_db(0.99) == pytest.approx(20) and math.isnan(ms_ssim_db(math.nan))


def test_more_noise_is_further_away() -> None:
    one, _ = pair(5, 170, 170)
    random = np.random.default_rng(1)
    noise = random.normal(0, 1, one.shape)
    near, far = (np.clip(one + s * noise, 0, 255).astype(np.uint8) for s in (4, 16))
    first, second = ms_ssim(one, near), ms_ssim(one, far)
    assert first is not None and second is not None and first > second
    assert psnr(one, near) > psnr(one, far)


def test_pictures_of_other_sizes_or_types_are_refused() -> None:
    one = np.zeros((20, 20, 3), np.uint8)
    others: list[Any] = [np.zeros((20, 21, 3), np.uint8), np.zeros((20, 20, 3))]
    for other in others:
        for metric in (psnr, ms_ssim):
            with pytest.raises(AigiError, match="differ"):
                metric(one, other)
