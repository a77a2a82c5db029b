"""A source may be published as soon as it is complete, while a run makes the others."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import AigiError
from pipeline.manifest import CARD, ENTRIES, MANIFEST, open_release
from pipeline.partial import PLACE, complete
from pipeline.plan.rounds import shard_name, source_of_shard
from pipeline.progress import Progress
from pipeline.release.claims import wrong_claims
from pipeline.release.publish import publish
from pipeline.release.verify import compare
from pipeline.store import Store
from tests.conftest import ROOT, WorkflowMaker, aigi, make_workflow
from tests.hub import serve
from tests.release.test_joined import manifest_of, shards, wrong
from tests.release.test_onto import files
from tests.release.test_publish import REPO, TO


def killed(workflow: Path, run: Path, after: int) -> None:
    """Run a workflow, and kill it once so many shards of images are there."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(workflow)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((run / "images").glob("*.parquet"))) < after:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def removed(run: Path, table: str, source: str) -> None:
    """Take back what a kill may have been too late for."""
    for path in list((run / table).glob(f"{source}-*.parquet"))[1:]:
        path.unlink()


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[Path, Path]:
    """A workflow, and a run of it that was killed when sd was complete and sdxl was not."""
    folder = tmp_path_factory.mktemp("stopped")
    make: WorkflowMaker = make_workflow.__wrapped__(folder, models)  # type: ignore[attr-defined]
    workflow = make()
    killed(workflow, folder / "run", 5)
    removed(folder / "run", "images", "sdxl")
    shutil.rmtree(folder / "run" / "release", ignore_errors=True)
    return workflow, folder / "run"


@pytest.fixture
def at_work(stopped: tuple[Path, Path], tmp_path: Path) -> Path:
    """The same run, to go on with."""
    shutil.copytree(stopped[1], tmp_path / "run")
    return tmp_path / "run"


def partly(run: Path, to: Path | str, *sources: str, **options: Any) -> list[str]:
    """Publish the complete sources of a run; what was said."""
    said: list[str] = []
    quiet = Progress(io.StringIO())
    with complete(str(run), sources or None, quiet, said.append) as found:
        publish(
            found.folder, str(to), sources=found.sources, partial=True, say=said.append, **options
        )
    return said


