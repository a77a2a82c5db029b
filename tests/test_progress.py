"""Progress goes by rows, from the first batch on, on a terminal and off it; what it does not know
it does not tell."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.progress import Bar, Doing, Progress
from pipeline.running import run_stages
from pipeline.stage import Compute, Map
from pipeline.store import Store
from tests import toy


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("pipeline.progress.time.monotonic", found)
    return found


def test_lines_off_a_terminal_come_with_the_first_batch_and_then_each_minute(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(out).stage("images", 4, 0, 0, 400) as bar:
        for seconds, rows in ((3, 5), (30, 10), (31, 11), (89, 40), (90, 45), (151, 80)):
            clock.now = 1000.0 + seconds
            bar.under_way("a", rows, rows)
    assert out.getvalue().splitlines()[:-1] == [
        "images: 10/400 rows, 0/4 shards, 0.333 rows/s, 19 min 30 s left",
        "images: 45/400 rows, 0/4 shards, 0.500 rows/s, 11 min 50 s left",
        "images: 80/400 rows, 0/4 shards, 0.530 rows/s, 10 min 04 s left",
    ]


def test_a_terminal_shows_every_batch(clock: Clock) -> None:
    out = Terminal()
    with Progress(out).stage("images", 4, 0, 0, 400) as bar:
        clock.now += 1
        bar.under_way("a", 5, 5)
        assert out.getvalue().endswith(
            "\x1b[2Kimages: 5/400 rows, 0/4 shards, 5.0 rows/s, 1 min 19 s left"
        )
        clock.now += 0.1
        bar.under_way("a", 6, 6)
        assert out.getvalue().endswith("1 min 19 s left"), "five times a second at most"
        clock.now += 0.2
        bar.under_way("b", 4, 4)
        assert "images: 10/400 rows" in out.getvalue()


def test_a_total_that_is_unknown_is_said_to_be(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(out).stage("release", 4, 1, 100) as bar:
        clock.now += 10
        bar.under_way("b", 7, 7)
        clock.now += 60
        bar.advance(20, "b")
    first, second, _ = out.getvalue().splitlines()
    assert first == "release: 107 rows (total unknown), 1/4 shards, 0.700 rows/s"
    assert second == (
        "release: 120 rows (total unknown), 2/4 shards, 0.286 rows/s, 2 min 20 s left"
    )


def test_rows_that_were_kept_are_done_but_no_speed(clock: Clock) -> None:
    bar = Bar(io.StringIO(), "images", 2, 0, 0, 200)
    clock.now += 10
    bar.under_way("a", 90, 0)
    assert (bar.doing().done, bar.doing().rate, bar.doing().left) == (90, None, None)
    bar.under_way("a", 100, 10)
    assert (bar.doing().done, bar.doing().rate, bar.doing().left) == (100, 1.0, 100.0)
    bar.advance(100, "a", 10)
    bar.under_way("a", 95, 5)  # a worker's sign that comes late
    assert (bar.doing().done, bar.doing().rate, bar.doing().shards) == (100, 1.0, (1, 2))
    bar.under_way("b", 50, 50)
    bar.fail("b", "no device")
    assert bar.doing().done == 100, "what a failed shard had is not done"


def test_quiet_keeps_failures_alone(clock: Clock) -> None:
    for out in (io.StringIO(), Terminal()):
        with Progress(out, quiet=True).stage("images", 2, 0, 0, 20) as bar:
            clock.now += 100
            bar.under_way("a", 5, 5)
            bar.fail("a", "no device")
            bar.advance(10, "b")
        assert out.getvalue() == "images: a failed: no device\n"


def test_what_a_stage_does_is_known_before_it_counts(clock: Clock) -> None:
    progress = Progress(io.StringIO())

    def doing() -> Doing | None:
        return None if progress.doing is None else progress.doing()

    assert doing() is None
    with progress.at("duplicates"):
        clock.now += 7
        assert doing() == Doing("duplicates", idle=7.0)
        assert str(doing()) == "duplicates: at work"
        with progress.steps("joining") as told:
            told(3, 12)
            clock.now += 6
            told(6, 12)
            clock.now += 1
            assert doing() == Doing("joining", "steps", 6, 12, None, 1.0, 6.0, 1.0)
        assert str(doing()) == "duplicates: at work"
    assert doing() is None


def test_stages_know_how_many_rows_they_will_make(tmp_path: Path) -> None:
    """From the records alone: what is whole counts, and of failed rows what is made again."""
    from pipeline.intact import Checks

    bars: list[Bar] = []

    class Kept(Progress):
        @contextmanager
        def stage(self, *given: Any, **more: Any) -> Iterator[Bar]:
            with super().stage(*given, **more) as bar:
                bars.append(bar)
                yield bar

    def go(retry: bool = False, **more: object) -> Doing:
        run_stages(
            toy.stages(shards=3, **more),  # type: ignore[arg-type]
            Store(str(tmp_path)),
            Compute(),
            Kept(io.StringIO()),
            Checks(retry=retry),
        )
        return bars[-1].doing()

    done = go(bad_row=50)
    assert (done.done, done.total, done.shards) == (120, 120, (3, 3))
    (tmp_path / "squares" / "part-00000.parquet").unlink()
    done = go(bad_row=50)
    assert (done.done, done.total, bars[-1].fresh_rows) == (120, 120, 40)
    done = go(retry=True)
    assert (done.done, done.total, bars[-1].fresh_rows) == (120, 120, 1)


def test_batches_of_a_shard_count_before_it_is_finished(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looked(toy.Squarer):
        def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
            for chunk in super().__call__(rows, start):
                assert progress.doing is not None
                seen.append(progress.doing().done)
                yield chunk

    numbers, squares = toy.stages(shards=1)
    assert isinstance(squares, Map)
    progress = Progress(io.StringIO())
    stage = replace(squares, make_worker=lambda: Looked(0.0, None, None, None))
    run_stages([numbers, stage], Store(str(tmp_path)), Compute(), progress)
    assert seen == [0, 10, 20, 30]
