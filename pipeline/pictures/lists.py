"""The location of an import in, its images and captions out: tables, sidecars, texts in images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pipeline import AigiError
from pipeline.pictures.caption_table import CaptionTable, match
from pipeline.pictures.embedded import Flag, embedded
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import Caption, sidecars
from pipeline.pictures.original import OriginalPictures
from pipeline.pictures.pictures import Pictures, open_pictures
from pipeline.pictures.sources import ImportedSource, ImportSource, OriginalSource
from pipeline.pixels import BadPicture

HEAD_BYTES = 4 << 20  # where texts are looked for; those of a WebP come after its pixels


def _from_table(source: ImportSource, names: list[str]) -> Iterator[Caption]:
    table = CaptionTable(
        str(source.captions),
        source.file_column,
        source.text_column,
        source.split_column,
        source.table,
    )
    found = match(table, names)
    for name in names:
        text, split = found.listed.get(name, (None, None))
        yield Caption(name, text or None, None if text else "no caption", split)
    yield from found.refused


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


def _not_taken(pictures: Pictures, source: ImportSource, names: list[str]) -> Iterator[Caption]:
    """Files that are neither images nor captions of one."""
    if isinstance(pictures, ParquetPictures):
        return
    beside = {text for name in names for text in sidecars(name)}
    for name, why in pictures.left_out():
        own = source.captions is not None and source.captions.rstrip("/").endswith(f"/{name}")
        if name not in beside and not own:
            yield Caption(name, None, why)


def _from_file(pictures: Pictures, name: str, strip: Sequence[Flag]) -> Caption:
    """Caption from the sidecar text, else from the image itself."""
    assert not isinstance(pictures, ParquetPictures)
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
            text = found.text or ""
    except BadPicture as error:
        return Caption(name, None, str(error))
    except UnicodeDecodeError:
        return Caption(name, None, "the caption file is not UTF-8")
    return Caption(name, text or None, None if text else "no caption")


def open_import(source: ImportedSource) -> Pictures | OriginalPictures:
    """Open the images of an imported source. Raises AigiError, as the opened classes do."""
    if isinstance(source, OriginalSource):
        return OriginalPictures(source)
    return open_pictures(source.path)


def list_captions(source: ImportedSource) -> Iterator[Caption]:
    """Name, caption or problem, and stated split of every image.

    Captions come from the captions file; where none is set, from the text column of a parquet
    of images, else from `NAME.txt` beside the image, else from the prompt inside the image.
    Images come first, in their order; then rows of the captions file that match none; then files
    that are neither images nor captions of one. The original release has its own text files.

    Raises:
        AigiError: no image at all, a captions file or column that is missing or not
            readable, an image or link that escapes the folder.
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
            raise AigiError(f"{source.path}: no images in it (.png, .jpg, .webp and so on)")
        if source.captions is not None:
            yield from _from_table(source, names)
        else:
            for name in names:
                yield _from_file(pictures, name, source.strip)
        yield from _not_taken(pictures, source, names)
