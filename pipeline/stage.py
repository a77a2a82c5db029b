"""What a stage is: where it runs, its settings, its fingerprint, how it makes one shard.

A build stage writes its whole table in one go (seconds to minutes). A map stage makes each
output shard from the input shard of the same name. A files stage makes files that are no table.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.settings import Count, Settings
from pipeline.store import DiskFull, Shard, Store, row_group_limits

Worker = Callable[[pa.Table], Iterable[pa.Table]]
"""Rows of one shard in, chunks of output rows out. Chunks are written while it goes on."""


def no_check() -> None:
    """The check of a stage that needs none."""


def no_state(store: Store) -> Any:
    """The state of a stage that depends on settings and input tables alone."""
    return None


def none_outdated(store: Store, names: Sequence[str], progress: Progress) -> set[str]:
    """The outdated shards of a stage whose fingerprint covers all that they depend on."""
    return set()


@dataclass(frozen=True)
class Build:
    """A stage that writes its whole table: `build` gets the store, and returns the shards.

    It is built again when the shards of an input table or `state` have changed.

    Attributes:
        state: what the table depends on besides settings and inputs, as JSON values.
        remake: other settings remake the table instead of being refused: for tables that take
            seconds.
    """

    table: str
    version: int
    schema: pa.Schema
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    build: Callable[[Store, Progress], list[Shard]]
    state: Callable[[Store], Any] = field(default=no_state)
    remake: bool = False


@dataclass(frozen=True)
class Map:
    """A stage that makes one shard from one shard.

    Attributes:
        settings: everything in the configuration that can change a byte of the output.
        inputs: tables that it reads; their fingerprints are part of its own.
        names: names of the shards to make.
        read: rows of one shard, for the worker.
        make_worker: loads the models; called once in every worker process.
        check: called once by the driver before any work, to refuse early.
        state: what the table depends on besides settings and inputs; part of its fingerprint.
        remake: other settings or inputs remake the table instead of being refused.
        outdated: which of its whole shards, given by name, must be made again; reports why.
    """

    table: str
    version: int
    schema: pa.Schema
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    names: Callable[[Store], list[str]]
    read: Callable[[Store, str], pa.Table]
    make_worker: Callable[[], Worker]
    check: Callable[[], None] = field(default=no_check)
    state: Callable[[Store], Any] = field(default=no_state)
    remake: bool = False
    outdated: Callable[[Store, Sequence[str], Progress], set[str]] = field(default=none_outdated)


@dataclass(frozen=True)
class Files:
    """A stage whose files contain no rows of a table: the documents of a release, trained codecs.

    It is made again when settings, an input table or `state` have changed, and when one of its
    files is gone or has another size.

    Attributes:
        table: its name.
        make: continues from the files that exist; returns the paths of its files, below the run.
        together: all processes of a launcher make it; other stages are made by one process.
    """

    table: str
    version: int
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    make: Callable[[Store, Progress], list[str]]
    state: Callable[[Store], Any] = field(default=no_state)
    together: bool = False
    schema: ClassVar[pa.Schema] = pa.schema([])
    remake: ClassVar[bool] = True


Stage = Build | Map | Files


_FIRST_LIMITS = ({"rows": 100, "bytes": 64 << 20}, {"rows": 65_536})
"""Limits of row groups when fingerprints did not contain them: tables of that time keep theirs as
long as these are the limits. They never change."""


def fingerprint(stage: Stage, inputs: Mapping[str, str]) -> str:
    """sha256 over table, stage version, settings, input fingerprints, schema, row groups (hex)."""
    parts: dict[str, Any] = {
        "table": stage.table,
        "version": stage.version,
        "settings": stage.settings,
        "inputs": inputs,
        "schema": stage.schema.to_string(show_schema_metadata=False),
    }
    limits = row_group_limits(stage.schema)
    if limits not in _FIRST_LIMITS:
        parts["row_groups"] = limits
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of everything that is no mapping and no list of mappings."""
    if isinstance(value, Mapping):
        return {
            key: leaf
            for name, item in value.items()
            for key, leaf in flat(item, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return flat(dict(enumerate(value)), prefix)
    return {prefix: list(value) if isinstance(value, tuple) else value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = flat(old), flat(new)
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in sorted(before | after)
        if before.get(key, missing) != after.get(key, missing)
    ]


def make_shard(stage: Map, store: Store, worker: Worker, name: str) -> dict[str, Any]:
    """Make one shard; an error is a value here, so that one bad shard fails alone."""
    started = time.perf_counter()
    try:
        rows = stage.read(store, name)
        shard = store.write(stage.table, name, worker(rows), stage.schema)
        if shard.rows != rows.num_rows:
            store.remove(stage.table, f"{name}.parquet")
            raise AigiError(f"{shard.rows} rows out of {rows.num_rows}: the worker lost some")
        result: dict[str, Any] = {**asdict(shard), "error": "", "fatal": ""}
    except DiskFull as error:
        result = {"name": name, "error": "", "fatal": str(error)}
    except Exception as error:  # whatever broke this shard, the others go on
        text = str(error) if isinstance(error, AigiError) else traceback.format_exc()
        result = {"name": name, "error": text, "fatal": ""}
    empty = {"rows": 0, "bytes": 0, "sha256": ""}
    return {**empty, **result, "seconds": time.perf_counter() - started}


class Compute(Settings):
    """Where the work runs. Only `threads` (on CPU) can change a byte of the output."""

    ray: str | None = Field(None, description="null: in this process; local; or a Ray address")
    workers: Count = Field(
        1, description="Ray actors for each stage; with local they share its CPUs"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="null: 1 where Ray sees a GPU, else 0"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    gpu_tflops: float = Field(
        125.0, gt=0, description="TFLOP/s that one GPU sustains, for the estimates of --dry-run"
    )
    threads: Count = Field(
        1, description="torch threads per worker; float sums on CPU depend on it, so it is recorded"
    )
