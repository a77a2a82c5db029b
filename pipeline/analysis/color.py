"""An image in, moments of its colours, colourfulness and saturation out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import RGB

CHANNELS = ("red", "green", "blue")
_LEVEL = np.arange(256, dtype=np.float64)


def color_moments(rgb: RGB) -> NDArray[np.float64]:
    """Mean, standard deviation and signed cube root of the third central moment (Stricker 1995).

    Args:
        rgb: uint8, H x W x 3.

    Returns:
        float64, 3 x 3: channel, moment; all in levels of 0 to 255. The paper calls them R1, R2, R3,
        G1 … B3.
    """
    found = np.empty((3, 3))
    for channel in range(3):
        # 256 counts hold all that the moments need, and whole numbers lose nothing.
        share = np.bincount(rgb[..., channel].ravel(), minlength=256) / (rgb.size // 3)
        mean = share @ _LEVEL
        centred = _LEVEL - mean
        found[channel] = mean, np.sqrt(share @ centred**2), np.cbrt(share @ centred**3)
    return found


def colorfulness(rgb: RGB) -> float:
    """Colourfulness M3 of Hasler and Süsstrunk (2003): 0 for grey, about 100 for garish.

    Args:
        rgb: uint8, H x W x 3.
    """
    red, green, blue = (rgb[..., channel].astype(np.float32) for channel in range(3))
    one, other = red - green, 0.5 * (red + green) - blue
    # Sums of a million float32 numbers want float64.
    spread = np.hypot(one.std(dtype=np.float64), other.std(dtype=np.float64))
    middle = np.hypot(one.mean(dtype=np.float64), other.mean(dtype=np.float64))
    return float(spread + 0.3 * middle)


def saturation(rgb: RGB) -> float:
    """Mean saturation of the HSV model: (greatest - least) / greatest channel, 0 to 1.

    Args:
        rgb: uint8, H x W x 3.
    """
    most, least = rgb.max(axis=2).astype(np.float32), rgb.min(axis=2)
    shares = np.divide(most - least, most, out=np.zeros_like(most), where=most > 0)
    return float(shares.mean(dtype=np.float64))
