"""What a stage is: where it runs, its settings, its fingerprint, how it makes one shard.

A build stage writes its whole table in one go (seconds to minutes). A map stage makes each
output shard from the input shard of the same name. A files stage makes files that are no table.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from pydantic import Field

from pipeline import AigiError, loaded
from pipeline.faults import in_short, of_machine
from pipeline.folder import DiskFull
from pipeline.parquet import MADE_FROM, Notes, row_group_limits
from pipeline.parts import Parts, gone_on
from pipeline.progress import LOG, Progress
from pipeline.record import Record, digest
from pipeline.retry import failed_rows, in_place, made_again, made_beside
from pipeline.settings import Count, Settings
from pipeline.shown import public, redacted
from pipeline.store import Shard, Store

Worker = Callable[..., Iterable[pa.Table]]
"""Rows of one shard in, chunks of output rows out. Chunks are written while it goes on.

That of a stage which `keeps` its batches takes `start` beside the rows: the first row to make, at
which a batch begins."""

Told = Callable[[str, int, int], None]
"""Called while a shard is made: its name, its rows that are made, and those of them made now."""


def told_nobody(name: str, rows: int, fresh: int) -> None:
    """Nobody asks how far a shard is."""


def no_check() -> Sequence[str] | None:
    """The check of a stage that needs none."""
    return None


def no_state(store: Store) -> Any:
    """The state of a stage that depends on settings and input tables alone."""
    return None


def nothing_outside(store: Store, name: str) -> Any:
    """What a shard that is made from shards of this run alone depends on outside of it."""
    return None


def rows_of_input(store: Store, name: str, inputs: Sequence[str]) -> int | None:
    """Rows of a shard of the first input, which its record has; None: they are not known."""
    record = store.record(inputs[0]) if inputs else None
    found = None if record is None else record.shards.get(name)
    return None if found is None else found.rows or None


def all_possible(names: Sequence[str]) -> Sequence[str]:
    """The shards that a stage can make which depends on nothing that may be missing here."""
    return names


def none_outdated(store: Store, names: Sequence[str], progress: Progress) -> set[str]:
    """The outdated shards of a stage whose fingerprint covers all that they depend on."""
    return set()


def extends_nothing(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether settings leave what is made as it is: those of most stages decide every row."""
    return False


