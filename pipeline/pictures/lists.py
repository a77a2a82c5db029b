"""The place of an import in, its images and captions out: tables, sidecars, texts in images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline import AigiError
from pipeline.pictures.caption_table import CaptionTable, Matched, match
from pipeline.pictures.container import Container
from pipeline.pictures.embedded import Flag, embedded
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import Beside, Caption, seen
from pipeline.pictures.original import OriginalPictures
from pipeline.pictures.pictures import open_pictures
from pipeline.pictures.several import Several
from pipeline.pictures.sources import ImportedSource, OriginalSource
from pipeline.pictures.stated import Made
from pipeline.pixels import BadPicture
from pipeline.rows.asked import NoColumn, texts_of
from pipeline.rows.lines import Held
from pipeline.rows.settings import USUAL, TableFormat

HEAD_BYTES = 4 << 20  # where texts are looked for; those of a WebP come after its pixels
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Tables among the images of a folder, as the `imagefolder` of `datasets` has them."""
METADATA_FILE = "file_name"
"""Their column of names, which begin at the table's own folder; without it, `file_column` is."""


class Captions(NamedTuple):
    """What tells the captions of a place of images.

    Attributes:
        table: with names and captions; None: what is in the place itself.
        strip: what is taken out of prompts inside images.
        required: whether a missing column of captions is an error.
    """

    table: str | None = None
    file_column: str = "file"
    text_column: str = "text"
    split_column: str | None = None
    form: TableFormat = USUAL
    strip: tuple[Flag, ...] = ("lora", "midjourney")
    required: bool = True


def _plain(name: str, text: str | None, split: str | None = None) -> Caption:
    text = (text or "").strip()
    return Caption(name, text or None, None if text else "no caption", split)


def _refused(name: str, found: Matched, line: int | None) -> Iterator[Caption]:
    for row in found.refused:
        yield row._replace(name=f"{name}: {row.name}", line=row.line if line is None else line)


