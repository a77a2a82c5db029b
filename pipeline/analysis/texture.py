"""A grey image in, grey level co-occurrence matrices (GLCM) and their properties out.

Definitions are those of Haralick (1973) as in scikit-image: the same matrices and the same
properties, at all 256 levels. It is faster because a pair of levels is one 16-bit number, counted
at once, and because most properties are sums over the difference of the two levels alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
ROWS = 256
PROPERTIES = (
    "contrast", "dissimilarity", "homogeneity", "asm", "energy", "correlation", "entropy",
)  # fmt: skip

Grey = NDArray[np.uint8]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_LEVEL = np.arange(LEVELS, dtype=np.float64)
_APART = np.abs(_LEVEL[:, None] - _LEVEL[None, :]).astype(np.intp).ravel()
# Of the difference of two levels: contrast, dissimilarity, homogeneity.
_OF_APART = np.stack([_LEVEL**2, _LEVEL, 1 / (1 + _LEVEL**2)])


def offset(distance: int, angle: float) -> tuple[int, int]:
    """Rows down and columns right from a pixel to its neighbour; the angle is in radians."""
    return round(math.sin(angle) * distance), round(math.cos(angle) * distance)


def cooccurrences(grey: Grey, distances: Sequence[int], angles: Sequence[float]) -> Counts:
    """How often each level is the neighbour of each other one, inside the image.

    Args:
        grey: uint8, H x W, 0 to 255.
        distances: in pixels.
        angles: in radians, from the right downwards.

    Returns:
        int64 counts from 0, 256 x 256 x D x A: level of a pixel, of its neighbour, distance, angle.
    """
    found = np.empty((len(distances), len(angles), LEVELS * LEVELS), np.int64)
    here = grey.astype(np.uint16) << 8
    height, width = grey.shape
    # What bincount wants, for so many rows that it stays in the processor's cache.
    memory = np.empty((ROWS, max(width, 1)), np.intp)
    for i, distance in enumerate(distances):
        for j, angle in enumerate(angles):
            down, right = offset(distance, angle)
            rows = slice(max(0, -down), max(0, height - max(0, down)))
            columns = slice(max(0, -right), max(0, width - max(0, right)))
            levels = here[rows, columns]
            neighbours = grey[
                max(0, down) : max(0, height + min(0, down)),
                max(0, right) : max(0, width + min(0, right)),
            ]
            counts = found[i, j]
            counts[:] = 0
            for top in range(0, len(levels), ROWS):
                band = levels[top : top + ROWS]
                pairs = memory.ravel()[: band.size]
                np.bitwise_or(band, neighbours[top : top + ROWS], out=pairs.reshape(band.shape))
                counts += np.bincount(pairs, minlength=LEVELS * LEVELS)
    return found.reshape(len(distances), len(angles), LEVELS, LEVELS).transpose(2, 3, 0, 1)


def properties(counts: Counts, symmetric: bool = True) -> dict[str, Floats]:
    """Properties of normalised matrices.

    Args:
        counts: int64, 256 x 256 x D x A, from 0, as `cooccurrences` returns them.
        symmetric: count every pair in both directions.

    Returns:
        float64, D x A, for each of PROPERTIES. Entropy is in bits. Correlation is 1 for a single
        level. Without any pair, all are 0 and correlation is 1.
    """
    matrices = counts.transpose(2, 3, 0, 1).reshape(-1, LEVELS, LEVELS)
    found = np.empty((len(PROPERTIES), len(matrices)))
    for number, matrix in enumerate(matrices):
        found[:, number] = _properties(matrix + matrix.T if symmetric else matrix)
    shape = counts.shape[2:]
    return {name: found[i].reshape(shape) for i, name in enumerate(PROPERTIES)}


def _properties(counts: Counts) -> tuple[float, ...]:
    matrix = counts.astype(np.float64)  # whole numbers below 2^53, so sums of them are exact
    total = float(matrix.sum())
    if total == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0
    apart = np.bincount(_APART, weights=matrix.ravel(), minlength=LEVELS)
    contrast, dissimilarity, homogeneity = (_OF_APART @ apart / total).tolist()
    there = matrix[matrix > 0]
    asm = float(there @ there) / total**2
    entropy = max(0.0, math.log2(total) - float(there @ np.log2(there)) / total)
    rows, columns = matrix.sum(axis=1) / total, matrix.sum(axis=0) / total
    one, other = float(rows @ _LEVEL), float(columns @ _LEVEL)
    spread = math.sqrt(rows @ (_LEVEL - one) ** 2) * math.sqrt(columns @ (_LEVEL - other) ** 2)
    shared = float((_LEVEL - one) @ matrix @ (_LEVEL - other)) / total
    # Counted, since rounding leaves some spread of a single level.
    flat = np.count_nonzero(rows) == 1 or np.count_nonzero(columns) == 1
    correlation = 1.0 if flat else shared / spread
    return contrast, dissimilarity, homogeneity, asm, math.sqrt(asm), correlation, entropy


def texture(
    grey: Grey, distances: Sequence[int], angles: Sequence[float], symmetric: bool = True
) -> dict[str, float]:
    """Each of PROPERTIES as the mean over distances and angles; grey is uint8, H x W, 0 to 255."""
    found = properties(cooccurrences(grey, distances, angles), symmetric)
    return {name: float(values.mean()) for name, values in found.items()}
