"""TCM and ELIC: as many weights as published, windows on maps of any size, and their contexts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import AigiError
from pipeline.learned.network import Network
from pipeline.learned.networks import tcm
from pipeline.learned.networks.context import black
from pipeline.learned.sizes import NETWORKS, parse
from tests.learned.conftest import small

COUNTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.LayerNorm)
"""Layers that counters of weights know; they overlook GDN, biases of attention and the prior."""


def _shaped(name: str, **change: Any) -> Network:
    """A network of published size that takes no memory."""
    with torch.device("meta"):
        return Network(**NETWORKS[name].model_dump() | change)


@pytest.mark.parametrize(("name", "millions"), [("tcm-small", 44.97), ("tcm", 75.90)])
def test_tcm_has_the_weights_of_the_paper(name: str, millions: float) -> None:
    network = _shaped(name)
    counted = sum(
        value.numel()
        for part in network.modules()
        if isinstance(part, COUNTED)
        for value in part.parameters(recurse=False)
    )
    assert counted / 1e6 == pytest.approx(millions, abs=0.005)


def test_elic_has_the_published_weights_but_for_a_simplification() -> None:
    """33.79 M count a program in which a group sees the first one and the one before it alone."""
    network = _shaped("elic")
    groups = network.entropy.groups
    unseen = sum(sum(groups[:index]) - groups[0] - groups[index - 1] for index in range(2, 5))
    count = sum(value.numel() for value in network.parameters())
    assert (count - unseen * 224 * 25) / 1e6 == pytest.approx(33.79, abs=0.005)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(2, 2), (4, 12), (8, 16), (6, 10)])
def test_nobody_looks_at_what_fills_up_a_window(
    shifted: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = tcm.Swin(4, 2, 8, shifted)
    nn.init.normal_(block.attention.bias)
    x = torch.randn(2, 4, *size)
    expected = block(x)
    assert expected.shape == x.shape and bool(torch.isfinite(expected).all())
    pad = F.pad

    def filled(x: Tensor, by: tuple[int, ...]) -> Tensor:
        out = pad(x, by)
        outside = ~pad(torch.ones_like(x, dtype=torch.bool), by)
        return out if x.dtype == torch.bool else out + outside * torch.randn_like(out)

    monkeypatch.setattr(F, "pad", filled)
    torch.testing.assert_close(block(x), expected)
    monkeypatch.setattr("pipeline.learned.networks.layers.POSITIONS", 128)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)


def test_shifted_windows_see_over_the_edges_of_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16, 24)
    moved = x.clone()
    moved[:, 0, 7, 7] += 1
    for shifted, rows in ((False, slice(0, 8)), (True, slice(4, 12))):
        block = tcm.Swin(4, 2, 8, shifted)
        with torch.no_grad():
            changed = (block(moved) - block(x)).abs().amax((0, 1)) > 1e-7
        expected = torch.zeros_like(changed)
        expected[rows, rows] = True
        assert torch.equal(changed, expected)


def test_windows_are_the_published_attention() -> None:
    """A whole window is torch's own attention with a bias for each offset."""
    torch.manual_seed(0)
    block = tcm.Swin(4, 1, 4, False).attention
    nn.init.normal_(block.bias)
    x = torch.randn(1, 1, 16, 4)
    q, k, v = block.query_key_value(x).chunk(3, -1)
    bias = torch.empty(16, 16)
    for one in range(16):
        for other in range(16):
            down, right = one // 4 - other // 4 + 3, one % 4 - other % 4 + 3
            bias[one, other] = block.bias[0, 7 * down + right]
    scores = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1)
    torch.testing.assert_close(block(x), block.out(scores @ v))


class _Told:
    """A step that keeps what it is told, and answers with given latents."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.told = y, list[tuple[slice, Tensor, Tensor, Tensor | None]]()

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        self.told.append((part, mean, scale, where))
        y = self.y[:, part]
        return y if where is None else y * where


def _told(name: str, y: Tensor) -> list[tuple[slice, Tensor, Tensor, Tensor | None]]:
    network = small(name).eval()
    step = _Told(y)
    generator = torch.Generator().manual_seed(1)
    z_hat = torch.randn(1, network.sizes.n, 2, 2, generator=generator)
    with torch.no_grad():
        network.entropy(z_hat, None, step)
    return step.told


def test_every_group_of_elic_is_a_checkerboard_that_sees_all_before_it() -> None:
    y = torch.randn(1, 14, 8, 8)
    before = _told("elic", y)
    first = black(8, 8, y.device)
    assert [part for part, *_ in before] == [
        *(slice(0, 2),) * 2, *(slice(2, 6),) * 2, *(slice(6, 14),) * 2
    ]  # fmt: skip
    for index, (_, _, _, where) in enumerate(before):
        assert where is not None and torch.equal(where, ~first if index % 2 else first)
    for channel, (row, column), told_first in ((0, (3, 3), 1), (0, (3, 4), 2), (3, (2, 2), 3)):
        moved = y.clone()
        moved[0, channel, row, column] += 1
        after = _told("elic", moved)
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            where = old[3]
            assert where is not None
            same = torch.equal(old[1][..., where], new[1][..., where])
            assert same == (index < told_first), (channel, index)


def test_a_slice_of_tcm_sees_all_before_it() -> None:
    y = torch.randn(1, 10, 8, 8)
    before = _told("tcm", y)
    moved = y.clone()
    moved[:, 2] += 1  # of the second slice
    for index, (old, new) in enumerate(zip(before, _told("tcm", moved), strict=True)):
        assert torch.equal(old[1], new[1]) == torch.equal(old[2], new[2]) == (index < 2)


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        ("tcm", {"width": 10**9}, "width"),
        ("tcm", {"head": 3}, "four times head"),
        ("tcm", {"inner": 24}, "twice head"),
        ("tcm", {"slices": 3}, "slices"),
        ("tcm", {"depth": 100}, "depth"),
        ("tcm", {"text": {"tower": "tiny"}}, "text"),
        ("elic", {"groups": [16, 16]}, "groups have 32"),
        ("elic", {"groups": [1] * 320}, "groups"),
        ("elic", {"groups": 5}, "groups"),
        ("elic", {"support": 10**9}, "support"),
    ],
)
def test_sizes_are_checked(name: str, change: dict[str, Any], where: str) -> None:
    with pytest.raises(AigiError, match=where):
        parse(NETWORKS[name].model_dump() | change)


def test_the_largest_sizes_that_a_file_may_claim_are_bounded() -> None:
    most: dict[str, dict[str, Any]] = {
        "tcm": {"n": 512, "m": 512, "width": 256, "depth": 4, "slices": 16, "inner": 256,
                "support": 512},
        "elic": {"n": 512, "m": 512, "groups": [32] * 16, "support": 512, "inner": 512,
                 "aggregate": 1024},
    }  # fmt: skip
    for name, change in most.items():
        for field, value in change.items():
            if isinstance(value, int) and field != "depth":
                with pytest.raises(AigiError, match=field):
                    parse(NETWORKS[name].model_dump() | change | {field: value + 1})
        count = sum(value.numel() for value in _shaped(name, **change).parameters())
        assert count < 1_000_000_000, f"{name}: {count:,}"
