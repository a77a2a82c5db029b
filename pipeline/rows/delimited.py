"""Lines of a CSV or TSV file in; its records with their fields, or the problem of each, out."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from pipeline import AigiError
from pipeline.files import INVALID
from pipeline.rows.lines import Line, is_wrong
from pipeline.rows.settings import TableFormat

DELIMITERS = (",", "\t", ";", "|")
EMPTY_LINE = "empty line"
NEVER_CLOSED = "a quote is never closed"
MOST_CHARACTERS = 131_072
"""Of one record: where it has more, its quote is taken to be open by mistake."""

Record = tuple[int, list[str] | None, str | None]
"""Number of its first line; its fields, or its problem."""


def _fields(line: str, delimiter: str, quoting: bool) -> list[str]:
    if not quoting or '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def delimiter_of(first: str, form: TableFormat, columns: Iterable[str]) -> str:
    """What parts the fields of a table, by its first line.

    Args:
        first: that line, without its end.
        columns: that a line of names must have.

    Returns: the one that is set; else that by which the line has all of these names or, where
        `header` is set, as many fields as that; else a comma.
    """
    if form.delimiter is not None:
        return form.delimiter
    for delimiter in DELIMITERS:
        fields = _fields(first, delimiter, form.quoting)
        if form.header is not None:
            fits = len(fields) == len(form.header)
        else:
            fits = {field.strip() for field in fields} >= set(columns)
        if fits:
            return delimiter
    return ","


class _Source:
    """Lines, of which some may be given back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines, self._again = lines, deque[Line]()

    def take(self) -> Line | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def give_back(self, lines: Sequence[Line]) -> None:
        self._again.extendleft(reversed(lines))


def _quoted(source: _Source, first: Line, delimiter: str) -> Record:
    """The record that begins on a line with a quotation mark in it.

    A quote that is never closed costs its own line: those behind it are given back.
    """
    taken: list[Line] = []
    broken: str | None = None

    def feed() -> Iterator[str]:
        nonlocal broken
        size, line = 0, first
        while True:
            taken.append(line)
            yield line.text + "\n"
            size += len(line.text)
            following = source.take() if size <= MOST_CHARACTERS else None
            if following is None:
                return
            if following.problem not in (None, INVALID):
                broken = following.problem
                return
            line = following

    # strict: csv otherwise takes a quote that is never closed, and all that follows, for a field.
    reader = csv.reader(feed(), strict=True, delimiter=delimiter)
    try:
        fields = next(reader)
    except csv.Error as error:
        if broken is not None:
            return first.number, None, broken
        source.give_back(taken[1:])
        # Of a field that is too long, other lines may be what it swallowed.
        swallowed = "field limit" in str(error) and len(taken) > 1
        why = NEVER_CLOSED if swallowed or "end of data" in str(error) else str(error)
        return first.number, None, f"not CSV: {why}"
    return first.number, fields, None


def records(lines: Iterator[Line], delimiter: str, quoting: bool) -> Iterator[Record]:
    """The records of a table, in order, the line of names among them.

    A field that spans lines needs quotes. One bad record costs itself: not its neighbours.
    """
    source = _Source(lines)
    while (line := source.take()) is not None:
        if line.problem not in (None, INVALID):  # the file breaks off
            yield line.number, None, line.problem
        elif not line.text:
            yield line.number, None, EMPTY_LINE
        elif not quoting or '"' not in line.text:
            # Fields of such a line are what csv finds, at a third of its time.
            if line.problem is None:
                yield line.number, line.text.split(delimiter), None
            else:
                yield line.number, None, line.problem
        else:
            number, fields, problem = _quoted(source, line, delimiter)
            if fields is not None and any(map(is_wrong, fields)):
                fields, problem = None, INVALID
            yield number, fields, problem


def header_of(path: str, record: Record) -> list[str]:
    """Names of the columns, by the first record.

    Raises:
        AigiError: it is not well formed.
    """
    _, fields, problem = record
    if fields is None:
        raise AigiError(f"{path}: header: {problem}")
    return [field.strip() for field in fields]


def checked(records: Iterable[Record], columns: int, what: str) -> Iterator[Record]:
    """The same records; one with another number of fields than there are columns is refused."""
    for number, fields, problem in records:
        if fields is not None and len(fields) != columns:
            # Too many is a delimiter outside quotes: a caption cut short.
            yield number, None, f"{len(fields)} fields, {what} has {columns}"
        else:
            yield number, fields, problem
