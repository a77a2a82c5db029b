"""uint8 RGB pictures in, the same pictures with a mark out, and the way back.

A variant is named by one string: `none`, `dwt-dct`, `dwt-dct-svd`, or `visible:` with what to
draw, for example `visible:text=AI generated,position=bottom-right,opacity=0.5,scale=0.2`.

`dwt-dct` is what diffusers embeds in SDXL pictures, `dwt-dct-svd` its more robust sister: two
methods of the `invisible-watermark` package (0.2), reproduced to the pixel. Both work on 4x4
blocks of the Haar approximation of the U plane and move one number of a block to a quarter or
three quarters of a step of 36. In the first, in spite of its name, that is the largest
coefficient but the first, without a cosine transform; in the second the largest singular value.
The inverse Haar transform takes the horizontal and vertical details the wrong way round; so does
ours, because the published test pictures were made so.
"""

from __future__ import annotations

import hashlib
import io
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.pixels import RGB

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
    """The message as `length` bits, most significant first (uint8, 0 or 1)."""
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
        # Flat pictures are doubtful all over, and all alike.
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
    """Embed a message (default: the 48 bits of SDXL) in an HxWx3 uint8 RGB picture.

    Pictures below 8x8 pixels hold no bit and come back with their colours rounded only.
    """
    return _embed_bits(rgb, bits, _mark_largest)


def embed_dwt_dct_svd(rgb: RGB, bits: Bits | None = None) -> RGB:
    """The same by singular values, which survive more."""
    return _embed_bits(rgb, bits, _mark_svd)


def read_dwt_dct(rgb: RGB, length: int = BITS) -> Floats:
    """Share of blocks that vote for one, for every bit (float64, 0 to 1; NaN where none does)."""
    return _read_bits(rgb, length, _read_largest)


def read_dwt_dct_svd(rgb: RGB, length: int = BITS) -> Floats:
    """The same for `dwt-dct-svd`."""
    return _read_bits(rgb, length, _read_svd)


# --- visible ----------------------------------------------------------------------------------

POSITIONS = {
    "top-left": (0, 0),
    "top": (1, 0),
    "top-right": (2, 0),
    "left": (0, 1),
    "center": (1, 1),
    "right": (2, 1),
    "bottom-left": (0, 2),
    "bottom": (1, 2),
    "bottom-right": (2, 2),
}
"""Name of a place: how far right and how far down it is, in halves."""

_FONT_SIZE = 96
FONT_SHA256 = "75fe20a0383bd9542e0cba2e8a943d7e1499e9c253b6b66580f1b24f832ea174"
MAX_LOGO_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Visible:
    """A checked `visible:` variant; `str()` gives its one spelling, all values written out.

    Attributes:
        text: what is written; empty for a logo.
        logo: name of the logo's file; only for people, as `sha256` says what is in it.
        opacity: in thousandths.
        scale: width of the mark in thousandths of the picture's.
    """

    text: str
    logo: str
    sha256: str
    position: str
    opacity: int
    scale: int

    def __str__(self) -> str:
        what = f"text={self.text}" if self.text else f"logo={self.logo},sha256={self.sha256}"
        return (
            f"visible:{what},position={self.position},"
            f"opacity={self.opacity / 1000:g},scale={self.scale / 1000:g}"
        )


_logos: dict[str, bytes] = {}
"""sha256: content. A row of the plan names a logo by its hash; who reads a specification, or
gets one from another process, puts the content here."""


def known_logos(names: tuple[str, ...]) -> dict[str, bytes]:
    """Content of the logos that these variants use, by sha256."""
    parsed = (parse(name) for name in names)
    return {v.sha256: _logos[v.sha256] for v in parsed if isinstance(v, Visible) and v.logo}


def keep_logos(logos: dict[str, bytes]) -> None:
    """Make logos known in this process."""
    _logos.update(logos)


