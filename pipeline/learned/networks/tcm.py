"""Sizes in, the networks of TCM out: blocks of a transformer beside a CNN (Liu 2023).

    x ─▶ g_a ─▶ y ──┬─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ y_hat ─▶ (+) ─▶ y_bar ─▶ g_s ─▶ x_hat
                    │         ▲             ▲              ▲
                   h_a        └──── Φ ──────┘              r
                    │               ▲                      │
                    z ─▶ Q ─▶ z_hat ─▶ h_s ─▶ channel-wise entropy model

    g_a   (RBS ↓2, TCM blocks) three times, conv 3x3 ↓2
    g_s   (RBU ↑2, TCM blocks) three times, sub-pixel conv 3x3 ↑2
    h_a   RBS ↓2, TCM blocks, conv 3x3 ↓2
    h_s   RBU ↑2, TCM blocks, sub-pixel conv 3x3 ↑2; one for the means, one for the scales

A TCM block has two branches of N channels each; every other block has shifted windows:

                          ┌─▶ conv 3x3, conv 3x3, + ──────────────┐
    ─┬─▶ conv 1x1 ─▶ split┤                                       ├─▶ conv 1x1 ─▶ (+) ─▶
     │                    └─▶ window attention, +, MLP, + ────────┘               ▲
     └────────────────────────────────────────────────────────────────────────────┘

The entropy model codes y in S slices of M/S channels, one after the other. Each sees all earlier
ones, through two swin-transformer attention modules (SWAtten) of its own:

    h_mean(z_hat), y_bar_0 … y_bar_i-1 ─▶ SWAtten ─▶ a_i ─▶ conv x 3 ─▶ mu_i
    h_scale(z_hat), y_bar_0 … y_bar_i-1 ─▶ SWAtten ─▶ conv x 3 ─▶ s_i
    a_i, y_hat_i ─▶ conv x 3 ─▶ r_i = 0.5 tanh(...), y_bar_i = y_hat_i + r_i

    SWAtten   conv 1x1 to fewer channels, x + trunk(x) * sigmoid(mask(swin(x))), conv 1x1 back

    x, x_hat            B x 3 x H x W, 0 to 1; 64 divides H and W
    y, y_hat, r, y_bar  B x M x H/16 x W/16
    z, z_hat            B x n x H/64 x W/64; n is 192 at all sizes of the paper

Later slices see r_i here, so it decides bits and is exact, too.

Two things differ from the authors' program (https://github.com/jmliu206/LIC_TCM). Maps that windows
do not divide are filled up, and what fills them up is looked at by nobody; there it is part of the
image. The CNN branch has one way around its two convolutions, as in the paper's figure 3; there it
has two. Neither changes a shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.learned.coding import Step
from pipeline.learned.networks import layers
from pipeline.learned.networks.layers import (
    Gated,
    ResidualDown,
    ResidualUp,
    Text,
    WindowAttention,
    conv,
    subpixel,
)
from pipeline.learned.sizes import TcmSizes

HYPER_WINDOW = 4
MLP = 4


def reach(sizes: TcmSizes) -> int:
    """Pixels from a tile's edge to the farthest one that the transforms look at from inside.

    From the end of each transform back to its beginning. Edges of tiles are multiples of 64
    pixels, and so of the windows that are not shifted; a window that is met is seen whole.
    """
    return max(_back(sizes.depth, 8, (8, 4, 2), 1.5), _back(sizes.depth, 2, (2, 4, 8), 3))


def _back(depth: int, last: float, strides: tuple[int, ...], between: float) -> int:
    """The same of one transform.

    Args:
        depth: blocks at each stride.
        last: pixels that its last convolution looks beyond its place.
        strides: of the blocks, last ones first.
        between: what the residual block before these looks beyond its place, in their positions.
    """
    at = last
    for stride in strides:
        window = layers.WINDOW * stride
        for block in reversed(range(depth)):
            begins = window / 2 if block % 2 else 0
            border = begins + window * -(-(at - begins) // window)
            at = max(at + 2 * stride, border)
        at += between * stride
    return int(at + 0.5)


class Swin(nn.Module):
    """A swin-transformer block: attention in a window, an MLP; each added to its input.

    B x C x H x W of any size in, the same out: float32, or float64 in a frozen entropy model; any
    finite values. A large map is worked through in pieces.

    Args:
        channels: C.
        heads: divides C.
        window: positions a side of a window.
        shifted: whether windows begin half a window earlier.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm_window = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, MLP * channels), nn.GELU(), nn.Linear(MLP * channels, channels)
        )

    def _cut(self, x: Tensor) -> Tensor:
        """B x C x H x W in, its windows out: B x windows x positions x C."""
        batch, channels, height, width = x.shape
        side = self.window
        x = x.view(batch, channels, height // side, side, width // side, side)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side, channels)

    def _work(self, x: Tensor, there: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled():
            size = max(1, layers.POSITIONS // (len(x) * x.shape[2]))
            pieces = torch.split(x, size, 1)
            masks = [None] * len(pieces) if there is None else torch.split(there, size)
            return torch.cat([self._piece(*each) for each in zip(pieces, masks, strict=True)], 1)
        return self._piece(x, there)

    def _piece(self, x: Tensor, there: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm_window(x), there)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tall, wide = (
            -(-(size + self.shift) // self.window) * self.window for size in (height, width)
        )
        below, right = tall - height - self.shift, wide - width - self.shift
        around = (self.shift, right, self.shift, below)
        windows = self._cut(F.pad(x, around))
        # On the CPU: how many windows are whole must be known here.
        ones = torch.ones(1, 1, height, width, dtype=torch.bool, device="cpu")
        there = self._cut(F.pad(ones, around))[0, ..., 0]
        whole = there.all(1)
        if bool(whole.all()):
            windows = self._work(windows, None)
        else:
            # Windows at the border apart: a mask for each of the others would take much memory.
            masks = there[~whole].to(x.device)
            inside, border = (at.nonzero()[:, 0].to(x.device) for at in (whole, ~whole))
            parts = [self._work(windows[:, border], masks)]
            if len(inside):
                parts.append(self._work(windows[:, inside], None))
            windows = torch.cat(parts, 1)[:, torch.cat([border, inside]).argsort()]
        side = self.window
        windows = windows.view(batch, tall // side, wide // side, side, side, channels)
        x = windows.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, tall, wide)
        return x[..., self.shift : self.shift + height, self.shift : self.shift + width]


def swins(channels: int, head: int, window: int) -> nn.Sequential:
    """Two swin-transformer blocks, the second with shifted windows."""
    heads = channels // head
    return nn.Sequential(*(Swin(channels, heads, window, shifted) for shifted in (False, True)))


class Mixture(nn.Module):
    """A TCM block: a CNN on one half of the channels, a transformer on the other.

    B x 2N x H x W in, the same out: float32, or float64 in a frozen entropy model; any finite
    values.

    Args:
        width: N.
        head: channels of a head of the attention; divides N.
        window: positions a side of a window.
        shifted: whether windows begin half a window earlier.
    """

    def __init__(self, width: int, head: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.width = width
        self.first = conv(2 * width, 2 * width, kernel=1)
        self.cnn = nn.Sequential(
            *(conv(width, width), nn.LeakyReLU(), conv(width, width), nn.LeakyReLU())
        )
        self.transformer = Swin(width, width // head, window, shifted)
        self.last = conv(2 * width, 2 * width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).split(self.width, 1)
        both = torch.cat([one + self.cnn(one), self.transformer(other)], 1)
        out: Tensor = x + self.last(both)
        return out


def _blocks(sizes: TcmSizes, head: int, window: int = layers.WINDOW) -> nn.Sequential:
    return nn.Sequential(
        *(Mixture(sizes.width, head, window, bool(index % 2)) for index in range(sizes.depth))
    )


class Analysis(nn.Module):
    """g_a: x in, y out. The text is not looked at.

    x is float32, B x 3 x H x W, 0 to 1; y is float32, B x M x H/16 x W/16, any finite values.
    """

    def __init__(self, sizes: TcmSizes) -> None:
        super().__init__()
        n = 2 * sizes.width
        self.down = nn.ModuleList(ResidualDown(inputs, n) for inputs in (3, n, n))
        self.blocks = nn.ModuleList(_blocks(sizes, rise * sizes.head) for rise in (1, 2, 4))
        self.last = conv(n, sizes.m, stride=2)

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = blocks(down(x))
        y: Tensor = self.last(x)
        return y


class Synthesis(nn.Module):
    """g_s: y_bar in, x_hat out. The text is not looked at.

    y_bar is float32, B x M x h x w, any finite values; x_hat is float32, B x 3 x 16h x 16w, about
    0 to 1, not clamped.
    """

    def __init__(self, sizes: TcmSizes) -> None:
        super().__init__()
        n = 2 * sizes.width
        self.up = nn.ModuleList(ResidualUp(inputs, n) for inputs in (sizes.m, n, n))
        self.blocks = nn.ModuleList(_blocks(sizes, rise * sizes.head) for rise in (4, 2, 1))
        self.last = subpixel(n, 3)

    def forward(self, y_bar: Tensor, text: Text | None) -> Tensor:
        for up, blocks in zip(self.up, self.blocks, strict=True):
            y_bar = blocks(up(y_bar))
        x_hat: Tensor = self.last(y_bar)
        return x_hat


class HyperAnalysis(nn.Module):
    """h_a: y in, z out.

    y is float32, B x M x h x w, and z float32, B x n x h/4 x w/4; any finite values.
    """

    def __init__(self, sizes: TcmSizes) -> None:
        super().__init__()
        n = 2 * sizes.width
        self.layers = nn.Sequential(
            ResidualDown(sizes.m, n),
            _blocks(sizes, 4 * sizes.head, HYPER_WINDOW),
            conv(n, sizes.n, stride=2),
        )

    def forward(self, y: Tensor, text: Text | None = None) -> Tensor:
        z: Tensor = self.layers(y)
        return z


def _hyper_synthesis(sizes: TcmSizes) -> nn.Sequential:
    n = 2 * sizes.width
    return nn.Sequential(
        ResidualUp(sizes.n, n),
        _blocks(sizes, 4 * sizes.head, HYPER_WINDOW),
        subpixel(n, sizes.m),
    )


def _attention(sizes: TcmSizes, channels: int) -> nn.Sequential:
    """SWAtten: it leaves a map's shape as it is."""
    inner = sizes.inner
    return nn.Sequential(
        conv(channels, inner, kernel=1),
        Gated(inner, swins(inner, 2 * sizes.head, layers.WINDOW)),
        conv(inner, channels, kernel=1),
    )


def _three(sizes: TcmSizes, inputs: int) -> nn.Sequential:
    """Three convolutions to the channels of a slice (Minnen 2020)."""
    return nn.Sequential(
        *(conv(inputs, sizes.support), nn.GELU()),
        *(conv(sizes.support, sizes.inner), nn.GELU()),
        conv(sizes.inner, sizes.m // sizes.slices),
    )


class EntropyModel(nn.Module):
    """z_hat in, distributions of y to `step` slice by slice, y_bar out.

    z_hat is B x n x h x w, y_bar B x M x 4h x 4w; float32 in training, float64 once frozen; any
    finite values. The text is not looked at.
    """

    def __init__(self, sizes: TcmSizes) -> None:
        super().__init__()
        m, slices = sizes.m, sizes.slices
        self.depth = m // slices
        self.h_mean, self.h_scale = _hyper_synthesis(sizes), _hyper_synthesis(sizes)
        seen = [m + index * self.depth for index in range(slices)]
        self.look_mean = nn.ModuleList(_attention(sizes, channels) for channels in seen)
        self.look_scale = nn.ModuleList(_attention(sizes, channels) for channels in seen)
        self.mean = nn.ModuleList(_three(sizes, channels) for channels in seen)
        self.scale = nn.ModuleList(_three(sizes, channels) for channels in seen)
        self.lrp = nn.ModuleList(_three(sizes, channels + self.depth) for channels in seen)

    def forward(self, z_hat: Tensor, text: Text | None, step: Step) -> Tensor:
        means, scales = self.h_mean(z_hat), self.h_scale(z_hat)
        known: list[Tensor] = []
        for index, (mean, scale, lrp) in enumerate(
            zip(self.mean, self.scale, self.lrp, strict=True)
        ):
            about_mean = self.look_mean[index](torch.cat([means, *known], 1))
            about_scale = self.look_scale[index](torch.cat([scales, *known], 1))
            part = slice(index * self.depth, (index + 1) * self.depth)
            y_hat = step(part, mean(about_mean), scale(about_scale))
            known.append(y_hat + 0.5 * torch.tanh(lrp(torch.cat([about_mean, y_hat], 1))))
        return torch.cat(known, 1)

    def freeze(self) -> None:
        """Go to float64: all of it decides which bits are read."""
        self.double()
