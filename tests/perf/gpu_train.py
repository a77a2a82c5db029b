"""Full CATC at the settings of `workflows/train.yaml` in; steps a second, memory and share of peak.

    python -m tests.perf.gpu_train [--steps 200] [--network catc] [--out FILE.json]

A made-up release of 512 x 512 pictures is written; then two trainers make the same steps, first
eager, then compiled: batches of 8 crops of 256 x 256, bf16, everything that a step has (text
encoder, clipping, both optimisers, the average). The text encoder is the embedded one, since a bare
machine has no other: its vectors are narrower than those of ViT-B/32, which changes the cost of a
few projections of some tens of tokens alone. Operations are those that torch counts in one eager
step, forward and backward. The file is written after each measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline import workflow as workflows
from pipeline.collection import Collection, Pictures
from pipeline.learned.sizes import NETWORKS
from pipeline.training.fit import accelerator_of
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer
from tests.learned.conftest import TEXT
from tests.perf.crops import _pictures
from tests.perf.gpu_check import ROOT, device
from tests.perf.report import GIB, machine, machine_line, markdown, number
from tests.training.release import write_release

WARM = 10


def settings_of(network: str, tiny: bool) -> Train:
    """Those of the workflow file, with the embedded text encoder."""
    published = workflows.load(ROOT / "workflows" / "train.yaml").train
    assert published is not None
    sizes = NETWORKS[network].model_dump(mode="json")
    if sizes["text"] is not None:
        sizes["text"] = TEXT
    change: dict[str, Any] = {
        "network": sizes,
        "validation_pictures": 0,
        "weights": {},
        "threads": 4,
    }
    if tiny:
        # Many CPUs compute bfloat16 ten times slower than float32.
        change |= {"batch": 2, "crop": 64, "shuffle_buffer": 32, "precision": "float32"}
    return published.model_copy(update=change)


def measure(settings: Train, steps: int, place: Path, where: str) -> dict[str, Any]:
    """Make `steps` steps after some that do not count."""
    from torch.utils.flop_counter import FlopCounterMode

    collection = Collection(Pictures(place=str(place), splits=("train",)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        accelerator = accelerator_of(settings, where, folder)
        trainer = Trainer(settings, (0.013,), folder, 1, accelerator, collection, [])
        crops = trainer.crops()
        flops = 0
        if not settings.compile:
            with FlopCounterMode(display=False) as counter:
                trainer.step(crops)
            flops = counter.get_total_flops()
        cuda = accelerator.device.type == "cuda"
        started = time.perf_counter()
        for _ in range(WARM):
            trainer.step(crops)
        warm = time.perf_counter() - started
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        lost = sum(trainer.step(crops) is None for _ in range(steps))
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return {
        "mode": "compiled" if settings.compile else "eager",
        "steps": steps,
        "steps_without_gradient": lost,
        "steps_per_s": steps / seconds,
        "crops_per_s": steps * settings.batch * settings.accumulate / seconds,
        "first_steps_s": warm,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "tflop_per_step": flops / 1e12,
    }


def main() -> None:
    """Measure eager, then compiled."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.gpu_train", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--network", default="catc", choices=NETWORKS)
    parser.add_argument("--tiny", action="store_true", help="small crops on the CPU, for a test")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    where, name, peak = device(given.tiny)
    settings = settings_of(given.network, given.tiny)
    found: dict[str, Any] = {
        "machine": machine(),
        "device": name,
        "network": given.network,
        "batch": settings.batch,
        "crop": settings.crop,
        "measurements": [],
    }
    print(f"{machine_line(found['machine'])}; {name}")
    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(128 if given.tiny else 512, 4 if given.tiny else 64)
        place = write_release(Path(folder), {("sdxl", "train"): pictures}, row_group=16)
        for compiled in (False,) if given.no_compile else (False, True):
            row = measure(
                settings.model_copy(update={"compile": compiled}), given.steps, place, where
            )
            eager = found["measurements"][0] if found["measurements"] else row
            rate = eager["tflop_per_step"] * row["steps_per_s"]
            row |= {"tflops": rate, "share_of_peak": None if peak is None else rate / peak}
            found["measurements"].append(row)
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1) + "\n")
    headings = ["network", "mode", "steps/s", "crops/s", "peak GiB", "TFLOP/s", "of peak"]
    rows = [
        [
            given.network,
            row["mode"],
            number(row["steps_per_s"]),
            number(row["crops_per_s"]),
            number(row["peak_gib"]),
            number(row["tflops"]),
            number(row["share_of_peak"]),
        ]
        for row in found["measurements"]
    ]
    print(markdown(headings, rows))


if __name__ == "__main__":
    main()
