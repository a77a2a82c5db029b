"""Small trainings for tests: settings that take some seconds on a CPU, and what they leave."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.collection import Collection
from pipeline.progress import Progress
from pipeline.training import fit, trainer
from pipeline.training.settings import Train
from pipeline.workflow import Workflow
from tests.training.release import trained

HYPERPRIOR = {"kind": "hyperprior", "name": "tiny", "n": 8, "m": 12}


def workflow_of(run: Path, release: Path, **settings: Any) -> Workflow:
    small: dict[str, Any] = {
        "data": {"place": str(release)},
        "network": HYPERPRIOR,
        "weights": {"mj52": 4},
        "steps": 12,
        "batch": 2,
        "crop": 64,
        "shuffle_buffer": 24,
        "initial": "random",  # what trains is seen in few steps
        "learning_rate": 1e-3,
        "save_every": 4,
        "validate_every": 6,
        "log_every": 3,
    }
    return Workflow(run=str(run), train=Train.model_validate(small | settings))


def train_here(run: Path, release: Path, **settings: Any) -> Path:
    (folder,) = trained(workflow_of(run, release, **settings), Progress(quiet=True))
    return folder


def trainer_of(run: Path, release: Path, **settings: Any) -> trainer.Trainer:
    """A trainer as `train` makes it, for single steps."""
    workflow = workflow_of(run, release, **settings | {"validation_pictures": 0})
    assert workflow.train is not None
    run.mkdir(parents=True, exist_ok=True)
    accelerator = fit.accelerator_of(workflow.train, "cpu", run)
    assert workflow.train.data is not None
    data = workflow.train.data.model_copy(update={"splits": ("train",)})
    (weights,) = fit.codecs_of(workflow.train, trainer.sizes_of(workflow.train)).values()
    return trainer.Trainer(workflow.train, weights, run, 1, accelerator, Collection(data), [])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_bits(one: Path, other: Path) -> None:
    """Two checkpoints or models hold the same bits under the same names."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
