"""A toy stage on real tables: numbers in, squares out; for tests of the spine.

python -m tests.toy ROOT [--seconds S] [--ray local] [--workers N] [--kill-once SHARD]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.run import run_stages
from pipeline.stage import Build, Compute, Map, Stage, Worker
from pipeline.store import Shard, Store

NUMBERS = pa.schema([("number", pa.int64())])
SQUARES = pa.schema([("number", pa.int64()), ("square", pa.int64()), ("error", pa.string())])
SHARDS, ROWS = 12, 40


def numbers(store: Store, progress: Progress, shards: int = SHARDS) -> list[Shard]:
    """Write the input table."""
    return [
        store.write(
            "numbers",
            f"part-{i:05d}",
            pa.table([pa.array(range(i * ROWS, (i + 1) * ROWS))], schema=NUMBERS),
            NUMBERS,
        )
        for i in range(shards)
    ]


class Squarer:
    """Squares; some numbers misbehave in the ways that real work does."""

    def __init__(
        self, seconds: float, bad_row: int | None, bad_shard: int | None, kill_once: str | None
    ) -> None:
        self.seconds, self.bad_row, self.bad_shard = seconds, bad_row, bad_shard
        self.kill_once = kill_once

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield one chunk for each ten rows."""
        for start in range(0, rows.num_rows, 10):
            time.sleep(self.seconds / 4)
            part = rows["number"][start : start + 10].to_pylist()
            if self.bad_shard is not None and self.bad_shard in part:
                raise ValueError(f"cannot square {self.bad_shard}")
            if self.kill_once and part[0] >= ROWS and not Path(self.kill_once).exists():
                Path(self.kill_once).write_text("was here")
                os.kill(os.getpid(), signal.SIGKILL)
            yield pa.table(
                [
                    pa.array(part, pa.int64()),
                    pa.array([None if n == self.bad_row else n * n for n in part], pa.int64()),
                    pa.array(["not a number" if n == self.bad_row else None for n in part]),
                ],
                schema=SQUARES,
            )


def _names(store: Store) -> list[str]:
    return list(store.shards("numbers"))


def _read(store: Store, name: str) -> pa.Table:
    return store.read("numbers", name)


def stages(
    seconds: float = 0.0,
    bad_row: int | None = None,
    bad_shard: int | None = None,
    kill_once: str | None = None,
    settings: dict[str, object] | None = None,
    shards: int = SHARDS,
) -> list[Stage]:
    """Numbers and their squares."""
    worker: Callable[[], Worker] = partial(Squarer, seconds, bad_row, bad_shard, kill_once)
    return [
        Build("numbers", 1, NUMBERS, {"shards": shards}, (), partial(numbers, shards=shards)),
        Map("squares", 1, SQUARES, settings or {}, ("numbers",), _names, _read, worker),
    ]


def make(root: str, compute: Compute | None = None, **options: object) -> str:
    """Run the toy stages; returns what progress said."""
    out = io.StringIO()
    run_stages(
        stages(**options),  # type: ignore[arg-type]
        Store(root),
        compute or Compute(),
        Progress(out),
    )
    return out.getvalue()


def main() -> None:
    """Make the tables that the command line wants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--ray")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=float)
    parser.add_argument("--kill-once")
    given = parser.parse_args()
    compute = Compute(ray=given.ray, workers=given.workers, gpus_per_worker=given.gpus)
    try:
        print(make(given.root, compute, seconds=given.seconds, kill_once=given.kill_once))
    except AigiError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
