"""Feature maps (B x C x H x W) in, feature maps out: the blocks that the networks are made of.

Maps are float32; float64 in the entropy model of a frozen network, bfloat16 under autocast. Their
values are any finite ones, unless a block says otherwise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 8
POSITIONS = 1 << 16
"""Positions of a feature map that a CAT block works on at a time when no gradient is wanted."""


class Text(NamedTuple):
    """Features of the prompts of a batch.

    Attributes:
        features: float32, or float64 for coding, B x T x D, finite; 0 where it is filled up.
        there: bool, B x T; false where a shorter prompt is filled up.
    """

    features: Tensor
    there: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Text:
        """The same on another device, in another precision."""
        return Text(self.features.to(device, dtype), self.there.to(device))


class _LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient still lets x grow where it is below (Ballé 2018, app. 6.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (grad,) = grads
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) with a gradient that leads back above the bound.

    Args:
        x: float32 or float64, any shape, any values.
        bound: the least value of the result.

    Returns:
        Shape and dtype of x, at least `bound`.
    """
    bounded: Tensor = _LowerBound.apply(x, bound)
    return bounded


class Gdn(nn.Module):
    """Generalised divisive normalisation (Ballé 2016): x / sqrt(beta + gamma * x^2).

    float32 or float64, B x C x H x W in, the same out; any finite values.

    Args:
        channels: C of the input and the output.
        inverse: multiply instead of dividing, for the synthesis.
    """

    PEDESTAL = 2.0**-36  # keeps gradients of weights that start at 0 alive

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + self.PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + self.PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (1e-6 + self.PEDESTAL) ** 0.5) ** 2 - self.PEDESTAL
        gamma = lower_bound(self.gamma, self.PEDESTAL**0.5) ** 2 - self.PEDESTAL
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class Gains(nn.Module):
    """Factors for the channels of y, one set for each quality, so that one network codes at several
    rates (Cui 2021): a larger gain means finer steps.

    A quality between two sets takes the geometric mean of both, weighted by its distance to each.

    Args:
        qualities: how many sets; they count from 1, the lowest rate.
        channels: M of y.
    """

    def __init__(self, qualities: int, channels: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(qualities, channels))
        self.log_inverse = nn.Parameter(torch.zeros(qualities, channels))

    def begin(self, logarithms: Tensor) -> None:
        """Set all gains of a quality to one value, given by its logarithm, and their inverses.

        Args:
            logarithms: float32, one for each quality (shape (Q,)), natural, any finite values.
        """
        with torch.no_grad():
            self.log_gain.copy_(logarithms[:, None])
            self.log_inverse.copy_(-logarithms[:, None])

    def scale(self, y: Tensor, quality: Tensor | None) -> Tensor:
        """y as it is coded, B x M x h x w, at B qualities; None: the highest.

        Args:
            y: float32, B x M x h x w, any finite values.
            quality: int64 or float32, B, from 1 to the number of sets.

        Returns:
            float32, B x M x h x w: y times the gains, which are above 0.
        """
        return y * _factors(self.log_gain, quality)

    def restore(self, y_bar: Tensor, quality: Tensor | None) -> Tensor:
        """What was coded at these qualities as the synthesis wants it.

        Args:
            y_bar: float32 or float64, B x M x h x w, any finite values.
            quality: int64 or float32, B, from 1 to the number of sets; None: the highest.

        Returns:
            Shape and dtype of y_bar: it times the inverse gains, which are above 0.
        """
        return y_bar * _factors(self.log_inverse, quality)


def _factors(logarithms: Tensor, quality: Tensor | None) -> Tensor:
    if quality is None:
        taken = logarithms[-1:]
    elif quality.is_floating_point():
        lower = quality.floor()
        below = lower.long() - 1
        above = (below + 1).clamp(max=len(logarithms) - 1)
        share = (quality - lower).to(logarithms.dtype)[:, None]
        taken = logarithms[below].lerp(logarithms[above], share)
    else:
        taken = logarithms[quality - 1]
    return taken.exp()[:, :, None, None]


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution whose output is 1 / stride of the size of its input."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A 5x5 transposed convolution to twice the size."""
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, 1)


