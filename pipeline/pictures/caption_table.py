"""A table of file names and captions in, the caption of each image out, and the rows that fit none.

Imports, benchmarks, analysis and training all read such tables here. A table that cannot be read is
refused whole. A row that is not well formed, that names no image, or one that is named already, is
refused alone; the caller decides what happens then.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Any, NamedTuple

from pipeline import AigiError
from pipeline.outside import opened
from pipeline.pictures.names import Caption, escapes
from pipeline.shown import public_url


class CaptionTable(NamedTuple):
    """Where a table is, a CSV, TSV or JSON-lines file, and its columns.

    Attributes:
        path: local path or fsspec URL.
        split_column: contains train, validation or test; None: no split is stated.
    """

    path: str
    file_column: str = "file"
    text_column: str = "text"
    split_column: str | None = None


class Matched(NamedTuple):
    """What a table states about images.

    Attributes:
        listed: text and split by the name of the image; an empty or missing text is None or "".
        refused: rows that fit no image, in order, with the problem of each.
    """

    listed: dict[str, tuple[str | None, str | None]]
    refused: list[Caption]


def _same_name(name: str) -> str:
    """A name in the form in which two spellings of it are equal (`./`, `\\`, Unicode forms)."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


DELIMITERS = (",", "\t", ";", "|")


def delimiter_of(header: str, columns: Iterable[str]) -> str:
    """What parts the fields of a table, by its first line.

    Args:
        columns: that it must have.

    Returns: that one of `DELIMITERS` by which all of these are fields; a comma if none is.
    """
    for delimiter in DELIMITERS:
        try:
            fields = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue
        if {field.strip() for field in fields} >= set(columns):
            return delimiter
    return ","


class _Bad(NamedTuple):
    """A row that is not well formed, and why."""

    problem: str


def _csv_rows(file: IO[str], table: CaptionTable) -> Iterator[tuple[int, dict[str, Any] | _Bad]]:
    header = file.readline()
    asked = [table.file_column, table.text_column]
    asked += [table.split_column] if table.split_column else []
    delimiter = delimiter_of(header.rstrip("\r\n"), asked)
    reader = csv.DictReader(chain([header], file), strict=True, delimiter=delimiter)
    columns = list(reader.fieldnames or [])
    for column in asked:
        if column not in columns:
            raise _no_column(table, column, columns)
    for row in reader:
        if None in row:
            why = "more fields than the header names; put captions with commas in double quotes"
            yield reader.line_num, _Bad(why)
        else:
            yield reader.line_num, row


def _jsonl_rows(file: IO[str], table: CaptionTable) -> Iterator[tuple[int, dict[str, Any] | _Bad]]:
    columns: dict[str, None] = {}
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, _Bad(f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield line, _Bad("expected an object, one per line")
            continue
        if table.file_column not in row:
            raise _no_column(table, table.file_column, row, line)
        columns |= dict.fromkeys(row)
        yield line, row
    # A line may leave the text out; the whole file may not.
    for column in (table.text_column, table.split_column):
        if columns and column and column not in columns:
            raise _no_column(table, column, columns)


def _no_column(
    table: CaptionTable, column: str, columns: Iterable[str], line: int | None = None
) -> AigiError:
    field = "file_column" if column == table.file_column else "text_column"
    field = "split_column" if column == table.split_column else field
    where = f"{table.path}:{line}" if line else table.path
    return AigiError(
        f"{where}: {column}: no such column. Set {field} to one of: {', '.join(columns)}"
    )


def _row(row: dict[str, Any], table: CaptionTable) -> tuple[str, str | None, str | None] | _Bad:
    """File, caption and split of a row."""
    name, text = row[table.file_column], row.get(table.text_column)
    split = row.get(table.split_column) if table.split_column else None
    if table.split_column and split is None:
        return _Bad(f"{table.split_column}: the split is missing")
    if name is None or not all(isinstance(value, str | None) for value in (name, text, split)):
        return _Bad("file, caption and split must be text")
    return name, text, split


def _rows(
    table: CaptionTable,
) -> list[tuple[int, tuple[str, str | None, str | None] | _Bad]]:
    """Line, and file, caption and split, of every row, in order."""
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows}
    suffix = os.path.splitext(public_url(table.path))[1].lower()
    if suffix not in readers:
        raise AigiError(f"{table.path}: captions are read from a .csv, .tsv or .jsonl file")
    rows: list[tuple[int, tuple[str, str | None, str | None] | _Bad]] = []
    try:
        with opened(table.path, encoding="utf-8-sig", newline="") as file:
            for line, row in readers[suffix](file, table):
                rows.append((line, row if isinstance(row, _Bad) else _row(row, table)))
    except FileNotFoundError:
        raise AigiError(f"{table.path}: no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise AigiError(
            f"{table.path}: row {len(rows) + 1}: not readable as UTF-8 {suffix[1:]}: {error}"
        ) from error
    return rows


def match(table: CaptionTable, names: Sequence[str]) -> Matched:
    """Match the rows of a table to images by name, else by bare file name where only one has it.

    Args:
        names: of the images, relative to their folder or archive.

    Raises:
        AigiError: the table is missing, is no such table, or lacks a column.
    """
    known = set(names)
    spelled = {_same_name(name): name for name in names}
    bases = {name: name.rpartition("/")[2] for name in spelled}
    count = Counter(bases.values())
    by_base = {base: spelled[name] for name, base in bases.items() if count[base] == 1}
    listed: dict[str, tuple[str | None, str | None]] = {}
    refused: list[Caption] = []
    for line, row in _rows(table):
        if isinstance(row, _Bad):
            refused.append(Caption(f"line {line}", None, row.problem, line=line))
            continue
        file, text, split = row
        text = text.strip() if text else text

        def refuse(problem: str) -> None:
            refused.append(Caption(file, text, problem, line=line))  # noqa: B023 (called at once)

        if file not in known and escapes(file):
            refuse("escapes the folder")
            continue
        plain = _same_name(file)
        found = file if file in known else spelled.get(plain, by_base.get(plain))
        if found is None and count[plain] > 1:
            refuse(f"{count[plain]} pictures have this name; give folders")
        elif found is None:
            refuse("no such picture")
        elif found in listed:
            refuse("listed twice")
        else:
            listed[found] = text, split
    return Matched(listed, refused)
