"""Processes that train codecs apart, crops that all of them count, and what is said of each λ."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import AigiError
from pipeline.execute import _make
from pipeline.intact import USUAL
from pipeline.progress import Progress
from pipeline.store import Store
from pipeline.training import apart, checkpoint, fit
from pipeline.training.cost import cost, flops_of_crop
from pipeline.training.settings import Train
from tests.conftest import ROOT
from tests.learned.conftest import pictures
from tests.training.release import trained, write_release
from tests.training.small import (
    HYPERPRIOR,
    rows_of,
    same_bits,
    train_here,
    trainer_of,
    workflow_of,
)

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

LAMBDAS = [0.1, 0.03, 0.01]
NAMES = [f"tiny-mse-{weight:g}" for weight in LAMBDAS]
APART: dict[str, Any] = {
    "lambdas": LAMBDAS, "neighbour": 2, "steps": 6, "save_every": 3, "validation_pictures": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {
        ("sdxl", "train"): pictures(6, 96, 128),
        ("mj52", "train"): pictures(2, 96, 128, seed=5),
        ("sdxl", "validation"): pictures(2, 70, 90, seed=9),
    }
    return write_release(tmp_path_factory.mktemp("apart"), parts)


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Path:
    """The `train` folder of one process that trained all λ in turn."""
    run = tmp_path_factory.mktemp("one by one")
    folders = trained(workflow_of(run, release, **APART), Progress(quiet=True))
    assert [folder.name for folder in folders] == NAMES
    return run / "train"


def _settings(**given: Any) -> Train:
    return Train.model_validate({"data": {"place": "x"}, **given})


def test_each_codec_begins_with_its_neighbour(
    one_by_one: Path, release: Path, tmp_path: Path
) -> None:
    first = trainer_of(tmp_path / NAMES[0], release, **APART | {"lambdas": LAMBDAS[:1]} | ONE)
    crops = first.crops()
    for _ in range(2):
        first.step(crops)
    given = apart.begun_from(one_by_one / NAMES[0], tmp_path / "new", True, Progress(quiet=True))
    assert given is not None
    first.model_now().save_pretrained(tmp_path / "after two")
    name = "model.safetensors"
    same_bits(given / name, tmp_path / "after two" / name)
    # A codec that has begun needs it no more; one whose neighbour's is gone says so.
    assert apart.begun_from(tmp_path, one_by_one / NAMES[1], True, Progress(quiet=True)) is None
    with pytest.raises(AigiError, match=r"neighbour: not there, though .* has passed that step"):
        apart.begun_from(tmp_path, tmp_path / "new", True, Progress(quiet=True))


ONE = {"neighbour": None}


@pytest.mark.parametrize(("rank", "mine"), [(0, NAMES[::2]), (1, NAMES[1:2])])
def test_processes_take_codecs_in_turn(
    rank: int,
    mine: list[str],
    one_by_one: Path,
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = fit.accelerator_of

    class OneOfTwo:
        num_processes, process_index, is_main_process = 2, rank, rank == 0

        def __init__(self, *given: Any) -> None:
            self.accelerator = genuine(*given)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.accelerator, name)

    monkeypatch.setattr("pipeline.training.train.accelerator_of", OneOfTwo)
    folder = tmp_path / "train"
    others = [name for name in NAMES if name not in mine]
    for name in others:  # what the other process makes
        shutil.copytree(one_by_one / name, folder / name)
        (folder / name / "curve.csv").write_text("of another process")
    trained(workflow_of(tmp_path, release, **APART, parallel="codecs"), Progress(quiet=True))
    for name in mine:
        same_bits(*(checkpoint.path_of(f / name, 6) for f in (folder, one_by_one)))
    for name in others:
        assert (folder / name / "curve.csv").read_text() == "of another process"


@pytest.mark.slow
def test_processes_of_a_launcher_train_codecs_apart(
    one_by_one: Path, release: Path, tmp_path: Path
) -> None:
    workflow = workflow_of(tmp_path / "run", release, **APART, parallel="codecs")
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(workflow.model_dump(mode="json", include={"run", "train"})))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *launch, "-m", "pipeline.cli", "run", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        same_bits(*(checkpoint.path_of(f / name, 6) for f in (tmp_path / "run/train", one_by_one)))
        assert f"train: {name}: step 6 of 6" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_ray_trains_codecs_apart(one_by_one: Path, release: Path, tmp_path: Path) -> None:
    workflow = workflow_of(tmp_path / "run", release, **APART, parallel="codecs")
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(workflow.model_dump(mode="json", include={"run", "train"})))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "run", str(path)),
            *("--set", "compute.ray=local", "--set", "compute.workers=2"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        same_bits(*(checkpoint.path_of(f / name, 6) for f in (tmp_path / "run/train", one_by_one)))


def test_codecs_apart_need_several() -> None:
    from pipeline.training.fit import codecs_of
    from pipeline.training.trainer import sizes_of

    for asked in ({"parallel": "codecs"}, {"neighbour": 5}):
        settings = _settings(network="mean-scale", **asked)
        (key,) = asked
        with pytest.raises(AigiError, match=rf"train\.{key}: for several codecs"):
            codecs_of(settings, sizes_of(settings))
    with pytest.raises(ValueError, match=r"neighbour: 9 is more than steps \(8\)"):
        _settings(steps=8, neighbour=9)


def test_a_global_batch_is_shared_evenly(release: Path, tmp_path: Path) -> None:
    settings = _settings(global_batch=24, accumulate=2)
    assert settings.crops_at(0, 1) == (256, 12) and settings.crops_at(0, 4) == (256, 3)
    with pytest.raises(AigiError, match=r"global_batch: 24 crops .* 5 process.*multiple of 10\."):
        settings.crops_at(0, 5)
    with pytest.raises(ValueError, match="batch: leave it out beside global_batch"):
        _settings(global_batch=24, batch=8)
    with pytest.raises(ValueError, match="late_crops: give it a global_batch if and only if"):
        _settings(global_batch=24, late_crops={"crop": 512})
    late = _settings(global_batch=24, steps=10, late_crops={"crop": 512, "global_batch": 8})
    assert late.crops_at(8, 4) == (256, 6) and late.crops_at(9, 4) == (512, 2)
    # What is written down can be read again.
    for one in (settings, late, _settings()):
        assert Train.model_validate(one.model_dump(mode="json")) == one
    same = {"steps": 3, "validation_pictures": 0}
    whole = workflow_of(tmp_path / "a", release, **same).train
    assert whole is not None
    given = whole.model_dump(mode="json") | {"global_batch": 4, "accumulate": 2}
    del given["batch"]
    (folder,) = trained(
        workflow_of(tmp_path / "a", release).model_copy(
            update={"train": Train.model_validate(given)}
        ),
        Progress(quiet=True),
    )
    assert "3 steps of 4 crops of 64x64" in (folder / "last" / "README.md").read_text()
    by_process = train_here(tmp_path / "b", release, **same, accumulate=2)
    same_bits(*(checkpoint.path_of(f, 3) for f in (folder, by_process)))


def test_every_lambda_has_its_rows(release: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"together": True, "lambdas": [0.001, 0.1], "validation_pictures": 0}
    folder = train_here(tmp_path, release, **asked, steps=6, batch=4)
    rows = [{k: float(v) for k, v in row.items()} for row in rows_of(folder / "rates.csv")]
    assert [(row["step"], row["quality"], row["crops"]) for row in rows] == [
        (3, 1, 6), (3, 2, 6), (6, 1, 6), (6, 2, 6),
    ]  # fmt: skip
    curve = [{k: float(v) for k, v in row.items()} for row in rows_of(folder / "curve.csv")]
    for row in rows:
        distortion = row["lambda"] * 255**2 * 10 ** (-row["psnr"] / 10)
        assert row["loss"] == pytest.approx(distortion + row["y_bpp"] + row["z_bpp"], rel=1e-4)
        assert row["lambda"] == pytest.approx(asked["lambdas"][int(row["quality"]) - 1])
        assert row["gradient_norm"] > 0 and row["calibration"] > 0
    for number, means in enumerate(curve):
        pair = rows[2 * number : 2 * number + 2]
        assert np.mean([row["loss"] for row in pair]) == pytest.approx(means["loss"], rel=1e-4)
        bpp = np.mean([row["y_bpp"] + row["z_bpp"] for row in pair])
        assert bpp == pytest.approx(means["bpp"], rel=1e-4)


def test_operations_grow_with_pixels_crops_and_codecs() -> None:
    small = _settings(network=HYPERPRIOR, steps=10, batch=2, crop=64, lambdas=[0.1, 0.2])
    one = flops_of_crop(small, 64)
    # The first convolution alone: 5x5 from 3 to 8 channels at 32x32, forwards and for its weights.
    assert one > 2 * 2 * 25 * 3 * 8 * 32 * 32
    assert flops_of_crop(small, 128) == 4 * one
    found = cost(small, processes=3)
    assert (found.codecs, found.crops) == (2, 60)
    assert found.flops == pytest.approx(2 * 60 * one)
    assert found.hours(1e-6) == pytest.approx(found.flops / 1e6 / 3600)
    late = small.model_dump() | {"late_crops": {"crop": 128, "batch": 1, "after": 0.8}}
    assert cost(Train.model_validate(late)).flops == pytest.approx(2 * one * (16 + 2 * 4))


def test_trained_codecs_are_measured_beside_anchors(release: Path, tmp_path: Path) -> None:
    workflow = workflow_of(
        tmp_path, release, lambdas=[0.01, 0.1], steps=4, validation_pictures=1, anchors=["jpeg"]
    )
    _make(workflow, Progress(quiet=True), USUAL)
    store = Store(str(tmp_path))
    table = store.read_all("measurements")
    codecs = {row["codec"] for row in table.to_pylist()}
    assert codecs == {"jpeg", "tiny"}
    tiny = [row for row in table.to_pylist() if row["codec"] == "tiny"]
    assert [row["quality"] for row in tiny] == [1, 2] and all(row["bpp"] > 0 for row in tiny)
    with pytest.raises(ValueError, match=r"anchors: .*jpg"):
        _settings(anchors=["jpg"])
    with pytest.raises(ValueError, match="anchors: leave them out"):
        _settings(anchors=["jpeg"], validation_pictures=0)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(
    name: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.fit.find_spec", lambda given: None)
    with pytest.raises(AigiError, match=rf"{name} is not installed. Run pip install {name}$"):
        train_here(tmp_path, release, tracker=name)
