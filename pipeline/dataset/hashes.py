"""Pictures in, perceptual hashes out; hashes in, every pair of near ones out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.bounds import Float64
from pipeline.dataset.pairs import Pairs


def perceptual_hash(rgb: NDArray[np.uint8]) -> int:
    """64 bits that stay nearly the same when a picture is encoded again or resized.

    Luma 0.299 R + 0.587 G + 0.114 B is averaged over 32 x 32 equal areas (pixels on a border
    count by their share), and goes through an orthonormal two-dimensional DCT-II. Of the 64
    frequencies (v, u) after the mean, by v + u and then v, each rounded to a multiple of 1/16, a
    bit is 1 if it is above their median; the first is the highest bit.

    Args:
        rgb: uint8 H x W x 3, at least 1 x 1.

    Returns: 0 to 2**64 - 1; 0 for a picture of one colour.

    Raises:
        ValueError: another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"perceptual_hash: {rgb.dtype} {rgb.shape}; expected uint8 H x W x 3")
    luma = rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    small = _areas(luma.shape[0]) @ luma @ _areas(luma.shape[1]).T
    angles = np.pi / 32 * np.outer(np.arange(32), np.arange(32) + 0.5)
    dct = np.cos(angles) * math.sqrt(2 / 32)
    dct[0] /= math.sqrt(2)
    spectrum = dct @ small @ dct.T
    frequencies = sorted(((v, u) for v in range(11) for u in range(11)), key=lambda f: (sum(f), f))
    values = np.rint([16 * spectrum[f] for f in frequencies[1:65]])
    bits = values > np.median(values)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _areas(size: int) -> Float64:
    """32 x size weights: the mean over each of 32 equal parts of a line of pixels."""
    edges = np.arange(33) * (size / 32)
    pixels = np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: Float64 = np.maximum(shared, 0) * (32 / size)
    return weights


def hash_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[Pairs]:
    """Every pair of hashes that differ in at most `distance` of 64 bits, once each.

    Of distance + 1 bands of bits, two such hashes share one: rows are sorted by each band in
    turn, and rows of one band are compared. Where the bands hold so little that this compares
    more than all pairs are, all pairs are compared. Memory: 60 bytes a row.

    Args:
        hashes: uint64 of n.
        distance: 0 to 64.

    Raises:
        ValueError: another distance.
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"hash_pairs: distance {distance}; expected 0 to 64")
    n = len(hashes)
    edges = [64 * i // (distance + 1) for i in range(distance + 2)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    work = 0
    for mask in masks:
        sizes = np.unique(hashes & mask, return_counts=True)[1].astype(np.float64)
        work += int((sizes * (sizes - 1) / 2).sum())
    if work >= n * (n - 1) // 2:
        masks = [np.uint64(0)]
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        ranked = hashes[order]
        band = ranked & mask
        ends = np.searchsorted(band, band, side="right")
        active = np.arange(n)
        step = 0
        while True:
            step += 1
            active = active[active + step < ends[active]]
            if not len(active):
                break
            other = active + step
            bits = np.bitwise_count(ranked[active] ^ ranked[other])
            near = np.flatnonzero(bits <= distance)
            first, second = active[near], other[near]
            differ = ranked[first] ^ ranked[second]
            # A pair that shares an earlier band came with that band.
            fresh = np.ones(len(near), np.bool_)
            for earlier in masks[:number]:
                fresh &= (differ & earlier) != 0
            if fresh.any():
                yield Pairs.ordered(
                    order[first[fresh]], order[second[fresh]], bits[near[fresh]].astype(np.float64)
                )
