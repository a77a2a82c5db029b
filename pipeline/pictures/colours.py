"""Pixels and the colour profile of their file in, the same colours in sRGB out."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from pipeline.pixels import RGB, opened
from pipeline.shown import one_line

_STEPS = 9
_NEAR = 2
"""A profile of sRGB as others write it: no colour moves by more, of 255."""
_MODES = {b"RGB ": "RGB", b"GRAY": "L"}


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    with suppress(ImageCms.PyCMSError):
        if name := one_line(ImageCms.getProfileDescription(profile)).strip():
            return name[:60]
    return "without a name"


@lru_cache(maxsize=32)
def _way(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The way from a profile to sRGB, None where no colour moves; and the profile's name.

    Raises:
        ImageCms.PyCMSError, OSError, ValueError: it is damaged.
    """
    mode = _MODES[profile[16:20]]
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    # LittleCMS otherwise tabulates a profile of grey at 33 levels, and is off by 10 between them.
    exact = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    srgb = ImageCms.createProfile("sRGB")
    way = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=exact)
    assert way is not None  # it is None for changes in place alone
    if mode == "L":
        grid = np.arange(256, dtype=np.uint8).reshape(16, 16)
        before = np.dstack([grid] * 3)
    else:
        steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
        grid = before = np.ascontiguousarray(cube.reshape(_STEPS, -1, 3))
    after = np.asarray(ImageCms.applyTransform(Image.fromarray(grid, mode), way)).astype(int)
    moved = np.abs(after - before).max()
    return (way if moved > _NEAR else None), _name(source)


def profile_of(data: bytes) -> bytes | None:
    """The ICC profile of an image file, if it is one of RGB or of grey."""
    with suppress(Exception), opened(data) as picture:  # `decode` says what is wrong with a file
        profile = picture.info.get("icc_profile")
        if isinstance(profile, bytes) and profile[16:20] in _MODES and picture.mode != "CMYK":
            return profile
    return None


def in_srgb(rgb: RGB, data: bytes, convert: bool = True) -> tuple[RGB, str | None]:
    """An image in sRGB, which is what codecs and viewers take pixels without a profile to be.

    Args:
        rgb: uint8, H x W x 3, as `pixels.decode` gives it.
        data: its file. One without a profile of RGB or grey is taken to be in sRGB.
        convert: False: pixels stay as they are.

    Returns: the image, the same array where no colour moves; and a note, None where nothing is to
        be said. Colours are converted by LittleCMS, perceptually as the profile defines it.
    """
    profile = profile_of(data)
    if profile is None:
        return rgb, None
    try:
        way, name = _way(profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return rgb, "damaged colour profile, taken to be sRGB"
    if way is None:
        return rgb, None
    if not convert:
        return rgb, f"in the colours of its profile ({name}), not in sRGB"
    grey = profile[16:20] == b"GRAY"
    if grey and not (rgb == rgb[..., :1]).all():
        return rgb, f"coloured, with a colour profile of grey ({name}), taken to be sRGB"
    image = Image.fromarray(np.ascontiguousarray(rgb[..., 0]) if grey else rgb)
    made = ImageCms.applyTransform(image, way)
    assert made is not None
    return np.asarray(made), f"converted to sRGB from its colour profile ({name})"
