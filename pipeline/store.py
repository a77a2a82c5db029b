"""A run directory: shards of tables in and out, each written whole or not at all.

A table is a folder of parquet shards. What is read is compared with what the record
of its stage says was written.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError, lent
from pipeline.faults import let_through
from pipeline.folder import Folder, as_json, stamp_of
from pipeline.gate import check, refused
from pipeline.parquet import (
    MADE_FROM,
    NOTE,
    Hashing,
    Notes,
    footer_sha256,
    no_notes,
    write_parquet,
)
from pipeline.pixels import RGB, BadPicture, pixels_sha256, stored
from pipeline.record import Record, Written
from pipeline.shown import redacted

WHOLE = 16 << 20
"""Files of up to this many bytes are hashed whole when they are read, and others where all or
most of them is read; else their footer and the checksums of the pages show what is damaged."""

RECORDS = "_stages"
RUN_WORKFLOW = "_workflow.json"
"""In a run: the workflow that made it, with all defaults."""

_TEXT_KEPT = 1 << 16  # bytes of a JSON file of which the record has a copy


@dataclass(frozen=True)
class Shard:
    """A written shard: its rows, its size in bytes, and the sha256 of the file and its footer."""

    name: str
    rows: int
    bytes: int
    sha256: str
    footer: str = ""
    stamp: str = ""

    def written(self, made_from: str | None) -> Written:
        """What a record keeps of it."""
        return Written(
            rows=self.rows,
            bytes=self.bytes,
            sha256=self.sha256,
            footer=self.footer,
            stamp=self.stamp,
            made_from=made_from,
        )


class Damaged(AigiError):
    """A file is not what was written, or cannot be read as what it is.

    Args:
        text: all of it: the file, why, and the remedy.
        why: the reason alone, for a list whose lines name the files and which ends with the remedy.
    """

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.why = redacted(why or text)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _have(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> None:
    for name in columns or ():
        # Of a struct, one field can be read: `image.path`.
        if name.partition(".")[0] not in parquet.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {name}")


class Store(Folder):
    """A run directory, on local disk or at any fsspec URL: `ROOT/<table>/<shard>.parquet`.

    Args:
        url: local path or fsspec URL, for example `s3://bucket/runs/a` or `memory://a`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._records: dict[str, tuple[tuple[int, ...] | None, Record | None]] = {}
        self._mine: dict[tuple[str, str], Written] = {}
        self._expected: dict[str, Written] = {}
        self._log: set[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what it remembers: a worker asks the records themselves."""
        return {**self.__dict__, "_records": {}, "_mine": {}, "_log": None}

    def listing(self, table: str) -> dict[str, tuple[int, str]]:
        """Names of the table's shards, sorted, each with its bytes and when it changed."""
        folder = self.path(table)
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(folder).rstrip("/") + "/"
        listed = {}
        for path, info in sorted(found.items()):
            name = path[len(base) :] if path.startswith(base) else posixpath.basename(path)
            if name.endswith(".parquet") and not posixpath.basename(name).startswith("."):
                listed[name.removesuffix(".parquet")] = int(info["size"] or 0), stamp_of(info)
        return listed

    def shards(self, table: str) -> dict[str, int]:
        """Names of the table's shards, sorted, each with its size in bytes."""
        return {name: size for name, (size, _) in self.listing(table).items()}

    # --- records -------------------------------------------------------------------------------

    def _state(self, table: str) -> tuple[int, ...] | None:
        """What changes when another process writes a record; not known of stores elsewhere."""
        if not self.local:
            return None
        try:
            found = os.stat(self.path(RECORDS, f"{table}.json"))
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def record(self, table: str) -> Record | None:
        """The record of a stage; None without one.

        Raises:
            Damaged: it is not such a record.
        """
        state = self._state(table)
        if table not in self._records or self._records[table][0] != state:
            path = self.path(RECORDS, f"{table}.json")
            remedy = (
                f"This is the record of the {table} stage: put back a copy of it; or delete it, "
                "and run the workflow with --adopt to take up the files that it described."
            )
            try:
                data = self.read_json(RECORDS, f"{table}.json", remedy=remedy)
                found = None if data is None else check(Record, data, path, remedy)
                if found is not None and found.table != table:
                    raise refused(path, "table", f"the record of {found.table}", remedy)
            except AigiError as error:
                raise Damaged(str(error)) from None
            self._records[table] = state, found
        return self._records[table][1]

    def write_record(self, record: Record) -> None:
        """Write the record of a stage."""
        data = record.model_dump(mode="json", exclude_defaults=True)
        self.write_json(data, RECORDS, f"{record.table}.json")
        self._records[record.table] = self._state(record.table), record
        self._mine = {key: one for key, one in self._mine.items() if key[0] != record.table}

    def rewrite(self, table: str, value: object, *parts: str) -> None:
        """Write a JSON file beside a finished table anew, and the copy that its record has."""
        data = as_json(value)
        path = posixpath.join(*parts)
        record = self.record(table)
        if record is not None and path in record.beside:
            now = Written(bytes=len(data), sha256=_sha256(data), text=data.decode())
            self.write_record(record.model_copy(update={"beside": {**record.beside, path: now}}))
        self.write_bytes(data, path)

    def _changes(self, path: str) -> None:
        if self._log is not None:
            self._log.add(posixpath.relpath(path, self.root))
        # A record that changes by another way than `write_record` is asked again.
        if posixpath.basename(posixpath.dirname(path)) == RECORDS or path.endswith(RECORDS):
            self._records.clear()

    def written(self, table: str, shard: str) -> Written | None:
        """What is known of a shard as it was written; None: nothing."""
        if (mine := self._mine.get((table, shard))) is not None:
            return mine
        if not table:
            return self._expected.get(shard)
        record = self.record(table)
        known = None if record is None else record.shards.get(shard)
        if known is not None and known.until_bytes is not None:
            return known.of_size(self.size(table, f"{shard}.parquet"))
        return known

    def believe(self, table: str, shard: str, written: Written) -> None:
        """What a shard without a record is."""
        self._mine[table, shard] = written

    def sha256_of(self, table: str, shard: str) -> str:
        """sha256 of a shard as it was written, in hex; where that is not known, as it is.

        Raises:
            Damaged: it is missing, or not readable.
        """
        known = self.written(table, shard)
        if known is None or not known.sha256:
            known = self.look(table, f"{shard}.parquet")
        if known is None:
            raise self.damaged(self.path(table, f"{shard}.parquet"), "missing")
        return known.made_as or known.sha256

    def expect(self, path: str, size: int, sha256: str) -> None:
        """What a parquet file of a release must be, by its manifest; checked when it is read."""
        self._expected[path.removesuffix(".parquet")] = Written(bytes=size, sha256=sha256)

    @contextmanager
    def logged(self) -> Iterator[set[str]]:
        """Paths, below the root, of all that this process writes in the meantime."""
        log: set[str] = set()
        self._log = log
        try:
            yield log
        finally:
            self._log = None

    def look(self, *parts: str) -> Written | None:
        """A file as it is now: size, hash and stamp, and rows of a parquet file; None without it.

        Raises:
            Damaged: a parquet file is not readable.
        """
        path = self.path(*parts)
        try:
            info = self.fs.info(path)
        except FileNotFoundError:
            return None
        sha256 = self.sha256(*parts)
        found = Written(bytes=int(info["size"]), sha256=sha256, stamp=stamp_of(info))
        if not path.endswith(".parquet"):
            small = path.endswith(".json") and info["size"] <= _TEXT_KEPT
            if not small:
                return found
            text = self.fs.cat_file(path).decode(errors="replace")
            return found.model_copy(update={"text": text})
        with self._reading(path), self.fs.open(path, "rb") as file:
            footer = footer_sha256(file)
            rows = pq.read_metadata(file).num_rows
        return found.model_copy(update={"footer": footer, "rows": rows})

    def made_from(self, table: str, shard: str) -> str | None:
        """What a shard itself says that it was made from; None: nothing."""
        metadata = self.metadata(table, shard)
        said = None if metadata is None else (metadata.metadata or {}).get(MADE_FROM.encode())
        return None if said is None else said.decode(errors="replace")

    # --- reading -------------------------------------------------------------------------------

    @property
    def remedy(self) -> str:
        """What to do about a damaged file."""
        run = self.url.rstrip("/").removesuffix("/release")
        with suppress(AigiError, OSError):  # there is an error already, which is to be shown
            for store in (self, Store(run)):
                path = store.path(RUN_WORKFLOW)
                if store.fs.exists(path):
                    place = shlex.quote(f"run={store.url}")
                    return f"To remake it: aigi run {shlex.quote(path)} --set {place} --rehash"
        return "Get it again; in a run, make it again with aigi run WORKFLOW --rehash."

    def damaged(self, path: str, why: str) -> Damaged:
        """The error about a file: what is wrong with it, and what remakes it."""
        return Damaged(f"{path}: {why}. {self.remedy}", why)

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Around the reading of a parquet file: errors name the file and the remedy."""
        try:
            yield
        except FileNotFoundError:
            raise self.damaged(path, "missing") from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise self.damaged(path, f"damaged ({text})") from error
        except (OSError, pa.ArrowException, MemoryError, OverflowError) as error:
            # Arrow reports a page whose checksum is wrong as an I/O error without a number.
            text = " ".join(str(error).split())[:200]
            let_through(error, path)  # a disk that fails is no reason to remake anything
            raise self.damaged(path, f"cannot be read ({text})") from error

    @contextmanager
    def parquet(
        self, table: str, shard: str, columns: Sequence[str] | None, some: bool = False
    ) -> Iterator[pq.ParquetFile]:
        """A shard that is opened for reading, and that is what its record says.

        Args:
            columns: what will be read; None: all.
            some: only some of its row groups.
        """
        path, known = self.path(table, f"{shard}.parquet"), self.written(table, shard)
        with self._reading(path), ExitStack() as stack:
            file: Any = stack.enter_context(self.fs.open(path, "rb"))
            size = file.seek(0, os.SEEK_END)
            if known is not None and known.bytes not in (None, size):
                raise pa.ArrowInvalid(f"{size:,} bytes, and {known.bytes:,} were written")
            most = not some and (columns is None or "image" in columns)
            if size <= WHOLE or (most and known is not None and known.sha256):
                file.seek(0)
                data = file.read()
                sha256 = _sha256(data)
                if known is not None and known.sha256 not in ("", sha256):
                    raise pa.ArrowInvalid("its content is not what was written")
                file = pa.BufferReader(data)
            else:
                if known is not None and known.sha256 and not known.footer and self.local:
                    known = self._hashed(table, shard, file, known)
                if known is not None and known.footer and footer_sha256(file) != known.footer:
                    raise pa.ArrowInvalid("its footer is not what was written")
                if self.local:
                    file = stack.enter_context(pa.OSFile(path))
            # Read ahead, Arrow may let go of a Python file in a thread of its own while the
            # interpreter ends, which ends the process with SIGABRT.
            parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            yield stack.enter_context(parquet)

    def _hashed(self, table: str, shard: str, file: IO[bytes], known: Written) -> Written:
        """What is known of a file, and its footer, once its whole content has been compared."""
        file.seek(0)
        if hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != known.sha256:
            raise pa.ArrowInvalid("its content is not what was written")
        found = known.model_copy(update={"footer": footer_sha256(file)})
        self._mine[table, shard] = found
        return found

    def rows(self, table: str, shard: str) -> int | None:
        """Rows of a shard, read from its footer; None where it is missing or damaged."""
        metadata = self.metadata(table, shard)
        return None if metadata is None else int(metadata.num_rows)

    def metadata(self, table: str, shard: str) -> pq.FileMetaData | None:
        """The footer of a shard; None where it is missing or damaged."""
        path, known = self.path(table, f"{shard}.parquet"), self.written(table, shard)
        try:
            with self._reading(path), self.fs.open(path, "rb") as file:
                if known is not None and known.footer and footer_sha256(file) != known.footer:
                    return None
                if known is not None and known.bytes not in (None, file.seek(0, os.SEEK_END)):
                    return None
                return pq.read_metadata(file)
        except Damaged:
            return None

    def schema(self, table: str, shard: str) -> pa.Schema | None:
        """Columns of a shard, read from its footer; None where it is missing or damaged.

        `schema` of a footer would do, but keeps it in memory for as long as the process lives.
        """
        path = self.path(table, f"{shard}.parquet")
        try:
            with self._reading(path), self.fs.open(path, "rb") as file:
                return pq.ParquetFile(file, pre_buffer=False).schema_arrow
        except Damaged:
            return None

    def rows_of(self, table: str, shards: list[str]) -> dict[str, int | None]:
        """`rows` of many shards at once: on an object store each is a round trip."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(shards, pool.map(partial(self.rows, table), shards), strict=True))

    def read(self, table: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard.

        Raises:
            Damaged: missing, unreadable, or not what was written; with the remedy.
        """
        names = None if columns is None else list(columns)
        with self.parquet(table, shard, names) as parquet:
            _have(parquet, names)
            found = parquet.read(names)
            found.validate(full=True)
        if names is None or "image" in names:
            found = lent.filled(self, table, shard, found)
        about = {
            key: value
            for key, value in (found.schema.metadata or {}).items()
            if not key.startswith(NOTE.encode())
        }
        return found.replace_schema_metadata(about or None)

    def aligned(
        self,
        shard: str,
        tables: Mapping[str, Sequence[str] | None],
        ids: pa.ChunkedArray | None = None,
    ) -> dict[str, pa.Table]:
        """Columns of one shard of several tables that all have a row for the same images.

        Args:
            tables: columns by table, beside `image_id`; None: all.
            ids: the images that every table must have, in order; by default those of the first.

        Raises:
            AigiError: a table has other rows than that; missing or unreadable.
        """
        found: dict[str, pa.Table] = {}
        for table, columns in tables.items():
            wanted = None if columns is None else list(dict.fromkeys(("image_id", *columns)))
            found[table] = self.read(table, shard, wanted)
            if ids is None:
                ids = found[table]["image_id"]
            elif found[table]["image_id"] != ids:
                first = next(iter(found)) if len(found) > 1 else "input"
                raise AigiError(
                    f"{self.path(table, shard)}.parquet does not have the rows of the {first} "
                    f"table. {self.remedy}"
                )
        return found

    def rows_at(
        self, table: str, shard: str, rows: Iterable[int], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """These rows of a shard in ascending order; only their row groups are read, each once.

        Raises:
            AigiError: missing or damaged, or it has no such row.
        """
        path, left = self.path(table, f"{shard}.parquet"), sorted(set(rows))
        start = 0
        images = lent.some(self, table, shard, columns, left)
        with self.parquet(table, shard, columns, some=True) as parquet:
            _have(parquet, columns)
            for group in range(parquet.metadata.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                mine = [row for row in left if start <= row < end]
                if mine:
                    held = parquet.read_row_group(group, columns=columns).take(
                        [row - start for row in mine]
                    )
                    for row, values in zip(mine, held.to_pylist(), strict=True):
                        if row in images:
                            values["image"] = next(images[row])
                        yield row, values
                start = end
        if left and left[-1] >= start:
            raise AigiError(f"{path}: has {start} rows, and no row {left[-1] + 1}")

    def images(
        self, table: str, shard: str, rows: Iterable[int], columns: Sequence[str] = ()
    ) -> Iterator[tuple[int, RGB, dict[str, Any]]]:
        """Decoded images of these rows (uint8, H x W x 3); a row without one is left out.

        Args:
            columns: further columns of each row.

        Raises:
            AigiError: as `rows_at` and `pixels`.
        """
        own = ("image_id", "image", "width", "height", "pixels_sha256")
        wanted = list(dict.fromkeys((*own, *columns)))
        for row, values in self.rows_at(table, shard, rows, wanted):
            if values["image"] is not None:
                yield row, self.pixels(table, shard, row, values), values

    def pixels(self, table: str, shard: str, row: int, values: Mapping[str, Any]) -> RGB:
        """The decoded image of a row of `images` or `release`: uint8, H x W x 3.

        Raises:
            Damaged: it cannot be decoded, is larger than its row states, has other pixels, or is
                not a PNG or WebP as aigi stores it.
        """
        try:
            if values["image"] is None:
                raise BadPicture("no image")
            rgb = stored(values["image"], values["width"] * values["height"])
            if pixels_sha256(rgb) != values["pixels_sha256"]:
                raise BadPicture("other pixels than its pixels_sha256 states")
        except BadPicture as error:
            path = self.path(table, f"{shard}.parquet")
            raise self.damaged(path, f"row {row + 1} ({values['image_id']}): {error}") from error
        return rgb

    def read_all(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """Read a whole (narrow) table, shards in name order.

        Raises:
            AigiError: the table has no shard.
        """
        names = list(self.shards(table))
        if not names:
            raise AigiError(f"{self.path(table)}: no {table} table in this run")
        with ThreadPoolExecutor(8) as pool:
            return pa.concat_tables(pool.map(lambda name: self.read(table, name, columns), names))

    def write(
        self,
        table: str,
        shard: str,
        chunks: pa.Table | Iterable[pa.Table],
        schema: pa.Schema,
        notes: Notes = no_notes,
    ) -> Shard:
        """Write one shard whole or not at all; row groups are written while chunks arrive.

        Args:
            notes: about all of its rows, for its footer.

        Raises:
            DiskFull: nothing of the shard is left behind.
        """
        if isinstance(chunks, pa.Table):
            chunks = [chunks]
        rows, footer = 0, ""

        def fill(file: IO[bytes]) -> Hashing:
            nonlocal rows, footer
            sink = Hashing(file)
            rows = write_parquet(sink, chunks, schema, notes)
            file.flush()
            footer = footer_sha256(file)
            return sink

        path = self.path(table, f"{shard}.parquet")
        sink = self._replace(path, fill)
        stamp = stamp_of(self.fs.info(path))
        made = Shard(shard, rows, sink.bytes, sink.sha.hexdigest(), footer, stamp)
        self._mine[table, shard] = made.written(None)
        return made

    def read_arrow(self, *parts: str) -> pa.Table | None:
        """Read an Arrow file as `write_arrow` writes it; None without it.

        Raises:
            Damaged: it is none, or is cut.
        """
        path = self.path(*parts)
        if not self.fs.exists(path):
            return None
        with self._reading(path), self.fs.open(path, "rb") as file, pa.ipc.open_file(file) as found:
            table = found.read_all()
            table.validate(full=True)
            return table

    def made_elsewhere(self, table: str, shard: Shard) -> None:
        """Take note of a shard that another process wrote on behalf of this one."""
        self._changes(self.path(table, f"{shard.name}.parquet"))
        self._mine[table, shard.name] = shard.written(None)

    def write_arrow(
        self, tables: Iterable[pa.Table], schema: pa.Schema, *parts: str
    ) -> tuple[int, str]:
        """Write an Arrow file of one record batch per table, whole or not at all.

        Returns: its bytes and their sha256.
        """

        def fill(file: IO[bytes]) -> Hashing:
            sink = Hashing(file)
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(sink, schema, options=options) as writer:
                for table in tables:
                    # Without a limit, one batch: strings of a shard stay below 2 GiB.
                    writer.write_table(table.combine_chunks())
            sink.check()
            return sink

        sink = self._replace(self.path(*parts), fill)
        return sink.bytes, sink.sha.hexdigest()