def read_logo(path: Path) -> str:
    """Make a logo file (PNG) known in this process; returns its sha256.

    Raises:
        ValueError: missing, too large or no PNG, and what to do.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"logo={path}: cannot be read ({error.strerror})") from None
    try:
        _logo_rgba(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"logo={path}: not a PNG picture that can be read: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    _logos[digest] = data
    return digest


def _thousandths(key: str, value: str) -> int:
    try:
        number = Decimal(value) * 1000
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number != int(number) or not 1 <= number <= 1000:
        raise ValueError(f"{key}={value}: expected 0.001 to 1, with at most three decimals")
    return int(number)


def parse(name: str, folder: Path | None = None) -> str | Visible:
    """Check the name of a variant.

    Args:
        folder: where a relative logo file lies; None: the logo must be known already.

    Returns:
        The name, or what is to be drawn.

    Raises:
        ValueError: what is wrong, and what is expected.
    """
    if name in EMBED:
        return name
    kind, colon, rest = name.partition(":")
    if kind != "visible" or not colon:
        raise ValueError(
            f"{name!r} is no watermark; use {', '.join(EMBED)} or visible:text=… or visible:logo=…"
        )
    defaults = {"text": "", "logo": "", "sha256": "", "position": "bottom-right"}
    values = defaults | {"opacity": "0.5", "scale": "0.2"}
    given: set[str] = set()
    # A comma that no `word=` follows belongs to the text.
    for part in re.split(r",\s*(?=\w+=)", rest):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or key not in values:
            raise ValueError(f"{part!r}: expected one of {', '.join(f'{k}=' for k in values)}")
        if key in given:
            raise ValueError(f"{key}= stands twice")
        given.add(key)
        values[key] = value.strip()
    text, logo, digest = values["text"], values["logo"], values["sha256"]
    if bool(text) == bool(logo):
        raise ValueError("give either text=WORDS or logo=FILE")
    if text and digest:
        raise ValueError("sha256= belongs to a logo")
    if values["position"] not in POSITIONS:
        raise ValueError(f"position={values['position']}: expected {', '.join(POSITIONS)}")
    if text:
        _check_text(text)
    else:
        digest = _check_logo(logo, digest, folder)
        logo = Path(logo).name
    return Visible(
        text=text,
        logo=logo,
        sha256=digest,
        position=values["position"],
        opacity=_thousandths("opacity", values["opacity"]),
        scale=_thousandths("scale", values["scale"]),
    )


def _check_text(text: str) -> None:
    other = sorted(set(text) - set(string.printable[:-5]))
    if other or len(text) > 100:
        raise ValueError(
            f"text={text}: at most 100 of the ASCII characters"
            + (f", not {''.join(other)!r}" if other else "")
            + "; give a picture with logo=FILE for anything else"
        )
    # Another FreeType may draw other pixels under the same name.
    if _font_sha256() != FONT_SHA256:
        from PIL import __version__

        raise ValueError(
            f"text={text}: Pillow {__version__} draws its built-in font in another way than the "
            "one that aigi was tested with (constraints.txt); install that one, or give a picture "
            "with logo=FILE"
        )


def _check_logo(logo: str, digest: str, folder: Path | None) -> str:
    if digest and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"sha256={digest}: expected 64 hexadecimal digits, as sha256sum prints")
    if digest in _logos:
        return digest
    if folder is None:
        raise ValueError(f"logo={logo}: no file with this sha256 was given (--logo FILE)")
    found = read_logo(folder / Path(logo).expanduser())
    if digest and digest != found:
        raise ValueError(
            f"logo={logo}: sha256 of the file is {found}, not {digest}; put the right file there, "
            "or change the hash if the new logo is meant"
        )
    return found


def _logo_rgba(data: bytes) -> RGB:
    """Pixels of a PNG (uint8 HxWx4)."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if picture.width * picture.height > MAX_LOGO_PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} pixels, more than 4096x4096")
        return np.asarray(picture.convert("RGBA"))


