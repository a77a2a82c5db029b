"""Columns of any type in, 64 bits of each value or row out: equal ones have equal ones.

Bits are keyed at random, anew for each `Digests`: nobody can make other values that have the same,
and by chance two have them once in some 10^16. Values are those of Python: `int32` and `int64` of
one number are equal, and so are all kinds of strings, whatever their encoding.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]
_AT_ONCE = 1 << 20  # bytes of strings; each takes 16 more while they are hashed
_LONG = 1 << 14  # bytes of a string that is hashed alone
_USUAL = (32, 64)  # bytes of ids and of hashes
_FEW = 0.5  # share of other values below which each is hashed once
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(values: UInt64) -> UInt64:
    """Every bit depends on every bit: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _A
    values = (values ^ (values >> np.uint64(27))) * _B
    return values ^ (values >> np.uint64(31))


class Digests:
    """Hashes with a key of their own; only those of one object can be compared."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._random = np.random.default_rng(int.from_bytes(self._key, "little"))
        self._factors: UInt64 = np.empty(0, np.uint64)

    def rows(self, columns: Iterable[tuple[str, pa.Array | pa.ChunkedArray]], n: int) -> UInt64:
        """64 bits of each of n rows, shape (n,).

        The order of columns does not matter; their names do, and one of nulls is not one that is
        absent.
        """
        found = np.zeros(n, np.uint64)
        for name, column in columns:
            found += _mixed(self.values(column) ^ self._word(f"column {name}"))
        return found

    def values(self, column: pa.Array | pa.ChunkedArray) -> UInt64:
        """64 bits of each value, shape (n,)."""
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [self._array(chunk) for chunk in chunks]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def _word(self, meaning: str) -> np.uint64:
        digest = hashlib.blake2b(meaning.encode(), digest_size=8, key=self._key).digest()
        return np.uint64(int.from_bytes(digest, "little"))

    def _array(self, array: pa.Array) -> UInt64:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        found = self._of_type(array)
        if array.null_count:
            found = np.where(
                array.is_null().to_numpy(zero_copy_only=False), self._word("null"), found
            )
        return found

    def _of_type(self, array: pa.Array) -> UInt64:
        kind = array.type
        if pa.types.is_null(kind):
            return np.full(len(array), self._word("null"))
        if pa.types.is_dictionary(kind):
            return self._taken(self._array(array.dictionary), array.indices)
        if pa.types.is_boolean(kind):
            return self._numbers(array.cast(pa.int8()), "bool", np.int64)
        if kind == pa.uint64():
            return self._unsigned(array)
        if pa.types.is_integer(kind):
            return self._numbers(array, "int", np.int64)
        if pa.types.is_floating(kind):
            return self._numbers(array.cast(pa.float64()), "float", np.float64)
        if kind in (pa.string(), pa.large_string(), pa.string_view()):
            return self._strings(array.cast(pa.large_string()).view(pa.large_binary()), "str")
        binary = kind in (pa.binary(), pa.large_binary(), pa.binary_view())
        if binary or pa.types.is_fixed_size_binary(kind):
            return self._strings(array.cast(pa.large_binary()), "bytes")
        if pa.types.is_struct(kind):
            names = [field.name for field in kind]
            return self.rows(zip(names, array.flatten(), strict=True), len(array)) ^ self._word(
                "struct"
            )
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if listed or pa.types.is_fixed_size_list(kind) or pa.types.is_map(kind):
            return self._lists(array)
        return self._others(array)

    def _numbers(self, array: pa.Array, kind: str, dtype: Any) -> UInt64:
        values = array.fill_null(0).to_numpy(zero_copy_only=False).astype(dtype)
        if dtype is np.float64:
            values = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, and one zero
        return _mixed(values.view(np.uint64) ^ self._word(kind))

    def _unsigned(self, array: pa.Array) -> UInt64:
        """Of `uint64`; what no `int64` holds has the bits of a negative one, which it is not."""
        found = self._numbers(array, "int", np.uint64)
        beyond = array.fill_null(0).to_numpy(zero_copy_only=False) > np.iinfo(np.int64).max
        return np.where(beyond, _mixed(found ^ self._word("beyond int64")), found)

    def _strings(self, array: pa.Array, kind: str) -> UInt64:
        sample = array.slice(0, 1000)
        if len(array) > len(sample) and len(sample.unique()) < _FEW * len(sample):
            encoded = array.dictionary_encode()
            return self._taken(self._bytes(encoded.dictionary, kind), encoded.indices)
        return self._bytes(array, kind)

    def _taken(self, known: UInt64, at: pa.Array) -> UInt64:
        if not len(known):  # nothing but nulls
            return np.zeros(len(at), np.uint64)
        found: UInt64 = known[at.fill_null(0).to_numpy()]
        return found

    def _bytes(self, array: pa.Array, kind: str) -> UInt64:
        """Of large binaries: a sum of their bytes by factors that are random, and their length."""
        if not len(array):
            return np.empty(0, np.uint64)
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
        held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        lengths = np.diff(ends)
        found = np.empty(len(array), np.uint64)
        usual = np.isin(lengths, _USUAL)
        for size in _USUAL if usual.any() else ():
            mine = lengths == size
            found[mine] = self._words(held, ends[:-1][mine], size)
        if not usual.all():
            found[~usual] = self._of_any_length(held, ends)[~usual]
        found = _mixed(found ^ (lengths.astype(np.uint64) * _A) ^ self._word(kind))
        for at in np.flatnonzero(lengths > _LONG).tolist():
            data_of = held[ends[at] : ends[at + 1]].tobytes()
            digest = hashlib.blake2b(data_of, digest_size=8, key=self._key).digest()
            found[at] = np.uint64(int.from_bytes(digest, "little")) ^ self._word(kind)
        return found

    def _words(self, held: NDArray[np.uint8], starts: NDArray[np.int64], size: int) -> UInt64:
        """Of strings that have `size` bytes, a multiple of eight: ids and hashes."""
        self._grow(size)
        first = int(starts[0]) if len(starts) else 0
        if len(starts) and np.array_equal(starts, first + size * np.arange(len(starts))):
            block = held[first : first + size * len(starts)].reshape(-1, size)
        else:
            block = held[starts[:, None] + np.arange(size)]
        words = np.ascontiguousarray(block).view(np.uint64)
        found = np.zeros(len(starts), np.uint64)
        for place in range(size // 8):
            found += _mixed(words[:, place] ^ self._factors[place])
        return found

    def _of_any_length(self, held: NDArray[np.uint8], ends: NDArray[np.int64]) -> UInt64:
        found = np.empty(len(ends) - 1, np.uint64)
        start = 0
        while start < len(found):
            stop = int(np.searchsorted(ends, ends[start] + _AT_ONCE)) - 1
            stop = min(max(start + 1, stop), len(found))
            if stop - start > 1 or ends[stop] - ends[start] <= _LONG:
                found[start:stop] = self._summed(held, ends[start : stop + 1])
            start = stop
        return found

    def _summed(self, held: NDArray[np.uint8], ends: NDArray[np.int64]) -> UInt64:
        lengths = np.diff(ends)
        most = int(min(lengths.max(initial=0), _LONG))
        self._grow(most)
        first, last = int(ends[0]), int(ends[-1])
        place = np.arange(first, last) - np.repeat(ends[:-1], lengths)
        np.minimum(place, most - 1, out=place)  # of long ones, which are hashed alone
        terms = self._factors[place]
        terms *= held[first:last].astype(np.uint64) + np.uint64(1)
        sums = np.zeros(last - first + 1, np.uint64)
        np.cumsum(terms, out=sums[1:])
        return sums[ends[1:] - first] - sums[ends[:-1] - first]

    def _grow(self, most: int) -> None:
        if most > len(self._factors):
            more = self._random.integers(0, 2**64, 2 * most - len(self._factors), np.uint64)
            self._factors = np.concatenate([self._factors, more])

    def _lists(self, array: pa.Array) -> UInt64:
        """Lists and maps: their items, each with its place, and how many there are."""
        if pa.types.is_map(array.type):
            offsets = array.offsets.to_numpy()
            lengths = np.diff(offsets)
            inside = slice(int(offsets[0]), int(offsets[-1]))
            keys = _mixed(self._array(array.keys[inside]))
            items = keys ^ self._array(array.items[inside])
        else:
            lengths = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
            items = self._array(array.flatten())
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        place = np.arange(int(ends[-1])) - np.repeat(ends[:-1], lengths)
        sums = np.zeros(len(items) + 1, np.uint64)
        np.cumsum(_mixed(items ^ _mixed(place.astype(np.uint64) * _B)), out=sums[1:])
        found = sums[ends[1:]] - sums[ends[:-1]]
        return _mixed(found ^ (lengths.astype(np.uint64) * _A) ^ self._word("list"))

    def _others(self, array: pa.Array) -> UInt64:
        """Of types that releases do not have: as Python writes them."""
        texts = pa.array([repr(value) for value in array.to_pylist()], pa.large_string())
        return self._bytes(texts.view(pa.large_binary()), "repr")
