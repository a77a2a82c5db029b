"""uint8 RGB pictures in, the same pictures with an invisible message out, and the way back.

`dwt-dct` is what diffusers embeds in SDXL pictures: the method of the `invisible-watermark`
package (0.2), reproduced to the pixel. In spite of its name there is no cosine transform in it:
of every 4x4 block of the Haar approximation of the U plane, the largest coefficient but the
first is moved to a quarter or three quarters of a step of 36. Its inverse transform takes the
horizontal and vertical details the wrong way round; so does ours, because the published test
pictures were made so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.pixels import RGB

SDXL_MESSAGE = 0b101100111110110010010000011110111011000110011110
BITS = 48
_STEP, _BLOCK = 36.0, 4
_HALF = np.float64(np.sqrt(0.5))
_SHIFT = 14  # OpenCV's 8-bit colour conversion is fixed point with 14 fractional bits


def message_bits(message: int = SDXL_MESSAGE, length: int = BITS) -> NDArray[np.uint8]:
    """The message as `length` bits, most significant first (uint8, 0 or 1)."""
    return np.array([message >> (length - 1 - i) & 1 for i in range(length)], np.uint8)


def _descale(value: NDArray[np.int32]) -> NDArray[np.int32]:
    return (value + (1 << (_SHIFT - 1))) >> _SHIFT


def _planes(rgb: RGB) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Y, U, V planes (int32, 0 to 255), as OpenCV's COLOR_RGB2YUV gives them."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    y = _descale(4899 * red + 9617 * green + 1868 * blue)
    u = np.clip(_descale((blue - y) * 8061) + 128, 0, 255)
    v = np.clip(_descale((red - y) * 14369) + 128, 0, 255)
    return y, u, v


def _rgb(y: NDArray[np.int32], u: NDArray[np.int32], v: NDArray[np.int32]) -> RGB:
    u, v = u - 128, v - 128
    planes = (y + _descale(18678 * v), y + _descale(-6472 * u - 9519 * v), y + _descale(33292 * u))
    return np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)


def _haar(plane: NDArray[np.int32]) -> tuple[NDArray[np.float64], ...]:
    """Orthonormal Haar transform: approximation, horizontal, vertical, diagonal (float64).

    Sums are rounded in the order in which PyWavelets makes them; the pixels depend on it.
    """
    scaled = plane * _HALF
    low, high = scaled[0::2] + scaled[1::2], scaled[0::2] - scaled[1::2]
    low, high = low * _HALF, high * _HALF
    return (
        low[:, 0::2] + low[:, 1::2],
        high[:, 0::2] + high[:, 1::2],
        low[:, 0::2] - low[:, 1::2],
        high[:, 0::2] - high[:, 1::2],
    )


def _unhaar(
    approximation: NDArray[np.float64],
    horizontal: NDArray[np.float64],
    vertical: NDArray[np.float64],
    diagonal: NDArray[np.float64],
) -> NDArray[np.float64]:
    rows, columns = approximation.shape
    low, high = np.empty((rows, 2 * columns)), np.empty((rows, 2 * columns))
    a, h, v, d = (part * _HALF for part in (approximation, horizontal, vertical, diagonal))
    low[:, 0::2], low[:, 1::2] = a + v, a - v
    high[:, 0::2], high[:, 1::2] = h + d, h - d
    low, high = low * _HALF, high * _HALF
    plane = np.empty((2 * rows, 2 * columns))
    plane[0::2], plane[1::2] = low + high, low - high
    return plane


def _blocks(approximation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The whole 4x4 blocks, row by row, each as 16 numbers."""
    rows, columns = (size // _BLOCK for size in approximation.shape)
    part = approximation[: rows * _BLOCK, : columns * _BLOCK]
    split = part.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2)
    return split.reshape(rows * columns, _BLOCK * _BLOCK)


def _largest(blocks: NDArray[np.float64]) -> NDArray[np.intp]:
    where: NDArray[np.intp] = np.abs(blocks[:, 1:]).argmax(axis=1) + 1
    return where


def embed_dwt_dct(rgb: RGB, bits: NDArray[np.uint8] | None = None) -> RGB:
    """Embed a message (default: the 48 bits of SDXL) in an HxWx3 uint8 RGB picture.

    Pictures below 8x8 pixels hold no bit and come back with their colours rounded only.
    """
    bits = message_bits() if bits is None else bits
    y, u, v = _planes(rgb)
    height, width = (size // 4 * 4 for size in u.shape)
    if height and width:
        approximation, horizontal, vertical, diagonal = _haar(u[:height, :width])
        blocks = _blocks(approximation)
        where = (np.arange(len(blocks)), _largest(blocks)) if len(blocks) else None
        if where is not None:
            value = blocks[where]
            wanted = bits[np.arange(len(blocks)) % len(bits)]
            moved = (np.abs(value) // _STEP + 0.25 + 0.5 * wanted) * _STEP
            blocks[where] = np.where(value >= 0, moved, -moved)
            rows, columns = (size // _BLOCK for size in approximation.shape)
            approximation[: rows * _BLOCK, : columns * _BLOCK] = (
                blocks.reshape(rows, columns, _BLOCK, _BLOCK)
                .swapaxes(1, 2)
                .reshape(rows * _BLOCK, columns * _BLOCK)
            )
        # Details the wrong way round, see above.
        plane = _unhaar(approximation, vertical, horizontal, diagonal)
        # The package stores floats in an 8-bit array: cut towards zero, wrapped modulo 256.
        u[:height, :width] = plane.astype(np.int64).astype(np.uint8)
    return _rgb(y, u, v)


def read_dwt_dct(rgb: RGB, length: int = BITS) -> NDArray[np.float64]:
    """Share of blocks that vote for one, for every bit (float64, 0 to 1; 0.5 where none does)."""
    _, u, _ = _planes(rgb)
    height, width = (size // 4 * 4 for size in u.shape)
    votes = np.full(length, 0.5)
    if not (height and width):
        return votes
    blocks = _blocks(_haar(u[:height, :width])[0])
    if len(blocks):
        value = np.abs(blocks[np.arange(len(blocks)), _largest(blocks)])
        ones = (value % _STEP > 0.5 * _STEP).astype(np.float64)
        which = np.arange(len(blocks)) % length
        counts = np.bincount(which, minlength=length)
        sums = np.bincount(which, weights=ones, minlength=length)
        votes = np.divide(sums, counts, out=votes, where=counts > 0)
    return votes


EMBED: dict[str, Any] = {"none": lambda rgb: rgb, "dwt-dct": embed_dwt_dct}
"""Watermark name of the plan: uint8 HxWx3 in, the variant out."""
