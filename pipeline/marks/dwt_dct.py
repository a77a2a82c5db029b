"""uint8 RGB images in, the same images with a message in their pixels out, and the way back.

`dwt-dct` is what diffusers embeds in SDXL images, `dwt-dct-svd` its more robust sister: two
methods of the `invisible-watermark` package (0.2), reproduced to the pixel. Both work on 4x4
blocks of the Haar approximation of the U plane and move one number of a block to a quarter or
three quarters of a step of 36. In the first, in spite of its name, that is the largest
coefficient but the first, without a cosine transform; in the second the largest singular value.
The inverse Haar transform takes the horizontal and vertical details the wrong way round; so does
ours, because the published test images were made so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import RGB

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint8]

SDXL_MESSAGE = 0b101100111110110010010000011110111011000110011110
BITS = 48
_STEP, _BLOCK = 36.0, 4
_HALF = np.float64(np.sqrt(0.5))
_SHIFT = 14  # OpenCV's 8-bit colour conversion is fixed point with 14 fractional bits
# Pixels worked on at once: their planes stay in the processor's cache, a quarter of the time.
_AT_ONCE = 1 << 16


def message_bits(message: int = SDXL_MESSAGE, length: int = BITS) -> Bits:
    """The message as bits, most significant first: uint8, shape (length,), 0 or 1."""
    return np.array([message >> (length - 1 - i) & 1 for i in range(length)], np.uint8)


# --- colour -----------------------------------------------------------------------------------


def _descale(value: Ints) -> Ints:
    value += 1 << (_SHIFT - 1)
    value >>= _SHIFT
    return value


def _y_and_u(rgb: RGB) -> tuple[Ints, Ints]:
    """Y and U planes (int32; 0 to 255 and 17 to 239), as OpenCV's COLOR_RGB2YUV gives them."""
    blue = rgb[..., 2].astype(np.int32)
    y = rgb[..., 0] * np.int32(4899)
    y += rgb[..., 1] * np.int32(9617)
    y += blue * 1868
    _descale(y)
    blue -= y
    blue *= 8061
    u = _descale(blue)
    u += 128
    return y, u


def _write_rgb(y: Ints, u: Ints, v: Ints, out: RGB) -> None:
    """Y, U and V planes, the last two 128 below, to RGB as COLOR_YUV2RGB does it."""
    planes = (18678 * v, -6472 * u - 9519 * v, 33292 * u)
    for channel, plane in enumerate(planes):
        _descale(plane)
        plane += y
        np.maximum(plane, 0, out=plane)
        np.minimum(plane, 255, out=plane)
        out[..., channel] = plane


# --- transforms -------------------------------------------------------------------------------


