"""Shards with failed rows in; which they are, and the same shards with those rows made again, out.

A row keeps its error for good, since the same work gives the same error. `aigi run --retry-failed`
makes such rows again, for what was mended meanwhile: a file, a mount, a library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError
from pipeline.store import Store

CHUNK_ROWS = 16
MISSING = "_missing"
"""A column of the input of a worker that makes only some rows of a shard: which these are."""
ERROR = "error"
"""The column of a table in which a row has the reason why it could not be made."""


def failed_shards(
    store: Store, table: str, schema: pa.Schema, names: Sequence[str]
) -> dict[str, int]:
    """How many rows with an error the shards have; those without one are left out.

    Empty for a table without such a column.

    Raises:
        AigiError: a shard is missing or damaged.
    """
    if ERROR not in schema.names:
        return {}

    def failed(name: str) -> int:
        column = store.read(table, name, [ERROR])[ERROR]
        return len(column) - int(column.null_count)

    with ThreadPoolExecutor(16) as pool:
        return {name: bad for name, bad in zip(names, pool.map(failed, names), strict=True) if bad}


def made_again(
    old: pa.Table,
    rows: pa.Table,
    worker: Callable[[pa.Table], Iterable[pa.Table]],
    unit: str = "",
    start: int = 0,
) -> Iterator[pa.Table]:
    """The failed rows of a shard made again: one chunk for each, so that it fails alone.

    `in_place` puts them between the others.

    Args:
        old: the shard, with a column `error`.
        rows: of its input, one for each row of the shard, in the same order.
        worker: what makes rows of a shard.
        unit: a column of `rows` whose equal neighbours are made together; empty: there is none.
        start: how many failed rows are made already.

    Raises:
        AigiError: the shard has not the rows of its input, or the worker lost some.
    """
    if old.num_rows != rows.num_rows:
        raise AigiError(f"{old.num_rows} rows for {rows.num_rows}: it is of another input")
    keys = rows[unit].to_pylist() if unit else [None] * rows.num_rows
    left = failed_rows(old)[start:]
    for _, together in groupby(left, key=lambda number: keys[number] or number):
        mine = list(together)
        made = pa.concat_tables(worker(rows.take(mine)))
        if made.num_rows != len(mine):
            raise AigiError(f"{made.num_rows} rows out of {len(mine)}: the worker lost some")
        yield made.cast(old.schema)


def made_beside(
    old: pa.Table,
    rows: pa.Table,
    worker: Callable[..., Iterable[pa.Table]],
    start: int = 0,
) -> Iterator[pa.Table]:
    """The same of a shard whose failed rows were not made yet: in the batches of the worker.

    The worker gets all rows, and makes those where the column MISSING is true.
    """
    if failed_rows(old):
        mine = rows.append_column(MISSING, pc.is_valid(old[ERROR]))
        for chunk in worker(mine, start=start) if start else worker(mine):
            yield chunk.cast(old.schema)


def failed_rows(old: pa.Table) -> list[int]:
    """The numbers of the rows of a shard that have an error."""
    bad = pc.is_valid(old[ERROR]).to_pylist()
    return [number for number, failed in enumerate(bad) if failed]


def in_place(old: pa.Table, made: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """A shard with its failed rows made again, in their places; the other rows stay as they are."""
    whole = pa.concat_tables([old, *made])
    places = list(range(old.num_rows))
    for place, number in enumerate(failed_rows(old), start=old.num_rows):
        places[number] = place
    for start in range(0, len(places), CHUNK_ROWS):
        yield whole.take(places[start : start + CHUNK_ROWS])
