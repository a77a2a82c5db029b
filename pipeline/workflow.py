"""Workflow file (YAML) in, one frozen, checked `Workflow` of all sections out.

A stage runs if its section is present. Each section's class is beside the stage that it configures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline import AigiError
from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import asked_or_own
from pipeline.manifest import is_manifest
from pipeline.release.recipe import Recipe
from pipeline.settings import check, located, overridden, read_yaml
from pipeline.training.settings import Train


class Workflow(Recipe):
    """One run: its directory, and the sections of the stages to run."""

    characteristics: Characteristics | None = None
    alignments: Alignments | None = None
    train: Train | None = None
    benchmark: Benchmark | None = None

    def benchmark_here(self) -> Benchmark | None:
        """The benchmark section, with the place of the images to measure; None if there is none."""
        if self.benchmark is None:
            return None
        return self.benchmark.model_copy(
            update={"pictures": asked_or_own(self.benchmark.pictures, self.run)}
        )


READERS = Workflow.model_fields.keys() - Recipe.model_fields.keys()
"""Sections that read a release; no setting of theirs decides a byte of it."""


def load(path: str | Path, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow file, apply `KEY=VALUE` overrides, and check it.

    With `plan.manifest`, the settings are those of the manifest: see `regenerate.merged`. A
    manifest in place of a workflow file is one that only says so, and asks for its release.

    Raises:
        AigiError: the file cannot be read, or a setting is wrong; names file and setting.
    """
    found = read_yaml(str(path))
    again = is_manifest(found)
    if again:
        found = {"plan": {"manifest": located(str(path), None)}, "release": {}}
    data = overridden(found, overrides)
    if again and data.get("run") is None:
        raise AigiError(
            f"{path}: the manifest of a release. Name a folder for the run that makes it again: "
            "--set run=FOLDER"
        )
    plan = data.get("plan")
    if isinstance(plan, dict) and plan.get("manifest") is not None:
        from pipeline.release import regenerate

        base = None if "://" in str(path) else Path(path).resolve().parent
        data = regenerate.merged(located(plan["manifest"], base), data)
    return check(Workflow, data, str(path))
