"""How a training draws rates, crops and learning rates: the recipe of a codec of several rates."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import AigiError
from pipeline.collection import Collection, Pictures
from pipeline.learned.network import Output
from pipeline.progress import Progress
from pipeline.training import checkpoint
from pipeline.training.crops import Crop, Crops
from pipeline.training.fit import codecs_of
from pipeline.training.settings import LATER, Train
from pipeline.training.trainer import rate_distortion, sizes_of
from tests.learned.conftest import pictures
from tests.training.release import trained, write_release
from tests.training.small import rows_of, same_bits, train_here, trainer_of, workflow_of

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SEVERAL: dict[str, Any] = {"together": True, "lambdas": [0.001, 0.01, 0.1]}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {
        ("sdxl", "train"): pictures(6, 150, 160),
        ("mj52", "train"): pictures(2, 96, 128, seed=5),
    }
    return write_release(tmp_path_factory.mktemp("recipe"), parts)


def _settings(**given: Any) -> Train:
    return Train.model_validate({"data": {"place": "x"}, **given})


def test_rates_are_drawn_evenly_from_the_lowest_to_the_highest(
    release: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, release, **SEVERAL, continuous=True, batch=4)
    seen, first = [], []
    for step in range(200):
        trainer.state.step = step
        quality, weight = trainer._qualities(random.Random(step), 0, 4)
        assert quality is not None and isinstance(weight, torch.Tensor)
        assert quality.dtype == weight.dtype == torch.float32
        # Each crop has a quarter of the range to itself.
        assert sorted(int(2 * (q - 1)) for q in quality.tolist()) == [0, 1, 2, 3]
        expected = 0.001 * 10 ** (quality.double() - 1)
        assert torch.allclose(weight.double(), expected, rtol=1e-5)
        seen += quality.tolist()
        first.append(float(quality[0]))
        again, _ = trainer._qualities(random.Random(step), 0, 4)
        assert again is not None and torch.equal(again, quality)
    assert np.histogram(seen, 8, (1, 3))[0].min() > 60
    assert np.histogram(first, 4, (1, 3))[0].min() > 25, "a crop's place decides nothing"


def test_processes_share_the_range_of_rates(release: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, release, **SEVERAL, continuous=True)
    found = []
    for rank in range(3):
        trainer.accelerator = type("Two", (), {"process_index": rank, "num_processes": 3})
        found += trainer._between(1, 2)
    assert sorted(int(3 * (quality - 1)) for quality in found) == list(range(6))


def test_the_loss_over_the_root_of_lambda(release: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.rand(3, 3, 64, 64)
    shapes = (3, 8, 4, 4), (3, 4, 1, 1)
    y, z = (torch.rand(shape).clamp(0.1, 1) for shape in shapes)
    output = Output(torch.rand(3, 3, 64, 64), y, z)
    assert sum(float(bits.sum()) for bits in output.bits_of_each()) == pytest.approx(
        float(output.bits()), rel=1e-5
    )
    weight = torch.tensor([0.001, 0.01, 0.1])
    trainer = trainer_of(tmp_path, release, **SEVERAL, loss_scale="sqrt")
    scale = trainer.scale_of(weight)
    assert isinstance(scale, torch.Tensor)
    assert scale.tolist() == pytest.approx([10**0.5, 1, 10**-0.5])
    loss, terms = rate_distortion(output, x, weight, "mse", scale)
    plain = [
        rate_distortion(Output(*(p[i : i + 1] for p in output[:3])), x[i : i + 1], w, "mse")
        for i, w in enumerate(weight.tolist())
    ]
    each = [float(one) * float(s) for (one, _), s in zip(plain, scale, strict=True)]
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)
    for name in ("distortion", "y_bpp", "z_bpp", "mse"):
        alone = torch.cat([getattr(found, name) for _, found in plain])
        assert torch.allclose(getattr(terms, name), alone, rtol=1e-5)


def test_rates_between_need_several(release: Path, tmp_path: Path) -> None:
    for asked in ({"continuous": True}, {"loss_scale": "sqrt"}):
        settings = _settings(network="mean-scale", **asked)
        (key,) = asked
        with pytest.raises(AigiError, match=rf"train\.{key}: .*mean-scale has one.*together"):
            codecs_of(settings, sizes_of(settings))


def test_the_learning_rate_falls_along_a_cosine_or_at_shares() -> None:
    cosine = _settings(schedule="cosine", steps=1000, learning_rate=1.0, warmup=9)
    rates = [cosine.learning_rate_at(step) for step in (0, 4, 500, 999, 1000, 2000)]
    assert rates == pytest.approx([0.1, 0.5, 0.5, 0, 0, 0], abs=1e-4)
    assert 0 < rates[3] < 1e-5
    shares = _settings(milestones=[0.5, 900], steps=1000, learning_rate=1.0)
    assert [shares.learning_rate_at(s) for s in (499, 500, 899, 900)] == [1, 0.5, 0.5, 0.25]
    assert shares.model_copy(update={"steps": 100}).learning_rate_at(50) == 0.5
    assert shares.by_share and not _settings(milestones=[900]).by_share
    for wrong in (0.0, -1, 1.5):
        with pytest.raises(ValueError):
            _settings(milestones=[wrong])
    with pytest.raises(ValueError, match="cosine has none"):
        _settings(schedule="cosine", milestones=[5])


RECIPE: dict[str, Any] = SEVERAL | {
    "continuous": True,
    "loss_scale": "sqrt",
    "augment": True,
    "schedule": "cosine",
    "batch": 3,
    "accumulate": 2,
    "late_crops": {"crop": 128, "batch": 1, "after": 0.5},
    "validation_pictures": 0,
    "log_every": 1,
}


def test_a_whole_recipe_resumes_bit_by_bit(release: Path, tmp_path: Path) -> None:
    """Stopped before, in and after the step at which crops grow: as if never stopped."""
    straight = train_here(tmp_path / "a", release, **RECIPE, steps=8, save_every=1)
    folder = tmp_path / "b" / "train" / straight.name
    for stop in (3, 4, 6):
        stopped = _steps(trainer_of(folder, release, **RECIPE, steps=8), stop)
        stopped.save()
    last = train_here(tmp_path / "b", release, **RECIPE, steps=8)
    assert last == folder
    same_bits(checkpoint.path_of(last, 8), checkpoint.path_of(straight, 8))
    rates = [float(row["learning_rate"]) for row in rows_of(straight / "curve.csv")]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * rates[0]
    card = (straight / "last" / "README.md").read_text()
    assert "6 crops of 64x64, from step 4 on 2 crops of 128x128" in card and "loss over √λ" in card


def _steps(trainer: Any, stop: int) -> Any:
    crops: Iterator[Crop] = trainer.crops()
    while trainer.state.step < stop:
        size, batch = trainer.settings.crops_at(trainer.state.step)
        assert (size, batch) == ((64, 3) if trainer.state.step < 4 else (128, 1))
        assert trainer.step(crops) is not None
    return trainer


def test_more_steps_change_a_schedule_aloud(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"validation_pictures": 0, "schedule": "cosine", "log_every": 1}
    train_here(tmp_path, release, **same, steps=4)
    (folder,) = trained(workflow_of(tmp_path, release, **same, steps=8), Progress())
    said = "from step 4 on, what depends on train.steps goes by 8 steps, before by 4"
    assert said in " ".join(capsys.readouterr().err.split())
    rates = [float(row["learning_rate"]) for row in rows_of(folder / "curve.csv")]
    assert rates[4] == pytest.approx(1e-3 * 0.5) and rates[3] < rates[4]
    assert said[1:] in " ".join((folder / "last" / "README.md").read_text().split())
    (folder,) = trained(workflow_of(tmp_path, release, **same, steps=9), Progress())
    _, facts = checkpoint.load(checkpoint.path_of(folder, 9))
    assert len(facts["changes"]) == 2, "each change is recorded once"
    with pytest.raises(AigiError, match="schedule: cosine -> steps"):
        train_here(tmp_path, release, **same | {"schedule": "steps"}, steps=9)


FIRST = {
    "accumulate", "aux_learning_rate", "batch", "clip", "compile", "crop", "crops_per_picture",
    "data", "distortion", "ema", "foreign_prompts", "foreign_share", "init", "initial", "lambdas",
    "learning_rate", "log_every", "max_skipped", "milestone_factor", "milestones", "network",
    "precision", "save_every", "seed", "shuffle_buffer", "steps", "text_dropout", "text_folder",
    "threads", "together", "tracker", "validate_every", "validation_pictures", "warmup", "weights",
}  # fmt: skip
"""Settings of the first records of trainings, all of which a record has."""


def test_a_finished_training_of_before_stays_finished() -> None:
    """Another record would be another training: a setting that comes goes into LATER."""
    unset = Train.model_validate({"data": {"place": "/x"}, "lambdas": [0.01]})
    assert set(unset.recorded()) == FIRST
    assert set(Train.model_fields) == FIRST | set(LATER)


def test_a_record_from_before_these_settings_still_fits(release: Path, tmp_path: Path) -> None:
    before: dict[str, Any] = {"validation_pictures": 0, "interleave": 1}
    folder = train_here(tmp_path, release, steps=4, **before)
    path = checkpoint.path_of(folder, 4)
    tensors, facts = checkpoint.load(path)
    assert not set(LATER) & set(facts["settings"]) and "steps" not in facts["settings"]
    del facts["changes"]
    checkpoint.save(folder, facts.pop("step"), tensors, facts)
    train_here(tmp_path, release, steps=5, **before)
    with pytest.raises(AigiError, match=r"augment: False -> True"):
        train_here(tmp_path, release, steps=6, **before, augment=True)
    # A default that came later would take other crops from here on: it goes on as it began.
    with pytest.raises(AigiError, match=r"other settings:\n  interleave: 1 -> 4\nSet them back"):
        train_here(tmp_path, release, steps=6, validation_pictures=0, interleave=4)
    folder = train_here(tmp_path, release, steps=6, validation_pictures=0)
    assert "interleave" not in checkpoint.load(checkpoint.path_of(folder, 6))[1]["settings"]
    new = train_here(tmp_path / "new", release, steps=2, validation_pictures=0)
    assert checkpoint.load(checkpoint.path_of(new, 2))[1]["settings"]["interleave"] == 4


def _gradient(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Red says the row, green the column, in steps so wide that a scaled crop shows them."""
    picture = np.zeros((size, size, 3), np.uint8)
    picture[..., 0] = (np.arange(size) * 2)[:, None]
    picture[..., 1] = (np.arange(size) * 2)[None, :]
    return picture


