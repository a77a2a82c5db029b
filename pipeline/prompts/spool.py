"""Rows in, files of rows on this machine's disk out: room for more captions than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

HELD = 4_096
"""Rows that a spool holds in memory before it writes them."""


class Spool:
    """An append-only Arrow file on disk, read back batch by batch.

    Args:
        held: rows that are held in memory.
    """

    def __init__(self, path: str, schema: pa.Schema, held: int = HELD) -> None:
        self.path, self.schema, self._most = path, schema, held
        self._tables: list[pa.Table] = []
        self._rows: list[tuple[Any, ...]] = []
        self._held = 0
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    def append(self, *row: Any) -> None:
        """Add one row."""
        self._rows.append(row)
        self._held += 1
        if self._held >= self._most:
            self._flush()

    def add(self, rows: pa.Table) -> None:
        """Add the rows of a table."""
        if rows.num_rows:
            self._tables += [self._appended(), rows.cast(self.schema)]
            self._held += rows.num_rows
            if self._held >= self._most:
                self._flush()

    def _appended(self) -> pa.Table:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self.schema)
        self._rows = []
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)
        ]
        return pa.table(arrays, schema=self.schema)

    def _taken(self) -> pa.Table:
        found = pa.concat_tables([*self._tables, self._appended()])
        self._tables, self._held = [], 0
        return found

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self.path, self.schema)
        for batch in self._taken().combine_chunks().to_batches():
            self._writer.write_batch(batch)

    def read(self) -> Iterator[pa.Table]:
        """The added rows, in order; a spool that never grew large never touches the disk."""
        if self._writer is None:
            yield self._taken()
            return
        self._flush()
        self._writer.close()
        with pa.OSFile(self.path) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
