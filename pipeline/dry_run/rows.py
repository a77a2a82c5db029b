"""A schema in, the bytes of parquet files of so many rows out: typical rows are written to memory.

So a new column counts by itself. Ids, hashes and scores are random, as compression sees them;
settings are the same in all rows; prompts are sentences. Bytes of images are counted elsewhere.
"""

from __future__ import annotations

import io
import json
import random
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.parquet import MADE_FROM, Hashing, write_parquet
from pipeline.tables import IMAGE

_MOST = 2048
"""Rows that are written; longer shards grow by what these rows take."""
_WORDS = [
    "a", "the", "two", "red", "green", "yellow", "dark", "bright", "old", "small", "large",
    "boat", "boats", "house", "trees", "lake", "clouds", "dawn", "wall", "stone", "mountains",
    "field", "sea", "sky", "sun", "flowers", "garden", "road", "photograph", "drawing", "of",
    "on", "in", "under", "beside", "behind", "with", "at", "calm", "heavy", "snowy", "wooden",
    "leaves",
]  # fmt: skip
_PROMPT = 14  # words of a prompt
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_HASHES = {"pixels_sha256": 64, "original_sha256": 64, "prompt_id": 32, "image_id": 32}
_RARE = ("pair_id", "duplicate_of", "error", "note", "reason", "similarity", "nsfw", "path")
"""Columns that are null in nearly all rows of a large dataset."""


@lru_cache
def _versions() -> str:
    """The column `versions`: libraries, digests of four components, settings of a scheduler."""
    dice = random.Random(0)
    weights = {part: f"{dice.getrandbits(256):064x}" for part in _PARTS}
    scheduler = {_sentence(dice)[:20]: dice.random() for _ in range(25)}
    libraries = {"diffusers": "0.0.0", "torch": "0.0.0", "transformers": "0.0.0"}
    return json.dumps({**libraries, "weights": weights, "scheduler": scheduler})


def _sentence(dice: random.Random) -> str:
    return " ".join(dice.choices(_WORDS, k=_PROMPT))


def _text(name: str, dice: random.Random, row: int) -> str | None:
    if name in _HASHES:
        return f"{dice.getrandbits(4 * _HASHES[name]):0{_HASHES[name]}x}"
    if name == "other_id":
        return f"{dice.getrandbits(128):032x}"
    if name == "text":
        return _sentence(dice)
    if name == "source_ref":
        return f"captions.tsv:{dice.randrange(10**7)}"
    return _versions() if name == "versions" else "one of a few"


def _value(field: pa.Field, dice: random.Random, row: int, entries: int) -> Any:
    kind, name = field.type, field.name
    if name in _RARE:
        return None
    if kind == IMAGE:
        return {"bytes": None, "path": f"{dice.getrandbits(128):032x}.webp"}
    if pa.types.is_string(kind):
        return _text(name, dice, row)
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_map(kind):
        return [(f"concept {number}", dice.random()) for number in range(entries)]
    if pa.types.is_integer(kind):
        if name in ("rank", "index"):
            return row if name == "rank" else 0
        return dice.getrandbits(63) if kind.bit_width == 64 else 64
    return 7.5 if name == "guidance_scale" else dice.uniform(0, 1)


def typical(schema: pa.Schema, rows: int, entries: int = 0) -> pa.Table:
    """Rows as a run has them, the same each time.

    Args:
        entries: of each map, such as concepts.
    """
    dice = random.Random(rows)
    columns = []
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            numbers = np.random.default_rng(rows).uniform(-1, 1, rows * field.type.list_size)
            flat = pa.array(numbers.astype(np.float16))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            continue
        values = [_value(field, dice, row, entries) for row in range(rows)]
        if pa.types.is_map(field.type) and not pa.types.is_floating(field.type.item_type):
            values = [[("source", None)]] * rows
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _notes() -> dict[str, str]:
    return {MADE_FROM: "0" * 64}


def _written(schema: pa.Schema, rows: int, entries: int) -> int:
    sink = Hashing(io.BytesIO())
    write_parquet(sink, [typical(schema, rows, entries)], schema, _notes)
    return sink.bytes


@lru_cache
def file_bytes(schema: pa.Schema, rows: int, entries: int = 0) -> int:
    """Bytes of a parquet file of so many rows, images left out.

    Args:
        entries: of each map.
    """
    if rows <= _MOST:
        return _written(schema, rows, entries)
    half, whole = _written(schema, _MOST // 2, entries), _written(schema, _MOST, entries)
    return round(whole + (whole - half) / (_MOST / 2) * (rows - _MOST))


def table_bytes(schema: pa.Schema, rows: int, files: int, entries: int = 0) -> int:
    """Bytes of a table whose rows are spread evenly over so many files."""
    if not rows or not files:
        return 0
    few, more = divmod(rows, files)
    return (files - more) * file_bytes(schema, few, entries) + (
        more * file_bytes(schema, few + 1, entries) if more else 0
    )


@lru_cache
def plan_bytes(schema: pa.Schema, rows: int, shards: int) -> int:
    """Bytes of the plan beside a manifest: an Arrow file with a batch for each shard."""
    if not rows or not shards:
        return 0
    each = max(1, min(_MOST, rows // shards))
    sizes = []
    for batches in (1, 3):
        sink = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            for _ in range(batches):
                writer.write_table(typical(schema, each).combine_chunks())
        sizes.append(sink.tell())
    head = sizes[0] - (batch := (sizes[1] - sizes[0]) / 2)
    return round(head + batch / each * rows)
