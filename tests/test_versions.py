"""Versions are ordered as semantic versioning orders them, and partial ones are counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.versions import higher, highest, order, partial, partials, tag_of, tagged

# The example of https://semver.org (11), between its neighbours.
ASCENDING = [
    "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
    "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1-partial.1", "1.0.1-partial.2",
    "1.0.1-partial.10", "1.0.1", "1.2.0", "1.10.0", "2.0.0",
]  # fmt: skip

numbers = st.integers(0, 10**9 - 1)
words = st.text("az-Z", min_size=1, max_size=9)
versions = st.one_of(
    st.builds("{}.{}.{}".format, numbers, numbers, numbers),
    st.builds("{}.{}.{}-{}.{}".format, numbers, numbers, numbers, words, numbers),
).filter(lambda version: len(version) < 60)  # fmt: skip


def test_the_order_is_that_of_semantic_versioning() -> None:
    mixed = random.Random(0).sample(ASCENDING, len(ASCENDING))
    assert sorted(mixed, key=lambda one: order(one) or ()) == ASCENDING
    assert highest(mixed) == "2.0.0" and highest(["none", "v1"]) is None


@given(versions, versions)
def test_of_two_versions_one_is_higher_or_they_are_one(one: str, two: str) -> None:
    if order(one) is None or order(two) is None:
        return
    assert higher(one, two) + higher(two, one) + (order(one) == order(two)) == 1


@given(versions, st.integers(1, 10**6))
def test_a_partial_version_is_lower_than_its_own_and_higher_than_the_one_before(
    version: str, number: int
) -> None:
    if order(version) is None or "-" in version:
        return
    assert higher(version, partial(version, number))
    assert higher(partial(version, number + 1), partial(version, number))
    assert partials(version, [partial(version, number), version, "other"]) == [number]


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "v1.0.0", "1.0.0-", "1.0.0-a..b", "1.0.0+5", "1.0.0 ", "1.0.0-a/b",
             "1.0.0-\n", "1.0.0\n", "-1.0.0", "9999999999.0.0", "1.0.0-" + "a" * 33]
)  # fmt: skip
def test_what_is_no_version_has_no_place(text: str) -> None:
    assert order(text) is None and higher("0.0.0", text)
    assert tagged([tag_of(text)]) == []


def test_other_tags_are_left_out() -> None:
    assert tagged(["v1.0.0", "1.0.0", "vx", "latest", "v1.0.0-partial.1"]) == [
        "1.0.0", "1.0.0-partial.1",
    ]  # fmt: skip
