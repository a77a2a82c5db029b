"""A parquet file in; the asked columns of each of its rows, or the problem of one, out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.files import INVALID
from pipeline.rows.asked import Asked, Row
from pipeline.rows.lines import opened_file

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 4096


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column; UnicodeDecodeError in place of one that is not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pass
    found: list[Any] = []
    for scalar in column:  # one by one: a bad byte costs its own row alone
        try:
            found.append(scalar.as_py())
        except UnicodeDecodeError as error:
            found.append(error)
    return found


def parquet_rows(path: str, asked: Asked) -> Iterator[Row]:
    """Rows of a parquet file; a column may be of any type of text or list.

    Raises:
        AigiError: no such file, one that cannot be read, or no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, names = 0, list(asked.values())
    with opened_file(path) as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            asked.places(path, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=BATCH, columns=names):
                for values in zip(*(_values(batch.column(name)) for name in names), strict=True):
                    row += 1
                    if any(isinstance(value, UnicodeDecodeError) for value in values):
                        yield row, None, INVALID
                    else:
                        yield row, values, None
        except (pa.ArrowException, OSError) as error:
            raise AigiError(f"{path}: not readable as parquet after row {row}: {error}") from error
