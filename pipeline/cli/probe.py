"""`aigi probe`: a workflow in; what its images cost on this device, and the whole plan, out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion
from pipeline.cli.show import Override, Quiet, Trust, explained, note, show, tell

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.images.costs import Probe


def probe(
    workflow_file: Annotated[
        str,
        typer.Argument(
            help="Workflow with a plan; see workflows/.", autocompletion=completion.workflows
        ),
    ],
    overrides: Override = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time for each source and size, beside loading.")
    ] = 60.0,
    most: Annotated[int, typer.Option(min=1, help="Largest batch to try.")] = 64,
    quiet: Quiet = False,
    trust: Trust = False,
) -> None:
    """Measure what images cost on this device: time, memory, the best batch, and the whole plan.

    Every generated source makes batches of growing size at each of its sizes. The images are
    dropped. The run keeps the figures, and `aigi run --dry-run` uses them.
    """
    with explained():
        from pipeline import workflow as workflows
        from pipeline.dry_run.tables import parts
        from pipeline.images.costs import PROBE
        from pipeline.images.images import Images, check_sources
        from pipeline.images.probe import probe as measure
        from pipeline.progress import Progress
        from pipeline.release.trust import confirm
        from pipeline.running import alone
        from pipeline.store import Store

        workflow = workflows.load(workflow_file, overrides or ())
        plan = workflow.planned("probe")
        confirm(workflow, trust)
        # A run that works here uses the device: figures would be wrong, and it could run out of
        # memory. So the two keep each other out.
        with alone(workflow.run):
            check_sources(plan, workflow.sources, workflow.compute)
            found = measure(
                plan,
                workflow.sources,
                workflow.images or Images(),
                workflow.compute,
                Progress(quiet=quiet),
                seconds,
                most,
            )
            store = Store(workflow.run)
            store.write_json(found.model_dump(mode="json"), PROBE)
        note(sources=[one.model_dump(mode="json") for one in found.sources])
        show(_table(found))
        for part in parts(workflow):
            show(part)
        tell(f"figures: {store.path(PROBE)}")
        if failed := [one for one in found.sources if not one.trials]:
            for one in failed:
                tell(f"not measured: {one.source} {one.width}x{one.height}: {one.error}")
            raise typer.Exit(1)


def _table(found: Probe) -> Table:
    from rich.table import Table

    from pipeline.images.costs import WHY

    kinds = {one.memory: one for one in found.sources}
    words = {"device": "of the device", "process": "of this process"}
    memory = "/".join(words[kind] for kind in kinds if kind) or "not known"
    device = found.sources[0].conditions["device"]
    table = Table("source", "size", title=f"One image on {device}; memory {memory}")
    for heading in ("batch", "s an image", "images/s", "GiB", "GiB an image", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in found.sources:
        best = one.best()
        for trial in one.trials:
            each = trial.image(one.steps)
            notes = ["best"] * (trial is best)
            if trial.steps[0] != one.steps:
                notes.append(f"from {trial.steps[0]} and {trial.steps[1]} of {one.steps} steps")
            if trial is one.trials[-1] and one.stopped is not None:
                notes.append(WHY[one.stopped])
            own = None
            if trial.peak is not None and one.held is not None:
                own = max(trial.peak - one.held, 0) / trial.size
            table.add_row(
                one.source,
                f"{one.width}x{one.height}",
                f"{trial.size}",
                f"{each:.3g}",
                f"{1 / each:.3g}",
                "" if trial.peak is None else f"{trial.peak / (1 << 30):.2f}",
                "" if own is None else f"{own / (1 << 30):.2f}",
                "; ".join(notes),
            )
    return table
