"""`aigi run`, `demo`, `status`, `sweep` and `schema`: a workflow in, a run or its state out."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError
from pipeline.cli.show import Override, Quiet, Trust, dump, explained, show, talk, tell

if TYPE_CHECKING:
    from pipeline.intact import Checks
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


def _execute(workflow: Workflow, quiet: bool, checks: Checks | None = None) -> None:
    from pipeline.files import sweep_scratch
    from pipeline.intact import USUAL
    from pipeline.run import alone, first_process

    # Of several processes that train together, the first holds the directory for all.
    with alone(workflow.run) if first_process() else nullcontext():
        sweep_scratch()
        try:
            _make(workflow, quiet, checks or USUAL)
        except (KeyboardInterrupt, SystemExit):
            _tidy(workflow.run)
            raise


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


def _make(workflow: Workflow, quiet: bool, checks: Checks) -> None:
    from pipeline.build import make, readers, stages
    from pipeline.progress import Progress
    from pipeline.run import first_process, run_stages
    from pipeline.stage import Files
    from pipeline.store import Store

    progress, store = Progress(quiet=quiet), Store(workflow.run)
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
    run_stages(reading, store, workflow.compute, progress, checks)
    if train is not None and train.anchors and first_process():
        from pipeline.benchmark.trained import benchmark_of

        benchmark = benchmark_of(train, workflow.run)
    if benchmark is not None:
        from pipeline.benchmark.stages import make as measure

        page = measure(benchmark, workflow.compute, store, progress, checks)
        tell(f"benchmark: {page}")


def _report_lacks(workflow: Workflow, allowed: bool) -> None:
    """Report a finished run that has fewer images than wanted, and end with an exit code for it."""
    if workflow.images is None:
        return
    from pipeline.selection.tally import lacks
    from pipeline.store import Store

    store = Store(workflow.run)
    found = lacks(workflow.planned("selection"), store)
    if not found:
        return
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
        bool, typer.Option("--dry-run", help="Print counts, disk and GPU-hours, then stop.")
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
            from pipeline.dry_run import parts

            for part in parts(workflow):
                show(part)
            for line in asked(workflow):
                tell(f"--trust would be needed for: {line}")
            return
        confirm(workflow, trust)
        _execute(workflow, quiet, Checks(rehash, adopt, retry))
        if workflow.release is not None:
            folder = workflow.run.rstrip("/") + "/release"
            tell(f"release: {folder}")
            talk(f"next: aigi verify {folder}")
        _report_lacks(workflow, allow_fewer)


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
        run_demo(out, overrides or (), lambda workflow: _execute(workflow, quiet), show)
        _report_lacks(demo_workflow(out, overrides or ()), allow_fewer)


def status(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every stage of a run: shards done, failed and missing, rows, bytes, time.

    For codecs in training, show the step and the latest means.
    """
    with explained():
        from dataclasses import asdict

        from pipeline.progress import duration
        from pipeline.status import status as stage_status
        from pipeline.store import Store
        from pipeline.training.logs import logs

        store = Store(run_folder)
        found, codecs = stage_status(store), logs(store)
        if as_json:
            rows = [asdict(stage) for stage in found]
            rows += [
                {"table": f"train/{log.name}", "step": log.step, "steps": log.steps,
                 "seconds": log.seconds}
                for log in codecs
            ]  # fmt: skip
            dump(rows)
            return
        from rich.table import Table

        table = Table("stage", "state")
        for heading in ("done", "failed", "missing", "rows", "MB", "time"):
            table.add_column(heading, justify="right")
        for stage in found:
            table.add_row(
                stage.table,
                stage.state,
                f"{stage.done:,}",
                f"{stage.failed:,}",
                f"{stage.missing:,}",
                f"{stage.rows:,}",
                f"{stage.bytes / 1e6:,.1f}",
                duration(stage.seconds),
            )
        if found:
            show(table)
        for stage in found:
            if stage.note:
                tell(f"{stage.table}: {stage.note}")
        table = Table("codec in training")
        for heading in ("step", "loss", "bpp", "PSNR, dB", "time"):
            table.add_column(heading, justify="right")
        for log in codecs:
            last = log.curve[-1] if log.curve else {}
            numbers = (
                f"{last[name]:{form}}" if name in last else ""
                for name, form in (("loss", ".4g"), ("bpp", ".4f"), ("psnr", ".2f"))
            )
            table.add_row(log.name, log.progress, *numbers, duration(log.seconds))
        if codecs:
            show(table)


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
    """Show how many images each threshold of the selection would drop, with examples."""
    with explained():
        from rich.table import Table

        from pipeline import workflow as workflows
        from pipeline.selection.sweep import sweep as sweep_run
        from pipeline.store import Store

        loaded = workflows.load(workflow_file, overrides or ())
        table = Table("setting", title=f"Images that thresholds would drop in {loaded.run}")
        table.add_column("threshold", justify="right")
        table.add_column("dropped", justify="right")
        for heading in ("by source", "nearest to the threshold"):
            table.add_column(heading)
        lines = list(sweep_run(loaded.rules, Store(loaded.run), examples))
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

            draw(Store(loaded.run), lines, sheet)
            tell(f"sheet: {sheet}")


def schema() -> None:
    """Print the JSON schema of a workflow file, for editors."""
    from pipeline.workflow import Workflow

    dump(Workflow.model_json_schema())
