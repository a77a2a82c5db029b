"""A workflow in, all that it asks for made, with signs of life and a log in its run, out."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.intact import Checks
    from pipeline.logbook import Book
    from pipeline.selection.tally import Lack
    from pipeline.workflow import Workflow

FEWER = 3
"""Exit code of a run that ended well, but with fewer images than wanted."""


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end; `number` says which."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class Done:
    """A run that ended well.

    Attributes:
        lacks: of what there are fewer images than wanted.
        benchmark: the page of its benchmark, if it has one.
    """

    lacks: tuple[Lack, ...] = ()
    benchmark: str | None = None


def execute(
    workflow: Workflow, progress: Progress, checks: Checks | None = None, allow_fewer: bool = False
) -> Done:
    """Make what a workflow asks for; what is made already stays.

    Args:
        allow_fewer: the log says that the run ended well even if images are missing.

    Raises:
        AigiError: bad input, refused settings or failed shards; what is made is kept.
    """
    from pipeline.intact import USUAL
    from pipeline.running import first_process

    # Of several processes that train together, the first holds the directory for all.
    if not first_process():
        try:
            _make(workflow, progress, checks or USUAL)
        except (KeyboardInterrupt, SystemExit):
            _tidy(workflow.run)
            raise
        return Done()
    with at_work(workflow.run, progress) as book:
        page = _make(workflow, progress, checks or USUAL)
        found = _lacking(workflow)
        for lack in found:
            book.add(f"fewer images than wanted: {lack}")
        book.end(FEWER if found and not allow_fewer else 0)
    return Done(tuple(found), page)


@contextmanager
def at_work(run: str, progress: Progress) -> Iterator[Book]:
    """Hold a run for a command; however that ends, put things in order and leave a last word."""
    import shlex
    import socket

    from pipeline import __version__, alive
    from pipeline.files import sweep_scratch
    from pipeline.logbook import logbook
    from pipeline.outside import Unreachable
    from pipeline.running import alone

    about = f"aigi {__version__}, process {os.getpid()} on {socket.gethostname()}: "
    with (
        alone(run),
        logbook(run, about + shlex.join(sys.argv)) as book,
        alive.driver(run, progress),
    ):
        sweep_scratch()
        try:
            yield book
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                _tidy(run)
            book.end(*_last_word(error), reachable=not isinstance(error, Unreachable))
            raise


def _last_word(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that an error ends, and what its log has of it."""
    if isinstance(error, Stopped):
        return 128 + error.number, f"stopped by {signal.Signals(error.number).name}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "stopped"
    if isinstance(error, SystemExit):
        return 128 + signal.SIGTERM, "stopped"
    text = "".join(traceback.format_exception(error))
    return 1, f"{text}\n{error}" if str(error) else text


def _tidy(run: str) -> None:
    """End what this process has started, and remove half-written files of it."""
    import psutil

    from pipeline.cluster import disconnect
    from pipeline.files import sweep, sweep_scratch

    started = psutil.Process().children(recursive=True)
    disconnect()
    # Workers notice after a moment that Ray has gone; programs that they have started may not.
    _, alive = psutil.wait_procs(started, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    if "://" not in run:
        sweep(run)
    sweep_scratch()


def _make(workflow: Workflow, progress: Progress, checks: Checks) -> str | None:
    """Make everything; the page of the benchmark, if there is one."""
    from pipeline.build import make, readers, stages
    from pipeline.running import first_process, run_stages
    from pipeline.stage import Files
    from pipeline.store import Store

    store = Store(workflow.run)
    building, reading, benchmark = stages(workflow), readers(workflow), workflow.benchmark_here()
    train = workflow.train
    if train is not None and train.anchors and benchmark is not None:
        raise AigiError(
            "train.anchors: leave it out beside a benchmark section, which measures in their place"
        )
    alone = benchmark is not None or any(
        not (isinstance(stage, Files) and stage.together) for stage in (*building, *reading)
    )
    if alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AigiError(
            "run: a launcher started several processes, but only training can use them. "
            "Run the other sections in a workflow of their own, without the launcher."
        )
    if building:
        make(workflow, store, progress, checks)
    elif first_process():
        _record(workflow)
    if workflow.characteristics is not None or workflow.alignments is not None:
        from pipeline.analysis.stages import report_places

        report_places(workflow.characteristics, workflow.alignments, store, progress)
    run_stages(reading, store, workflow.compute, progress, checks)
    if train is not None and train.anchors and first_process():
        from pipeline.benchmark.trained import benchmark_of

        benchmark = benchmark_of(train, workflow.run)
    if benchmark is None:
        return None
    from pipeline.benchmark.stages import make as measure

    return measure(benchmark, workflow.compute, store, progress, checks)


def _lacking(workflow: Workflow) -> list[Lack]:
    """Of what a finished run has fewer images than wanted."""
    if workflow.images is None:
        return []
    from pipeline.selection.tally import lacks
    from pipeline.store import Store

    return lacks(workflow.planned("selection"), Store(workflow.run))


def _record(workflow: Workflow) -> None:
    """Record a workflow that only reads in its run, unless the one that built the run is there."""
    from pipeline.shown import public
    from pipeline.store import RUN_WORKFLOW, Store

    store = Store(workflow.run)
    if (store.read_json(RUN_WORKFLOW) or {}).get("plan") is None:
        store.write_json(public(workflow.model_dump(mode="json")), RUN_WORKFLOW)
