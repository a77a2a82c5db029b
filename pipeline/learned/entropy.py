"""Latents and their distributions in, likelihoods for training and the tables that code them out.

Training wants likelihoods with gradients; coding wants integers that are the same on every machine,
those of `tables.py`. The tables of z are made once, by `update`, and are part of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.learned.networks.layers import lower_bound
from pipeline.learned.tables import (
    BORDERS,
    LEAST_SCALE,
    LEAST_TAIL_WIDTH,
    MOST,
    PRECISION,
    TAIL_SHARE,
    TAIL_WIDTH,
    Z_OCTAVE,
    Z_REACH,
    Z_TAIL_WIDTH,
    Code,
    Ints,
    doublings,
    fitted,
    folded,
    gaussian_codes,
    halved,
    integer_table,
    kinds,
    mixture_codes,
    octaves,
    sound,
    tail_cdf,
    unfolded,
)

LEAST_LIKELIHOOD = 1e-9


def _with_tail(found: Tensor, far: Tensor, width: Tensor | float) -> Tensor:
    """A likelihood mixed with that of a power law, whose gradient never ends.

    Its density is width / 2 / (width + |x|)^2: twice as far out takes 2 bits more. Its cumulative
    is a fraction, so that all machines make the same table of it. Nearer than 0.5 it counts as at
    0.5, which is wrong by less than 2^-12.
    """
    inner = far.clamp(min=0.5) + (width - 0.5)
    return (1 - TAIL_SHARE) * found + 0.5 * TAIL_SHARE * width / inner / (inner + 1)


def gaussian_likelihood(distance: Tensor, scale: Tensor, tail: bool = False) -> Tensor:
    """Probability that a Gaussian falls within +-0.5 of where it is `distance` from its mean.

    Args:
        distance: y minus the mean, any shape, any finite values; float64, or a float that is taken
            as float32.
        scale: standard deviation, the same shape; below 0.11 it counts as 0.11.
        tail: mix the Gaussian with a heavy tail.

    Returns:
        float64 or float32 of that shape, 1e-9 to 1; with a tail there is no least value.
    """
    if distance.dtype != torch.float64:
        distance, scale = distance.float(), scale.float()
    scale = lower_bound(scale, LEAST_SCALE)
    far = distance.abs()  # by symmetry the lower tail, whose difference keeps its digits
    upper, lower = ((edge - far) / scale * -(0.5**0.5) for edge in (0.5, -0.5))
    found = 0.5 * (torch.erfc(upper) - torch.erfc(lower))
    if tail:
        return _with_tail(found, far, TAIL_WIDTH * scale + LEAST_TAIL_WIDTH)
    return lower_bound(found, LEAST_LIKELIHOOD)


def noise(x: Tensor) -> Tensor:
    """x with uniform noise of the width of a quantisation step: what training sees of rounding.

    float32 or float64, any shape, any finite values, in and out; they differ by at most 0.5.
    """
    return x + torch.rand_like(x) - 0.5


def straight_through(x: Tensor) -> Tensor:
    """round(x) with the gradient of x.

    float32 or float64, any shape, any finite values in; the same out, whole numbers.
    """
    return x + (torch.round(x) - x).detach()


class Factorized(nn.Module):
    """The factorized prior of z: for each channel a learned cumulative (Ballé 2018, app. 6.1).

    Args:
        channels: C of z, B x C x H x W.
        tail: mix what is learned with a heavy tail around the median.

    Attributes:
        median: float32, shape (C,), any finite values; z is rounded to whole steps from it.
        table: int32, C x 130, frequencies of -64 … 64 around the median, then the escape's; each
            row is from 1 and adds up to 2^24. All 0 until `update`.
    """

    WIDTHS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int, tail: bool = False) -> None:
        super().__init__()
        self.channels, self.tail = channels, tail
        layers = len(self.WIDTHS) - 1
        spread = 10.0 ** (1 / layers)  # the density starts some 10 wide
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        for inputs, outputs in zip(self.WIDTHS, self.WIDTHS[1:], strict=False):
            start = float(np.log(np.expm1(1 / spread / outputs)))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
            if outputs > 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))
        self.median = nn.Parameter(torch.zeros(channels))
        table = torch.zeros(channels, 2 * Z_REACH + 2, dtype=torch.int32)
        self.register_buffer("table", table)  # all 0 until `update`
        self.table: Tensor

    def _logits(self, x: Tensor, fixed: bool = False) -> Tensor:
        """Logits of the cumulative, C x 1 x P in and out; fixed: none of it is to be learned."""

        def weight(parameter: Tensor) -> Tensor:
            return (parameter.detach() if fixed else parameter).to(x.dtype)

        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(weight(matrix)) @ x + weight(bias)
            if layer < len(self.factors):
                x = x + torch.tanh(weight(self.factors[layer])) * torch.tanh(x)
        return x

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of each number within +-0.5: B x C x H x W in, the same out.

        float32 or float64, any finite values in; the same, 1e-9 to 1, out; with a tail there is
        no least value.
        """
        flat = z.transpose(0, 1).reshape(self.channels, 1, -1)
        lower, upper = self._logits(flat - 0.5), self._logits(flat + 0.5)
        # On the side where a sigmoid is not next to 1, its difference keeps its digits.
        sign = -torch.sign(lower + upper).detach()
        found = torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))
        shape = (self.channels, z.shape[0], *z.shape[2:])
        found = found.reshape(shape).transpose(0, 1)
        if self.tail:
            far = (z - self.median.detach().to(z.dtype)[:, None, None]).abs()
            return _with_tail(found, far, Z_TAIL_WIDTH)
        return lower_bound(found, LEAST_LIKELIHOOD)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_hat (rounded, gradient straight through), and the likelihoods of z.

        Args:
            z: B x C x H x W, any finite values; float64, or a float that is taken as float32.

        Returns:
            Two of float64 or float32, B x C x H x W: whole steps from the median, and likelihoods;
            in training they are those of z with noise.
        """
        # Cumulatives of bfloat16 would have no tails.
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            median = self.median.detach()[:, None, None]
            z_hat = straight_through(z - median) + median
            return z_hat, self.likelihood(noise(z) if self.training else z_hat)

    def aux_loss(self) -> Tensor:
        """How far `median` is from the median; its gradient goes to `median` alone.

        Returns:
            float32, a scalar, at least 0: the sum over channels of the logit's distance from 0.
        """
        return self._logits(self.median[:, None, None], fixed=True).abs().sum()

    @torch.no_grad()
    def update(self) -> None:
        """Make the integer tables from the learned cumulatives; from then on they are weights."""
        steps = torch.arange(-Z_REACH, Z_REACH + 2, dtype=torch.float64) - 0.5
        at = self.median.double()[:, None, None] + steps.to(self.median.device)
        cumulatives = torch.sigmoid(self._logits(at)).squeeze(1).cpu().numpy()
        if self.tail:
            left = tail_cdf(steps[: Z_REACH + 1].numpy(), Z_TAIL_WIDTH)
            tail = np.concatenate([left, 1.0 - left[::-1]])
            cumulatives = (1.0 - TAIL_SHARE) * cumulatives + TAIL_SHARE * tail
        tables = []
        for edges in cumulatives:
            inside = np.diff(edges)
            tables.append(integer_table(inside, 1.0 - float(inside.sum())))
        self.table.copy_(torch.from_numpy(np.stack(tables)))

    def ready(self) -> bool:
        """Whether the tables were made, and are tables."""
        sums = self.table.sum(dim=1, dtype=torch.int64)
        least = octaves(Z_REACH, Z_OCTAVE) if self.tail else 1
        right = (self.table > 0).all() and (self.table[:, -1] >= least).all()
        return bool((sums == 1 << PRECISION).all() and right)

    def codes(self) -> list[Code]:
        """The code of each channel."""
        rows = self.table.cpu().numpy().astype(np.int64)
        if self.tail:
            return [halved(row, Z_REACH, Z_OCTAVE) for row in rows]
        return [Code(row, Z_REACH) for row in rows]


def _places(symbols: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the fitted tables each symbol is, and how many others are there too.

    Two of int64, on the CPU, of the shape of the symbols, which are whole numbers.
    """
    codes = mixture_codes()
    starts = np.cumsum([0, *map(kinds, codes)])[:-1]
    indices = np.searchsorted(BORDERS, scale.detach().double().cpu().numpy())
    reach = np.array([code.reach for code in codes])[indices]
    octave = np.array([code.octave for code in codes])[indices]
    far = symbols.detach().abs().clamp(max=MOST).cpu().numpy().astype(np.int64)
    outside = far > reach
    number = doublings(np.maximum(far - reach - 1, 0) // octave + 1)
    places = starts[indices] + np.where(outside, reach + 1 + number, far)
    shared = np.where(outside, 2 * octave << number, 1)
    return torch.from_numpy(places), torch.from_numpy(shared)


class Conditional(nn.Module):
    """The distributions of y, given a mean and a scale each.

    Args:
        tail: mix the Gaussians with a heavy tail.

    Attributes:
        table: int32, shape (T,), from 1: the `folded` frequencies of fitted codes of all scales,
            one after the other. None until `fit`: the codes are those of the Gaussians or mixtures.
    """

    def __init__(self, tail: bool = False) -> None:
        super().__init__()
        self.tail = tail
        self.register_buffer("table", None)
        self.table: Tensor | None

    def likelihood(self, distance: Tensor, scale: Tensor) -> Tensor:
        """Probability of each number within +-0.5, as `gaussian_likelihood` has it."""
        return gaussian_likelihood(distance, scale, self.tail)

    def tabled(self, symbols: Tensor, scale: Tensor) -> Tensor:
        """Probability of each symbol in the fitted tables, without gradient.

        Args:
            symbols: float32 or float64, any shape, whole numbers.
            scale: standard deviation, the same shape, any finite values.

        Returns:
            Shape and dtype of the symbols, above 0 and up to 1.
        """
        assert self.table is not None
        places, shared = _places(symbols, scale)
        found = self.table.cpu()[places] / (shared * (1 << PRECISION))
        return found.to(symbols)

    def count(self, symbols: Tensor, scale: Tensor) -> Ints:
        """How often each entry of `table` stands for one of these symbols.

        Args:
            symbols: float32 or float64, any shape, whole numbers.
            scale: standard deviation, the same shape, any finite values.

        Returns:
            int64, shape (T,), from 0.
        """
        size = sum(map(kinds, mixture_codes()))
        found: Ints = torch.bincount(_places(symbols, scale)[0].flatten(), minlength=size).numpy()
        return found

    def expect(self) -> None:
        """Make room for fitted tables, which weights bring."""
        if self.tail:
            size = sum(map(kinds, mixture_codes()))
            self.table = torch.zeros(size, dtype=torch.int32)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if f"{prefix}table" in state_dict:
            self.expect()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def fit(self, counts: Ints) -> None:
        """Take tables that are fitted to counted symbols; from then on they are weights.

        Args:
            counts: int64, shape (T,), from 0, as `count` gives them.
        """
        if not self.tail:
            raise ValueError("without a tail there are no tables to fit")
        ends = np.cumsum([kinds(code) for code in mixture_codes()])
        codes = map(fitted, np.split(counts, ends[:-1]), mixture_codes())
        table = np.concatenate([folded(code) for code in codes])
        self.table = torch.from_numpy(table.astype(np.int32))

    def codes(self) -> list[Code]:
        """The code of each scale."""
        if self.table is None:
            return mixture_codes() if self.tail else gaussian_codes()
        found, start = [], 0
        table = self.table.cpu().numpy().astype(np.int64)
        for code in mixture_codes():
            found.append(unfolded(table[start : start + kinds(code)], code.reach, code.octave))
            start += kinds(code)
        return found

    def ready(self) -> bool:
        """Whether the tables can be coded with."""
        return all(map(sound, self.codes()))
