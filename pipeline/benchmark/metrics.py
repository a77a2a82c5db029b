"""Two pictures in, how far apart they are out; both are uint8, H x W x 3, as a decoder gives them.

PSNR is over all three channels of RGB. MS-SSIM is that of Wang, Simoncelli and Bovik (2003,
"Multiscale structural similarity for image quality assessment"): five scales, a Gaussian window of
11 pixels (sigma 1.5) without padding, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, the mean of the
three channels; the same as the pytorch-msssim package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline import AigiError
from pipeline.pixels import RGB

if TYPE_CHECKING:
    from torch import Tensor

_UINT8 = np.dtype(np.uint8)
CAP_DB = 100.0
"""PSNR and MS-SSIM in dB of equal pictures, which have no finite one."""

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang et al. 2003)."""
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _check(one: RGB, other: RGB) -> None:
    if one.shape != other.shape or one.ndim != 3 or {one.dtype, other.dtype} != {_UINT8}:
        raise AigiError(f"metrics: {one.dtype} {one.shape} and {other.dtype} {other.shape} differ")


def psnr(one: RGB, other: RGB) -> float:
    """Peak signal-to-noise ratio over RGB, in dB (peak 255); `CAP_DB` for equal pictures.

    Raises:
        AigiError: the pictures are not of one size.
    """
    _check(one, other)
    # Exact: squares of differences are whole numbers.
    difference = one.astype(np.int32) - other
    error = float(np.einsum("ijk,ijk->", difference, difference, dtype=np.int64))
    if not error:
        return CAP_DB
    return min(CAP_DB, 10 * math.log10(255**2 * one.size / error))


@dataclass(frozen=True)
class MsSsim:
    """A value with the number of scales behind it.

    Attributes:
        value: at most 1, which equal pictures have.
        scales: 5, or fewer where the picture is too small for them.
    """

    value: float
    scales: int

    @property
    def db(self) -> float:
        """-10 log10(1 - value), `CAP_DB` at most."""
        return ms_ssim_db(self.value)


def ms_ssim_db(value: float) -> float:
    """MS-SSIM in dB: -10 log10(1 - value), `CAP_DB` at most."""
    return CAP_DB if value >= 1 else min(CAP_DB, -10 * math.log10(1 - value))


def scales_of(height: int, width: int) -> int:
    """How many of the five scales fit: at the last one the window must.

    Five from 161 pixels a side; none below 11.
    """
    side = min(height, width)
    found = 0
    while found < len(WEIGHTS) and side >= WINDOW:
        found += 1
        side = -(-side // 2)
    # The convention of pytorch-msssim: the smaller side must be above 160 for all five.
    return min(found, 4) if min(height, width) <= (WINDOW - 1) * 2**4 else found


BLOCK = 64


@lru_cache(maxsize=1)
def _band() -> Tensor:
    """Matrix that takes BLOCK + WINDOW - 1 samples to the weighted means of BLOCK windows."""
    import torch

    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    band = torch.zeros(BLOCK + WINDOW - 1, BLOCK, dtype=torch.float64)
    for start in range(BLOCK):
        band[start : start + WINDOW, start] = weights / weights.sum()
    return band.float()


def _blurred_rows(x: Tensor) -> Tensor:
    """Of planes N x H x W, the weighted means along each row, transposed: N x (W - 10) x H.

    A product with a band matrix, block by block: several times as fast on a CPU as a convolution
    with one channel.
    """
    import torch.nn.functional as F

    wanted = x.shape[-1] - WINDOW + 1
    blocks = -(-wanted // BLOCK)
    x = F.pad(x, (0, blocks * BLOCK - wanted))
    means = x.unfold(-1, BLOCK + WINDOW - 1, BLOCK) @ _band()
    return means.flatten(-2)[..., :wanted].transpose(-1, -2)


def _blurred(x: Tensor) -> Tensor:
    """Of planes N x H x W, the weighted means under every whole window."""
    return _blurred_rows(_blurred_rows(x).contiguous())


def ms_ssim(one: RGB, other: RGB) -> MsSsim | None:
    """Multi-scale structural similarity of two pictures.

    A picture with a side of 160 pixels or less has fewer than five scales: the finest ones that
    fit, their exponents divided by their sum. None with a side below 11, where not even one fits.

    Raises:
        AigiError: the pictures are not of one size.
    """
    _check(one, other)
    scales = scales_of(*one.shape[:2])
    if not scales:
        return None
    if np.array_equal(one, other):
        return MsSsim(1.0, scales)
    import torch
    import torch.nn.functional as F

    weights = np.array(WEIGHTS[:scales]) / (sum(WEIGHTS[:scales]) if scales < len(WEIGHTS) else 1)
    with torch.inference_mode():
        x, y = (
            torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float()
            for picture in (one, other)
        )
        value = torch.ones(3, dtype=torch.float64)
        for scale, weight in enumerate(weights):
            mean_x, mean_y = _blurred(x), _blurred(y)
            means, both = mean_x.square() + mean_y.square(), 2 * mean_x * mean_y
            covariances = 2 * _blurred(x * y) - both
            variances = _blurred(x * x + y * y) - means
            contrast = (covariances + C2) / (variances + C2)
            if scale == scales - 1:
                contrast = contrast * (both + C1) / (means + C1)
            # Negative similarity of a channel counts as none.
            value *= contrast.mean((1, 2)).double().clamp(min=0) ** weight
            if scale < scales - 1:
                odd = [side % 2 for side in x.shape[1:]]
                x, y = (F.avg_pool2d(planes, 2, padding=odd) for planes in (x, y))
        return MsSsim(min(1.0, float(value.mean())), scales)
