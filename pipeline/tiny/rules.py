"""An image in, what its pixels show of its scene out: colors, day or night, objects; no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.tiny.scene import Scene, is_night, main_color

LEAST_SHARE = 0.02  # half of what the main color fills in every drawn scene
CELLS, FILLED = 12, 0.5


def seen_colors(rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The share of the pixels that would be called by the name of each color.

    Args:
        rgb: uint8, H x W x 3.

    Returns:
        A share in 0 to 1 for every name of `COLORS`; the shares sum to 1. The regions are fixed
        ranges of hue (degrees), saturation and value.
    """
    r, g, b = (rgb[..., i].astype(np.float64) / 255 for i in range(3))
    value = np.maximum(np.maximum(r, g), b)
    spread = value - np.minimum(np.minimum(r, g), b)
    saturation = spread / np.maximum(value, 1e-9)
    safe = np.maximum(spread, 1e-9)
    hue = np.where(
        value == r,
        (g - b) / safe % 6,
        np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    hue = hue * 60
    black = (value < 0.2) | ((value < 0.28) & (saturation < 0.3))
    plain = ~black & (saturation < 0.16)
    colored = ~black & ~plain
    reddish = (hue < 16) | (hue >= 342)
    pale = (saturation < 0.52) & (value > 0.66)
    warm = (hue >= 16) & (hue < 41)
    masks = {
        "red": colored & reddish & ~pale,
        "orange": colored & warm & (value >= 0.58),
        "yellow": colored & (hue >= 41) & (hue < 70),
        "green": colored & (hue >= 70) & (hue < 168),
        "blue": colored & (hue >= 168) & (hue < 255),
        "purple": colored & (hue >= 255) & (hue < 306),
        "pink": colored & (((hue >= 306) & (hue < 342)) | (reddish & pale)),
        "white": plain & (value >= 0.68),
        "black": black,
        "brown": colored & warm & (value < 0.58),
        "grey": plain & (value < 0.68),
    }
    return {name: float(mask.mean()) for name, mask in masks.items()}


def looks_night(rgb: NDArray[np.uint8]) -> bool:
    """Whether an image (uint8, H x W x 3) shows a night: its upper part is mostly dark."""
    upper = rgb[: max(1, rgb.shape[0] * 2 // 5)].astype(np.float64)
    luma = upper @ np.array([0.299, 0.587, 0.114])
    return bool(np.median(luma) < 64)


def object_seen(rgb: NDArray[np.uint8], color: str) -> bool:
    """Whether a color fills half of a square in a 12 x 12 grid over rgb (uint8, H x W x 3)."""
    height, width = (size // CELLS for size in rgb.shape[:2])
    return any(
        seen_colors(rgb[y * height : (y + 1) * height, x * width : (x + 1) * width])[color]
        >= FILLED
        for y in range(CELLS)
        for x in range(CELLS)
    )


def rules(rgb: NDArray[np.uint8], scene: Scene) -> dict[str, bool]:
    """Whether the pixels of an image (uint8, H x W x 3) match a scene, without a model.

    Returns:
        `color`: the main color fills at least 2 % of the image; `night`: the sky is dark if and
        only if the scene is a night; `object`: something of the main color is compact enough to be
        a thing. No scene has its main color around its things, so noise or the background of a
        wrong scene rarely passes.
    """
    color = main_color(scene)
    return {
        "color": seen_colors(rgb)[color] >= LEAST_SHARE,
        "night": looks_night(rgb) == is_night(scene),
        "object": object_seen(rgb, color),
    }
