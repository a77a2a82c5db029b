"""Prompts in; near-duplicates found, and a diverse subset chosen.

Two prompts are near duplicates if the sets of their character 5-grams have a Jaccard similarity
of at least a threshold. Candidates come from MinHash LSH (`datasketch`); every one is checked
exactly, so nothing is dropped by mistake; pairs just above the threshold may be missed.
"""

from __future__ import annotations

import heapq
import math
import re
import zlib
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

SHINGLE = 5
PERMUTATIONS = 64
_NOT_WORD = re.compile(r"[\W_]+")


def shingles(text: str) -> set[str]:
    """Character 5-grams of the lower-cased words; the whole text where it is shorter."""
    plain = f" {_NOT_WORD.sub(' ', text.casefold()).strip()} "
    return {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """Share of common elements in all: 0 (none) to 1 (equal sets)."""
    return len(a & b) / len(a | b) if a or b else 1.0


class NearDuplicates:
    """Texts added one by one; finds the earlier text that a new one is too close to.

    Args:
        threshold: Jaccard similarity, 0 to 1, from which two texts count as one.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        # A missed pair is worse than a candidate more: each is checked exactly.
        self.lsh: Any = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        # Copies share the permutations, which take longer to draw than a text to hash.
        # The scheme is pinned, and the hash is one that no release of the library can change.
        self.empty: Any = MinHash(num_perm=PERMUTATIONS, scheme="affine32", hashfunc=zlib.crc32)
        self.texts: list[str] = []

    def add(self, text: str) -> str | None:
        """Add a text, or return the earlier one that is near it."""
        mine = shingles(text)
        hashed = self.empty.copy()
        hashed.update_batch([piece.encode() for piece in mine])
        for number in sorted(self.lsh.query(hashed)):
            if jaccard(mine, shingles(self.texts[number])) >= self.threshold:
                return str(self.texts[number])
        self.lsh.insert(len(self.texts), hashed, check_duplication=False)
        self.texts.append(text)
        return None


def features(text: str) -> list[str]:
    """Distinct words and word pairs of a text, in order of appearance."""
    words = _NOT_WORD.sub(" ", text.casefold()).split()
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    return list(dict.fromkeys(words + pairs))


def most_diverse(texts: Sequence[str], count: int, first: int = 0) -> list[int]:
    """Indices of `count` texts that spread over the vocabulary, in the order of choice.

    Greedy maximum of the sum over words and word pairs of sqrt(times chosen), each text weighed
    by the root of its length, else the longest would win. The gain of a text only falls as others
    are chosen (the sum is submodular), so a stale upper bound in a heap is checked again only
    when it comes to the top (Minoux 1978).

    Args:
        first: texts at the beginning that are chosen already.
    """
    # Numbers for features: half a million texts hold tens of millions of them.
    numbers: dict[str, int] = {}
    found = [
        array("I", (numbers.setdefault(feature, len(numbers)) for feature in features(text)))
        for text in texts
    ]
    times = array("I", bytes(4 * len(numbers)))

    def gain(i: int) -> float:
        total = math.fsum(math.sqrt(times[f] + 1) - math.sqrt(times[f]) for f in found[i])
        return total / math.sqrt(max(1, len(found[i])))

    chosen = list(range(min(first, count)))
    for i in chosen:
        for feature in found[i]:
            times[feature] += 1
    heap = [(-gain(i), i) for i in range(len(chosen), len(texts))]
    heapq.heapify(heap)
    while heap and len(chosen) < count:
        _, i = heap[0]
        fresh = -gain(i)
        if len(heap) > 1 and (fresh, i) > min(heap[1:3]):
            heapq.heapreplace(heap, (fresh, i))
            continue
        heapq.heappop(heap)
        chosen.append(i)
        for feature in found[i]:
            times[feature] += 1
    return chosen
