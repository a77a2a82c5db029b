"""The one table of metrics, and two images in, how far apart they are out.

Images are uint8, H x W x 3, as a decoder gives them. PSNR is over all three channels of RGB.
MS-SSIM is that of Wang, Simoncelli and Bovik (2003, "Multiscale structural similarity for image
quality assessment"): five scales, a Gaussian window of 11 pixels (sigma 1.5) without padding, C1 =
(0.01 * 255)^2, C2 = (0.03 * 255)^2, the mean of the three channels; the same as the pytorch-msssim
package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import AigiError
from pipeline.pixels import CAP_DB, RGB, decibels, squared_error

_UINT8 = np.dtype(np.uint8)


def _check(one: RGB, other: RGB) -> None:
    if one.shape != other.shape or one.ndim != 3 or {one.dtype, other.dtype} != {_UINT8}:
        raise AigiError(f"metrics: {one.dtype} {one.shape} and {other.dtype} {other.shape} differ")


def psnr(one: RGB, other: RGB) -> float:
    """PSNR over RGB of two images (uint8, H x W x 3), in dB; `CAP_DB` for equal ones.

    Raises:
        AigiError: the images are not of one size.
    """
    _check(one, other)
    return decibels(255**2 * one.size, squared_error(one, other))


def ms_ssim(one: RGB, other: RGB) -> float | None:
    """MS-SSIM of two images (uint8, H x W x 3): at most 1, which equal ones have.

    An image with a side of 160 pixels or less has fewer than five scales: the finest ones that
    fit, their exponents divided by their sum. None with a side below 11, where not even one fits.

    Raises:
        AigiError: the images are not of one size.
    """
    _check(one, other)
    if (scales := ms_ssim_scales(one, other)) is None:
        return None
    if np.array_equal(one, other):
        return 1.0
    import torch

    from pipeline.training import distortion

    with torch.inference_mode():
        x, y = (
            torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None])).float() / 255
            for picture in (one, other)
        )
        return min(1.0, float(distortion.ms_ssim(x, y, scales)))


def ms_ssim_scales(one: RGB, _: RGB) -> int | None:
    """How many of the five scales of MS-SSIM such images have room for; None without any.

    Both are uint8, H x W x 3, of one size; 1 to 5 scales.
    """
    from pipeline.training.distortion import scales_of

    return scales_of(*one.shape[:2]) or None


def ms_ssim_db(value: float) -> float:
    """MS-SSIM in dB: -10 log10(1 - value), `CAP_DB` at most."""
    return CAP_DB if value >= 1 else min(-10 * math.log10(1 - value), CAP_DB)


class Metric(NamedTuple):
    """One metric: its column of the measurements table, and all that is told about it.

    Attributes:
        name: of the column.
        title: what figures and pages call it; empty: the table of measurements alone has it.
        unit: of what tables and figures show; empty: none.
        short: what tables call it, where that is not the title.
        function: of the original and the decoded image (uint8, H x W x 3, of one size); None
            where it does not apply. No function: what `needs` names measures it.
        needs: setting of the section `benchmark` that asks for it; empty: it is always measured.
        db: from a mean to dB, which must rise with the rate: it has curves and BD-rates. None: it
            has none, and is shown as it is.
        form: of a cell of tables.
        caption: of a tile side by side; empty: not shown there.
        published: what `published_rd.csv` calls it; empty: it has none.
        exchange: what CompressAI's plots call it; empty: they do not.
        pooled: a mean over images with different marks says something.
        words: on the page, of how it is measured.
        kind: of the column.
    """

    name: str
    title: str = ""
    unit: str = ""
    short: str = ""
    function: Callable[[RGB, RGB], float | None] | None = None
    needs: str = ""
    db: Callable[[float], float] | None = None
    form: str = ".4f"
    caption: str = ""
    published: str = ""
    exchange: str = ""
    pooled: bool = True
    words: str = ""
    kind: pa.DataType = pa.float64()

    @property
    def axis(self) -> str:
        """Title and unit, for axes and headings."""
        return ", ".join(filter(None, (self.title, self.unit)))

    @property
    def heading(self) -> str:
        """Of its column in tables."""
        return ", ".join(filter(None, (self.short or self.title, self.unit)))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR (RGB)", "dB", "PSNR", psnr, db=float, form=".3f",
               caption="{:.2f} dB", published="psnr", exchange="psnr-rgb",
               words=f"PSNR is over all of uint8 RGB, {CAP_DB:g} dB for equal images."),
        Metric("ms_ssim", "MS-SSIM", "dB", function=ms_ssim, db=ms_ssim_db, form=".3f",
               caption="MS-SSIM {:.4f}", published="ms_ssim_db", exchange="ms-ssim-rgb",
               words="MS-SSIM has five scales, fewer up to 160 pixels a side (`ms_ssim_scales` of "
               "the table); it is averaged before it is given in dB."),
        Metric("ms_ssim_scales", function=ms_ssim_scales, kind=pa.int8()),
        Metric("lpips", "LPIPS", needs="lpips", words="LPIPS is that of AlexNet, version 0.1"),
        Metric("dists", "DISTS", needs="dists", words="DISTS is that of VGG-16"),
        # Cosine of the original's and the decoded one's vectors.
        Metric("clip_similarity", "CLIP similarity", needs="clip"),
        # Decoded less original; none without a prompt.
        Metric("clip_score_change", "change of clip_score", needs="clip", form="+.4f"),
        # Share of the bits read that are right, 0 to 1; none where the mark holds none. Marks
        # differ in what they survive: a mean over several kinds would say nothing.
        Metric("watermark_accuracy", "watermark bits right", needs="watermarks", form=".3f",
               pooled=False),
    )
}  # fmt: skip
"""All metrics by name, in the order of the columns."""


def shown(columns: Container[str]) -> list[Metric]:
    """The metrics of which a table of measurements has columns, but for those without a title."""
    return [metric for metric in METRICS.values() if metric.title and metric.name in columns]
