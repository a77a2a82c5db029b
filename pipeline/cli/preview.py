"""`aigi preview`: a workflow in; a few of its images, a page of them and what they cost, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion
from pipeline.cli.show import Override, Quiet, Trust, explained, note, show, talk, tell

if TYPE_CHECKING:
    from pipeline.workflow import Workflow


def preview(
    workflow_file: Annotated[
        str,
        typer.Argument(
            help="Workflow with a plan: a file, or a name.", autocompletion=completion.workflows
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Images of each source, over its splits.")] = 8,
    overrides: Override = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file; the contact sheet is beside it.")
    ] = Path("preview.html"),
    quiet: Quiet = False,
    trust: Trust = False,
) -> None:
    """Make a few images of every source at full settings, before anything large is started.

    They are in RUN-preview, and `aigi run` takes over those whose settings are still the same.
    """
    with explained():
        from rich.table import Table

        from pipeline import build
        from pipeline import workflow as workflows
        from pipeline.execute import at_work
        from pipeline.files import write_file
        from pipeline.images.preview import read_costs
        from pipeline.outside import on_this_machine, reached
        from pipeline.pages import preview as pages
        from pipeline.progress import Progress
        from pipeline.release.trust import confirm
        from pipeline.store import Store

        on_this_machine(out)
        workflow = workflows.load(workflow_file, overrides or ())
        confirm(workflow, trust)
        few = build.preview_of(workflow, count)
        progress = Progress(quiet=quiet)
        with at_work(few.run, progress) as book:
            build.preview(few, progress)
            book.end(0)
        store = Store(few.run)
        costs = read_costs(store)
        rows = pages.cost_rows(costs, _planned(workflow))
        table = Table(*pages.HEADINGS[:2], title="What an image costs")
        for heading in pages.HEADINGS[2:]:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        said = pages.said_of(costs) if costs else ""
        if rows:
            show(table)
            talk(said)
        picture = out.with_suffix(".webp")
        with reached(str(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_file(out, pages.page(store, rows, said).encode())
            write_file(picture, pages.sheet(store))
        note(run=few.run, costs=[cost.model_dump(mode="json") for cost in costs])
        tell(f"page: {out}", page=str(out))
        tell(f"sheet: {picture}", sheet=str(picture))
        talk(f"next: aigi run {workflow_file}, which takes over what is still the same")


def _planned(workflow: Workflow) -> dict[tuple[str, str], int]:
    """Generations of the whole plan, by source and size."""
    from pipeline.plan import specification
    from pipeline.plan.quotas import quotas

    plan = workflow.planned("preview")
    found: dict[tuple[str, str], int] = {}
    for quota in quotas(specification.load(plan.dataset), plan):
        key = (quota.source, f"{quota.spec.width}x{quota.spec.height}")
        found[key] = found.get(key, 0) + quota.planned
    return found
