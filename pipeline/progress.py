"""Work done in, one progress line per stage out: rate and time left, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from pipeline.shown import one_line

_EVERY = 10.0  # seconds between lines where the output is no terminal


def duration(seconds: float) -> str:
    """Seconds as `3.2 s`, `4 min 05 s` or `7 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


class Bar:
    """Progress of one stage; `total` and `done` count shards, the rate is in rows."""

    def __init__(self, out: IO[str], table: str, total: int, done: int, rows: int) -> None:
        self.out, self.table, self.total, self.done, self.rows = out, table, total, done, rows
        self.fresh_shards = self.fresh_rows = 0
        self.started = self.shown = time.monotonic()
        self.live = out.isatty()
        self._show(force=self.live)

    def advance(self, rows: int) -> None:
        """One more shard of `rows` rows is finished."""
        self.done += 1
        self.rows += rows
        self.fresh_shards += 1
        self.fresh_rows += rows
        self._show()

    def note(self, text: str) -> None:
        """Print a line above the progress line."""
        print(("\r\x1b[2K" if self.live else "") + one_line(f"{self.table}: {text}"), file=self.out)
        self._show(force=self.live)

    def fail(self, name: str, error: str) -> None:
        """Report that one shard failed; the stage goes on."""
        self.note(f"{name} failed: {error.strip().splitlines()[-1]}")

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.shown < (0.2 if self.live else _EVERY):
            return
        self.shown = now
        seconds = max(now - self.started, 1e-6)
        left = (self.total - self.done) * seconds / self.fresh_shards if self.fresh_shards else 0
        text = f"{self.table}: {self.done}/{self.total} shards, {self.rows:,} rows"
        if self.fresh_shards:
            text += f", {self.fresh_rows / seconds:,.1f} rows/s, {duration(left)} left"
        print(
            f"\r\x1b[2K{text}" if self.live else text,
            end="" if self.live else "\n",
            file=self.out,
            flush=True,
        )


class Progress:
    """Where a run reports its progress; `quiet` keeps only notes of failures."""

    def __init__(self, out: IO[str] | None = None, quiet: bool = False) -> None:
        self.out, self.quiet = out or sys.stderr, quiet

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            print(one_line(text), file=self.out, flush=True)

    def skip(self, table: str, count: int, what: str = "shards") -> None:
        """Report that a stage is already finished."""
        self.say(f"{table}: {count} {what}, already made")

    @contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of one long piece of work: call what this gives with steps done and all steps.

        Nothing is left of it on a terminal; elsewhere there is a line every ten seconds.
        """
        started = shown = time.monotonic()
        live = self.out.isatty() and not self.quiet

        def told(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if self.quiet or now - shown < (0.2 if live else _EVERY):
                return
            shown = now
            left = (total - done) * (now - started) / max(done, 1)
            text = f"{what}: {done}/{total} steps, {duration(left)} left"
            print(
                f"\r\x1b[2K{text}" if live else text,
                end="" if live else "\n",
                file=self.out,
                flush=True,
            )

        try:
            yield told
        finally:
            if live:
                print("\r\x1b[2K", end="", file=self.out, flush=True)

    @contextmanager
    def stage(self, table: str, total: int, done: int, rows: int) -> Iterator[Bar]:
        """Progress of one map stage, ended by a line with its totals."""
        bar = Bar(self.out, table, total, done, rows)
        try:
            yield bar
        finally:
            seconds = time.monotonic() - bar.started
            if bar.live:
                print("\r\x1b[2K", end="", file=self.out)
            rate = bar.fresh_rows / max(seconds, 1e-6)
            self.say(
                f"{table}: {bar.done}/{total} shards, {bar.rows:,} rows in {duration(seconds)}"
                + (f" ({rate:,.1f} rows/s)" if bar.fresh_rows else "")
            )
