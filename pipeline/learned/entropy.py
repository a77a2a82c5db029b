"""Latents and their distributions in, likelihoods for training and integer tables for coding out.

Training wants likelihoods with gradients; coding wants integers that are the same on every machine.
The tables of the Gaussians are made by additions, multiplications, divisions and square roots
alone, which IEEE 754 rounds the same everywhere. The tables of z are made once, by `update`, and
are part of the weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.learned.layers import lower_bound

Ints = npt.NDArray[np.int64]

PRECISION = 24
"""Frequencies of a table add up to 2^24: constriction's precision for 32-bit words."""
LEAST_SCALE = 0.11
LEAST_LIKELIHOOD = 1e-9
TAIL_SHARE = 2.0**-10
"""Of the heavy tail in a mixture. In a codec that was trained without, 1 to 4 in 1,000 symbols of
small scales are beyond four standard deviations; each of the others pays 0.001 bits for them."""
TAIL_WIDTH, LEAST_TAIL_WIDTH = 2.0, 0.5
"""Of the tail: so many standard deviations, and so many steps more, have half of its mass."""
Z_TAIL_WIDTH = 4.0
Z_REACH = 64
"""z is coded as -64 … 64 around its median; what lies outside is escaped."""


def _scales() -> npt.NDArray[np.float64]:
    # 64 steps of equal ratio, as in Ballé 2018. Only multiplications: the same everywhere.
    ratio = 1.1309463943519327  # (256 / 0.11) ** (1 / 63)
    scales = [LEAST_SCALE]
    for _ in range(63):
        scales.append(scales[-1] * ratio)
    return np.array(scales)


SCALES = _scales()
# A scale takes the nearest step, by ratio.
BORDERS = np.sqrt(SCALES[1:] * SCALES[:-1])


def _normal_cdf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(N(0, 1) < x) for x <= 0, from elementwise IEEE operations alone.

    erf(a) = 2 / sqrt(pi) * exp(-a^2) * sum(2^n a^(2n+1) / (2n+1)!!), and 1 / exp(-a^2) by its own
    series: all terms are positive, so nothing cancels.
    """
    a = np.minimum(np.abs(x), 12.0) * 0.7071067811865476
    square = a * a
    exponential = np.ones_like(a)
    series, term, factor = a.copy(), a.copy(), np.ones_like(a)
    for n in range(1, 400):
        factor = factor * square / n
        exponential = exponential + factor
        term = term * (2.0 * square) / (2 * n + 1)
        series = series + term
    found: npt.NDArray[np.float64] = 0.5 - 0.5 * (1.1283791670955126 * series / exponential)
    return found


def integer_table(probabilities: npt.NDArray[np.float64], escape: float) -> Ints:
    """Frequencies that add up to 2^24, none of them 0.

    Args:
        probabilities: of symbols that follow each other, float64, shape (S,), 0 to 1.
        escape: probability of all other symbols.

    Returns:
        int64, shape (S + 1,), from 1: the symbols', and the escape's at the end.
    """
    all_of_them = np.append(np.clip(probabilities, 0.0, None), max(escape, 0.0))
    free = (1 << PRECISION) - len(all_of_them)
    table: Ints = np.floor(all_of_them * free).astype(np.int64) + 1
    # Rounding down leaves some; the likeliest symbol takes them.
    table[int(np.argmax(table))] += (1 << PRECISION) - int(table.sum())
    return table


@lru_cache(maxsize=1)
def gaussian_tables() -> list[Ints]:
    """A table for each of `SCALES`: symbols -K … K around 0, then the escape.

    K is at least 5.5 standard deviations, so that an escape is as rare as 1 / 2^24.

    Returns:
        64 of int64, shape (2K + 2,) with a K for each: frequencies from 1 that add up to 2^24.
    """
    tables = []
    for scale in SCALES:
        reach = int(np.ceil(5.5 * scale)) + 1
        # Up to the middle; the other half is its mirror image.
        edges = _normal_cdf((np.arange(-reach, 1) - 0.5) / scale)
        half = np.diff(edges)
        middle = 1.0 - 2.0 * edges[-1]
        whole = np.concatenate([half, [middle], half[::-1]])
        tables.append(integer_table(whole, 2.0 * float(edges[0])))
    return tables


def range_model(table: Ints) -> Any:
    """constriction's model with exactly these frequencies.

    It gives each symbol 1 and shares the rest by weight; weights that add up to the rest are
    taken as they are (tested against the states of its ANS coder).

    Args:
        table: int64, shape (S,), frequencies from 1 that add up to 2^24.
    """
    import constriction

    return constriction.stream.model.Categorical((table - 1).astype(np.float64), perfect=False)


@lru_cache(maxsize=1)
def gaussian_models() -> list[Any]:
    """constriction's model of each of the 64 `gaussian_tables`."""
    return [range_model(table) for table in gaussian_tables()]


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
        tables = []
        for edges in cumulatives:
            inside = np.diff(edges)
            tables.append(integer_table(inside, 1.0 - float(inside.sum())))
        self.table.copy_(torch.from_numpy(np.stack(tables)))

    def ready(self) -> bool:
        """Whether the tables were made, and are tables."""
        sums = self.table.sum(dim=1, dtype=torch.int64)
        return bool((sums == 1 << PRECISION).all() and (self.table > 0).all())

    def models(self) -> list[Any]:
        """constriction's model of each channel."""
        return [range_model(table) for table in self.table.cpu().numpy().astype(np.int64)]
