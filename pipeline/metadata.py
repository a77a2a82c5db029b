"""An image file in; what it says beside its pixels, and the same PNG without that, out.

A text-to-image front end writes its whole graph into a PNG, keys of web services included; a camera
writes where it was. None of that is needed to show the pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

from pipeline.pixels import PNG_MAGIC, opened, png_chunks

_SHOWING = {
    b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8,
    b"sBIT": 3, b"bKGD": 6, b"pHYs": 9,
}  # fmt: skip
"""Chunks that say how to show an RGB image, and their lengths: numbers, with room for nothing."""
_PIXELS = (b"IHDR", b"IDAT", b"IEND")
_PNG_KINDS = {
    b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"eXIf": "EXIF", b"tIME": "time",
    b"iCCP": "colour profile",
}  # fmt: skip
_OTHER = "other data"
_XMP = b"XML:com.adobe.xmp"
_GPS = 0x8825

PROFILE_TEXT = "text of the colour profile"
_PROFILE_NAME = b"icc"
_MOST_PROFILE = 4 << 20  # bytes of a profile; printers' tables reach 2 MB
_COLOUR_TAGS = (
    b"wtpt", b"bkpt", b"chad", b"lumi", b"cicp", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC",
    b"bTRC", b"kTRC", b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2",
)  # fmt: skip
_COLOUR_TYPES = (b"XYZ ", b"curv", b"para", b"sf32", b"cicp", b"mft1", b"mft2", b"mAB ", b"mBA ")

LEFT_OUT = "left out: "
"""How the part of a `note` begins that lists kinds of metadata."""


def noted(note: str | None, kinds: tuple[str, ...]) -> str | None:
    """A note, and after it the kinds of metadata that were left out; None: nothing to note."""
    parts = [note] if note else []
    if kinds:
        parts.append(LEFT_OUT + ", ".join(kinds))
    return "; ".join(parts) or None


def kinds_of(note: str | None) -> tuple[str, ...]:
    """The kinds that `noted` was given."""
    _, marked, kinds = (note or "").rpartition(LEFT_OUT)
    return tuple(kinds.split(", ")) if marked else ()


def _has_place(exif: bytes) -> bool:
    """Whether EXIF says where an image was taken."""
    with suppress(Exception):  # damaged EXIF: Pillow raises nearly anything
        found = Image.Exif()
        found.load(exif if exif.startswith(b"Exif\0\0") else b"Exif\0\0" + exif)
        return bool(found.get_ifd(_GPS))
    return False


def _of_exif(exif: bytes) -> Iterator[str]:
    yield "EXIF"
    if _has_place(exif):
        yield "GPS"


def _of_chunk(kind: bytes, content: bytes | memoryview) -> Iterator[str]:
    """What a chunk of a PNG says beside the pixels."""
    if kind == b"eXIf":
        yield from _of_exif(bytes(content))
    elif kind == b"iTXt" and content[: len(_XMP)] == _XMP:
        yield "XMP"
    elif kind not in _PIXELS and _SHOWING.get(kind) != len(content):
        yield _PNG_KINDS.get(kind, _OTHER)


def _of_png(data: bytes) -> Iterator[str]:
    length = len(PNG_MAGIC)
    for kind, content in png_chunks(data, check=False):
        length += 12 + len(content)
        # These decide the pixels of other than RGB images, or have other lengths there.
        if kind not in (b"PLTE", b"tRNS", b"hIST", b"sBIT", b"bKGD", b"acTL", b"fcTL"):
            yield from _of_chunk(kind, content)
    if length < len(data):
        yield _OTHER


def _of_jpeg(segments: list[tuple[str, bytes]]) -> Iterator[str]:
    for name, content in segments:
        if name == "COM":
            yield "comment"
        elif name == "APP1" and content.startswith(b"Exif\0"):
            yield from _of_exif(content)
        elif name == "APP1" and b"ns.adobe.com/x" in content[:40]:
            yield "XMP"
        elif name == "APP2" and content.startswith(b"ICC_PROFILE\0"):
            yield "colour profile"
        elif name == "APP13":
            yield "IPTC"
        elif not (name == "APP0" and content.startswith(b"JFIF\0")) and name != "APP14":
            yield _OTHER


_TIFF_TEXT = (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
_TIFF_KINDS = {700: "XMP", 33723: "IPTC", 34377: "IPTC", 34665: "EXIF", _GPS: "GPS",
               34675: "colour profile"}  # fmt: skip


def _of_tiff(tags: list[int]) -> Iterator[str]:
    for tag in tags:
        if tag in _TIFF_KINDS:
            yield _TIFF_KINDS[tag]
        elif tag in _TIFF_TEXT:
            yield "text"
        elif tag >= 32768:
            yield _OTHER


def _of_info(info: dict[str, object]) -> Iterator[str]:
    """WebP, AVIF, GIF and BMP, as Pillow reads them."""
    if isinstance(exif := info.get("exif"), bytes) and exif:
        yield from _of_exif(exif)
    for key, kind in (("xmp", "XMP"), ("icc_profile", "colour profile"), ("comment", "comment")):
        if info.get(key):
            yield kind
    if "extension" in info:
        yield _OTHER


def beside_pixels(data: bytes) -> tuple[str, ...]:
    """Kinds of what an image file says beside its pixels, sorted: comment, EXIF, GPS, text, ….

    Args:
        data: a whole file that `pixels.decode` takes.
    """
    kinds: set[str] = set()
    with suppress(Exception):  # what was found before the damage stands
        if data.startswith(PNG_MAGIC):
            kinds.update(_of_png(data))
        else:
            with opened(data) as picture:
                if picture.format in ("JPEG", "MPO"):
                    kinds.update(_of_jpeg(getattr(picture, "applist", [])))
                elif picture.format == "TIFF":
                    kinds.update(_of_tiff(list(getattr(picture, "tag_v2", {}))))
                else:
                    kinds.update(_of_info({str(key): value for key, value in picture.info.items()}))
    return tuple(sorted(kinds, key=str.lower))


def bare_png(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """An 8-bit RGB PNG with its pixels and what is needed to show them; the kinds that are gone.

    The compressed pixels are copied as they are. Of a colour profile, the colours stay and its
    texts go. A file with nothing to leave out is returned as it is.

    Args:
        data: a PNG that `pixels.decode` found to be `lossless_png`, its checksums checked.
    """
    parts, length = [PNG_MAGIC], len(PNG_MAGIC)
    kinds: set[str] = set()
    for kind, view in png_chunks(data, check=True):
        length += 12 + len(view)
        content = bytes(view)
        kept: bytes | None = content
        if kind == b"iCCP":
            kept = _bare_profile_chunk(content)
            if kept != content:
                kinds.add("colour profile" if kept is None else PROFILE_TEXT)
        elif gone := set(_of_chunk(kind, content)):
            kinds |= gone
            kept = None
        if kept is not None:
            checksum = zlib.crc32(kept, zlib.crc32(kind))
            parts += [struct.pack(">I", len(kept)), kind, kept, struct.pack(">I", checksum)]
    if length < len(data):
        kinds.add(_OTHER)
    bare = b"".join(parts) if kinds else data
    return bare, tuple(sorted(kinds, key=str.lower))


def _bare_profile_chunk(content: bytes) -> bytes | None:
    name, _, rest = content.partition(b"\0")
    packed = zlib.decompressobj()
    try:
        profile = packed.decompress(rest[1:], _MOST_PROFILE)
    except zlib.error:
        return None
    bare = bare_profile(profile)
    if bare is None:
        return None
    if profile == bare and name == _PROFILE_NAME and packed.eof and not packed.unused_data:
        return content
    return _PROFILE_NAME + b"\0\0" + zlib.compress(bare, 9)


def _words(kind: bytes, text: str, version: int) -> bytes:
    """A tag of text, of which a profile must have two."""
    if version >= 4:
        wide = text.encode("utf-16-be")
        return b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", len(wide), 28) + wide
    plain = text.encode() + b"\0"
    if kind == b"cprt":
        return b"text\0\0\0\0" + plain
    return b"desc" + struct.pack(">4xI", len(plain)) + plain + bytes(4 + 4 + 2 + 1 + 67)


def bare_profile(profile: bytes) -> bytes | None:
    """An ICC profile with what decides colours alone; None where it is not one that we can read.

    Names, dates, descriptions, comments and private tags go.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 100 or 132 + 12 * count > len(profile):
        return None
    header = bytearray(profile[:128])
    # Maker of the program, date, platform, maker, model, creator, hash, and what is reserved.
    for start, end in ((4, 8), (40, 44), (48, 56), (80, 128)):
        header[start:end] = bytes(end - start)
    header[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    tags = {kind: _words(kind, "none", profile[8]) for kind in (b"desc", b"cprt")}
    for number in range(count):
        kind, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if kind not in _COLOUR_TAGS:
            continue
        data = profile[start : start + size]
        if len(data) != size or data[:4] not in _COLOUR_TYPES:
            return None
        tags[kind] = data
    places: dict[bytes, int] = {}
    body, table, at = bytearray(), bytearray(struct.pack(">I", len(tags))), 132 + 12 * len(tags)
    for kind, data in tags.items():
        if data not in places:  # curves of red, green and blue are often one
            places[data] = at + len(body)
            body += data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", kind, places[data], len(data))
    whole = bytes(header + table + body)
    return struct.pack(">I", len(whole)) + whole[4:]
