"""Drawn scenes and three kinds of prompts in; the bits that a prompt saves out, beside their bound.

    python -m tests.perf.text_gain [--steps 6000] [--seeds 3] [--out FILE.json]

What a prompt T can save of an image X is at most their mutual information, and so at most the
entropy of the prompts: I(X;T) <= H(T). Where an image takes a hundred thousand bits, nobody can see
that. Here it takes some hundred: scenes of 128 x 128 pixels at a very low rate, which no training
sees twice, with captions of just the words that the embedded text encoder knows.

For each seed the same network is trained three times, from the same weights, on the same scenes in
the same order. Only the prompts differ:

    own      the scene's longest caption
    empty    none
    foreign  the caption of another scene, which tells nothing but takes part

Each is measured on the same fresh scenes: bits and squared error of an image, and the cost
J = bits + λ 255² MSE pixels, in which better images and fewer bits are one. What a prompt saves is
the difference of J to the arm without. Beside it stand the bits of the prompt in a file, and the
cross-entropy of a model of three words in a row: an upper bound of H(T).

The file is written after each training, and trainings that it has are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.files import replaced
from pipeline.learned.bitstream import pack_prompt
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.sizes import LightSizes, TextSizes
from pipeline.learned.text import TextEncoder
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene
from pipeline.training.initial import begin, step_of
from pipeline.training.trainer import rate_distortion
from tests.perf.report import machine, machine_line, markdown

SIDE = 128
WEIGHT = 0.0001
"""λ: some hundred bits an image."""
BATCH = 8
LEARNING_RATE = 5e-4
SIZES = LightSizes(
    kind="catc-light", name="text-gain", n=32, m=96, widths=[16, 32, 64], blocks=[0, 0, 1],
    groups=[8, 8, 16, 64], checkered=1, hidden=64, tail="power",
    text=TextSizes(tower="tiny", width=96),
)  # fmt: skip
TEST = 10**9
"""Seeds of the scenes that are measured begin here; those of training begin at 0."""


class Drawn(NamedTuple):
    """Scenes as images, float32, B x 3 x 128 x 128 in 0 to 1, and their longest captions."""

    images: torch.Tensor
    captions: list[str]


def drawn(seeds: Sequence[int]) -> Drawn:
    """The scenes of these seeds."""
    images, texts = [], []
    for seed in seeds:
        scene = draw_scene(seed)
        images.append(render(scene, SIDE, SIDE, seed))
        texts.append(max(captions(scene, seed), key=len))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Drawn(pixels.float() / 255, texts)


ARMS: dict[str, Callable[[list[str]], list[str]]] = {
    "own": lambda texts: texts,
    "empty": lambda texts: [""] * len(texts),
    "foreign": lambda texts: [*texts[1:], texts[0]],
}
"""The prompts of a batch, from its captions."""


def _text(encoder: TextEncoder, prompts: list[str]) -> Text:
    return encoder(prompts).to("cpu", torch.float32)


def train(arm: str, seed: int, steps: int, encoder: TextEncoder) -> Network:
    """A network that was trained on `steps` batches of scenes that no other step has."""
    torch.manual_seed(seed)
    network = Network(**SIZES.model_dump()).train()
    begin(network, step_of(WEIGHT))
    medians = network.prior.median
    others = [p for name, p in network.named_parameters() if name != "prior.median"]
    optimiser = torch.optim.Adam(others, LEARNING_RATE)
    aux = torch.optim.Adam([medians], LEARNING_RATE)
    began = time.monotonic()
    for step in range(steps):
        first = (seed * steps + step) * BATCH
        x, texts = drawn(range(first, first + BATCH))
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * step / steps))
        torch.manual_seed(seed * steps + step)  # the same noise for every arm
        output = network(x, _text(encoder, ARMS[arm](texts)))
        loss, terms = rate_distortion(output, x, WEIGHT, "mse")
        optimiser.zero_grad()
        aux.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimiser.step()
        torch.autograd.backward(network.aux_loss())
        aux.step()
        if step % 200 == 199:
            bpp = float((terms.y_bpp + terms.z_bpp).mean())
            print(
                f"{arm}, seed {seed}: step {step + 1:,} of {steps:,}, "
                f"{bpp * SIDE**2:.0f} bits, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return network.eval()


@torch.no_grad()
def measured(network: Network, arm: str, count: int, encoder: TextEncoder) -> dict[str, float]:
    """Means over `count` fresh scenes: bits, mse (of values from 0 to 1) and J in bits."""
    bits, errors = [], []
    for first in range(TEST, TEST + count, BATCH):
        x, texts = drawn(range(first, first + BATCH))
        output = network(x, _text(encoder, ARMS[arm](texts)))
        bits += sum(output.bits_of_each()).tolist()
        errors += (output.x_hat.clamp(0, 1) - x).square().mean((1, 2, 3)).tolist()
    mean_bits, mse = statistics.fmean(bits), statistics.fmean(errors)
    return {
        "bits": mean_bits,
        "mse": mse,
        "j": mean_bits + WEIGHT * 255**2 * mse * SIDE**2,
    }


def entropy_of_captions(count: int) -> float:
    """Bits of a caption by a model of three words in a row, learned from others: H(T) at most."""

    def words(seeds: range) -> list[list[str]]:
        found = (max(captions(draw_scene(seed), seed), key=len) for seed in seeds)
        return [["", "", *text.lower().split(), "."] for text in found]

    threes: Counter[tuple[str, ...]] = Counter()
    twos: Counter[tuple[str, ...]] = Counter()
    pairs: Counter[tuple[str, ...]] = Counter()
    ones: Counter[tuple[str, ...]] = Counter()
    for text in words(range(count)):
        for at in range(2, len(text)):
            threes[tuple(text[at - 2 : at + 1])] += 1
            twos[tuple(text[at - 2 : at])] += 1
            pairs[tuple(text[at - 1 : at + 1])] += 1
            ones[(text[at],)] += 1
    befores: Counter[str] = Counter()
    for (before, _), times in pairs.items():
        befores[before] += times
    every = sum(ones.values())
    total = []
    for text in words(range(TEST, TEST + max(1, count // 10))):
        bits = 0.0
        for at in range(2, len(text)):
            one = (ones[(text[at],)] + 0.01) / (every + 10)
            two = (pairs[tuple(text[at - 1 : at + 1])] + one) / (befores[text[at - 1]] + 1)
            three = (threes[tuple(text[at - 2 : at + 1])] + two) / (
                twos[tuple(text[at - 2 : at])] + 1
            )
            bits -= math.log2(three)
        total.append(bits)
    return statistics.fmean(total)


def main() -> None:
    """Train and measure what the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.text_gain", description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=512, help="fresh ones to measure with")
    parser.add_argument("--out", type=Path, default=Path("text-gain.json"))
    given = parser.parse_args()
    asked = {"steps": given.steps, "scenes": given.scenes, "sizes": SIZES.model_dump(mode="json")}
    found: dict[str, Any] = {"asked": asked, "machine": machine(), "measured": {}}
    if given.out.exists():
        before = json.loads(given.out.read_text())
        if before["asked"] != asked:
            parser.error(f"{given.out}: it has other settings; name another --out")
        found = before
    assert SIZES.text is not None
    encoder = TextEncoder(SIZES.text)
    for seed in range(given.seeds):
        for arm in ARMS:
            key = f"{arm} {seed}"
            if key not in found["measured"]:
                network = train(arm, seed, given.steps, encoder)
                found["measured"][key] = measured(network, arm, given.scenes, encoder)
                with replaced(given.out) as part:
                    Path(part).write_text(json.dumps(found, indent=1) + "\n")
    print(machine_line(found["machine"]))
    print(report(found, given.seeds))
    texts = drawn(range(TEST, TEST + min(given.scenes, 256))).captions
    stored = 8 * statistics.fmean(len(pack_prompt(text)) for text in texts)
    bound = entropy_of_captions(20_000)
    print(
        f"A caption takes {stored:.0f} bits in a file. Its entropy, and so what it can save, is at "
        f"most {bound:.0f} bits."
    )


def report(found: dict[str, Any], seeds: int) -> str:
    """A row for each arm: means over the seeds, and what it saves with its spread."""
    rows = []
    for arm in ARMS:
        mine = [found["measured"][f"{arm} {seed}"] for seed in range(seeds)]
        base = [found["measured"][f"empty {seed}"] for seed in range(seeds)]
        saved = [b["j"] - m["j"] for b, m in zip(base, mine, strict=True)]
        spread = statistics.stdev(saved) if seeds > 1 else float("nan")
        rows.append(
            [
                arm,
                f"{statistics.fmean(m['bits'] for m in mine):.1f}",
                f"{-10 * math.log10(statistics.fmean(m['mse'] for m in mine)):.2f}",
                f"{statistics.fmean(m['j'] for m in mine):.1f}",
                f"{statistics.fmean(saved):+.1f} ± {spread:.1f}",
            ]
        )
    return markdown(["prompts", "bits an image", "PSNR", "J in bits", "saved"], rows)


if __name__ == "__main__":
    main()