def _haar(plane: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """Orthonormal Haar transform: approximation, horizontal, vertical, diagonal (float64).

    Sums are rounded in the order in which PyWavelets makes them; the pixels depend on it.
    """
    scaled = plane.astype(np.float64)
    scaled *= _HALF
    low, high = scaled[0::2] + scaled[1::2], scaled[0::2] - scaled[1::2]
    low *= _HALF
    high *= _HALF
    return (
        low[:, 0::2] + low[:, 1::2],
        high[:, 0::2] + high[:, 1::2],
        low[:, 0::2] - low[:, 1::2],
        high[:, 0::2] - high[:, 1::2],
    )


def _unhaar(approximation: Floats, horizontal: Floats, vertical: Floats, diagonal: Floats) -> Bits:
    """The plane again, in 8 bits as the package stores it: cut towards zero, modulo 256."""
    rows, columns = approximation.shape
    low, high = np.empty((rows, 2 * columns)), np.empty((rows, 2 * columns))
    a, h, v, d = (part * _HALF for part in (approximation, horizontal, vertical, diagonal))
    np.add(a, v, out=low[:, 0::2])
    np.subtract(a, v, out=low[:, 1::2])
    np.add(h, d, out=high[:, 0::2])
    np.subtract(h, d, out=high[:, 1::2])
    low *= _HALF
    high *= _HALF
    plane = np.empty((2 * rows, 2 * columns), np.uint8)
    plane[0::2] = (low + high).astype(np.int32)
    plane[1::2] = (low - high).astype(np.int32)
    return plane


def _blocks(approximation: Floats) -> Floats:
    """A copy of the whole 4x4 blocks, row by row, each as 16 numbers (Nx16)."""
    rows, columns = (size // _BLOCK for size in approximation.shape)
    part = approximation[: rows * _BLOCK, : columns * _BLOCK]
    split = part.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2)
    return split.reshape(rows * columns, _BLOCK * _BLOCK)


def _put_blocks(blocks: Floats, approximation: Floats) -> None:
    rows, columns = (size // _BLOCK for size in approximation.shape)
    split = blocks.reshape(rows, columns, _BLOCK, _BLOCK).swapaxes(1, 2)
    approximation[: rows * _BLOCK, : columns * _BLOCK] = split.reshape(
        rows * _BLOCK, columns * _BLOCK
    )


def _moved(value: Floats, wanted: Bits) -> Floats:
    """Values (not negative) at the place in their step that stands for the wanted bit."""
    moved: Floats = (value // _STEP + 0.25 + 0.5 * wanted) * _STEP
    return moved


# --- dwt-dct ----------------------------------------------------------------------------------


def _largest(blocks: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.arange(len(blocks)), np.abs(blocks[:, 1:]).argmax(axis=1) + 1


def _mark_largest(blocks: Floats, wanted: Bits) -> Floats:
    where = _largest(blocks)
    value = blocks[where]
    moved = _moved(np.abs(value), wanted)
    blocks[where] = np.where(value >= 0, moved, -moved)
    return blocks


def _read_largest(blocks: Floats) -> Floats:
    return np.abs(blocks[_largest(blocks)])


# --- dwt-dct-svd ------------------------------------------------------------------------------

# The cosine transform of four numbers as OpenCV rounds it: a real Fourier transform, turned.
_COS, _SIN = (0.70710678118654752 * x for x in (0.92387953251128674, 0.38268343236508977))
_TURN = _COS * 0.92387953251128674 - _SIN * 0.38268343236508977
_ROOT = 0.70710678118654752
# Further from a decision than this, rounding in the 13th digit cannot move a pixel.
_DOUBT = 1e-6


def _dct4(x: Floats) -> Floats:
    """Cosine transform along the last axis (length 4)."""
    even, odd = x[..., 0] + x[..., 3], x[..., 2] + x[..., 1]
    real, imaginary = x[..., 0] - x[..., 3], x[..., 1] - x[..., 2]
    return np.stack(
        [
            (even + odd) * _ROOT * _ROOT,
            _COS * real + _SIN * imaginary,
            (even - odd) * _TURN,
            _SIN * real - _COS * imaginary,
        ],
        axis=-1,
    )


def _idct4(x: Floats) -> Floats:
    """The way back."""
    first, third = x[..., 0] * _ROOT * _ROOT, x[..., 2] * _TURN
    outer, inner = first + third, first - third
    real, imaginary = _COS * x[..., 1] + _SIN * x[..., 3], _SIN * x[..., 1] - _COS * x[..., 3]
    return np.stack([outer + real, inner + imaginary, inner - imaginary, outer - real], axis=-1)


def _rows_then_columns(transform: Callable[[Floats], Floats], blocks: Floats) -> Floats:
    return transform(transform(blocks).swapaxes(-1, -2)).swapaxes(-1, -2)


def _svd(blocks: Floats) -> tuple[Floats, Floats, Floats]:
    """U, S, V of the cosine transforms of Nx16 blocks, as the package computes them."""
    coefficients = _rows_then_columns(_dct4, blocks.reshape(-1, _BLOCK, _BLOCK))
    # Of contiguous matrices LAPACK returns the same digits, whether one by one or stacked.
    u, s, v = np.linalg.svd(np.ascontiguousarray(coefficients))
    return u, s, v


def _power(blocks: Floats) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Largest singular value (N), its vectors (4xN each, the left one times the value).

    The cosine transform turns a block and leaves its singular values as they are, so it is not
    needed. U is positive, so by Perron and Frobenius the largest value is a single one, and
    multiplying by the block over and over finds it.

    Returns:
        And which blocks came within 1e-10 of the vectors; the others need the full method.
    """
    matrix = np.ascontiguousarray(blocks.T).reshape(_BLOCK, _BLOCK, -1)
    right = np.full((_BLOCK, matrix.shape[2]), 0.5)
    for _ in range(6):
        left = (matrix * right).sum(axis=1)
        before, right = right, (matrix * left[:, None]).sum(axis=0)
        right /= np.sqrt((right * right).sum(axis=0))
    left = (matrix * right).sum(axis=1)
    value = np.sqrt((left * left).sum(axis=0))
    return value, left, right, np.abs(right - before).max(axis=0) < 1e-10


def _near(value: Floats, step: float) -> NDArray[np.bool_]:
    """Where a value is so near a multiple of `step` that rounding decides on which side."""
    parts = value / step
    near: NDArray[np.bool_] = np.abs(parts - np.rint(parts)) < _DOUBT
    return near


def _mark_svd(blocks: Floats, wanted: Bits) -> Floats:
    """Move the largest singular value of every block (Nx16, positive).

    LAPACK is asked only where the last digits matter: where a step begins, and where a pixel
    would fall on a whole number before it is cut (a pixel is half the approximation and
    quarters from the details, so the approximation is then a multiple of a half).
    """
    value, left, right, found = _power(blocks)
    grown = left * ((_moved(value, wanted) - value) / value)
    marked = blocks + (grown[:, None] * right).reshape(_BLOCK * _BLOCK, -1).T
    doubt = ~found | _near(value, _STEP) | _near(marked, 0.5).any(axis=1)
    if doubt.any():
        # Flat images are doubtful all over, and all alike.
        keys = np.column_stack([blocks[doubt], wanted[doubt]])
        distinct, back = np.unique(keys, axis=0, return_inverse=True)
        u, s, v = _svd(np.ascontiguousarray(distinct[:, :-1]))
        s[:, 0] = _moved(s[:, 0], distinct[:, -1].astype(np.uint8))
        exact = _rows_then_columns(_idct4, u @ (s[:, :, None] * v))
        marked[doubt] = exact.reshape(-1, _BLOCK * _BLOCK)[back.ravel()]
    return marked


def _read_svd(blocks: Floats) -> Floats:
    value, _, _, found = _power(blocks)
    doubt = ~found | _near(value, _STEP / 2)
    if doubt.any():
        value[doubt] = _svd(blocks[doubt])[1][:, 0]
    return value


# --- both -------------------------------------------------------------------------------------


def _strips(height: int, width: int) -> Iterator[slice]:
    """Rows worked on at once: whole blocks (8 pixels), but in the last one."""
    rows = max(8, _AT_ONCE // max(width, 1) // 8 * 8)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _embed_bits(rgb: RGB, bits: Bits | None, mark: Callable[[Floats, Bits], Floats]) -> RGB:
    bits = message_bits() if bits is None else bits
    out = np.empty(rgb.shape, np.uint8)
    number = 0  # of the first block in the strip
    for rows in _strips(*rgb.shape[:2]):
        part = rgb[rows]
        y, u = _y_and_u(part)
        v = part[..., 0] - y
        v *= 14369
        _descale(v)
        np.maximum(v, -128, out=v)
        np.minimum(v, 127, out=v)
        height, width = (size // 4 * 4 for size in u.shape)
        if height and width:
            approximation, horizontal, vertical, diagonal = _haar(u[:height, :width])
            blocks = _blocks(approximation)
            if len(blocks):
                wanted = bits[np.arange(number, number + len(blocks)) % len(bits)]
                number += len(blocks)
                _put_blocks(mark(blocks, wanted), approximation)
            # Details the wrong way round, see above.
            u[:height, :width] = _unhaar(approximation, vertical, horizontal, diagonal)
        u -= 128
        _write_rgb(y, u, v, out[rows])
    return out


def _read_bits(rgb: RGB, length: int, read: Callable[[Floats], Floats]) -> Floats:
    values = []
    for rows in _strips(*rgb.shape[:2]):
        _, u = _y_and_u(rgb[rows])
        height, width = (size // 4 * 4 for size in u.shape)
        if height and width:
            values.append(_blocks(_haar(u[:height, :width])[0]))
    votes = np.full(length, np.nan)
    ones = np.concatenate([read(blocks) for blocks in values if len(blocks)] or [np.empty(0)])
    if len(ones):
        ones = (ones % _STEP > 0.5 * _STEP).astype(np.float64)
        which = np.arange(len(ones)) % length
        counts = np.bincount(which, minlength=length)
        sums = np.bincount(which, weights=ones, minlength=length)
        np.divide(sums, counts, out=votes, where=counts > 0)
    return votes


def embed_dwt_dct(rgb: RGB, bits: Bits | None = None) -> RGB:
    """Embed a message (default: the 48 bits of SDXL) in an HxWx3 uint8 RGB image.

    The bits are uint8, shape (L,), 0 or 1. Images below 8x8 pixels hold no bit and come back with
    their colours rounded only.
    """
    return _embed_bits(rgb, bits, _mark_largest)


def embed_dwt_dct_svd(rgb: RGB, bits: Bits | None = None) -> RGB:
    """The same (uint8, H x W x 3, in and out) by singular values, which survive more."""
    return _embed_bits(rgb, bits, _mark_svd)


def read_dwt_dct(rgb: RGB, length: int = BITS) -> Floats:
    """Share of blocks that vote for one, for every bit (float64, 0 to 1; NaN where none does).

    Args:
        rgb: uint8, H x W x 3.
        length: bits of the message, and shares that are returned.
    """
    return _read_bits(rgb, length, _read_largest)


def read_dwt_dct_svd(rgb: RGB, length: int = BITS) -> Floats:
    """The same for `dwt-dct-svd`: uint8, H x W x 3 in, float64, `length` shares out."""
    return _read_bits(rgb, length, _read_svd)


READ: dict[str, Callable[[RGB], Floats]] = {
    "dwt-dct": read_dwt_dct,
    "dwt-dct-svd": read_dwt_dct_svd,
}
"""Variants that hold a message: the votes for its bits."""


def read_message(votes: Floats) -> str:
    """Bits by majority of votes; an even vote counts as one (as in the package), none is `.`.

    Args:
        votes: float64, one for each bit, 0 to 1; NaN where there is none.
    """
    return "".join("." if math.isnan(v) else str(int(v * 255 > 127)) for v in votes.tolist())


def rightly_read(bits: str) -> int:
    """How many bits of what was read are those of SDXL's message."""
    message = "".join(str(bit) for bit in message_bits().tolist())
    return sum(a == b for a, b in zip(bits, message, strict=True))


def bit_accuracy(rgb: RGB, name: str) -> float | None:
    """Share of the bits read that are those of SDXL's message, 0 to 1; by chance about a half.

    Args:
        rgb: a uint8 image, H x W x 3.
        name: the mark that it carries. All marks of READ carry this one message.

    Returns:
        None where the mark holds no message (`none`, or one that is seen), or no bit was read.
    """
    if name not in READ:
        return None
    bits = read_message(READ[name](rgb))
    read = BITS - bits.count(".")
    return rightly_read(bits) / read if read else None
