"""Images and a codec in, what a search is worth out: BD-rate against effort 0, and seconds.

    python -m tests.perf.effort IMAGE … [--model catc-small] [--efforts 1 2] [--qualities 1 2 3 4]
        [--crop 256] [--out effort.csv]

Files are real and images are decoded from them. Seconds are those of encoding, in one thread. The
file is written as it goes, so a run that is cut off keeps what it has, and goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch

from pipeline.benchmark.bd import Curve, NoComparison, bd_rate
from pipeline.benchmark.metrics import psnr
from pipeline.learned.bitstream import MOST_PIXELS
from pipeline.learned.codec import LearnedCodec, load
from pipeline.pixels import RGB, decode

COLUMNS = ("image", "effort", "quality", "bpp", "psnr", "seconds")
Row = dict[str, float | str]


def _image(path: Path, crop: int | None) -> RGB:
    image = decode(path.read_bytes(), MOST_PIXELS).rgb
    if crop is None:
        return image
    top, left = ((side - crop) // 2 for side in image.shape[:2])
    return image[top : top + crop, left : left + crop].copy()


def measure(codec: LearnedCodec, image: RGB, quality: float, effort: int) -> Row:
    """Rate, PSNR and seconds of one image (uint8, H x W x 3)."""
    started = time.perf_counter()
    data = codec.encode(image, "", quality, effort)
    seconds = time.perf_counter() - started
    bpp = 8 * len(data) / (image.shape[0] * image.shape[1])
    return {"bpp": bpp, "psnr": psnr(image, codec.decode(data)), "seconds": seconds}


def summary(rows: list[Row]) -> list[str]:
    """A line an effort: mean BD-rate against effort 0 over images, and mean seconds.

    Only images that have all qualities of both count.
    """
    curves: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        curves[str(row["effort"])][str(row["image"])][str(row["quality"])] = row
    lines = []
    for effort, images in sorted(curves.items()):
        rates = []
        for name, points in images.items():
            usual = curves["0"][name]
            if len(points) < len(usual):
                continue
            anchor, test = (
                Curve(
                    tuple(float(row["bpp"]) for row in which.values()),
                    tuple(float(row["psnr"]) for row in which.values()),
                )
                for which in (usual, points)
            )
            try:
                rates.append(bd_rate(anchor, test).value)
            except NoComparison as why:
                lines.append(f"effort {effort}, {name}: {why}")
        each = [float(row["seconds"]) for points in images.values() for row in points.values()]
        if rates:
            lines.append(
                f"effort {effort}: BD-rate {fmean(rates):+.1f} % ({min(rates):+.1f} to "
                f"{max(rates):+.1f}) over {len(rates)} images, {fmean(each):.1f} s an image"
            )
    return lines


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", default="catc-small")
    parser.add_argument("--efforts", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--qualities", nargs="+", type=float, default=[1, 2, 3, 4])
    parser.add_argument("--crop", type=int)
    parser.add_argument("--out", type=Path, default=Path("effort.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(given.model, device="cpu")
    rows: list[Row] = []
    if given.out.exists():
        with given.out.open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    done = {(row["image"], str(row["effort"]), str(row["quality"])) for row in rows}
    for effort in (0, *given.efforts):
        for path in given.images:
            for quality in given.qualities:
                key = (path.name, str(effort), f"{quality:g}")
                if key in done:
                    continue
                found = measure(codec, _image(path, given.crop), quality, effort)
                rows.append(dict(zip(COLUMNS, key, strict=False)) | found)
                with given.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if not file.tell():
                        writer.writeheader()
                    writer.writerow(rows[-1])
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
