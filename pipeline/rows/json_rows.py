"""JSON lines, a JSON array or a COCO file in; the asked fields of each record out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from pipeline import AigiError
from pipeline.files import INVALID
from pipeline.rows.asked import Asked, Row
from pipeline.rows.delimited import EMPTY_LINE
from pipeline.rows.lines import Line, is_wrong, lines, whole
from pipeline.rows.settings import TableFormat

_COCO = "expected a COCO captions file: {'annotations': [{'caption': '…'}, …]}, or that of Karpathy"
_SPLITS = {"val": "validation", "restval": "train"}
"""Names of splits in the file of Karpathy and Fei-Fei (2015); `restval` is trained on, as there."""


def _loaded(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, with the reason in one line."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_document(first: str, ending: str) -> bool:
    """Whether a file whose first line this is is one JSON value, and not one a line."""
    first = first.strip()
    if not first.startswith(("[", "{")):
        return False
    try:
        value = _loaded(first)
    except ValueError:  # it goes on in the next line
        return first.startswith("[") or ending == ".json"
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return ending == ".json" and bool({"annotations", "images"} & value.keys())


class _Fields:
    """Picks the asked fields out of objects, and remembers which there are."""

    def __init__(self, path: str, asked: Asked) -> None:
        self.path, self.asked = path, asked
        self.unseen, self.seen = set(asked.values()), dict[str, None]()

    def __call__(self, number: int, record: object) -> Row:
        if not isinstance(record, dict):
            return number, None, f"expected an object, found {type(record).__name__}"
        if self.unseen:
            self.unseen -= record.keys()
            self.seen |= dict.fromkeys(record)
        return number, tuple(record.get(column) for column in self.asked.values()), None

    def check(self) -> None:
        """Refuse a file none of whose objects has one of the fields."""
        for column in self.asked.values() if self.seen else ():
            if column in self.unseen:
                raise self.asked.missing(self.path, column, self.seen)


def json_rows(path: str, asked: Asked, form: TableFormat, ending: str) -> Iterator[Row]:
    """Rows of JSON lines or of one JSON value, whichever the file is.

    Raises:
        AigiError: it is neither, or no record has one of the fields.
    """
    found = lines(path, form.encoding)
    first = next(found, None)
    if first is None:
        return
    found = chain([first], found)
    if first.problem is None and _is_document(first.text, ending):
        held = list(found)
        try:
            value = _loaded(whole(path, held))
        except ValueError as error:
            if ending == ".json":
                raise AigiError(f"{path}: not JSON: {error}") from error
        else:
            yield from _of_document(path, asked, value)
            return
        found = iter(held)
    yield from _of_lines(path, asked, found)


def _of_lines(path: str, asked: Asked, found: Iterator[Line]) -> Iterator[Row]:
    fields = _Fields(path, asked)
    for number, text, problem in found:
        if problem is not None or not text.strip():
            yield number, None, problem or EMPTY_LINE
            continue
        try:
            record = _loaded(text)
        except ValueError as error:
            yield number, None, f"not JSON: {error}"
        else:
            yield fields(number, record)
    fields.check()


def _of_document(path: str, asked: Asked, value: object) -> Iterator[Row]:
    if isinstance(value, dict):
        yield from _coco(path, asked, value)
        return
    assert isinstance(value, list)
    fields = _Fields(path, asked)
    for number, record in enumerate(value, 1):
        yield _right(fields(number, record))
    fields.check()


def _right(row: Row) -> Row:
    """The same row; refused if one of its texts has bytes that are not of the encoding."""
    number, values, _ = row
    for value in values or ():
        if any(map(is_wrong, value if isinstance(value, list) else [value])):
            return number, None, INVALID
    return row


def coco_rows(path: str, asked: Asked, form: TableFormat) -> Iterator[Row]:
    """Rows of a COCO captions file, official or of Karpathy; names of columns are the file's own.

    Raises:
        AigiError: it is no such file.
    """
    try:
        value = _loaded(whole(path, lines(path, form.encoding)))
    except ValueError as error:
        raise AigiError(f"{path}: not JSON: {error}; {_COCO}") from error
    yield from _coco(path, asked, value)


def _coco(path: str, asked: Asked, value: object) -> Iterator[Row]:
    """One row a caption or, where files are asked for, one row an image with its captions."""
    annotations = value.get("annotations") if isinstance(value, dict) else None
    images = value.get("images") if isinstance(value, dict) else None
    if isinstance(annotations, list):
        if annotations and not any(isinstance(a, dict) and "caption" in a for a in annotations):
            raise AigiError(f"{path}: no annotation has the key 'caption'; {_COCO}")
        found = _official(annotations, images if isinstance(images, list) else [], asked)
    elif isinstance(images, list) and any(isinstance(i, dict) and "sentences" in i for i in images):
        found = _karpathy(images, asked)
    else:
        raise AigiError(f"{path}: no list under the key 'annotations'; {_COCO}")
    for row in found:
        yield _right(row)


def _one_or_all(captions: list[Any]) -> Any:
    return captions[0] if len(captions) == 1 else captions


def _official(annotations: list[Any], images: list[Any], asked: Asked) -> Iterator[Row]:
    if asked.file is None:
        for number, annotation in enumerate(annotations, 1):
            if isinstance(annotation, dict):
                yield number, asked.row(annotation.get("caption")), None
            else:
                yield number, None, f"expected an object, found {type(annotation).__name__}"
        return
    names: dict[Any, Any] = {
        image["id"]: image.get("file_name")
        for image in images
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    captions: dict[Any, list[Any]] = {}
    lines: dict[Any, int] = {}
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, dict):
            yield number, None, f"expected an object, found {type(annotation).__name__}"
            continue
        image = annotation.get("image_id")
        if not isinstance(image, int | str) or image not in names:
            yield number, None, f"image_id: {image}: no such image under the key 'images'"
            continue
        captions.setdefault(image, []).append(annotation.get("caption"))
        lines.setdefault(image, number)
    for image, texts in captions.items():
        yield lines[image], asked.row(_one_or_all(texts), names[image]), None


def _karpathy(images: list[Any], asked: Asked) -> Iterator[Row]:
    number = 0
    for place, image in enumerate(images, 1):
        sentences = image.get("sentences") if isinstance(image, Mapping) else None
        if not isinstance(sentences, list):
            number += 1
            yield number if asked.file is None else place, None, "no list under the key 'sentences'"
            continue
        texts = [one.get("raw") if isinstance(one, Mapping) else None for one in sentences]
        if asked.file is not None:
            split = image.get("split")
            split = _SPLITS.get(split, split) if isinstance(split, str) else split
            yield place, asked.row(_one_or_all(texts), image.get("filename"), split), None
            continue
        for text in texts:
            number += 1
            yield number, asked.row(text), None