def all_of(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> Sequence[str]:
    """The shards that other settings make others: all."""
    return names


@dataclass(frozen=True)
class Taken:
    """Rows of a shard that are there already, elsewhere.

    Attributes:
        table: the whole shard; a row that has to be made has an `error` in it.
        weights: digests of what made the others, by component.
    """

    table: pa.Table
    weights: Mapping[str, str]


class Taker(Protocol):
    """Finds rows that are there already, by what identifies them; it is sent to every worker.

    Attributes:
        all: every row of the shards that it was made for is there.
    """

    all: bool

    def __call__(self, store: Store, name: str, rows: pa.Table) -> Taken | None:
        """The rows of a shard, of whose input `rows` are; None: none is there."""

    def taken(self, store: Store, name: str) -> None:
        """A shard is made: what no other one needs may go."""

    def end(self, store: Store, progress: Progress, replace: bool) -> None:
        """All shards are made."""


class _Recorded:
    """What all stages share: settings as a record has them, so that the two can be compared.

    They are JSON values, and locations in them hold no secret. Nor do fingerprints depend on one:
    a link that was signed anew is the same link.
    """

    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", json.loads(json.dumps(public(self.settings))))


@dataclass(frozen=True)
class Build(_Recorded):
    """A stage that writes its whole table: `build` gets the store, and returns the shards.

    It is built again when the content of an input table or `state` has changed, or when a shard
    or another file that it wrote is not what was written.

    Attributes:
        state: what the table depends on besides settings and inputs, as JSON values.
        remake: other settings remake the table instead of being refused: for tables that take
            seconds.
        extends: whether a change of settings leaves the rows of shards as they are that exist.
    """

    table: str
    version: int
    schema: pa.Schema
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    build: Callable[[Store, Progress], list[Shard]]
    state: Callable[[Store], Any] = field(default=no_state)
    remake: bool = False
    extends: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = field(default=extends_nothing)


@dataclass(frozen=True)
class Map(_Recorded):
    """A stage that makes one shard from one shard.

    Attributes:
        settings: everything in the configuration that can change a byte of the output.
        inputs: tables that it reads; their fingerprints are part of its own.
        names: names of the shards to make.
        read: rows of one shard, for the worker.
        make_worker: loads the models; called once in every worker process. `loaded` of a worker has
            the digests of their weights, which are recorded in the footer of each shard.
        check: called once by the driver before any work, to refuse early; returns what to report.
        sources: tables and names of the shards that a shard is made from, by default those of its
            own name; None for a shard that stays as it is. Where one of them has changed, the
            shard is made again.
        outside: what else a shard is made from, as JSON values: digests of what is not in a table.
        state: in records of earlier versions, what `sources` and `outside` now tell.
        remake: other settings remake the table instead of being refused.
        outdated: which of its whole shards, given by name, must be made again; reports why.
        published: others get its files as they are; what they were made from is not in them.
        possible: which of these shards could be made here and now, for those with failed rows.
        unit: column of the input whose equal neighbours are made together, as variants of an image.
        again: whole shards of which the failed rows alone are made again.
        keeps: finished batches of a shard are kept, for when its process is killed: columns that
            have one value in all rows of a shard, such as the device. None: they are not, since
            a shard takes seconds, or a batch depends on those before it.
        rows: how many rows a shard will have, if that is known before; by default those of the
            shard of this name of the first input.
        extends: whether a change of settings concerns only what is not made yet.
        replaces: which shards a change of settings makes others.
        takes: what finds rows of these shards that are there already; None: nothing is.
        taker: the same, while shards are made.
        before: called by the driver with names of shards before they are made or removed.
        after: called with names of shards that are made, a few at a time.
    """

    table: str
    version: int
    schema: pa.Schema
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    names: Callable[[Store], list[str]]
    read: Callable[[Store, str], pa.Table]
    make_worker: Callable[[], Worker]
    check: Callable[[], Sequence[str] | None] = field(default=no_check)
    sources: Callable[[Store, str], Iterable[tuple[str, str]] | None] | None = None
    outside: Callable[[Store, str], Any] = field(default=nothing_outside)
    state: Callable[[Store], Any] = field(default=no_state)
    remake: bool = False
    outdated: Callable[[Store, Sequence[str], Progress], set[str]] = field(default=none_outdated)
    published: bool = False
    possible: Callable[[Sequence[str]], Sequence[str]] = field(default=all_possible)
    unit: str = ""
    again: frozenset[str] = frozenset()
    keeps: tuple[str, ...] | None = None
    rows: Callable[[Store, str], int | None] | None = None
    extends: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = field(default=extends_nothing)
    replaces: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[str]], Sequence[str]] = (
        field(default=all_of)
    )
    takes: Callable[[Store, Sequence[str], Progress], Taker | None] | None = None
    taker: Taker | None = None
    before: Callable[[Store, Sequence[str]], None] | None = None
    after: Callable[[Store, Sequence[str]], None] | None = None

    def rows_of(self, store: Store, name: str) -> int | None:
        """How many rows a shard will have; None: nobody knows."""
        if self.rows is not None:
            return self.rows(store, name)
        return rows_of_input(store, name, self.inputs)