def test_crops_are_turned_mirrored_and_scaled(tmp_path: Path) -> None:
    folder = write_release(tmp_path, {("a", "train"): [_gradient(100)]})
    collection = Collection(Pictures(place=str(folder), splits=("train",)))

    def take(start: int, augment: bool = True) -> list[Crop]:
        stream = Crops(collection, 32, 4, 8, seed=3, start=start, augment=augment)
        return [crop for crop, _ in zip(stream, range(400 - start), strict=False)]

    crops = take(0)
    for one, other in zip(take(123), crops[123:], strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    ways, widths = set(), []
    for crop in crops:
        assert crop.pixels.shape == (32, 32, 3) and crop.pixels.flags["C_CONTIGUOUS"]
        p = crop.pixels.astype(int)
        down, along = p[31, 16] - p[0, 16], p[16, 31] - p[16, 0]
        upright = abs(down[0]) > abs(down[1])
        ways.add((upright, bool((down[0] if upright else down[1]) > 0), bool(along.sum() > 0)))
        widths.append((abs(down).max() / 2 + 1) / 32)
    assert len(ways) == 8, "four turns, each with its mirror image"
    unscaled = np.isclose(widths, 1).mean()
    assert 0.4 < unscaled < 0.65
    assert max(widths) == pytest.approx(2, abs=0.1) and np.std(widths) > 0.25
    assert all(
        np.array_equal(crop.pixels[:, 0, 0], np.arange(32) * 2 + crop.pixels[0, 0, 0])
        for crop in take(0, augment=False)
    )


def test_small_images_are_not_scaled_below_a_crop(tmp_path: Path) -> None:
    folder = write_release(tmp_path, {("a", "train"): [_gradient(40), _gradient(20)]})
    collection = Collection(Pictures(place=str(folder), splits=("train",)))
    stream = Crops(collection, 32, 4, 8, augment=True)
    assert all(c.pixels.shape == (32, 32, 3) for c, _ in zip(stream, range(200), strict=False))


def test_a_folder_of_images_trains_and_another_validates(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("held out", 2)):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures(count, 70, 90)):
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "".join(json.dumps({"file": f"{n}.png", "text": f"boat {n}"}) + "\n" for n in range(3))
    )
    asked: dict[str, Any] = {
        "data": {"place": str(tmp_path / "train"), "captions": str(captions)},
        "steps": 2,
        "weights": {},
    }
    held_out = {"place": str(tmp_path / "held out")}
    folder = train_here(
        tmp_path / "run", tmp_path, **asked, validation_data=held_out, validation_pictures=1
    )
    (row,) = rows_of(folder / "validation.csv")
    assert row["pictures"] == "1"
    with pytest.raises(AigiError, match=r"validation.*\n.*train\.validation_data"):
        train_here(tmp_path / "b", tmp_path, **asked)
    with pytest.raises(ValueError, match=r"validation_data\.splits: leave it out"):
        _settings(validation_data=held_out | {"splits": ["test"]})
