"""Columns of many small tables in, one array of all their values out, at few bytes a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_START = 1 << 12
_LENGTH = 32  # hex digits of an id
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)
BLOCK = 1 << 20
"""Rows that are worked on at once, where a wider copy of them is needed."""


class Growing:
    """An array that grows at its end.

    Twice the room is taken when there is too little. What is not written yet takes no memory of
    the machine, so at its peak the array takes little more than its values.
    """

    def __init__(self, dtype: Any, length: int = 0, fill: float = 0) -> None:
        self._held: NDArray[Any] = np.empty(max(_START, length), dtype)
        self._held[:length] = fill
        self._length = length

    def __len__(self) -> int:
        return self._length

    def add(self, values: NDArray[Any]) -> None:
        """Append values, shape (n,), of a dtype that this one holds."""
        end = self._length + len(values)
        if end > len(self._held):
            wider = np.empty(2 * end, np.result_type(self._held, values))
            wider[: self._length] = self._held[: self._length]
            self._held = wider
        elif np.result_type(self._held, values) != self._held.dtype:
            self._held = self._held.astype(np.result_type(self._held, values))
        self._held[self._length : end] = values
        self._length = end

    def values(self) -> NDArray[Any]:
        """All that was appended: a view, valid until more is."""
        return self._held[: self._length]


def fingerprints(names: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each string, shape (n,): equal strings have equal ones, and others seldom do.

    Ids of 32 characters take nanoseconds. Whoever needs certainty compares the strings
    themselves where fingerprints are equal.
    """
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
        if isinstance(names, pa.ChunkedArray):  # none, or too many bytes for one
            parts = [fingerprints(chunk) for chunk in names.chunks]
            return np.concatenate(parts) if parts else np.empty(0, np.uint64)
    lengths = pc.binary_length(names).fill_null(0).to_numpy(zero_copy_only=False)
    usual = lengths == _LENGTH
    found = np.zeros(len(names), np.uint64)
    if usual.all():
        found[:] = _mixed(names)
    else:
        found[usual] = _mixed(names.filter(pa.array(usual)))
        for row in np.flatnonzero(~usual).tolist():
            found[row] = hash_of(str(names[row].as_py()))
    return found


def hash_of(name: str) -> int:
    """64 bits of a string of another length."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(ids: pa.Array) -> NDArray[np.uint64]:
    """Of strings that all have `_LENGTH` bytes."""
    fixed = ids.cast(pa.binary()).cast(pa.binary(_LENGTH))
    data = fixed.buffers()[1]
    if data is None:
        return np.empty(0, np.uint64)
    words = np.frombuffer(data, np.uint64, len(fixed) * 4, fixed.offset * _LENGTH).reshape(-1, 4)
    found = np.zeros(len(fixed), np.uint64)
    for place, odd in enumerate(_ODD):
        mixed = words[:, place] * odd
        mixed ^= mixed >> np.uint64(29)
        found += mixed * _ODD[(place + 1) % 4]
        found ^= found >> np.uint64(32)
    return found


def repeated(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those values that are there more than once, ascending. The array itself is sorted for it."""
    values.sort()
    again = values[1:] == values[:-1]
    return np.unique(values[1:][again]) if again.any() else np.empty(0, values.dtype)


def is_in(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values, shape (n,), are among `known`, which is ascending."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    at = np.searchsorted(known, values)
    at[at == len(known)] = 0
    found: NDArray[np.bool_] = known[at] == values
    return found
