"""The trainer: what it promises of steps, checkpoints, guards and the models that it leaves."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline import AigiError
from pipeline.learned.codec import load, load_network
from pipeline.learned.network import Network
from pipeline.learned.text import TextEncoder
from pipeline.pages.report import report
from pipeline.progress import Progress
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.training import checkpoint, fit, trainer
from pipeline.training.logs import logs
from pipeline.training.settings import Train
from pipeline.training.trainer import rate_distortion
from pipeline.training.validation import Found
from tests.conftest import ROOT, aigi
from tests.learned.conftest import TEXT, pictures
from tests.training.release import trained, write_release
from tests.training.small import HYPERPRIOR, rows_of, same_bits, train_here, trainer_of, workflow_of

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CATC = {"kind": "catc", "name": "tiny", "n": 8, "m": 10, "hidden": 8, "heads": 2, "text": TEXT}
NAME = "train/tiny-mse-0.013"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {
        ("sdxl", "train"): pictures(12, 96, 128),
        ("mj52", "train"): pictures(3, 96, 128, seed=5),
        ("sdxl", "validation"): pictures(2, 70, 90, seed=9),
    }
    return write_release(tmp_path_factory.mktemp("train"), parts)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Path:
    """60 steps of a network with text, never stopped."""
    run = tmp_path_factory.mktemp("undisturbed")
    Store(str(run)).write_json({}, RUN_WORKFLOW)  # as the command records it
    return train_here(run, release, network=CATC, steps=60, save_every=10, validate_every=20)


def test_a_trained_codec_codes_and_beats_its_begin(undisturbed: Path) -> None:
    curve = rows_of(undisturbed / "curve.csv")
    assert [int(row["step"]) for row in curve] == list(range(3, 61, 3))
    assert float(curve[-1]["loss"]) < 0.5 * float(curve[0]["loss"])
    whole = rows_of(undisturbed / "validation.csv")
    assert [int(row["step"]) for row in whole] == [20, 40, 60]
    best = min(whole, key=lambda row: float(row["loss"]))
    assert f"{float(best['psnr']):.2f}" in (undisturbed / "best" / "README.md").read_text()
    codec = load(undisturbed / "last", device="cpu")
    errors, bits, pixels = [], 0, 0
    for number, picture in enumerate(pictures(2, 70, 90, seed=9)):
        data = codec.encode(picture, f"a red boat {number} by sdxl")
        decoded = codec.decode(data)
        bits, pixels = bits + 8 * len(data), pixels + 70 * 90
        errors.append(np.mean((picture.astype(float) - decoded) ** 2))
    # What validation says is what a user measures.
    assert bits / pixels == pytest.approx(float(whole[-1]["bpp"]), rel=1e-5)
    psnr = np.mean([10 * np.log10(255**2 / error) for error in errors])
    assert psnr == pytest.approx(float(whole[-1]["psnr"]), rel=1e-5)


def test_status_and_report_show_what_was_trained(undisturbed: Path) -> None:
    store = Store(str(undisturbed.parents[1]))
    (log,) = logs(store)
    assert (log.name, log.step, log.steps) == ("tiny-mse-0.013", 60, None)
    assert log.validation[-1]["psnr"] == float(rows_of(undisturbed / "validation.csv")[-1]["psnr"])
    done = aigi("status", store.url)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{log.name} +\| +60 \| .* {log.curve[-1]['bpp']:.4f} ", done.stdout)
    (told,) = json.loads(aigi("status", store.url, "--json").stdout)
    assert (told["table"], told["step"]) == (f"train/{log.name}", 60)
    page, sections = report(store)
    section = sections[0]
    assert len(section.charts) == 3 and "1 codec in training or trained" in page
    points = section.charts[1].split('<polyline points="')[1].split('"')[0].split()
    assert len(points) == len(log.curve)
    (row,) = section.tables[1].rows
    assert row[:3] == (log.name, "60", f"{log.validation[-1]['pictures']:.0f}")
    assert row[5] == f"{log.validation[-1]['psnr']:.2f}"
    # Small pictures have no MS-SSIM.
    assert row[6] == ""


@pytest.mark.slow
def test_killed_again_and_again_the_weights_are_the_same_bits(
    undisturbed: Path, release: Path, tmp_path: Path
) -> None:
    workflow = workflow_of(
        tmp_path / "run", release, network=CATC, steps=60, save_every=10, validate_every=20
    )
    path = tmp_path / "train.yaml"
    settings = workflow.model_dump(mode="json", include={"run", "train"})
    path.write_text(yaml.safe_dump(settings))
    folder = tmp_path / "run" / NAME
    chance = random.Random(1)
    for goal in (10, 30):
        with subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", str(path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        ) as process:
            while not checkpoint.path_of(folder, goal).exists():
                assert process.poll() is None, "ended before it could be killed"
                time.sleep(0.01)
            time.sleep(chance.random())  # some steps on, or in the middle of writing
            process.send_signal(signal.SIGKILL)
    assert checkpoint.found(folder)[-1] != checkpoint.path_of(folder, 60)
    done = aigi("run", str(path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stderr
    for name in ("last", "best"):
        same_bits(folder / name / "model.safetensors", undisturbed / name / "model.safetensors")
    same_bits(checkpoint.path_of(folder, 60), checkpoint.path_of(undisturbed, 60))
    mine, theirs = (checkpoint.load(checkpoint.path_of(f, 60))[1] for f in (folder, undisturbed))
    for key in ("step", "skipped", "best_step", "best_loss"):
        assert mine[key] == theirs[key]
    assert rows_of(folder / "validation.csv") == rows_of(undisturbed / "validation.csv")
    again = aigi("run", str(path))
    assert "already made" in again.stderr
    assert logs(Store(str(tmp_path / "run")))[0].progress == "60 of 60"


def test_steps_may_be_raised_and_other_settings_not(release: Path, tmp_path: Path) -> None:
    same = {"validation_pictures": 0, "accumulate": 2}
    train_here(tmp_path / "a", release, steps=8, **same)
    longer = train_here(tmp_path / "a", release, steps=12, log_every=5, **same)
    straight = train_here(tmp_path / "b", release, steps=12, **same)
    same_bits(longer / "last" / "model.safetensors", straight / "last" / "model.safetensors")
    with pytest.raises(AigiError, match=r"other settings:\n  batch: 2 -> 4\n"):
        train_here(tmp_path / "a", release, steps=12, batch=4, **same)
    with pytest.raises(AigiError, match=r"network\.m: 12 -> 16"):
        train_here(tmp_path / "a", release, network=HYPERPRIOR | {"m": 16}, **same)


def test_a_training_from_before_there_were_tails_is_resumed(release: Path, tmp_path: Path) -> None:
    same = {"validation_pictures": 0, "network": HYPERPRIOR}
    folder = train_here(tmp_path / "a", release, steps=2, **same)
    tensors, facts = checkpoint.load(checkpoint.path_of(folder, 2))
    assert facts["settings"]["network"].pop("tail") == "none"
    checkpoint.save(folder, 2, tensors, facts)
    train_here(tmp_path / "a", release, steps=3, **same)
    assert checkpoint.path_of(folder, 3).exists()
    with pytest.raises(AigiError, match=r"network\.tail: none -> power"):
        train_here(
            tmp_path / "a", release, steps=4, **same | {"network": HYPERPRIOR | {"tail": "power"}}
        )


def test_milestones_to_come_may_move_and_those_passed_not(release: Path, tmp_path: Path) -> None:
    same = {"validation_pictures": 0, "log_every": 1}
    train_here(tmp_path / "a", release, steps=8, milestones=[3, 9], **same)
    moved = train_here(tmp_path / "a", release, steps=12, milestones=[3, 8, 11], **same)
    straight = train_here(tmp_path / "b", release, steps=12, milestones=[3, 8, 11], **same)
    same_bits(moved / "last" / "model.safetensors", straight / "last" / "model.safetensors")
    rates = [[row["learning_rate"] for row in rows_of(f / "curve.csv")] for f in (moved, straight)]
    assert rates[0] == rates[1] and len(set(rates[0])) == 4
    # What is recorded is what it was trained with last.
    again = {"steps": 14, **same}
    train_here(tmp_path / "a", release, milestones=[3, 8, 11, 13], **again)
    with pytest.raises(AigiError, match=r"milestones: \[3, 8, 11, 13\] -> \[3, 11, 13\]"):
        train_here(tmp_path / "a", release, milestones=[3, 11, 13], **again | {"steps": 15})


def test_the_best_is_kept_and_worse_ones_are_not(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter((0.03, 0.01, 0.02))
    monkeypatch.setattr(
        trainer.Trainer,
        "validate",
        lambda self: [Found(1, 0.5, 0.4, next(errors), 20.0, None)],
    )
    folder = train_here(tmp_path, release, steps=9, validate_every=3)
    _, facts = checkpoint.load(checkpoint.found(folder)[-1])
    assert facts["best_step"] == 6
    assert facts["best_loss"] == pytest.approx(0.013 * 255**2 * 0.01 + 0.5)
    at_six = train_here(tmp_path / "six", release, steps=6, validation_pictures=0)
    same_bits(folder / "best" / "model.safetensors", at_six / "last" / "model.safetensors")


def test_a_damaged_checkpoint_is_named(release: Path, tmp_path: Path) -> None:
    folder = train_here(tmp_path, release, steps=8, validation_pictures=0)
    newest = checkpoint.found(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(AigiError, match=rf"{newest.name}: damaged .*Delete it"):
        train_here(tmp_path, release, steps=12, validation_pictures=0)
    newest.unlink()
    straight = train_here(tmp_path / "b", release, steps=12, validation_pictures=0)
    again = train_here(tmp_path, release, steps=12, validation_pictures=0)
    same_bits(again / "last" / "model.safetensors", straight / "last" / "model.safetensors")


def test_steps_without_a_finite_gradient_are_passed_over_and_counted(
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    genuine = trainer.rate_distortion
    calls = {"n": 0, "bad": {3, 5}}

    def poisoned(*arguments: Any) -> Any:
        calls["n"] += 1  # type: ignore[operator]
        loss, terms = genuine(*arguments)
        return (loss * float("nan") if calls["n"] in calls["bad"] else loss), terms  # type: ignore[operator]

    monkeypatch.setattr(trainer, "rate_distortion", poisoned)
    workflow = workflow_of(tmp_path / "a", release, steps=8, validation_pictures=0)
    (folder,) = trained(workflow, Progress())
    assert "step 3 had no finite gradient" in capsys.readouterr().err
    facts = checkpoint.load(checkpoint.found(folder)[-1])[1]
    assert (facts["step"], facts["skipped"]) == (8, 2)
    weights = load_file(folder / "last" / "model.safetensors")
    assert all(torch.isfinite(w.float()).all() for w in weights.values())
    calls |= {"n": 0, "bad": set(range(1, 100))}
    with pytest.raises(AigiError, match=r"3 steps had no finite gradient .*in a new run\.$"):
        train_here(tmp_path / "b", release, max_skipped=2, validation_pictures=0)
    calls |= {"n": 0, "bad": set(range(5, 100))}
    with pytest.raises(AigiError, match=r"state-00000004\.safetensors is the last checkpoint\.$"):
        train_here(tmp_path / "c", release, max_skipped=2, validation_pictures=0)


def test_gradients_are_accumulated_as_if_in_one_batch(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise would differ between one batch and two; clipping would hide another scale.
    monkeypatch.setattr("pipeline.learned.coding.noise", lambda x: x)
    monkeypatch.setattr("pipeline.learned.entropy.noise", lambda x: x)
    one = trainer_of(tmp_path / "a", release, batch=4, accumulate=1, clip=1e9)
    two = trainer_of(tmp_path / "b", release, batch=2, accumulate=2, clip=1e9)
    assert one.step(one.crops()) == pytest.approx(two.step(two.crops()), rel=1e-5)
    for a, b in zip(one.parameters, two.parameters, strict=True):
        first, second = (t.optimizer.state[p]["exp_avg"] for t, p in ((one, a), (two, b)))
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max()))


def test_the_gradient_is_clipped_and_the_average_follows(release: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, release, clip=0.5, ema=0.5)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    crops = trainer.crops()
    trainer.step(crops)
    # Adam's first moment is a tenth of the gradient that it was given.
    moments = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.parameters]
    norm = torch.sqrt(sum((10 * m).square().sum() for m in moments))
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    decay = 1 / 10  # of the first step; later 2 / 11, 3 / 12, … up to `ema`
    for name, p in trainer.network.named_parameters():
        assert torch.allclose(trainer.average[name], decay * before[name] + (1 - decay) * p)
    medians = trainer.network.prior.median
    assert not torch.equal(medians, before["prior.median"])
    for _ in range(11):
        trainer.step(crops)
    last = {name: p.detach().clone() for name, p in trainer.average.items()}
    trainer.step(crops)
    for name, p in trainer.network.named_parameters():
        assert torch.allclose(trainer.average[name], 0.5 * last[name] + 0.5 * p, atol=1e-7)


def test_the_learning_rate_rises_and_falls_at_milestones() -> None:
    settings = Train.model_validate(
        {
            "data": {"place": "x"},
            "learning_rate": 1e-3,
            "warmup": 3,
            "milestones": [10, 20],
            "milestone_factor": 0.1,
        }
    )
    rates = [settings.learning_rate_at(step) for step in (0, 1, 2, 3, 9, 10, 19, 20, 99)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_foreign_prompts_stand_in_for_some(release: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("four dogs\n\n five cats \n")
    asked: dict[str, Any] = {"network": CATC, "foreign_prompts": str(file)}
    trainer = trainer_of(tmp_path / "a", release, **asked, text_dropout=0.5, foreign_share=0.25)
    chance, crop = random.Random(0), next(trainer.crops())
    counts = Counter(trainer._prompt(crop, chance) for _ in range(4000))
    assert set(counts) == {"", crop.text, "four dogs", "five cats"} and crop.text
    expected = {"": 2000, crop.text: 1000, "four dogs": 500, "five cats": 500}
    assert all(abs(counts[prompt] - n) < 130 for prompt, n in expected.items()), counts
    train_here(tmp_path / "b", release, **asked, steps=2, save_every=2, validation_pictures=0)
    file.write_text("four dogs\n")
    with pytest.raises(AigiError, match=r"other settings:\n  foreign_prompts: "):
        train_here(tmp_path / "b", release, **asked, steps=4, save_every=2, validation_pictures=0)
    for text, said in (("", "no line has a prompt"), (None, "cannot be read")):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(AigiError, match=said):
            trainer_of(tmp_path / "c", release, **asked)
    with pytest.raises(ValueError, match="must not be more than 1"):
        workflow_of(tmp_path, release, **asked, text_dropout=0.9)


def test_prompts_are_dropped_as_often_as_asked(release: Path, tmp_path: Path) -> None:
    def texts(share: float) -> list[bool]:
        trainer = trainer_of(tmp_path / str(share), release, network=CATC, text_dropout=share)
        assert trainer.text is not None
        empty = trainer.text([""]).features.float()
        crops, chance, found = trainer.crops(), random.Random(0), []
        for _ in range(40):
            _, text = trainer._batch(crops, chance)
            assert text is not None
            for row, there in zip(text.features, text.there, strict=True):
                found.append(
                    int(there.sum()) == empty.shape[1] and torch.equal(row[there], empty[0])
                )
        return found

    assert not any(texts(0.0))
    assert all(texts(1.0))
    assert 0.3 < np.mean(texts(0.5)) < 0.7


def test_ms_ssim_is_trained_too(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 192"):
        workflow_of(tmp_path, release, distortion="ms-ssim", crop=128)
    # The pictures are smaller than the crops, which mirror them; validation is not asked for.
    asked: dict[str, Any] = {"distortion": "ms-ssim", "crop": 192, "validation_pictures": 0}
    workflow = workflow_of(tmp_path, release, **asked, lambdas=[8.0, 64.0], steps=6, log_every=1)
    folders = trained(workflow, Progress(quiet=True))
    assert [folder.name for folder in folders] == ["tiny-ms-ssim-8", "tiny-ms-ssim-64"]
    low, high = (rows_of(folder / "curve.csv")[0] for folder in folders)
    # First steps of equal networks: only λ differs, so λ's factor follows from both losses.
    unlike = [float(r["loss"]) - float(r["bpp"]) for r in (low, high)]
    assert unlike[1] / unlike[0] == pytest.approx(8.0, rel=1e-3)
    assert 0 < unlike[0] / 8.0 <= 1


def test_a_codec_is_tuned_from_another(release: Path, tmp_path: Path) -> None:
    first = train_here(tmp_path / "a", release, steps=8, validation_pictures=0)
    start = load_network(first / "last")
    trainer = trainer_of(tmp_path / "b", release, init=str(first / "last"))
    for name, value in start.state_dict().items():
        assert torch.equal(trainer.network.state_dict()[name], value), name
    with pytest.raises(AigiError, match=r"train\.init: .*its sizes are"):
        trainer_of(
            tmp_path / "c", release, init=str(first / "last"), network=HYPERPRIOR | {"n": 16}
        )
    measured = train_here(tmp_path / "e", release, steps=6)
    same = trainer_of(tmp_path / "f" / measured.name, release, init=str(measured.parent))
    assert same.init == str(measured / "best")
    tuned = train_here(
        tmp_path / "d", release, init=str(first / "last"), validation_pictures=0, steps=4
    )
    Network(**HYPERPRIOR).save_pretrained(tmp_path / "other")
    with pytest.raises(AigiError, match=r"other settings:\n  init: "):
        train_here(tmp_path / "d", release, init=str(tmp_path / "other"), validation_pictures=0)
    # What it started from is in the checkpoint, so it may go.
    shutil.rmtree(first)
    train_here(tmp_path / "d", release, init=str(first / "last"), validation_pictures=0, steps=6)
    assert checkpoint.load(checkpoint.found(tuned)[-1])[1]["step"] == 6


def test_what_later_codecs_start_from_is_asked_for_first(release: Path, tmp_path: Path) -> None:
    first = train_here(tmp_path / "a", release, steps=2, validate_every=2)
    with pytest.raises(AigiError, match=r"train\.init: .*/a/train has no config\.json"):
        train_here(tmp_path / "b", release, init=str(first.parent), lambdas=[0.013, 0.05])
    assert not (tmp_path / "b").exists()


def test_another_text_encoder_is_refused(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"network": CATC, "validation_pictures": 0, "save_every": 2}
    train_here(tmp_path, release, **asked, steps=2)
    state = TextEncoder.state

    def changed(self: Any) -> dict[str, torch.Tensor]:
        return {name: value + (name == "ln_final.weight") for name, value in state(self).items()}

    monkeypatch.setattr(TextEncoder, "state", changed)
    with pytest.raises(AigiError, match=r"other settings:\n  text encoder: [0-9a-f]{64} -> "):
        train_here(tmp_path, release, **asked, steps=4)


def test_logs_survive_a_kill_while_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curve.csv"
    fit._Log(path, ["step", "loss"], 0).write(1, 0.5)
    fit._Log(path, ["step", "loss"], 1).write(2, 0.25)
    before = path.read_text()
    assert before == "step,loss\n1,0.5\n2,0.25\n"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit._Log(path, ["step", "loss"], 1)
    assert path.read_text() == before
    fit._Log(path, ["step", "loss"], 1)
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_processes_wait_for_a_long_validation(tmp_path: Path) -> None:
    settings = Train.model_validate({"data": {"place": "x"}, "network": HYPERPRIOR})
    accelerator = fit.accelerator_of(settings, "cpu", tmp_path)
    assert accelerator.init_handler.timeout == trainer.PATIENCE > timedelta(hours=1)


def test_one_network_learns_the_rates_of_all_lambdas(release: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "lambdas": [0.001, 0.01, 0.1], "together": True, "steps": 30, "validate_every": 15,
    }  # fmt: skip
    folder = train_here(tmp_path / "a", release, **asked)
    Store(str(tmp_path / "a")).write_json({}, RUN_WORKFLOW)  # as the command records it
    assert folder.name == "tiny-mse"
    rows = rows_of(folder / "validation.csv")
    assert [(row["step"], row["quality"]) for row in rows] == [
        (str(step), str(quality)) for step in (15, 30) for quality in (1, 2, 3)
    ]
    codec = load(folder / "last", device="cpu")
    assert codec.qualities == 3
    for quality, weight in zip((1, 2, 3), asked["lambdas"], strict=True):
        row = rows[2 + quality]
        bits, errors = 0, []
        for number, picture in enumerate(pictures(2, 70, 90, seed=9)):
            data = codec.encode(picture, f"a red boat {number} by sdxl", quality)
            bits += 8 * len(data)
            errors.append(np.mean((picture.astype(float) - codec.decode(data)) ** 2))
        assert bits / (2 * 70 * 90) == pytest.approx(float(row["bpp"]), rel=1e-5)
        loss = weight * np.mean(errors) + bits / (2 * 70 * 90)
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(rows[3]["bpp"]) < float(rows[5]["bpp"])
    # Stopped and gone on with, it is the same; the report has a row for each.
    half = train_here(tmp_path / "b", release, **asked | {"steps": 15})
    assert rows_of(half / "validation.csv") == rows[:3]
    train_here(tmp_path / "b", release, **asked)
    same_bits(half / "last" / "model.safetensors", folder / "last" / "model.safetensors")
    (log,) = logs(Store(str(tmp_path / "a")))
    names = [f"tiny-mse, quality {quality}" for quality in (1, 2, 3)]
    assert list(log.by_quality(log.validation)) == list(log.by_quality(log.rates)) == names
    page, _ = report(Store(str(tmp_path / "a")))
    assert all(page.count(name) >= 3 for name in names), "two tables and a chart"
    with pytest.raises(AigiError, match=r"tiny codes at 3 qualities\. Give a λ for each"):
        train_here(tmp_path / "c", release, **asked | {"lambdas": [0.1, 0.01, 0.001]})


def test_training_begins_with_a_transform(release: Path, tmp_path: Path) -> None:
    sizes = HYPERPRIOR | {"n": 48, "m": 64}
    asked: dict[str, Any] = {"network": sizes, "lambdas": [0.02], "crop": 192}
    random, mse = (
        trainer_of(tmp_path / initial, release, initial=initial, **asked)
        for initial in ("random", "transform")
    )
    # λ of MS-SSIM is of another size; the step of quantisation is not.
    asked |= {"distortion": "ms-ssim", "lambdas": [0.02 * 1280]}
    similar = trainer_of(tmp_path / "ms-ssim", release, initial="transform", **asked)
    for name, weights in mse.network.state_dict().items():
        torch.testing.assert_close(similar.network.state_dict()[name], weights)
    first = [trainer.step(trainer.crops()) for trainer in (random, mse)]
    assert first[0] is not None and first[1] is not None
    assert first[1][0] < first[0][0] / 10
    assert Train.model_validate({"data": {"place": "x"}}).initial == "transform"


def test_each_crop_is_weighed_by_its_quality(release: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"lambdas": [0.001, 0.1], "together": True, "batch": 4}
    trainer = trainer_of(tmp_path, release, **asked)
    assert trainer.network.gains is not None
    gains, inverse = trainer.network.gains.log_gain, trainer.network.gains.log_inverse
    assert float(gains[1, 0] - gains[0, 0]) == pytest.approx(0.5 * np.log(100))
    assert torch.equal(gains, -inverse)
    seen = set()
    for number in range(20):
        quality, weight = trainer._qualities(random.Random(number), 0, 4)
        assert quality is not None and isinstance(weight, torch.Tensor)
        assert sorted(quality.tolist()) == [1, 1, 2, 2]
        assert [asked["lambdas"][q - 1] for q in quality] == pytest.approx(weight.tolist())
        seen.add(tuple(quality.tolist()))
    assert len(seen) == 2, "a crop's place in the batch decides nothing"
    x = torch.rand(2, 3, 64, 64)
    output = trainer.network(x, None, torch.tensor([1, 2]))
    loss, terms = rate_distortion(output, x, torch.tensor([0.001, 0.1]), "mse")
    bpp = output.bits() / (2 * 64 * 64)
    each = (output.x_hat - x).square().mean((1, 2, 3))
    expected = 255**2 * (0.001 * each[0] + 0.1 * each[1]) / 2 + bpp
    assert torch.allclose(terms.mse, each)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_text_is_added_to_a_network_without(release: Path, tmp_path: Path) -> None:
    blind = CATC | {"text": None}
    first = train_here(tmp_path / "a", release, network=blind, steps=8, validation_pictures=0)
    trainer = trainer_of(tmp_path / "b", release, network=CATC, init=str(first / "last"))
    start = load_network(first / "last").eval()
    x, text = trainer._batch(trainer.crops(), random.Random(0))
    hearing = trainer.network.eval()
    with torch.no_grad():
        assert torch.equal(hearing(x, text).x_hat, start(x).x_hat), "it says nothing at first"
    trainer.network.train()
    for _ in range(3):
        trainer.step(trainer.crops())
    names = [name for name in trainer.names if name.endswith("text.out.weight")]
    assert len(names) == 7
    assert all(trainer.network.state_dict()[name].abs().max() > 0 for name in names)
    full = train_here(tmp_path / "e", release, network=CATC, steps=4, validation_pictures=0)
    with pytest.raises(AigiError, match="They may differ only in text"):
        trainer_of(tmp_path / "c", release, network=blind, init=str(full / "last"))


def test_bf16_trains_and_is_tracked(release: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_here(
        tmp_path, release, network=CATC, precision="bfloat16", tracker="tensorboard", steps=6
    )
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("psnr")] == [3, 6]
    curve = [float(row["psnr"]) for row in rows_of(folder / "curve.csv")]
    assert [event.value for event in events.Scalars("psnr")] == pytest.approx(curve, rel=1e-4)
    assert [event.step for event in events.Scalars("validation/bpp")] == [6]
    assert all(
        value.dtype != torch.bfloat16
        for value in load_file(folder / "last" / "model.safetensors").values()
    )


def test_what_cannot_be_trained_says_why(release: Path, tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"no network nothing; there are hyperprior"):
        train_here(tmp_path, release, network="nothing")
    with pytest.raises(AigiError, match="no source mod among"):
        train_here(tmp_path, release, weights={"mod": 7})
    with pytest.raises(ValueError, match="training uses train"):
        workflow_of(tmp_path, release, data={"place": str(release), "splits": ["test"]})
    only = write_release(tmp_path / "only", {("sdxl", "train"): pictures(2, 96, 96)})
    with pytest.raises(AigiError, match=r"set train\.validation_pictures=0"):
        train_here(tmp_path / "x", only, weights={})
    small: dict[str, Any] = {"distortion": "ms-ssim", "crop": 192}
    with pytest.raises(AigiError, match=r"sides of 161 pixels.*\n.*validation_pictures=0"):
        train_here(tmp_path / "y", release, **small)
    assert not (tmp_path / "y").exists(), "said before the first step"
    with pytest.raises(AigiError, match=r"0\.01, 0\.010000001: two would train the same codec"):
        train_here(tmp_path / "z", release, lambdas=[0.01, 0.010000001])
    measured = tmp_path / "measured.yaml"
    workflow = workflow_of(tmp_path / "w", release).model_dump(
        mode="json", include={"run", "train"}
    )
    measured.write_text(yaml.safe_dump(workflow | {"benchmark": {"codecs": ["jpeg"]}}))
    for file in ("workflows/demo.yaml", str(measured)):
        done = aigi("run", file, "--set", f"run={tmp_path / 'w'}", WORLD_SIZE="2")
        assert done.returncode == 1
        assert "only training can use them" in done.stderr


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(release: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU wants g++")
    small = {"steps": 4, "save_every": 4, "validation_pictures": 0}
    eager = train_here(tmp_path / "eager", release, **small)
    compiled = train_here(tmp_path / "compiled", release, compile=True, **small)
    one, other = (checkpoint.load(checkpoint.path_of(f, 4))[0] for f in (eager, compiled))
    names = [name for name in one if name.startswith("network.")]
    # Adam's first steps are of the size of the rate, whatever rounding does to gradients.
    assert all(torch.allclose(one[n].float(), other[n].float(), atol=8e-3) for n in names)
    moved = [n for n in names if not torch.equal(one[n], other[n])]
    assert len(moved) < len(names), "nothing is equal: another start or other crops"
    curves = [rows_of(folder / "curve.csv")[0] for folder in (eager, compiled)]
    assert float(curves[0]["loss"]) == pytest.approx(float(curves[1]["loss"]), rel=0.02)
