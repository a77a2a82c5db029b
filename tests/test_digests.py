"""Hashes of columns: equal values have equal ones, and others have others, whatever their type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.digests import Digests

WORDS = st.sampled_from(
    [
        None,
        "",
        "a",
        "b",
        "ab",
        "a\0",
        "\0",
        "\u00e9",
        "x" * 17_000,
        "x" * 9,
        "y" * 32,
        "x" * 32,
        "z" * 64,
    ]
)
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), WORDS),
    "int": (pa.int32(), st.sampled_from([None, 0, 1, -1, 256, 2**31 - 1])),
    "float": (pa.float32(), st.sampled_from([None, 0.0, 0.5, 1.0, -1.0])),
    "bool": (pa.bool_(), st.sampled_from([None, True, False])),
    "list": (pa.list_(pa.string()), st.none() | st.lists(WORDS, max_size=3)),
    "large list": (pa.large_list(pa.int8()), st.none() | st.lists(st.integers(0, 2), max_size=3)),
    "fixed list": (
        pa.list_(pa.int8(), 2),
        st.none() | st.lists(st.none() | st.integers(0, 1), min_size=2, max_size=2),
    ),
    "map": (
        pa.map_(pa.string(), pa.int8()),
        st.none() | st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), max_size=3),
    ),
    "struct": (
        pa.struct([("a", pa.string()), ("b", pa.list_(pa.bool_()))]),
        st.none() | st.fixed_dictionaries({"a": WORDS, "b": st.none() | st.lists(st.booleans())}),
    ),
    "decimal": (pa.decimal128(5, 2), st.none() | st.decimals(-9, 9, places=2)),
}


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_are_equal_where_their_hashes_are(name: str, data: st.DataObject) -> None:
    kind, values = TYPES[name]
    rows = data.draw(st.lists(values, max_size=8))
    cut = data.draw(st.integers(0, len(rows)))
    digests = Digests()
    column = pa.chunked_array([pa.array(rows[:cut], kind), pa.array(rows[cut:], kind)], kind)
    found = digests.values(column)
    assert len(found) == len(rows)
    plain = column.to_pylist()
    for one, mine in zip(plain, found.tolist(), strict=True):
        for other, theirs in zip(plain, found.tolist(), strict=True):
            assert (one == other) == (mine == theirs)
    whole = pa.concat_arrays([pa.array([None, *rows], kind)])
    assert digests.values(whole.slice(1)).tolist() == found.tolist(), "of a part of an array"


@pytest.mark.parametrize(
    "kinds",
    [(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())),
     (pa.int8(), pa.int64(), pa.uint8()), (pa.float32(), pa.float64()),
     (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)),
     (pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2))],
)  # fmt: skip
def test_types_of_the_same_values_have_the_same_hashes(kinds: tuple[pa.DataType, ...]) -> None:
    values: dict[str, list[Any]] = {
        "string": ["a", None, "bc", "a"], "int8": [1, None, 0], "float": [0.5, None, 2.0],
        "binary": [b"ab", None, b"cd"], "list<item: int8>": [[1, None], None, [0, 2]],
    }  # fmt: skip
    digests = Digests()
    rows = pa.array(values[str(kinds[0])], kinds[0])
    first = digests.values(rows).tolist()
    for kind in kinds[1:]:
        assert digests.values(rows.cast(kind)).tolist() == first


def test_numbers_texts_and_truth_are_not_the_same() -> None:
    digests = Digests()
    columns = [pa.array([1]), pa.array([1.0]), pa.array([True]), pa.array(["1"]), pa.array([b"1"])]
    assert len({int(digests.values(column)[0]) for column in columns}) == 5
    odd = pa.array([float("nan"), -0.0, 0.0, -float("nan")])
    nan, minus, zero, other = digests.values(odd).tolist()
    assert nan == other and minus == zero != nan


@given(st.integers(0, 2**64 - 1))
def test_numbers_that_only_share_their_bits_are_not_the_same(number: int) -> None:
    digests, large = Digests(), pa.array([number], pa.uint64())
    signed = pa.array(np.array([number], np.uint64).view(np.int64))
    same = digests.values(large)[0] == digests.values(signed)[0]
    assert same == (large.to_pylist() == signed.to_pylist())


@pytest.mark.parametrize("rows", [1_500, 40_000])
def test_long_columns_are_hashed_as_short_ones(rows: int) -> None:
    """Few other values, many, none; and so many bytes that they are hashed in blocks."""
    digests = Digests()
    few = pa.array([f"value {number % 7}" for number in range(rows)])
    many = pa.array([f"value {number}" * (number % 5) for number in range(rows)])
    for column in (few, many, pa.nulls(rows, pa.string()), pa.nulls(rows)):
        found = digests.values(column)
        some = [0, 1, 2, rows // 2, rows - 1]
        assert found[some].tolist() == digests.values(column.take(pa.array(some))).tolist()
    assert len(np.unique(digests.values(many))) == len(many.unique())


def test_rows_know_names_and_nulls_but_no_order() -> None:
    digests = Digests()
    a, b, none = pa.array(["x"]), pa.array(["y"]), pa.nulls(1, pa.string())
    one = digests.rows([("a", a), ("b", b)], 1)
    assert one == digests.rows([("b", b), ("a", a)], 1)
    others = [[("a", b), ("b", a)], [("a", a)], [("a", a), ("b", none)], [("a", a), ("c", b)]]
    assert len({int(one[0]), *(int(digests.rows(each, 1)[0]) for each in others)}) == 5


def test_every_object_has_a_key_of_its_own() -> None:
    column = pa.array(["a", "b" * 40])
    assert not set(Digests().values(column).tolist()) & set(Digests().values(column).tolist())
