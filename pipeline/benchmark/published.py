"""A subset and a metric in, the published curves out.

`published_rd.csv` holds the rate-distortion curves of X. Duan, S. Ma, H. Liu and C. Jia,
"PKU-AIGI-500K: A Neural Compression Benchmark and Model for AI-Generated Images", IEEE Journal on
Emerging and Selected Topics in Circuits and Systems, 2024 (doi 10.1109/JETCAS.2024.3385629), read
off its figures, to 0.02 dB; markers that others hide are left out. They are of the paper's test
images, so they are drawn behind curves of other images for orientation alone.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib.resources import files

from pipeline.benchmark.bd import Curve

SUBSETS = {
    ("sd21-base", "none"): "SD2.1B",
    ("sd21", "none"): "SD2.1",
    ("sdxl", "none"): "SDXL1.0B (w/o watermark)",
    ("sdxl", "dwt-dct"): "SDXL1.0B (w/ watermark)",
    ("mj52", "none"): "MJ5.2",
    ("mod", "none"): "MOD",
}
"""Name of the paper for a source of the dataset and the mark of its images."""

ANCHOR = "VTM22.0"


@lru_cache(maxsize=1)
def _rows() -> dict[tuple[str, str], dict[str, Curve]]:
    text = (files("pipeline.benchmark") / "published_rd.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row in csv.DictReader(lines):
        codecs = points.setdefault((row["subset"], row["metric"]), {})
        codecs.setdefault(row["codec"], []).append((float(row["bpp"]), float(row["value"])))
    return {
        key: {
            codec: Curve(tuple(bpp for bpp, _ in found), tuple(value for _, value in found))
            for codec, found in codecs.items()
        }
        for key, codecs in points.items()
    }


def subsets() -> list[str]:
    """The paper's names of its test subsets."""
    return sorted({subset for subset, _ in _rows()})


def curves(subset: str, metric: str) -> dict[str, Curve]:
    """Curves by codec, in the names of the paper; empty where there are none.

    Args:
        subset: one of `subsets()`.
        metric: `psnr` or `ms_ssim_db`, both in dB.
    """
    return dict(_rows().get((subset, metric), {}))
