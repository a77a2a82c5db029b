"""Caption files in (CC12M, COCO, CSV, JSON lines, parquet, text, Hub), an iterator of rows out.

A row is `(line, text, problem)`; exactly one of text and problem is not None. One bad row never
ends the run: it comes out with the reason. A file that does not match its `kind` is an error.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline import AigiError
from pipeline.files import ESCAPED, INVALID, decode_lines
from pipeline.outside import opened
from pipeline.pictures.caption_table import delimiter_of
from pipeline.settings import Count, Location, Settings
from pipeline.shown import public_url


class _Captions(Settings):
    name: str | None = Field(None, description="value of the `source` column; default: the kind")
    licence: str | None = Field(
        None, description="licence of the captions, for the dataset card; null: not stated"
    )


class Cc12mCaptions(_Captions):
    """CC12M layout: one `url<TAB>caption` per line, no header, no quoting, plain or .gz."""

    kind: Literal["cc12m"]
    path: Location


class CocoCaptions(_Captions):
    """The official COCO captions JSON (`annotations: [{id, image_id, caption}]`)."""

    kind: Literal["coco"]
    path: Location


class TableCaptions(_Captions):
    """A CSV, JSON-lines or parquet file with one caption column."""

    kind: Literal["csv", "jsonl", "parquet"]
    path: Location
    column: str


class TextCaptions(_Captions):
    """A text file with one caption per line, plain or .gz."""

    kind: Literal["text"]
    path: Location


class HubCaptions(_Captions):
    """A dataset on the Hugging Face Hub, or a local dataset folder, streamed by `datasets`."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str
    revision: str | None = None


class GrammarCaptions(_Captions):
    """Our own generator: `count` distinct sentences of a grammar file."""

    kind: Literal["grammar"]
    path: Location
    start: str = Field("start", description="the rule that sentences are drawn from")
    count: Count
    seed: int = 0


class BlipCaptions(_Captions):
    """Photos captioned by a BLIP model (folder, zip or parquet of photos, or a dataset)."""

    kind: Literal["blip"]
    photos: Location | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    column: str = "image"
    model: str = "Salesforce/blip-image-captioning-large"
    revision: str | None = None
    folder: Location | None = Field(None, description="a local copy of the model")
    batch_size: Count = Field(16, description="photos captioned at once")
    shard_rows: Count = 512
    max_new_tokens: Count = 40
    num_beams: Count = 3
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_origin(self) -> BlipCaptions:
        if (self.photos is None) == (self.dataset is None):
            raise ValueError("give either photos (folder, zip, parquet) or dataset")
        return self


CaptionSource = Annotated[
    Cc12mCaptions
    | CocoCaptions
    | TableCaptions
    | TextCaptions
    | HubCaptions
    | GrammarCaptions
    | BlipCaptions,
    Field(discriminator="kind"),
]

Row = tuple[int, str | None, str | None]

TAB = "\t"
NO_TAB = "no tab between url and caption"
EMPTY_LINE = "empty line"
BLOCK = 1 << 16  # bytes; larger is slower (measured: the lines leave the processor's cache)

# What a cut or damaged .gz, .bz2 or .xz raises. Other OSErrors (disk, network) are no row's fault.
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def read(source: CaptionSource) -> Iterator[Row]:
    """Read the captions of one source in file order, streamed (COCO: the file is held in memory).

    Args:
        source: any kind but `blip`. Paths are local or fsspec URLs; compression goes by the
            ending (.gz, .bz2, .xz).

    Returns:
        Iterator of `(line, text, problem)`. `line` counts from 1: the physical line on which the
        record starts (cc12m, text, jsonl, csv with its header), else the row (parquet, hub), the
        annotation (coco) or the sentence (grammar). `text` is as written, except that CRLF
        becomes LF; it may be empty, and contains lone surrogates where JSON escapes spell them.

    Raises:
        ValueError: the kind is `blip`, which starts from photos.
        AigiError: while iterating: no such file, not a file of this kind, or no such column.
    """
    match source:
        case Cc12mCaptions():
            return _cc12m(source.path)
        case CocoCaptions():
            return _coco(source.path)
        case TextCaptions():
            return _text(source.path)
        case TableCaptions(kind="csv"):
            return _csv(source.path, source.column)
        case TableCaptions(kind="jsonl"):
            return _jsonl(source.path, source.column)
        case TableCaptions():
            return _parquet(source.path, source.column)
        case HubCaptions():
            return _hub(source)
        case GrammarCaptions():
            return _grammar(source)
    raise ValueError(f"captions.read: kind {source.kind!r} has photos, not captions, to read")


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    from fsspec.utils import infer_compression

    try:
        # The ending of a signed link is in front of its signature.
        with opened(path, compression=infer_compression(public_url(path))) as file:
            yield file
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file; correct `path` of this caption source") from None


