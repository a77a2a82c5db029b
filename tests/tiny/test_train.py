"""The training loop: deterministic, resumable after kill -9, and what it trains on."""

from __future__ import annotations

import csv
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
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.tiny import models, train
from pipeline.tiny.train import Settings, fit

TOY = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from pipeline.tiny.train import Settings, fit

def loss(net, generator, step):
    time.sleep(float(sys.argv[2]))
    x = torch.randn(8, 4, generator=generator)
    return ((net(x) - x.sum(1, keepdim=True)) ** 2).mean()

torch.manual_seed(3)
folder = Path(sys.argv[1])
settings = Settings(120, 8, 1e-2, 5, warmup=10, save_every=20, average=0.9)
net = fit(folder, torch.nn.Linear(4, 1), loss, settings)
save_file(net.state_dict(), folder / "final.safetensors")
"""


def _toy(tmp_path: Path, folder: Path, pause: float) -> subprocess.Popen[bytes]:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(pause)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    )


def test_killed_training_goes_on_and_ends_as_if_it_never_stopped(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _toy(tmp_path, whole, 0).wait() == 0
    process = _toy(tmp_path, killed, 0.05)
    deadline = time.monotonic() + 120
    while not list(killed.glob("state-*40")):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "final.safetensors").exists()
    assert _toy(tmp_path, killed, 0).wait() == 0
    one, other = (load_file(folder / "final.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)

    def curve(folder: Path) -> list[tuple[str, str]]:
        with (folder / "curve.csv").open(newline="") as file:
            return [(row["step"], row["loss"]) for row in csv.DictReader(file)]

    steps = [step for step, _ in curve(killed)]
    assert steps == [step for step, _ in curve(whole)] == ["50", "100", "120"]
    assert float(curve(whole)[-1][1]) < float(curve(whole)[0][1])
    # One checkpoint is kept, whole.
    assert [p.name for p in killed.glob("state-*")] == ["state-0000120"]


def test_the_seed_decides(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(0)

        def loss(net: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
            x = torch.randn(8, 4, generator=generator)
            error: torch.Tensor = net(x) - x[:, :1]
            return (error**2).mean()

        net = fit(tmp_path / name, torch.nn.Linear(4, 1), loss, Settings(5, 8, 1e-2, seed))
        found: torch.Tensor = net.weight.detach()
        return found

    first = weights("a", 1)
    assert torch.equal(first, weights("b", 1))
    assert not torch.equal(first, weights("c", 2))


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


def test_pipelines_begin_with_clips_text_tower() -> None:
    torch.manual_seed(0)
    tokens = models.tokenizer(["a red ball on a table", "two blue boats"])
    clip = models.clip(tokens).eval()
    encoder = models.sd(tokens).text_encoder.eval()
    models.take_clip_text(encoder, clip)
    ids = torch.tensor(tokens(["a red boat"], padding="max_length")["input_ids"])
    end = int(ids.argmax())
    with torch.no_grad():
        own = encoder(ids).last_hidden_state[:, end] @ clip.text_projection
        assert torch.allclose(own, clip.encode_text(ids), atol=1e-5)


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


def test_a_chunk_of_pictures_is_drawn_once_and_holds_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHUNK", 6)
    train._draw_chunk(tmp_path, 0)
    with np.load(tmp_path / "00000.npz") as file:
        shapes = {name: file[name].shape for name in file}
        first, second = file["first"].astype(int), file["second"].astype(int)
    assert shapes["first"] == (6, 128, 128, 3)
    assert shapes["large"] == (2, 192, 192, 3)
    assert shapes["clip"] == (6, 2, models.CLIP_SIZE, models.CLIP_SIZE, 3)
    apart = np.abs(first - second).mean((1, 2, 3))
    others = np.abs(first - first[::-1]).mean((1, 2, 3))
    assert (apart < others).all()
    assert (apart > 0).all()
    stamp = (tmp_path / "00000.npz").stat().st_mtime_ns
    train._draw_chunk(tmp_path, 0)
    assert (tmp_path / "00000.npz").stat().st_mtime_ns == stamp


def test_saved_weights_are_finite_halves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = models.tokenizer(["a red ball"])
    models.save_clip(tmp_path / "clip", models.clip(tokens), tokens)
    weights = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    assert kinds == {torch.float16}
    save_file(weights, tmp_path / "again.safetensors")
