"""`pipeline.run`: the same run as by the command, and a handle to look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import pipeline
from pipeline import AigiError
from pipeline.handle import Run, workflow_of
from tests.conftest import WorkflowMaker, cmp


def test_the_same_run_as_by_the_command(
    make_workflow: WorkflowMaker, tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    run = pipeline.run(make_workflow(), quiet=True)
    assert run.url == str(tmp_path / "run") and run.lacks == () and run.benchmark is None
    assert [one.state for one in run.status()] == ["done"] * len(run.status())
    assert run.tables()["plan"] == 36
    assert cmp(tmp_path / "run" / "images", finished[1] / "images") == []
    table = run.table("plan", ["image_id", "text", "source"])
    assert table.column_names == ["image_id", "text", "source"] and table.num_rows == 36
    data: Any = run.load("sd", "train")
    assert data[0]["image"].size == (64, 64) and run.release == f"{run.url}/release"
    sheet = run.sheet()
    assert isinstance(sheet, Image.Image) and sheet._repr_png_(), "a notebook shows it"
    # A handle of a run that is there already.
    assert Run(str(tmp_path / "run")).tables() == run.tables()
    with pytest.raises(AigiError, match=r'no table imags; did you mean "images"\?'):
        run.table("imags")
    with pytest.raises(AigiError, match="no run here"):
        Run(str(tmp_path)).status()


def test_overrides_reach_into_sections(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    path = make_workflow()
    found = workflow_of(path, {"plan": {"limit": 2, "sources": ["sd"]}, "run": tmp_path / "x",
                               "compute.threads": 1, "selection": None})  # fmt: skip
    assert found.plan is not None and found.plan.limit == 2 and found.plan.sources == ("sd",)
    assert found.plan.shard_mb == 0.05, "what is beside stays"
    assert (found.run, found.compute.threads) == (str(tmp_path / "x"), 1)
    with pytest.raises(AigiError, match=r"workflow.yaml: plan.limt: no such setting"):
        workflow_of(path, {"plan": {"limt": 2}})
    strange = "a: b # c\n- d"
    found = workflow_of(path, {"prompts": {"filters": {"person": strange}}})
    assert found.prompts is not None and found.prompts.filters.person == strange


def test_a_mapping_is_a_workflow_too(
    make_workflow: WorkflowMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = yaml.safe_load(make_workflow().read_text())
    monkeypatch.chdir(tmp_path)
    run = pipeline.run(sections, quiet=True, run="runs/small", plan={"limit": 1})
    assert run.url == str(tmp_path / "runs" / "small") and run.tables()["plan"] == 5
    with pytest.raises(AigiError, match=r'workflow: imges: no such setting; did you mean "images"'):
        pipeline.run({**sections, "imges": {}})
    with pytest.raises(AigiError, match='did you mean "regenerate"'):
        pipeline.run("regenrate")


def test_what_is_lacking_is_in_the_handle(make_workflow: WorkflowMaker) -> None:
    run = pipeline.run(
        make_workflow(), quiet=True, quality={}, plan={"limit": 2}, images={},
        selection={"min_entropy": 7.9},
    )  # fmt: skip
    assert run.lacks and all("sd" in line for line in run.lacks)


def test_the_function_stays_a_function() -> None:
    """No module takes its name, whatever is imported."""
    import pipeline.execute
    import pipeline.running

    assert callable(pipeline.run) and callable(pipeline.load)
    assert not (Path(pipeline.__file__).parent / "run.py").exists()
