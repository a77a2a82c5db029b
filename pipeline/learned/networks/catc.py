"""Sizes in, the networks of CATC out: the cross-attention transformer codec.

             t ────────┬────────────────────────────────────┬─────────── t
                       ▼                                    ▼
    x ─▶ g_a ─▶ y ──┬─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ y_hat ─▶ (+) ─▶ y_bar ─▶ g_s ─▶ x_hat
                    │         ▲             ▲              ▲
                   h_a        └──── Φ ──────┘              r
                    │               ▲                      ▲
                    z ─▶ Q ─▶ z_hat ─▶ h_s ─▶ channel-wise entropy model ◀─ t

    g_a   (RBS ↓2, CAT block) three times, conv 3x3 ↓2
    g_s   (RBU ↑2, CAT block) three times, sub-pixel conv 3x3 ↑2

The entropy model codes y in S slices of M/S channels (Minnen 2020), one after the other:

              h_s(z_hat)                  t
               │      │                   ▼
      state_0 ◀┘      │    state_i ─▶ (+ cross-attention) ─▶ c_i
                      ▼                                       │
                (mu_i, s_i) ◀──────────── e_i ◀───────────────┤
                      ▼                                       │
                   y_hat_i ─▶ r_i = 0.5 tanh(l_i(c_i, y_hat_i)) ◀┘
                      │
      state_i+1 = GRU(y_hat_i, state_i)

    x, x_hat            B x 3 x H x W, 0 to 1; 64 divides H and W
    y, y_hat, r, y_bar  B x M x H/16 x W/16
    z, z_hat            B x N x H/64 x W/64
    t                   B x T x D, the text; T is 1 for a pooled vector
    state, c            B x hidden x H/16 x W/16

Two options, both off in the published network. `hyper_text`: h_a and h_s ask the text at H/32, too.
`states: 2`: the scales have a state, an attention, a GRU and e_i of their own, so that what tells a
mean need not be kept by what tells how far off it may be.

The recurrent state, the attention and h_s are shared by all slices; e_i and l_i are a slice's own.
r_i, the predicted rest of the rounding, is added for the synthesis only. No later slice sees it, so
it decides no bit and need not be exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.learned.coding import Step
from pipeline.learned.networks.layers import (
    CatBlock,
    ConvGru,
    CrossAttention,
    ResidualDown,
    ResidualUp,
    Text,
    conv,
    heard,
    subpixel,
)
from pipeline.learned.sizes import CatcSizes


def _width(sizes: CatcSizes) -> int | None:
    return None if sizes.text is None else sizes.text.width


class Analysis(nn.Module):
    """g_a: x and t in, y out.

    x is float32, B x 3 x H x W, 0 to 1; y is float32, B x M x H/16 x W/16, any finite values. The
    text is that of the B images, in float32; None for a network without.
    """

    def __init__(self, sizes: CatcSizes) -> None:
        super().__init__()
        n = sizes.n
        self.down = nn.ModuleList(ResidualDown(inputs, n) for inputs in (3, n, n))
        self.cat = nn.ModuleList(
            CatBlock(n, _width(sizes), sizes.heads, sizes.mlp) for _ in self.down
        )
        self.last = conv(n, sizes.m, stride=2)

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        for down, cat in zip(self.down, self.cat, strict=True):
            x = cat(down(x), text)
        y: Tensor = self.last(x)
        return y


class Synthesis(nn.Module):
    """g_s: y_bar and t in, x_hat out.

    y_bar is float32, B x M x h x w, any finite values; x_hat is float32, B x 3 x 16h x 16w, about
    0 to 1, not clamped. The text is as for g_a.
    """

    def __init__(self, sizes: CatcSizes) -> None:
        super().__init__()
        n = sizes.n
        self.up = nn.ModuleList(ResidualUp(inputs, n) for inputs in (sizes.m, n, n))
        self.cat = nn.ModuleList(
            CatBlock(n, _width(sizes), sizes.heads, sizes.mlp) for _ in self.up
        )
        self.last = subpixel(n, 3)

    def forward(self, y_bar: Tensor, text: Text | None) -> Tensor:
        for up, cat in zip(self.up, self.cat, strict=True):
            y_bar = cat(up(y_bar), text)
        x_hat: Tensor = self.last(y_bar)
        return x_hat


class Asking(nn.Module):
    """What the text adds to a feature map, by cross-attention.

    B x C x h x w and the text in, B x C x h x w out, to be added; float32, or float64 in a frozen
    entropy model; any finite values.
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.text = CrossAttention(channels, width, heads)

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        assert text is not None
        return heard(self.norm, self.text, x, text)


