"""A release, a dataset on the Hub or a folder of images in, its images in a fixed order out.

Everything that is measured, analysed or trained on is read here, however the images were made.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline import AigiError
from pipeline.manifest import MANIFEST, find_release
from pipeline.pictures.caption_table import CaptionTable, match
from pipeline.pictures.lists import Captions, captions_of
from pipeline.pictures.names import NOT_AN_IMAGE, Caption
from pipeline.pictures.pictures import open_pictures, packed
from pipeline.pixels import RGB, BadPicture, decode, decode_threads, image_size
from pipeline.progress import Progress
from pipeline.rows.settings import USUAL, TableFormat
from pipeline.settings import Count, Location, Settings, Split
from pipeline.shown import public_url
from pipeline.store import Store
from pipeline.tables import IMAGE, REJECTS
from pipeline.threads import ahead, workers


class Pictures(Settings):
    """Images to measure, analyse or train on, and which of them."""

    place: Location = Field(
        description="release folder, run directory, hf://datasets/ORG/NAME@REVISION, or images: a "
        "folder, .zip, .tar or .parquet, a folder of such shards, a pattern"
    )
    sources: tuple[str, ...] | None = Field(None, description="null: all")
    splits: tuple[Split, ...] | None = Field(
        None, description="null: all; a folder's images are test"
    )
    limit: Count | None = Field(None, description="at most this many images per source and split")
    name: str | None = Field(None, description="source of a folder's images; null: its name")
    captions: Location | None = Field(
        None,
        description="captions of a folder (CSV, TSV, JSON, parquet); only files that it names are "
        "used",
    )
    table: TableFormat = Field(USUAL, description="how the files of `captions` are written")
    file_column: str = Field("file", description="of `captions`: the column with file names")
    text_column: str = Field("text", description="of `captions`: the column with prompts")

    @model_serializer(mode="wrap")
    def _recorded(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `table` where it is usual: records of before have no such key."""
        found: dict[str, Any] = dump(self)
        if self.table == USUAL:
            found.pop("table", None)
        return found


def asked_or_own(asked: Pictures | None, run: str) -> Pictures:
    """The images that a section asks for; None: the release of the run itself."""
    return asked or Pictures(place=run)


MOST_PIXELS = 1 << 28
"""Of an image that is decoded whole."""
ROWS, BYTES = 100, 64 << 20
"""A part has at most this many images; a folder's part, at most this many bytes after one image."""

COLUMNS = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE),
        ("text", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("watermark", pa.string()),
        ("pair_id", pa.string()),
    ]
)
"""Columns of `Collection.read`. A folder's images may have no text; their watermark is `none`."""


@dataclass(frozen=True)
class Part:
    """Some images of one source and split: the unit of reading.

    Attributes:
        name: unique, the same each time, and a name that a shard can have.
        rows: images in it.
        path: its parquet file; empty for a folder.
        groups: its row groups; for a folder, numbers of its files.
        skip: rows at the beginning of its first row group that belong to another part.
    """

    name: str
    source: str
    split: str
    rows: int
    path: str
    groups: tuple[int, ...]
    skip: int = 0


