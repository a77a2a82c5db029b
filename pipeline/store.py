"""A run directory: shards of tables in and out, each written whole or not at all.

A table is a folder of parquet shards. A shard appears under its name only when it is whole:
local files are written to a temporary name, flushed to disk and renamed; on object stores the
one upload call makes the file visible at its end.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError
from pipeline.files import replaced, sweep
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.tables import IMAGE

# Small row groups let a reader skip to one image; narrow tables need long ones.
IMAGE_ROWS, IMAGE_BYTES = 100, 64 << 20
NARROW_ROWS = 65_536

Notes = Callable[[], Mapping[str, str]]
"""What to write into the footer of a shard; asked for when all of its rows are written."""


def row_group_limits(schema: pa.Schema) -> dict[str, int]:
    """The most `rows` of a row group, and the most `bytes` if the table has images."""
    if "image" in schema.names:
        return {"rows": IMAGE_ROWS, "bytes": IMAGE_BYTES}
    return {"rows": NARROW_ROWS}


@dataclass(frozen=True)
class Shard:
    """A written shard: its rows, its size in bytes and the sha256 of the file."""

    name: str
    rows: int
    bytes: int
    sha256: str


class DiskFull(AigiError):
    """No space left where a shard was being written; the finished shards are kept."""


@contextmanager
def _space(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{where}: no space left on the device. Finished shards are kept; "
                "free some space and run the same command again."
            ) from error
        raise


class _Hashing:
    """A write-only file that keeps the sha256 and the length of what goes through it.

    With content-defined chunking, Arrow 26 ends the whole process where a write fails. So a
    failure is kept, and `check` raises it outside of Arrow.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha, self.bytes, self.closed = file, hashlib.sha256(), 0, False
        self.failure: OSError | None = None

    def check(self) -> None:
        """Raise the first failure of a write, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.failure = error
        self.sha.update(data)
        self.bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """Nothing to do: `_replace` flushes the file itself."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _row_groups(chunks: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Regroup chunks by rows and bytes alone, so that timing never moves a boundary."""
    limits = row_group_limits(schema)
    most_rows, most_bytes = limits["rows"], limits.get("bytes")
    # A row at a time where images are: one may be tens of megabytes.
    step = most_rows if most_bytes is None else 1
    held: list[pa.Table] = []
    rows = size = 0
    for chunk in chunks:
        for start in range(0, chunk.num_rows, step):
            piece = chunk.slice(start, step)
            # nbytes of a slice counts the slice only, unlike get_total_buffer_size.
            if held and (
                rows + piece.num_rows > most_rows
                or (most_bytes is not None and size + piece.nbytes > most_bytes)
            ):
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
            held.append(piece)
            rows, size = rows + piece.num_rows, size + piece.nbytes
    if held:
        yield pa.concat_tables(held)


def no_notes() -> Mapping[str, str]:
    """The notes of a shard about which there is nothing to note."""
    return {}