def state(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run, its size and inode."""
    return {
        str(p.relative_to(run)): (p.stat().st_size, p.stat().st_ino)
        for p in run.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def go_on(workflow: Path, run: Path) -> None:
    done = aigi("run", str(workflow), "--set", f"run={run}")
    assert done.returncode == 0, done.stderr


def test_a_complete_source_is_published_and_its_run_is_left_as_it_is(
    at_work: Path, stopped: tuple[Path, Path], finished: tuple[Path, Path], tmp_path: Path
) -> None:
    before, target = state(at_work), tmp_path / "set"
    said = partly(at_work, target)
    assert any(line.startswith("not yet complete: sdxl: images: 1 of 3 shards") for line in said)
    assert state(at_work) == before and not (at_work / PLACE).exists()
    assert wrong(target) == []
    manifest = manifest_of(target)
    assert manifest["version"] == "1.2.3-partial.1"
    assert list(manifest["specification"]["sources"]) == ["sd"]
    assert set(manifest["wanted"]) == {"sd/test", "sd/train"}
    assert "Part 1 of version 1.2.3, whose other sources" in (target / CARD).read_text()
    # Its files are those that the whole run will have.
    assert shards(finished[1], "sd") == {
        path: data for path, data in files(target).items() if path.startswith("sd/")
    }
    assert len(pipeline.load(str(target), "sd", "train")) == 24
    # Nothing more is complete: the same command finds that it is published.
    once = files(target)
    again = partly(at_work, target)
    assert files(target) == once and not any("README.md:" in line for line in again)
    # The run goes on to its end as if nothing had been.
    go_on(stopped[0], at_work)
    assert shards(at_work, "sdxl") == shards(finished[1], "sdxl")
    publish(str(at_work), str(target))
    assert wrong(target) == [] and manifest_of(target)["version"] == "1.2.3"
    assert files(target) == files(at_work / "release"), "the full version supersedes it"


def test_what_is_published_beside_it_stays(at_work: Path, tmp_path: Path, models: Path) -> None:
    from tests.release.test_joined import run_of

    target = tmp_path / "set"
    older = run_of(tmp_path / "older", models, ["sd", "sdxl"], "1.0.0")
    publish(str(older), str(target))
    partly(at_work, target)
    assert wrong(target) == []
    assert sorted(manifest_of(target)["specification"]["sources"]) == ["sd", "sdxl"]
    assert shards(older, "sdxl") == {p: d for p, d in files(target).items() if p[:5] == "sdxl/"}


def test_no_source_that_is_complete_is_refused_with_what_each_lacks(
    at_work: Path, tmp_path: Path
) -> None:
    removed(at_work, "images", "sd")
    with pytest.raises(AigiError) as error:
        partly(at_work, tmp_path / "set")
    assert "no source is complete" in str(error.value)
    assert "sd: images: 1 of 4 shards are made" in str(error.value)
    assert "sdxl: images: 1 of 3 shards are made" in str(error.value)
    assert not (tmp_path / "set").exists()


def test_one_that_is_asked_for_must_be_complete(at_work: Path, tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"not all of these are complete: sdxl: images: 1 of 3"):
        partly(at_work, tmp_path / "set", "sd", "sdxl")
    with pytest.raises(AigiError, match=r"--source mod: .* makes sd, sdxl"):
        partly(at_work, tmp_path / "set", "mod")
    assert not (tmp_path / "set").exists()
    partly(at_work, tmp_path / "set", "sd")


def test_a_source_whose_quota_is_not_met_is_not_complete(
    tmp_path: Path, models: Path, stopped: tuple[Path, Path]
) -> None:
    """All of its images are made, and rules drop some: top-up rounds are still to come."""
    run = tmp_path / "run"
    shutil.copytree(stopped[1], run)
    workflow = json.loads((run / "_workflow.json").read_text())
    ids = Store(str(run)).read("plan", "sd-test-00000", ["image_id"])["image_id"].to_pylist()
    review = tmp_path / "review.csv"
    review.write_text(f"image_id,decision\n{ids[0]},drop\n")
    workflow["selection"] = {"review": str(review)}
    (run / "_workflow.json").write_text(json.dumps(workflow))
    with pytest.raises(AigiError, match=r"sd: selection: sd test: 1 of 2: 1 review"):
        partly(run, tmp_path / "set")


def test_a_run_that_is_complete_is_not_partial_and_others_are_no_runs(
    finished: tuple[Path, Path], tmp_path: Path, at_work: Path
) -> None:
    shutil.copytree(finished[1], tmp_path / "whole")
    with pytest.raises(AigiError, match="every source is complete"):
        partly(tmp_path / "whole", tmp_path / "set")
    with pytest.raises(AigiError, match="not a run"):
        partly(finished[1] / "release", tmp_path / "set")
    with pytest.raises(AigiError, match="needs a run on a disk"):
        partly("memory://run", tmp_path / "set")  # type: ignore[arg-type]
    for section in ("release", "images", "plan"):
        workflow = json.loads((at_work / "_workflow.json").read_text())
        (at_work / "_workflow.json").write_text(json.dumps({**workflow, section: None}))
        with pytest.raises(AigiError, match=f"has no `{section}` section"):
            partly(at_work, tmp_path / "set")
        (at_work / "_workflow.json").write_text(json.dumps(workflow))
    record = json.loads((at_work / "_stages/plan.json").read_text())
    (at_work / "_stages/plan.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(AigiError, match="its plan is not made yet"):
        partly(at_work, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_cut_off_the_same_command_goes_on_and_a_dry_run_sends_nothing(
    at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(RuntimeError),
        complete(str(at_work), None, Progress(io.StringIO()), lambda text: None),
    ):
        raise RuntimeError("cut")
    kept = at_work / PLACE / "release" / MANIFEST
    at = kept.stat().st_mtime_ns
    partly(at_work, tmp_path / "dry", dry_run=True)
    assert not (tmp_path / "dry").exists()
    said = partly(at_work, tmp_path / "set")
    assert wrong(tmp_path / "set") == [] and at and not kept.exists(), said


def test_a_damaged_image_is_not_published(at_work: Path, tmp_path: Path) -> None:
    path = at_work / "images" / "sd-train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AigiError, match=r"sd"):
        partly(at_work, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_on_the_hub_partial_versions_are_counted_and_superseded(
    at_work: Path, stopped: tuple[Path, Path], tmp_path: Path
) -> None:
    with serve(tmp_path / "hub", lfs_from=10_000) as hub:
        there = hub.environment()
        add = ["publish", str(at_work), "--to", TO, "--partial"]
        done = aigi(*add, **there)
        assert done.returncode == 0, done.stderr
        assert "not yet complete: sdxl" in done.stderr
        assert hub.tags(REPO).keys() == {"v1.2.3-partial.1"}
        again = aigi(*add, **there)
        assert again.returncode == 0, again.stderr
        assert hub.tags(REPO).keys() == {"v1.2.3-partial.1"}, "nothing new was complete"
        verified = aigi("verify", f"{TO}@v1.2.3-partial.1", **there)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        go_on(stopped[0], at_work)
        done = aigi("publish", str(at_work), "--to", TO, **there)
        assert done.returncode == 0, done.stderr
        assert hub.tags(REPO).keys() == {"v1.2.3-partial.1", "v1.2.3"}
        assert all(many == 1 for many in hub.uploads.values()), "its files are not sent again"
        late = aigi("publish", str(at_work), "--to", TO, "--partial", **there)
        assert late.returncode == 1 and "every source is complete" in late.stderr


def test_scores_that_the_run_does_not_have_are_made_for_these_sources_alone(
    tmp_path: Path, models: Path
) -> None:
    folder = tmp_path / "scored"
    folder.mkdir()
    make: WorkflowMaker = make_workflow.__wrapped__(folder, models)  # type: ignore[attr-defined]
    workflow = make(embeddings={"folder": str(models / "clip")}, quality={}, duplicates={})
    killed(workflow, folder / "run", 5)
    removed(folder / "run", "images", "sdxl")
    partly(folder / "run", tmp_path / "set")
    assert wrong(tmp_path / "set") == []
    assert not (folder / "run" / "embeddings").exists()
    (maker,) = [manifest_of(tmp_path / "set")["tables"]]
    assert {"embeddings", "quality", "duplicates", "selection"} <= set(maker)


@pytest.mark.parametrize("source", ["sd", "left-out", "a-train", "x-test-00001"])
@pytest.mark.parametrize("round_", [0, 2])
@pytest.mark.parametrize("model", [None, 3])
def test_the_source_of_a_shard_is_in_its_name(source: str, round_: int, model: int | None) -> None:
    for split in ("train", "validation", "test"):
        assert source_of_shard(shard_name(source, split, round_, 7, model)) == source
    with pytest.raises(AigiError, match="not the name of a shard"):
        source_of_shard(f"{source}.parquet")


@pytest.fixture
def verified(at_work: Path) -> Iterator[Path]:
    yield at_work


def test_a_partial_release_is_one_by_itself(verified: Path, tmp_path: Path) -> None:
    """What is made below the run is a whole release of its sources, with all that it counted."""
    with complete(str(verified), None, Progress(io.StringIO()), lambda text: None) as found:
        store, manifest = open_release(found.folder, ENTRIES)
        assert compare(store, manifest) == []
        assert wrong_claims(store, manifest, Progress(io.StringIO()), True) == []
        assert manifest["plan"]["rounds"] == [] and found.sources == ("sd",)
        assert manifest["workflow"]["plan"]["sources"] == ["sd"]


@pytest.mark.slow
def test_a_grown_run_whose_images_are_in_its_release_is_published_in_part(
    make_workflow: WorkflowMaker, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """sd was released, and its images moved there; sdxl was added, and is still being made."""
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05}
    workflow, run = make_workflow(plan={**plan, "sources": ["sd"]}), tmp_path / "run"
    go_on(workflow, run)
    moved = Store(str(run)).record("images")
    assert moved is not None and all(one.moved for one in moved.shards.values())
    made = len(list((run / "images").glob("*.parquet")))
    workflow = make_workflow(plan=plan)
    killed(workflow, run, made + 1)
    removed(run, "images", "sdxl")
    before, target = state(run), tmp_path / "set"
    said = partly(run, target)
    assert any(line.startswith("not yet complete: sdxl: images: ") for line in said)
    assert state(run) == before and not (run / PLACE).exists()
    assert wrong(target) == []
    assert {p: data for p, data in files(target).items() if p.startswith("sd/")} == shards(
        finished[1], "sd"
    )
    go_on(workflow, run)
    assert shards(run, "sdxl") == shards(finished[1], "sdxl")
    assert shards(run, "sd") == shards(finished[1], "sd")
