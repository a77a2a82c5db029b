"""Pictures in, JPEG, JPEG 2000, WebP and AVIF files out, and back: what Pillow can write."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version

from pipeline.codecs.command import CodecFailed
from pipeline.pixels import RGB

LIBRARIES = {"JPEG": "libjpeg_turbo", "JPEG2000": "jpg_2000", "WEBP": "webp", "AVIF": "avif"}


@dataclass(frozen=True)
class PillowCodec:
    """One format with all settings of its encoder.

    Attributes:
        format: as Pillow calls it.
        settings: of `Image.save`.
    """

    format: str
    settings: dict[str, Any]

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file of a uint8 picture, H x W x 3; the prompt is not used."""
        out = io.BytesIO()
        try:
            Image.fromarray(image).save(out, self.format, **self.settings)
        except (OSError, ValueError) as error:
            raise CodecFailed(f"{self.format}: {error}") from error
        return out.getvalue()

    def decode(self, data: bytes) -> RGB:
        """The uint8 picture of a file."""
        try:
            with Image.open(io.BytesIO(data), formats=(self.format,)) as file:
                return np.asarray(file.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise CodecFailed(f"{self.format}: {error}") from error


def jpeg(quality: float, subsampling: str) -> PillowCodec:
    """Baseline JPEG with the standard Huffman tables, as `Image.save` writes it by default."""
    return PillowCodec("JPEG", {"quality": round(quality), "subsampling": subsampling})


def jpeg2000(ratio: float) -> PillowCodec:
    """A raw codestream with the lossy wavelet and colour transform, compressed `ratio` to one."""
    settings = {"irreversible": True, "mct": 1, "no_jp2": True}
    rate = {"quality_mode": "rates", "quality_layers": [ratio]}
    return PillowCodec("JPEG2000", settings | rate)


def webp(quality: float) -> PillowCodec:
    """Lossy WebP at the default effort."""
    return PillowCodec("WEBP", {"quality": round(quality), "method": 4})


def avif(quality: float) -> PillowCodec:
    """AVIF in one thread, so that the bytes are the same on every machine."""
    settings = {"subsampling": "4:4:4", "range": "full", "speed": 6, "max_threads": 1}
    return PillowCodec("AVIF", {"quality": round(quality)} | settings)


def version(name: str) -> str:
    """Pillow and the library behind a format."""
    return f"{LIBRARIES[name]} {features.version(LIBRARIES[name])} in Pillow {pillow_version}"