def _text_in(name: str, data: bytes) -> str:
    """The caption in a file beside an image.

    Raises:
        BadPicture: it is JSON without one.
    """
    text = data.decode("utf-8-sig").strip()
    if not name.lower().endswith(".json"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    caption = found.get("caption") if isinstance(found, dict) else None
    if not isinstance(caption, str):
        raise BadPicture(f"no caption: {name} has no text under `caption`")
    return caption.strip()


def _from_file(pictures: Container, name: str, strip: Sequence[Flag]) -> Caption:
    """Caption from the sidecar text, else from the image itself."""
    made = Made()
    try:
        sidecar = pictures.sidecar(name)
        if sidecar is not None:
            text = _text_in(*sidecar)
        else:
            data = pictures.head(name, HEAD_BYTES)
            if len(data) == HEAD_BYTES and data[8:12] == b"WEBP":
                data = pictures.read(name)
            found = embedded(data, strip)
            if found.problem is not None:
                return Caption(name, None, f"no caption: {found.problem}")
            text, made = found.text or "", found.made
    except BadPicture as error:
        return Caption(name, None, str(error))
    except UnicodeDecodeError:
        return Caption(name, None, "the caption file is not UTF-8")
    return Caption(name, text or None, None if text else "no caption", made=made)


def _match_metadata(table: Held, names: Sequence[str], given: Captions) -> Matched:
    columns = given.text_column, given.split_column, given.form
    try:
        return match(CaptionTable(table, METADATA_FILE, *columns), names)
    except NoColumn as error:
        if error.column != METADATA_FILE:
            raise
    return match(CaptionTable(table, given.file_column, *columns), names)


def _metadata(
    pictures: Container, names: Sequence[str], given: Captions
) -> tuple[dict[str, Caption], list[Caption], set[str], list[str]]:
    """Captions by the tables among the images; rows that fit none; those tables; notes."""
    listed: dict[str, Caption] = {}
    refused: list[Caption] = []
    tables: set[str] = set()
    notes: list[str] = []
    for file in pictures.files():
        if not file.endswith(METADATA):
            continue
        folder, slash, base = file.rpartition("/")
        if base not in METADATA or not seen(file):
            continue
        start = folder + slash
        inside = [name[len(start) :] for name in names if name.startswith(start)]
        held = Held(f"{pictures.location.rstrip('/')}/{file}", pictures.read(file))
        tables.add(file)
        try:
            found = _match_metadata(held, inside, given)
        except NoColumn as error:  # it tells something else of the images
            refused.append(Caption(file, None, f"not used for captions: {error}"))
            notes.append(f"{file}: not used for captions: {error}")
            continue
        notes += [f"{file}: {note}" for note in found.notes]
        refused += _refused(file, found, None)
        for name, (text, split) in found.listed.items():
            whole = start + name
            if whole in listed:
                refused.append(Caption(f"{file}: {name}", text, "listed twice"))
            else:
                listed[whole] = _plain(whole, text, split)
    return listed, refused, tables, notes


def _of_rows(pictures: ParquetPictures, given: Captions) -> Iterator[Caption]:
    """Captions of a table of images, by its own column."""
    if not given.required and given.text_column not in pictures.columns:
        for name in pictures.names():
            yield _plain(name, None)
        return
    if given.form.lists == "rows":
        raise AigiError(f"{pictures.location}: lists: an image has one caption; set first or all")
    for name, value in pictures.texts(given.text_column):
        if isinstance(value, UnicodeDecodeError):
            yield Caption(name, None, "invalid UTF-8")
            continue
        found = texts_of(given.text_column, value, given.form.lists) if value is not None else [""]
        yield Caption(name, None, found) if isinstance(found, str) else _plain(name, found[0])


def _of_place(
    pictures: Container, names: list[str], given: Captions, notes: list[str]
) -> Iterator[Caption]:
    """Captions that a place itself has; then rows and files that are none."""
    if isinstance(pictures, Several):
        for prefix, part in pictures.parts():
            for caption in _of_place(part, part.names(), given, notes):
                if not prefix and caption.name in pictures:
                    continue  # an archive, which is a part
                yield caption._replace(name=prefix + caption.name)
        return
    if isinstance(pictures, ParquetPictures):
        yield from _of_rows(pictures, given)
        return
    listed, refused, tables, more = _metadata(pictures, names, given)
    notes += more
    for name in names:
        yield listed[name] if name in listed else _from_file(pictures, name, given.strip)
    yield from refused
    beside = Beside(names)
    for name, why in pictures.left_out():
        if name not in beside and name not in tables:
            yield Caption(name, None, why)


def _by_table(
    pictures: Container, names: list[str], given: Captions, notes: list[str]
) -> Iterator[Caption]:
    """Captions by a table that somebody named; rows that fit no image; files that are none."""
    table = str(given.table)
    columns = given.file_column, given.text_column, given.split_column
    found = match(CaptionTable(table, *columns, given.form), names)
    notes += found.notes
    for name in names:
        yield _plain(name, *found.listed.get(name, (None, None)))
    yield from found.refused
    beside = Beside(names)
    for name, why in pictures.left_out():
        if name not in beside and not table.rstrip("/").endswith(f"/{name}"):
            yield Caption(name, None, why)


def captions_of(
    pictures: Container, names: list[str], given: Captions, notes: list[str]
) -> Iterator[Caption]:
    """Name, caption or problem, and stated split of every image of a place.

    Captions come from the table that is given; where none is, from the text column of a table of
    images, else from `metadata.jsonl` or `metadata.csv` among the images, else from the file beside
    an image (`sidecars`), else from the prompt inside it. Images come first, in their order; then
    rows of tables that fit none; then files that are neither images nor captions of one.

    Args:
        names: of the images, as the place lists them.
        notes: gets a line for each kind of thing that was found in another way than as it is.

    Raises:
        AigiError: a table or column that is missing or not readable, an image or link that
            escapes the folder.
    """
    return (_of_place if given.table is None else _by_table)(pictures, names, given, notes)


def open_import(source: ImportedSource) -> Container | OriginalPictures:
    """Open the images of an imported source. Raises AigiError, as the opened classes do."""
    if isinstance(source, OriginalSource):
        return OriginalPictures(source)
    return open_pictures(source.path)


def list_captions(source: ImportedSource, notes: list[str] | None = None) -> Iterator[Caption]:
    """Name, caption or problem, and stated split of every image of an import (`captions_of`).

    The original release has its own text files.

    Raises:
        AigiError: no image at all, and as `captions_of` does.
    """
    if isinstance(source, OriginalSource):
        with OriginalPictures(source) as original:
            yield from original.captions()
        return
    given = Captions(
        source.captions, source.file_column, source.text_column, source.split_column,
        source.table, source.strip,
    )  # fmt: skip
    with open_pictures(source.path) as pictures:
        names = pictures.names()
        if not names:
            raise AigiError(f"{source.path}: no images in it (.png, .jpg, .webp and so on)")
        yield from captions_of(pictures, names, given, [] if notes is None else notes)
