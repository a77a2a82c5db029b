"""Caption files in (CC12M, COCO, CSV, JSON, parquet, text, Hub), an iterator of rows out.

A row is `(line, text, problem)`; exactly one of text and problem is not None. One bad row never
ends the run: it comes out with the reason. A file that does not match its `kind` is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline import AigiError
from pipeline.files import signature
from pipeline.prompts.text import normalise
from pipeline.rows import rows, shards
from pipeline.rows.asked import Asked, texts_of
from pipeline.rows.lines import blocks, lines
from pipeline.rows.settings import USUAL, TableFormat
from pipeline.rows.shards import short_name
from pipeline.settings import Count, Location, Settings


class _Captions(Settings):
    name: str | None = Field(None, description="value of the `source` column; default: the kind")
    licence: str | None = Field(
        None, description="licence of the captions, for the dataset card; null: not stated"
    )

    def recorded(self) -> dict[str, Any]:
        """What decides the captions, as JSON values, without where they are.

        A setting that older records do not have is there only where it is not at its default, so
        that these stay as they are.
        """
        found = self.model_dump(mode="json", exclude={"licence"})
        if "table" in found and getattr(self, "table", None) == USUAL:
            del found["table"]
        return found


class _Files(_Captions):
    path: Location = Field(
        description="a file, a folder of such files, or a pattern (`part-*.csv`)"
    )
    table: TableFormat = Field(USUAL, description="how its files are written")


class PairCaptions(_Files):
    """Two fields a line parted by a tab, no header, no quoting, plain or compressed.

    CC12M has `url<TAB>caption`, and CC3M has `caption<TAB>url`.
    """

    kind: Literal["cc12m", "cc3m"]


class CocoCaptions(_Files):
    """A COCO captions JSON: the official one, or that of Karpathy's splits."""

    kind: Literal["coco"]


class TableCaptions(_Files):
    """CSV or TSV, JSON (lines or an array) or parquet with one caption column."""

    kind: Literal["csv", "jsonl", "parquet"]
    column: str


class TextCaptions(_Files):
    """A text file with one caption per line, plain or compressed."""

    kind: Literal["text"]


class HubCaptions(_Captions):
    """A dataset on the Hugging Face Hub, or a local dataset folder, streamed by `datasets`."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str
    revision: str | None = None
    table: TableFormat = Field(USUAL, description="`lists` alone is used")


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
    PairCaptions
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
_CAPTION = {"cc12m": 1, "cc3m": 0}
"""Which of the two fields of a line is the caption; the other one is the url."""
_ENDINGS = {
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "coco": (".json",),
    "parquet": (".parquet",),
    "text": (".txt",),
    "cc12m": (".tsv", ".txt"),
    "cc3m": (".tsv", ".txt"),
}
"""Endings of files that a folder of this kind of captions has."""


def place_of(source: CaptionSource) -> str:
    """The short name of where captions come from: a file, a folder, a dataset."""
    for field in ("path", "dataset", "photos"):
        if (value := getattr(source, field, None)) is not None:
            return short_name(value)
    return source.kind


def files_of(source: CaptionSource) -> list[tuple[str, str]]:
    """Places that `read` reads one by one, each with its name in `source_ref` and the rejects.

    Raises:
        AigiError: a folder or pattern without a file of this kind.
    """
    if isinstance(source, _Files):
        return shards.files_of(source.path, _endings(source))
    return [(getattr(source, "path", ""), place_of(source))]


def content_of(source: CaptionSource) -> dict[str, Any]:
    """What stands for the content of a source's files."""
    if isinstance(source, _Files):
        return shards.content_of(source.path, _endings(source))
    return signature(str(getattr(source, "path", "")))


def _endings(source: _Files) -> tuple[str, ...]:
    return _ENDINGS[str(getattr(source, "kind", "text"))]


def read(source: CaptionSource, file: str | None = None) -> Iterator[Row]:
    """Read the captions of a source in file order, streamed (one JSON value is held in memory).

    Args:
        source: any kind but `blip`. Paths are local or fsspec URLs; compression goes by the
            ending (.gz, .bz2, .xz, .zst).
        file: one of `files_of`; None: all of them, one after the other.

    Returns:
        Iterator of `(line, text, problem)`. `line` counts from 1: the physical line on which the
        record starts (cc12m, text, jsonl, csv with its header), else the row (parquet, hub), the
        element of an array, the annotation (coco) or the sentence (grammar). `text` is as written,
        except that CRLF becomes LF; it may be empty, and contains lone surrogates where JSON
        escapes spell them. Of a field with several captions, each is a row of the same line.

    Raises:
        ValueError: the kind is `blip`, which starts from photos.
        AigiError: while iterating: no such file, not a file of this kind, or no such column.
    """
    match source:
        case HubCaptions():
            return _hub(source)
        case GrammarCaptions():
            return _grammar(source)
        case BlipCaptions():
            raise ValueError(f"captions.read: {source.kind!r} has photos, not captions, to read")
    if file is None:
        return chain.from_iterable(read(source, path) for path, _ in files_of(source))
    match source:
        case PairCaptions():
            return _pairs(file, source)
        case TextCaptions():
            return _text(file, source.table.encoding)
        case CocoCaptions():
            return _table(file, Asked("caption", setting="column"), source.table, "coco")
        case TableCaptions():
            return _table(file, Asked(source.column, setting="column"), source.table, source.kind)


