"""Two batches of images in, their distortion with gradients out."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales (Wang, Simoncelli and Bovik 2003, table 1)."""
WINDOW, SIGMA = 11, 1.5
LEAST_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""Least pixels of the shorter side for five scales: 161."""


_BLOCK = 64


@lru_cache(maxsize=4)
def _band(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Matrix that maps _BLOCK + WINDOW - 1 samples to the weighted means of _BLOCK windows."""
    with torch.inference_mode(False):  # it is kept, and training needs it with gradients
        at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
        line = torch.exp(-(at**2) / (2 * SIGMA**2))
        band = torch.zeros(_BLOCK + WINDOW - 1, _BLOCK, dtype=torch.float64)
        for start in range(_BLOCK):
            band[start : start + WINDOW, start] = line / line.sum()
        return band.to(device, dtype)


def _blurred_rows(x: Tensor) -> Tensor:
    """Weighted means along each row of planes ... x H x W, transposed: ... x (W - 10) x H.

    A product with a band matrix, block by block: several times as fast on a CPU as a convolution
    with one channel.
    """
    wanted = x.shape[-1] - WINDOW + 1
    blocks = -(-wanted // _BLOCK)
    x = F.pad(x, (0, blocks * _BLOCK - wanted))
    means = x.unfold(-1, _BLOCK + WINDOW - 1, _BLOCK) @ _band(x.device, x.dtype)
    return means.flatten(-2)[..., :wanted].transpose(-1, -2)


def _blurred(x: Tensor) -> Tensor:
    """Weighted means under every whole window of planes ... x H x W."""
    return _blurred_rows(_blurred_rows(x).contiguous())


def scales_of(height: int, width: int) -> int:
    """How many of the five scales fit, so that the window fits at the last one.

    All five fit from 161 pixels a side, as in pytorch-msssim; none below 11.
    """
    side = min(height, width)
    if side >= LEAST_SIDE:
        return len(WEIGHTS)
    found = 0
    while found < len(WEIGHTS) - 1 and side >= WINDOW:
        found += 1
        side = -(-side // 2)
    return found


def ms_ssim(x: Tensor, y: Tensor, scales: int = len(WEIGHTS)) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of each image.

    Windows of 11 x 11, sigma 1.5, only where they fit; halved by means of 2 x 2, a row or column
    of zeros added on both sides of an odd edge; channels apart, then averaged.

    Args:
        x, y: float tensors B x C x H x W in 0 to 1; H and W at least 161 for five scales.
        scales: how many of the five to use, finest first, for images that are too small for all;
            the exponents of fewer are divided by their sum.

    Returns:
        Float tensor of B values, at most 1.

    Raises:
        ValueError: a side is too short for so many scales.
    """
    if not 1 <= scales <= scales_of(*x.shape[-2:]):
        raise ValueError(
            f"MS-SSIM of {scales} scales needs larger images than {tuple(x.shape)}; five need "
            f"sides of {LEAST_SIDE} pixels"
        )
    c1, c2 = 0.01**2, 0.03**2
    share = 1.0 if scales == len(WEIGHTS) else sum(WEIGHTS[:scales])
    found = torch.ones(x.shape[:2], device=x.device, dtype=x.dtype)
    for scale, weight in enumerate(WEIGHTS[:scales]):
        if scale:
            odd = (x.shape[-2] % 2, x.shape[-1] % 2)
            x, y = (F.avg_pool2d(picture, 2, padding=odd) for picture in (x, y))
        mean_x, mean_y = _blurred(x), _blurred(y)
        means, both = mean_x**2 + mean_y**2, 2 * mean_x * mean_y
        variances = _blurred(x * x + y * y) - means
        contrast = (2 * _blurred(x * y) - both + c2) / (variances + c2)
        if scale == scales - 1:
            contrast = contrast * (both + c1) / (means + c1)
        # Below 0 a power has no value: such a scale counts as wholly unlike.
        found = found * F.relu(contrast.mean((-2, -1))) ** (weight / share)
    return found.mean(1)
