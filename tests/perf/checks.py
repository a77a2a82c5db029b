"""The demo with all checks of content in; what these cost, and what a finished run costs, out.

The peer is the same run without them: no hash, footer or page is compared, and no image is decoded
to compare its pixels. Each run is a process of its own; the clock counts seconds of the processor.

    python -m tests.perf.checks RUN SCALE [--unchecked]
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import yaml

from pipeline import store
from pipeline.build import make
from pipeline.demo import demo_workflow
from pipeline.files import resource
from pipeline.progress import Progress
from pipeline.store import Store
from tests import toy
from tests.perf.report import Measurement

SCALE, ROUNDS = 12, 2
"""Times the images that the demo generates: some 1,000."""
MOST = 0.05
SHARDS, QUICK_SHARDS = 4000, 400
MOST_MS = 2.0


def larger(folder: Path, scale: int) -> list[str]:
    """Overrides of the demo for `scale` times its generated images."""
    data = yaml.safe_load(resource("manifests/demo.yaml").read_text())
    for source in data["sources"].values():
        if source["kind"] == "diffusers":
            for split in source["splits"].values():
                split["count"] *= scale
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(data))
    return [
        f"plan.dataset={path}",
        f"prompts.sources.0.count={200 * scale}",
        f"prompts.select.count={60 * scale}",
        "selection.rounds=0",
        "train=null",
    ]


class _Same(str):
    """A hash that is equal to every other one."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


@contextmanager
def unchecked() -> Iterator[None]:
    """Read and copy without looking whether content is what was written."""
    opened = pq.ParquetFile

    def without(*given: object, **more: object) -> pq.ParquetFile:
        return opened(*given, **{**more, "page_checksum_verification": False})

    grey = np.zeros((16, 16, 3), np.uint8)
    with (
        mock.patch.object(pq, "ParquetFile", without),
        mock.patch.object(store, "footer_sha256", lambda file: _Same()),
        mock.patch.object(store, "_sha256", lambda data: _Same()),
        mock.patch.object(Store, "pixels", lambda *given: grey),
    ):
        yield


def _seconds(folder: Path, scale: int, *options: str) -> tuple[float, int]:
    """Seconds of the processor of one run in a process of its own, and images of its release."""
    run = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "tests.perf.checks", run, str(scale), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, images = done.stdout.split()
    return float(seconds), int(images)


def finished(folder: Path, shards: int) -> list[float]:
    """Milliseconds a shard of a run that finds all shards of two tables as they were made."""
    toy.ROWS = 1
    root = str(folder / "finished")
    toy.make(root, shards=shards)
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        assert toy.make(root, shards=shards).count("already made") == 2
        found.append(1000 * (time.perf_counter() - started) / shards)
    return found


def run(quick: bool = False) -> list[Measurement]:
    """Let both sides take turns."""
    scale, shards = (1, QUICK_SHARDS) if quick else (SCALE, SHARDS)
    with tempfile.TemporaryDirectory(prefix="aigi-checks-") as name:
        folder = Path(name)
        ours, peer = [], []
        for _ in range(1 if quick else ROUNDS):
            seconds, images = _seconds(folder, scale)
            ours.append(seconds)
            peer.append(_seconds(folder, scale, "--unchecked")[0])
        waits = finished(folder, shards)
    ratio = statistics.median(ours) / statistics.median(peer)
    return [
        Measurement(
            what=f"the demo with {images:,} images, every check of content over none",
            unit="seconds of the processor",
            ours=statistics.median(ours),
            peer=statistics.median(peer),
            target=f"at most {MOST:.0%} more",
            met=ratio <= 1 + MOST,
            detail={"ours": ours, "peer": peer},
        ),
        Measurement(
            what=f"a finished run of {shards:,} shards in each of two tables",
            unit="ms a shard",
            ours=statistics.median(waits),
            target=f"at most {MOST_MS:g} ms",
            met=statistics.median(waits) <= MOST_MS,
            detail={"rounds": waits},
        ),
    ]


def main() -> None:
    """One run of the demo's building stages; prints seconds and images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("scale", type=int)
    parser.add_argument("--unchecked", action="store_true")
    given = parser.parse_args()
    workflow = demo_workflow(given.run, larger(given.run, given.scale))
    target, progress = Store(workflow.run), Progress(io.StringIO())
    started = time.process_time()
    if given.unchecked:
        with unchecked():
            make(workflow, target, progress)
    else:
        make(workflow, target, progress)
    seconds = time.process_time() - started
    print(seconds, target.read_all("release", ["image_id"]).num_rows)


if __name__ == "__main__":
    main()
