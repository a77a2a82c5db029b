"""A release in, crops a second for training out, beside a DataLoader over loose PNG files.

The peer is what people write first: torch's DataLoader, two worker processes, one random crop of
each picture that it decodes with Pillow. Ours is what the trainer reads: eight crops of each
picture, in a shuffled order, two threads. Both end with batches of uint8 in memory.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.collection import Collection, Pictures
from pipeline.pixels import RGB
from pipeline.training.crops import Crops
from tests.perf.report import Measurement
from tests.perf.watermark import photo_like
from tests.training.release import write_release

TARGET = 4.0
WANTED = 40 * 8  # crops a second: batches of 8, 40 steps a second
SIZE, BATCH, WORKERS = 256, 8, 2
PICTURES, CROPS, ROUNDS = 48, 1600, 3


class _Loose(Dataset[torch.Tensor]):
    """One random crop of a PNG file, again and again."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index % len(self.files)]) as opened:
            image = opened.convert("RGB")
        left, top = (random.randrange(edge - SIZE + 1) for edge in image.size)
        crop = image.crop((left, top, left + SIZE, top + SIZE))
        return torch.from_numpy(np.array(crop))


def _rate(batches: Iterator[Any], count: int) -> float:
    """Crops a second, after the first batches have filled what is to be filled."""
    for _ in itertools.islice(batches, 2):
        pass
    started = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(batches, count // BATCH))
    return taken * BATCH / (time.perf_counter() - started)


def _ours(collection: Collection, seed: int) -> Iterator[torch.Tensor]:
    crops = iter(Crops(collection, SIZE, seed=seed, buffer=256, threads=WORKERS))
    while True:
        pixels = [next(crops).pixels for _ in range(BATCH)]
        yield torch.from_numpy(np.stack(pixels))


def _pictures(side: int, count: int) -> list[RGB]:
    """As hard to decode as photographs, no two the same."""
    whole = photo_like(side)
    return [
        np.ascontiguousarray(np.roll(np.rot90(whole, number % 4), 17 * number, axis=0))
        for number in range(count)
    ]


def run(quick: bool = False) -> list[Measurement]:
    """Let both sides take turns, at the sizes of SD 2.1-base and of SDXL."""
    found = []
    for side in (512, 1024):
        pictures = _pictures(side, 4 if quick else PICTURES)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_release(folder / "release", {("sdxl", "train"): pictures}, row_group=16)
            (folder / "loose").mkdir()
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / "loose" / f"{number}.png")
            collection = Collection(Pictures(place=str(folder / "release")))
            files = sorted((folder / "loose").iterdir())
            rates: dict[str, list[float]] = {"ours": [], "loose PNG files": []}
            for seed in range(1 if quick else ROUNDS):
                count = 32 if quick else CROPS
                rates["ours"].append(_rate(_ours(collection, seed), count))
                loader = DataLoader(_Loose(files), BATCH, shuffle=True, num_workers=WORKERS)
                rates["loose PNG files"].append(_rate(iter(loader), count // 4))
        ours, peer = (statistics.median(values) for values in rates.values())
        workers = -(-WANTED // (ours / WORKERS))
        found.append(
            Measurement(
                what=f"crops of {SIZE}x{SIZE} from {side}x{side}, {WORKERS} workers, over a "
                f"DataLoader of loose PNG files; {WANTED} a second want {workers:.0f}",
                unit="crops/s",
                ours=ours,
                peer=peer,
                target=f"ratio of at least {TARGET:g}",
                met=ours / peer >= TARGET,
                detail={"rates": rates, "workers_wanted": workers},
            )
        )
    return found
