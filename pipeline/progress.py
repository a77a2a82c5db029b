"""Work done in, one progress line per stage out: rows, rate and time left, on standard error.

Everything is also logged (`LOG`), with the full texts of errors; `pipeline.logbook` keeps that.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from pipeline.shown import one_line

LOG = logging.getLogger("pipeline")
_FIRST, _EVERY = 5.0, 60.0
"""Where the output is no terminal: the first line comes when a batch is made and the stage has
taken this many seconds, further ones after this many."""
_LIVE = 0.2  # seconds between changes on a terminal


def duration(seconds: float) -> str:
    """Seconds as `3.2 s`, `4 min 05 s` or `7 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


@dataclass(frozen=True)
class Doing:
    """What a process is doing.

    Attributes:
        stage: its table, or the name of the work.
        unit: what `done` and `total` count; empty: nothing is counted.
        total: None: unknown.
        shards: finished shards and all shards; None: it has none.
        rate: units a second since the stage began; None: none was made yet.
        left: seconds that the rest takes at this rate; None: unknown.
        idle: seconds since the last batch, or since the stage began.
    """

    stage: str
    unit: str = ""
    done: int = 0
    total: int | None = None
    shards: tuple[int, int] | None = None
    rate: float | None = None
    left: float | None = None
    idle: float = 0.0

    def __str__(self) -> str:
        """One line: `images: 120/8,000 rows, 1/80 shards, 3.2 rows/s, 41 min 02 s left`."""
        parts = []
        if self.unit and self.total is None:
            parts.append(f"{self.done:,} {self.unit} (total unknown)")
        elif self.unit:
            parts.append(f"{self.done:,}/{self.total:,} {self.unit}")
        if self.shards is not None:
            parts.append(f"{self.shards[0]:,}/{self.shards[1]:,} shards")
        if self.rate is not None:
            digits = 1 if self.rate >= 1 else 3
            parts.append(f"{self.rate:,.{digits}f} {self.unit}/s")
        if self.left is not None:
            parts.append(f"{duration(self.left)} left")
        return one_line(f"{self.stage}: {', '.join(parts) or 'at work'}")


class Bar:
    """Progress of one stage: of its rows, also of those in shards that are not finished yet.

    Args:
        total, done: shards, all and finished ones.
        rows: rows that are made already.
        of: all rows; None: unknown.
    """

    def __init__(
        self,
        out: IO[str],
        table: str,
        total: int,
        done: int,
        rows: int,
        of: int | None = None,
        quiet: bool = False,
    ) -> None:
        self.out, self.table, self.total, self.done, self.rows = out, table, total, done, rows
        self.of, self.quiet = of, quiet
        self.fresh_shards = self.fresh_rows = 0
        self._parts: dict[str, tuple[int, int]] = {}  # rows of unfinished shards: all, fresh
        self._ended: set[str] = set()
        self._lock = threading.RLock()  # workers are asked in a thread
        self.started = self.batch = time.monotonic()
        self._shown, self._logged = self.started, self.started
        self._waits = _FIRST
        self.live = out.isatty() and not quiet
        self._show(force=self.live)

    def advance(self, rows: int, shard: str = "", fresh: int | None = None) -> None:
        """One more shard of `rows` rows is finished.

        Args:
            fresh: those of them that were made now; None: all.
        """
        with self._lock:
            self._end(shard)
            self.done += 1
            self.rows += rows
            self.fresh_shards += 1
            self.fresh_rows += rows if fresh is None else fresh
            self.batch = time.monotonic()
            self._show()

    def under_way(self, shard: str, rows: int, fresh: int) -> None:
        """So many rows of a shard are made, `fresh` of them now; it is not finished."""
        with self._lock:
            if shard in self._ended:  # a worker's word that comes late
                return
            if self._parts.get(shard) != (rows, fresh):
                self.batch = time.monotonic()
            self._parts[shard] = rows, fresh
            self._show()

    def note(self, text: str) -> None:
        """Print a line above the progress line."""
        line = one_line(f"{self.table}: {text}")
        with self._lock:
            LOG.info(line)
            print(("\r\x1b[2K" if self.live else "") + line, file=self.out, flush=True)
            self._show(force=self.live)

    def fail(self, name: str, error: str) -> None:
        """Report that one shard failed; the stage goes on."""
        with self._lock:
            self._end(name)
        LOG.info("%s: %s failed:\n%s", self.table, name, error.strip())
        self.note(f"{name} failed: {error.strip().splitlines()[-1]}")

    def _end(self, shard: str) -> None:
        self._parts.pop(shard, None)
        if shard:
            self._ended.add(shard)

    def doing(self) -> Doing:
        """What is done so far, the rate and the time left."""
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self.started, 1e-6)
            rows = self.rows + sum(rows for rows, _ in self._parts.values())
            fresh = self.fresh_rows + sum(fresh for _, fresh in self._parts.values())
            rate = fresh / seconds if fresh else None
            left = None
            if self.of is not None and rate is not None:
                left = max(0, self.of - rows) / rate
            elif self.of is None and self.fresh_shards:
                left = (self.total - self.done) * seconds / self.fresh_shards
            shards = self.done, self.total
            return Doing(self.table, "rows", rows, self.of, shards, rate, left, now - self.batch)

    def look(self) -> None:
        """Show the line where it is time, though nothing has been made meanwhile."""
        with self._lock:
            self._show()

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        made = bool(self.fresh_shards or self._parts)
        if made and now - self._logged >= self._waits:
            self._logged, self._waits = now, _EVERY
            text = str(self.doing())
            LOG.info(text)
            if not self.live and not self.quiet:
                print(text, file=self.out, flush=True)
        if self.live and (force or now - self._shown >= _LIVE):
            self._shown = now
            print(f"\r\x1b[2K{self.doing()}", end="", file=self.out, flush=True)


class Progress:
    """Where a run reports its progress; `quiet` keeps only notes of failures.

    Attributes:
        doing: asks what the run is doing now; None: nothing.
    """

    def __init__(self, out: IO[str] | None = None, quiet: bool = False) -> None:
        self.out, self.quiet = out or sys.stderr, quiet
        self.doing: Callable[[], Doing] | None = None
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        LOG.info(one_line(text))
        if not self.quiet:
            print(one_line(text), file=self.out, flush=True)

    def skip(self, table: str, count: int, what: str = "shards") -> None:
        """Report that a stage is already finished."""
        self.say(f"{table}: {count} {what}, already made")

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Around a stage, so that it is known what the run does until the stage itself reports."""
        before, started = self.doing, time.monotonic()
        self.doing = lambda: Doing(stage, idle=time.monotonic() - started)
        try:
            yield
        finally:
            self.doing = before

    @contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of one long piece of work: call what this gives with steps done and all steps.

        Nothing is left of it on a terminal; elsewhere there is a line a minute.
        """
        started = shown = batch = time.monotonic()
        live = self.out.isatty() and not self.quiet
        before, waits = self.doing, _FIRST
        at = (0, 0)

        def doing() -> Doing:
            (done, total), seconds = at, max(batch - started, 1e-6)
            rate = done / seconds if done else None
            left = (total - done) / rate if rate else None
            idle = time.monotonic() - batch
            return Doing(what, "steps", done, total or None, None, rate, left, idle)

        def told(done: int, total: int) -> None:
            nonlocal shown, batch, at, waits
            at, batch = (done, total), time.monotonic()
            if self.quiet or batch - shown < (_LIVE if live else waits):
                return
            shown, waits = batch, _EVERY
            text = str(doing())
            if not live:
                LOG.info(text)
            print(
                f"\r\x1b[2K{text}" if live else text,
                end="" if live else "\n",
                file=self.out,
                flush=True,
            )

        self.doing = doing
        try:
            yield told
        finally:
            self.doing = before
            if live:
                print("\r\x1b[2K", end="", file=self.out, flush=True)

    @contextmanager
    def stage(
        self, table: str, total: int, done: int, rows: int, of: int | None = None
    ) -> Iterator[Bar]:
        """Progress of one map stage, ended by a line with its totals.

        Args:
            total, done, rows, of: as for `Bar`.
        """
        bar = Bar(self.out, table, total, done, rows, of, self.quiet)
        before = self.doing, self.bar
        self.doing, self.bar = bar.doing, bar
        try:
            yield bar
        finally:
            self.doing, self.bar = before
            seconds = time.monotonic() - bar.started
            if bar.live:
                print("\r\x1b[2K", end="", file=self.out)
            rate = bar.fresh_rows / max(seconds, 1e-6)
            self.say(
                f"{table}: {bar.done}/{total} shards, {bar.rows:,} rows in {duration(seconds)}"
                + (f" ({rate:,.1f} rows/s)" if bar.fresh_rows else "")
            )
