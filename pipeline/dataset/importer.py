"""Pictures and captions of a closed model in; caption triples and rows of the `images` table out.

Nothing is changed that need not be: a picture that already is a plain 8-bit RGB PNG is stored
byte for byte, every other one is decoded once and stored as PNG.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import PIL
import pyarrow as pa

from pipeline import AigiError
from pipeline.dataset.original import OriginalPictures
from pipeline.dataset.pictures import (
    Caption,
    Escapes,
    ParquetPictures,
    Pictures,
    escapes,
    open_pictures,
)
from pipeline.dataset.png_prompt import embedded_prompt
from pipeline.dataset.watermark import embed
from pipeline.pixels import RGB, BadPicture, PngEffort, decode, pixels_sha256, png_bytes
from pipeline.tables import IMAGES
from pipeline.workflow import ImportedSource, ImportSource, OriginalSource

CHUNK_ROWS, CHUNK_BYTES = 16, 64 << 20
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


def _fitted(rgb: RGB, expected: tuple[int | None, int | None], fit: str) -> tuple[RGB, str | None]:
    """The picture, or its centre, and None; or the picture and why it does not fit."""
    height, width = rgb.shape[:2]
    wide, high = expected[0] or width, expected[1] or height
    if fit == "keep" or (width, height) == (wide, high):
        return rgb, None
    if fit == "reject":
        return rgb, (f"size {width}x{height}, expected {wide}x{high} (set fit: crop or keep)")
    if width < wide or height < high:
        return rgb, f"too small: {width}x{height}, expected at least {wide}x{high}"
    left, top = (width - wide) // 2, (height - high) // 2
    return rgb[top : top + high, left : left + wide], None


class Importer:
    """A worker: rows of the plan in, rows of the `images` table out, in the same order.

    Args:
        source: where the pictures lie, and what to do with one of another size.
        png: `fast` or `small`, for pictures that are stored anew.
        threads: pictures decoded and encoded at once; changes no byte.

    Raises:
        AigiError: the folder or archive is missing or refused.
    """

    def __init__(self, source: ImportedSource, png: PngEffort = "fast", threads: int = 2) -> None:
        self.source, self.threads = source, threads
        self.png: PngEffort = png
        self.pictures = open_import(source)
        # Pictures of the original release that have a watermark came with it.
        self.marks = not isinstance(source, OriginalSource)
        self.versions = json.dumps({"pillow": PIL.__version__})

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Import the pictures of `rows`, up to 16 rows or 64 MiB a chunk.

        Args:
            rows: `image_id`, `path` (name of the picture), `width`, `height` (null: any),
                `watermark` (null: none).

        Yields:
            `IMAGES` chunks. A picture that cannot be used is a row whose `image` is null and
            whose `error` says why.

        Raises:
            OSError: the folder or archive itself cannot be read.
        """
        plan = rows.select(["image_id", "path", "width", "height", "watermark"]).to_pylist()
        waiting: deque[Future[dict[str, Any]]] = deque()
        done: list[dict[str, Any]] = []
        size = 0
        pool = ThreadPoolExecutor(self.threads, "import")
        try:
            for number, row in enumerate(plan, 1):
                waiting.append(pool.submit(self._row, row))
                # A few pictures are under way while the last chunk is being written.
                while waiting and (len(waiting) > 4 * self.threads or number == len(plan)):
                    done.append(waiting.popleft().result())
                    size += len((done[-1].get("image") or {}).get("bytes", b""))
                    if len(done) == CHUNK_ROWS or size > CHUNK_BYTES:
                        yield pa.Table.from_pylist(done, schema=IMAGES)
                        done, size = [], 0
            if done:
                yield pa.Table.from_pylist(done, schema=IMAGES)
        finally:
            pool.shutdown(cancel_futures=True)

    def _row(self, plan: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"image_id": plan["image_id"], "device": "cpu"}
        row["versions"] = self.versions
        try:
            if plan["path"] is None:
                raise BadPicture("the plan names no picture (path is null)")
            data = self.pictures.read(plan["path"])
            row["original_sha256"] = hashlib.sha256(data).hexdigest()
            picture = decode(data, self.source.max_pixels)
            rgb, misfit = _fitted(picture.rgb, (plan["width"], plan["height"]), self.source.fit)
            if misfit:
                raise BadPicture(misfit)
        except (BadPicture, Escapes) as error:
            return row | {"error": str(error)}
        rgb = embed(rgb, (self.marks and plan["watermark"]) or "none")
        kept = picture.lossless_png and rgb is picture.rgb
        return row | {
            "image": {
                "bytes": data if kept else png_bytes(rgb, self.png),
                "path": f"{plan['image_id']}.png",
            },
            "width": rgb.shape[1],
            "height": rgb.shape[0],
            "pixels_sha256": pixels_sha256(rgb),
            "note": picture.note,
        }
