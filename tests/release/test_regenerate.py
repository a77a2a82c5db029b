"""A manifest is enough: the same plan, shards and bytes from it, inside a release or alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import stages
from pipeline.manifest import MANIFEST, PLAN_FILE
from pipeline.plan import rounds
from pipeline.progress import Progress
from pipeline.release import regenerate
from pipeline.running import run_stages
from pipeline.settings import Location
from pipeline.store import Store
from pipeline.workflow import Workflow
from tests.conftest import PLANNING, aigi_here, cmp

REGENERATE = "workflows/regenerate.yaml"
RELEASE = ["release.record=null"]


def places(models: Path) -> list[str]:
    return [
        f"sources.sd.folder={models / 'sd'}",
        f"sources.sdxl.folder={models / 'sdxl'}",
    ]


def planned(workflow: Workflow) -> Store:
    store = Store(workflow.run)
    tables = [stage for stage in stages(workflow) if stage.table in PLANNING]
    run_stages(tables, store, workflow.compute, Progress(quiet=True))
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_release_from_the_manifest_inside_it(
    finished: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    _, run = finished
    overrides = [f"plan.manifest={run / 'release' / MANIFEST}", f"run={tmp_path / 'again'}"]
    command = [f"--set={value}" for value in [*overrides, *places(models), *RELEASE]]
    done = aigi_here("run", REGENERATE, *command)
    assert done.returncode == 0, done.stderr
    assert cmp(run / "release", tmp_path / "again" / "release") == []
    assert aigi_here("diff", str(run), str(tmp_path / "again")).returncode == 0


def test_the_same_plan_from_a_manifest_alone(
    finished: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    path, run = finished
    record = tmp_path / "record.json"
    shutil.copy(run / "release" / MANIFEST, record)
    overrides = [f"plan.manifest={record}", f"run={tmp_path / 'again'}", *places(models)]
    with pytest.raises(
        AigiError, match=r"--set prompts\.sources\.0\.path=.*originally: prompts\.txt"
    ):
        bare = tmp_path / "bare.yaml"
        bare.write_text(f"run: {tmp_path / 'x'}\n")
        workflows.load(bare, overrides)
    prompts = path.parent / "prompts.txt"
    overrides.append(f"prompts.sources.0.path={prompts}")
    store = planned(workflows.load(bare, overrides))
    assert rounds.summary(store) == rounds.summary(Store(str(run)))
    assert files(tmp_path / "again" / "plan") == files(run / "plan")
    # Made once; the rounds of the manifest are its state from the beginning.
    before = (tmp_path / "again" / "plan" / "_rounds.json").stat().st_mtime_ns
    planned(workflows.load(bare, overrides))
    assert (tmp_path / "again" / "plan" / "_rounds.json").stat().st_mtime_ns == before


def test_other_captions_are_refused_by_name(
    finished: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    path, run = finished
    record = tmp_path / "record.json"
    shutil.copy(run / "release" / MANIFEST, record)
    captions = tmp_path / "prompts.txt"
    lines = (path.parent / "prompts.txt").read_text().splitlines()
    captions.write_text("\n".join(line.replace("boat", "ship") for line in lines) + "\n")
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'again'}\n")
    overrides = [f"plan.manifest={record}", f"prompts.sources.0.path={captions}"]
    with pytest.raises(AigiError) as caught:
        planned(workflows.load(bare, [*overrides, *places(models)]))
    assert "not those of test-set 1.2.3" in str(caught.value)
    assert "prompts.txt: its content differs" in str(caught.value)


def test_a_part_of_the_sources(finished: tuple[Path, Path], models: Path, tmp_path: Path) -> None:
    _, run = finished
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'again'}\n")
    inside = [f"plan.manifest={run / 'release' / MANIFEST}", "plan.sources=[sdxl]"]
    store = planned(workflows.load(bare, [*inside, places(models)[1]]))
    original = Store(str(run))
    assert list(store.shards("plan")) == [
        name for name in original.shards("plan") if name.startswith("sdxl-")
    ]
    for name in store.shards("plan"):
        assert store.read("plan", name) == original.read("plan", name)
    record = tmp_path / "record.json"
    shutil.copy(run / "release" / MANIFEST, record)
    with pytest.raises(AigiError, match="needs all sources"):
        workflows.load(bare, [f"plan.manifest={record}", "plan.sources=[sdxl]"])


def test_a_changed_plan_file_is_refused(
    finished: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    _, run = finished
    for name in (MANIFEST, PLAN_FILE):
        shutil.copy(run / "release" / name, tmp_path / name)
    data = bytearray((tmp_path / PLAN_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / PLAN_FILE).write_bytes(data)
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'again'}\n")
    workflow = workflows.load(bare, [f"plan.manifest={tmp_path / MANIFEST}", *places(models)])
    with pytest.raises(AigiError, match="changed since the release"):
        planned(workflow)


def test_settings_come_from_the_manifest_and_places_from_the_workflow(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = finished
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run": "out",
                "compute": {"threads": 7, "workers": 3},
                "plan": {"manifest": str(run / "release" / MANIFEST), "seed": 9},
                "sources": {"sd": {"folder": "models/sd", "batch_size": 64}},
                "images": {"png": "small"},
            }
        )
    )
    found = workflows.load(path)
    assert found.run == str(tmp_path / "out")
    assert (found.compute.threads, found.compute.workers) == (1, 3)
    assert found.plan is not None and found.plan.seed == 0
    assert found.images is not None and found.images.png == "fast"
    source: Any = found.sources["sd"]
    assert (source.folder, source.batch_size) == (str(tmp_path / "models" / "sd"), 3)


def test_no_place_of_the_machine_is_recorded(finished: tuple[Path, Path]) -> None:
    _, run = finished
    text = (run / "release" / MANIFEST).read_text()
    found = re.findall(r'"(/[^"]*|[a-z0-9]+://[^"]*)"', text)
    assert found == []
    assert json.loads(text)["workflow"]["sources"]["sd"]["folder"] == "sd"


def test_every_place_of_a_workflow_is_known_as_one() -> None:
    """A setting of the type Location that `is_place` does not know would go into manifests."""

    marks: Any = getattr(Location, "__metadata__")  # noqa: B009

    def locations(kind: Any, at: str) -> set[str]:
        if kind == Location or getattr(kind, "__metadata__", ())[: len(marks)] == marks:
            return {at}
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = set()
            for name, field in kind.model_fields.items():
                inner = [field.annotation, *([Location] if _located(field) else [])]
                for each in inner:
                    found |= locations(each, f"{at}.{name}" if at else name)
            return found
        steps: dict[Any, str] = {tuple: ".0", dict: ".name"}
        number = steps.get(get_origin(kind), "")
        return {
            name
            for part in get_args(kind)
            if not isinstance(part, str)
            for name in locations(part, at + number)
        }

    def _located(field: Any) -> bool:
        return any(item in field.metadata for item in marks)

    found = locations(Workflow, "")
    machine = {"run", "plan.dataset", "plan.manifest", "plan.reuse.0", "release.record"}
    assert machine | {"prompts.sources.0.path", "embeddings.folder", "sources.name.path"} <= found
    # What reads a release is not recorded at all.
    found = {name for name in found if name.partition(".")[0] not in workflows.READERS}
    assert {name for name in found if not regenerate.is_place(name, "/a")} == machine
