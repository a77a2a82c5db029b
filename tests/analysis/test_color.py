"""Colours and compressibility: closed forms, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import AigiError
from pipeline.analysis.color import color_moments, colorfulness, saturation
from pipeline.analysis.compressibility import (
    check_lossless,
    gradient_energy,
    lossless_bpp,
    noise_level,
    spectral_slope,
)
from pipeline.pixels import RGB

Pictures = arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3)))


@given(Pictures)
def test_moments_are_those_of_the_pixels(rgb: RGB) -> None:
    values = rgb.reshape(-1, 3).astype(np.float64)
    centred = values - values.mean(axis=0)
    wanted = [values.mean(axis=0), values.std(axis=0), np.cbrt((centred**3).mean(axis=0))]
    # A cube root blows the rounding of a third moment of nothing up.
    assert np.allclose(color_moments(rgb), np.transpose(wanted), atol=1e-3)


@given(Pictures)
def test_mirrors_change_no_colour(rgb: RGB) -> None:
    turned = np.ascontiguousarray(rgb[::-1, ::-1].transpose(1, 0, 2))
    assert np.allclose(color_moments(rgb), color_moments(turned), atol=1e-3)
    assert colorfulness(rgb) == pytest.approx(colorfulness(turned), rel=1e-4, abs=1e-3)
    assert saturation(rgb) == pytest.approx(saturation(turned), abs=1e-6)


def test_closed_forms() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert colorfulness(grey) == 0 and saturation(grey) == 0
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert saturation(red) == 1
    # rg is 200 and yb 100 everywhere.
    assert colorfulness(red) == pytest.approx(0.3 * math.hypot(200, 100))
    skewed = np.zeros((2, 2, 3), np.uint8)
    skewed[0, 0] = 100
    mean, std, third = color_moments(skewed)[1]
    assert (mean, std) == (25, pytest.approx(100 * math.sqrt(3) / 4))
    assert third == pytest.approx(np.cbrt((75**3 - 3 * 25**3) / 4))


def test_gradients() -> None:
    ramp = np.tile(np.arange(0, 60, 3, dtype=np.uint8), (20, 1))
    assert gradient_energy(ramp) == 9
    assert gradient_energy(ramp.T) == 9
    assert gradient_energy(np.full((1, 1), 9, np.uint8)) == 0


@pytest.mark.parametrize("slope", [-1.0, -2.0, -3.0])
def test_slopes_are_found(slope: float) -> None:
    """Noise that was given a power spectrum of a known slope."""
    noise = np.random.default_rng(3)
    spectrum = np.fft.rfft2(noise.normal(size=(256, 320)))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(320)[None, :])
    frequency[0, 0] = 1
    made = np.fft.irfft2(spectrum * frequency ** (slope / 2), (256, 320))
    grey = np.clip(128 + made / made.std() * 32, 0, 255).round().astype(np.uint8)
    assert spectral_slope(grey) == pytest.approx(slope, abs=0.12)


def test_noise_is_measured() -> None:
    noise = np.random.default_rng(4)
    smooth = np.add.outer(np.linspace(60, 120, 200), np.linspace(0, 60, 240))
    for level in (2.0, 5.0, 10.0):
        grey = (smooth + noise.normal(0, level, smooth.shape)).round().astype(np.uint8)
        assert noise_level(grey) == pytest.approx(level, rel=0.06)


def test_what_has_no_meaning_is_not_a_number() -> None:
    flat = np.full((64, 64), 90, np.uint8)
    assert math.isnan(spectral_slope(flat))
    assert math.isnan(spectral_slope(flat[:1, :1])) and math.isnan(noise_level(flat[:2]))
    assert noise_level(flat) == 0


def test_bits_of_lossless_files() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    flat = np.full((64, 64, 3), 9, np.uint8)
    assert 24 < lossless_bpp(noise, "png") < 25 and lossless_bpp(flat, "png") < 0.5
    pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin is not installed")
    assert 23.9 < lossless_bpp(noise, "jxl") < 27 and lossless_bpp(flat, "jxl") < 0.2


def test_jpeg_xl_is_asked_for_early(monkeypatch: pytest.MonkeyPatch) -> None:
    check_lossless(("png",))
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    with pytest.raises(AigiError, match="pip install pillow-jxl-plugin"):
        check_lossless(("png", "jxl"))