def _blocks(path: str) -> Iterator[tuple[int, list[str], dict[int, str]]]:
    """Yield `(number of the first line, lines without endings, problem by line number)`.

    LF and CRLF end a line, nothing else does; a byte order mark at the start is dropped. A line
    with a problem is there too: its bytes that are not UTF-8 become surrogates.
    """
    first, rest = 1, bytearray()
    with _opened(path) as file:
        # read1 hands out what lies before the damage in a cut .gz, where read loses a block of it.
        read_some = getattr(file, "read1", file.read)
        try:
            while chunk := read_some(BLOCK):
                head, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    lines, problems = decode_lines(bytes(rest) + head + newline, first)
                    yield first, lines, problems
                    first += len(lines)
                    rest.clear()
                rest += tail
        except BROKEN as error:
            if first == 1 and not rest and isinstance(error, gzip.BadGzipFile):
                raise AigiError(f"{path}: not a gzip file; rename it or compress it") from error
            # The line that the damage cuts is part of the problem: half a caption is no caption.
            yield first, [""], {first: f"the file breaks off here: {error}"}
            return
    if rest:
        yield first, *decode_lines(bytes(rest), first)


def _lines(path: str) -> Iterator[tuple[int, str, str | None]]:
    for first, lines, problems in _blocks(path):
        for line, text in enumerate(lines, first):
            yield line, text, problems.get(line)


def _text(path: str) -> Iterator[Row]:
    for line, text, problem in _lines(path):
        yield (line, text, None) if problem is None else (line, None, problem)


def _refuse_other_layout(path: str, lines: list[str]) -> None:
    """Refuse a file of which most lines have more columns: they would be glued to captions.

    Raises:
        AigiError: says what it looks like.
    """
    more = [line for line in lines if line.count(TAB) > 1]
    if len(lines) > 2 and 2 * len(more) > len(lines):
        raise AigiError(
            f"{path}: its lines have {more[0].count(TAB)} tabs, and those of kind cc12m have one: "
            "url, tab, caption. With a line of names at its beginning it is kind csv, and `column` "
            "names the captions."
        )


def _cc12m(path: str) -> Iterator[Row]:
    for first, lines, problems in _blocks(path):  # not _lines: twelve million rows go through here
        if first == 1:
            _refuse_other_layout(path, lines)
        for line, text in enumerate(lines, first):
            _, tab, caption = text.partition("\t")
            if not tab or line in problems:
                yield line, None, problems.get(line, NO_TAB)
            elif "\t" in caption:
                yield line, None, f"{text.count(TAB)} tabs, and a line of this layout has one"
            else:
                yield line, caption, None


def _jsonl(path: str, column: str) -> Iterator[Row]:
    for line, text, problem in _lines(path):
        if problem is not None or not text.strip():
            yield line, None, problem or EMPTY_LINE
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, None, f"not JSON: {error}"
        else:
            yield _field(line, record, column)


def _field(line: int, record: object, column: str) -> Row:
    if not isinstance(record, dict):
        return line, None, f"expected an object, found {type(record).__name__}"
    value = record.get(column)
    if isinstance(value, str):
        return line, value, None
    found = "missing or null" if value is None else f"{type(value).__name__}, not text"
    return line, None, f"{column!r} is {found}"


