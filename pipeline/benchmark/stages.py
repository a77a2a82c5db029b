"""A workflow in; its measurements, comparisons and report out."""

from __future__ import annotations

from pipeline.benchmark import comparisons, complexity, measurements, references
from pipeline.benchmark.report import Report
from pipeline.benchmark.settings import Benchmark
from pipeline.benchmark.versions import at_hand
from pipeline.codecs.table import qualities
from pipeline.collection import Collection, report
from pipeline.intact import USUAL, Checks
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute, Stage
from pipeline.store import Store


def make(
    benchmark: Benchmark,
    compute: Compute,
    store: Store,
    progress: Progress,
    checks: Checks = USUAL,
) -> str:
    """Run the stages of the benchmark, and write the report; the path of its page.

    Args:
        retry: first make rows that have an error again.

    Raises:
        AigiError: as `run_stages`; there are no images, or no codec can run here.
    """
    collection = Collection(benchmark.measured)
    report(collection, store, "benchmark", progress)
    for label, why in at_hand(benchmark, compute)[1].items():
        progress.say(f"benchmark: {label} is skipped: {why}")
    stages: list[Stage] = []
    if measurements.asked(benchmark, compute):
        stages.append(references.stage(benchmark, compute, collection))
    stages.append(measurements.stage(benchmark, compute, collection))
    if benchmark.strips is not None:
        stages.append(comparisons.stage(benchmark, benchmark.strips, compute, collection))
    if benchmark.complexity is not None:
        stages.append(complexity.stage(benchmark, benchmark.complexity, compute, collection))
    run_stages(stages, store, compute, progress, checks)
    return Report(benchmark, compute, store, collection).write()


def planned(benchmark: Benchmark, compute: Compute) -> list[tuple[str, int, str]]:
    """What would be measured: label, qualities and, where it is skipped, why.

    Raises:
        AigiError: a codec does not exist.
    """
    _, without = at_hand(benchmark, compute)
    return [
        (given.label, len(qualities(given)), without.get(given.label, ""))
        for given in benchmark.codecs
    ]
