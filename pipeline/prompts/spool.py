"""Rows in, files of rows on this machine's disk out: room for more captions than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


class Spool:
    """An append-only Arrow file on disk, read back batch by batch."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.columns: list[list[Any]] = [[] for _ in schema]
        self.writer: pa.ipc.RecordBatchStreamWriter | None = None

    def append(self, *row: Any) -> None:
        for column, value in zip(self.columns, row, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self.columns[0])

    def flush(self) -> None:
        if not self.columns[0]:
            return
        if self.writer is None:
            self.writer = pa.ipc.new_stream(self.path, self.schema)
        self.writer.write_batch(self._held())
        self.columns = [[] for _ in self.schema]

    def _held(self) -> pa.RecordBatch:
        return pa.record_batch(
            [
                pa.array(column, field.type)
                for column, field in zip(self.columns, self.schema, strict=True)
            ],
            schema=self.schema,
        )

    def read(self) -> Iterator[pa.Table]:
        """The appended rows, in order; a spool that never grew large never touches the disk."""
        if self.writer is None:
            yield pa.Table.from_batches([self._held()])
            return
        self.flush()
        self.writer.close()
        with pa.OSFile(self.path) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
