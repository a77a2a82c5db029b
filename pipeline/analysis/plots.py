"""The `characteristics` table in, densities by source as SVG charts out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analysis.effects import by_source
from pipeline.charts import Line, lines

Floats = NDArray[np.float64]

POINTS = 200
MOST = 20_000
"""Most images of a source in a density: those with the lowest ids, which are hashes."""
FIGURES: dict[str, dict[str, tuple[str, str]]] = {
    "texture": {
        "glcm_contrast": ("contrast", "levels²"),
        "glcm_homogeneity": ("homogeneity", "0 to 1"),
        "glcm_dissimilarity": ("dissimilarity", "levels"),
        "glcm_correlation": ("correlation", "-1 to 1"),
        "glcm_asm": ("ASM", "log10; 0: a single level"),
        "glcm_entropy": ("entropy", "bits"),
    },
    "color": {
        f"{channel}_{moment}": (f"{channel[0].upper()}{number}", f"{words}, levels")
        for number, (moment, words) in enumerate(
            (("mean", "mean"), ("std", "standard deviation"), ("third", "third moment")), 1
        )
        for channel in ("red", "green", "blue")
    },
    "compressibility": {
        "colorfulness": ("colourfulness", "0: grey"),
        "saturation": ("saturation", "0 to 1"),
        "gradient_energy": ("gradient energy", "levels²"),
        "spectral_slope": ("spectral slope", "log power over log frequency"),
        "noise_level": ("noise level", "levels"),
        "png_bpp": ("PNG", "bits a pixel"),
        "jxl_bpp": ("lossless JPEG XL", "bits a pixel"),
    },
}
"""Figures, their columns, and the title and unit of each."""
LOGARITHMIC = frozenset({"glcm_asm"})
"""Columns above 0 whose few large values would push all others into one corner."""


def densities(title: str, across: str, values: Mapping[str, Floats]) -> str | None:
    """Kernel densities (Gaussian, Scott's rule) of a number, a line for each source.

    The axis goes from the lowest half per cent of any source to the highest. A source with fewer
    than three distinct values has no density; the legend shows that.

    Args:
        title: above the plot.
        across: what the number is, with its unit.
        values: float64, shape (n,), finite, by source.

    Returns:
        SVG; None if no source has a density.
    """
    from scipy.stats import gaussian_kde

    good = {name: numbers for name, numbers in values.items() if len(np.unique(numbers)) > 2}
    if not good:
        return None
    ends = np.array([np.quantile(numbers, (0.005, 0.995)) for numbers in good.values()])
    grid = np.linspace(ends[:, 0].min(), ends[:, 1].max(), POINTS)
    series = []
    for name, numbers in values.items():
        if name in good:
            line = Line(f"{name} ({len(numbers):,})", grid, gaussian_kde(numbers)(grid))
        else:
            line = Line(f"{name} ({len(numbers):,}, no density)", np.empty(0), np.empty(0))
        series.append(line)
    return lines(title, series, across, "density")


def figures(table: pa.Table) -> dict[str, list[str]]:
    """Charts of every figure for which the table has numbers."""
    some = _some(table)
    found: dict[str, list[str]] = {}
    for name, columns in FIGURES.items():
        values = by_source(some, list(columns))
        for column in LOGARITHMIC & values.keys():
            values[column] = {source: np.log10(n) for source, n in values[column].items()}
        charts = [densities(*words, values[column]) for column, words in columns.items()]
        found[name] = [chart for chart in charts if chart is not None]
    return {name: charts for name, charts in found.items() if charts}


def _some(table: pa.Table) -> pa.Table:
    """At most MOST rows of each source."""
    if table.num_rows <= MOST:
        return table
    order = table.sort_by([("source", "ascending"), ("image_id", "ascending")])
    sources = np.array(order["source"].to_pylist())
    first = np.flatnonzero(np.r_[True, sources[1:] != sources[:-1]])
    rank = np.arange(len(sources)) - np.repeat(first, np.diff(np.r_[first, len(sources)]))
    return order.filter(pa.array(rank < MOST))
