"""Sizes in, the networks of ELIC out: residual bottlenecks, uneven groups of channels (He 2022).

    x ─▶ g_a ─▶ y ──┬─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ y_hat ─▶ g_s ─▶ x_hat
                    │         ▲             ▲
                   h_a        └──── Φ ──────┘
                    │               ▲
                    z ─▶ Q ─▶ z_hat ─▶ h_s ─▶ space-channel entropy model

    g_a   conv 5x5 ↓2, RBB x 3 │ conv 5x5 ↓2, RBB x 3, AM │ conv 5x5 ↓2, RBB x 3 │ conv 5x5 ↓2, AM
    g_s   AM, deconv 5x5 ↑2 │ RBB x 3, deconv 5x5 ↑2, AM │ RBB x 3, deconv ↑2 │ RBB x 3, deconv ↑2
    RBB   a residual bottleneck block; AM, an attention module (Cheng 2020)

The entropy model codes y in groups of 16, 16, 32, 64 and 192 channels, one after the other, and
each of them in two passes: first the black positions of a checkerboard, then the white ones.

    y_hat of groups 0 … i-1 ─▶ g_ch,i: conv 5x5 three times ───┐
    y_hat of group i at black positions ─▶ g_sp,i: conv 5x5 ───┼─▶ conv 1x1 three times ─▶ mu_i, s_i
    z_hat ─▶ h_s ──────────────────────────────────────────────┘

    x, x_hat       B x 3 x H x W, 0 to 1; 64 divides H and W
    y, y_hat       B x M x H/16 x W/16
    z, z_hat       B x N x H/64 x W/64

g_sp sees nothing in the first pass. Its kernel has weights at white offsets only, those at which
a white position finds black latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.learned.coding import Step
from pipeline.learned.networks.context import black
from pipeline.learned.networks.layers import Bottleneck, Gated, Text, conv, deconv
from pipeline.learned.sizes import ElicSizes

KERNEL = 5


def reach(sizes: ElicSizes) -> int:
    """Pixels from a tile's edge to the farthest one that the transforms look at from inside.

    A 5x5 convolution looks at 2 positions beyond its place, three blocks at 3, and so does an
    attention module. g_a looks farther than g_s: a transposed convolution needs one position less.
    """
    blocks = 3 * (2 + 4 + 8)
    attention = 3 * (4 + 16)
    return blocks + attention + 2 * (1 + 2 + 4 + 8)


def _blocks(n: int) -> list[Bottleneck]:
    return [Bottleneck(n) for _ in range(3)]


class Analysis(nn.Module):
    """g_a: x in, y out. The text is not looked at.

    x is float32, B x 3 x H x W, 0 to 1; y is float32, B x M x H/16 x W/16, any finite values.
    """

    def __init__(self, sizes: ElicSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.down = nn.ModuleList(
            conv(inputs, outputs, KERNEL, 2) for inputs, outputs in ((3, n), (n, n), (n, n), (n, m))
        )
        self.after = nn.ModuleList(
            (
                nn.Sequential(*_blocks(n)),
                nn.Sequential(*_blocks(n), Gated(n)),
                nn.Sequential(*_blocks(n)),
                Gated(m),
            )
        )

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        for down, after in zip(self.down, self.after, strict=True):
            x = after(down(x))
        return x


class Synthesis(nn.Module):
    """g_s: y_hat in, x_hat out. The text is not looked at.

    y_hat is float32, B x M x h x w, any finite values; x_hat is float32, B x 3 x 16h x 16w, about
    0 to 1, not clamped.
    """

    def __init__(self, sizes: ElicSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.before = nn.ModuleList(
            (
                Gated(m),
                nn.Sequential(*_blocks(n)),
                nn.Sequential(Gated(n), *_blocks(n)),
                nn.Sequential(*_blocks(n)),
            )
        )
        self.up = nn.ModuleList(
            deconv(inputs, outputs) for inputs, outputs in ((m, n), (n, n), (n, n), (n, 3))
        )

    def forward(self, y_hat: Tensor, text: Text | None) -> Tensor:
        for before, up in zip(self.before, self.up, strict=True):
            y_hat = up(before(y_hat))
        return y_hat


class HyperAnalysis(nn.Module):
    """h_a: y in, z out.

    y is float32, B x M x h x w, and z float32, B x N x h/4 x w/4; any finite values.
    """

    def __init__(self, sizes: ElicSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.layers = nn.Sequential(
            *(conv(m, n), nn.ReLU(), conv(n, n, KERNEL, 2), nn.ReLU(), conv(n, n, KERNEL, 2)),
        )

    def forward(self, y: Tensor, text: Text | None = None) -> Tensor:
        z: Tensor = self.layers(y)
        return z


class _Around(nn.Conv2d):
    """g_sp: a 5x5 convolution over the latents that differ from a place in colour."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth, 2 * depth, KERNEL, padding=KERNEL // 2)
        white = ~black(KERNEL, KERNEL, self.weight.device)
        self.register_buffer("white", white, persistent=False)
        self.white: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.weight * self.white, self.bias)
        return out


class EntropyModel(nn.Module):
    """z_hat in, distributions of y to `step` group by group, y_hat out.

    z_hat is B x N x h x w, y_hat B x M x 4h x 4w; float32 in training, float64 once frozen; any
    finite values. The text is not looked at.
    """

    def __init__(self, sizes: ElicSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.groups = sizes.groups
        self.h_s = nn.Sequential(
            *(deconv(n, n), nn.ReLU(), deconv(n, 3 * n // 2), nn.ReLU()),
            conv(3 * n // 2, 2 * m),
        )
        before = [sum(self.groups[:index]) for index in range(len(self.groups))]
        self.channels = nn.ModuleList(
            nn.Sequential(
                *(conv(known, sizes.support, KERNEL), nn.ReLU()),
                *(conv(sizes.support, sizes.inner, KERNEL), nn.ReLU()),
                conv(sizes.inner, 2 * depth, KERNEL),
            )
            for known, depth in zip(before[1:], self.groups[1:], strict=True)
        )
        self.around = nn.ModuleList(_Around(depth) for depth in self.groups)
        self.together = nn.ModuleList(
            nn.Sequential(
                *(conv(2 * m + (2 + 2 * (index > 0)) * depth, 2 * m, kernel=1), nn.ReLU()),
                *(conv(2 * m, sizes.aggregate, kernel=1), nn.ReLU()),
                conv(sizes.aggregate, 2 * depth, kernel=1),
            )
            for index, depth in enumerate(self.groups)
        )

    def forward(self, z_hat: Tensor, text: Text | None, step: Step) -> Tensor:
        hyper = self.h_s(z_hat)
        first = black(hyper.shape[2], hyper.shape[3], hyper.device)
        known: list[Tensor] = []
        start = 0
        for index, (depth, around) in enumerate(zip(self.groups, self.around, strict=True)):
            part = slice(start, start + depth)
            start += depth
            seen = [hyper]
            if index:
                seen.append(self.channels[index - 1](torch.cat(known, 1)))
            nothing = hyper.new_zeros(()).expand(len(hyper), 2 * depth, *first.shape)
            black_ones = step(part, *self._said(index, [*seen, nothing]), first)
            white_ones = step(part, *self._said(index, [*seen, around(black_ones)]), ~first)
            known.append(black_ones + white_ones)
        return torch.cat(known, 1)

    def _said(self, index: int, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and scale of a group, from all that its layers see."""
        mean, scale = self.together[index](torch.cat(seen, 1)).chunk(2, dim=1)
        return mean, scale

    def freeze(self) -> None:
        """Go to float64: all of it decides which bits are read."""
        self.double()