class HyperAnalysis(nn.Module):
    """h_a: y in, z out.

    y is float32, B x M x h x w, and z float32, B x N x h/4 x w/4; any finite values. The text is
    looked at with `hyper_text` alone.
    """

    def __init__(self, sizes: CatcSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.layers = nn.Sequential(
            *(conv(m, n), nn.GELU(), conv(n, n, stride=2), nn.GELU(), conv(n, n, stride=2))
        )
        self.asking = _asking(sizes, n)

    def forward(self, y: Tensor, text: Text | None = None) -> Tensor:
        z: Tensor = _with_text(self.layers, self.asking, y, text, 4)
        return z


def _asking(sizes: CatcSizes, channels: int) -> Asking | None:
    if not sizes.hyper_text or sizes.text is None:
        return None
    return Asking(channels, sizes.text.width, sizes.heads)


def _with_text(
    layers: nn.Sequential, asking: Asking | None, x: Tensor, text: Text | None, at: int
) -> Tensor:
    """Layers of a hyper-transform, which asks the text before its layer `at`."""
    if asking is not None:
        x = layers[:at](x)
        x = x + asking(x, text)
        layers = layers[at:]
    out: Tensor = layers(x)
    return out


class EntropyModel(nn.Module):
    """z_hat and t in, distributions of y to `step` slice by slice, y_bar out.

    z_hat is B x N x h x w, y_bar B x M x 4h x 4w. They and the text are float32 in training,
    float64 once frozen; any finite values.
    """

    def __init__(self, sizes: CatcSizes) -> None:
        super().__init__()
        n, hidden, width = sizes.n, sizes.hidden, _width(sizes)
        self.slices, self.depth, self.states = sizes.slices, sizes.m // sizes.slices, sizes.states
        self.h_s = nn.Sequential(
            *(subpixel(n, hidden), nn.GELU(), subpixel(hidden, hidden), nn.GELU()),
            conv(hidden, (1 + self.states) * hidden),
        )
        self.gru = ConvGru(self.depth, hidden)
        if width is not None:
            self.norm = nn.LayerNorm(hidden)
            self.text = CrossAttention(hidden, width, sizes.heads)
        self.has_text = width is not None
        told = 2 * self.depth // self.states
        self.e = _heads(hidden, told, self.slices)
        self.lrp = nn.ModuleList(
            nn.Sequential(
                *(conv(hidden + self.depth, hidden, kernel=1), nn.GELU()),
                conv(hidden, self.depth),
            )
            for _ in range(self.slices)
        )
        self.asking = _asking(sizes, hidden)
        if self.states == 2:
            self.scale_gru = ConvGru(self.depth, hidden)
            if width is not None:
                self.scale_asking = Asking(hidden, width, sizes.heads)
            self.scale_e = _heads(hidden, told, self.slices)

    def _asked(self, state: Tensor, text: Text | None) -> Tensor:
        """The state with what the text adds to it."""
        if not self.has_text:
            return state
        assert text is not None
        return state + heard(self.norm, self.text, state, text)

    def _scale_asked(self, state: Tensor, text: Text | None) -> Tensor:
        """The same of the state of the scales."""
        return state + self.scale_asking(state, text) if self.has_text else state

    def forward(self, z_hat: Tensor, text: Text | None, step: Step) -> Tensor:
        outer = next(self.lrp.parameters()).dtype
        state, *scale_state, hyper = _with_text(self.h_s, self.asking, z_hat, text, 2).chunk(
            1 + self.states, dim=1
        )
        state, scale_state = torch.tanh(state), [torch.tanh(other) for other in scale_state]
        parts = []
        for index, (e, lrp) in enumerate(zip(self.e, self.lrp, strict=True)):
            context = self._asked(state, text)
            said = e(torch.cat([hyper, context], 1))
            if scale_state:
                other = self._scale_asked(scale_state[0], text)
                said = torch.cat([said, self.scale_e[index](torch.cat([hyper, other], 1))], 1)
            mean, scale = said.chunk(2, dim=1)
            part = slice(index * self.depth, (index + 1) * self.depth)
            y_hat = step(part, mean, scale)
            rest = torch.cat([context, y_hat], 1).to(outer)
            parts.append(y_hat + 0.5 * torch.tanh(lrp(rest)))
            if index + 1 < self.slices:
                state = self.gru(y_hat, state)
                scale_state = [self.scale_gru(y_hat, other) for other in scale_state]
        return torch.cat(parts, 1)

    def freeze(self) -> None:
        """Go to float64, but for lrp: all else decides which bits are read."""
        self.double()
        self.lrp.float()


def _heads(hidden: int, told: int, slices: int) -> nn.ModuleList:
    """e_i of all slices, each of which tells `told` numbers of a latent's place."""
    return nn.ModuleList(
        nn.Sequential(
            *(conv(2 * hidden, hidden, kernel=1), nn.GELU()),
            *(conv(hidden, hidden), nn.GELU(), conv(hidden, told)),
        )
        for _ in range(slices)
    )
