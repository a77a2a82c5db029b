"""`aigi run`, `demo`, `sweep` and `schema`: a workflow in, a run or what is known of it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion
from pipeline.cli.show import (
    Override,
    Quiet,
    Trust,
    complain,
    dump,
    explained,
    hinted,
    note,
    show,
    talk,
    tell,
)  # fmt: skip
from pipeline.execute import FEWER
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.intact import Checks
    from pipeline.prompts.prompts import Prompts
    from pipeline.selection.tally import Lack
    from pipeline.store import Store
    from pipeline.workflow import Workflow


AllowFewer = Annotated[
    bool,
    typer.Option("--allow-fewer", help=f"Exit with 0, not {FEWER}, if images are missing."),
]
Retry = Annotated[
    bool,
    typer.Option("--retry-failed", help="Make rows that have an error again, and what follows."),
]


def _report_lacks(workflow: Workflow, found: Sequence[Lack], allowed: bool) -> None:
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


def run(
    workflow_file: Annotated[
        str,
        typer.Argument(help="Workflow file; see workflows/.", autocompletion=completion.workflows),
    ],
    overrides: Override = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Look at the inputs, print counts, disk, downloads and GPU-hours, then stop.",
        ),
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
        from pipeline.release.trust import confirm

        workflow = workflows.load(workflow_file, overrides or ())
        if dry_run:
            what_it_takes(workflow)
            return
        confirm(workflow, trust)
        carry_out(workflow, quiet, allow_fewer, Checks(rehash, adopt, retry, replace))


def what_it_takes(workflow: Workflow) -> None:
    """Show what a workflow would make, and all that will certainly fail.

    Raises:
        typer.Exit: with 1, if something will.
    """
    from dataclasses import asdict

    from pipeline.dry_run.tables import Found, parts
    from pipeline.release.trust import asked

    found = Found()
    for part in parts(workflow, found):
        show(part)
    note(plan=[asdict(line) for line in found.plan])
    for line in asked(workflow):
        tell(f"--trust would be needed for: {line}")
    for line in found.wrong:
        complain(hinted(line))
    if found.wrong:
        raise typer.Exit(1)


def carry_out(workflow: Workflow, quiet: bool, allow_fewer: bool, checks: Checks) -> None:
    """Make what a workflow asks for, and say where its release is.

    Raises:
        typer.Exit: with FEWER, if there are fewer images than wanted.
    """
    from pipeline.execute import execute

    done = execute(workflow, Progress(quiet=quiet), checks, allow_fewer)
    note(run=workflow.run, lacks=[str(lack) for lack in done.lacks])
    if done.benchmark is not None:
        tell(f"benchmark: {done.benchmark}", benchmark=done.benchmark)
    if workflow.release is not None:
        folder = workflow.run.rstrip("/") + "/release"
        tell(f"release: {folder}", release=folder)
        talk(f"next: aigi verify {folder}")
    _report_lacks(workflow, done.lacks, allow_fewer)


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    overrides: Override = None,
    allow_fewer: AllowFewer = False,
    quiet: Quiet = False,
) -> None:
    """Make a small dataset with embedded models in a few minutes, without network and GPU."""
    with explained():
        from pipeline.demo import demo_workflow, run_demo
        from pipeline.execute import execute
        from pipeline.outside import on_this_machine

        on_this_machine(out)
        found: list[Lack] = []
        progress = Progress(quiet=quiet)
        run_demo(
            out,
            overrides or (),
            lambda workflow: found.extend(execute(workflow, progress, None, allow_fewer).lacks),
            show,
        )
        _report_lacks(demo_workflow(out, overrides or ()), found, allow_fewer)


def sweep(
    workflow_file: Annotated[
        str,
        typer.Argument(help="Workflow of a run with scores.", autocompletion=completion.workflows),
    ],
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
