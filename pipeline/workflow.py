"""Workflow file (YAML) in, one frozen, checked `Workflow` of all sections out.

A stage runs if its section is present. Each section's class is beside the stage that it configures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import asked_or_own
from pipeline.complaints import near
from pipeline.files import resource
from pipeline.manifest import is_manifest
from pipeline.release.recipe import Recipe
from pipeline.settings import Base, Shipped, check, folder_of, located, overridden, read_yaml
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


ELSEWHERE = {
    "demo": "`aigi demo` runs it",
    "ray-cluster": "it describes a cluster: `ray up` takes it, by its path",
}
"""Files beside the workflows that came with aigi which `aigi run` does not take by name."""


def shipped() -> dict[str, str]:
    """What each workflow that came with aigi does, by its name: the first sentence of its file."""
    found = {}
    for file in sorted(resource("workflows").glob("*.yaml")):
        lines = takewhile(lambda line: line.startswith("# "), file.read_text().splitlines())
        text = " ".join(line.removeprefix("# ").strip() for line in lines)
        if file.stem not in ELSEWHERE:
            found[file.stem] = re.split(r"(?<=[.?])\s", text, maxsplit=1)[0]
    return found


def _found(given: str) -> tuple[str, Base | None]:
    """The file that a user means, and where its relative paths start; None: at the file.

    Raises:
        AigiError: there is none, with the nearest name.
    """
    path = Path(given)
    if "://" in given or path.is_file():
        return given, None
    if re.fullmatch(r"[\w-]+", given):
        known = shipped()
        if given in known:
            file = resource(f"workflows/{given}.yaml")
            return str(file), Shipped(file.parent.parent)
        if given in ELSEWHERE:
            raise AigiError(f"{given}: no workflow to run; {ELSEWHERE[given]}")
        raise AigiError(
            f"{given}: no such file, and no workflow of this name came with aigi; "
            f"{near(given, known)} A file of your own has an ending: {given}.yaml"
        )
    if path.is_dir():
        raise AigiError(f"{given}: a folder, and no workflow file")
    if path.stem in shipped() and path.parts[-2:-1] == ("workflows",):
        raise AigiError(
            f"{given}: no such file. One of this name came with aigi: `aigi run {path.stem}`"
        )
    raise AigiError(f"{given}: no such file")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow file, apply `KEY=VALUE` overrides, and check it.

    With `plan.manifest`, the settings are those of the manifest: see `regenerate.merged`. A
    manifest in place of a workflow file is one that only says so, and asks for its release.

    Args:
        path: a file, or the name of a workflow that came with aigi.

    Raises:
        AigiError: the file cannot be read, or a setting is wrong; names file and setting.
    """
    file, base = _found(str(path))
    return _checked(read_yaml(file), file, base, overrides)


def of(sections: Mapping[str, Any], name: str, overrides: Iterable[str] = ()) -> Workflow:
    """Check a workflow that is in no file; relative paths start at the current folder.

    Args:
        name: of it, for messages.

    Raises:
        AigiError: a setting is wrong; names it.
    """
    return _checked(sections, name, Path.cwd(), overrides)


def _checked(
    found: Mapping[str, Any], file: str, base: Base | None, overrides: Iterable[str]
) -> Workflow:
    again = is_manifest(found)
    if again:
        found = {"plan": {"manifest": located(file, None)}, "release": {}}
    data = overridden(found, overrides)
    if again and data.get("run") is None:
        raise AigiError(
            f"{file}: the manifest of a release. Name a folder for the run that makes it again: "
            "--set run=FOLDER"
        )
    plan = data.get("plan")
    if isinstance(plan, dict) and isinstance(plan.get("manifest"), str):
        from pipeline.release import regenerate

        data = regenerate.merged(located(plan["manifest"], base or folder_of(file)), data)
    return check(Workflow, data, file, base)
