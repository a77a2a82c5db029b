"""Prompts in, those of them that spread most over the vocabulary out."""

from __future__ import annotations

import heapq
import math
import re
from array import array
from collections.abc import Sequence
from itertools import pairwise

_NOT_WORD = re.compile(r"[\W_]+")


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
