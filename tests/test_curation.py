"""Scores, duplicates, selection and top-up rounds through the command: what a release promises."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import workflow as workflows
from pipeline.selection.sweep import sweep
from pipeline.store import Store
from tests.conftest import ROOT, aigi, aigi_here
from tests.test_end_to_end import contents

QUOTAS = {("sd", "train"): 24, ("sd", "test"): 2, ("sdxl", "train"): 4, ("sdxl", "test"): 6}
SIMILAR = 0.9
# Pictures of two steps: about half of them are not what the prompt says.
SCORE = 0.4


def rows_of(run: Path, table: str) -> dict[str, dict[str, Any]]:
    store = Store(str(run))
    return {row["image_id"]: row for row in store.read_all(table).to_pylist()}


def images_of(run: Path) -> list[dict[str, Any]]:
    store = Store(str(run))
    return [
        row for name in store.shards("images") for row in store.read("images", name).to_pylist()
    ]


def stamps(run: Path, table: str) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (run / table).rglob("*.parquet")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[tuple[Path, Path]]:
    """A workflow with every stage of curation, and its finished run."""
    from tests import conftest

    folder = tmp_path_factory.mktemp("curated")
    make: Any = conftest.make_workflow.__wrapped__  # type: ignore[attr-defined]
    path = make(folder, models)(
        embeddings={"folder": str(models / "clip")},
        quality={},
        duplicates={"min_similarity": 0.8},
        selection={"min_clip_score": SCORE, "min_similarity": SIMILAR, "rounds": 9},
    )
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    yield path, folder / "run"


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    path, run = finished
    return path, Path(shutil.copytree(run, tmp_path / "copy"))


def test_quotas_are_met_exactly_by_further_seeds(finished: tuple[Path, Path]) -> None:
    _, run = finished
    plan, selection = rows_of(run, "plan"), rows_of(run, "selection")
    assert set(plan) == set(selection), "the selection partitions the plan"
    kept = [plan[name] for name, row in selection.items() if row["keep"]]
    assert Counter((row["source"], row["split"]) for row in kept) == QUOTAS
    assert all(row["keep"] == (row["reason"] is None) for row in selection.values())
    assert {row["reason"] for row in selection.values()} >= {"clip_score", None}
    rounds = Counter(row["round"] for row in plan.values())
    assert rounds[1] > 0, "nothing was dropped, so this shows nothing"
    # New seeds of the split's own prompts, never the same picture again.
    assert len({(row["source"], row["prompt_id"], row["seed"]) for row in plan.values()}) == len(
        {row["pair_id"] or row["image_id"] for row in plan.values()}
    )
    splits: dict[str, set[str]] = {}
    for row in plan.values():
        splits.setdefault(row["prompt_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_watermarked_pairs_stay_pairs(finished: tuple[Path, Path]) -> None:
    _, run = finished
    plan, selection = rows_of(run, "plan"), rows_of(run, "selection")
    kept: dict[str, set[str]] = {}
    for name, row in selection.items():
        if row["keep"] and plan[name]["source"] == "sdxl" and plan[name]["split"] == "test":
            kept.setdefault(plan[name]["pair_id"], set()).add(plan[name]["watermark"])
    assert len(kept) == 3
    assert set(map(frozenset, kept.values())) == {frozenset({"none", "dwt-dct"})}


def test_nothing_leaks_from_training_to_test(finished: tuple[Path, Path]) -> None:
    """Brute force over what was released: within a source, and across splits."""
    _, run = finished
    plan, embeddings = rows_of(run, "plan"), rows_of(run, "embeddings")
    released = [row for row in rows_of(run, "selection").values() if row["keep"]]
    names = [row["image_id"] for row in released]
    vectors = np.array([embeddings[name]["image_vector"] for name in names], np.float64)
    close = vectors @ vectors.T
    unit = [plan[name]["pair_id"] or name for name in names]
    compared = 0
    for i, a in enumerate(names):
        for j in range(i):
            b = names[j]
            across = plan[a]["split"] != plan[b]["split"]
            if unit[i] != unit[j] and (across or plan[a]["source"] == plan[b]["source"]):
                assert close[i, j] < SIMILAR, (a, b)
                compared += 1
    assert compared > 300
    dropped = [r for r in rows_of(run, "selection").values() if r["reason"] == "duplicate"]
    for row in dropped:
        assert row["similarity"] >= SIMILAR
        assert rows_of(run, "selection")[row["duplicate_of"]]["reason"] in (None, "surplus")


@pytest.mark.slow
def test_killed_in_a_round_then_finished(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = finished
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--set", f"run={run}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((run / "images").glob("*round1*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stamps(run, "images")
    assert len(before) < len(stamps(undisturbed, "images"))
    # First without a release, to which the images move.
    for more in (["--set", "release=null"], []):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kept = before.items() <= stamps(run, "images").items()
        assert not more or kept, "a finished shard was made again"
    assert contents(run) == contents(undisturbed)


def test_a_second_run_changes_nothing(copy: tuple[Path, Path]) -> None:
    path, run = copy
    tables = ("plan", "images", "embeddings", "quality", "duplicates", "selection", "release")
    before = {table: stamps(run, table) for table in tables}
    done = aigi_here("run", str(path), "--set", f"run={run}")
    assert done.returncode == 0, done.stderr
    assert {table: stamps(run, table) for table in tables} == before


def test_a_threshold_can_be_taken_back(
    copy: tuple[Path, Path], finished: tuple[Path, Path]
) -> None:
    path, run = copy
    images = images_of(run)
    looser = aigi_here(
        "run", str(path), "--set", f"run={run}", "--set", "selection.min_clip_score=null"
    )
    assert looser.returncode == 0, looser.stderr
    reasons = {row["reason"] for row in rows_of(run, "selection").values()}
    assert "clip_score" not in reasons and "surplus" in reasons
    assert images_of(run) == images
    assert contents(run) != contents(finished[1])
    again = aigi_here("run", str(path), "--set", f"run={run}")
    assert again.returncode == 0, again.stderr
    assert contents(run) == contents(finished[1])


def test_decisions_of_people_are_applied(copy: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = copy
    selection = rows_of(run, "selection")
    victim = next(name for name, row in selection.items() if row["keep"])
    saved = next(name for name, row in selection.items() if row["reason"] == "clip_score")
    (tmp_path / "decisions.csv").write_text(f"image_id,decision\n{victim},drop\n{saved},keep\n")
    done = aigi_here(
        "run", str(path), "--set", f"run={run}",
        "--set", f"selection.review={tmp_path}/decisions.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = rows_of(run, "selection")
    assert after[victim]["reason"] == "review"
    assert after[saved]["reason"] in (None, "surplus", "duplicate")
    released = {
        row["image_id"]
        for shard in Store(str(run)).shards("release")
        for row in Store(str(run)).read("release", shard, ["image_id"]).to_pylist()
    }
    assert victim not in released
    plan = rows_of(run, "plan")
    assert Counter((plan[n]["source"], plan[n]["split"]) for n in released) == QUOTAS


def test_sweep_counts_what_the_selection_would_drop(finished: tuple[Path, Path]) -> None:
    path, run = finished
    before = contents(run)
    shown = aigi_here("sweep", str(path), "--examples", "1")
    assert shown.returncode == 0, shown.stderr
    assert "min_clip_score" in shown.stdout and "(now)" in shown.stdout
    lines = list(sweep(workflows.load(str(path)).rules, Store(str(run)), 2))
    scores = {n: r["clip_score"] for n, r in rows_of(run, "embeddings").items()}
    for line in (line for line in lines if line.setting == "min_clip_score"):
        low = {name for name, score in scores.items() if score < line.threshold}
        assert (line.dropped, line.scored) == (len(low), len(scores))
        assert sum(line.sources.values()) == line.dropped
        nearest = sorted(low, key=lambda name: -scores[name])[:2]
        assert [scores[n] for n in line.examples] == [scores[n] for n in nearest]
    now = {line.setting: line.threshold for line in lines if line.current}
    assert now["min_clip_score"] == SCORE and now["min_similarity"] == SIMILAR
    counts = [line.dropped for line in lines if line.setting == "min_similarity"]
    assert counts == sorted(counts) and counts[-1] > 0
    assert contents(run) == before, "looking changed the run"


@pytest.mark.slow
def test_ray_gives_the_same_bytes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = finished
    done = aigi(
        "run", str(path), "--set", f"run={tmp_path}/run", "--set", "compute.ray=local",
        "--set", "compute.workers=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_a_sweep_can_be_looked_at(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The sheet shows the examples, and beside a duplicate the image that stays."""
    from PIL import Image

    from pipeline.selection.sweep_sheet import COLUMNS, THUMB, draw

    path, run = finished
    store = Store(str(run))
    lines = [line for line in sweep(workflows.load(str(path)).rules, store, 2) if line.twins]
    assert lines, "the run has near duplicates"
    assert all(len(line.twins) == len(line.examples) for line in lines)
    pairs = {
        frozenset((row["image_id"], row["other_id"]))
        for shard in store.shards("duplicates")
        for row in store.read("duplicates", shard).to_pylist()
    }
    near = [line for line in lines if line.dropped == 1]
    for line in near:
        assert frozenset((line.examples[0], line.twins[0])) in pairs
    draw(store, lines[:1], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] > COLUMNS * THUMB
    stored = {
        row["image_id"]: row["image"]["bytes"]
        for shard in store.shards("images")
        for row in store.read("images", shard, ["image_id", "image"]).to_pylist()
        if row["image_id"] in (lines[0].examples[0], lines[0].twins[0])
    }
    for column, name in enumerate((lines[0].examples[0], lines[0].twins[0])):
        picture = np.asarray(Image.open(io.BytesIO(stored[name])).convert("RGB"))
        high, wide = picture.shape[:2]
        assert max(high, wide) <= THUMB, "pictures of this test are not scaled"
        left, top = 6 + column * (THUMB + 6), 18
        np.testing.assert_array_equal(sheet[top + 2 : top + high, left : left + wide], picture[2:])
    shown = aigi_here("sweep", str(path), "--sheet", str(tmp_path / "nowhere" / "s.png"))
    assert shown.returncode == 1 and "cannot be written as an image" in shown.stderr
