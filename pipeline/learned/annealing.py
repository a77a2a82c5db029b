"""Latents of an image in, latents that cost less out: the encoder that searches.

An encoder makes each latent from the image alone and rounds it. This one searches: it draws from
both whole steps beside each latent, the nearer the likelier, and follows the gradient of

    bits + slope * squared error

through the networks, while the draws grow cold (stochastic Gumbel annealing; Yang, Bamler and Mandt
2020, "Improving inference for neural image compression", section 3.2). The bits are those that the
network expects. The decoder stays as it is, and so does the format: a file is decoded as ever.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.learned.bitstream import STRIDE, Area
from pipeline.learned.entropy import Conditional
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.tiles import Y_STRIDE, cut

RATE = 0.4
"""How far a latent with a strong gradient goes in a step, over the square root of how many there
are, in steps of rounding; it falls along a cosine to a tenth of that."""
WARM, COLD = 0.5, 0.1
"""Temperatures of the draws at the first and last step, with equal ratios between."""
MOMENTUM, MEMORY = 0.8, 0.9
"""Shares of the past in the means of gradients and of their squares."""


class Latents(NamedTuple):
    """Those of an area of an image.

    Attributes:
        y: float32, 1 x M x H/16 x W/16, any finite values.
        z: float32, 1 x N x H/64 x W/64, any finite values.
    """

    y: Tensor
    z: Tensor


class Draws:
    """Distances of latents from their means in, whole steps beside them out.

    Args:
        seed: of all that is drawn.
        device: where distances lie.

    Attributes:
        temperature: of the draws, above 0; None: the nearest step is taken.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.temperature: float | None = None

    def __call__(self, distance: Tensor, free: Tensor) -> Tensor:
        """One of the two whole steps beside each, mixed with the other while it is warm.

        Args:
            distance: float32, B x C x H x W, any finite values.
            free: bool, H x W; the others take the nearest step.

        Returns:
            float32, B x C x H x W, with a gradient for `distance`.
        """
        if self.temperature is None:
            return torch.round(distance)
        lower = distance.detach().floor()
        above = (distance - lower).clamp(1e-5, 1 - 1e-5)
        drawn = torch.rand(distance.shape, generator=self.generator, device=distance.device)
        logits = torch.atanh(above) - torch.atanh(1 - above)
        # Of two, the softmax with Gumbel noise is a sigmoid with logistic noise.
        share = torch.sigmoid(
            (logits / self.temperature + torch.logit(drawn, 1e-6)) / self.temperature
        )
        return torch.where(free, lower + share, torch.round(distance))


class Search:
    """A `Step` that draws: parts of y, their means and scales in, y_hat and bits out.

    Args:
        y: float32, 1 x M x H x W, any finite values.
        draws: how latents are brought to whole steps.
        free: bool, H x W: where they are drawn.
        conditional: the distributions of y. Fitted tables have no gradient, so they do not count.

    Attributes:
        y_hat: of all parts, like y, without a gradient.
        bits: what the network expects them to take; a scalar from 0.
    """

    def __init__(self, y: Tensor, draws: Draws, free: Tensor, conditional: Conditional) -> None:
        self.y, self.draws, self.free, self.conditional = y, draws, free, conditional
        self.y_hat = torch.zeros_like(y, requires_grad=False)
        self.bits = y.new_zeros(())

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """Channels of y, their mean and scale in, their y_hat out.

        Args:
            part: which channels of y.
            mean, scale: float32, 1 x C x H x W, any finite values.
            where: the positions that are coded now, bool, H x W; None: all.

        Returns:
            float32, 1 x C x H x W; 0 where nothing is coded now.
        """
        steps = self.draws(self.y[:, part] - mean, self.free)
        bits = -self.conditional.likelihood(steps, scale).log2()
        y_hat = steps + mean
        if where is not None:
            bits, y_hat = bits.where(where, 0), y_hat.where(where, 0)
        self.bits = self.bits + bits.sum()
        self.y_hat[:, part] += y_hat.detach()
        return y_hat


class Passed(NamedTuple):
    """What latents come to: what a decoder gets, and what it costs.

    Attributes:
        latents: as they are decoded, without a gradient.
        y_bar: float32, 1 x M x H/16 x W/16, any finite values.
        bits: a scalar from 0.
    """

    latents: Latents
    y_bar: Tensor
    bits: Tensor


