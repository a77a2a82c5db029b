"""A header and coded tiles in, the bytes of a file out, and back.

    magic     4   "AIGI"
    version   1   2, or 3 where there is a fraction of a quality; files of version 1 have no
                  quality, and are read; 4: lossless, see below
    checksum  4   CRC-32 of all that follows
    model     1+  length and name, ASCII
    weights   4   first bytes of the model's fingerprint
    quality   1   from 1, the lowest rate of the model
    fraction  1   of version 3 alone: 1 to 199, in steps of 1/200, towards the next quality
    width     v   pixels            v: a varint, 7 bits a byte, low ones first, at most 4 bytes
    height    v
    tile      v   side of a tile in steps of 64 pixels; 0: the picture is one tile
    prompt    v   2 * bytes of UTF-8 + (1 if they follow as they are); else if there are any:
              v   bytes of the coded prompt, and the coded prompt
    tiles     v   bytes of the tile, and the tile, row by row; of the last one only the tile

Numbers of more than one byte are big-endian. A tile is what `pipeline.learned.coding.Write` makes.
The width and height that code a picture are those of the picture rounded up to multiples of 64; all
tiles have the full side but the last of a row or column.

A lossless file has no model. After its checksum it has width, height, and what
`pipeline.learned.lossless` makes of the picture.

Everything in the file counts as rate.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass

from pipeline import AigiError
from pipeline.learned.fields import Reader, read_prompt, varint
from pipeline.learned.fields import pack_prompt as pack_prompt
from pipeline.learned.range_coder import DamagedStream
from pipeline.learned.sizes import NAME

MAGIC, VERSION, WITHOUT_QUALITY, WITH_FRACTION, LOSSLESS = b"AIGI", 2, 1, 3, 4
QUALITY_STEPS = 200
"""Between two qualities: every number with two digits after the point is one of them."""
START = 9
STRIDE = 64
MOST_TILE_PIXELS = 1536 * 1536
"""Of one tile: a decoder must hold the features of all of them at once."""
MOST_PIXELS = 1 << 27
"""Of a picture, unless a caller allows more."""


@dataclass(frozen=True)
class Header:
    """What stands before the tiles.

    Attributes:
        model: name of the model that coded it.
        weights: 4 bytes of its fingerprint.
        quality: of the model's, from 1, the lowest rate; a multiple of 1/200.
        width, height: of the picture, in pixels.
        tile: side of a tile in pixels, a multiple of 64; 0: one tile.
        prompt: empty where there is none, or where the model does not read it.
    """

    model: str
    weights: bytes
    quality: float
    width: int
    height: int
    tile: int
    prompt: str


@dataclass(frozen=True)
class Area:
    """A rectangle of the padded picture, in pixels; all four are multiples of 64."""

    top: int
    bottom: int
    left: int
    right: int


def padded(size: int) -> int:
    """A width or height rounded up to a multiple of 64."""
    return -(-size // STRIDE) * STRIDE


def areas(width: int, height: int, tile: int) -> list[Area]:
    """The tiles of a picture, row by row.

    Raises:
        DamagedStream: a tile would be larger than the format allows.
    """
    rows, columns = padded(height), padded(width)
    tall, wide = min(tile or rows, rows), min(tile or columns, columns)
    if tall * wide > MOST_TILE_PIXELS:
        raise DamagedStream(
            f"bitstream: a tile of {wide}x{tall} pixels; at most {MOST_TILE_PIXELS:,} pixels are "
            "allowed. Code large pictures with smaller tiles."
        )
    return [
        Area(top, min(top + tall, rows), left, min(left + wide, columns))
        for top in range(0, rows, tall)
        for left in range(0, columns, wide)
    ]


def quality_steps(quality: float) -> int:
    """A quality in steps of 1/200.

    Raises:
        AigiError: it lies between two of them.
    """
    steps = round(quality * QUALITY_STEPS) if math.isfinite(quality) else -1
    if not math.isclose(steps / QUALITY_STEPS, quality, abs_tol=1e-9):
        raise AigiError(
            f"quality: {quality:.9g}: a file has qualities in steps of {1 / QUALITY_STEPS:g}. "
            f"Give {steps / QUALITY_STEPS:g}, which is the nearest."
        )
    return steps


def in_steps(steps: int) -> float:
    """The quality of so many steps of 1/200; a whole one is an int."""
    return steps / QUALITY_STEPS if steps % QUALITY_STEPS else steps // QUALITY_STEPS


def seal(body: bytes, version: int = VERSION) -> bytes:
    """A file of all that stands after the checksum."""
    return MAGIC + bytes([version]) + zlib.crc32(body).to_bytes(4, "big") + body


def pack(header: Header, tiles: list[bytes]) -> bytes:
    """The bytes of a file."""
    name = header.model.encode("ascii")
    whole, fraction = divmod(quality_steps(header.quality), QUALITY_STEPS)
    quality = bytes([whole, fraction]) if fraction else bytes([whole])
    parts = [bytes([len(name)]), name, header.weights, quality]
    parts += [varint(n) for n in (header.width, header.height, header.tile // STRIDE)]
    parts.append(pack_prompt(header.prompt))
    for tile in tiles[:-1]:
        parts += [varint(len(tile)), tile]
    version = WITH_FRACTION if fraction else VERSION
    return seal(b"".join([*parts, tiles[-1]]), version)


def pack_lossless(width: int, height: int, content: bytes) -> bytes:
    """The bytes of a lossless file."""
    return seal(varint(width) + varint(height) + content, LOSSLESS)


def is_lossless(data: bytes) -> bool:
    """Whether these are the bytes of a lossless file, by their first ones."""
    return data[: len(MAGIC) + 1] == MAGIC + bytes([LOSSLESS])


def unpack_lossless(data: bytes, max_pixels: int = MOST_PIXELS) -> tuple[int, int, bytes]:
    """Width, height and content of a lossless file; the content is not looked at.

    Raises:
        DamagedStream: as `unpack`.
    """
    width, height, reader = _unpack_lossless(data)
    if width * height > max_pixels:
        raise _too_many(width, height, width * height, max_pixels)
    return width, height, reader.bytes(len(data) - reader.at, "pixels")


def _unpack_lossless(data: bytes) -> tuple[int, int, Reader]:
    reader = _opened(data, (LOSSLESS,))
    width, height = reader.varint("header"), reader.varint("header")
    if not width or not height:
        raise DamagedStream(f"bitstream: claims {width}x{height} pixels. Get the file again.")
    return width, height, reader


def _too_many(width: int, height: int, padded: int, most: int) -> DamagedStream:
    more = f" ({padded:,} when padded)" if padded != width * height else f" ({padded:,})"
    return DamagedStream(
        f"bitstream: claims {width}x{height} pixels{more}; at most {most:,} are decoded. Raise "
        "max_pixels if the file is right."
    )


def unpack(data: bytes, max_pixels: int = MOST_PIXELS) -> tuple[Header, list[bytes]]:
    """The header and the tiles of a file that a network coded; their content is not looked at.

    Raises:
        DamagedStream: it is no such file, cut short, changed, or claims more than is allowed.
    """
    header, reader = _unpack_header(data)
    width, height = header.width, header.height
    # What is decoded is padded: a line one pixel wide takes the memory of 64.
    whole = padded(width) * padded(height)
    if width * height > max_pixels or whole > max(max_pixels, MOST_PIXELS):
        raise _too_many(width, height, whole, max_pixels)
    # Before any list of them: a tile takes bytes, so a file cannot have many more than it has.
    side = header.tile or max(padded(width), padded(height))
    if -(-width // side) * -(-height // side) > len(data):
        raise DamagedStream("bitstream: cut short: it has fewer bytes than tiles.")
    places = areas(width, height, header.tile)
    tiles = [reader.bytes(reader.varint("tiles"), "tiles") for _ in places[:-1]]
    tiles.append(reader.bytes(len(data) - reader.at, "tiles"))
    return header, tiles


def _opened(data: bytes, versions: Collection[int]) -> Reader:
    """What stands after the checksum, once that is right.

    Args:
        versions: that the caller reads.
    """
    if data[:4] != MAGIC:
        raise DamagedStream("bitstream: not an aigi file: it does not start with AIGI.")
    if len(data) < START:
        raise DamagedStream("bitstream: cut short. Get the file again.")
    if data[4] not in versions:
        kind = "lossless" if data[4] == LOSSLESS else f"version {data[4]}"
        raise DamagedStream(
            f"bitstream: {kind}; this reads versions {', '.join(map(str, sorted(versions)))}. Get "
            "a newer aigi, or the file again."
        )
    if zlib.crc32(data[START:]) != int.from_bytes(data[5:START], "big"):
        raise DamagedStream("bitstream: damaged or cut short: wrong checksum. Get the file again.")
    return Reader(data, START)


def _unpack_header(data: bytes) -> tuple[Header, Reader]:
    reader = _opened(data, (VERSION, WITHOUT_QUALITY, WITH_FRACTION))
    (length,) = reader.bytes(1, "header")
    name = reader.bytes(length, "header").decode("ascii", "replace")
    if not re.fullmatch(NAME, name):
        raise DamagedStream("bitstream: the name of its model is none. Get the file again.")
    weights = reader.bytes(4, "header")
    (quality,) = b"\1" if data[4] == WITHOUT_QUALITY else reader.bytes(1, "header")
    if not quality:
        raise DamagedStream("bitstream: its quality is 0. Get the file again.")
    fraction = 0
    if data[4] == WITH_FRACTION:
        (fraction,) = reader.bytes(1, "header")
        if not 0 < fraction < QUALITY_STEPS:  # 0 has a shorter way to be written
            raise DamagedStream(
                f"bitstream: claims {fraction} of {QUALITY_STEPS} steps between two qualities. Get "
                "the file again."
            )
    width, height, tile = (reader.varint("header") for _ in range(3))
    if not width or not height:
        raise DamagedStream(f"bitstream: claims {width}x{height} pixels. Get the file again.")
    prompt = read_prompt(reader)
    exactly = in_steps(quality * QUALITY_STEPS + fraction)
    return Header(name, weights, exactly, width, height, tile * STRIDE, prompt), reader


@dataclass(frozen=True)
class Rates:
    """Bits a pixel of a file: of all of it, and without the prompt's bytes."""

    bpp: float
    bpp_without_prompt: float


def rates(data: bytes) -> Rates:
    """Rates of a file.

    Raises:
        DamagedStream: it is none.
    """
    if is_lossless(data):
        width, height, _ = _unpack_lossless(data)
        bpp = 8 * len(data) / (width * height)
        return Rates(bpp, bpp)
    header, _ = _unpack_header(data)
    pixels = header.width * header.height
    without = len(data) - prompt_bytes(data)
    return Rates(8 * len(data) / pixels, 8 * without / pixels)


def prompt_bytes(data: bytes) -> int:
    """How many bytes of a file hold the prompt.

    Raises:
        DamagedStream: it is none.
    """
    if is_lossless(data):
        return 0
    return len(pack_prompt(_unpack_header(data)[0].prompt))