@lru_cache(16)
def _text_grey(text: str) -> NDArray[np.uint8]:
    """White letters on black (uint8 HxW), in the font that Pillow carries in itself."""
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("freetype2"):
        raise ValueError(f"text={text}: this Pillow is built without FreeType; install its wheel")
    font = ImageFont.load_default(_FONT_SIZE)
    width = round(font.getlength(text))
    plate = Image.new("L", (width + _FONT_SIZE // 2, _FONT_SIZE * 3 // 2), 0)
    ImageDraw.Draw(plate).text((_FONT_SIZE // 4, _FONT_SIZE * 9 // 8), text, 255, font, anchor="ls")
    return np.asarray(plate)


@lru_cache(1)
def _font_sha256() -> str:
    return hashlib.sha256(_text_grey(string.printable[:-5]).tobytes()).hexdigest()


@lru_cache(16)
def _mark_rgba(visible: Visible) -> RGB:
    """The mark at its own size (uint8 HxWx4)."""
    if not visible.text:
        return _logo_rgba(_logos[visible.sha256])
    grey = _text_grey(visible.text)
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def _shares(old: int, new: int) -> Floats:
    """How much of each old pixel lies in each new one (new x old; whole numbers, rows sum to old).

    Whole numbers below 2^53 add up to the same in any order, on any machine.
    """
    begin, end = np.arange(new)[:, None] * old, np.arange(1, new + 1)[:, None] * old
    left, right = np.arange(old) * new, np.arange(1, old + 1) * new
    shares: Floats = np.maximum(np.minimum(end, right) - np.maximum(begin, left), 0).astype(float)
    return shares


def place(visible: Visible, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a picture that the mark covers; at least one pixel, never outside."""
    mark = _mark_rgba(visible)
    margin = min(height, width) // 50
    high, wide = height - 2 * margin, width - 2 * margin
    w = min(wide, max(1, (width * visible.scale + 500) // 1000))
    h = max(1, (w * mark.shape[0] * 2 + mark.shape[1]) // (2 * mark.shape[1]))
    if h > high:
        h, w = high, max(1, high * mark.shape[1] // mark.shape[0])
    x, y = POSITIONS[visible.position]
    left, top = margin + (wide - w) * x // 2, margin + (high - h) * y // 2
    return slice(top, top + h), slice(left, left + w)


@lru_cache(16)
def layer(visible: Visible, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The mark at its size in a picture of this size.

    Returns:
        Colour times weight (hxwx3) and weight (hxwx1), where 255,000 is all mark, no picture.
    """
    rows, columns = place(visible, height, width)
    mark = _mark_rgba(visible).astype(np.float64)
    alpha = mark[..., 3:]
    down = _shares(mark.shape[0], rows.stop - rows.start)
    across = _shares(mark.shape[1], columns.stop - columns.start)
    area = mark.shape[0] * mark.shape[1]

    def scaled(plane: Floats) -> NDArray[np.int64]:
        return (down @ plane @ across.T).astype(np.int64)

    planes = [scaled(mark[..., i] * alpha[..., 0]) for i in range(3)]
    weight = scaled(alpha[..., 0])
    colour = np.stack(planes, axis=-1) * visible.opacity
    return (colour + area // 2) // area, ((weight * visible.opacity + area // 2) // area)[..., None]


def embed_visible(rgb: RGB, visible: Visible) -> RGB:
    """Lay the mark over an HxWx3 uint8 RGB picture. Whole numbers only: the same everywhere."""
    out = rgb.copy()
    rows, columns = place(visible, *rgb.shape[:2])
    colour, weight = layer(visible, *rgb.shape[:2])
    part = rgb[rows, columns].astype(np.int64)
    out[rows, columns] = (part * (255_000 - weight) + colour + 127_500) // 255_000
    return out


# --- all --------------------------------------------------------------------------------------

EMBED: dict[str, Callable[[RGB], RGB]] = {
    "none": lambda rgb: rgb,
    "dwt-dct": embed_dwt_dct,
    "dwt-dct-svd": embed_dwt_dct_svd,
}
"""Variants without settings: uint8 HxWx3 in, the variant out."""

READ: dict[str, Callable[[RGB], Floats]] = {
    "dwt-dct": read_dwt_dct,
    "dwt-dct-svd": read_dwt_dct_svd,
}
"""Variants that hold a message: the votes for its bits."""


def embed(rgb: RGB, name: str) -> RGB:
    """The variant of a picture (uint8 HxWx3) that the plan names; the picture stays as it is.

    Raises:
        ValueError: no such variant, or its logo is not known in this process.
    """
    if name in EMBED:
        return EMBED[name](rgb)
    visible = parse(name)
    assert isinstance(visible, Visible)
    return embed_visible(rgb, visible)
