"""Training as a stage: made once, taken up where it was left, known without torch."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.status import status
from pipeline.store import Store
from pipeline.training import stages
from pipeline.training.settings import Train
from tests.conftest import ROOT
from tests.learned.conftest import pictures
from tests.training.release import write_release

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SMALL: dict[str, Any] = {
    "network": {"kind": "hyperprior", "name": "tiny", "n": 8, "m": 12},
    "steps": 2,
    "batch": 2,
    "crop": 64,
    "shuffle_buffer": 24,
    "validation_pictures": 0,
    "lambdas": [0.01, 0.02],
}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {("sdxl", "train"): pictures(3, 96, 128)}
    return write_release(tmp_path_factory.mktemp("stage"), parts)


def run(folder: Path, release: Path, **changes: Any) -> str:
    """Train in `folder`; returns what was said."""
    settings = Train.model_validate({"data": {"place": str(release)}, **SMALL, **changes})
    said = io.StringIO()
    stage = stages.stage(settings, str(folder), Compute(device="cpu"))
    run_stages([stage], Store(str(folder)), Compute(), Progress(said))
    return said.getvalue()


def test_finished_training_is_a_finished_stage(release: Path, tmp_path: Path) -> None:
    assert "already made" not in run(tmp_path, release)
    (state,) = status(Store(str(tmp_path)))
    assert (state.table, state.state, state.done, state.missing) == ("train", "done", 4, 0)
    models = [tmp_path / "train" / f"tiny-mse-{weight}" / "last" for weight in ("0.01", "0.02")]
    sizes = sum((model / name).stat().st_size for model in models
                for name in ("config.json", "model.safetensors"))  # fmt: skip
    assert state.bytes == sizes
    assert run(tmp_path, release) == "train: 4 files, already made\n"

    shutil.rmtree(models[1])
    (state,) = status(Store(str(tmp_path)))
    assert (state.done, state.missing) == (2, 2)
    said = run(tmp_path, release)
    assert "tiny-mse-0.01: 2 steps, already made" in said
    assert (models[1] / "model.safetensors").is_file(), "it is written again from the checkpoint"
    assert status(Store(str(tmp_path)))[0].missing == 0


def test_more_steps_go_on_and_another_crop_is_refused(release: Path, tmp_path: Path) -> None:
    run(tmp_path, release, lambdas=[0.01])
    assert "resumes from step 2" in run(tmp_path, release, lambdas=[0.01], steps=3)
    with pytest.raises(AigiError, match="crop: 64 -> 128"):
        run(tmp_path, release, lambdas=[0.01], steps=3, crop=128)
    assert status(Store(str(tmp_path)))[0].state == "stopped"
    assert "already made" in run(tmp_path, release, lambdas=[0.01], steps=3)


def test_a_run_trained_before_training_was_a_stage_is_taken_up(
    release: Path, tmp_path: Path
) -> None:
    run(tmp_path, release)
    store = Store(str(tmp_path))
    store.remove("_stages", "train.json")
    store.write_json({}, "_workflow.json")
    assert status(store) == [], "its logs tell of it"
    said = run(tmp_path, release)
    assert said.count("2 steps, already made") == 2
    assert status(store)[0].state == "done"


def test_finished_training_needs_no_torch(release: Path, tmp_path: Path) -> None:
    run(tmp_path, release)
    settings = {"data": {"place": str(release)}, **SMALL}
    code = (
        "import sys\n"
        "from pipeline.progress import Progress\n"
        "from pipeline.running import run_stages\n"
        "from pipeline.stage import Compute\n"
        "from pipeline.store import Store\n"
        "from pipeline.training import stages\n"
        "from pipeline.training.settings import Train\n"
        f"settings = Train.model_validate_json({json.dumps(json.dumps(settings))})\n"
        f"stage = stages.stage(settings, {str(tmp_path)!r}, Compute(device='cpu'))\n"
        f"run_stages([stage], Store({str(tmp_path)!r}), Compute(), Progress())\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 4 files, already made" in done.stderr


def test_training_on_an_object_store_is_refused_before_any_work() -> None:
    with pytest.raises(AigiError, match="needs a folder on this machine"):
        stages.stage(Train.model_validate(SMALL), "s3://bucket/run", Compute())
