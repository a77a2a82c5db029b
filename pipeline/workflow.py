"""Workflow file (YAML) in, one frozen, checked `Workflow` of all sections out.

A stage runs if its section is present. Each section's class is beside the stage that it configures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import asked_or_own
from pipeline.duplicates.duplicates import Duplicates
from pipeline.images.images import Images, LocalSource
from pipeline.models.clip import Embeddings
from pipeline.plan.quotas import Plan
from pipeline.prompts.prompts import Prompts
from pipeline.prompts.text import SplitShares
from pipeline.release.recipe import Release
from pipeline.scores.quality import Quality
from pipeline.selection.rules import Selection
from pipeline.settings import Location, Settings, check, located, read
from pipeline.stage import Compute
from pipeline.training.settings import Train


class Workflow(Settings):
    """One run: a run directory and the sections of the stages that it makes."""

    run: Location
    compute: Compute = Compute()
    split: SplitShares = SplitShares()
    prompts: Prompts | None = None
    sources: dict[str, LocalSource] = Field(default_factory=dict)
    plan: Plan | None = None
    images: Images | None = None
    embeddings: Embeddings | None = None
    quality: Quality | None = None
    duplicates: Duplicates | None = None
    selection: Selection | None = None
    release: Release | None = None
    characteristics: Characteristics | None = None
    alignments: Alignments | None = None
    train: Train | None = None
    benchmark: Benchmark | None = None

    def benchmark_here(self) -> Benchmark | None:
        """The benchmark that is asked for, with the pictures that it measures on."""
        if self.benchmark is None:
            return None
        return self.benchmark.model_copy(
            update={"pictures": asked_or_own(self.benchmark.pictures, self.run)}
        )


def load(path: str | Path, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow file, apply `KEY=VALUE` overrides, and check it.

    With `plan.manifest`, the settings are those of the manifest: see `regenerate.merged`.

    Raises:
        AigiError: names the file, the field and what was expected.
    """
    data = read(path, overrides)
    plan = data.get("plan")
    if isinstance(plan, dict) and plan.get("manifest") is not None:
        from pipeline.release import regenerate

        base = None if "://" in str(path) else Path(path).resolve().parent
        data = regenerate.merged(located(plan["manifest"], base), data)
    return check(Workflow, data, str(path))
