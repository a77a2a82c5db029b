"""The training loop: deterministic by its seed, and resumable after kill -9."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.tiny.fit import Settings, fit

TOY = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from pipeline.tiny.fit import Settings, fit

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


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_as_if_it_never_stopped(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _toy(tmp_path, whole, 0).wait() == 0
    process = _toy(tmp_path, killed, 0.05)
    deadline = time.monotonic() + 300
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


@pytest.mark.usefixtures("fresh_accelerate")
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
