"""Distributions of latents in, integer tables out, which are the same on every machine.

The tables of Gaussians, with and without a tail, are made by additions, multiplications, divisions
and square roots alone, which IEEE 754 rounds the same everywhere. A codec with a tail can bring
tables of its own instead, fitted to what it codes: they are part of its weights, as those of z are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PRECISION = 24
"""Frequencies of a table add up to 2^24: constriction's precision for 32-bit words."""
MOST = (1 << 15) - 1
"""Symbols stay within +-32767, and so do means."""
LEAST_SCALE = 0.11
TAIL_SHARE = 2.0**-10
"""Of the heavy tail in a mixture. In a codec that was trained without, 1 to 4 in 1,000 symbols of
small scales are beyond four standard deviations; each of the others pays 0.001 bits for them."""
TAIL_WIDTH, LEAST_TAIL_WIDTH = 2.0, 0.5
"""Of the tail: so many standard deviations, and so many steps more, have half of its mass."""
Z_TAIL_WIDTH = 4.0
Z_REACH, Z_OCTAVE = 64, 64
"""z is coded as -64 … 64 around its median; what lies outside is escaped, with a tail in octaves
from 64 distances."""
BELIEF = 256
"""A fitted table begins as if so many symbols had been counted, in the mixture's shares."""
RARE = 64
"""What was counted less often keeps the mixture's share, if that is larger."""


def _scales() -> Floats:
    # 64 steps of equal ratio, as in Ballé 2018. Only multiplications: the same everywhere.
    ratio = 1.1309463943519327  # (256 / 0.11) ** (1 / 63)
    scales = [LEAST_SCALE]
    for _ in range(63):
        scales.append(scales[-1] * ratio)
    return np.array(scales)


SCALES = _scales()
# A scale takes the nearest step, by ratio.
BORDERS = np.sqrt(SCALES[1:] * SCALES[:-1])


@dataclass(frozen=True, eq=False)
class Code:
    """A table, and what its symbols stand for.

    Attributes:
        table: int64, shape (S,), from 1, adding up to 2^24: frequencies of -reach … reach, then of
            what lies outside.
        reach: the largest distance from 0 that has a symbol of its own.
        octave: 0: all that lies outside is one symbol, and 17 bits follow. Else a power of two: the
            next `octave` distances are one symbol, the next 2 * octave one, and so on to 32767;
            sign and place in the octave follow, all equally likely.
    """

    table: Ints
    reach: int
    octave: int = 0

    @cached_property
    def model(self) -> Any:
        """constriction's model of the table."""
        return range_model(self.table)


def octaves(reach: int, octave: int) -> int:
    """How many octaves, the first of `octave` distances, lead from beyond `reach` to 32767."""
    count = 0
    while reach + octave * ((1 << count) - 1) < MOST:
        count += 1
    return count


def octave_starts(reach: int, octave: int) -> Floats:
    """The border before each octave: float64, shape (octaves,), from reach + 0.5."""
    first: Ints = octave * ((1 << np.arange(octaves(reach, octave))) - 1)
    return first.astype(np.float64) + reach + 0.5


def _normal_cdf(x: Floats) -> Floats:
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
    found: Floats = 0.5 - 0.5 * (1.1283791670955126 * series / exponential)
    return found


def tail_cdf(x: Floats, width: float) -> Floats:
    """P(tail < x) for x <= 0, float64 of the shape of x: a power law, half of it within width."""
    found: Floats = 0.5 * width / (width - x)
    return found


def integer_table(probabilities: Floats, escape: float) -> Ints:
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


