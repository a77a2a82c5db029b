"""Two pictures in, how far apart they are out; both are uint8, H x W x 3, as a decoder gives them.

PSNR is over all three channels of RGB. MS-SSIM is that of Wang, Simoncelli and Bovik (2003,
"Multiscale structural similarity for image quality assessment"): five scales, a Gaussian window of
11 pixels (sigma 1.5) without padding, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, the mean of the
three channels; the same as the pytorch-msssim package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline import AigiError
from pipeline.pixels import RGB

_UINT8 = np.dtype(np.uint8)
CAP_DB = 100.0
"""PSNR and MS-SSIM in dB of equal pictures, which have no finite one."""


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


def ms_ssim(one: RGB, other: RGB) -> MsSsim | None:
    """Multi-scale structural similarity of two pictures.

    A picture with a side of 160 pixels or less has fewer than five scales: the finest ones that
    fit, their exponents divided by their sum. None with a side below 11, where not even one fits.

    Raises:
        AigiError: the pictures are not of one size.
    """
    _check(one, other)
    from pipeline.training.distortion import scales_of

    scales = scales_of(*one.shape[:2])
    if not scales:
        return None
    if np.array_equal(one, other):
        return MsSsim(1.0, scales)
    import torch

    from pipeline.training import distortion

    with torch.inference_mode():
        x, y = (
            torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None])).float() / 255
            for picture in (one, other)
        )
        return MsSsim(min(1.0, float(distortion.ms_ssim(x, y, scales))), scales)
