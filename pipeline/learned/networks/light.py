"""Sizes in, the networks of a light CATC out: little work where the maps are large.

             t ────────┬────────────────────────────────────┬─────────── t
                       ▼                                    ▼
    x ─▶ g_a ─▶ y ──┬─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ y_hat ─▶ (+) ─▶ y_bar ─▶ g_s ─▶ x_hat
                    │         ▲             ▲              ▲
                   h_a        └──── Φ ──────┘              r
                    │               ▲                      ▲
                    z ─▶ Q ─▶ z_hat ─▶ h_s ─▶ groups of channels, a checkerboard ◀─ t

    g_a   (down ↓2, residual blocks) three times, CAT block, 1x1 ↓2
    g_s   1x1 ↑2, CAT block, (residual blocks, up ↑2) three times

A halving is a sum of two ways: a space-to-depth and a 1x1 convolution, which can be a linear
transform of the image without loss, and two 3x3 convolutions with a GDN. Doublings mirror it.
Attention stands at H/8 alone, where a window of 8x8 positions sees 64x64 pixels; it is the last of
g_a and the first of g_s, so that a latent asks its own window and no other.

The entropy model is that of `context.py`.

    x, x_hat            B x 3 x H x W, 0 to 1; 64 divides H and W
    y, y_hat, r, y_bar  B x M x H/16 x W/16
    z, z_hat            B x N x H/64 x W/64
    t                   B x T x D, the text; T is 1 for a pooled vector
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.learned.networks import context
from pipeline.learned.networks.layers import WINDOW, CatBlock, Gdn, Text, conv
from pipeline.learned.sizes import LightSizes

WINDOW_PIXELS = 8 * WINDOW
"""Side of a window of the CAT block, at H/8."""


def reach(sizes: LightSizes) -> int:
    """How many pixels beyond a tile, whose windows are whole, the transforms look.

    g_a looks as far as the convolutions before its attention. Those of g_s come after it, so it
    looks at all of the windows that they reach.
    """
    first, second, third = sizes.blocks
    blocks = 4 * first + 8 * second + 16 * third
    into, out_of = 21 + blocks, 8 + blocks  # with what halvings and doublings reach
    return max(into, -(-out_of // WINDOW_PIXELS) * WINDOW_PIXELS)


def _width(sizes: LightSizes) -> int | None:
    return None if sizes.text is None else sizes.text.width


class Residual(nn.Module):
    """A residual block: two 3x3 convolutions beside their input.

    float32, B x C x H x W in, the same out; any finite values.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels), nn.LeakyReLU(), conv(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Down(nn.Module):
    """To half the size: float32, B x inputs x H x W in, B x outputs x H/2 x W/2 out.

    2 divides H and W; any finite values.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * inputs, outputs, kernel=1))
        self.body = nn.Sequential(
            conv(inputs, outputs, stride=2),
            nn.LeakyReLU(),
            conv(outputs, outputs),
            Gdn(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.body(x)
        return out


class Up(nn.Module):
    """To twice the size: float32, B x inputs x H x W in, B x outputs x 2H x 2W out.

    Any finite values.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Sequential(conv(inputs, 4 * outputs, kernel=1), nn.PixelShuffle(2))
        self.body = nn.Sequential(
            *(conv(inputs, 4 * outputs, kernel=1), nn.PixelShuffle(2), nn.LeakyReLU()),
            *(conv(outputs, outputs), Gdn(outputs, inverse=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.body(x)
        return out


class Last(nn.Module):
    """The last doubling, to an image: float32, B x inputs x H x W in, B x 3 x 2H x 2W out.

    Any finite values.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.skip, self.body = conv(inputs, 12, kernel=1), conv(inputs, 12)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(self.skip(x) + self.body(x))
        return out


def _cat(sizes: LightSizes) -> CatBlock:
    return CatBlock(sizes.widths[-1], _width(sizes), sizes.heads, sizes.mlp)


class Analysis(nn.Module):
    """g_a: x and t in, y out.

    x is float32, B x 3 x H x W, 0 to 1; y is float32, B x M x H/16 x W/16, any finite values. The
    text is that of the B images, in float32; None for a network without.
    """

    def __init__(self, sizes: LightSizes) -> None:
        super().__init__()
        inputs = [3, *sizes.widths[:-1]]
        self.down = nn.ModuleList(map(Down, inputs, sizes.widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(count)))
            for width, count in zip(sizes.widths, sizes.blocks, strict=True)
        )
        self.cat = _cat(sizes)
        self.last = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * sizes.widths[-1], sizes.m, kernel=1)
        )

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = blocks(down(x))
        y: Tensor = self.last(self.cat(x, text))
        return y


class Synthesis(nn.Module):
    """g_s: y_bar and t in, x_hat out.

    y_bar is float32, B x M x h x w, any finite values; x_hat is float32, B x 3 x 16h x 16w, about
    0 to 1, not clamped. The text is as for g_a.
    """

    def __init__(self, sizes: LightSizes) -> None:
        super().__init__()
        widths = sizes.widths[::-1]
        self.first = nn.Sequential(conv(sizes.m, 4 * widths[0], kernel=1), nn.PixelShuffle(2))
        self.cat = _cat(sizes)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(count)))
            for width, count in zip(widths, sizes.blocks[::-1], strict=True)
        )
        self.up = nn.ModuleList(map(Up, widths, widths[1:]))
        self.last = Last(widths[-1])

    def forward(self, y_bar: Tensor, text: Text | None) -> Tensor:
        x = self.cat(self.first(y_bar), text)
        for index, blocks in enumerate(self.blocks):
            x = blocks(x)
            if index < len(self.up):
                x = self.up[index](x)
        x_hat: Tensor = self.last(x)
        return x_hat


class HyperAnalysis(nn.Module):
    """h_a: y in, z out.

    y is float32, B x M x h x w, and z float32, B x N x h/4 x w/4; any finite values.
    """

    def __init__(self, sizes: LightSizes) -> None:
        super().__init__()
        n, hidden = sizes.n, sizes.hidden
        self.layers = nn.Sequential(
            *(conv(2 * sizes.m, hidden, kernel=1), nn.GELU()),
            *(conv(hidden, hidden, stride=2), nn.GELU(), conv(hidden, n, stride=2)),
        )

    def forward(self, y: Tensor, text: Text | None = None) -> Tensor:
        z: Tensor = self.layers(context.both(y))
        return z


class EntropyModel(context.EntropyModel):
    """The model of `context.py` in these sizes."""

    def __init__(self, sizes: LightSizes) -> None:
        super().__init__(
            sizes.n, sizes.groups, sizes.checkered, sizes.hidden, _width(sizes), sizes.heads
        )
