"""An image file in; the texts that programs wrote into it, by name, out: PNG, JPEG and WebP.

Names are those of PNG chunks; what EXIF and XMP have is under names of their own. Everything is
distrusted: sizes are bounded, XML is searched and never parsed, and damage ends the search.
"""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from pipeline.pixels import PNG_MAGIC, BadPicture, opened, png_chunks

MOST = 1 << 20
"""Bytes of one text: graphs of ComfyUI reach 100 KB."""
COMMENT, DESCRIPTION, XMP = "exif comment", "exif description", "xmp"
MAKE, MODEL = "exif make", "exif model"
HIDDEN = "alpha"
"""A text in the last bits of the alpha channel."""
_EXIF = {0x010E: DESCRIPTION, 0x010F: MAKE, 0x0110: MODEL, 0x9286: COMMENT, 0x9C9C: COMMENT}
_MOST_ALPHA = 1 << 24  # pixels that are searched
_STEALTH = {b"stealth_pnginfo": False, b"stealth_pngcomp": True}  # packed by gzip
_XMP_TEXT = re.compile(
    r"<(dc:description|exif:UserComment)\b[^>]*>(?:\s*<rdf:(?:Alt|Seq|Bag)>\s*<rdf:li[^>]*>)?([^<]*)<"
)


STEPS = re.compile(r"Steps: \d+\b")
"""The beginning of the last line of a parameter block of AUTOMATIC1111 and its likes."""


def json_in(text: str | None) -> Any:
    """A JSON object or list; None: the text is something else."""
    if text is None or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MOST)


def _decoded(data: bytes, encoding: str = "utf-8") -> str:
    """As what it should be in, else as what it may be: programs write UTF-8 into Latin-1 chunks."""
    for name in dict.fromkeys(("utf-8", encoding)):
        with suppress(UnicodeDecodeError):
            return data.decode(name)
    return data.decode("latin-1")


def _of_png(data: bytes) -> Iterator[tuple[str, str]]:
    with suppress(BadPicture, zlib.error):
        for kind, content in png_chunks(data, check=False):
            if kind == b"eXIf" and len(content) <= MOST:
                yield from _of_exif(bytes(content))
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(content) > MOST:
                continue
            key, _, rest = bytes(content).partition(b"\0")
            name = key.decode("latin-1")
            if kind == b"tEXt":
                text = _decoded(rest, "latin-1")
            elif kind == b"zTXt":
                text = _decoded(_inflated(rest[1:]), "latin-1")
            else:
                packed, text_of = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
                text = _decoded(_inflated(text_of) if packed else text_of)
            if name == "XML:com.adobe.xmp":
                yield from _of_xmp(text)
            else:
                yield name, text


def _user_comment(value: bytes) -> str:
    """EXIF's UserComment: eight bytes name the characters, and some programs leave them out."""
    prefix, rest = value[:8], value[8:]
    if prefix == b"UNICODE\0":
        # Of either byte order, whatever the order of the file: a space or letter has a zero byte.
        little = rest[1::2].count(0) > rest[::2].count(0)
        return rest[: len(rest) // 2 * 2].decode("utf-16-le" if little else "utf-16-be", "replace")
    if prefix in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)):
        value = rest
    return _decoded(value)


def _text_of(tag: int, value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        value = bytes(value)
    if isinstance(value, bytes):
        if tag == 0x9C9C:  # XPComment of Windows
            return value[: len(value) // 2 * 2].decode("utf-16-le", "replace")
        return _user_comment(value) if tag == 0x9286 else _decoded(value)
    if not isinstance(value, str):
        return ""
    with suppress(UnicodeError):  # Pillow takes it to be Latin-1
        return value.encode("latin-1").decode()
    return value


def _of_exif(exif: bytes) -> Iterator[tuple[str, str]]:
    found = Image.Exif()
    with suppress(Exception):  # damaged EXIF: Pillow raises nearly anything
        found.load(exif if exif.startswith(b"Exif\0\0") else b"Exif\0\0" + exif)
        for tag, value in [*found.items(), *found.get_ifd(0x8769).items()]:
            text = _text_of(tag, value).strip("\0") if tag in _EXIF else ""
            if text.strip() and len(text) <= MOST:
                yield _EXIF[tag], text


def _of_xmp(xml: str) -> Iterator[tuple[str, str]]:
    for name, text in _XMP_TEXT.findall(xml[:MOST]):
        if text.strip():
            yield (COMMENT if name.startswith("exif") else XMP), html.unescape(text)


def _of_others(data: bytes) -> Iterator[tuple[str, str]]:
    """JPEG and WebP, as Pillow finds their segments."""
    with suppress(Exception), opened(data) as picture:
        if picture.format not in ("JPEG", "MPO", "WEBP"):
            return
        info = picture.info
        if isinstance(exif := info.get("exif"), bytes) and len(exif) <= MOST:
            yield from _of_exif(exif)
        if isinstance(xmp := info.get("xmp"), bytes) and len(xmp) <= MOST:
            yield from _of_xmp(_decoded(xmp))
        if isinstance(comment := info.get("comment"), bytes) and len(comment) <= MOST:
            yield "comment", _decoded(comment)


def _of_alpha(data: bytes) -> Iterator[tuple[str, str]]:
    """What NovelAI, and others after it, write into the last bit of alpha, column after column."""
    with suppress(Exception), opened(data) as picture:
        width, height = picture.size
        if picture.mode != "RGBA" or width * height > _MOST_ALPHA:
            return
        bits = (np.asarray(picture)[..., 3] & 1).T.reshape(-1)
        mark = np.packbits(bits[: 15 * 8]).tobytes()
        if mark not in _STEALTH:
            return
        length = int.from_bytes(np.packbits(bits[15 * 8 : 19 * 8]).tobytes(), "big")
        if length > min(8 * MOST, len(bits)):
            return
        held = np.packbits(bits[19 * 8 : 19 * 8 + length]).tobytes()
        if _STEALTH[mark]:
            held = gzip.GzipFile(fileobj=io.BytesIO(held)).read(MOST)
        yield HIDDEN, _decoded(held)


def texts_of(data: bytes) -> dict[str, str]:
    """The texts in an image file, the first of each name.

    Args:
        data: the file, or its beginning: what is cut off is not searched. Texts of a WebP may be at
            its end.
    """
    found: dict[str, str] = {}
    for name, text in _of_png(data) if data.startswith(PNG_MAGIC) else _of_others(data):
        found.setdefault(name, text)
    if not found:
        found.update(_of_alpha(data))
    return found
