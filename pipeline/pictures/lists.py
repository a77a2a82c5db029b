"""The place of an import in, its images with their captions out: tables, sidecars, PNG texts."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any

from pipeline import AigiError
from pipeline.pictures.original import OriginalPictures
from pipeline.pictures.pictures import (
    Caption,
    ParquetPictures,
    Pictures,
    escapes,
    open_pictures,
)
from pipeline.pictures.png_prompt import embedded_prompt
from pipeline.pictures.sources import ImportedSource, ImportSource, OriginalSource
from pipeline.pixels import BadPicture

HEAD_BYTES = 4 << 20  # where a PNG's texts are looked for: they stand before its pixels


def _same_name(name: str) -> str:
    """A name in the form in which two spellings of it are equal (`./`, `\\`, Unicode forms)."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def _csv_rows(file: IO[str], source: ImportSource) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    columns = list(reader.fieldnames or [])
    for column in (source.file_column, source.text_column):
        if column not in columns:
            raise _no_column(source, column, columns)
    for row in reader:
        if None in row:
            raise AigiError(
                f"{source.captions}:{reader.line_num}: more fields than the header names; "
                "put captions with commas in double quotes"
            )
        yield reader.line_num, row


def _jsonl_rows(file: IO[str], source: ImportSource) -> Iterator[tuple[int, dict[str, Any]]]:
    columns: dict[str, None] = {}
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AigiError(f"{source.captions}:{line}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise AigiError(f"{source.captions}:{line}: expected an object, one a line")
        if source.file_column not in row:
            raise _no_column(source, source.file_column, row, line)
        columns |= dict.fromkeys(row)
        yield line, row
    # Of the text, a line may say nothing; the whole file may not.
    if columns and source.text_column not in columns:
        raise _no_column(source, source.text_column, columns)


def _no_column(
    source: ImportSource, column: str, columns: Iterable[str], line: int | None = None
) -> AigiError:
    field = "file_column" if column == source.file_column else "text_column"
    where = f"{source.captions}:{line}" if line else f"{source.captions}"
    return AigiError(
        f"{where}: {column}: no such column. Set {field} to one of: {', '.join(columns)}"
    )


def _caption_rows(source: ImportSource) -> list[tuple[str, str | None, str | None]]:
    """(file, caption, split) of every row of the captions file, in order."""
    import fsspec

    path = str(source.captions)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in readers:
        raise AigiError(f"{path}: captions are read from a .csv or .jsonl file")
    rows: list[tuple[str, str | None, str | None]] = []
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            for line, row in readers[suffix](file, source):
                name, text = row[source.file_column], row.get(source.text_column)
                split = row.get(source.split_column) if source.split_column else None
                if source.split_column and split is None:
                    raise AigiError(f"{path}:{line}: {source.split_column}: the split is missing")
                for value in (name, text, split):
                    if not isinstance(value, str | None) or name is None:
                        raise AigiError(f"{path}:{line}: file, caption and split must be text")
                rows.append((name, text, split))
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise AigiError(
            f"{path}: row {len(rows) + 1}: not readable as UTF-8 {suffix[1:]}: {error}"
        ) from error
    return rows


def _from_table(source: ImportSource, names: list[str]) -> Iterator[Caption]:
    """Match rows to pictures by name, else by bare file name where only one has it."""
    known = set(names)
    spelled = {_same_name(name): name for name in names}
    bases = {name: name.rpartition("/")[2] for name in spelled}
    count = Counter(bases.values())
    by_base = {base: spelled[name] for name, base in bases.items() if count[base] == 1}
    captions: dict[str, tuple[str | None, str | None]] = {}
    problems: list[Caption] = []
    for file, text, split in _caption_rows(source):
        text = text.strip() if text else text
        if file not in known and escapes(file):
            problems.append(Caption(file, text, "escapes the folder"))
            continue
        plain = _same_name(file)
        found = file if file in known else spelled.get(plain, by_base.get(plain))
        if found is None and count[plain] > 1:
            problems.append(
                Caption(file, text, f"{count[plain]} pictures have this name; give folders")
            )
        elif found is None:
            problems.append(Caption(file, text, "no such picture"))
        elif found in captions:
            problems.append(Caption(file, text, "listed twice"))
        else:
            captions[found] = text, split
    for name in names:
        text, split = captions.get(name, (None, None))
        yield Caption(name, text or None, None if text else "no caption", split)
    yield from problems


def _from_file(pictures: Pictures, name: str) -> Caption:
    """Caption from the sidecar text, else from the PNG itself."""
    assert not isinstance(pictures, ParquetPictures)
    try:
        sidecar = pictures.sidecar(name)
        if sidecar is not None:
            text = sidecar.decode("utf-8-sig").strip()
        else:
            png = name.lower().endswith(".png")
            text = (embedded_prompt(pictures.head(name, HEAD_BYTES)) if png else None) or ""
    except BadPicture as error:
        return Caption(name, None, str(error))
    except UnicodeDecodeError:
        return Caption(name, None, "the caption file is not UTF-8")
    return Caption(name, text or None, None if text else "no caption")


def open_import(source: ImportedSource) -> Pictures | OriginalPictures:
    """Open the pictures of an imported source. Raises AigiError, as what it opens does."""
    if isinstance(source, OriginalSource):
        return OriginalPictures(source)
    return open_pictures(source.path)


def list_captions(source: ImportedSource) -> Iterator[Caption]:
    """Name, caption or problem, and stated split of every picture.

    Captions come from the captions file; where none is set, from the text column of a parquet
    of pictures, else from `NAME.txt` beside the picture, else from the prompt inside a PNG.
    Pictures come first, in their order; then rows of the captions file that match none. The
    original release has its own text files.

    Raises:
        AigiError: no picture at all, a captions file or column that is missing or not
            readable, a picture or link that escapes the folder.
    """
    if isinstance(source, OriginalSource):
        with OriginalPictures(source) as original:
            yield from original.captions()
        return
    with open_pictures(source.path) as pictures:
        if source.captions is None and isinstance(pictures, ParquetPictures):
            for name, text in pictures.texts(source.text_column):
                text = (text or "").strip()
                yield Caption(name, text or None, None if text else "no caption")
            return
        names = pictures.names()
        if not names:
            raise AigiError(f"{source.path}: no pictures in it (.png, .jpg, .webp and so on)")
        if source.captions is not None:
            yield from _from_table(source, names)
            return
        for name in names:
            yield _from_file(pictures, name)