def halved(table: Ints, reach: int, octave: int) -> Code:
    """The code of a table with one escape, whose octaves each have half of what is left of it.

    Args:
        table: int64, shape (2 * reach + 2,), from 1; the last at least the number of octaves.
    """
    left = int(table[-1])
    count = octaves(reach, octave)
    outside = []
    for after in range(count - 1, -1, -1):
        outside.append(min((left + 1) // 2, left - after) if after else left)
        left -= outside[-1]
    return Code(np.append(table[:-1], outside), reach, octave)


def _reach(scale: float) -> int:
    return int(np.ceil(5.5 * scale)) + 1


@lru_cache(maxsize=1)
def gaussian_codes() -> list[Code]:
    """A code for each of `SCALES`: symbols -K … K around 0, then the escape.

    K is at least 5.5 standard deviations, so that an escape is as rare as 1 / 2^24.
    """
    codes = []
    for scale in SCALES:
        reach = _reach(scale)
        # Up to the middle; the other half is its mirror image.
        edges = _normal_cdf((np.arange(-reach, 1) - 0.5) / scale)
        half = np.diff(edges)
        whole = np.concatenate([half, [1.0 - 2.0 * edges[-1]], half[::-1]])
        codes.append(Code(integer_table(whole, 2.0 * float(edges[0])), reach))
    return codes


@lru_cache(maxsize=1)
def mixture_codes() -> list[Code]:
    """A code for each of `SCALES`: of the Gaussian and its tail, which goes on in octaves."""
    codes = []
    for scale in SCALES:
        reach = _reach(scale)
        width = TAIL_WIDTH * float(scale) + LEAST_TAIL_WIDTH
        octave = 1
        # An octave has less than half of what is left, so that its shares are nearly equal.
        while 4 * octave <= width + reach:
            octave *= 2
        steps = np.arange(-reach, 1, dtype=np.float64) - 0.5
        normal = _normal_cdf(steps / scale)
        edges = (1.0 - TAIL_SHARE) * normal + TAIL_SHARE * tail_cdf(steps, width)
        left = np.append(tail_cdf(-octave_starts(reach, octave), width), 0.0)
        outside = TAIL_SHARE * -np.diff(left)
        outside[0] += (1.0 - TAIL_SHARE) * normal[0]
        shares = 2.0 * np.concatenate([[0.5 - edges[-1]], np.diff(edges)[::-1], outside])
        codes.append(_even(shares, reach, octave))
    return codes


def _even(shares: Floats, reach: int, octave: int) -> Code:
    """The code of probabilities of 0, of +-1 … +-reach, each of both, and of the octaves."""
    twice = _twice(reach, len(shares))
    free = (1 << PRECISION) - int(twice.sum())
    half: Ints = np.floor(shares / twice * free).astype(np.int64) + 1
    # Rounding down leaves some; 0 takes it, so that both signs stay alike.
    half[0] += (1 << PRECISION) - int((twice * half).sum())
    return unfolded(half, reach, octave)


def _twice(reach: int, size: int) -> Ints:
    """How many symbols of the table each of `size` folded ones is: 2 for +-1 … +-reach, else 1."""
    twice = np.ones(size, np.int64)
    twice[1 : reach + 1] = 2
    return twice


def kinds(code: Code) -> int:
    """How many symbols of a code are different but for the sign: 0 … reach, and the octaves."""
    return len(code.table) - code.reach


def folded(code: Code) -> Ints:
    """The frequencies of 0, 1 … reach and the octaves: int64, shape (kinds,), from 1.

    Those of -1 … -reach are the same as those of 1 … reach.
    """
    return code.table[code.reach :]


def unfolded(half: Ints, reach: int, octave: int) -> Code:
    """The code whose `folded` frequencies are given, int64, shape (kinds,).

    It can be coded with if they are from 1 and the table adds up to 2^24: see `sound`.
    """
    return Code(np.concatenate([half[reach:0:-1], half]), reach, octave)


def sound(code: Code) -> bool:
    """Whether a table can be coded with: frequencies from 1 that add up to 2^24."""
    return bool(code.table.min() >= 1 and code.table.sum() == 1 << PRECISION)


def doublings(numbers: Ints) -> Ints:
    """How often 1 can be doubled up to each number, int64 from 1: 0 for 1, 1 for 2 and 3, …"""
    # The exponent of a float is exact: 2^(exponent - 1) <= x < 2^exponent.
    return np.frexp(numbers)[1].astype(np.int64) - 1


def fitted(counts: Ints, prior: Code) -> Code:
    """The code of symbols that were counted.

    It begins with `BELIEF` symbols in the shares of the prior, and what was counted fewer than
    `RARE` times keeps its share there: images will be coded that were not counted.

    Args:
        counts: int64, shape (kinds,), from 0: of 0, of +-1 … +-reach, and of the octaves.
        prior: code of the mixture.
    """
    expected = _twice(prior.reach, kinds(prior)) * folded(prior) / float(1 << PRECISION)
    shares = (counts + BELIEF * expected) / (counts.sum() + BELIEF)
    shares = np.where(counts < RARE, np.maximum(shares, expected), shares)
    return _even(shares / shares.sum(), prior.reach, prior.octave)


def range_model(table: Ints) -> Any:
    """constriction's model with exactly these frequencies.

    It gives each symbol 1 and shares the rest by weight; weights that add up to the rest are
    taken as they are (tested against the states of its ANS coder).

    Args:
        table: int64, shape (S,), frequencies from 1 that add up to 2^24.
    """
    import constriction

    return constriction.stream.model.Categorical((table - 1).astype(np.float64), perfect=False)
