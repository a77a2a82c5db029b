"""A parquet file in; the asked columns of each of its rows out; which types hold text or bytes."""

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


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is of text: plain, large, a view or in a dictionary."""
    from pyarrow import types

    kind = _plain(kind)
    checks = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(kind) for check in checks)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column is of bytes: plain, large, a view or in a dictionary."""
    from pyarrow import types

    kind = _plain(kind)
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column is of lists: plain, large, a view or of a fixed size."""
    from pyarrow import types

    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
    return any(check(kind) for check in checks)


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
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
                for values in zip(*(values_of(batch.column(name)) for name in names), strict=True):
                    row += 1
                    if any(isinstance(value, UnicodeDecodeError) for value in values):
                        yield row, None, INVALID
                    else:
                        yield row, values, None
        except (pa.ArrowException, OSError) as error:
            raise AigiError(f"{path}: not readable as parquet after row {row}: {error}") from error
