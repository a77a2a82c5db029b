"""A table of file names and captions in, the caption of each image out, and the rows that fit none.

Imports, benchmarks, analysis and training all read such tables here. A table that is not of its
layout is refused whole. A row that is not well formed, that names no image, or one that is named
already, is refused alone; the caller decides what happens then.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipeline import AigiError
from pipeline.pictures.names import Caption, escapes
from pipeline.rows import rows
from pipeline.rows.asked import Asked, texts_of
from pipeline.rows.delimited import EMPTY_LINE
from pipeline.rows.settings import USUAL, TableFormat
from pipeline.rows.shards import files_of


class CaptionTable(NamedTuple):
    """Where a table is, and its columns.

    Attributes:
        path: a file, folder or pattern of files that `pipeline.rows` reads.
        split_column: contains train, validation or test; None: no split is stated.
        form: how the files are written.
    """

    path: str
    file_column: str = "file"
    text_column: str = "text"
    split_column: str | None = None
    form: TableFormat = USUAL


class Matched(NamedTuple):
    """What a table states about images.

    Attributes:
        listed: text and split by the name of the image; an empty or missing text is None or "".
        refused: rows that fit no image, in order, with the problem of each.
        notes: how many rows were matched by another name than that of the image.
    """

    listed: dict[str, tuple[str | None, str | None]]
    refused: list[Caption]
    notes: list[str]


def _same_name(name: str) -> str:
    """A name in the form in which two spellings of it are equal (`./`, `\\`, Unicode forms)."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _loose(name: str) -> str:
    """A name without its ending, in which capitals do not count."""
    return os.path.splitext(name)[0].casefold()


_WAYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: name),
    ("by the name of the file alone", _base),
    ("by a name with other capitals or another ending", _loose),
    ("by the name of the file alone, with other capitals or another ending",
     lambda name: _loose(_base(name))),
)  # fmt: skip
"""How a row's name may be that of an image, the strictest first; of several, it is none."""


class Names:
    """Names of images, found by how people write them.

    Args:
        names: of the images, relative to their folder or archive.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = set(names)
        spelled = {_same_name(name): name for name in names}
        self._ways = []
        for _, key in _WAYS:
            count = Counter(map(key, spelled))
            only = {key(plain): name for plain, name in spelled.items() if count[key(plain)] == 1}
            self._ways.append((key, only, count))
        self._used: Counter[str] = Counter()

    def find(self, name: str) -> str:
        """The image that a name means.

        Raises:
            LookupError: none, or one of several; the text says which.
        """
        if name in self._exact:
            return name
        if escapes(name):
            raise LookupError("escapes the folder")
        plain = _same_name(name)
        for (how, _), (key, only, count) in zip(_WAYS, self._ways, strict=True):
            found = only.get(key(plain))
            if found is not None:
                if how:
                    self._used[how] += 1
                return found
            if count[key(plain)] > 1:
                raise LookupError(f"{count[key(plain)]} pictures have this name; give folders")
        raise LookupError("no such picture")

    def notes(self) -> list[str]:
        """How many names were found in another way than as they are."""
        return [f"{count:,} names matched {how}" for how, count in self._used.items()]


class _Row(NamedTuple):
    line: int
    file: str
    text: str | None
    split: str | None
    problem: str | None
    place: str | None  # of several files, the one that it is in


def _row(line: int, values: tuple[object, ...], table: CaptionTable, place: str | None) -> _Row:
    text, file, *rest = values
    if not isinstance(file, str) or not file:
        what = "is missing" if not file else f"is {type(file).__name__}, not text"
        return _Row(line, f"line {line}", None, None, f"{table.file_column}: {what}", place)
    if text is not None and not isinstance(text, str):
        found = texts_of(table.text_column, text, table.form.lists)
        if isinstance(found, str):
            return _Row(line, file, None, None, found, place)
        text = found[0]
    if not rest:
        return _Row(line, file, text, None, None, place)
    split = rest[0]
    if not isinstance(split, str):
        return _Row(line, file, None, None, f"{table.split_column}: the split is missing", place)
    return _Row(line, file, text, split, None, place)


def _rows(table: CaptionTable) -> Iterator[_Row]:
    """File, caption and split of every row, in order, or its problem."""
    if table.form.lists == "rows":
        raise AigiError(f"{table.path}: lists: an image has one caption; set first or all")
    asked = Asked(table.text_column, table.file_column, table.split_column)
    files = files_of(table.path, rows.ENDINGS)
    for path, name in files:
        place, empty = name if len(files) > 1 else None, True
        for line, values, problem in rows.read(path, asked, table.form):
            empty = False
            if values is not None:
                yield _row(line, values, table, place)
            elif problem != EMPTY_LINE:
                yield _Row(line, f"line {line}", None, None, problem, place)
        if empty:
            raise AigiError(f"{path}: no row in it. Correct `captions`.")


def match(table: CaptionTable, names: Sequence[str]) -> Matched:
    """Match the rows of a table to images, by the strictest way in which only one fits (`Names`).

    Args:
        names: of the images, relative to their folder or archive.

    Raises:
        AigiError: the table is missing, is no such table, or lacks a column.
    """
    known = Names(names)
    listed: dict[str, tuple[str | None, str | None]] = {}
    refused: list[Caption] = []
    for row in _rows(table):
        problem = row.problem
        text = row.text.strip() if row.text else row.text
        if problem is None:
            try:
                found = known.find(row.file)
            except LookupError as error:
                problem = str(error)
            else:
                if found not in listed:
                    listed[found] = text, row.split
                    continue
                problem = "listed twice"
        where = "" if row.place is None else f" (in {row.place})"
        refused.append(Caption(row.file, text, problem + where, line=row.line))
    return Matched(listed, refused, known.notes())
