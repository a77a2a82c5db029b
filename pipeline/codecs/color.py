"""RGB images in, 10-bit YCbCr 4:4:4 planes out, and back; every conversion rounds.

Cutting values off instead of rounding costs up to a decibel at high rates, and makes an anchor
look worse than it is. Rounded to 10 bits, every RGB value comes back as it was: see
`test_color`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.codecs.command import CodecFailed
from pipeline.pixels import RGB

Planes = npt.NDArray[np.uint16]
"""Y, Cb and Cr: uint16, 3 x H x W, 0 to 1023."""

BITS = 10
PEAK, MIDDLE = (1 << BITS) - 1, 1 << (BITS - 1)

# ITU-R BT.709, full range: Y from the luma weights, Cb and Cr are scaled differences to it.
_RED, _BLUE = 0.2126, 0.0722
PLANES = {"red": _RED, "blue": _BLUE, "bits": BITS}
"""What decides the planes; it is among the settings of every codec that is fed with them."""
_GREEN = 1 - _RED - _BLUE
_TO_YCBCR = np.array(
    [
        [_RED, _GREEN, _BLUE],
        [-_RED / (2 - 2 * _BLUE), -_GREEN / (2 - 2 * _BLUE), 0.5],
        [0.5, -_GREEN / (2 - 2 * _RED), -_BLUE / (2 - 2 * _RED)],
    ]
)
_TO_RGB = np.linalg.inv(_TO_YCBCR)


def to_ycbcr(image: RGB) -> Planes:
    """BT.709 full range, 10 bits (uint16, 3 x H x W), of a uint8 image H x W x 3."""
    # Plane by plane: a product with an H x W x 3 array takes three times as long.
    red, green, blue = (image[..., i].astype(np.float64) * (PEAK / 255) for i in range(3))
    planes = np.empty((3, *image.shape[:2]), np.uint16)
    for plane, row, offset in zip(planes, _TO_YCBCR, (0, MIDDLE, MIDDLE), strict=True):
        exact = row[0] * red + row[1] * green + row[2] * blue + offset
        plane[...] = np.clip(np.rint(exact), 0, PEAK)
    return planes


def from_bytes(data: bytes, width: int, height: int) -> RGB:
    """The image (uint8, H x W x 3) of planes that follow one another in little-endian words.

    Raises:
        CodecFailed: they are of another size.
    """
    if len(data) != 6 * width * height:
        raise CodecFailed(f"{len(data)} bytes of planes are no {width}x{height} image")
    return to_rgb(np.frombuffer(data, "<u2").reshape(3, height, width))


def to_bytes(image: RGB) -> bytes:
    """The planes of a uint8 H x W x 3 image, one after the other, in little-endian words."""
    return to_ycbcr(image).astype("<u2").tobytes()


def to_rgb(planes: Planes) -> RGB:
    """The uint8 image of 10-bit planes, values out of range cut to the next that exist.

    Args:
        planes: uint16, 3 x H x W, 0 to 1023.

    Returns:
        uint8, H x W x 3.
    """
    y, cb, cr = (
        (plane.astype(np.float64) - offset) * (255 / PEAK)
        for plane, offset in zip(planes, (0, MIDDLE, MIDDLE), strict=True)
    )
    image = np.empty((*planes.shape[1:], 3), np.uint8)
    for i, row in enumerate(_TO_RGB):
        image[..., i] = np.clip(np.rint(row[0] * y + row[1] * cb + row[2] * cr), 0, 255)
    return image
