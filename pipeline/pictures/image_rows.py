"""A parquet file of images in; their names, bytes and captions out."""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import AigiError
from pipeline.complaints import hint
from pipeline.faults import let_through
from pipeline.pictures.container import Container
from pipeline.pictures.names import Absent, check_bytes
from pipeline.pictures.volumes import open_file
from pipeline.pixels import BadPicture
from pipeline.rows.arrow_rows import is_bytes, is_list, is_text, values_of


class ParquetPictures(Container):
    """Images in one column of a parquet file, `struct<bytes, path>` or binary.

    The name of a row is its `path`; where that is null or not unique, `ROW-00000000` and so on.
    One row group is held at a time, so reading in the order of `names()` reads each once. Columns
    may be of any type of bytes, text or list that Arrow has.

    Args:
        location: local path or fsspec URL.
        column: the column; null: `image`, else the only one that can hold images.
    """

    in_order = True

    def __init__(self, location: str, column: str | None = None) -> None:
        self.location, self._wanted_column = location, column
        # Arrow reads a file of its own without copying it through Python.
        self._file = open_file(location) if "://" in location else pa.OSFile(location)
        try:
            self._parquet = pq.ParquetFile(self._file, page_checksum_verification=True)
            self._column, self._struct = self._picture_column(column)
        except (pa.ArrowException, OSError) as error:
            self._file.close()
            raise AigiError(
                f"{location}: not readable as parquet ({error}). Fetch it again."
            ) from error
        except AigiError:
            self._file.close()
            raise
        metadata = self._parquet.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [sum(rows[:group]) for group in range(len(rows))]
        self._lock = threading.Lock()
        self._held: tuple[int, pa.ChunkedArray] | None = None
        self._rows: dict[str, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetPictures, (self.location, self._wanted_column)

    def let_go(self) -> None:
        """Let go of the row group that was read last."""
        with self._lock:
            self._held = None

    def close(self) -> None:
        """Close the file."""
        self._held = None
        self._parquet.close()
        self._file.close()

    def _picture_column(self, column: str | None) -> tuple[str, bool]:
        found: dict[str, bool] = {}
        schema = self._parquet.schema_arrow
        for field in schema:
            if is_bytes(field.type):
                found[field.name] = False
            elif pa.types.is_struct(field.type):
                index = field.type.get_field_index("bytes")
                if index >= 0 and is_bytes(field.type.field(index).type):
                    found[field.name] = True
        names = [column] if column else (["image"] if "image" in found else list(found))
        if len(names) != 1 or names[0] not in found:
            raise AigiError(
                f"{self.location}: {column or 'image'}: no such column of images "
                "(struct<bytes, path> or binary), or several without that name. "
                f"Its columns: {', '.join(schema.names)}"
            )
        return names[0], found[names[0]]

    def _index(self) -> dict[str, int]:
        with self._lock:
            if self._rows is None:
                rows = self._parquet.metadata.num_rows
                paths: list[str | None] = [None] * rows
                if self._struct and self._has_path():
                    with self._reading():
                        table = self._parquet.read(columns=[f"{self._column}.path"])
                    paths = [(row or {}).get("path") for row in table.column(0).to_pylist()]
                self._rows = {}
                for row, path in enumerate(paths):
                    if not path or path in self._rows or re.fullmatch(r"ROW-\d{8,}", path):
                        path = f"ROW-{row:08d}"
                    self._rows[path] = row
            return self._rows

    def _has_path(self) -> bool:
        kind = self._parquet.schema_arrow.field(self._column).type
        index = kind.get_field_index("path")
        return index >= 0 and is_text(kind.field(index).type)

    def names(self) -> list[str]:
        """Names of all rows, in the order of the file, which is the fast order to read."""
        return list(self._index())

    def files(self) -> list[str]:
        """Names of all rows: each is an image."""
        return self.names()

    def left_out(self) -> list[tuple[str, str]]:
        """Nothing: each row is an image."""
        return []

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        """Nothing: captions are in a column."""
        return None

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one row's image. Raises as `read` does."""
        return self.read(name)[:count]

    def read(self, name: str) -> bytes:
        """Bytes of one row's image. Raises BadPicture (missing, null, over 512 MiB)."""
        row = self._index().get(name)
        if row is None:
            raise Absent
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = None  # let go of the last one before the next is read
                with self._reading():
                    table = self._parquet.read_row_group(
                        group, columns=[self._column], use_threads=False
                    )
                column = table.column(0)
                self._held = (group, pc.struct_field(column, "bytes") if self._struct else column)
            # A slice, because a scalar would copy the bytes once more.
            one = self._held[1].slice(row - self._starts[group], 1)
            found: bytes | None = one.to_pylist()[0]
        if found is None:
            raise BadPicture("the row holds no bytes")
        check_bytes(len(found))
        return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around reading: what is damaged holds many rows, so it is no fault of one of them.

        Raises:
            AigiError: the file is damaged.
            MachineFault: it cannot be read.
        """
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            let_through(error, self.location)
            raise AigiError(
                f"{self.location}: not readable as parquet ({error}). Fetch it again."
            ) from error

    def size(self, name: str) -> int:
        """Roughly the bytes of one row: the mean of its row group. Raises BadPicture (missing)."""
        row = self._index().get(name)
        if row is None:
            raise Absent
        group = self._parquet.metadata.row_group(bisect.bisect_right(self._starts, row) - 1)
        return int(group.total_byte_size) // int(group.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(self._parquet.schema_arrow.names)

    def texts(self, column: str) -> Iterator[tuple[str, object]]:
        """Name of every row, and what is in a column of it (text, a list of texts), in order.

        Raises:
            AigiError: no such column, or neither text nor lists of it.
        """
        schema = self._parquet.schema_arrow
        if column not in schema.names:
            raise AigiError(
                f"{self.location}: {column}: no such column. Set text_column to one of: "
                f"{', '.join(schema.names)}{hint(column, schema.names)}"
            )
        kind = schema.field(column).type
        if not is_text(getattr(kind, "value_type", kind) if is_list(kind) else kind):
            raise AigiError(f"{self.location}: {column}: expected text, found {kind}")
        names = iter(self.names())
        for group in range(len(self._starts)):
            with self._lock, self._reading():
                texts = self._parquet.read_row_group(group, columns=[column]).column(0)
            for text in values_of(texts):
                yield next(names), text
