"""Images in, raw HEVC, VVC and JPEG XL streams out, and back, each by one run of ffmpeg.

Pixels and streams go through pipes: no file is written, and no container is counted. All run in
one thread. A stream of HEVC and VVC stands behind width and height of the image (4 bytes), since
these codecs want sizes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.codecs import color
from pipeline.codecs.command import (
    DECODE_SECONDS,
    CodecFailed,
    EncoderSettings,
    padded,
    run,
    split_size,
    with_size,
)
from pipeline.pixels import RGB

JXL_MAGIC = b"\xff\x0a"
LEAST = 16  # pixels a side: smaller ones neither encoder takes
HEVC_PRESETS = (
    *("slow", "ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slower", "veryslow", "placebo"),
)
VVC_PRESETS = ("medium", "faster", "fast", "slow", "slower")
"""Those of x265 and of libvvenc in ffmpeg (`ffmpeg -h encoder=libvvenc`); the usual one first."""
_QUIET = ["-hide_banner", "-loglevel", "error", "-nostdin"]
_TO_PIPE = ["-frames:v", "1", "-f", "rawvideo"]


def _options(settings: EncoderSettings) -> list[str]:
    """Arguments of an encoder: `-name value` of each."""
    return [part for name, value in settings.items() for part in (f"-{name}", str(value))]


def _raw(image_size: tuple[int, int], pixels: str) -> list[str]:
    """Arguments that say what comes through the pipe."""
    width, height = image_size
    return ["-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-i", "-"]


def _pixels(data: bytes, width: int, height: int) -> RGB:
    if len(data) != 3 * width * height:
        raise CodecFailed(f"ffmpeg: {len(data)} bytes of pixels are no {width}x{height} image")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _padded_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    return (
        max(-(-width // multiple) * multiple, LEAST),
        max(-(-height // multiple) * multiple, LEAST),
    )


@dataclass(frozen=True)
class Hevc:
    """x265, intra, of planes as `color` makes them; the role that BPG has elsewhere.

    Attributes:
        settings: `pix_fmt` of the planes, and the parameters of x265 but for its QP.
    """

    program: str
    qp: float
    preset: str
    settings: EncoderSettings

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The size of a uint8 H x W x 3 image, and its Annex B stream; the prompt is not used."""
        whole = padded(image, 1, LEAST)
        settings = {"qp": round(self.qp), **self.settings["x265-params"]}
        parameters = ":".join(f"{name}={value}" for name, value in settings.items())
        stream = run(
            [
                *(self.program, *_QUIET),
                *_raw((whole.shape[1], whole.shape[0]), self.settings["pix_fmt"]),
                *("-frames:v", "1", "-c:v", "libx265", "-preset", self.preset),
                *("-x265-params", parameters, "-f", "hevc", "-"),
            ],
            color.to_bytes(whole),
        )
        return with_size(image, stream)

    def decode(self, data: bytes) -> RGB:
        """The image of such a stream: uint8, H x W x 3."""
        width, height, stream = split_size(data)
        wide, high = _padded_size(width, height, 1)
        made = run(
            [
                *(self.program, *_QUIET, "-threads", "1", "-f", "hevc", "-i", "-"),
                *(*_TO_PIPE, "-pix_fmt", self.settings["pix_fmt"], "-"),
            ],
            stream,
            DECODE_SECONDS,
        )
        return np.ascontiguousarray(color.from_bytes(made, wide, high)[:height, :width])

    def convert(self, image: RGB) -> RGB:
        """The image (uint8, H x W x 3) after both colour conversions, without any coding."""
        return color.to_rgb(color.to_ycbcr(image))


@dataclass(frozen=True)
class Vvc:
    """libvvenc, intra, of planes as ffmpeg's scaler makes them.

    Attributes:
        settings: `pix_fmt`, `matrix` and `range` of the planes, `flags` of the scaler, and the
            options of libvvenc but for its QP.
    """

    program: str
    qp: float
    preset: str
    settings: EncoderSettings

    def _scale(self, way: str) -> str:
        """The filters from RGB to the planes that are coded (`out`), or from these (`in`)."""
        matrix, reach = self.settings["matrix"], self.settings["range"]
        flags = self.settings["flags"]
        made = self.settings["pix_fmt"] if way == "out" else "rgb24"
        scale = f"{way}_color_matrix={matrix}:{way}_range={reach}:flags={flags}"
        return f"scale={scale},format={made}"

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The size of a uint8 H x W x 3 image, and its Annex B stream; the prompt is not used."""
        whole = padded(image, 2, LEAST)
        stream = run(
            [
                *(self.program, *_QUIET),
                *_raw((whole.shape[1], whole.shape[0]), "rgb24"),
                *("-frames:v", "1", "-vf", self._scale("out")),
                *("-c:v", "libvvenc", "-preset", self.preset, "-qp", str(round(self.qp))),
                *(*_options(self.settings["libvvenc"]), "-f", "vvc", "-"),
            ],
            whole.tobytes(),
        )
        return with_size(image, stream)

    def decode(self, data: bytes) -> RGB:
        """The image of such a stream: uint8, H x W x 3."""
        width, height, stream = split_size(data)
        wide, high = _padded_size(width, height, 2)
        made = run(
            [
                *(self.program, *_QUIET, "-threads", "1", "-f", "vvc", "-i", "-"),
                *("-vf", self._scale("in"), *_TO_PIPE, "-"),
            ],
            stream,
            DECODE_SECONDS,
        )
        return np.ascontiguousarray(_pixels(made, wide, high)[:height, :width])

    def convert(self, image: RGB) -> RGB:
        """The image (uint8, H x W x 3) after both colour conversions, without any coding."""
        whole = padded(image, 2, LEAST)
        high, wide = whole.shape[:2]
        chain = f"{self._scale('out')},{self._scale('in')}"
        made = run(
            [self.program, *_QUIET, *_raw((wide, high), "rgb24"), "-vf", chain, *_TO_PIPE, "-"],
            whole.tobytes(),
        )
        return _pixels(made, wide, high)[: image.shape[0], : image.shape[1]]


@dataclass(frozen=True)
class JpegXl:
    """libjxl's lossy mode: VarDCT in XYB, which is tuned to eyes and not to PSNR.

    Attributes:
        settings: options of libjxl but for its distance.
    """

    program: str
    distance: float
    settings: EncoderSettings

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The bare codestream of a uint8 H x W x 3 image; the prompt is not used."""
        return run(
            [
                *(self.program, *_QUIET, *_raw((image.shape[1], image.shape[0]), "rgb24")),
                *("-frames:v", "1", "-c:v", "libjxl", "-distance", f"{self.distance:g}"),
                *(*_options(self.settings), "-f", "image2pipe", "-"),
            ],
            image.tobytes(),
        )

    def decode(self, data: bytes) -> RGB:
        """The image (uint8, H x W x 3) of a codestream; its size comes as a PPM file's header."""
        if not data.startswith(JXL_MAGIC):
            raise CodecFailed("no JPEG XL codestream")  # ffmpeg would look for one for ever
        made = run(
            [
                *(self.program, *_QUIET, "-threads", "1", "-f", "jpegxl_pipe", "-i", "-"),
                *("-frames:v", "1", "-c:v", "ppm", "-pix_fmt", "rgb24", "-f", "image2pipe", "-"),
            ],
            data,
            DECODE_SECONDS,
        )
        parts = made.split(b"\n", 3)
        if len(parts) != 4 or parts[0] != b"P6":
            raise CodecFailed("ffmpeg: no image in the JPEG XL stream")
        width, height = map(int, parts[1].split())
        return _pixels(parts[3], width, height)
