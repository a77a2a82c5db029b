"""An image and a text or logo in, the image with that mark over it out.

A mark is written `visible:` and what to draw, for example
`visible:text=AI generated,position=bottom-right,opacity=0.5,scale=0.2`.
"""

from __future__ import annotations

import hashlib
import io
import re
import string
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.outside import on_this_machine
from pipeline.pixels import RGB

Floats = NDArray[np.float64]

KIND = "visible:"
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
        logo: name of the logo's file, for readers only: `sha256` identifies its content.
        opacity: in thousandths.
        scale: width of the mark in thousandths of the image's.
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
"""sha256: content. A row of the plan names a logo by its hash; reading a specification, or
receiving one from another process, puts the content here."""


def known_logos(names: tuple[str, ...]) -> dict[str, bytes]:
    """Content of the logos that these variants use, by sha256."""
    parsed = (parse_visible(n.removeprefix(KIND)) for n in names if n.startswith(KIND))
    return {v.sha256: _logos[v.sha256] for v in parsed if v.logo}


def keep_logos(logos: dict[str, bytes]) -> None:
    """Make logos known in this process."""
    _logos.update(logos)


def read_logo(path: Path) -> str:
    """Make a logo file (PNG) known in this process; returns its sha256.

    Raises:
        ValueError: missing, too large or not a PNG; states what to do.
    """
    on_this_machine(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"logo={path}: cannot be read ({error.strerror})") from None
    try:
        _logo_rgba(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"logo={path}: not a readable PNG image: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    _logos[digest] = data
    return digest


def logo_of(name: str) -> str | None:
    """The logo file that a checked variant names; None: it has none."""
    return (
        None if not name.startswith(KIND) else parse_visible(name.removeprefix(KIND)).logo or None
    )


def _thousandths(key: str, value: str) -> int:
    try:
        number = Decimal(value) * 1000
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number != int(number) or not 1 <= number <= 1000:
        raise ValueError(f"{key}={value}: expected 0.001 to 1, with at most three decimals")
    return int(number)


def parse_visible(wanted: str, folder: Path | None = None, beside: bool = False) -> Visible:
    """Check what follows `visible:`; arguments and errors as for `names.parse`."""
    defaults = {"text": "", "logo": "", "sha256": "", "position": "bottom-right"}
    values = defaults | {"opacity": "0.5", "scale": "0.2"}
    given: set[str] = set()
    # A comma that no `word=` follows belongs to the text.
    for part in re.split(r",\s*(?=\w+=)", wanted):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or key not in values:
            raise ValueError(f"{part!r}: expected one of {', '.join(f'{k}=' for k in values)}")
        if key in given:
            raise ValueError(f"{key}= is given twice")
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
        if beside and (not digest or Path(logo).name != logo):
            raise ValueError(
                f"logo={logo}: only the name of a file in the same folder, with its sha256=, may "
                "be here"
            )
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
            + "; give an image with logo=FILE for anything else"
        )
    # Another FreeType may draw other pixels under the same name.
    if _font_sha256() != FONT_SHA256:
        from PIL import __version__

        raise ValueError(
            f"text={text}: Pillow {__version__} draws its built-in font differently from the "
            "version that aigi was tested with (constraints.txt); install that version, or give an "
            "image with logo=FILE"
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
    """How much of each old pixel is in each new one (new x old; whole numbers, rows sum to old).

    Whole numbers below 2^53 add up to the same in any order, on any machine.
    """
    begin, end = np.arange(new)[:, None] * old, np.arange(1, new + 1)[:, None] * old
    left, right = np.arange(old) * new, np.arange(1, old + 1) * new
    shares: Floats = np.maximum(np.minimum(end, right) - np.maximum(begin, left), 0).astype(float)
    return shares


def place(visible: Visible, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image that the mark covers; at least one pixel, never outside."""
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
    """The mark at its size in an image of this size.

    Returns:
        Colour times weight (int64, hxwx3) and weight (int64, hxwx1, 0 to 255,000); at 255,000
        the mark hides the image.
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
    """Lay the mark over an HxWx3 uint8 RGB image; returns another. Whole numbers, so the same
    everywhere."""
    out = rgb.copy()
    rows, columns = place(visible, *rgb.shape[:2])
    colour, weight = layer(visible, *rgb.shape[:2])
    part = rgb[rows, columns].astype(np.int64)
    out[rows, columns] = (part * (255_000 - weight) + colour + 127_500) // 255_000
    return out
