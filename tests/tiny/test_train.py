"""Training of the tiny models: what each part learns from, and all of them by the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.tiny import corpus, measure, models, train


def test_another_setting_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"scenes": 1, "scale": 1.0, "seed": 0}))
    with pytest.raises(AigiError, match="begun with"):
        train.train(tmp_path, [], 2, 1.0, 0)


def test_whitened_latents_are_standard_and_decode_the_same() -> None:
    torch.manual_seed(0)
    model = models.vae().eval()
    pictures = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    image = train._to_input(pictures)
    with torch.no_grad():
        before = model.decode(model.encode(image).latent_dist.mean).sample
        train._whiten(model, pictures)
        latents = model.encode(image).latent_dist.mean
        after = model.decode(latents).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert torch.allclose(before, after, atol=1e-4)


def test_captions_of_a_scene_are_drawn_by_generator_and_sometimes_left_empty() -> None:
    tokens = models.tokenizer(["red ball", "blue boat"])
    texts = train._Texts(tokens, [["red ball"], ["blue boat", "red boat"]], 8)
    index = torch.tensor([0, 1] * 200)
    ids = texts.draw(index, torch.Generator().manual_seed(0), 0.25)
    again = texts.draw(index, torch.Generator().manual_seed(0), 0.25)
    assert torch.equal(ids, again)
    said = {tuple(row) for row in ids[0::2].tolist()}, {tuple(row) for row in ids[1::2].tolist()}
    assert len(said[0]) == 2  # its caption, or none
    assert len(said[1]) == 3
    empty = tokens([""], padding="max_length", max_length=8)["input_ids"][0]
    share = np.mean([row == empty for row in ids.tolist()])
    assert 0.15 < share < 0.35


SMALL_RUN = """
import sys
from pipeline.tiny import corpus, train

corpus.CHUNK = 10  # the workers that draw are forks
train._main([sys.argv[1], "--scenes", "12", "--scale", "0.0015"])
"""


def _train(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_RUN, str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def _weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "models").rglob("*.safetensors")
    }


@pytest.mark.slow
def test_the_command_trains_all_models_and_a_killed_one_ends_alike(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _train(whole).wait() == 0
    process = _train(killed)
    deadline = time.monotonic() + 300
    while not list(killed.glob("sd/state-*[0-9]")):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "models" / "sdxl" / "unet").exists()
    drawn = {p.name: p.stat().st_mtime_ns for p in (killed / "pictures").iterdir()}
    assert _train(killed).wait() == 0
    assert {p.name: p.stat().st_mtime_ns for p in (killed / "pictures").iterdir()} == drawn
    weights = _weights(whole)
    assert len(weights) == 8
    assert weights == _weights(killed)
    assert (whole / "curves.png").exists()
    # They load as the shipped ones do, and draw.
    pipe = measure.load_pipeline(whole / "models" / "sdxl")
    assert measure.generate(pipe, ["a red ball"], 64)[0].shape == (64, 64, 3)
    clip = measure.clip_of(whole / "models")
    assert clip.text_vectors(["a red ball"]).shape == (1, models.WIDTH)


@pytest.mark.parametrize(("part", "wanted"), [("sd", "vae"), ("sdxl", "vae")])
def test_a_part_that_needs_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wanted: str
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    with pytest.raises(AigiError, match=f"--only {wanted}"):
        train.train(tmp_path, [part], 2, 1.0, 0)


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    for scenes, scale in ((0, 1.0), (5, 0.0)):
        with pytest.raises(AigiError, match="give at least one scene and one step"):
            train.train(tmp_path / "work", [], scenes, scale, 0)
    assert not (tmp_path / "work").exists()
