"""Two batches of pictures in, how far they are apart out, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales (Wang, Simoncelli and Bovik 2003, table 1)."""
WINDOW, SIGMA = 11, 1.5
LEAST_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""Pixels of the shorter side that five scales need: 161."""


def _window(like: Tensor) -> Tensor:
    at = torch.arange(WINDOW, device=like.device, dtype=like.dtype) - WINDOW // 2
    line = torch.exp(-(at**2) / (2 * SIGMA**2))
    return line / line.sum()


def _blurred(x: Tensor, line: Tensor) -> Tensor:
    channels = x.shape[1]
    across = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return F.conv2d(F.conv2d(x, across, groups=channels), down, groups=channels)


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of each picture.

    Windows of 11 x 11, sigma 1.5, only where they fit; halved by means of 2 x 2, a row or column
    of zeros added on both sides of an odd edge; channels apart, then averaged.

    Args:
        x, y: B x C x H x W, 0 to 1; H and W at least 161.

    Returns:
        B numbers, at most 1.

    Raises:
        ValueError: a side is too short for five scales.
    """
    if min(x.shape[-2:]) < LEAST_SIDE:
        raise ValueError(f"MS-SSIM needs sides of {LEAST_SIDE} pixels, got {tuple(x.shape)}")
    c1, c2 = 0.01**2, 0.03**2
    line = _window(x)
    found = torch.ones(x.shape[:2], device=x.device, dtype=x.dtype)
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            odd = (x.shape[-2] % 2, x.shape[-1] % 2)
            x, y = (F.avg_pool2d(picture, 2, padding=odd) for picture in (x, y))
        mean_x, mean_y = _blurred(x, line), _blurred(y, line)
        var_x = _blurred(x * x, line) - mean_x**2
        var_y = _blurred(y * y, line) - mean_y**2
        covariance = _blurred(x * y, line) - mean_x * mean_y
        contrast = (2 * covariance + c2) / (var_x + var_y + c2)
        if scale == len(WEIGHTS) - 1:
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            contrast = contrast * luminance
        # Below 0 a power has no value: such a scale counts as wholly unlike.
        found = found * F.relu(contrast.mean((-2, -1))) ** weight
    return found.mean(1)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean square error over values from 0 to 1."""
    return -10 * torch.log10(mse)