class Annealer:
    """The search at one quality of a network.

    Args:
        network: frozen.
        text: features of the prompt, for networks with text.
        quality: from 1; None: the highest, or the only one.
        slope: bits that a squared error of 1 (of 255) is worth.
        steps: of the gradient.
    """

    def __init__(
        self, network: Network, text: Text | None, quality: float | None, slope: float, steps: int
    ) -> None:
        self.network, self.quality, self.slope, self.steps = network, quality, slope, steps
        # Gradients in float64 take three times as long. What is written is decided in float64.
        self.entropy = copy.deepcopy(network.entropy).float()
        kind = next(self.entropy.parameters())
        self.text = None if text is None else text.to(kind.device, kind.dtype)

    def passed(self, latents: Latents, draws: Draws, free: Tensor, free_z: Tensor) -> Passed:
        """Bring latents to whole steps and through the entropy model."""
        median = self.network.prior.median.detach()[:, None, None]
        z_hat = draws(latents.z - median, free_z) + median
        step = Search(latents.y, draws, free, self.network.conditional)
        y_bar: Tensor = self.entropy(z_hat, self.text, step)
        bits = step.bits - self.network.prior.likelihood(z_hat).log2().sum()
        return Passed(Latents(step.y_hat, z_hat.detach()), y_bar, bits)

    def error(self, x: Tensor, y_bar: Tensor, judged: Area) -> Tensor:
        """Squared error of what the synthesis makes of y_bar, where there is an x."""
        x_hat = self.network.shown(y_bar, self.text, self.quality).clamp(0, 1)
        part = cut(x_hat, judged, 1)[..., : x.shape[2], : x.shape[3]]
        return ((255 * part - x) ** 2).sum()

    def __call__(
        self,
        x: Tensor,
        judged: Area,
        y_bar: Tensor,
        coded: Area,
        start: Latents,
        free: Area,
        told: Callable[[], None] = lambda: None,
    ) -> Passed:
        """Search for latents.

        Args:
            x: the image where errors count, float32, 1 x 3 x H x W, 0 to 255.
            judged: where in y_bar that is, in pixels; it may go beyond the image's right and lower
                borders, where errors do not count.
            y_bar: float32, 1 x M x h x w, as it is decoded without a search.
            coded: where in y_bar the latents are whose bits count.
            start: these latents, of the encoder.
            free: where in `coded` they are searched for.
            told: called after each step.

        Returns:
            Whole steps, so that rounding leaves them as they are, and the y_bar of all.
        """
        draws = Draws(0, x.device)
        y, z = (part.clone().requires_grad_(True) for part in start)
        masks = [_mask(y, free, Y_STRIDE), _mask(z, free, STRIDE)]
        walks = [_Walk(y), _Walk(z)]
        for step in range(self.steps):
            at = step / max(self.steps - 1, 1)
            draws.temperature = WARM * (COLD / WARM) ** at
            rate = RATE / self.steps**0.5 * (0.1 + 0.45 * (1 + math.cos(math.pi * at)))
            with torch.enable_grad():
                passed = self.passed(Latents(y, z), draws, *masks)
                whole = _with(y_bar, passed.y_bar, coded)
                cost = passed.bits + self.slope * self.error(x, whole, judged)
            for walk, mask, gradient in zip(
                walks, masks, torch.autograd.grad(cost, [y, z]), strict=True
            ):
                walk.step(gradient * mask, rate)
            told()
        draws.temperature = None
        with torch.no_grad():
            found = self.passed(Latents(y.detach(), z.detach()), draws, *masks)
            return found._replace(y_bar=_with(y_bar, found.y_bar, coded))


class _Walk:
    """Adam (Kingma 2015) whose steps also shrink with the gradient, against that of all latents.

    In a few steps, full ones would bring the many latents that hardly matter to other numbers by
    their noise alone: at low rates that costs more than all others gain.
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.count = x, 0
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        self.count += 1
        self.mean.lerp_(gradient, 1 - MOMENTUM)
        self.square.lerp_(gradient**2, 1 - MEMORY)
        mean = self.mean / (1 - MOMENTUM**self.count)
        square = self.square / (1 - MEMORY**self.count)
        width = square.sqrt() + square.mean().sqrt() + 1e-12
        self.x.sub_(rate * mean / width)


def _mask(x: Tensor, area: Area, stride: int) -> Tensor:
    """The positions of a map that lie in an area: bool, H x W."""
    mask = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    cut(mask, area, stride).fill_(True)
    return mask


def _with(y_bar: Tensor, part: Tensor, area: Area) -> Tensor:
    """y_bar with a part of it replaced."""
    if part.shape == y_bar.shape:
        return part
    whole = y_bar.clone()
    cut(whole, area, Y_STRIDE).copy_(part)
    return whole
