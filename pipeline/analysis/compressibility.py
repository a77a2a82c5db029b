"""An image in, what makes it easy or hard to compress out: gradients, spectrum, noise, bits."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import AigiError
from pipeline.pixels import RGB, png_bytes

_LOWEST, _HIGHEST, _BANDS = 1 / 64, 1 / 2, 24  # cycles a pixel; bands of equal ratio


def gradient_energy(grey: NDArray[np.uint8]) -> float:
    """Mean squared difference to the right neighbour plus that to the lower one, in levels².

    Args:
        grey: uint8, H x W, 0 to 255.
    """
    levels = grey.astype(np.int32)
    found = 0.0
    for axis in range(2):
        step = np.diff(levels, axis=axis)
        found += float(np.square(step).mean()) if step.size else 0.0
    return found


def spectral_slope(grey: NDArray[np.uint8]) -> float:
    """Slope of the power spectrum over frequency, both logarithmic; about -2 for photos.

    The mean is taken out and the borders are faded by Hann windows; power is averaged in rings
    from 1/64 to 1/2 cycles a pixel, of equal ratio of their radii, and a line is fitted to them
    by least squares (after Field 1987, and van der Schaaf and van Hateren 1996).

    Args:
        grey: uint8, H x W, 0 to 255.

    Returns:
        NaN if fewer than three rings contain a frequency with power, as in a flat image.
    """
    height, width = grey.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    total = float(window.sum())
    if total == 0:
        return math.nan
    levels = grey.astype(np.float64)
    # Less the mean under the window: else its own spectrum would show.
    levels = (levels - float((levels * window).sum()) / total) * window
    power = np.abs(np.fft.rfft2(levels)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1)
    ring = np.searchsorted(edges, frequency.ravel(), side="right") - 1
    inside = (ring >= 0) & (ring < _BANDS)
    sums = np.bincount(ring[inside], weights=power.ravel()[inside], minlength=_BANDS)
    counts = np.bincount(ring[inside], minlength=_BANDS)
    # Rounding of the transform leaves some power where there is none.
    there = (counts > 0) & (sums > 1e-9 * max(power.max(), 1e-9))
    if there.sum() < 3:
        return math.nan
    radius = np.log(np.sqrt(edges[:-1] * edges[1:]))[there]
    return float(np.polyfit(radius, np.log(sums[there] / counts[there]), 1)[0])


def noise_level(grey: NDArray[np.uint8]) -> float:
    """Standard deviation of noise in levels, by Immerkær's Laplacian difference (1996).

    Fine texture counts as noise, so compare only images of the same scene.

    Args:
        grey: uint8, H x W, 0 to 255.

    Returns:
        NaN for images below 3x3 pixels.
    """
    height, width = grey.shape
    if min(height, width) < 3:
        return math.nan
    levels = grey.astype(np.int32)
    down = levels[:-2] - 2 * levels[1:-1] + levels[2:]
    across = down[:, :-2] - 2 * down[:, 1:-1] + down[:, 2:]
    total = float(np.abs(across).sum(dtype=np.int64))
    return float(math.sqrt(math.pi / 2) * total / (6 * (width - 2) * (height - 2)))


def check_lossless(kinds: Sequence[str]) -> None:
    """Refuse a file format that this installation cannot write.

    Raises:
        AigiError: JPEG XL without its plugin.
    """
    if "jxl" in kinds:
        try:
            import pillow_jxl  # noqa: F401  (it registers the format with Pillow)
        except ImportError as error:
            raise AigiError(
                "characteristics.lossless: jxl needs another package. Run pip install "
                f"pillow-jxl-plugin, or leave jxl out ({error})."
            ) from None


def lossless_bpp(rgb: RGB, kind: str) -> float:
    """Bits a pixel of the whole file, coded without loss.

    Args:
        rgb: uint8, H x W x 3.
        kind: `png`, as `png_bytes` makes it, or `jxl` at effort 7.
    """
    if kind == "png":
        size = len(png_bytes(rgb))
    else:
        import pillow_jxl  # noqa: F401

        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JXL", lossless=True, effort=7, num_threads=1)
        size = len(file.getvalue())
    return float(8 * size / (rgb.shape[0] * rgb.shape[1]))
