"""The space-channel entropy model: who sees whom, and that both passes are one part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.learned.coding import Estimate, Read, Write
from pipeline.learned.network import Network
from pipeline.learned.networks.context import black
from tests.learned.conftest import small

Said = list[tuple[slice, Tensor, Tensor, Tensor | None]]


class Listener:
    """A step that is told y_hat, and keeps what the model said of it."""

    def __init__(self, y_hat: Tensor) -> None:
        self.y_hat = y_hat
        self.said: Said = []

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        self.said.append((part, mean, scale, where))
        found = self.y_hat[:, part]
        return found if where is None else found.where(where, 0)


def said(network: Network, z_hat: Tensor, y_hat: Tensor) -> Said:
    listener = Listener(y_hat)
    with torch.no_grad():
        network.entropy(z_hat, None, listener)
    return listener.said


@pytest.fixture(scope="module")
def network() -> Network:
    return small("catc-light-no-text").eval()


def test_every_latent_is_coded_once(network: Network) -> None:
    sizes = network.sizes
    counts = torch.zeros(1, sizes.m, 8, 8)
    for part, mean, scale, where in said(network, torch.randn(1, sizes.n, 2, 2), counts):
        assert mean.shape == scale.shape == counts[:, part].shape and bool((scale > 0).all())
        counts[:, part] += 1 if where is None else where.float()
    assert bool((counts == 1).all())


def test_a_latent_sees_what_was_coded_before_it_and_nothing_else(network: Network) -> None:
    """Change the latents of one pass: what was said up to it stays, all that follows changes."""
    z_hat, y_hat = torch.randn(1, network.sizes.n, 2, 2), 3 * torch.randn(1, network.sizes.m, 8, 8)
    before = said(network, z_hat, y_hat)
    assert len(before) == 5, "two groups in two passes, and a third"
    for at, (part, _, _, where) in enumerate(before):
        changed = y_hat.clone()
        mask = torch.ones(8, 8, dtype=torch.bool) if where is None else where
        changed[:, part] += mask.float()
        after = said(network, z_hat, changed)
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            same = torch.equal(old[1], new[1]) and torch.equal(old[2], new[2])
            assert same == (index <= at), (at, index)


def test_neighbours_on_the_board_are_of_two_colours() -> None:
    board = black(3, 4, torch.device("cpu"))
    assert board.tolist() == [
        [True, False, True, False], [False, True, False, True], [True, False, True, False]
    ]  # fmt: skip


def test_steps_of_two_passes_agree() -> None:
    """What is written is read back, and estimated the same, in one pass or two."""
    torch.manual_seed(0)
    y = 3 * torch.randn(1, 4, 5, 6)
    mean, scale = torch.randn(1, 4, 5, 6).double(), 1 + 2 * torch.rand(1, 4, 5, 6).double()
    board = black(5, 6, torch.device("cpu"))
    passes = [(slice(0, 2), board), (slice(0, 2), ~board), (slice(2, 4), None)]

    def whole(step: Estimate | Write | Read) -> Tensor:
        found = torch.zeros_like(mean)
        for part, where in passes:
            found[:, part] += step(part, mean[:, part], scale[:, part], where)
        return found

    write = Write(y)
    z = small("catc-light-no-text").prior
    write.z(torch.zeros(1, z.channels, 1, 1), z)
    written = whole(write)
    read = Read(write.bytes())
    read.z(1, 1, z)
    assert torch.equal(whole(read), written)
    read.check()
    assert float((written - y).abs().max()) <= 0.5 + 1 / 256
    estimate = Estimate(y.double(), training=False)
    # Means are snapped to a grid, so a latent in the middle between two steps may go either way.
    assert float((whole(estimate) - written).abs().median()) <= 1 / 256
    once = Estimate(y.double(), training=False)
    once(slice(0, 4), mean, scale)
    torch.testing.assert_close(torch.cat(estimate.likelihoods, 1), once.likelihoods[0])
