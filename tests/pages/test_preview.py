"""A few images at full settings, a page of them, and a run that takes them over by their ids."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline import AigiError, build
from pipeline import workflow as workflows
from pipeline.images.preview import COSTS, place_of, read_costs
from pipeline.pages import preview as pages
from pipeline.store import Store
from tests.conftest import PROMPTS, WorkflowMaker, aigi_here
from tests.pages.conftest import Visit


def images_of(run: Path) -> dict[str, str]:
    files = sorted((run / "images").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return {row["image_id"]: row["pixels_sha256"] for row in rows}


def preview(path: Path, out: Path, *more: str) -> Any:
    return aigi_here("preview", str(path), "--out", str(out), *more)


def test_a_run_takes_over_what_a_preview_made(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    path, out = make_workflow(), tmp_path / "preview.html"
    done = preview(path, out, "--count", "4")
    assert done.returncode == 0, done.stderr
    made = images_of(tmp_path / "run-preview")
    # Two of each split of each source; a mark makes two images of one.
    assert len(made) == 10
    assert not (tmp_path / "run").exists(), "the run itself is not begun"
    assert "page: " in done.stdout and "s an image" in done.stdout
    page = out.read_text()
    assert all(name in page for name in ("sdxl", "GiB at most", "train, 64x64", "dwt-dct"))
    assert any(text in page for text in PROMPTS)
    with Image.open(out.with_suffix(".webp")) as sheet:
        assert sheet.width > 400 and sheet.height > 500
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    assert "10 of 36 to make are taken from" in done.stderr
    whole = images_of(tmp_path / "run")
    assert made.items() <= whole.items() and len(whole) == 36
    recorded = json.loads((tmp_path / "run" / "_workflow.json").read_text())
    assert recorded["plan"]["reuse"] == [], "the preview may be removed later"
    # The same bytes as a run that had no preview.
    other = make_workflow("other", run=str(tmp_path / "other"))
    assert aigi_here("run", str(other)).returncode == 0
    assert images_of(tmp_path / "other") == whole


def test_what_a_changed_setting_makes_other_is_made_again(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    path, out = make_workflow(), tmp_path / "preview.html"
    only = ("--set", "plan.sources=[sd]", "--set", "plan.dataset=" + str(other_steps(tmp_path, 3)))
    assert preview(path, out, "--count", "2", *only).returncode == 0
    before = images_of(tmp_path / "run-preview")
    assert preview(path, out, "--count", "2", "--set", "plan.sources=[sd]").returncode == 0
    after = images_of(tmp_path / "run-preview")
    assert len(before) == len(after) == 2 and not before.keys() & after.keys()
    # Again: nothing is made, and the page has the costs of before.
    done = preview(path, out, "--count", "2", "--set", "plan.sources=[sd]")
    assert "already made" in done.stderr and "s an image" in done.stdout
    done = aigi_here("run", str(path), *only)
    assert done.returncode == 0 and "0 of 26 to make are taken" in done.stderr, done.stderr


def other_steps(folder: Path, steps: int) -> Path:
    data = yaml.safe_load((folder / "dataset.yaml").read_text())
    data["sources"]["sd"]["steps"] = steps
    path = folder / "steps.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_costs_are_of_each_source_and_size(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    assert preview(make_workflow(), tmp_path / "p.html", "--count", "4").returncode == 0
    costs = read_costs(Store(str(tmp_path / "run-preview")))
    assert {(one.source, one.width, one.height, one.images) for one in costs} == {
        ("sd", 64, 64, 2), ("sd", 96, 64, 2), ("sdxl", 64, 64, 2), ("sdxl", 64, 96, 2)
    }  # fmt: skip
    for one in costs:
        assert one.seconds > 0 and one.memory == "process" and (one.peak or 0) > 1 << 20
    assert {one.source for one in costs if one.loading > 0} == {"sd", "sdxl"}
    rows = pages.cost_rows(costs, {("sd", "64x64"): 3600})
    assert float(next(row for row in rows if row[:2] == ("sd", "64x64"))[-1]) == pytest.approx(
        next(c.seconds for c in costs if (c.source, c.width, c.height) == ("sd", 64, 64)), rel=0.01
    )
    (tmp_path / "run-preview" / COSTS).write_text('{"version": 1, "sources": [{"source": 1}]}')
    done = preview(tmp_path / "workflow.yaml", tmp_path / "p.html", "--count", "4")
    assert done.returncode == 1 and COSTS in done.stderr and "Delete it" in done.stderr


def test_a_preview_is_of_the_plan_of_the_run(make_workflow: WorkflowMaker) -> None:
    workflow = workflows.load(make_workflow(), ["plan.margin=0.5", "compute.ray=local",
                                                "embeddings={}", "plan.limit=3"])  # fmt: skip
    few = build.preview_of(workflow, 8)
    assert few.plan is not None and (few.plan.limit, few.plan.margin) == (3, 0.0)
    assert few.compute.ray is None and few.embeddings is None and few.release is None
    assert few.run == place_of(workflow.run) == workflow.run + "-preview"
    assert place_of("s3://bucket/run/") == "s3://bucket/run-preview"
    with pytest.raises(AigiError, match="preview: this section needs a plan"):
        build.preview_of(workflows.load(make_workflow(plan=None, images=None, release=None)), 8)


def test_failed_images_are_said_and_a_page_is_made(
    make_workflow: WorkflowMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.images.diffusion.diffuser import Diffuser

    infer = Diffuser._infer

    def broken(self: Diffuser, rows: list[dict[str, Any]]) -> Any:
        if any(row["width"] == 96 for row in rows):
            raise ValueError("no such <size>")
        return infer(self, rows)

    monkeypatch.setattr(Diffuser, "_infer", broken)
    # Two sizes in one shard would be needed for a row to fail alone; here a whole shard does.
    done = preview(make_workflow(), tmp_path / "p.html", "--set", "plan.sources=[sd]")
    assert done.returncode == 1 and "every image failed" in done.stderr


def test_the_page_shows_hostile_prompts_as_text(
    make_workflow: WorkflowMaker, tmp_path: Path, chromium: Any
) -> None:
    hostile = "<img src=x onerror=\"document.title='run'\"> \u202egnirts"
    path = make_workflow(plan={"dataset": "dataset.yaml", "sources": ["sd"]}, split={"test": 0})
    (tmp_path / "prompts.txt").write_text("\n".join([hostile] * 2 + PROMPTS[:20]))
    more = ("--set", "prompts.filters.max_noise=1", "--set", "prompts.filters.min_words=1",
            "--set", "prompts.safety=[]", "--count", "24")  # fmt: skip
    done = preview(path, tmp_path / "p.html", *more, "--set", f"plan.dataset={one(tmp_path)}")
    assert done.returncode == 0, done.stderr
    with Visit(chromium, tmp_path / "p.html") as visit:
        assert visit.page.title() != "run" and not visit.said and not visit.strangers()
        assert "onerror" in visit.page.locator("#images").inner_text()


def one(folder: Path) -> Path:
    data = yaml.safe_load((folder / "dataset.yaml").read_text())
    data["sources"]["sd"]["splits"] = {"train": {"count": 24, "width": 64, "height": 64}}
    path = folder / "one.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_where_the_page_cannot_be(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    done = preview(make_workflow(), Path("s3://bucket/p.html"))
    assert done.returncode == 1 and "only a path on this machine" in done.stderr
    assert not os.path.exists(tmp_path / "run-preview")


def test_what_a_page_does_not_show_is_said(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST", 8)
    store = Store(str(finished[1]))
    page = pages.page(store, [], "")
    assert "images 8, sources 2" in page and "28 more are not shown" in page
    monkeypatch.undo()
    assert "not shown" not in pages.page(store, [], "")
