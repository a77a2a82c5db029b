"""Images in, perceptual hashes out; hashes in, every pair of near ones out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.pairs import Pairs


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
