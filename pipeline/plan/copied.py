"""A manifest and the plan beside it in, the shards of that plan out, once it is known to be one.

The rows say what this machine will load and make, and they may be anybody's. So a row is used
only if it is what the manifest specifies and its id is the hash of its fields. Names of shards are
built, never taken from the file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.gate import refused
from pipeline.manifest import PLAN_FILE, plan_beside
from pipeline.pictures.names import escapes
from pipeline.pictures.stated import Made
from pipeline.plan import specification
from pipeline.plan.ids import image_id_of, pair_id_of
from pipeline.plan.rounds import shard_name, summary_of
from pipeline.plan.specification import (
    OWN_MODEL,
    STATED,
    Dataset,
    DiffusersSpec,
    DrawnSpec,
    HttpSpec,
    ImportSpec,
    PromptedSpec,
    SplitSpec,
    ZooSpec,
    of_row,
)
from pipeline.prompts.text import prompt_id
from pipeline.tables import OPTIONS, PLAN, with_options

REMEDY = "Fetch the release again."
_SHARD = pa.field("shard", pa.string())
SCHEMA = PLAN.append(_SHARD)
"""Columns of the plan beside a manifest whose sources have no options."""
_ALWAYS = (
    "image_id", "prompt_id", "text", "split", "source", "model", "revision", "watermark",
    "index", "rank", "round",
)  # fmt: skip
_GENERATED = ("seed", "steps", "guidance_scale", "negative_prompt", "scheduler", "dtype")
_ONE = ("source", "split", "round")
"""All rows of a shard have one value of each of these."""


def schema(options: bool) -> pa.Schema:
    """Columns of the plan beside a manifest.

    Args:
        options: whether a source has some.
    """
    return with_options(PLAN, options).append(_SHARD)


def specified(spec: DiffusersSpec | HttpSpec | ImportSpec) -> dict[str, Any]:
    """What the specification of a source, or of one model of a zoo, states of rows, by column."""
    columns = STATED if isinstance(spec, DiffusersSpec) else ("model", "revision")
    found = {column: getattr(spec, column) for column in columns}
    if isinstance(spec, ImportSpec) and spec.model == OWN_MODEL:
        del found["model"]
    return {
        **found,
        OPTIONS.name: spec.row_options if isinstance(spec, DiffusersSpec | HttpSpec) else None,
    }


class _Wrong(Exception):
    """A column of a row, and what is wrong with it."""


def _check_row(row: Mapping[str, Any], dataset: Dataset) -> None:
    spec = dataset.sources.get(row["source"])
    if spec is None:
        raise _Wrong("source", f"the manifest specifies no source {row['source']!r}")
    size: SplitSpec | None = spec.splits.get(row["split"])
    if size is None:
        raise _Wrong("split", f"the manifest specifies no split {row['split']!r} of it")
    generated = isinstance(spec, PromptedSpec)
    for column in _GENERATED:
        needed = isinstance(spec, DrawnSpec) or (
            column == "seed" and isinstance(spec, HttpSpec) and spec.seeds
        )
        if not generated and column in Made._fields:  # `model` is none of _GENERATED
            continue  # as its file states it, if it does
        if (row[column] is not None) != needed:
            of = "an image of this endpoint" if generated else "an imported image"
            raise _Wrong(column, "needed" if needed else f"{of} has none")
    if (row["path"] is None) != generated:
        raise _Wrong("path", "a generated image has none" if generated else "needed")
    mine = of_row(spec, row)
    if mine is None:
        raise _Wrong("model", f"{row['model']!r} with these settings is not in the list")
    for column, stated in specified(mine).items():
        if row.get(column) != stated:
            raise _Wrong(column, f"{row.get(column)!r}, specified is {stated!r}")
    for column, side in (("width", size.width), ("height", size.height)):
        if row[column] != side and (generated or row[column] is not None):
            raise _Wrong(column, f"{row[column]}, specified is {side}")
    if generated and row["watermark"] not in size.watermarks:
        raise _Wrong("watermark", f"{row['watermark']!r} is not specified")
    for column in ("seed", "index", "rank", "round"):
        if row[column] is not None and row[column] < 0:
            raise _Wrong(column, f"expected 0 or more, found {row[column]}")
    if row["path"] is not None and escapes(row["path"]):
        raise _Wrong("path", f"{row['path']!r} leads out of the folder of the images")
    if row["prompt_id"] != prompt_id(row["text"]):
        raise _Wrong("prompt_id", "is not the hash of the text")
    if row["image_id"] != image_id_of(row):
        raise _Wrong("image_id", "is not the hash of the row")


def _stated(dataset: Dataset, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns in which all rows of a shard are equal."""
    spec = dataset.sources[row["source"]]
    if not isinstance(spec, ImportSpec):
        return STATED
    return tuple(name for name in specified(spec) if name in STATED)


