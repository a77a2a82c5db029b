"""Bytes of an image file in, uint8 RGB pixels out, or one reason why not; and pixels in, bytes out.

Everything that comes from outside is distrusted: sizes are read from headers before any pixel is
decoded, and whatever a decoder raises becomes a `BadPicture` with a reason. Where Pillow is known
to lose something in silence (16-bit samples, grey transparency, PNG checksums) the work is done
here.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.faults import let_through
from pipeline.threads import cores

RGB = npt.NDArray[np.uint8]
"""An image: uint8, H x W x 3, red green blue, 0 to 255."""


CAP_DB = 100.0
"""What equal images have in dB, since they have no finite number."""


class BadPicture(Exception):
    """One image that cannot be used; the text is the reason and is the same every time."""


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
        rgb: uint8, H x W x 3; may be read-only. Colour values as stored: a profile of an RGB
            image is not applied.
        lossless_png: the bytes are already an 8-bit RGB PNG that shows exactly `rgb`.
        plain: the bytes are a PNG, or a WebP without loss, of 8-bit RGB that shows exactly `rgb`.
        note: what was lost or decided on the way; None where nothing was.
    """

    rgb: RGB
    lossless_png: bool
    plain: bool
    note: str | None


Opener = Callable[[IO[bytes]], ImageFile.ImageFile]

# The classes are called directly. `Image.open` would also try formats that start programs
# (EPS), would warn at a global pixel limit, and calls a damaged image "not identified".
_OPENERS: dict[str, Opener] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def kind_of(data: bytes) -> str:
    """What an image file is, by its first 64 bytes.

    Raises:
        BadPicture: it is none that can be decoded here.
    """
    if data[:8] == PNG_MAGIC:
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[4:8] == b"ftyp" and (b"avif" in data[8:64] or b"avis" in data[8:64]):
        return "AVIF"
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        raise BadPicture("JPEG XL: Pillow cannot decode it; convert it to PNG")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        raise BadPicture("HEIC: Pillow cannot decode it; convert it to PNG")
    if data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or data[:4] == b"\xff\x4f\xff\x51":
        raise BadPicture("JPEG 2000: not read here; convert it to PNG")
    if re.match(rb"P[1-7]\s", data) or data[:4] in (b"8BPS", b"\0\0\1\0", b"qoif", b"DDS "):
        raise BadPicture("PNM, PSD, ICO, QOI or DDS: not read here; convert it to PNG")
    if not data:
        raise BadPicture("empty")
    raise BadPicture("not a picture")


def opened(data: bytes) -> ImageFile.ImageFile:
    """A file opened by its class, its header read and no pixel; raises what `decode` explains."""
    return _OPENERS[kind_of(data)](io.BytesIO(data))


def _check_pixels(size: tuple[int, int] | None, most: int) -> None:
    if size is not None and size[0] * size[1] > most:
        raise BadPicture(f"too large: {size[0]}x{size[1]} pixels > {most}")


def _early_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height where they must be known before Pillow sees the file, else None.

    A WebP's canvas is allocated as soon as it is opened. A PNG's size is checked first, so that a
    bomb is reported as one and not as damaged.
    """
    if kind == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if kind == "WEBP":
        if data[12:16] == b"VP8X" and len(data) >= 30:
            return (
                int.from_bytes(data[24:27], "little") + 1,
                int.from_bytes(data[27:30], "little") + 1,
            )
        if data[12:16] == b"VP8L" and len(data) >= 25:
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if data[12:16] == b"VP8 " and len(data) >= 30:
            return (
                int.from_bytes(data[26:28], "little") & 0x3FFF,
                int.from_bytes(data[28:30], "little") & 0x3FFF,
            )
    return None


def png_chunks(data: bytes, check: bool) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of every chunk up to IEND; with `check`, checksums are verified.

    Pillow checks neither the checksums of pixel data nor that IEND is there.
    """
    view, at = memoryview(data), len(PNG_MAGIC)
    while True:
        if at + 8 > len(data):
            raise BadPicture("truncated")
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadPicture("truncated")
        if check and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadPicture(f"damaged: wrong checksum in the PNG chunk {kind!r}")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4


@dataclass(frozen=True)
class _PngHeader:
    bits: int = 0
    rgb: bool = False
    alpha: bool = False  # a tRNS chunk
    animated: bool = False  # an acTL chunk, even of one frame


