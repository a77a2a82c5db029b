"""A workflow in, tables of what it would read and make out; nothing is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from pipeline import AigiError
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import Pictures
from pipeline.settings import SPLITS
from pipeline.training.images import to_train_on
from pipeline.training.settings import Train
from pipeline.workflow import READERS, Workflow

if TYPE_CHECKING:
    from pipeline.build import Estimate
    from pipeline.images.costs import Costs


@dataclass
class Found:
    """What a dry run finds, for programs.

    Attributes:
        wrong: all that will certainly fail, a line each.
        plan: the estimate of each source and split; none without a plan.
    """

    wrong: list[str] = field(default_factory=list)
    plan: list[Estimate] = field(default_factory=list)


def parts(workflow: Workflow, found: Found | None = None) -> Iterator[Table | str]:
    """Tables and lines to print, in order.

    Args:
        found: gets what is found; None: the first thing that will certainly fail is raised, and
            inputs are not looked at.

    Raises:
        AigiError: images that it reads are missing, or it has neither plan nor reader.
    """
    from pipeline.build import estimate
    from pipeline.dry_run.inputs import problems
    from pipeline.dry_run.storage import storage

    def told(shown: Iterator[Table | str]) -> Iterator[Table | str]:
        try:
            yield from shown
        except AigiError as error:
            if found is None:
                raise
            found.wrong.extend(str(error).split("\n"))

    yield from told(_readers(workflow))
    read_only = any(getattr(workflow, name) is not None for name in READERS)
    if workflow.plan is None and read_only:
        if found is not None:
            found.wrong.extend(new for new in problems(workflow, []) if new not in found.wrong)
        return
    costs = _costs(workflow)
    lines = estimate(workflow, costs)
    yield _plan_table(lines, workflow, costs)
    for split in SPLITS:
        mine = [line for line in lines if line.split == split]
        images = sum(line.images for line in mine)
        open_ended = "" if all(line.counted for line in mine) else "at least "
        yield f"{split}: {open_ended}{images:,} images"
    yield from told(storage(workflow, lines))
    yield from _cost_lines(lines, workflow, costs)
    if found is not None:
        found.plan = lines
        found.wrong.extend(new for new in problems(workflow, lines) if new not in found.wrong)


def _readers(workflow: Workflow) -> Iterator[Table | str]:
    if (reading := _reading_table(workflow)).row_count:
        yield reading
    if workflow.train is not None:
        yield _training_table(workflow.train, workflow)
    if (benchmark := workflow.benchmark_here()) is not None:
        yield _benchmark_table(benchmark, workflow)


def _costs(workflow: Workflow) -> Costs:
    """The figures of a probe of this run that hold for it as it is now."""
    from pipeline.images.costs import Costs, costs
    from pipeline.images.images import Images
    from pipeline.store import Store

    if workflow.plan is None:
        return Costs()
    images = workflow.images or Images()
    return costs(workflow.plan, workflow.sources, images, workflow.compute, Store(workflow.run))


def _total(values: Iterable[float | None], form: str = "") -> str:
    """A sum as text, honest about what is not known of it."""
    found = list(values)
    known = sum(value for value in found if value is not None)
    if None not in found:
        return _shown(known, form)
    return f"at least {_shown(known, form)}" if known else "unknown"


def _shown(value: float | None, form: str = "") -> str:
    """A number as text: with one digit behind the point, or with two digits where it is small."""
    if value is None:
        return "unknown"
    return f"{value:{form or ('.2g' if 0 <= value < 0.1 else ',.1f')}}"


def _unit(costs: Costs) -> str:
    """What works for these hours."""
    return "CPU-hours" if costs.found and costs.device == "cpu" else "GPU-hours"


def _cost_lines(lines: list[Estimate], workflow: Workflow, costs: Costs) -> Iterator[str]:
    """Where hours are from; what they mean for the workers and in money; what is not known."""
    compute, unit = workflow.compute, _unit(costs)
    generated = [line for line in lines if line.prompts]
    measured = list(dict.fromkeys(line.source for line in generated if line.measured))
    unknown = list(dict.fromkeys(line.source for line in generated if line.gpu_hours is None))
    computed = [line for line in generated if not line.measured and line.gpu_hours is not None]
    if measured:
        yield (
            f"{unit} of {', '.join(measured)}: measured by aigi probe on {costs.device}, "
            f"{costs.made}"
        )
    yield from (f"not used of the probe: {line}" for line in costs.unused)
    if computed or not generated:
        yield (
            f"GPU-hours: one GPU at {compute.gpu_tflops:g} TFLOP/s sustained (compute.gpu_tflops)"
        )
    if unknown:
        yield (
            f"unknown: nothing states what {', '.join(unknown)} take; `aigi probe WORKFLOW` "
            "measures it on this device"
        )
    if generated:
        hours = [line.gpu_hours for line in generated]
        shards = sum(line.shards for line in generated)
        workers = min(compute.workers if compute.ray is not None else 1, max(shards, 1))
        each = [None if value is None else value / workers for value in hours]
        yield f"with {workers} worker{'s' * (workers != 1)}: {_total(each)} hours"
        if (price := compute.price_per_hour) is not None:
            money = _total((None if value is None else value * price for value in hours), ",.2f")
            yield f"at {price:g} an hour of one worker (compute.price_per_hour): {money}"
    yield from _better_batches(lines, costs)
    yield "nothing was made."


def _better_batches(lines: list[Estimate], costs: Costs) -> Iterator[str]:
    """Where another batch than that of the workflow is faster, or its own was not measured."""
    for (name, width, height), cost in costs.found.items():
        what = f"{name} {width}x{height}"
        if cost.size != cost.asked:
            yield (
                f"{what}: figures are those of a batch of {cost.size}, the largest that was "
                f"measured below sources.{name}.batch_size ({cost.asked})"
            )
        if cost.best_seconds < cost.seconds and cost.best != cost.asked:
            mine = [
                line for line in lines if (line.source, line.size) == (name, f"{width}x{height}")
            ]
            yield (
                f"{what}: sources.{name}.batch_size={cost.best} would take "
                f"{_total(line.best_hours for line in mine)} instead of "
                f"{_total(line.gpu_hours for line in mine)} hours"
            )


def _reading(workflow: Workflow) -> Iterator[tuple[str, Pictures, str]]:
    """Sections that read images: their names, the places, and what is done with the images."""
    from pipeline.analysis.places import places

    if (looks := workflow.characteristics) is not None:
        matrices = len(looks.distances) * len(looks.angles)
        files = ", ".join(looks.lossless) or "no files"
        for pictures in places(looks.pictures, workflow.run):
            yield "characteristics", pictures, f"{matrices} GLCM, colours, {files} of each"
    if (scores := workflow.alignments) is not None:
        words = "scores: " + ", ".join(scores.models)
        if scores.attributes:
            words += "; attributes: " + ", ".join(scores.attributes)
        for pictures in places(scores.pictures, workflow.run):
            yield "alignments", pictures, words
    if (train := workflow.train) is not None:
        network = train.network if isinstance(train.network, str) else train.network.get("name")
        yield (
            "train",
            to_train_on(train, workflow.run),
            f"{network}, λ {', '.join(f'{weight:g}' for weight in train.lambdas)}: "
            f"{train.steps:,} steps of {crops_of(train)}"
            + (f"; then {', '.join(train.anchors)} beside" if train.anchors else ""),
        )


def _training_table(train: Train, workflow: Workflow) -> Table:
    from pipeline.training.cost import cost

    compute = workflow.compute
    processes = compute.workers if compute.ray is not None else 1
    apart = train.parallel == "codecs"
    found = cost(train, 1 if apart else processes)
    processes = min(processes, found.codecs) if apart else processes
    table = Table("", title=f"Training in {workflow.run}")
    for heading in ("codecs", "processes", "crops of each", "PFLOP", "hours"):
        table.add_column(heading, justify="right")
    hours = found.hours(compute.gpu_tflops) / processes
    table.add_row(
        *("train", f"{found.codecs}", f"{processes}", f"{found.crops:,}"),
        *(f"{found.flops / 1e15:,.1f}", f"{hours:,.1f}"),
    )  # fmt: skip
    table.caption = (
        f"Each process at {compute.gpu_tflops:g} TFLOP/s sustained (compute.gpu_tflops); a "
        "launcher may start other numbers of processes."
    )
    return table


def crops_of(train: Train) -> str:
    """Crops of a step, in words: of all processes where it is known how many there are."""
    if train.global_batch is not None:
        return f"{train.global_batch} crops"
    return f"{train.batch * train.accumulate} crops of every process"


def _counted(pictures: Pictures, workflow: Workflow) -> dict[str, int | None]:
    """Images by source; None for what this workflow makes itself and has not made yet."""
    from pipeline.collection import Collection

    try:
        parts = Collection(pictures).parts
    except AigiError:
        own = (workflow.run, workflow.run.rstrip("/") + "/release")
        if workflow.plan is None or pictures.place.rstrip("/") not in own:
            raise
        return {"(its own release)": None}
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.source] += part.rows
    return dict(counts)


def _reading_table(workflow: Workflow) -> Table:
    table = Table("section", "place", "source", title=f"What {workflow.run} would read")
    table.add_column("images", justify="right")
    table.add_column("work")
    for section, pictures, work in _reading(workflow):
        for source, count in _counted(pictures, workflow).items():
            table.add_row(section, pictures.place, source, _number(count), work)
            work = ""  # shown once
    return table


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _benchmark_table(benchmark: Benchmark, workflow: Workflow) -> Table:
    from pipeline.benchmark.stages import planned

    counts = _counted(benchmark.measured, workflow).values()
    pictures = None if None in counts else sum(count or 0 for count in counts)
    table = Table("codec", title=f"Benchmark in {workflow.run}")
    for heading in ("qualities", "images", "measurements"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for label, count, why in planned(benchmark, workflow.compute):
        total = None if pictures is None else 0 if why else count * pictures
        said = f"skipped: {why}" if why else ""
        table.add_row(label, f"{count}", _number(pictures), _number(total), said)
    return table


def _plan_table(lines: list[Estimate], workflow: Workflow, costs: Costs) -> Table:
    table = Table("source", "split", "size", title=f"Plan of {workflow.run}")
    for heading in ("images", "with margin", "prompts", "shards", "GB", _unit(costs)):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(
            line.title,
            line.split,
            line.size,
            f"{line.images:,}" if line.counted else "all",
            f"{line.planned:,}" if line.counted else "",
            f"{line.prompts:,}" if line.prompts else "imported",
            f"{line.shards:,}" if line.counted else "",
            _shown(line.gigabytes),
            "endpoint" if line.endpoint else _shown(line.gpu_hours),
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        "",
        _total((line.images if line.counted else None for line in lines), ","),
        _total((line.planned if line.counted else None for line in lines), ","),
        "",
        _total((line.shards if line.counted else None for line in lines), ","),
        _total(line.gigabytes for line in lines),
        _total(line.gpu_hours for line in lines),
    )
    return table
