"""z_hat in, distributions of y out, group after group: a space-channel entropy model.

Groups of uneven size, each of which sees all earlier ones, and a checkerboard within the first
(He 2022, "ELIC", section 3.2, after He 2021): their latents at black positions are coded first,
those at white ones with the black ones around them in sight.

    z_hat ─▶ h_s ─▶ (+ cross-attention ◀─ t) ─▶ hyper ──┐
    y_hat of groups 0 … i-1 ─▶ c_i ─────────────────────┼─▶ e_i ─▶ mean_i, log scale_i
    y_hat of group i at black positions ─▶ s_i ─────────┘
    hyper, y_hat of groups 0 … i ─▶ l_i ─▶ r_i, and y_bar = y_hat + 0.5 tanh(r_i)

    z, z_hat        B x N x H/64 x W/64
    y, y_hat, y_bar B x M x H/16 x W/16
    hyper           B x hidden x H/16 x W/16
    t               B x T x D, the text

Latents of several rates differ by their gains, so their scales are spoken of as logarithms, and
what goes into a layer goes there twice: as it is and compressed (asinh).

r_i, the predicted rest of the rounding (Minnen 2020), is added for the synthesis only. No later
group sees it, so it decides no bit and need not be exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.learned.coding import Step
from pipeline.learned.networks.layers import CrossAttention, Text, conv, heard, subpixel

LARGEST = 8.0
"""Of the logarithm of a scale: e^8 is beyond the widest table, and far from infinity."""


def both(x: Tensor) -> Tensor:
    """x and asinh(x), side by side in the channels.

    Args:
        x: float32 or float64, B x C x H x W, any finite values.

    Returns:
        Of the same dtype, B x 2C x H x W.
    """
    return torch.cat([x, torch.asinh(x)], 1)


def black(height: int, width: int, device: torch.device) -> Tensor:
    """The positions that are coded first: bool, height x width; true where row + column is even."""
    rows, columns = (torch.arange(size, device=device) for size in (height, width))
    return (rows[:, None] + columns) % 2 == 0


class EntropyModel(nn.Module):
    """z_hat and t in, distributions of y to `step` group by group, y_bar out.

    z_hat is B x N x h x w, y_bar B x M x 4h x 4w. They and the text are float32 in training,
    float64 once frozen; any finite values.

    Args:
        n: channels of z.
        groups: channels of y in each group, in the order of coding.
        checkered: how many of the first groups are coded in two passes.
        hidden: channels of what the layers pass on.
        width: D of the text; None: no cross-attention.
        heads: of the attention; divides hidden.
    """

    def __init__(
        self,
        n: int,
        groups: Sequence[int],
        checkered: int,
        hidden: int,
        width: int | None,
        heads: int,
    ) -> None:
        super().__init__()
        self.groups, self.checkered = tuple(groups), checkered
        self.h_s = nn.Sequential(
            *(subpixel(n, hidden), nn.GELU(), subpixel(hidden, hidden), nn.GELU()),
            conv(hidden, hidden),
        )
        self.has_text = width is not None
        if width is not None:
            self.norm = nn.LayerNorm(hidden)
            self.text = CrossAttention(hidden, width, heads)
        before = [sum(self.groups[:index]) for index in range(len(self.groups))]
        self.c = nn.ModuleList(
            nn.Sequential(conv(2 * known, hidden, kernel=1), nn.GELU(), conv(hidden, hidden))
            for known in before[1:]
        )
        self.s = nn.ModuleList(conv(2 * depth, hidden, 5) for depth in self.groups[:checkered])
        self.e = nn.ModuleList(
            nn.Sequential(
                conv((1 + (index > 0) + (index < checkered)) * hidden, hidden, kernel=1),
                *(nn.GELU(), conv(hidden, hidden), nn.GELU(), conv(hidden, 2 * depth, kernel=1)),
            )
            for index, depth in enumerate(self.groups)
        )
        self.lrp = nn.ModuleList(
            nn.Sequential(
                *(conv(hidden + known + depth, hidden, kernel=1), nn.GELU()),
                conv(hidden, depth),
            )
            for known, depth in zip(before, self.groups, strict=True)
        )

    def _hyper(self, z_hat: Tensor, text: Text | None) -> Tensor:
        hyper: Tensor = self.h_s(z_hat)
        if not self.has_text:
            return hyper
        assert text is not None
        return hyper + heard(self.norm, self.text, hyper, text)

    def forward(self, z_hat: Tensor, text: Text | None, step: Step) -> Tensor:
        outer = next(self.lrp.parameters()).dtype
        hyper = self._hyper(z_hat, text)
        known: list[Tensor] = []
        parts = []
        start = 0
        for index, depth in enumerate(self.groups):
            part = slice(start, start + depth)
            start += depth
            seen = [hyper]
            if index:
                seen.append(self.c[index - 1](both(torch.cat(known, 1))))
            if index < self.checkered:
                y_hat = self._checkered(index, part, seen, step)
            else:
                y_hat = step(part, *self._said(index, seen))
            known.append(y_hat)
            rest = self.lrp[index](torch.cat([hyper, *known], 1).to(outer))
            parts.append(y_hat + 0.5 * torch.tanh(rest))
        return torch.cat(parts, 1)

    def _checkered(self, index: int, part: slice, seen: list[Tensor], step: Step) -> Tensor:
        """y_hat of a group whose white positions see its black ones."""
        first = black(seen[0].shape[2], seen[0].shape[3], seen[0].device)
        nothing = torch.zeros_like(seen[0])
        black_ones = step(part, *self._said(index, [*seen, nothing]), first)
        around = self.s[index](both(black_ones))
        white_ones = step(part, *self._said(index, [*seen, around]), ~first)
        return black_ones + white_ones

    def _said(self, index: int, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and scale of a group, from all that its layers see."""
        mean, scale = self.e[index](torch.cat(seen, 1)).chunk(2, dim=1)
        return mean, scale.clamp(max=LARGEST).exp()

    def freeze(self) -> None:
        """Go to float64, but for lrp: all else decides which bits are read."""
        self.double()
        self.lrp.float()
