"""The narrow tables of a run in, one table of all planned images out: a row each, in plan order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline import AigiError
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, QUALITY, SELECTION, embeddings_schema

_COLUMNS = {
    "plan": (PLAN, ["image_id", "text", "source", "split", "watermark", "path"]),
    "images": (IMAGES, ["width", "height", "error", "device", "versions", "batch_size"]),
    "embeddings": (embeddings_schema(1), ["clip_score"]),
    "quality": (
        QUALITY,
        [name for name in QUALITY.names if name not in ("image_id", "perceptual_hash")],
    ),
    "selection": (SELECTION, ["keep", "reason", "duplicate_of", "similarity"]),
}


def planned(store: Store) -> pa.Table:
    """Plan, sizes, scores and verdicts by image, with its `shard` and `row` in it.

    Values that a run does not have are null.

    Raises:
        AigiError: there is no plan, or a shard has other rows than the plan's.
    """
    have = {table: store.shards(table) for table in _COLUMNS}
    if not have["plan"]:
        raise AigiError(f"{store.path('plan')}: this run has no plan table")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(partial(_shard, store, have), have["plan"]))
    return pa.concat_tables(parts)


def _shard(store: Store, have: dict[str, dict[str, int]], shard: str) -> pa.Table:
    here = {table: names for table, (_, names) in _COLUMNS.items() if shard in have[table]}
    found = store.aligned(shard, here)
    rows = found["plan"].num_rows
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for table, (schema, names) in _COLUMNS.items():
        columns |= {
            name: found[table][name] if table in found else pa.nulls(rows, schema.field(name).type)
            for name in names
        }
    columns["shard"] = pa.array([shard] * rows)
    columns["row"] = pa.array(np.arange(rows))
    return pa.table(columns)
