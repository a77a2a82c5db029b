"""An image in, its lossless file out, and back: for images that a network codes dearly.

What is drawn (one colour, stripes, text, a screenshot) often costs less without any loss than with
the loss of a network, which has learned other images. Two forms, told apart by the first byte:

    0   the pixels as they are, row by row, red green blue
    1   the VP8L stream of a lossless WebP, without the container around it

A decoder of WebP has no choice (RFC 9649), so these files decode to the same pixels everywhere.
They need no model.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.learned.bitstream import MOST_PIXELS, pack_lossless, unpack_lossless
from pipeline.learned.range_coder import DamagedStream
from pipeline.pixels import RGB, BadPicture
from pipeline.pixels import decode as decode_image

PIXELS, WEBP = 0, 1
_START = 20
"""Bytes of the container before the stream: RIFF, size, WEBP, VP8L, size."""
_MOST_SIDE = 16_383
"""Of a WebP, in pixels."""
_QUICK, _BEST = (0, 0), (6, 100)
"""Method and effort of libwebp; the second takes 20 to 50 times as long."""
_HOPE, _SLACK = 1.6, 1024
"""Where the quick one takes more than so many times the bytes allowed, and some more, the best one
would not be short enough either: text took 1.4 times as many, a ramp 522 bytes for 68."""


def encode(image: RGB, most: int) -> bytes | None:
    """The lossless file of an image, if it has at most `most` bytes; else None.

    Args:
        image: uint8, H x W x 3.
    """
    height, width = image.shape[:2]
    most -= len(pack_lossless(width, height, b""))
    forms = [bytes([PIXELS]) + image.tobytes()] if image.size < most else []
    if max(height, width) <= _MOST_SIDE:
        forms.append(_webp(image, *_QUICK))
        if len(forms[-1]) <= _HOPE * most + _SLACK:
            forms.append(_webp(image, *_BEST))
    content = min(forms, key=len, default=None)
    if content is None or len(content) > most:
        return None
    return pack_lossless(width, height, content)


def decode(data: bytes, max_pixels: int = MOST_PIXELS) -> RGB:
    """The image of a lossless file: uint8, H x W x 3.

    Raises:
        DamagedStream: the file is damaged or no such file, or has more than `max_pixels`.
    """
    width, height, content = unpack_lossless(data, max_pixels)
    return _restored(content, width, height)


def _webp(image: RGB, method: int, effort: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True, method=method, quality=effort)
    data = out.getvalue()
    size = int.from_bytes(data[16:20], "little")
    assert data[12:16] == b"VP8L" and len(data) == _START + size + size % 2
    return bytes([WEBP]) + data[_START : _START + size]


def _restored(content: bytes, width: int, height: int) -> RGB:
    form, stream = content[:1], content[1:]
    if form == bytes([PIXELS]):
        if len(stream) != width * height * 3:
            raise DamagedStream(
                f"bitstream: {len(stream):,} bytes of pixels for {width}x{height}. Get the file "
                "again."
            )
        return np.frombuffer(stream, np.uint8).reshape(height, width, 3).copy()
    if form != bytes([WEBP]):
        raise DamagedStream("bitstream: no lossless form that is known. Get the file again.")
    size = len(stream)
    riff = (size + size % 2 + 12).to_bytes(4, "little")
    whole = b"RIFF" + riff + b"WEBPVP8L" + size.to_bytes(4, "little") + stream + bytes(size % 2)
    try:
        image = decode_image(whole, width * height).rgb
    except BadPicture as error:
        raise DamagedStream(
            f"bitstream: its lossless image: {error}. Get the file again."
        ) from None
    if image.shape != (height, width, 3):
        raise DamagedStream(
            f"bitstream: claims {width}x{height} pixels; its lossless image has "
            f"{image.shape[1]}x{image.shape[0]}. Get the file again."
        )
    return image
