"""Columns that a reader asks for, and the settings that name them; the captions in a field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline import AigiError
from pipeline.complaints import hint

Row = tuple[int, tuple[Any, ...] | None, str | None]
"""Line (or row, from 1) of a file; the values of the asked columns, or the problem of the row."""


class NoColumn(AigiError):
    """A table without one of the columns that it is asked for."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


class Asked(NamedTuple):
    """Columns of a table.

    Attributes:
        text, file, split: names of the columns; None: not asked for.
        setting: what names the column of texts; that of files is `file_column`, and so on.
    """

    text: str
    file: str | None = None
    split: str | None = None
    setting: str = "text_column"

    def values(self) -> tuple[str, ...]:
        """Names of the columns, in the order of a row."""
        return tuple(name for name in (self.text, self.file, self.split) if name is not None)

    def row(self, text: Any, file: Any = None, split: Any = None) -> tuple[Any, ...]:
        """The values that are asked for, in the order of a row."""
        given = ((self.text, text), (self.file, file), (self.split, split))
        return tuple(value for name, value in given if name is not None)

    def missing(self, path: str, column: str, columns: Iterable[str]) -> NoColumn:
        """The error of a file without a column."""
        have = list(columns)
        setting = {self.file: "file_column", self.split: "split_column"}.get(column, self.setting)
        what = "more than one column of this name" if column in have else "no such column"
        found = ", ".join(have) or "none"
        meant = "" if column in have else hint(column, have)
        return NoColumn(
            f"{path}: {column}: {what}. Set {setting} to one of: {found}{meant}", column
        )

    def places(self, path: str, columns: list[str]) -> list[int]:
        """Indices of the columns. Raises AigiError: one is missing, or is there twice."""
        for column in self.values():
            if columns.count(column) != 1:
                raise self.missing(path, column, columns)
        return [columns.index(column) for column in self.values()]


def texts_of(column: str, value: object, lists: str | None) -> list[str] | str:
    """The captions that a field holds, one or several; else its problem.

    Args:
        lists: `first`, `all` (in one text) or `rows`; None: several are a problem.
    """
    if isinstance(value, str):
        return [value]
    if value is None:
        return f"{column!r} is missing or null"
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return f"{column!r} is {type(value).__name__}, not text"
    if not value:
        return f"{column!r} is an empty list"
    if len(value) == 1 or lists == "rows":
        return value
    if lists is None:
        return f"{column!r} is a list of several texts (set `table.lists` to first, all or rows)"
    return value[:1] if lists == "first" else [" ".join(value)]
