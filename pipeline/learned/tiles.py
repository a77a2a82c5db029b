"""Areas of an image in, what is around them, and their part of a map, out.

The transforms see a tile with the pixels of its neighbours around it, as far as they reach, so
tiles leave no seams; the entropy model sees each tile alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.learned.bitstream import Area

Y_STRIDE = 16
"""Pixels of a latent of y; of a latent of z there are `STRIDE`."""
TILE = 1024
"""Side of the tiles of an image that is too large for one."""


def around(place: Area, bounds: Area, halo: int) -> Area:
    """An area with so many pixels around it, as far as there is something."""
    return Area(
        max(place.top - halo, bounds.top),
        min(place.bottom + halo, bounds.bottom),
        max(place.left - halo, bounds.left),
        min(place.right + halo, bounds.right),
    )


def within(place: Area, outer: Area) -> Area:
    """Where an area is in a larger one."""
    return Area(
        place.top - outer.top,
        place.bottom - outer.top,
        place.left - outer.left,
        place.right - outer.left,
    )


def cut(x: Tensor, area: Area, stride: int) -> Tensor:
    """The part of a map that lies in an area.

    Args:
        x: of any dtype and values, ... x H x W.
        area: in pixels.
        stride: pixels of a position of the map.

    Returns:
        Of that dtype, ... x h x w: a view.
    """
    return x[
        ...,
        area.top // stride : area.bottom // stride,
        area.left // stride : area.right // stride,
    ]


def eight_bits(x_hat: Tensor) -> Tensor:
    """An image as it is decoded.

    Args:
        x_hat: float32, 1 x 3 x H x W, about 0 to 1; what is no number counts as 0.

    Returns:
        uint8, H x W x 3.
    """
    seen = torch.nan_to_num(x_hat).clamp(0, 1)
    return torch.round(seen[0].permute(1, 2, 0) * 255).to(torch.uint8)


def joined(tiles: Iterator[Tensor], places: list[Area]) -> Tensor:
    """Latents of the whole image; memory is taken once the first tile has proved right.

    Args:
        tiles: float32, 1 x M x h x w each, any values.
        places: of the tiles, row by row.

    Returns:
        float32, 1 x M x H x W.
    """
    whole: Tensor | None = None
    for tile, place in zip(tiles, places, strict=True):
        if len(places) == 1:
            return tile
        if whole is None:
            shape = (places[-1].bottom // Y_STRIDE, places[-1].right // Y_STRIDE)
            whole = tile.new_empty((1, tile.shape[1], *shape))
        cut(whole, place, Y_STRIDE).copy_(tile)
    assert whole is not None
    return whole