class Collection:
    """The images of a release or folder.

    Args:
        pictures: where the images are, and which of them to read.

    Attributes:
        parts: in the order in which they are read.
        state: hex digest of everything that decides the rows; for a folder, names and sizes.
            `digest` tells of one part, and of the content of its files.
        release: its files and its manifest; None: a folder of images.
        notes: lines about what was found in another way than as it is, or left out.
        refused: rows of a table of captions that fit no image; `report` writes them.

    Raises:
        AigiError: there are none.
    """

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        place = pictures.place
        self._files: list[str] = []
        self._texts: dict[str, str] = {}
        self._sha256: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.notes: list[str] = []
        self.refused: list[Caption] = []
        self.release: tuple[Store, dict[str, Any]] | None = None
        found = None if packed(place) else find_release(place)
        if found is None:
            self.parts, state = self._folder()
        else:
            self.store, manifest = found
            self.release = found
            self.parts, state = self._release(manifest)
        self._by_name = {part.name: part for part in self.parts}
        self.state = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        if not self.parts:
            raise AigiError(f"{pictures.place}: no images{self._asked()}")

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, with these columns of COLUMNS, by default all.

        Raises:
            AigiError: a file is missing or damaged, or no part has this name.
        """
        part = self._part(name)
        wanted = list(COLUMNS.names if columns is None else columns)
        if not part.path:
            return pa.Table.from_pylist(
                [self._picture(part, number) for number in part.groups], COLUMNS
            ).select(wanted)
        return _read_groups(self.store, part, wanted)

    def rows(self, name: str, columns: Sequence[str]) -> pa.Table:
        """The rows of a part of a release, with any columns of it; null where it has none.

        Raises:
            AigiError: a file is missing or damaged, or no part of a release has this name.
        """
        part = self._part(name)
        if not part.path:
            raise AigiError(f"{self.pictures.place}: a folder of images, not a release")
        shard = part.path.removesuffix(".parquet")
        with self.store.parquet("", shard, list(columns), some=True) as parquet:
            have = [column for column in columns if column in parquet.schema_arrow.names]
            table = parquet.read_row_groups(list(part.groups), have)
        table = table.slice(part.skip, part.rows)
        absent = pa.nulls(table.num_rows)
        return pa.table({column: table[column] if column in have else absent for column in columns})

    def digest(self, name: str) -> str:
        """Hex digest of everything that decides the rows of a part: content, not names alone.

        Raises:
            AigiError: an image of a folder cannot be read, or no part has this name.
        """
        if name not in self._digests:
            part = self._part(name)
            if part.path:
                content: list[Any] = [self._sha256[part.path], part.groups, part.skip, part.rows]
            else:
                files = [self._files[number] for number in part.groups]
                with workers(decode_threads(None), "hash") as pool:
                    hashes = list(ahead(files, self._hashed, pool, 32))
                texts = [self._texts.get(file) for file in files]
                content = [list(files), hashes, texts]
            facts = [part.source, part.split, content]
            self._digests[name] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return self._digests[name]

    def _hashed(self, name: str) -> str:
        return hashlib.sha256(self._data(name)).hexdigest()

    def _part(self, name: str) -> Part:
        part = self._by_name.get(name)
        if part is None:
            raise AigiError(f"{self.pictures.place}: has no part {name}")
        return part

    def _asked(self) -> str:
        asked = [
            f"{name} {', '.join(value)}"
            for name in ("sources", "splits")
            if (value := getattr(self.pictures, name)) is not None
        ]
        return f" of {' and '.join(asked)}" if asked else ""

    def _wanted(self, source: str, split: str) -> bool:
        sources, splits = self.pictures.sources, self.pictures.splits
        return (sources is None or source in sources) and (splits is None or split in splits)

    def _release(self, manifest: dict[str, Any]) -> tuple[list[Part], list[Any]]:
        place = self.pictures.place
        records = [(r["path"], r["config"], r["split"], r["sha256"]) for r in manifest["files"]]
        known = {source for _, source, _, _ in records}
        for source in self.pictures.sources or ():
            if source not in known:
                raise AigiError(
                    f"{place}: no source {source}; there are {', '.join(sorted(known))}"
                )
        left: dict[tuple[str, str], int] = {}
        parts, state = [], []
        for path, source, split, sha256 in records:
            if not self._wanted(source, split) or left.get((source, split)) == 0:
                continue
            metadata = self.store.metadata("", path.removesuffix(".parquet"))
            if metadata is None:
                raise AigiError(f"{place}: {path}: missing or damaged. Fetch the release again.")
            for part in _parts(path, source, split, metadata):
                most = left.get((source, split), self.pictures.limit)
                rows = part.rows if most is None else min(part.rows, most)
                if rows:
                    parts.append(replace(part, rows=rows))
                if most is not None:
                    left[source, split] = most - rows
            state.append([path, sha256])
            self._sha256[path] = sha256
        return parts, [state, [(part.name, part.rows) for part in parts]]

    def _folder(self) -> tuple[list[Part], list[Any]]:
        place = self.pictures.place
        store = Store(place)
        if not packed(place) and ("hf://" in place or not store.fs.isdir(store.root)):
            raise AigiError(
                f"{place}: no {MANIFEST}, so not a release, nor a folder of images. Give a release "
                "folder, a run, hf://datasets/ORG/NAME@REVISION, a folder, .zip, .tar or .parquet."
            )
        self._opened = open_pictures(place)
        names = self._opened.names()
        if self.pictures.captions is not None:
            self._texts = self._captions(self.pictures.captions, names)
            names = [name for name in names if name in self._texts]
        else:
            self._texts = self._own_texts(names)
        source = self.pictures.name or _source_of(store.root) or "pictures"
        if not self._wanted(source, "test"):
            return [], []
        self._files = names[: self.pictures.limit]
        sizes = {name: self._size(name) for name in self._files}
        groups: list[list[int]] = []
        total = 0
        for number, name in enumerate(self._files):
            if not groups or len(groups[-1]) == ROWS or total + sizes[name] > BYTES:
                groups.append([])
                total = 0
            groups[-1].append(number)
            total += sizes[name]
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".") or "pictures"
        parts = [
            Part(f"{safe}/test-{index:05d}", source, "test", len(numbers), "", tuple(numbers))
            for index, numbers in enumerate(groups)
        ]
        texts = sorted(self._texts.items())
        return parts, [source, [(name, sizes[name]) for name in self._files], texts]

    def _captions(self, location: str, names: list[str]) -> dict[str, str]:
        """Texts of the files that a table names. Rows that fit none are refused, each alone."""
        columns = self.pictures.file_column, self.pictures.text_column
        found = match(CaptionTable(location, *columns, form=self.pictures.table), names)
        self.notes += found.notes
        self.refused = found.refused
        if found.refused:
            first = found.refused[0]
            place, rows = public_url(location), len(found.refused) + len(found.listed)
            what = (
                f"{place}:{first.line}: {first.name}: {first.problem} in {self.pictures.place} "
                f"({len(found.refused):,} of {rows:,} rows do not fit)"
            )
            if not found.listed:
                raise AigiError(f"{what}. Correct the table.")
            self.notes.append(f"{what}; they are left out")
        return {name: text or "" for name, (text, _) in found.listed.items()}

    def _own_texts(self, names: list[str]) -> dict[str, str]:
        """Texts that a place itself has, as an import reads them; an image need not have any."""
        asked = self.pictures
        given = Captions(
            file_column=asked.file_column,
            text_column=asked.text_column,
            form=asked.table,
            required="text_column" in asked.model_fields_set,
        )
        found = list(captions_of(self._opened, names, given, self.notes))
        images = set(names)
        others = Counter(
            one.problem for one in found if one.name not in images and one.problem != NOT_AN_IMAGE
        )
        if others:
            what = ", ".join(f"{count:,} {why}" for why, count in others.most_common())
            self.notes.append(f"{self.pictures.place}: left out: {what}")
        return {one.name: one.text for one in found if one.text is not None}

    def _size(self, name: str) -> int:
        try:
            return self._opened.size(name)
        except BadPicture:  # a link to nothing: reported when it is read
            return 0

    def _data(self, name: str) -> bytes:
        try:
            return self._opened.read(name)
        except (BadPicture, OSError) as error:
            raise AigiError(f"{self.pictures.place}: {name}: cannot be read: {error}") from error

    def _picture(self, part: Part, number: int) -> dict[str, Any]:
        name = self._files[number]
        data = self._data(name)
        width, height = image_size(data) or (None, None)
        return {
            "image_id": hashlib.sha256(name.encode() + b"\0" + data).hexdigest()[:32],
            "image": {"bytes": data, "path": name},
            "text": self._texts.get(name, ""),
            "source": part.source,
            "split": part.split,
            "width": width,
            "height": height,
            "watermark": "none",
            "pair_id": None,
        }


def report(collection: Collection, store: Store, stage: str, progress: Progress) -> None:
    """Say what was found in another way or left out, and write the rows that were refused.

    Args:
        stage: what reads the collection: the name of the shard of rejects.
    """
    for note in collection.notes:
        progress.say(f"{stage}: {note}")
    asked = collection.pictures
    if collection.refused:
        source = asked.name or asked.place
        rows = [
            {"source": public_url(source), "file": f"{public_url(asked.captions or '')}:{one.name}",
             "line": one.line, "reason": one.problem, "text": one.text}
            for one in collection.refused
        ]  # fmt: skip
        store.write("rejects", stage, pa.Table.from_pylist(rows, REJECTS), REJECTS)


def pictures_of(collection: Collection) -> Iterator[tuple[RGB, str]]:
    """Decoded images (uint8, H x W x 3) and prompts, in order.

    Raises:
        AigiError: an image cannot be decoded.
    """
    for part in collection.parts:
        for row in collection.read(part.name, ["image_id", "image", "text"]).to_pylist():
            try:
                yield decode(row["image"]["bytes"], MOST_PIXELS).rgb, row["text"] or ""
            except BadPicture as error:
                raise AigiError(f"{part.name}: image {row['image_id']}: {error}") from error


def _source_of(root: str) -> str:
    """The name of a folder, or of an archive without its ending."""
    name = posixpath.basename(public_url(root).rstrip("/"))
    return re.sub(r"(?i)\.(zip|tar|parquet)$", "", name)


def _parts(path: str, source: str, split: str, metadata: Any) -> Iterator[Part]:
    """A file's row groups: long ones cut, so that a part is small enough to hold."""
    name = path.removesuffix(".parquet")
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for skip in range(0, rows, ROWS):
            yield Part(
                f"{name}.{group}" + (f".{skip}" if skip else ""),
                source,
                split,
                min(ROWS, rows - skip),
                path,
                (group,),
                skip,
            )


def _read_groups(store: Store, part: Part, wanted: list[str]) -> pa.Table:
    path = store.path(part.path)
    with store.parquet("", part.path.removesuffix(".parquet"), wanted, some=True) as parquet:
        have = [name for name in wanted if name in parquet.schema_arrow.names]
        table = parquet.read_row_groups(list(part.groups), have)
    table = table.slice(part.skip, part.rows)
    columns = []
    for name in wanted:
        kind = COLUMNS.field(name).type
        if name == "split":
            columns.append(pa.repeat(pa.scalar(part.split), table.num_rows))
        elif name in have:
            columns.append(pc.cast(table[name], kind))
        elif name in ("watermark", "pair_id", "text"):
            value = {"watermark": "none", "text": ""}.get(name)
            columns.append(pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
        else:
            raise AigiError(f"{path}: no column {name}: not a file of a release")
    return pa.table(columns, schema=pa.schema([COLUMNS.field(name) for name in wanted]))
