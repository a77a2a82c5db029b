"""A file of captions in (CSV, JSON, COCO, parquet); line, asked values or problem of each row out.

Prompts, imports, benchmarks, analysis and training all read such files here. A file that is not of
its layout is refused whole; a row that is not well formed is refused alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import chain

from pipeline import AigiError
from pipeline.outside import compression_of
from pipeline.rows.arrow_rows import parquet_rows
from pipeline.rows.asked import Asked, Row
from pipeline.rows.delimited import checked, delimiter_of, header_of, records
from pipeline.rows.json_rows import coco_rows, json_rows
from pipeline.rows.lines import BREAKS_OFF, lines
from pipeline.rows.settings import USUAL, TableFormat
from pipeline.shown import public_url


def ending_of(path: str) -> str:
    """The ending of a file's name, in lower case, without that of its compression."""
    name = public_url(path)
    if compression_of(name) is not None:
        name = os.path.splitext(name)[0]
    return os.path.splitext(name)[1].lower()


_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""A first line that some spreadsheets write, and read, to name the delimiter."""


def _csv(path: str, asked: Asked, form: TableFormat) -> Iterator[Row]:
    found = lines(path, form.encoding, carriage=True)
    first = next(found, None)
    if first is None:
        return
    if (said := _SEPARATOR.fullmatch(first.text)) and form.delimiter is None:
        form, first = form.model_copy(update={"delimiter": said[1]}), next(found, None)
        if first is None:
            return
    if first.problem is not None and first.problem.startswith(BREAKS_OFF):
        yield first.number, None, first.problem
        return
    delimiter = delimiter_of(first.text, form, asked.values())
    parsed = records(chain([first], found), delimiter, form.quoting)
    if form.header is None:
        names, what = header_of(path, next(parsed)), "the header"
    else:
        names, what = list(form.header), "`header`"
    places = asked.places(path, names)
    for number, fields, problem in checked(parsed, len(names), what):
        values = None if fields is None else tuple(fields[place] for place in places)
        yield number, values, problem


def _json(path: str, asked: Asked, form: TableFormat) -> Iterator[Row]:
    return json_rows(path, asked, form, ending_of(path))


def _parquet(path: str, asked: Asked, _: TableFormat) -> Iterator[Row]:
    return parquet_rows(path, asked)


LAYOUTS: dict[str, Callable[[str, Asked, TableFormat], Iterator[Row]]] = {
    "csv": _csv,
    "jsonl": _json,
    "parquet": _parquet,
    "coco": coco_rows,
}
ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
"""Layouts by the ending of a file; a COCO file is known by its content."""


def read(
    path: str, asked: Asked, form: TableFormat = USUAL, layout: str | None = None
) -> Iterator[Row]:
    """Rows of a file of captions, in order, streamed (one JSON value is held in memory).

    Args:
        path: local path or fsspec URL; .gz, .bz2, .xz and .zst are unpacked.
        layout: key of LAYOUTS; None: by the ending of its name.

    Returns:
        Iterator of `(line, values, problem)`. `line` counts from 1: the physical line on which
        the record starts, with its header, else the row, the element or the annotation. `values`
        are those of the asked columns, whatever their type.

    Raises:
        AigiError: while iterating: no such file, not a file of this layout, or no such column.
    """
    if layout is None:
        layout = ENDINGS.get(ending_of(path))
    if layout is None:
        raise AigiError(
            f"{path}: captions are read from {', '.join(ENDINGS)} files, also packed (.gz, .bz2, "
            ".xz, .zst)"
        )
    return LAYOUTS[layout](path, asked, form)