def _write_parquet(
    sink: _Hashing, chunks: Iterable[pa.Table], schema: pa.Schema, notes: Notes
) -> int:
    """Write row groups in a thread of their own while the worker makes the next rows."""
    rows = 0
    names = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in ("image_id", "pixels_sha256")
    ]
    # PNG bytes do not compress again; everything else does, very well.
    codecs = {
        path: "NONE" if path == "image.bytes" else "ZSTD"
        for field in schema
        for path in (
            [f"{field.name}.bytes", f"{field.name}.path"] if field.type == IMAGE else [field.name]
        )
    }
    with (
        pq.ParquetWriter(
            sink,
            schema,
            compression=codecs,
            use_dictionary=names,
            use_content_defined_chunking=True,
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
        ThreadPoolExecutor(1, "parquet") as thread,
    ):
        pending: Future[None] | None = None
        for group in _row_groups(chunks, schema):
            if pending is not None:
                pending.result()
                sink.check()
            pending = thread.submit(
                writer.write_table, group.cast(schema), row_group_size=group.num_rows
            )
            rows += group.num_rows
        if pending is not None:
            pending.result()
        if found := notes():
            writer.add_key_value_metadata(dict(found))
    sink.check()
    return rows


class Store:
    """A run directory, on local disk or at any fsspec URL: `ROOT/<table>/<shard>.parquet`.

    Args:
        url: local path or fsspec URL, for example `s3://bucket/runs/a` or `memory://a`.
    """

    def __init__(self, url: str) -> None:
        try:
            # Other processes write here too: a remembered listing would hide their shards.
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise AigiError(f"run: {url}: {error}") from error
        self.url = url
        self.local = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def path(self, *parts: str) -> str:
        """Path of a file or folder below the root, for `self.fs`."""
        return posixpath.join(self.root, *parts)

    def shards(self, table: str) -> dict[str, int]:
        """Names of the table's shards, sorted, each with its size in bytes."""
        folder = self.path(table)
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(folder).rstrip("/") + "/"
        sizes = {}
        for path, info in sorted(found.items()):
            name = path[len(base) :] if path.startswith(base) else posixpath.basename(path)
            if name.endswith(".parquet") and not posixpath.basename(name).startswith("."):
                sizes[name.removesuffix(".parquet")] = int(info["size"] or 0)
        return sizes

    def size(self, *parts: str) -> int | None:
        """Bytes of a file; None without it."""
        try:
            return int(self.fs.info(self.path(*parts))["size"])
        except FileNotFoundError:
            return None

    def rows(self, table: str, shard: str) -> int | None:
        """Rows of a shard, read from its footer; None where it is missing or cut short."""
        metadata = self.metadata(table, shard)
        return None if metadata is None else int(metadata.num_rows)

    def metadata(self, table: str, shard: str) -> pq.FileMetaData | None:
        """The footer of a shard; None where it is missing or cut short."""
        try:
            with self.fs.open(self.path(table, f"{shard}.parquet"), "rb") as file:
                return pq.read_metadata(file)
        except (FileNotFoundError, pa.ArrowInvalid, EOFError):
            return None

    def rows_of(self, table: str, shards: list[str]) -> dict[str, int | None]:
        """`rows` of many shards at once: on an object store each is a round trip."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(shards, pool.map(partial(self.rows, table), shards), strict=True))

    def read(self, table: str, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Read one shard.

        Raises:
            AigiError: missing or unreadable, with the remedy.
        """
        path = self.path(table, f"{shard}.parquet")
        try:
            if self.local:
                return pq.read_table(path, columns=columns, partitioning=None)
            with self.fs.open(path, "rb") as file:
                # Read ahead, Arrow may let go of the Python file in a thread of its own while
                # the interpreter ends, which ends the process with SIGABRT.
                return pq.read_table(file, columns=columns, partitioning=None, pre_buffer=False)
        except FileNotFoundError:
            raise AigiError(f"{path}: missing. Run the {table} stage again.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise AigiError(
                f"{path}: unreadable ({error}). Delete it and run again to remake it."
            ) from error

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
                    "table. Delete it and run again to remake it."
                )
        return found

    def rows_at(
        self, table: str, shard: str, rows: Iterable[int], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """These rows of a shard in ascending order; only their row groups are read, each once.

        Raises:
            AigiError: missing or unreadable, or it has no such row.
        """
        path, left = self.path(table, f"{shard}.parquet"), sorted(set(rows))
        try:
            with self.fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                start = 0
                for group in range(parquet.metadata.num_row_groups):
                    end = start + parquet.metadata.row_group(group).num_rows
                    mine = [row for row in left if start <= row < end]
                    if mine:
                        held = parquet.read_row_group(group, columns=columns).take(
                            [row - start for row in mine]
                        )
                        yield from zip(mine, held.to_pylist(), strict=True)
                    start = end
        except FileNotFoundError:
            raise AigiError(f"{path}: missing. Run the {table} stage again.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise AigiError(
                f"{path}: unreadable ({error}). Delete it and run again to remake it."
            ) from error
        if left and left[-1] >= start:
            raise AigiError(f"{path}: has {start} rows, and no row {left[-1] + 1}")

    def images(
        self, table: str, shard: str, rows: Iterable[int], columns: Sequence[str] = ()
    ) -> Iterator[tuple[int, RGB, dict[str, Any]]]:
        """Decoded images of these rows (uint8, H x W x 3); a row without one is left out.

        Args:
            columns: further columns of each row.

        Raises:
            AigiError: as `rows_at`; a stored image is damaged or larger than its row states.
        """
        wanted = list(dict.fromkeys(("image_id", "image", "width", "height", *columns)))
        for row, values in self.rows_at(table, shard, rows, wanted):
            if values["image"] is None:
                continue
            try:
                rgb = decode(values["image"]["bytes"], values["width"] * values["height"]).rgb
            except BadPicture as error:
                raise AigiError(
                    f"{self.path(table, shard)}.parquet: row {row + 1} ({values['image_id']}): "
                    f"{error}. Delete the file and run again to remake it."
                ) from error
            yield row, rgb, values

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
        rows = 0

        def fill(file: IO[bytes]) -> _Hashing:
            nonlocal rows
            sink = _Hashing(file)
            rows = _write_parquet(sink, chunks, schema, notes)
            return sink

        sink = self._replace(self.path(table, f"{shard}.parquet"), fill)
        return Shard(shard, rows, sink.bytes, sink.sha.hexdigest())

    def write_arrow(
        self, tables: Iterable[pa.Table], schema: pa.Schema, *parts: str
    ) -> tuple[int, str]:
        """Write an Arrow file of one record batch per table, whole or not at all.

        Returns: its bytes and their sha256.
        """

        def fill(file: IO[bytes]) -> _Hashing:
            sink = _Hashing(file)
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(sink, schema, options=options) as writer:
                for table in tables:
                    # Without a limit, one batch: strings of a shard stay below 2 GiB.
                    writer.write_table(table.combine_chunks())
            sink.check()
            return sink

        sink = self._replace(self.path(*parts), fill)
        return sink.bytes, sink.sha.hexdigest()

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a small file whole or not at all."""

        def fill(file: IO[bytes]) -> _Hashing:
            sink = _Hashing(file)
            sink.write(data)
            sink.check()
            return sink

        self._replace(self.path(*parts), fill)

    def copy(self, source: IO[bytes], *parts: str) -> None:
        """Write all that is left of an open file, block by block, whole or not at all."""

        def fill(file: IO[bytes]) -> None:
            while block := source.read(1 << 22):
                file.write(block)

        self._replace(self.path(*parts), fill)

    def sha256(self, *parts: str) -> str:
        """sha256 of a file, in hex; for large files on the Hub, as the Hub states it."""
        digest = hashlib.sha256()
        stated = getattr(self.fs.info(self.path(*parts)).get("lfs"), "sha256", None)
        if stated is not None:
            return str(stated)
        with self.fs.open(self.path(*parts), "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """Read a JSON object; None where the file does not exist."""
        try:
            data = self.fs.cat_file(self.path(*parts))
        except FileNotFoundError:
            return None
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise AigiError(f"{self.path(*parts)}: not JSON ({error}); delete it") from error
        return value

    def read_csv(self, *parts: str) -> list[dict[str, str]]:
        """Read the rows of a CSV file with a header; none where it does not exist.

        A last line that is still being written, without its line break, is left out.
        """
        try:
            text = self.fs.cat_file(self.path(*parts)).decode()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline="")))

    def write_json(self, value: object, *parts: str) -> None:
        """Write a JSON object, keys in order, whole or not at all."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        self.write_bytes(text.encode() + b"\n", *parts)

    def remove(self, *parts: str) -> None:
        """Remove a file or folder; one that does not exist is no error."""
        path = self.path(*parts)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def _replace(self, path: str, fill: Any) -> Any:
        """Let `fill` write a temporary file, then make it visible as `path` in one step."""
        with _space(path):
            if not self.local:
                with tempfile.TemporaryDirectory(prefix="aigi-") as folder:
                    name = os.path.join(folder, "shard")
                    with open(name, "wb") as file:
                        result = fill(file)
                    self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
                    self.fs.put_file(name, path)
                return result
            os.makedirs(posixpath.dirname(path), exist_ok=True)
            with replaced(path) as name, open(name, "wb") as file:
                result = fill(file)
            return result

    def sweep(self, table: str) -> None:
        """Remove temporary files that a killed process left in a local table."""
        if self.local:
            sweep(self.path(table))