def _png_header(data: bytes) -> _PngHeader:
    chunks: dict[bytes, bytes] = {}
    for number, (kind, content) in enumerate(png_chunks(data, check=True)):
        if (kind == b"IHDR") != (number == 0):  # of two, readers do not take the same one
            raise BadPicture("damaged: a PNG must have one header, first")
        if kind in (b"IHDR", b"tRNS", b"acTL"):
            chunks.setdefault(kind, bytes(content[:13]))
    header = chunks.get(b"IHDR", b"")
    if len(header) < 13:
        raise BadPicture("damaged: the PNG header is cut short")
    frames = int.from_bytes(chunks.get(b"acTL", b"")[:4], "big")
    if frames > 1:
        raise BadPicture(f"animated: {frames} frames")
    return _PngHeader(header[8], header[9] == 2, b"tRNS" in chunks, b"acTL" in chunks)


def _plain_webp(data: bytes) -> bool:
    """Whether a WebP is its pixels alone: one lossless image, no alpha, nothing before or after."""
    alone = data[12:16] == b"VP8L" and int.from_bytes(data[4:8], "little") + 8 == len(data)
    # Of the 32 bits after the signature 28 are the size, then one is of alpha.
    return alone and not data[24] & 0x10


# How an array is turned for each EXIF orientation; 5 to 8 swap width and height.
_TURNS: dict[int, Callable[[RGB], RGB]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def _orientation(exif: Callable[[], Image.Exif]) -> int:
    try:
        value = exif().get(0x0112, 1)
    except Exception:  # damaged EXIF of a sound image; Pillow raises nearly anything here
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


# Pillow has no RGB of 16 bits: it keeps the high byte, that is, truncates. Unpacked in the
# other byte order the same data give the low byte.
_LOW_BYTE = {
    f"{mode};16{order}": f"{mode};16{'B' if order != 'B' else 'L'}"
    for mode in ("RGB", "RGBA")
    for order in "LBN"  # N, native: little-endian wherever this runs, as Arrow assumes too
}


def _raw_mode(picture: ImageFile.ImageFile) -> str:
    args = picture.tile[0].args if picture.tile else None
    return str(args[0] if isinstance(args, tuple) and args else args)


def _set_raw_mode(picture: ImageFile.ImageFile, mode: str) -> None:
    picture.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile in picture.tile
    ]


def _samples16(
    picture: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]
) -> npt.NDArray[np.uint16] | None:
    """All 16 bits of a colour image, H x W x 3 or 4; None where Pillow's mode holds them all."""
    mode = _raw_mode(picture)
    if mode == "LA;16B":
        # Grey and alpha of 16 bits are as wide as RGBA of 8: read the four bytes as they stand.
        _set_raw_mode(picture, "RGBA")
        pairs = np.asarray(picture).astype(np.uint16)
        both: npt.NDArray[np.uint16] = pairs[..., ::2] << np.uint16(8) | pairs[..., 1::2]
        return both[..., [0, 0, 0, 1]]
    if mode not in _LOW_BYTE:
        return None
    with again() as other:
        _set_raw_mode(other, _LOW_BYTE[mode])
        low = np.asarray(other)
    deep: npt.NDArray[np.uint16] = np.asarray(picture).astype(np.uint16) << np.uint16(8) | low
    return deep


def _to_8_bits(samples: npt.NDArray[np.uint16], top: int) -> RGB:
    """Samples of 0 to `top`, rounded to 0 to 255."""
    table: RGB = ((np.arange(65536) * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)
    return table[samples]


def _over_white(rgba: RGB) -> tuple[RGB, str | None]:
    """Drop an opaque alpha channel; else lay the image over white, and note it.

    Programs hide texts in the last bit of alpha: 254 is opaque too, and changes no colour.
    """
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() >= 254:
        return rgba[..., :3], None
    # At most 255 * 255 + 127: it fits.
    mixed = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8), "transparent pixels laid over white"


def _cmyk(picture: Image.Image) -> tuple[RGB, str]:
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                picture,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
            if converted is not None:
                return np.asarray(converted), "CMYK converted with its profile"
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # no profile, or one of another colour space: the plain conversion
    return np.asarray(picture.convert("RGB")), "CMYK converted without a profile"


