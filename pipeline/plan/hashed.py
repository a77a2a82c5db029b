"""Columns of the plan in, their seeds and ids out: those of `ids`, many rows at once.

A row costs one call of SHA-256 for each hash. What is hashed is put together by Arrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.plan.ids import ID_DIGITS, deciding, seed_text
from pipeline.tables import OPTIONS

_AT_ONCE = 1 << 13  # rows whose texts are in memory; they fit the second cache of a core
_SPECIAL = r'[\x00-\x1f"\\]'
"""What JSON writes in another way inside a string, where it leaves letters as they are."""
_VARYING = ("text", "path", "seed", "index")
"""Columns in which most rows differ."""

Value: TypeAlias = "pa.Array | str"
"""JSON of a field: an array of strings, or the same text for all rows."""


def _pieces(parts: Sequence[Value], rows: int) -> Iterator[list[bytes]]:
    """The parts of every row joined to one text, as UTF-8, some rows at a time."""
    for start in range(0, rows, _AT_ONCE):
        cut = [p if isinstance(p, str) else p.slice(start, _AT_ONCE) for p in parts]
        joined = pc.binary_join_element_wise(*cut, "")
        if isinstance(joined, pa.Scalar):  # every part is the same for all rows
            joined = pa.array([joined.as_py()] * min(_AT_ONCE, rows - start), pa.string())
        yield joined.cast(pa.binary()).to_numpy(zero_copy_only=False).tolist()


def _digests(parts: Sequence[Value], rows: int) -> NDArray[np.uint8]:
    """SHA-256 of the texts of all rows: uint8, shape (rows, 32)."""
    sha256 = hashlib.sha256
    found = b"".join(
        b"".join([sha256(text).digest() for text in texts]) for texts in _pieces(parts, rows)
    )
    return np.frombuffer(found, np.uint8).reshape(rows, 32)


def in_hex(values: NDArray[np.uint8]) -> pa.Array:
    """Bytes of each row as hex digits: strings.

    Args:
        values: uint8, shape (n, k).
    """
    n, k = values.shape
    if n * 2 * k >= 2**31:
        raise ValueError("more than 2 GiB of text")  # callers work in shards
    data = pa.py_buffer(np.ascontiguousarray(values).tobytes().hex().encode())
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * np.int32(2 * k))
    return pa.StringArray.from_buffers(n, offsets, data)


def seeds(prompts: pa.Array, source: str, index: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """`ids.seed_of` of every row.

    Args:
        prompts: n ids of prompts, strings.
        index: int64, shape (n,), 0 or more.

    Returns: int64, shape (n,), 63 bits.
    """
    before, after = seed_text(source, salt)
    parts: list[Value] = [before, prompts, after, pa.array(index).cast(pa.string())]
    found = _digests(parts, len(prompts))
    return (found[:, :8].copy().view(">u8")[:, 0] >> np.uint64(1)).astype(np.int64)


def _as_json(values: pa.Array, varies: bool) -> Value:
    """JSON of every value, as `json.dumps` writes it."""
    if not varies or not (pa.types.is_string(values.type) or pa.types.is_integer(values.type)):
        coded = values.dictionary_encode("encode")
        texts = [json.dumps(value, ensure_ascii=False) for value in coded.dictionary.to_pylist()]
        return texts[0] if len(texts) == 1 else pa.array(texts, pa.string()).take(coded.indices)
    if pa.types.is_integer(values.type):
        return values.cast(pa.string()).fill_null("null")
    special = pc.match_substring_regex(values, _SPECIAL)
    if special.true_count:
        inner = [json.dumps(text, ensure_ascii=False)[1:-1] for text in
                 values.filter(special).to_pylist()]  # fmt: skip
        values = pc.replace_with_mask(values, special, pa.array(inner, pa.string()))
    return pc.binary_join_element_wise('"', values, '"', "").fill_null("null")


def _ids(fields: Mapping[str, pa.Array], rows: int) -> NDArray[np.uint8]:
    """Digests of rows whose ids are hashes of the same fields."""
    parts: list[Value] = []
    before = "{"
    for name in sorted(fields):
        value = _as_json(fields[name], name in _VARYING)
        before += f"{json.dumps(name)}: "
        if isinstance(value, str):
            before += value
        else:
            parts += [before, value]
            before = ""
        before += ", "
    parts.append(before.removesuffix(", ") + "}")
    return _digests(parts, rows)[:, : ID_DIGITS // 2]


def image_ids(rows: pa.Table) -> pa.Array:
    """`ids.image_id_of` of every row of a plan, or of columns like its: strings.

    Args:
        rows: at least the columns that decide an image; one that is absent has no value.
    """
    n = rows.num_rows
    columns: dict[str, pa.Array] = {}
    for name in rows.column_names:
        column = rows[name]
        columns[name] = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kinds: NDArray[np.int64] = np.zeros(n, np.int64)
    absent = pa.nulls(n, pa.string())
    for bit, what in enumerate(
        (
            pc.is_valid(columns.get("path", absent)),
            pc.is_valid(columns.get("steps", absent)),
            pc.not_equal(columns["watermark"], "none").fill_null(True),
            pc.is_valid(columns.get(OPTIONS.name, absent)),
        )
    ):
        kinds += what.to_numpy(zero_copy_only=False).astype(np.int64) << bit
    found = np.empty((n, ID_DIGITS // 2), np.uint8)
    for kind in np.unique(kinds).tolist():
        names = deciding(
            path=bool(kind & 1), steps=bool(kind & 2), marked=bool(kind & 4), options=bool(kind & 8)
        )
        at = np.flatnonzero(kinds == kind)
        if len(at) == n:
            mine = {name: columns.get(name, absent) for name in names}
        else:
            where = pa.array(at)
            mine = {name: columns.get(name, absent).take(where) for name in names}
        found[at] = _ids(mine, len(at))
    return in_hex(found)


def pair_ids(ids: pa.Array, watermarks: tuple[str, ...]) -> pa.Array:
    """`ids.pair_id_of` of every row, where all variants of an image follow one another: strings.

    Args:
        ids: image ids, a multiple of the number of watermarks.
        watermarks: of every image, in the order of its rows.
    """
    each = len(watermarks)
    if each == 1:
        return pa.nulls(len(ids), pa.string())
    plain = watermarks.index("none") if "none" in watermarks else 0
    return ids.take(pa.array(np.repeat(np.arange(plain, len(ids), each), each)))


def joined(ids: pa.Array | pa.ChunkedArray, by: str = ",") -> str:
    """Strings joined by another one."""
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if not len(whole):
        return ""
    one = pa.ListArray.from_arrays(pa.array([0, len(whole)], pa.int32()), whole)
    return str(pc.binary_join(one, by)[0].as_py())
