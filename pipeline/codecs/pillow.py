"""Images in, JPEG, JPEG 2000, WebP and AVIF files out, and back: what Pillow can write."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version

from pipeline.codecs.command import CodecFailed, EncoderSettings, Missing
from pipeline.pixels import RGB

LIBRARIES = {"JPEG": "libjpeg_turbo", "JPEG2000": "jpg_2000", "WEBP": "webp", "AVIF": "avif"}


@dataclass(frozen=True)
class PillowCodec:
    """One format at one quality.

    Attributes:
        format: as Pillow calls it.
        quality: of JPEG 2000, how many times smaller the file is than the pixels.
        settings: all others of `Image.save`.
    """

    format: str
    quality: float
    settings: EncoderSettings

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file of a uint8 image, H x W x 3; the prompt is not used."""
        out = io.BytesIO()
        quality = (
            {"quality_layers": [self.quality]}
            if self.format == "JPEG2000"
            else {"quality": round(self.quality)}
        )
        try:
            Image.fromarray(image).save(out, self.format, **quality, **self.settings)
        except (OSError, ValueError) as error:
            raise CodecFailed(f"{self.format}: {error}") from error
        return out.getvalue()

    def decode(self, data: bytes) -> RGB:
        """The image of a file: uint8, H x W x 3."""
        try:
            with Image.open(io.BytesIO(data), formats=(self.format,)) as file:
                return np.asarray(file.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise CodecFailed(f"{self.format}: {error}") from error


def version(name: str) -> str:
    """Pillow and the library behind a format.

    Raises:
        Missing: Pillow was built without it.
    """
    library = LIBRARIES[name]
    if name != "JPEG" and not features.check(library):
        raise Missing(f"Pillow {pillow_version} was built without {name}: pip install -U pillow")
    return f"{library} {features.version(library)} in Pillow {pillow_version}"