def _check_shard(
    table: pa.Table, dataset: Dataset, seen: Counter[tuple[str, str, int, int | None]]
) -> str:
    """The name of a shard whose rows are all what is specified.

    Args:
        seen: how many shards of each source, split, round and model of a zoo came before; this one
            is added.
    """
    rows = table.to_pylist()
    variants: dict[int, dict[str, str]] = defaultdict(dict)
    for row in rows:
        variants[row["rank"]][row["watermark"]] = row["image_id"]
    for number, row in enumerate(rows, 1):
        try:
            _check_row(row, dataset)
            for column in (*_ONE, *_stated(dataset, row)):
                if row[column] != rows[0][column]:
                    raise _Wrong(column, "differs from that of the first row of its shard")
            if row["pair_id"] != pair_id_of(variants[row["rank"]]):
                raise _Wrong("pair_id", "is not the variant of the same rank")
        except _Wrong as wrong:
            column, problem = wrong.args
            raise _Wrong(f"row {number}: {column}", problem) from None
    spec = dataset.sources[rows[0]["source"]]
    model = spec.number_of(rows[0]) if isinstance(spec, ZooSpec) else None
    key = (rows[0]["source"], rows[0]["split"], rows[0]["round"], model)
    name = shard_name(*key[:3], seen[key], model)
    seen[key] += 1
    if any(row["shard"] != name for row in rows):
        raise _Wrong("shard", f"another name than {name}, which its rows and its place give")
    return name


def _check_ranks(ranks: Mapping[tuple[str, str], Mapping[int, tuple[str, int]]]) -> None:
    """Refuse ranks with gaps, and an index that is not the number of its prompt's images before.

    Args:
        ranks: prompt and index of every rank, for each source and split.
    """
    for (source, split), found in ranks.items():
        before: Counter[str] = Counter()
        for rank in range(len(found)):
            prompt, index = found.get(rank, ("", None))
            if index != before[prompt]:
                what = "is missing" if index is None else f"has index {index}"
                raise _Wrong(f"{source}/{split}", f"rank {rank} {what}")
            before[prompt] += 1


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        why = " ".join(str(error).split())[:200]
        raise refused(where, "", f"not readable as an Arrow file ({why})", REMEDY) from error


def shards_in(where: str, file: Any) -> Iterator[pa.Table]:
    """Shards of an open plan file, one after another: rows with the columns of a plan (`schema`).

    What they state may still be anything.

    Raises:
        AigiError: it is no such file, or values are missing.
    """
    with _readable(where), pa.ipc.open_file(file) as reader:
        expected = schema(OPTIONS.name in reader.schema.names)
        if not reader.schema.equals(expected):
            found = {field.name: str(field.type) for field in reader.schema}
            wrong = [f.name for f in expected if found.pop(f.name, None) != str(f.type)]
            name = [*wrong, *found, "the order of its columns"][0]
            raise refused(where, name, "a plan has other columns", REMEDY)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            if not batch.num_rows:
                raise refused(where, f"shard {number}", "it has no rows", REMEDY)
            for column in (*_ALWAYS, "shard"):
                if batch[column].null_count:
                    field = f"shard {number}: {column}"
                    raise refused(where, field, "a value is missing", REMEDY)
            yield pa.Table.from_batches([batch])


def read_plan(location: str, manifest: Mapping[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    """The plan beside a manifest: names of its shards, and their rows (PLAN).

    All of it is checked before the first shard.

    Raises:
        AigiError: it is missing, damaged, or not the plan of the manifest.
    """
    beside = plan_beside(location, manifest)
    if beside is None:
        raise AigiError(f"{location}: no {PLAN_FILE} beside it")
    store, file_name = beside
    where, expected = store.path(file_name), manifest["plan"]
    recorded = next(d["sha256"] for d in manifest["documents"] if d["path"] == PLAN_FILE)
    if store.sha256(file_name) != recorded:
        raise AigiError(f"{where}: changed since the release; fetch it again")
    dataset = specification.load(location)
    seen: Counter[tuple[str, str, int, int | None]] = Counter()
    names: list[str] = []
    images: set[str] = set()
    ranks: dict[tuple[str, str], dict[int, tuple[str, int]]] = defaultdict(dict)
    planned: list[tuple[str, pa.ChunkedArray]] = []
    with store.fs.open(where, "rb") as file:
        for number, table in enumerate(shards_in(where, file)):
            try:
                names.append(_check_shard(table, dataset, seen))
            except _Wrong as wrong:
                place, problem = wrong.args
                field = f"shard {number}: {place}" if place else f"shard {number}"
                raise refused(where, field, problem, REMEDY) from None
            planned.append((names[-1], table["image_id"]))
            images.update(table["image_id"].to_pylist())
            of = ranks[table["source"][0].as_py(), table["split"][0].as_py()]
            columns = (table[name].to_pylist() for name in ("rank", "prompt_id", "index"))
            of.update((rank, (prompt, index)) for rank, prompt, index in zip(*columns, strict=True))
    try:
        _check_ranks(ranks)
    except _Wrong as wrong:
        place, problem = wrong.args
        raise refused(where, place, problem, REMEDY) from None
    found = summary_of(planned)
    if len(images) != found["rows"]:
        raise refused(where, "image_id", "an image is planned twice", REMEDY)
    for key, value in found.items():
        if value != expected[key]:
            problem = f"{value}, the manifest states {expected[key]}"
            raise refused(where, f"plan.{key}", problem, REMEDY)
    with store.fs.open(where, "rb") as file:
        for name, table in zip(names, shards_in(where, file), strict=True):
            yield name, table.drop_columns(["shard"])