def _rgb(
    picture: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile], grey_bits: int
) -> tuple[RGB, str | None]:
    key = picture.info.get("transparency")
    deep = _samples16(picture, again)
    if deep is None and picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(258, (16,))
        samples = np.asarray(picture).astype(np.uint16)  # whatever its byte order
        grey = _to_8_bits(samples, 4095 if bits == (12,) else 65535)
        alpha = samples != key if isinstance(key, int) else np.ones(samples.shape, bool)
        return _over_white(np.dstack([grey, grey, grey, np.uint8(255) * alpha]))
    if deep is not None:
        eight = _to_8_bits(deep, 65535)
        if deep.shape[2] == 3 and isinstance(key, tuple):
            alpha = (deep != np.array(key, np.uint16)).any(axis=2)
            eight = np.dstack([eight, np.uint8(255) * alpha])
        return _over_white(eight) if eight.shape[2] == 4 else (eight, None)
    cut = "16-bit samples cut to 8" if ";16" in _raw_mode(picture) else None
    picture.load()
    if picture.mode == "CMYK":
        rgb, how = _cmyk(picture)
        return rgb, f"{how}; {cut}" if cut else how
    if picture.mode in ("I", "F", "LAB"):
        raise BadPicture(f"unsupported: {picture.mode} samples have no fixed range; use 8 bits")
    if isinstance(key, int) and picture.mode == "L" and grey_bits in (2, 4):
        # Pillow scales such pixels to 0..255 but not the value that means transparent.
        picture.info["transparency"] = key * (255 // (2**grey_bits - 1))
    if picture.has_transparency_data:
        rgb, flat = _over_white(np.asarray(picture.convert("RGBA")))
        return rgb, "; ".join(part for part in (flat, cut) if part) or None
    return np.asarray(picture.convert("RGB")), cut


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too large: " + str(error).partition(",")[0]
    if isinstance(error, MemoryError):
        return "too large: out of memory"
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>|0x[0-9a-f]{6,}", "", str(error)).strip()
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "truncated"
    return f"damaged: {text[:200] or type(error).__name__}"


def decode(data: bytes, max_pixels: int) -> Picture:
    """Decode one image file: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.

    EXIF orientation is applied. Grey, palette and CMYK become RGB (CMYK through its profile),
    16-bit samples are rounded to 8, transparency is laid over white.

    Args:
        data: the whole file.
        max_pixels: an image with more, by its header, is refused before any is decoded.

    Raises:
        BadPicture: `empty`, `not a picture`, `truncated`, `too large: …`, `animated: …`,
            `several pages: …`, `unsupported: …` or `damaged: …`.
        MachineFault: memory is short. Never anything else.
    """
    try:
        return _decode(data, max_pixels)
    except BadPicture:
        raise
    except Exception as error:  # Pillow promises no closed set of exceptions for damaged files
        let_through(error, "decoding an image")
        raise BadPicture(_reason(error)) from error


def _decode(data: bytes, max_pixels: int) -> Picture:
    kind = kind_of(data)
    _check_pixels(_early_size(data, kind), max_pixels)
    png = _png_header(data) if kind == "PNG" else _PngHeader()
    if kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadPicture("truncated")

    def opened() -> ImageFile.ImageFile:
        return _OPENERS[kind](io.BytesIO(data))

    with opened() as picture:
        _check_pixels(picture.size, max_pixels)
        frames = 1 if kind == "PNG" else int(getattr(picture, "n_frames", 1))
        if frames > 1:
            raise BadPicture(
                f"several pages: {frames}" if kind == "TIFF" else f"animated: {frames} frames"
            )
        rgb, note = _rgb(picture, opened, png.bits)
        # After loading: EXIF may follow the pixels, and a TIFF is turned by Pillow itself.
        orientation = _orientation(picture.getexif)
    height, width = rgb.shape[:2]
    plain_png = png.bits == 8 and png.rgb and not png.alpha and not png.animated
    return Picture(
        rgb=np.ascontiguousarray(_TURNS[orientation](rgb)),
        lossless_png=plain_png
        and orientation == 1
        and len(data) <= 4 * width * height + 65536,  # no megabytes of something else inside
        plain=_plain_webp(data) if kind == "WEBP" else plain_png and orientation == 1,
        note=note,
    )


def open_at_once(path: str, flags: int) -> int:
    # Opening a named pipe that nobody writes to would wait for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def image_size(data_or_path: bytes | str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height as shown (EXIF orientation 5 to 8 swaps them), read from the header.

    EXIF that comes after the pixels of a PNG (allowed, rare) is not read.

    Returns:
        None where it is not an image or the header is damaged.
    """
    try:
        with (
            io.BytesIO(data_or_path)
            if isinstance(data_or_path, bytes)
            else open(data_or_path, "rb", opener=open_at_once) as file
        ):
            kind = kind_of(file.read(64))
            file.seek(0)
            with _OPENERS[kind](file) as picture:
                width, height = picture.size
                # Not the PNG's own getexif, which decodes the pixels first.
                orientation = _orientation(lambda: Image.Image.getexif(picture))
    except Exception:  # as in `decode`; there is no reason to give here
        return None
    swapped = orientation >= 5 and kind != "TIFF"  # Pillow gives a TIFF's size as shown
    return (height, width) if swapped else (width, height)


PngEffort = Literal["fast", "small"]


def decode_threads(wanted: int | None) -> int:
    """Threads that decode or encode images: as requested, or one for each core, up to 8."""
    return wanted or min(8, cores())


def png_bytes(rgb: RGB, effort: PngEffort = "fast") -> bytes:
    """Encode an image (uint8 HxWx3) as PNG without metadata.

    Args:
        effort: `fast` looks for runs only (Z_RLE): on AI images 2 % more bytes than zlib's
            level 6, at 3.3 times its speed. `small` is level 9: 1.5 % fewer, a third of the speed.
    """
    out = io.BytesIO()
    options = {"compress_type": zlib.Z_RLE} if effort == "fast" else {"compress_level": 9}
    Image.fromarray(rgb).save(out, "PNG", **options)
    return out.getvalue()


def webp_bytes(rgb: RGB, method: int = 1) -> bytes:
    """Encode an image (uint8 HxWx3, no side above `WEBP_SIDE`) as WebP, without loss or metadata.

    Args:
        method: of libwebp. On real AI images 0 makes 19 % fewer bytes than `png_bytes` at 1.8
            times its speed, 1 makes 24 % fewer at half of it (tests/perf/README.md).
    """
    out = io.BytesIO()
    # Without loss, `quality` is how long libwebp searches for repetitions: 20 is its own preset
    # for method 1. More finds nothing in such images and takes up to twice the time.
    Image.fromarray(rgb).save(out, "WEBP", lossless=True, quality=20, method=method)
    return out.getvalue()


Format = Literal["webp", "png"]
"""What a stored image is in, without loss."""
WEBP_SIDE = 16_383
"""The most pixels of a side that a WebP can have; larger images are PNG."""
_SUFFIXES = {"WEBP": ".webp", "PNG": ".png"}


@dataclass(frozen=True)
class Container:
    """How images are stored.

    Attributes:
        format: of images that a WebP can hold; others are PNG.
        png: effort of PNG, see `png_bytes`.
        method: of WebP, see `webp_bytes`.
    """

    format: Format = "webp"
    png: PngEffort = "fast"
    method: int = 1


def contained(rgb: RGB, container: Container) -> bytes:
    """Encode an image (uint8 HxWx3) without loss or metadata."""
    if container.format == "png" or max(rgb.shape[:2]) > WEBP_SIDE:
        return png_bytes(rgb, container.png)
    return webp_bytes(rgb, container.method)


def named(image_id: str, data: bytes) -> dict[str, Any]:
    """An `image` of the tables: a PNG or WebP, and a name whose ending is that of its content."""
    return {"bytes": data, "path": image_id + _SUFFIXES[kind_of(data)]}


def stored(image: Mapping[str, Any], max_pixels: int) -> RGB:
    """Pixels of an `image` of the tables (uint8 HxWx3), which must be as `contained` makes it.

    Args:
        image: `bytes`, and `path`, whose ending must be that of the content; None: no name.

    Raises:
        BadPicture: as `decode`; or the file has loss, alpha, metadata of a WebP or another format.
        MachineFault: memory is short.
    """
    data, path = image["bytes"], image["path"]
    picture = decode(data, max_pixels)
    kind = kind_of(data)
    if not picture.plain:
        raise BadPicture(f"a {kind} that is not 8-bit RGB alone, without loss")
    if path is not None and not path.lower().endswith(_SUFFIXES[kind]):
        raise BadPicture(f"its content is {kind}, but its name is {path[-60:]!r}")
    return picture.rgb


def pixels_sha256(rgb: RGB) -> str:
    """sha256 (hex) of an image (uint8, H x W x 3, 0 to 255), row by row."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), `CAP_DB` at most: the one formula of PSNR.

    Args:
        signal: square of the peak: 255² of uint8, 1 of values from 0 to 1; or so many of them.
        noise: mean of the squared differences; or their sum.
    """
    return min(10 * math.log10(signal / noise), CAP_DB) if noise else CAP_DB


def squared_error(one: RGB, other: RGB) -> int:
    """Sum of the squared differences of two images (uint8, H x W x 3, of one size); exact."""
    difference = one.astype(np.int32) - other
    return int(np.einsum("ijk,ijk->", difference, difference, dtype=np.int64))
