"""Small networks whose weights are the same on every machine, and pictures for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import Network
from pipeline.learned.sizes import NETWORKS
from pipeline.pixels import RGB
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene

TEXT = {"tower": "tiny", "width": 96}
LIGHT: dict[str, Any] = {
    "n": 8, "m": 14, "widths": [8, 8, 16], "groups": [2, 4, 8], "checkered": 2, "hidden": 8,
    "heads": 2,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "hyperprior": {"n": 8, "m": 12},
    "mean-scale": {"n": 8, "m": 12},
    "catc": {"n": 16, "m": 20, "hidden": 16, "heads": 2, "text": TEXT},
    "catc-small": {"n": 8, "m": 10, "hidden": 8, "heads": 2, "text": TEXT | {"features": "pooled"}},
    "catc-no-text": {"n": 16, "m": 20, "hidden": 16, "heads": 2},
    "catc-small-no-text": {"n": 8, "m": 10, "hidden": 8, "heads": 2},
    "catc-light": LIGHT | {"text": TEXT},
    "catc-light-no-text": LIGHT,
    "tcm": {"n": 8, "m": 10, "width": 8, "head": 2, "inner": 16, "support": 16},
    "elic": {"n": 8, "m": 14, "groups": [2, 4, 8], "support": 12, "inner": 8, "aggregate": 16},
}
"""Every network of the dict of names, with fewer channels."""
OTHER_WIDTHS = {"tcm-small": "tcm", "tcm-medium": "tcm"}
"""Networks that differ from others in their width alone."""


def fill(network: Network, seed: int) -> Network:
    """Draw weights with integers and IEEE operations alone, so that they are equal everywhere.

    The latents come out some units wide, and so do their scales: there is something to code.
    """
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in sorted(network.named_parameters()):
            # Norms, GDN and the prior stay as they are, but for where z lies.
            if "norm" in name or name.endswith(("beta", "gamma")):
                continue
            if name.startswith("gains."):
                # From a quarter of the latents to four times them, and back.
                rise = torch.linspace(-1.4, 1.4, len(value))[:, None]
                value.copy_(rise if name.endswith("gain") else -rise)
                continue
            if name.startswith("prior.") and not name.startswith(("prior.biases", "prior.median")):
                continue
            unit = random.integers(-(2**20), 2**20, tuple(value.shape)) / 2**20
            bound = np.sqrt(3.0 / value[0].numel()) if value.dim() > 1 else 0.5
            if name.startswith("g_s.") or network.sizes.kind == "tcm":
                bound *= 0.5  # inverse GDN squares what is large, and blocks add to their input
            value.copy_(torch.from_numpy((unit * bound).astype(np.float32)))
        if network.sizes.kind == "catc":
            network.g_a.last.weight.mul_(1.5)
            network.g_s.last[0].bias.add_(0.5)
            heads = [head[-1] for head in network.entropy.e]
        elif network.sizes.kind == "catc-light":
            network.g_a.last[1].weight.mul_(1.5)
            network.g_s.last.skip.bias.add_(0.5)
            heads = [head[-1] for head in network.entropy.e]
        elif network.sizes.kind == "tcm":
            network.g_a.last.weight.mul_(40)
            network.g_s.last[0].bias.add_(0.5)
            heads = [head[-1] for head in network.entropy.scale]
        elif network.sizes.kind == "elic":
            network.g_a.down[-1].weight.mul_(4)
            network.g_s.up[-1].bias.add_(0.5)
            heads = [head[-1] for head in network.entropy.together]
        else:
            network.g_a.layers[-1].weight.mul_(8)
            network.g_s.layers[-1].bias.add_(0.5)
            heads = [network.entropy.h_s[-1 if network.entropy.has_mean else -2]]
        for head in heads:
            if network.sizes.kind == "catc-light":
                head.weight.mul_(0.5)  # the logarithm of a scale
            half = 0 if network.sizes.kind in ("hyperprior", "tcm") else len(head.bias) // 2
            head.bias[half:].add_(1.4 if network.sizes.kind == "catc-light" else 4.0)
    network.update()
    return network


def small(name: str, seed: int = 0, qualities: int = 1) -> Network:
    """A small network of that name, not frozen; NAME-power is one with a tail."""
    kind = name.removesuffix("-power")
    sizes = NETWORKS[kind].model_dump() | SMALL[kind] | {"name": name, "qualities": qualities}
    return fill(Network(**sizes if kind == name else sizes | {"tail": "power"}), seed)


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> list[RGB]:
    """Smooth coloured pictures with some noise, equal everywhere."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
        fine = np.kron(coarse, np.ones((8, 8, 1), np.int64))[:height, :width]
        found.append(np.clip(fine + random.integers(-20, 21, fine.shape), 0, 255).astype(np.uint8))
    return found


def scene(seed: int) -> tuple[RGB, str]:
    """A picture that nothing was trained on, and its caption."""
    found = draw_scene(seed)
    return render(found, 256, 256, seed), captions(found, seed)[0]


def tensor(picture: RGB) -> torch.Tensor:
    """1 x 3 x H x W, 0 to 1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests run beside these; small networks gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=2)
def text_encoder(features: str = "tokens") -> Any:
    """The embedded text encoder, loaded once."""
    from pipeline.learned.sizes import TextSizes
    from pipeline.learned.text import TextEncoder

    return TextEncoder(TextSizes.model_validate(TEXT | {"features": features}))


def text_of(network: Network, prompts: list[str]) -> Any:
    """Features of prompts as this network wants them, float64; None where it wants none."""
    sizes = network.sizes.text
    return None if sizes is None else text_encoder(sizes.features)(prompts)


def codec(name: str, seed: int = 0, tile: int | None = None) -> LearnedCodec:
    """A small codec with weights of that seed."""
    return LearnedCodec(small(name, seed), "cpu", tile=tile)


@lru_cache(maxsize=8)
def ready(name: str) -> LearnedCodec:
    """A small codec, made once."""
    return codec(name)
