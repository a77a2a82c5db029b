"""Images in, VTM and BPG streams out, and back, by the programs of their authors.

Neither is a package that can be installed with ours: VTM is
https://vcgit.hhi.fraunhofer.de/jvet/VVCSoftware_VTM, BPG is https://bellard.org/bpg. Both read and
write files; these lie in a temporary folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.codecs import color
from pipeline.codecs.command import (
    DECODE_SECONDS,
    UNKNOWN,
    CodecFailed,
    EncoderSettings,
    Missing,
    find,
    padded,
    run,
    split_size,
    with_size,
)
from pipeline.files import scratch
from pipeline.pixels import RGB, BadPicture, decode, png_bytes

VTM_HINT = (
    "Build VTM (vcgit.hhi.fraunhofer.de/jvet/VVCSoftware_VTM) and name its programs as "
    "programs: {EncoderApp: …, DecoderApp: …, encoder_intra_vtm.cfg: …}."
)
BPG_HINT = "Build or install libbpg (bellard.org/bpg), or name programs: {bpgenc: …, bpgdec: …}."
_CFG = "encoder_intra_vtm.cfg"
_MOST_PIXELS = 1 << 28
_VTM_LEAST = 16


@dataclass(frozen=True)
class Vtm:
    """VTM, all intra, of planes as `color` makes them.

    Attributes:
        settings: `options` of the encoder but for its QP, over those of its configuration.
    """

    encoder: str
    decoder: str
    configuration: str
    qp: float
    settings: EncoderSettings

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The size of a uint8 H x W x 3 image, and VTM's stream; the prompt is not used."""
        whole = padded(image, 1, _VTM_LEAST)
        high, wide = whole.shape[:2]
        with scratch("codec") as folder:
            source, made = Path(folder, "in.yuv"), Path(folder, "out.bin")
            source.write_bytes(color.to_bytes(whole))
            run(
                [
                    *(self.encoder, "-i", str(source), "-c", self.configuration),
                    *("-q", str(round(self.qp)), "-o", os.devnull, "-b", str(made)),
                    *("-wdt", str(wide), "-hgt", str(high), "-fr", "1", "-f", "1"),
                    *(f"--{name}={value}" for name, value in self.settings["options"].items()),
                ]
            )
            return with_size(image, _read(made, self.encoder))

    def decode(self, data: bytes) -> RGB:
        """The image of such a stream: uint8, H x W x 3."""
        width, height, stream = split_size(data)
        wide, high = max(width, _VTM_LEAST), max(height, _VTM_LEAST)
        with scratch("codec") as folder:
            source, made = Path(folder, "in.bin"), Path(folder, "out.yuv")
            source.write_bytes(stream)
            run(
                [self.decoder, "-b", str(source), "-o", str(made), "-d", str(color.BITS)],
                seconds=DECODE_SECONDS,
            )
            raw = _read(made, self.decoder)
        return np.ascontiguousarray(color.from_bytes(raw, wide, high)[:height, :width])

    def convert(self, image: RGB) -> RGB:
        """The image (uint8, H x W x 3) after both colour conversions, without any coding."""
        return color.to_rgb(color.to_ycbcr(image))


@dataclass(frozen=True)
class Bpg:
    """BPG by the encoder that is built into it.

    Attributes:
        settings: options of `bpgenc` but for its QP.
    """

    encoder: str
    decoder: str
    qp: float
    settings: EncoderSettings

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file of a uint8 H x W x 3 image; the prompt is not used."""
        with scratch("codec") as folder:
            source, made = Path(folder, "in.png"), Path(folder, "out.bpg")
            source.write_bytes(png_bytes(image))
            settings = {**self.settings, "q": round(self.qp)}
            options = [
                part for name, value in settings.items() for part in (f"-{name}", str(value))
            ]
            run([self.encoder, *options, "-o", str(made), str(source)])
            return _read(made, self.encoder)

    def decode(self, data: bytes) -> RGB:
        """The image of a file: uint8, H x W x 3."""
        with scratch("codec") as folder:
            source, made = Path(folder, "in.bpg"), Path(folder, "out.png")
            source.write_bytes(data)
            run([self.decoder, "-o", str(made), str(source)], seconds=DECODE_SECONDS)
            try:
                return decode(_read(made, self.decoder), _MOST_PIXELS).rgb
            except BadPicture as error:
                raise CodecFailed(f"bpgdec: its image is {error}") from error


def _read(path: Path, program: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CodecFailed(f"{os.path.basename(program)}: wrote no file {path.name}") from error


def vtm(qp: float, programs: Mapping[str, str], settings: EncoderSettings) -> Vtm:
    """VTM's programs, and the configuration that comes with them.

    Raises:
        Missing: one of the three is not there.
    """
    encoder = find("EncoderApp", programs, VTM_HINT)
    decoder = find("DecoderApp", programs, VTM_HINT)
    if _CFG in programs:
        return Vtm(encoder, decoder, find(_CFG, programs, VTM_HINT), qp, settings)
    # Where a build has it: bin/EncoderApp or bin/release-static/EncoderApp, beside cfg/.
    for folder in list(Path(encoder).resolve().parents)[:4]:
        for place in (folder / "cfg" / _CFG, folder / _CFG):
            if place.is_file():
                return Vtm(encoder, decoder, str(place), qp, settings)
    raise Missing(f"{_CFG} is not beside {encoder}. {VTM_HINT}")


def bpg(qp: float, programs: Mapping[str, str], settings: EncoderSettings) -> Bpg:
    """BPG's two programs.

    Raises:
        Missing: one of them is not there.
    """
    encoder = find("bpgenc", programs, BPG_HINT)
    return Bpg(encoder, find("bpgdec", programs, BPG_HINT), qp, settings)


def said_version(program: str, pattern: str) -> str:
    """What a program that is started without arguments says about itself, cut to its version."""
    try:
        done = subprocess.run([program], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    found = re.search(pattern, (done.stdout + done.stderr).decode(errors="replace"))
    return found[1] if found else UNKNOWN
