"""`aigi run`, `demo`, `sweep` and `schema`: a workflow in, a run or what is known of it out."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError
from pipeline.cli.show import Override, Quiet, Stopped, Trust, dump, explained, show, talk, tell
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.intact import Checks
    from pipeline.logbook import Book
    from pipeline.prompts.prompts import Prompts
    from pipeline.selection.tally import Lack
    from pipeline.store import Store
    from pipeline.workflow import Workflow


FEWER = 3
"""Exit code of a run that ended well, but with fewer images than wanted."""

AllowFewer = Annotated[
    bool,
    typer.Option("--allow-fewer", help=f"Exit with 0, not {FEWER}, if images are missing."),
]
Retry = Annotated[
    bool,
    typer.Option("--retry-failed", help="Make rows that have an error again, and what follows."),
]


def _execute(
    workflow: Workflow, quiet: bool, allow_fewer: bool, checks: Checks | None = None
) -> list[Lack]:
    """Make what a workflow asks for, with signs of life and a log in its run.

    Returns: of what there are fewer images than wanted.
    """
    from pipeline.intact import USUAL
    from pipeline.run import first_process

    # Of several processes that train together, the first holds the directory for all.
    if not first_process():
        try:
            _make(workflow, Progress(quiet=quiet), checks or USUAL)
        except (KeyboardInterrupt, SystemExit):
            _tidy(workflow.run)
            raise
        return []
    with at_work(workflow.run, quiet) as (progress, book):
        _make(workflow, progress, checks or USUAL)
        found = _lacking(workflow)
        for lack in found:
            book.add(f"fewer images than wanted: {lack}")
        book.end(FEWER if found and not allow_fewer else 0)
    return found


@contextmanager
def at_work(run: str, quiet: bool) -> Iterator[tuple[Progress, Book]]:
    """Hold a run for a command; however that ends, put things in order and leave a last word."""
    import shlex
    import socket

    from pipeline import __version__, alive
    from pipeline.files import sweep_scratch
    from pipeline.logbook import logbook
    from pipeline.outside import Unreachable
    from pipeline.run import alone

    progress = Progress(quiet=quiet)
    about = f"aigi {__version__}, process {os.getpid()} on {socket.gethostname()}: "
    with (
        alone(run),
        logbook(run, about + shlex.join(sys.argv)) as book,
        alive.driver(run, progress),
    ):
        sweep_scratch()
        try:
            yield progress, book
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


def _make(workflow: Workflow, progress: Progress, checks: Checks) -> None:
    from pipeline.build import make, readers, stages
    from pipeline.run import first_process, run_stages
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
    if benchmark is not None:
        from pipeline.benchmark.stages import make as measure

        page = measure(benchmark, workflow.compute, store, progress, checks)
        tell(f"benchmark: {page}")


def _lacking(workflow: Workflow) -> list[Lack]:
    """Of what a finished run has fewer images than wanted."""
    if workflow.images is None:
        return []
    from pipeline.selection.tally import lacks
    from pipeline.store import Store

    return lacks(workflow.planned("selection"), Store(workflow.run))


def _report_lacks(workflow: Workflow, found: list[Lack], allowed: bool) -> None:
    """Report a finished run that has fewer images than wanted, and end with an exit code for it."""
    if not found:
        return
    from pipeline.store import Store

    store = Store(workflow.run)
    talk(f"{'' if allowed else 'error: '}fewer images than wanted:")
    for lack in found:
        talk(f"  {lack}")
    failed = any(lack.found.reasons["failed"] for lack in found)
    unplanned = any(lack.found.planned < lack.wanted for lack in found)
    remedies = [
        f"Captions and images that were refused are in {store.path('rejects')}." * unplanned,
        f"Failed images are in {store.path('rejects', 'images.parquet')}; when the cause is "
        "removed, make them again with --retry-failed." * failed,
        "selection.rounds replaces images that are dropped or fail." * (not workflow.rules.rounds),
        "" if allowed else f"The exit code is {FEWER}; --allow-fewer makes it 0.",
    ]
    talk(" ".join(filter(None, remedies)))
    if not allowed:
        raise typer.Exit(FEWER)


def _record(workflow: Workflow) -> None:
    """Record a workflow that only reads in its run, unless the one that built the run is there."""
    from pipeline.shown import public
    from pipeline.store import RUN_WORKFLOW, Store

    store = Store(workflow.run)
    if (store.read_json(RUN_WORKFLOW) or {}).get("plan") is None:
        store.write_json(public(workflow.model_dump(mode="json")), RUN_WORKFLOW)


def run(
    workflow_file: Annotated[str, typer.Argument(help="Workflow file; see workflows/.")],
    overrides: Override = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print counts, disk, downloads and GPU-hours, then stop."),
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash", help="Hash every file, and remake what is damaged; default: changed ones."
        ),
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take up shards of which the run has no record.")
    ] = False,
    retry: Retry = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Remove images and tables that changed settings cannot keep."
        ),
    ] = False,
    allow_fewer: AllowFewer = False,
    quiet: Quiet = False,
    trust: Trust = False,
) -> None:
    """Run the stages of a workflow. Finished work is kept, so the same command resumes."""
    with explained():
        from pipeline import workflow as workflows
        from pipeline.intact import Checks
        from pipeline.release.trust import asked, confirm

        workflow = workflows.load(workflow_file, overrides or ())
        if dry_run:
            from pipeline.dry_run.tables import parts

            for part in parts(workflow):
                show(part)
            for line in asked(workflow):
                tell(f"--trust would be needed for: {line}")
            return
        confirm(workflow, trust)
        execute(workflow, quiet, allow_fewer, Checks(rehash, adopt, retry, replace))


def execute(workflow: Workflow, quiet: bool, allow_fewer: bool, checks: Checks) -> None:
    """Make what a workflow asks for, and say where its release is.

    Raises:
        typer.Exit: with FEWER, if there are fewer images than wanted.
    """
    found = _execute(workflow, quiet, allow_fewer, checks)
    if workflow.release is not None:
        folder = workflow.run.rstrip("/") + "/release"
        tell(f"release: {folder}")
        talk(f"next: aigi verify {folder}")
    _report_lacks(workflow, found, allow_fewer)


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    overrides: Override = None,
    allow_fewer: AllowFewer = False,
    quiet: Quiet = False,
) -> None:
    """Make a small dataset with embedded models in a few minutes, without network and GPU."""
    with explained():
        from pipeline.demo import demo_workflow, run_demo
        from pipeline.outside import on_this_machine

        on_this_machine(out)
        found: list[Lack] = []
        run_demo(
            out,
            overrides or (),
            lambda workflow: found.extend(_execute(workflow, quiet, allow_fewer)),
            show,
        )
        _report_lacks(demo_workflow(out, overrides or ()), found, allow_fewer)


def sweep(
    workflow_file: Annotated[str, typer.Argument(help="Workflow of a run with scores.")],
    overrides: Override = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Example images to show for each threshold.")
    ] = 3,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of the examples (.jpg, .png).")
    ] = None,
) -> None:
    """Show what each threshold of prompts and selection would drop, with examples."""
    with explained():
        from rich.table import Table

        from pipeline import workflow as workflows
        from pipeline.selection.sweep import sweep as sweep_run
        from pipeline.store import Store

        loaded = workflows.load(workflow_file, overrides or ())
        store = Store(loaded.run)
        if loaded.prompts is not None and store.shards("texts"):
            _sweep_prompts(loaded.prompts, store, examples)
            if not store.shards("images") and sheet is None:
                return
        table = Table("setting", title=f"Images that thresholds would drop in {loaded.run}")
        table.add_column("threshold", justify="right")
        table.add_column("dropped", justify="right")
        for heading in ("by source", "nearest to the threshold"):
            table.add_column(heading)
        lines = list(sweep_run(loaded.rules, store, examples))
        for line in lines:
            table.add_row(
                line.setting,
                f"{line.threshold:.4g}" + (" (now)" if line.current else ""),
                f"{line.dropped:,} of {line.scored:,}",
                ", ".join(f"{name} {count:,}" for name, count in line.sources.items()),
                " ".join(line.examples),
            )
        show(table)
        if sheet is not None:
            from pipeline.selection.sweep_sheet import draw

            draw(store, lines, sheet)
            tell(f"sheet: {sheet}")


def _sweep_prompts(prompts: Prompts, store: Store, examples: int) -> None:
    from rich.table import Table

    from pipeline.prompts.sweep import sweep as sweep_texts
    from pipeline.prompts.texts import name_of, origins

    table = Table("setting", title=f"Captions that thresholds would refuse in {store.url}")
    table.add_column("threshold", justify="right")
    table.add_column("refused", justify="right")
    for heading in ("by source", "refused from this threshold on"):
        table.add_column(heading)
    sources = {one.prefix(): name_of(one.source) for one in origins(prompts.sources)}
    for line in sweep_texts(prompts.filters, store, examples, sources):
        table.add_row(
            f"prompts.filters.{line.setting}",
            f"{line.threshold:.4g}" + (" (now)" if line.current else ""),
            f"{line.refused:,} of {line.scored:,}",
            ", ".join(f"{name} {count:,}" for name, count in line.sources.items()),
            " | ".join(line.examples),
        )
    show(table)


def schema() -> None:
    """Print the JSON schema of a workflow file, for editors."""
    from pipeline.workflow import Workflow

    dump(Workflow.model_json_schema())
