"""Columns that a table does not have: all that it has, and the nearest."""

from __future__ import annotations

from pipeline.rows.asked import Asked


def test_a_missing_column_is_said_with_the_nearest() -> None:
    said = str(Asked("captoin", setting="column").missing("a.csv", "captoin", ["id", "caption"]))
    assert said.endswith('Set column to one of: id, caption; did you mean "caption"?')
    said = str(Asked("caption", file="nmae").missing("a.csv", "nmae", ["name", "caption"]))
    assert "Set file_column to one of" in said and said.endswith('did you mean "name"?')


def test_a_column_like_no_other_gets_no_guess() -> None:
    assert "did you mean" not in str(Asked("zzz").missing("a.csv", "zzz", ["id", "caption"]))
    twice = str(Asked("id").missing("a.csv", "id", ["id", "id"]))
    assert "more than one column" in twice and "did you mean" not in twice
