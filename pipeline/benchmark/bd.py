"""Two rate-distortion curves in, their mean distance out: BD-rate in per cent, BD-PSNR in dB.

G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33 (2001). The
curves are interpolated over the logarithm of the rate: `pchip` (piecewise cubic Hermite, as JVET's
tools do), `akima`, or `cubic`, the polynomial of degree three of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline import AigiError

Interpolation = Literal["pchip", "akima", "cubic"]
Array = npt.NDArray[np.float64]

LEAST_POINTS = {"pchip": 2, "akima": 3, "cubic": 4}
# Of the shorter curve: with less in common, the mean says little about either.
LEAST_OVERLAP = 0.1
RESAMPLES = 500


class NoComparison(AigiError):
    """Two curves that cannot be compared; the text is the reason."""


@dataclass(frozen=True)
class Curve:
    """A rate-distortion curve.

    Attributes:
        rates: bits a pixel, above 0.
        values: quality, higher is better: PSNR or MS-SSIM in dB.
    """

    rates: tuple[float, ...]
    values: tuple[float, ...]

    def sorted(self, name: str, least: int) -> tuple[Array, Array]:
        """Logarithms of the rates, and values (float64), both strictly rising.

        Each is of shape (Q,) for Q points, finite: log10 of bits a pixel, and the curve's values.

        Raises:
            NoComparison: too few points, values that are no numbers, or a higher rate with a
                lower or equal quality.
        """
        rates, values = np.array(self.rates, float), np.array(self.values, float)
        if len(rates) < least:
            raise NoComparison(f"{name}: {len(rates)} points, {least} are needed")
        if not (np.isfinite(rates).all() and np.isfinite(values).all() and (rates > 0).all()):
            raise NoComparison(f"{name}: a rate or value is no finite number above 0")
        order = np.argsort(rates, kind="stable")
        rates, values = rates[order], values[order]
        for low, high in zip(range(len(rates)), range(1, len(rates)), strict=False):
            if rates[low] == rates[high] or values[low] >= values[high]:
                raise NoComparison(
                    f"{name}: not monotone: {values[low]:.3f} at {rates[low]:.4f} bpp, "
                    f"{values[high]:.3f} at {rates[high]:.4f} bpp"
                )
        return np.log10(rates), values


@dataclass(frozen=True)
class Difference:
    """A mean distance between two curves.

    Attributes:
        value: per cent (BD-rate) or dB (BD-PSNR).
        overlap: share of the shorter curve's range that both have, 0 to 1.
        low, high: ends of the common range: dB (BD-rate) or bpp (BD-PSNR).
    """

    value: float
    overlap: float
    low: float
    high: float


def _mean(x: Array, y: Array, low: float, high: float, how: Interpolation) -> float:
    """Mean of y over x from low to high."""
    from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

    if how == "cubic":
        # Centred, or the fit loses digits at 40 dB.
        middle = float(x.mean())
        polynomial = np.polynomial.Polynomial.fit(x - middle, y, 3).integ()
        area = polynomial(high - middle) - polynomial(low - middle)
    elif how == "akima":
        area = Akima1DInterpolator(x, y).integrate(low, high)
    else:
        area = PchipInterpolator(x, y).integrate(low, high)
    return float(area) / (high - low)


def _compare(
    anchor: tuple[Array, Array], test: tuple[Array, Array], unit: str, how: Interpolation
) -> tuple[float, float, float, float]:
    """Difference of the means of y over the common range of x, the range, and its share."""
    (x1, y1), (x2, y2) = anchor, test
    low, high = float(max(x1[0], x2[0])), float(min(x1[-1], x2[-1]))
    shorter = float(min(x1[-1] - x1[0], x2[-1] - x2[0]))
    if high <= low or (high - low) / shorter < LEAST_OVERLAP:
        raise NoComparison(
            f"the curves do not overlap enough: {x1[0]:.3f} to {x1[-1]:.3f} and {x2[0]:.3f} to "
            f"{x2[-1]:.3f} {unit}"
        )
    difference = _mean(x2, y2, low, high, how) - _mean(x1, y1, low, high, how)
    return difference, (high - low) / shorter, low, high


def bd_rate(anchor: Curve, test: Curve, how: Interpolation = "pchip") -> Difference:
    """By how many per cent more rate the test needs at equal quality; negative: it needs less.

    Raises:
        NoComparison: a curve has too few points or is not monotone, or they share too little.
    """
    curves = _checked(anchor, test, how)
    (logs1, values1), (logs2, values2) = curves
    found, overlap, low, high = _compare((values1, logs1), (values2, logs2), "dB", how)
    return Difference(100 * (10**found - 1), overlap, low, high)


def bd_quality(anchor: Curve, test: Curve, how: Interpolation = "pchip") -> Difference:
    """By how many dB the test is better at equal rate: BD-PSNR, where values are PSNR.

    Raises:
        NoComparison: as `bd_rate`.
    """
    found, overlap, low, high = _compare(*_checked(anchor, test, how), "log10 bpp", how)
    return Difference(found, overlap, 10**low, 10**high)


def _checked(
    anchor: Curve, test: Curve, how: Interpolation
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    least = LEAST_POINTS[how]
    return anchor.sorted("anchor", least), test.sorted("test", least)


Points = Mapping[str, tuple[Array, Array]]
"""Rates and values of one codec by image: each float64, shape (Q,) over the qualities, finite."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval over resampled images.

    Attributes:
        low, high: per cent.
        images: that both codecs have.
        refused: share of the resamples whose curves could not be compared.
    """

    low: float
    high: float
    images: int
    refused: float


def _curve(rates_and_values: Array) -> Curve:
    rates, values = rates_and_values.tolist()
    return Curve(tuple(rates), tuple(values))


def mean_curve(points: Sequence[tuple[Array, Array]]) -> Curve:
    """The curve of the means over images, quality by quality.

    Args:
        points: of each image, from 1: rates (bits a pixel, above 0) and values, each float64, shape
            (Q,), finite.
    """
    return _curve(np.array(points).mean(0))


def bootstrap(
    anchor: Points,
    test: Points,
    how: Interpolation = "pchip",
    compare: Callable[[Curve, Curve, Interpolation], Difference] = bd_rate,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """How much a BD-rate would move with other images: percentiles of resampled images.

    Both codecs get the same images in every resample. None where fewer than two images are shared,
    or fewer than half of the resamples can be compared.

    Args:
        anchor, test: float64, shape (Q,), finite, by image; rates are in bits a pixel, above 0.
        how: the interpolation.
        compare: from the curves of the means to the difference that is resampled.
        resamples: how many.
        seed: of the generator that draws them.
    """
    shared = sorted(set(anchor) & set(test))
    if len(shared) < 2:
        return None
    random = np.random.default_rng(seed)
    stacked = [np.array([of[name] for name in shared]) for of in (anchor, test)]
    found: list[float] = []
    for chosen in random.integers(0, len(shared), (resamples, len(shared))):
        one, two = (_curve(points[chosen].mean(0)) for points in stacked)
        try:
            found.append(compare(one, two, how).value)
        except NoComparison:
            continue
    if len(found) < resamples / 2:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(low), float(high), len(shared), 1 - len(found) / resamples)