def different(sources: Iterable[CaptionSource], most: float = math.inf) -> int:
    """How many different prompts sources can give before any filter, counted up to `most`.

    Raises:
        ValueError, AigiError: as `read`.
    """
    seen: set[int] = set()  # there may be millions
    for source in sources:
        for _, text, _ in read(source):
            if len(seen) >= most:
                return len(seen)
            if text is not None and (prompt := normalise(text)):
                seen.add(hash(prompt))
    return len(seen)


def _text(path: str, encoding: str | None) -> Iterator[Row]:
    for line, text, problem in lines(path, encoding):
        yield (line, text, None) if problem is None else (line, None, problem)


def _looks_like_url(text: str) -> bool:
    return "://" in text[:12]


def _refuse_other_layout(path: str, first: list[str], kind: str) -> None:
    """Refuse a file of which most lines are of another layout: other fields would be captions.

    Raises:
        AigiError: says what it looks like.
    """
    if len(first) < 3:
        return
    more = [line for line in first if line.count(TAB) > 1]
    pair = "url, tab, caption" if kind == "cc12m" else "caption, tab, url"
    if 2 * len(more) > len(first):
        raise AigiError(
            f"{path}: its lines have {more[0].count(TAB)} tabs, and those of kind {kind} have one: "
            f"{pair}. With a line of names at its beginning it is kind csv, and `column` "
            "names the captions."
        )
    other = "cc3m" if kind == "cc12m" else "cc12m"
    at = _CAPTION[kind]
    pairs = [line.split(TAB) for line in first if line.count(TAB) == 1]
    turned = [p for p in pairs if _looks_like_url(p[at]) and not _looks_like_url(p[1 - at])]
    if 2 * len(turned) > len(first):
        raise AigiError(
            f"{path}: where kind {kind} has captions it has urls: {pair}. It is kind {other}."
        )


def _pairs(path: str, source: PairCaptions) -> Iterator[Row]:
    at = _CAPTION[source.kind]
    # Blocks, not lines: twelve million rows go through here.
    for first, texts, problems in blocks(path, source.table.encoding):
        if first == 1:
            _refuse_other_layout(path, texts, source.kind)
        for line, text in enumerate(texts, first):
            fields = text.split(TAB)
            if line in problems or len(fields) == 1:
                yield line, None, problems.get(line, NO_TAB)
            elif len(fields) > 2:
                yield line, None, f"{len(fields) - 1} tabs, and a line of this layout has one"
            else:
                yield line, fields[at], None


def _table(path: str, asked: Asked, form: TableFormat, layout: str) -> Iterator[Row]:
    for line, values, problem in rows.read(path, asked, form, layout):
        if values is None:
            yield line, None, problem
        else:
            yield from _captions(line, values[0], asked.text, form.lists)


def _captions(line: int, value: object, column: str, lists: str | None) -> Iterator[Row]:
    texts = texts_of(column, value, lists)
    if isinstance(texts, str):
        yield line, None, texts
    else:
        for text in texts:
            yield line, text, None


def _hub(source: HubCaptions) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    path, config, split, revision = source.dataset, source.config, source.split, source.revision
    row, column = 0, source.column
    asked = Asked(column, setting="column")
    try:
        stream = load_dataset(path, config, split=split, revision=revision, streaming=True)
        columns = stream.column_names or list(next(iter(stream.take(1)), {column: None}))
        asked.places(path, columns)
        # Without the other columns nothing decodes the photos that lie beside the captions.
        for row, record in enumerate(stream.select_columns([column]), start=1):
            yield from _captions(row, record.get(column), column, source.table.lists)
    except (OSError, ValueError, DatasetsError) as error:
        where = f"{path} (config {config}, split {split}, revision {revision})"
        raise AigiError(f"{where}: not readable after row {row}: {error}") from error


def _grammar(source: GrammarCaptions) -> Iterator[Row]:
    from pipeline.prompts.grammar import Grammar

    grammar = Grammar.load(source.path, source.start)
    for line, text in enumerate(grammar.sentences(source.count, source.seed), 1):
        yield line, text, None