@dataclass(frozen=True)
class Files(_Recorded):
    """A stage whose files contain no rows of a table: the documents of a release, trained codecs.

    It is made again when settings, the content of an input table or `state` have changed, and when
    one of its files is gone or is not what was written.

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


def only_settings(stage: Stage, record: Record) -> bool:
    """Whether nothing but its settings and inputs changed since: neither version nor columns."""
    before = replace(stage, settings=record.settings)
    return fingerprint(before, record.inputs) == record.fingerprint


def made_from(stage: Map, store: Store, name: str, identity: str) -> str | None:
    """Digest of all that a shard is made from: the content of what is read, and how.

    None for a shard that stays as it is.

    Args:
        identity: the fingerprint of the stage.

    Raises:
        AigiError: a shard that it is made from is missing or damaged.
    """
    read: Iterable[tuple[str, str]] | None = [(table, name) for table in stage.inputs]
    if stage.sources is not None and (read := stage.sources(store, name)) is None:
        return None
    parts = [(table, shard, store.sha256_of(table, shard)) for table, shard in read or ()]
    return digest(parts, stage.outside(store, name), identity)


def built_from(stage: Build | Files, store: Store, identity: str) -> str:
    """The same of a table that is built as a whole, or of files."""
    parts = [
        (table, shard, store.sha256_of(table, shard))
        for table in stage.inputs
        for shard in store.shards(table)
    ]
    return digest(parts, stage.state(store), identity)


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


def _batches(
    stage: Map,
    worker: Worker,
    rows: pa.Table,
    old: pa.Table | None,
    parts: Parts | None,
    alone: bool,
) -> Iterable[pa.Table]:
    """The batches of a shard or, of one that there is, of its failed rows: kept ones, new ones.

    Args:
        alone: each failed row is made alone, since it may fail again.
    """

    def make(start: int) -> Iterable[pa.Table]:
        if old is not None and alone:
            return made_again(old, rows, worker, stage.unit, start)
        if old is not None:
            return made_beside(old, rows, worker, start)
        return worker(rows, start=start) if start else worker(rows)

    if parts is None:
        return make(0)
    parts.load(rows if old is None else rows.take(pa.array(failed_rows(old), pa.int64())))
    return gone_on(parts, make)


def _both(name: str, taken: Taken, notes: Notes) -> Mapping[str, str]:
    """What the footer of a shard says whose rows were partly made here, and partly elsewhere.

    Raises:
        AigiError: with other weights.
    """
    every = dict(taken.weights)
    if failed_rows(taken.table):  # else the worker holds the model of another shard
        for part, sha256 in json.loads(notes().get(loaded.WEIGHTS, "{}")).items():
            if every.setdefault(part, sha256) != sha256:
                raise AigiError(
                    f"{name}: {part}: images that are there already were made with weights of "
                    f"sha256 {every[part][:12]}…, this machine has {sha256[:12]}…. Use the same "
                    "weights, or make all images anew: take the place of the others out of "
                    "plan.reuse, or use a new run directory (--set run=…)."
                )
    return loaded.as_notes(every)


def make_shard(
    stage: Map, store: Store, worker: Worker, name: str, source: str, told: Told = told_nobody
) -> dict[str, Any]:
    """Make one shard; an error is a value here, so that one bad shard fails alone.

    Args:
        source: digest of what it is made from.
        told: hears of every batch.
    """
    started = time.perf_counter()
    LOG.info("%s: %s: begun", stage.table, name)
    parts: Parts | None = None
    fresh = 0

    def notes() -> Mapping[str, str]:
        # A worker may load its models while it makes the rows.
        return loaded.notes(worker) if parts is None else parts.footer()

    def counted(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        nonlocal fresh
        done = 0
        told(name, parts.start if parts else 0, 0)
        for batch in batches:
            done += batch.num_rows
            start = parts.start if parts else 0
            fresh = max(0, done - start)
            told(name, max(done, start), fresh)
            yield batch

    try:
        rows = stage.read(store, name)
        old = store.read(stage.table, name) if name in stage.again else None
        again, taken = old is not None, None
        if stage.taker is not None and not again:
            taken = stage.taker(store, name, rows)
            old = None if taken is None else taken.table
        if stage.keeps is not None:
            # What is kept of a shard of which some rows are made depends on which.
            before = store.sha256_of(stage.table, name) if again else ""
            if taken is not None:
                before = digest([], failed_rows(taken.table))
            identity = digest([], [name, before], source)
            parts = Parts(
                store, stage.table, name, identity, stage.keeps, partial(loaded.notes, worker)
            )
        chunks: Iterable[pa.Table] = counted(_batches(stage, worker, rows, old, parts, again))
        if old is not None:
            chunks = in_place(old, chunks)
        mine = {} if stage.published else {MADE_FROM: source}
        said: Notes = notes if taken is None else partial(_both, name, taken, notes)
        shard = store.write(stage.table, name, chunks, stage.schema, lambda: {**mine, **said()})
        if shard.rows != rows.num_rows:
            store.remove(stage.table, f"{name}.parquet")
            if parts is not None:
                parts.forget("rows of it are lost")
            raise AigiError(f"{shard.rows} rows out of {rows.num_rows}: the worker lost some")
        if parts is not None:
            parts.done()
        weights = said().get(loaded.WEIGHTS, "")
        result: dict[str, Any] = {**asdict(shard), "weights": weights, "error": "", "fatal": ""}
    except DiskFull as error:
        result = {"name": name, "error": "", "fatal": str(error)}
    except Exception as error:  # whatever broke this shard, the others go on
        if parts is not None:
            parts.stopped()
        text = str(error) if isinstance(error, AigiError) else redacted(traceback.format_exc())
        if of_machine(error) and not isinstance(error, AigiError):
            text = redacted(in_short(error))
        result = {"name": name, "error": text, "fatal": ""}
    except BaseException:
        if parts is not None:
            parts.stopped()
        raise
    empty = {"rows": 0, "bytes": 0, "sha256": "", "footer": "", "stamp": "", "weights": ""}
    seconds = time.perf_counter() - started
    LOG.info("%s: %s: %s after %.1f s", stage.table, name,
             "failed" if result["error"] or result["fatal"] else "made", seconds)  # fmt: skip
    return {**empty, **result, "fresh": fresh, "seconds": seconds}


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
    price_per_hour: float | None = Field(
        None, ge=0, description="of one worker, in any currency: for probe and --dry-run"
    )
    threads: Count = Field(
        1, description="torch threads per worker; float sums on CPU depend on it, so it is recorded"
    )