def subpixel(inputs: int, outputs: int) -> nn.Sequential:
    """A sub-pixel convolution (Shi 2016) to twice the size."""
    return nn.Sequential(conv(inputs, 4 * outputs), nn.PixelShuffle(2))


class ResidualDown(nn.Module):
    """RBS: a residual block to half the size.

    float32, B x inputs x H x W in, B x outputs x H/2 x W/2 (rounded up) out; any finite values.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, outputs, stride=2),
            nn.LeakyReLU(),
            conv(outputs, outputs),
            Gdn(outputs),
        )
        self.skip = conv(inputs, outputs, kernel=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.skip(x)
        return out


class ResidualUp(nn.Module):
    """RBU: a residual block to twice the size.

    float32, B x inputs x H x W in, B x outputs x 2H x 2W out; any finite values.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            subpixel(inputs, outputs),
            nn.LeakyReLU(),
            conv(outputs, outputs),
            Gdn(outputs, inverse=True),
        )
        self.skip = subpixel(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.skip(x)
        return out


class CrossAttention(nn.Module):
    """Every position asks the text: B x L x C and B x T x D in, B x L x C out.

    A learned token stands beside those of the text. So a position can look away, a prompt of one
    vector is a choice and not a constant, and a network can be told nothing. Both are float32, or
    float64 in a frozen entropy model; any finite values.

    Args:
        channels: C.
        width: D.
        heads: divides C.
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.nothing = nn.Parameter(torch.randn(2 * channels) * 0.02)
        self.out = nn.Linear(channels, channels)

    def silence(self) -> None:
        """Say nothing until trained: added to its input, it leaves a trained network as it was."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        batch, _, channels = x.shape
        nothing = self.nothing.expand(batch, 1, -1)
        both = torch.cat([nothing, self.key_value(text.features)], dim=1)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), both[..., :channels], both[..., channels:])
        )
        there = F.pad(text.there, (1, 0), value=True)[:, None, None, :]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


def heard(norm: nn.LayerNorm, attention: CrossAttention, x: Tensor, text: Text) -> Tensor:
    """What every position of a map is told by the text.

    Args:
        norm: of the channels, before they ask.
        x: float32 or float64, B x C x H x W, any finite values.

    Returns:
        Shape and dtype of x.
    """
    found: Tensor = attention(norm(x.flatten(2).transpose(1, 2)), text)
    return found.transpose(1, 2).view_as(x)


