"""A toy stage on real tables: numbers in, squares out; for tests of the spine.

python -m tests.toy ROOT [--seconds S] [--ray local] [--workers N] [--kill-once MARKER]
    [--keep-every S] [--log FILE] [--kill-at NUMBER] [--beat S]
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

from pipeline import AigiError, alive, parts
from pipeline.progress import Progress
from pipeline.running import run_stages
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
        self,
        seconds: float,
        bad_row: int | None,
        bad_shard: int | None,
        kill_once: str | None,
        log: str | None = None,
        kill_at: int | None = None,
        every: float | None = None,
        beat: float | None = None,
        weighs: bool = True,
    ) -> None:
        self.seconds, self.bad_row, self.bad_shard = seconds, bad_row, bad_shard
        self.kill_once, self.log, self.kill_at = kill_once, log, kill_at
        quick(every, beat)  # also in a worker of Ray
        if weighs:
            self.loaded = {"toy": "0" * 64}

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield one chunk for each ten rows."""
        for place in range(start, rows.num_rows, 10):
            time.sleep(self.seconds / 4)
            part = rows["number"][place : place + 10].to_pylist()
            if self.log is not None:  # one line for each batch that is made
                with open(self.log, "a") as log:
                    log.write(f"{part[0]}\n")
            if self.kill_at in part and not Path(f"{self.log}.killed").exists():
                Path(f"{self.log}.killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
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


def quick(every: float | None, beat: float | None) -> None:
    """Write parts and signs of life more often than people need them."""
    if every is not None:
        parts.EVERY, parts._SHARE = every, 0
    if beat is not None:
        alive.EVERY = beat


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
    keeps: bool = False,
    **more: object,
) -> list[Stage]:
    """Numbers and their squares; with `keeps`, finished batches of a killed shard are kept."""
    worker: Callable[[], Worker] = partial(
        Squarer,
        seconds,
        bad_row,
        bad_shard,
        kill_once,
        **more,  # type: ignore[arg-type]
    )
    kept = () if keeps else None
    return [
        Build("numbers", 1, NUMBERS, {"shards": shards}, (), partial(numbers, shards=shards)),
        Map("squares", 1, SQUARES, settings or {}, ("numbers",), _names, _read, worker, keeps=kept),
    ]


def make(root: str, compute: Compute | None = None, **options: object) -> str:
    """Run the toy stages; returns what progress said."""
    out = io.StringIO()
    progress = Progress(out)
    run_stages(
        stages(**options),  # type: ignore[arg-type]
        Store(root),
        compute or Compute(),
        progress,
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
    parser.add_argument("--keep-every", type=float)
    parser.add_argument("--log")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--beat", type=float)
    parser.add_argument("--shards", type=int, default=SHARDS)
    given = parser.parse_args()
    compute = Compute(ray=given.ray, workers=given.workers, gpus_per_worker=given.gpus)
    quick(given.keep_every, given.beat)
    every = given.keep_every
    try:
        print(
            make(
                given.root,
                compute,
                seconds=given.seconds,
                kill_once=given.kill_once,
                shards=given.shards,
                keeps=every is not None,
                log=given.log,
                kill_at=given.kill_at,
                every=every,
                beat=given.beat,
            )
        )
    except AigiError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
