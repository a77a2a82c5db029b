"""A workflow in, tables of what it would read and make out; nothing is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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


def parts(workflow: Workflow) -> Iterator[Table | str]:
    """Tables and lines to print, in order.

    Raises:
        AigiError: images that it reads are missing, or it has neither plan nor reader.
    """
    from pipeline.build import estimate

    if (reading := _reading_table(workflow)).row_count:
        yield reading
    if workflow.train is not None:
        yield _training_table(workflow.train, workflow)
    if (benchmark := workflow.benchmark_here()) is not None:
        yield _benchmark_table(benchmark, workflow)
    if workflow.plan is None and any(getattr(workflow, name) is not None for name in READERS):
        return
    lines = estimate(workflow)
    yield _plan_table(lines, workflow)
    for split in SPLITS:
        images = sum(line.images for line in lines if line.split == split)
        yield f"{split}: {images:,} images"
    yield (
        f"GPU-hours: one GPU at {workflow.compute.gpu_tflops:g} TFLOP/s sustained "
        "(compute.gpu_tflops); nothing was made."
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


def _plan_table(lines: list[Estimate], workflow: Workflow) -> Table:
    table = Table("source", "split", "size", title=f"Plan of {workflow.run}")
    for heading in ("images", "with margin", "prompts", "shards", "GB", "GPU-hours"):
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
            f"{line.gigabytes:,.1f}",
            "endpoint" if line.endpoint else f"{line.gpu_hours:,.1f}",
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        "",
        f"{sum(line.images for line in lines):,}",
        f"{sum(line.planned for line in lines):,}",
        "",
        f"{sum(line.shards for line in lines):,}",
        f"{sum(line.gigabytes for line in lines):,.1f}",
        f"{sum(line.gpu_hours for line in lines):,.1f}",
    )
    return table
