"""One parquet file: rows in, row groups with checksums out; what its footer says.

Boundaries of row groups depend on the rows alone, so the same rows are the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tables import IMAGE

# Small row groups let a reader skip to one image; narrow tables need long ones.
IMAGE_ROWS, IMAGE_BYTES = 100, 64 << 20
NARROW_ROWS = 65_536
ROW_OVERHEAD = 4096  # bytes that a row of its own has more of at the most: masks and offsets

NOTE = "aigi."
"""Keys of a file's metadata that begin so are ours; no table has them when it is read."""
MADE_FROM = f"{NOTE}made_from"
"""Key of the digest of what a shard was made from."""

Notes = Callable[[], Mapping[str, str]]
"""What to write into the footer of a shard; asked for when all of its rows are written."""


def no_notes() -> Mapping[str, str]:
    """The notes of a shard about which there is nothing to note."""
    return {}


def row_group_limits(schema: pa.Schema) -> dict[str, int]:
    """The most `rows` of a row group, and the most `bytes` if the table has images."""
    if "image" in schema.names:
        return {"rows": IMAGE_ROWS, "bytes": IMAGE_BYTES}
    return {"rows": NARROW_ROWS}


class Hashing:
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
    if "bytes" in limits:
        yield from _image_groups(chunks, limits["rows"], limits["bytes"])
        return
    held: list[pa.Table] = []
    rows, most = 0, limits["rows"]
    for chunk in chunks:
        for start in range(0, chunk.num_rows, most):
            piece = chunk.slice(start, most)
            if held and rows + piece.num_rows > most:
                yield pa.concat_tables(held)
                held, rows = [], 0
            held.append(piece)
            rows += piece.num_rows
    if held:
        yield pa.concat_tables(held)


def _row_bytes(table: pa.Table) -> Iterator[int]:
    """Bytes of each row as a table of its own."""
    for row in range(table.num_rows):
        # nbytes of a slice counts the slice only, unlike get_total_buffer_size.
        yield table.slice(row, 1).nbytes


def _image_groups(
    chunks: Iterable[pa.Table], most_rows: int, most_bytes: int
) -> Iterator[pa.Table]:
    """Row groups of a table with images, whose bytes are the sum of those of single rows."""
    held: list[pa.Table] = []
    rows = size = 0
    counted = True  # false: size is a bound, because counting rows one by one is slow
    for chunk in chunks:
        start = 0
        while start < chunk.num_rows:
            piece = chunk.slice(start, most_rows - rows)
            bound = size + piece.nbytes + ROW_OVERHEAD * piece.num_rows
            if bound <= most_bytes:
                size, counted = bound, False
            else:
                if not counted:
                    size, counted = sum(sum(_row_bytes(table)) for table in held), True
                fits = 0
                for row_bytes in _row_bytes(piece):
                    if (rows or fits) and size + row_bytes > most_bytes:
                        break
                    size, fits = size + row_bytes, fits + 1
                piece = piece.slice(0, fits)
            if piece.num_rows:
                held.append(piece)
            start, rows = start + piece.num_rows, rows + piece.num_rows
            if rows == most_rows or not piece.num_rows or start < chunk.num_rows:
                yield pa.concat_tables(held)
                held, rows, size, counted = [], 0, 0, True
    if held:
        yield pa.concat_tables(held)


def footer_sha256(file: IO[bytes]) -> str:
    """sha256 of the footer of a parquet file, in hex: where its pages are and what they contain.

    Raises:
        pa.ArrowInvalid: the file does not end as parquet.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length + 8 > end:
        raise pa.ArrowInvalid("it does not end as a parquet file does")
    file.seek(end - 8 - length)
    return hashlib.sha256(file.read(length)).hexdigest()


def write_parquet(
    sink: Hashing, chunks: Iterable[pa.Table], schema: pa.Schema, notes: Notes
) -> int:
    """Write row groups in a thread of their own while the worker makes the next rows."""
    rows = 0
    names = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in ("image_id", "pixels_sha256")
    ]
    # Files of images do not compress again; everything else does, very well.
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
