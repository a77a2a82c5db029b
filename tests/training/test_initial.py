"""Where training begins: a network that is a transform coder before its first step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.benchmark.metrics import psnr
from pipeline.learned.bitstream import rates
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.sizes import NETWORKS
from pipeline.training.initial import begin, step_of, transforms
from tests.learned.conftest import SMALL, scene, tensor, text_of


def test_the_transform_is_orthonormal_and_keeps_what_varies_most() -> None:
    found, deviations = transforms([12, 48, 64, 160])
    assert [tuple(matrix.shape) for matrix in found] == [
        (12, 3, 2, 2), (48, 12, 2, 2), (64, 48, 2, 2), (160, 64, 2, 2)
    ]  # fmt: skip
    for matrix in found:
        rows = matrix.flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))
    assert torch.equal(deviations, deviations.sort(descending=True).values)
    # Nothing is lost in the first two halvings: 3 channels in 4x4 places are 48 numbers.
    block = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    half = torch.nn.functional.conv2d(block, found[0], stride=2)
    quarter = torch.nn.functional.conv2d(half, found[1], stride=2)
    back = torch.nn.functional.conv_transpose2d(quarter, found[1], stride=2)
    back = torch.nn.functional.conv_transpose2d(back, found[0], stride=2)
    torch.testing.assert_close(back, block)
    # The first component is the mean of a block, nearly; of a grey block it is all.
    first = float(quarter[0, 0].abs())
    assert first == pytest.approx(float(block.mean()) * math.sqrt(48), rel=0.05)


def test_the_step_is_the_best_at_high_rate() -> None:
    def loss(step: float, weight: float) -> float:
        return weight * 255**2 * step**2 / 12 - 3 * math.log2(step)

    for weight in (0.001, 0.013, 0.1):
        best = step_of(weight)
        assert loss(best, weight) < min(loss(best * f, weight) for f in (0.99, 1.01))


def _begun(name: str, qualities: int, step: float) -> Network:
    change = SMALL[name] | {"n": 48, "m": 120, "qualities": qualities}
    if name.startswith("catc-light"):
        change |= {"widths": [12, 48, 96], "groups": [8, 32, 80]}
    if name == "tcm":
        change |= {"width": 24, "depth": 1}
    if name == "elic":
        change |= {"groups": [8, 32, 80]}
    torch.manual_seed(0)
    network = Network(**NETWORKS[name].model_dump() | change).eval()
    begin(network, step)
    return network


def _text(network: Network, prompt: str) -> Text | None:
    found: Text | None = text_of(network, [prompt])
    return None if found is None else found.to("cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "qualities"),
    [*((name, 1) for name in SMALL), *((name, 2) for name in SMALL if name not in ("tcm", "elic"))],
)
def test_every_network_codes_pictures_before_training(name: str, qualities: int) -> None:
    picture, prompt = scene(1)
    found = []
    for weight in (0.002, 0.03):
        network = _begun(name, qualities, step_of(weight))
        network.update()
        codec = LearnedCodec(network, device="cpu")
        coded = codec.encode_and_reconstruct(picture, prompt)
        assert np.array_equal(codec.decode(coded.data), coded.reconstruction)
        found.append((rates(coded.data).bpp, psnr(picture, coded.reconstruction)))
    (low, poor), (high, good) = found
    assert low < high < 3, found
    assert 24 < poor < good and good > 27, found


@pytest.mark.parametrize("name", ["catc-small", "mean-scale", "tcm", "elic"])
def test_training_goes_on_from_there(name: str) -> None:
    """Nothing is out of reach of the gradient but what waits for others to speak."""
    network = _begun(name, 2, step_of(0.01)).train()
    text = _text(network, "a red boat")
    x = tensor(scene(1)[0][:128, :128])
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    for _ in range(2):
        output = network(x, text, torch.tensor([2]))
        (output.bits() / x[0, 0].numel() + 650 * (output.x_hat - x).square().mean()).backward()
        optimizer.step()
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.zero_grad()
    assert [name for name in still if name != "prior.median"] == []


def test_text_says_nothing_at_first() -> None:
    network = _begun("catc-small", 1, step_of(0.01))
    x = tensor(scene(1)[0][:64, :64])
    with torch.no_grad():
        boat, house = (network(x, _text(network, prompt)) for prompt in ("a boat", "a house"))
    assert torch.equal(boat.x_hat, house.x_hat)
