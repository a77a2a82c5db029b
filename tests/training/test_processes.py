"""Several processes train one codec: by a launcher, and by Ray Train, with the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import AigiError
from pipeline.collection import Collection, Pictures
from pipeline.progress import Progress
from pipeline.training import checkpoint, fit, trainer
from pipeline.training.settings import Train
from pipeline.workflow import Workflow
from tests.conftest import ROOT
from tests.learned.conftest import pictures
from tests.training.release import trained, write_release

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SETTINGS: dict[str, Any] = {
    "network": {"kind": "hyperprior", "name": "tiny", "n": 8, "m": 12},
    "lambdas": [0.013, 0.05],
    "steps": 30,
    "batch": 2,
    "crop": 64,
    "shuffle_buffer": 24,
    "learning_rate": 1e-3,
    "log_every": 10,
    "save_every": 10,
    "validate_every": 30,
}
NAMES = ("tiny-mse-0.013", "tiny-mse-0.05")
STEPS = 30


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {
        ("sdxl", "train"): pictures(8, 96, 128),
        ("sdxl", "validation"): pictures(1, 70, 90, seed=9),
    }
    return write_release(tmp_path_factory.mktemp("processes"), parts)


def _workflow(run: Path, release: Path, **settings: Any) -> Workflow:
    train = {**SETTINGS, "data": {"place": str(release)}, **settings}
    return Workflow(run=str(run), train=Train.model_validate(train))


def _file(workflow: Workflow, path: Path) -> str:
    path.write_text(yaml.safe_dump(workflow.model_dump(mode="json", include={"run", "train"})))
    return str(path)


def _launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    # What `accelerate launch` is for GPUs; on CPUs it wants MPI for more than one process.
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return subprocess.run(
        [sys.executable, *launch, "-m", "pipeline.cli", "run", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def launched(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of two processes that a launcher started."""
    folder = tmp_path_factory.mktemp("launched")
    done = _launch(_file(_workflow(folder / "run", release), folder / "train.yaml"))
    assert done.returncode == 0, done.stderr
    return folder / "run" / "train"


def _state(folder: Path) -> dict[str, torch.Tensor]:
    tensors, _ = checkpoint.load(checkpoint.path_of(folder, STEPS))
    return tensors


def test_two_processes_share_their_gradients(launched: Path, release: Path, tmp_path: Path) -> None:
    _, facts = checkpoint.load(checkpoint.path_of(launched / NAMES[0], STEPS))
    assert facts["settings"]["processes"] == 2
    # Half of twice as many crops: one process with both halves makes nearly the same steps.
    workflow = _workflow(tmp_path / "alone", release, lambdas=[0.013], batch=4)
    trained(workflow, Progress(quiet=True))
    weight = "network.g_a.layers.0.weight"
    two = _state(launched / NAMES[0])[weight]
    one = _state(tmp_path / "alone" / "train" / NAMES[0])[weight]
    assert not torch.equal(two, one)
    assert torch.allclose(two, one, atol=STEPS * 2e-3)


def test_every_lambda_has_its_codec(launched: Path) -> None:
    first, second = (_state(launched / name) for name in NAMES)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all((launched / name / "last" / "model.safetensors").is_file() for name in NAMES)


def test_another_number_of_processes_is_refused(launched: Path, release: Path) -> None:
    refused = _workflow(launched.parent, release, steps=STEPS + 3)
    with pytest.raises(AigiError, match="processes: 2 -> 1"):
        trained(refused, Progress(quiet=True))


def test_the_first_mistake_ends_all_processes(release: Path, tmp_path: Path) -> None:
    path = _file(_workflow(tmp_path / "run", release, weights={"mod": 7}), tmp_path / "train.yaml")
    done = _launch(path)
    assert done.returncode != 0
    assert "no source mod among" in done.stderr


def test_processes_that_see_other_checkpoints_are_refused(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = _workflow(tmp_path, release, validation_pictures=0)
    assert workflow.train is not None
    accelerator = fit.accelerator_of(workflow.train, "cpu", tmp_path)
    monkeypatch.setattr(accelerator, "gather", lambda at: torch.cat([at, at + 10]))
    data = Pictures(place=str(release), splits=("train",))
    with pytest.raises(AigiError, match=r"different steps \(\[0, 10\]\).*all machines see it"):
        trainer.Trainer(workflow.train, (0.013,), tmp_path, 1, accelerator, Collection(data), [])


def _workers() -> list[int]:
    """Processes of Ray Train on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.slow
def test_ray_trains_the_same_though_a_worker_is_killed(
    launched: Path, release: Path, tmp_path: Path
) -> None:
    path = _file(_workflow(tmp_path / "run", release), tmp_path / "train.yaml")
    folder = tmp_path / "run" / "train"
    ray = ("--set", "compute.ray=local", "--set", "compute.workers=2")
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", path, *ray, "--set", "compute.device=cpu"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not checkpoint.path_of(folder / NAMES[0], 10).exists():
            assert process.poll() is None, "ended before a worker could be killed"
            time.sleep(0.01)
        workers = _workers()
        os.kill(workers[-1], signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert len(workers) == 2
    for name in NAMES:
        mine, theirs = _state(folder / name), _state(launched / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert f"{NAMES[0]}: resumes from step" in said
    assert f"{NAMES[1]}: step 30 of 30" in said