class WindowAttention(nn.Module):
    """Self-attention in windows of 8x8 with a bias for each offset (Liu 2021).

    ... x 64 x C in, the same out: float32, or float64 in a frozen entropy model; any finite values.

    Args:
        channels: C.
        heads: divides C.
        window: positions a side of a window, where it is not 8.
    """

    def __init__(self, channels: int, heads: int, window: int = WINDOW) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        at = torch.stack(torch.meshgrid(*(torch.arange(window),) * 2, indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("offset", offset[0] * (2 * window - 1) + offset[1], persistent=False)
        self.offset: Tensor

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """Let every position of a window look at all of them.

        Args:
            x: float32 or float64, ... x 64 x C, any finite values.
            there: bool, windows x 64: false where a position is filled up and nobody looks; at
                least one of each window is true. None: all are there.

        Returns:
            Shape and dtype of x.
        """
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0)
        q, k, v = (part.transpose(-3, -2) for part in parts)
        bias = self.bias[:, self.offset].to(q.dtype)
        if there is not None:
            bias = bias.where(there[:, None, None, :], -torch.inf)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # The fused kernel of CPUs knows no gradient of the bias; what stands in for it guards
            # against rows that see nothing, a tenth of a training step. None is such a row here.
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias
            found = scores.softmax(-1).to(v.dtype) @ v
        else:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.out(found.transpose(-3, -2).flatten(-2))
        return out


class CatBlock(nn.Module):
    """CAT block: attention in a window, attention on the text, an MLP; each added to its input.

    Everything stays inside a window of 8x8 positions (the convolutions around the block carry
    further), so a large map is worked through in pieces.

    Args:
        channels: C.
        width: D of the text; None: no cross-attention.
        heads: divides C.
        mlp: width of the MLP over C.
    """

    def __init__(self, channels: int, width: int | None, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm_window = nn.LayerNorm(channels)
        self.window = WindowAttention(channels, heads)
        if width is not None:
            self.norm_text = nn.LayerNorm(channels)
            self.text = CrossAttention(channels, width, heads)
        self.has_text = width is not None
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp * channels), nn.GELU(), nn.Linear(mlp * channels, channels)
        )

    def _windows(self, x: Tensor, text: Text | None) -> Tensor:
        x = x + self.window(self.norm_window(x))  # B x windows x 64 x C
        if self.has_text:
            assert text is not None
            flat = self.text(self.norm_text(x).flatten(1, 2), text)
            x = x + flat.view_as(x)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        """B x C x H x W in and out; 8 divides H and W. float32, any finite values."""
        batch, channels, height, width = x.shape
        rows, columns = height // WINDOW, width // WINDOW
        windows = x.view(batch, channels, rows, WINDOW, columns, WINDOW)
        windows = windows.permute(0, 2, 4, 3, 5, 1).reshape(
            batch, rows * columns, WINDOW * WINDOW, channels
        )
        if torch.is_grad_enabled():
            windows = self._windows(windows, text)
        else:
            size = max(1, POSITIONS // (batch * WINDOW * WINDOW))
            windows = torch.cat(
                [self._windows(part, text) for part in torch.split(windows, size, 1)], 1
            )
        windows = windows.view(batch, rows, columns, WINDOW, WINDOW, channels)
        return windows.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


class Bottleneck(nn.Module):
    """A residual bottleneck: 1x1, 3x3 and 1x1 convolutions at half the channels (He 2022, fig. 6).

    B x C x H x W in, the same out: float32, or float64 in a frozen entropy model; any finite
    values.

    Args:
        channels: C.
        rectified: whether the sum is rectified, as within an attention module.
    """

    def __init__(self, channels: int, rectified: bool = False) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *(conv(channels, half, kernel=1), nn.ReLU(), conv(half, half), nn.ReLU()),
            conv(half, channels, kernel=1),
        )
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return F.relu(out) if self.rectified else out


class Gated(nn.Module):
    """An attention module without attention to other places (Cheng 2020, fig. 5b).

    x + trunk(x) * sigmoid(mask(x)): B x C x H x W in, the same out; float32, or float64 in a
    frozen entropy model; any finite values.

    Args:
        channels: C.
        before: what else the mask's branch begins with.
    """

    def __init__(self, channels: int, before: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(Bottleneck(channels, rectified=True) for _ in range(3)))
        self.mask = nn.Sequential(
            *([] if before is None else [before]),
            *(Bottleneck(channels, rectified=True) for _ in range(3)),
            conv(channels, channels, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.trunk(x) * torch.sigmoid(self.mask(x))
        return out


class ConvGru(nn.Module):
    """A gated recurrent unit whose state is a feature map (Cho 2014, Ballas 2016).

    x, B x inputs x H x W, and the state, B x hidden x H x W, in, the next state out; float32, or
    float64 in a frozen network. A state that begins within -1 to 1 stays there.

    Args:
        inputs: channels of what comes in.
        hidden: channels of the state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gates = conv(inputs + hidden, 2 * hidden)
        self.candidate = conv(inputs + hidden, hidden)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        reset, update = torch.sigmoid(self.gates(torch.cat([x, state], 1))).chunk(2, 1)
        new = torch.tanh(self.candidate(torch.cat([x, reset * state], 1)))
        return state + update * (new - state)
