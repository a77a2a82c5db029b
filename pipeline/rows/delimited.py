"""Lines of a CSV or TSV file in; its records with their fields, or the problem of each, out."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

from pipeline import AigiError
from pipeline.files import INVALID
from pipeline.rows.lines import Line, is_wrong
from pipeline.rows.settings import TableFormat

DELIMITERS = (",", "\t", ";", "|")
EMPTY_LINE = "empty line"
NEVER_CLOSED = "a quote is never closed"
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


class _Feed:
    """Lines for a `csv.reader`, which remembers those of the record that is being read.

    Attributes:
        taken: lines of this record so far.
        broken: the line at which the file breaks off; nothing is fed from there on.
    """

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines, self._again = lines, deque[Line]()
        self.taken: list[Line] = []
        self.broken: Line | None = None

    def __iter__(self) -> Iterator[str]:
        while self.broken is None:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            if line.problem is not None and line.problem != INVALID:
                self.broken = line
                return
            self.taken.append(line)
            yield line.text + "\n"

    def start(self) -> None:
        """Begin another record."""
        self.taken.clear()

    def give_back(self) -> None:
        """Feed the lines behind the first one of this record once more."""
        self._again.extendleft(reversed(self.taken[1:]))


def _refused(feed: _Feed, error: csv.Error, delimiter: str) -> Record:
    """The first line of a record that is not well formed; the lines behind it are read again."""
    first = feed.taken[0]
    feed.give_back()
    if '"' not in first.text:  # a carriage return in it, which csv takes for half of a line end
        return first.number, first.text.split(delimiter), None
    if feed.broken is not None and "end of data" in str(error):
        return first.number, None, feed.broken.problem
    # Of a field that is too long, other lines may be what it swallowed.
    swallowed = "field limit" in str(error) and len(feed.taken) > 1
    why = NEVER_CLOSED if swallowed or "end of data" in str(error) else str(error)
    return first.number, None, f"not CSV: {why}"


def _quoted(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    feed = _Feed(lines)
    # strict: csv otherwise takes a quote that is never closed, and all that follows, for a field.
    reader = csv.reader(feed, strict=True, delimiter=delimiter)
    while True:
        feed.start()
        fields: list[str] | None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            number, fields, problem = _refused(feed, error, delimiter)
            reader = csv.reader(feed, strict=True, delimiter=delimiter)
            if feed.broken is not None and fields is None:
                yield number, None, problem
                return
        else:
            if fields is None:
                break
            number, problem = feed.taken[0].number, None if fields else EMPTY_LINE
        if not fields:
            fields = None
        elif any(line.problem for line in feed.taken) and any(map(is_wrong, fields)):
            fields, problem = None, INVALID
        yield number, fields, problem
    if feed.broken is not None:
        yield feed.broken.number, None, feed.broken.problem


def _split(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    for number, text, problem in lines:
        if problem is not None or not text:
            yield number, None, problem or EMPTY_LINE
        else:
            yield number, text.split(delimiter), None


def records(lines: Iterator[Line], delimiter: str, quoting: bool) -> Iterator[Record]:
    """The records of a table, in order, the line of names among them.

    A field that spans lines needs quotes. One bad record costs itself: not its neighbours. A
    record has at most 131,072 characters a field.
    """
    return _quoted(lines, delimiter) if quoting else _split(lines, delimiter)


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
