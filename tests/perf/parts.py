"""A stage of large rows in; what it costs to keep its finished batches, for when it is killed, out.

The peer is the same stage without that. Its worker waits instead of computing, as for a device, so
what is measured is what keeping adds while nothing else is done. The true time between two parts is
a minute; here it is shorter, so that there are parts to be measured. The first one comes before it
is known what a part costs.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from pipeline import parts
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute, Map
from pipeline.store import Store
from pipeline.tables import IMAGES
from tests import toy
from tests.perf.report import Measurement

ROUNDS, BATCHES, SECONDS, EVERY = 3, 40, 0.5, 4.0
"""Each batch has four images of `BYTES`: 8 MB/s, as five images a second of 1024 x 1024 have."""
BYTES = 1_000_000
MOST = 0.02


class Maker:
    """Rows with bytes that do not compress, at the pace of a device."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.random = seconds, np.random.default_rng(0)

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield four rows at a time."""
        for place in range(start, rows.num_rows, 4):
            time.sleep(self.seconds)
            yield pa.Table.from_pylist(
                [
                    {
                        "image_id": f"{number:032d}",
                        "image": {"bytes": self.random.bytes(BYTES), "path": "a.png"},
                    }
                    for number in rows["number"][place : place + 4].to_pylist()
                ],
                IMAGES,
            )


def _seconds(folder: str, keeps: tuple[str, ...] | None, batches: int) -> float:
    toy.ROWS = 4 * batches
    numbers, squares = toy.stages(shards=1)
    assert isinstance(squares, Map)
    stage = replace(squares, schema=IMAGES, make_worker=lambda: Maker(SECONDS), keeps=keeps)
    started = time.perf_counter()
    run_stages([numbers, stage], Store(folder), Compute(), Progress(io.StringIO()))
    return time.perf_counter() - started


def run(quick: bool = False) -> list[Measurement]:
    """Let both sides take turns."""
    ours, peer, written = [], [], []
    write = parts.Parts._write

    def timed(self: parts.Parts, chunks: list[pa.Table], *more: Any) -> float:
        seconds = write(self, chunks, *more)
        written.append((seconds, sum(chunk.nbytes for chunk in chunks)))
        return seconds

    with (
        tempfile.TemporaryDirectory(prefix="aigi-parts-", dir=Path.cwd()) as folder,
        mock.patch.object(parts, "EVERY", EVERY),
        mock.patch.object(parts.Parts, "_write", timed),
    ):
        for number in range(1 if quick else ROUNDS):
            batches = 16 if quick else BATCHES
            ours.append(_seconds(f"{folder}/ours-{number}", (), batches))
            peer.append(_seconds(f"{folder}/peer-{number}", None, batches))
    ratio = statistics.median(ours) / statistics.median(peer)
    speed = sum(size for _, size in written) / sum(seconds for seconds, _ in written) / 1e6
    return [
        Measurement(
            what="a shard of images that come at 8 MB/s, whose finished batches are kept; not kept",
            unit="seconds",
            ours=statistics.median(ours),
            peer=statistics.median(peer),
            target=f"at most {MOST:.0%} more",
            met=ratio <= 1 + MOST,
            detail={"ours": ours, "peer": peer, "parts": len(written)},
        ),
        Measurement(
            what="parts written, hashed and flushed to disk",
            unit="MB/s",
            ours=speed,
            detail={"parts": written},
        ),
    ]