def _csv(path: str, column: str) -> Iterator[Row]:
    broken: list[str] = []

    def lines() -> Iterator[str]:
        # Bad bytes stay in as surrogates: the quotes around them must go on counting.
        for _, text, problem in _lines(path):
            if problem is not None and problem != INVALID:
                broken.append(problem)
            yield text + "\n"

    given = lines()
    first = next(given, "")
    delimiter = delimiter_of(first.rstrip("\n"), [column])
    # strict: csv otherwise takes a quote that is never closed, and all that follows, for a field.
    reader = csv.reader(chain([first] if first else [], given), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            cause = "a quote is never closed" if "end of data" in str(error) else str(error)
            cause = f"not CSV (lines {line} to {reader.line_num}): {cause}"
            if header is None and not broken:
                raise AigiError(f"{path}: header: {cause}") from error
            yield line, None, broken[0] if broken else cause
            continue
        if row is None:
            return
        if broken:
            yield line, None, broken[0]
        elif header is None:
            header, index = row, _index(path, column, row)
        elif not row:
            yield line, None, EMPTY_LINE
        elif any(not field.isascii() and ESCAPED.search(field) for field in row):
            yield line, None, INVALID
        elif len(row) != len(header):  # too many is a comma outside quotes: a caption cut short
            yield line, None, f"{len(row)} fields, the header has {len(header)}"
        else:
            yield line, row[index], None


def _index(where: str, column: str, columns: list[str]) -> int:
    if columns.count(column) != 1:
        what = f"more than one column {column!r}" if column in columns else f"no column {column!r}"
        found = ", ".join(map(repr, columns)) or "none"
        raise AigiError(f"{where}: {what}; columns: {found}. Set `column` to one of them")
    return columns.index(column)


def _parquet(path: str, column: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    with _opened(path) as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            _index(path, column, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=4096, columns=[column]):
                for scalar in batch.column(0):  # one by one: a bad byte costs its own row only
                    row += 1
                    try:
                        record = {column: scalar.as_py()}
                    except UnicodeDecodeError:
                        yield row, None, INVALID
                    else:
                        yield _field(row, record, column)
        except (pa.ArrowException, OSError) as error:
            raise AigiError(f"{path}: not readable as parquet after row {row}: {error}") from error


def _coco(path: str) -> Iterator[Row]:
    expected = "expected a COCO captions file: {'annotations': [{'caption': '…'}, …]}"
    with _opened(path) as file:
        try:
            # Bad bytes become surrogates and cost their annotation, not the file.
            data = json.loads(file.read().decode("utf-8-sig", "surrogateescape"))
        except (ValueError, RecursionError, *BROKEN) as error:
            raise AigiError(f"{path}: not JSON: {error}; {expected}") from error
    annotations = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(annotations, list):
        raise AigiError(f"{path}: no list under the key 'annotations'; {expected}")
    if annotations and not any(isinstance(a, dict) and "caption" in a for a in annotations):
        raise AigiError(f"{path}: no annotation has the key 'caption'; {expected}")
    for line, annotation in enumerate(annotations, start=1):
        _, text, problem = _field(line, annotation, "caption")
        if text is not None and ESCAPED.search(text):
            text, problem = None, INVALID
        yield line, text, problem


def _hub(source: HubCaptions) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    path, config, split, revision = source.dataset, source.config, source.split, source.revision
    row, column = 0, source.column
    try:
        stream = load_dataset(path, config, split=split, revision=revision, streaming=True)
        columns = stream.column_names or list(next(iter(stream.take(1)), {column: None}))
        _index(path, column, columns)
        # Without the other columns nothing decodes the photos that lie beside the captions.
        for row, record in enumerate(stream.select_columns([column]), start=1):
            yield _field(row, record, column)
    except (OSError, ValueError, DatasetsError) as error:
        where = f"{path} (config {config}, split {split}, revision {revision})"
        raise AigiError(f"{where}: not readable after row {row}: {error}") from error


def _grammar(source: GrammarCaptions) -> Iterator[Row]:
    from pipeline.prompts.grammar import Grammar

    grammar = Grammar.load(source.path, source.start)
    for line, text in enumerate(grammar.sentences(source.count, source.seed), 1):
        yield line, text, None
