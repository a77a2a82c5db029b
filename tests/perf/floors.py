"""Odd images and a codec in, the floors that it keeps out: a line an image and quality.

    python -m tests.perf.floors [MODEL] [IMAGE …] [--out floors.csv]

The odd images are drawn here: a checkerboard of single pixels, stripes of red and blue, text, one
colour, one pixel, a smooth ramp. More can be named. Files are real. Beside each stand

    jpeg      PSNR of the best baseline JPEG in 4:4:4 of at most as many bytes; -: none is so small
    estimate  bits of the likelihoods over those of the coded tiles: 1 where training knows the
              rate, nan where the file is lossless
    exact     PSNR without any rounding of latents: what the transforms alone lose

and the last lines name where PSNR does not rise with quality, where JPEG is better at the top
quality, and where the estimate is off by more than 1 % and the four bytes that end a tile.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.benchmark.metrics import psnr
from pipeline.learned.bitstream import MOST_PIXELS, STRIDE, is_lossless, unpack
from pipeline.learned.codec import LearnedCodec, load, load_network
from pipeline.learned.network import Network
from pipeline.pixels import CAP_DB, RGB, decode

OFF, END = 0.01, 32
"""Share of the real bits by which an estimate may be off, and bits that end a tile."""


def _text() -> RGB:
    image = Image.new("RGB", (256, 128), "white")
    pen = ImageDraw.Draw(image)
    for line in range(6):
        words = "The quick brown fox jumps over the lazy dog"
        pen.text((4, 4 + 20 * line), words, "black", ImageFont.load_default(8 + 2 * line))
    return np.asarray(image).copy()


def odd() -> dict[str, RGB]:
    """Drawn images by name: uint8, H x W x 3."""
    rows, columns = np.indices((128, 128))
    black_white = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, 0::2, 0], stripes[:, 1::2, 2] = 255, 255
    ramp = np.stack([rows + columns, 2 * rows, 255 - rows], axis=-1).astype(np.uint8)
    return {
        "checkerboard": np.repeat(black_white[..., None], 3, axis=2),
        "stripes": stripes,
        "text": _text(),
        "flat": np.full((128, 128, 3), (30, 120, 200), np.uint8),
        "1x1": np.full((1, 1, 3), (200, 30, 90), np.uint8),
        "ramp": ramp,
    }


@dataclass(frozen=True)
class Floor:
    """An image at a quality, see above; bpp of the whole file, bits of its tiles, PSNR in dB."""

    image: str
    quality: int
    bpp: float
    bits: int
    psnr: float
    jpeg: float | None
    estimate: float
    exact: float

    @property
    def off(self) -> bool:
        """Whether training is wrong about the rate."""
        return self.bits * abs(self.estimate - 1) > OFF * self.bits + END


def jpegs(image: RGB) -> list[tuple[int, float]]:
    """Bytes and PSNR of all baseline JPEGs of an image, in 4:4:4."""
    found = []
    for quality in range(1, 101):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
        decoded = np.asarray(Image.open(out).convert("RGB"))
        found.append((len(out.getvalue()), psnr(image, decoded)))
    return found


def best_jpeg(jpegs: list[tuple[int, float]], most: int) -> float | None:
    """PSNR of the best JPEG of at most `most` bytes; None: there is none."""
    return max((value for size, value in jpegs if size <= most), default=None)


@torch.no_grad()
def floors(codec: LearnedCodec, bare: Network, name: str, image: RGB) -> list[Floor]:
    """All qualities of an image.

    Args:
        bare: the codec's network as it trains, in evaluation.
    """
    height, width = image.shape[:2]
    below, right = -height % STRIDE, -width % STRIDE
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    text = None if codec.text is None else codec.text([""])
    mine = None if text is None else text.to("cpu", torch.float32)
    found, ladder = [], jpegs(image)
    for quality in range(1, codec.qualities + 1):
        data = codec.encode(image, "", quality)
        bits = 0 if is_lossless(data) else 8 * sum(map(len, unpack(data)[1]))
        estimated = float(bare(x, mine, torch.tensor([float(quality)])).bits())
        seen = bare.synthesise(bare.analyse(x, mine, quality), mine, quality)
        pixels = (seen[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()[:height, :width]
        error = float(np.square(pixels - image.astype(np.float32)).mean())
        found.append(
            Floor(
                name,
                quality,
                8 * len(data) / (height * width),
                bits,
                psnr(image, codec.decode(data)),
                best_jpeg(ladder, len(data)),
                estimated / bits if bits else math.nan,
                10 * float(np.log10(255**2 / max(error, 1e-5))),
            )
        )
    return found


def summary(rows: list[Floor]) -> list[str]:
    """Where floors are missed, a line each."""
    images = dict.fromkeys(row.image for row in rows)
    of = {name: [row for row in rows if row.image == name] for name in images}
    falls, worse = [], []
    for name, points in of.items():
        top = points[-1]
        if any(after.psnr <= before.psnr < CAP_DB for before, after in itertools.pairwise(points)):
            falls.append(name)
        if top.jpeg is not None and top.psnr < top.jpeg:
            worse.append(name)
    off = [f"{row.image} {row.quality}" for row in rows if row.off]
    least = min(rows, key=lambda row: row.exact if row.quality == rows[-1].quality else 1e9)
    return [
        f"{len(images)} images",
        f"PSNR does not rise with quality: {', '.join(falls) or 'nowhere'}",
        f"JPEG is better at the top quality: {', '.join(worse) or 'nowhere'}",
        f"estimate off by more than {OFF:.0%}: {', '.join(off) or 'nowhere'}",
        f"least without rounding at the top quality: {least.exact:.2f} dB, {least.image}",
    ]


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="catc-small")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    codec, bare = load(given.model, device="cpu"), load_network(given.model).eval()
    images = odd() | {
        path.name: decode(path.read_bytes(), MOST_PIXELS).rgb for path in given.images
    }
    rows = []
    for name, image in images.items():
        for row in floors(codec, bare, name, image):
            rows.append(row)
            jpeg = "-" if row.jpeg is None else f"{row.jpeg:.2f}"
            print(
                f"{name} {row.quality}: {row.bpp:.4f} bpp, {row.psnr:.2f} dB, jpeg {jpeg}, "
                f"estimate {row.estimate:.4f}, exact {row.exact:.2f}",
                flush=True,
            )
    print(*summary(rows), sep="\n")
    if given.out is not None:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Floor)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    main()
