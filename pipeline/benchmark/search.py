"""A target in, the quality of a codec that comes nearest to it out, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline import AigiError


def nearest(
    qualities: Sequence[float], measure: Callable[[float], float], target: float
) -> tuple[float, float]:
    """The quality whose measure is nearest to the target, and that measure.

    Args:
        qualities: from low to high rate; `measure` is taken to rise along them.
        measure: bits a pixel or dB at a quality; called about log2 of their number times.
        target: in the same unit. One that is out of reach gives the first or last quality.

    Raises:
        AigiError: there are no qualities.
    """
    if not qualities:
        raise AigiError("search: no qualities to choose from")
    known: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in known:
            known[index] = measure(qualities[index])
        return known[index]

    low, high = 0, len(qualities) - 1
    while low < high:
        middle = (low + high) // 2
        if at(middle) < target:
            low = middle + 1
        else:
            high = middle
    # The first that reaches the target, or the last that there is; the one before may be nearer.
    candidates = [low] if low == 0 else [low - 1, low]
    best = min(candidates, key=lambda index: abs(at(index) - target))
    return qualities[best], at(best)
