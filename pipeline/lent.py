"""A shard that lacks images in, the same with the images that its file in the release has, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from pipeline.store import Store


def lacking(store: Store, table: str, shard: str) -> pa.Table | None:
    """Ids and numbers (`row`) of the images that a shard lacks, since the release has them.

    None: it has all that were made.
    """
    known = store.written(table, shard)
    if known is None or not known.moved:
        return None
    columns = ["image_id", "image.path", "error"]
    with store.parquet(table, shard, columns, some=True) as parquet:
        rows = parquet.read(columns)
    rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    gone = pc.and_(pc.is_null(rows["image"]), pc.is_null(rows["error"]))
    found = rows.filter(gone).select(["image_id", "row"])
    return found if found.num_rows else None


def _elsewhere(store: Store, table: str, shard: str, lacks: pa.Table) -> tuple[str, pa.Array]:
    """The shard of the release that has these images, and the numbers of their rows in it.

    Raises:
        Damaged: it is missing, or has not all of them.
    """
    known = store.written(table, shard)
    assert known is not None  # something is lacking
    ids = store.read("release", known.moved, ["image_id"])["image_id"].combine_chunks()
    rows = pc.index_in(lacks["image_id"], value_set=ids).combine_chunks()
    if rows.null_count:
        raise store.damaged(
            store.path("release", f"{known.moved}.parquet"),
            f"it lacks {rows.null_count:,} images of {table}/{shard}, whose only copy it had",
        )
    return known.moved, rows


def filled(store: Store, table: str, shard: str, rows: pa.Table) -> pa.Table:
    """A whole shard with the images that it lacks."""
    if (lacks := lacking(store, table, shard)) is None:
        return rows
    where, numbers = _elsewhere(store, table, shard, lacks)
    images = store.read("release", where, ["image"])["image"].take(numbers)
    every = pa.chunked_array([*rows["image"].chunks, *images.chunks])
    places = np.arange(rows.num_rows)
    places[lacks["row"].to_numpy()] = rows.num_rows + np.arange(lacks.num_rows)
    at = rows.column_names.index("image")
    return rows.set_column(at, rows.schema.field(at), every.take(pa.array(places)))


def some(
    store: Store, table: str, shard: str, columns: Sequence[str] | None, wanted: Sequence[int]
) -> dict[int, Iterator[Any]]:
    """The same for some rows, in ascending order: each image is read when it is asked for."""
    if columns is not None and "image" not in columns:
        return {}
    if (lacks := lacking(store, table, shard)) is None:
        return {}
    where, numbers = _elsewhere(store, table, shard, lacks)
    asked = set(wanted)
    rows = zip(lacks["row"].to_pylist(), numbers.to_pylist(), strict=True)
    there = {row: number for row, number in rows if row in asked}
    # Rows of a shard and of its file in the release have one order.
    read = store.rows_at("release", where, there.values(), ["image"])
    images = (values["image"] for _, values in read)
    return dict.fromkeys(there, images)
