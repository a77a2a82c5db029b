"""Options of CATC in, what each gives over the same steps on the same data out, as Markdown.

OMP_NUM_THREADS=1 nice python -m tests.perf.catc_options --steps 2000 --seeds 3

An ablation at small scale: a small CATC is trained on drawn scenes with their captions, endless
fresh ones, and J = λ·255²·MSE + bpp is the mean over scenes that no arm has seen. All arms of a
seed see the same scenes in the same order; they differ in their first weights and in size. J is an
estimate: no files are made, and the captions' bytes are left out.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.learned.network import Network
from pipeline.learned.sizes import NETWORKS, TextSizes
from pipeline.learned.text import TextEncoder
from pipeline.markdown import Safe, table
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene
from pipeline.training.initial import begin, step_of
from tests.learned.conftest import TEXT

ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "hyper_text": {"hyper_text": True},
    "states: 2": {"states": 2},
    "both": {"hyper_text": True, "states": 2},
}
SIZES = {"n": 24, "m": 60, "hidden": 24, "heads": 2, "text": TEXT}
WEIGHT = 0.013
HELD_OUT = 1_000_000
"""Seeds of scenes that are only tested begin here."""


def batch(first: int, count: int, side: int) -> tuple[Tensor, list[str]]:
    """Scenes of these seeds, and a caption of each: float32, B x 3 x side x side, 0 to 1."""
    scenes = [draw_scene(seed) for seed in range(first, first + count)]
    pixels = np.stack([render(one, side, side, first + index) for index, one in enumerate(scenes)])
    texts = [captions(one, first + index)[0] for index, one in enumerate(scenes)]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255, texts


def loss(network: Network, encoder: TextEncoder, x: Tensor, texts: list[str]) -> Tensor:
    """J of a batch, a scalar."""
    output = network(x, encoder(texts).to("cpu", torch.float32))
    bpp = output.bits() / (len(x) * x.shape[2] * x.shape[3])
    found: Tensor = WEIGHT * 255**2 * (output.x_hat - x).square().mean() + bpp
    return found


def trained(
    change: dict[str, Any], data: list[tuple[Tensor, list[str]]], encoder: TextEncoder, seed: int
) -> Network:
    """An arm after a step on each batch of the data."""
    torch.manual_seed(seed)
    network = Network(**NETWORKS["catc-small"].model_dump() | SIZES | change)
    begin(network, step_of(WEIGHT))
    network.train()
    parameters = [value for name, value in network.named_parameters() if name != "prior.median"]
    optimizer = torch.optim.Adam(parameters, 2e-4)
    aux = torch.optim.Adam([network.prior.median], 5e-4)
    for step, (x, texts) in enumerate(data):
        torch.manual_seed(seed * 1_000_003 + step)  # the same noise for all arms
        for group in optimizer.param_groups:
            group["lr"] = 2e-4 * (1 - step / len(data)) + 1e-6
        torch.autograd.backward(loss(network, encoder, x, texts))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch.autograd.backward(network.aux_loss())
        aux.step()
        optimizer.zero_grad()
        aux.zero_grad()
    return network.eval()


def main() -> None:
    """Train all arms, and print J of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder = TextEncoder(TextSizes.model_validate(TEXT))
    test = batch(HELD_OUT, given.held_out, given.side)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    sizes = {}
    for seed in range(given.seeds):
        at = seed * given.steps * given.batch
        data = [
            batch(at + step * given.batch, given.batch, given.side) for step in range(given.steps)
        ]
        for arm, change in ARMS.items():
            network = trained(change, data, encoder, seed)
            sizes[arm] = sum(value.numel() for value in network.parameters())
            with torch.no_grad():
                found[arm].append(float(loss(network, encoder, *test)))
            print(f"seed {seed}, {arm}: {found[arm][-1]:.4f}", flush=True)
    rows = []
    for arm, values in found.items():
        rises = [100 * (one / base - 1) for one, base in zip(values, found["base"], strict=True)]
        cells = (
            arm,
            f"{sizes[arm]:,}",
            f"{statistics.fmean(values):.4f}",
            " ".join(f"{one:+.1f}" for one in rises),
        )
        rows.append([Safe(cell) for cell in cells])
    headings = [Safe(one) for one in ("arm", "weights", "J", "against base, % a seed")]
    print("\n".join(table(headings, rows, right=3)))


if __name__ == "__main__":
    main()
