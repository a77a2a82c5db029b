"""Normalised prompts in, their parts (runs without spaces) out, each looked at only once.

Prompts of a million have some ten million parts, of which few are new: what a scorer wants to know
of a part is in a table, and what it says of a prompt is arithmetic over rows of that table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REMEMBERED = 1 << 18
"""Parts that are known at a time; when there are more, all is forgotten."""


class Split(NamedTuple):
    """Some prompts, and their parts one after the other.

    Attributes:
        texts: the prompts.
        ids: numbers of their parts: int64, shape (parts,).
        starts: where the parts of each prompt begin: int64, shape (texts,).
    """

    texts: Sequence[str]
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many parts each prompt has: int64, at least 1."""
        return np.diff(self.starts, append=len(self.ids))

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of a value of each part, by prompt."""
        return self._by_text(np.add, values)

    def ored(self, values: NDArray[Any]) -> NDArray[Any]:
        """The bits that any part has, by prompt."""
        return self._by_text(np.bitwise_or, values)

    def joined(self, values: NDArray[Any]) -> list[str]:
        """The texts that stand for the parts of each prompt, one behind the other."""
        flat, starts = values.tolist(), self.starts.tolist()
        ends = (self.starts + self.lengths).tolist()
        return ["".join(flat[start:end]) for start, end in zip(starts, ends, strict=True)]

    def _by_text(self, operation: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        if not len(self.starts):
            return values[:0]
        found: NDArray[Any] = operation.reduceat(values, self.starts)
        return found

    def distinct(self) -> NDArray[np.int64]:
        """How many different parts each prompt has."""
        row = np.repeat(np.arange(len(self.starts)), self.lengths)
        most = int(self.ids.max(initial=0)) + 1
        pairs = np.unique(row * most + self.ids)
        return np.bincount(pairs // most, minlength=len(self.starts))


class _Numbers(dict[str, int]):
    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self._parts = parts

    def __missing__(self, part: str) -> int:
        number = self[part] = len(self._parts)
        self._parts.append(part)
        return number


class Vocabulary:
    """Parts that were met, numbered in that order.

    Attributes:
        parts: all of them.
        turn: how often all was forgotten.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.turn = 0
        self._numbers = _Numbers(self.parts)

    def split(self, texts: Sequence[str]) -> Split:
        """The parts of normalised prompts; what was split before is no longer to be looked up."""
        if len(self.parts) > REMEMBERED:
            self.parts.clear()
            self._numbers.clear()
            self.turn += 1
        counts = np.fromiter((text.count(" ") + 1 for text in texts), np.int64, len(texts))
        starts = np.cumsum(counts) - counts
        parts = " ".join(texts).split(" ") if texts else []
        ids = np.fromiter(map(self._numbers.__getitem__, parts), np.int64, len(parts))
        return Split(texts, ids, starts)


class Table:
    """Values that depend on a part alone.

    Args:
        vocabulary: of the parts.
        look: a part in, its values out, always as many.
        width: how many.
        dtype: of the values; object: they are texts.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        look: Callable[[str], Sequence[Any]],
        width: int,
        dtype: type = np.int64,
    ) -> None:
        self._vocabulary, self._look, self._width = vocabulary, look, width
        self._turn = -1
        self._values: NDArray[Any] = np.empty((0, width), dtype)

    def of(self, split: Split) -> list[NDArray[Any]]:
        """Each of the values, of all parts: shape (parts,)."""
        if self._turn != self._vocabulary.turn:
            self._turn, self._values = self._vocabulary.turn, self._values[:0]
        if new := self._vocabulary.parts[len(self._values) :]:
            found = np.array([self._look(part) for part in new], self._values.dtype)
            self._values = np.concatenate([self._values, found.reshape(-1, self._width)])
        rows = self._values[split.ids]
        return [rows[:, number] for number in range(self._width)]


def all_of(
    function: Callable[[str], Any], split: Split, worth: NDArray[np.bool_], usual: Any
) -> list[Any]:
    """What a function says of each prompt; it is asked only about those that are worth it.

    Args:
        usual: what it says of the others.
    """
    found = [usual] * len(split.texts)
    for place in np.flatnonzero(worth).tolist():
        found[place] = function(split.texts[place])
    return found
