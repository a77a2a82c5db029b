"""Stages in, finished tables out: fingerprints, resume, failures, progress, serial or Ray.

A build stage writes its whole table in one go (seconds to minutes). A map stage makes each
output shard from the input shard of the same name; which names are missing is all that resume
needs to know. The record of a stage stands in `ROOT/_stages/<table>.json` and is written by the
driver alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.tables import DiskFull, Shard, Store
from pipeline.workflow import Compute

Worker = Callable[[pa.Table], Iterable[pa.Table]]
"""Rows of one shard in, chunks of output rows out. Chunks are written while it goes on."""

R = TypeVar("R")

# A model that cannot load fails every shard; there is no use in trying thousands.
FAILURES_IN_A_ROW = 8
RAY_ROUNDS = 3
RUN_WORKFLOW = "_workflow.json"
"""In a run: the workflow that made it, with all defaults."""
LOCK = ".lock"


@contextmanager
def alone(run: str) -> Iterator[None]:
    """Keep a second run out of a run directory on this machine's disks; its end frees it.

    What is not a local folder is not guarded.

    Raises:
        AigiError: another run works there.
    """
    if "://" in run:
        yield
        return
    import fcntl

    Path(run).mkdir(parents=True, exist_ok=True)
    with open(Path(run) / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AigiError(
                f"{run}: another run works there now. Wait for its end, or take another directory "
                "(--set run=…)."
            ) from None
        yield


def no_check() -> None:
    """The check of a stage that needs none."""


def no_state(store: Store) -> Any:
    """The state of a stage that depends on settings and input tables alone."""
    return None


@dataclass(frozen=True)
class Build:
    """A stage that writes its whole table: `build` gets the store, and returns the shards.

    It is built again when an input table has got other shards, or when `state` has changed.

    Attributes:
        state: what the table depends on beside settings and inputs, as JSON knows it.
        remake: other settings make the table anew, where it would else be refused: for tables
            that cost seconds.
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
        state: what the table depends on beside settings and inputs; part of its fingerprint.
        remake: other settings or inputs make the table anew, where it would else be refused.
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


Stage = Build | Map


def fingerprint(stage: Stage, inputs: Mapping[str, str]) -> str:
    """sha256 over table, stage version, settings, input fingerprints and schema (hex)."""
    parts = {
        "table": stage.table,
        "version": stage.version,
        "settings": stage.settings,
        "inputs": inputs,
        "schema": stage.schema.to_string(show_schema_metadata=False),
    }
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


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = flat(old), flat(new)
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in sorted(before | after)
        if before.get(key, missing) != after.get(key, missing)
    ]


def _refuse(
    stage: Stage, record: Mapping[str, Any], inputs: Mapping[str, str], store: Store
) -> None:
    settings = json.loads(json.dumps(stage.settings))
    changes = _differences(record.get("settings", {}), settings)
    for name, digest in inputs.items():
        if record.get("inputs", {}).get(name) != digest:
            changes.append(f"its input table {name} is another one")
    if record.get("version") != stage.version:
        changes.append(f"stage version: {record.get('version')} -> {stage.version}")
    if not changes:
        changes = ["the schema of the table"]
    raise AigiError(
        f"{stage.table}: made with other settings than the workflow asks for now:\n  "
        + "\n  ".join(changes)
        + f"\nGo back to the old settings, use a new run directory (--set run=...), or delete "
        f"{store.path(stage.table)} and {store.path('_stages', stage.table + '.json')} "
        "to make it anew."
    )


def _make_shard(stage: Map, store: Store, worker: Worker, name: str) -> dict[str, Any]:
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


def _serially(stage: Map, store: Store, names: list[str]) -> Iterator[dict[str, Any]]:
    worker = stage.make_worker()
    for name in names:
        yield _make_shard(stage, store, worker, name)


class _ShardMaker:
    """The same for a Ray actor: one worker, made once, fed with shard names."""

    def __init__(self, stage: Map, store: Store) -> None:
        self.stage, self.store, self.worker = stage, store, stage.make_worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _make_shard(self.stage, self.store, self.worker, row["name"])


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+):(?P<port>\d+)", address)
    if found is None:  # `local`, `auto`
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=10).close()
    except OSError as error:
        raise AigiError(
            f"compute.ray: {address}: no cluster answers there ({error}). Give `local`, `auto` "
            "on a machine of the cluster, or the address that `ray start --head` printed."
        ) from error


def connect(compute: Compute) -> float:
    """Start Ray or join its cluster; how many GPUs a worker gets.

    Raises:
        AigiError: there is no such cluster.
    """
    import ray

    _check_address(str(compute.ray))
    if not ray.is_initialized():
        local = compute.ray == "local"
        try:
            ray.init(
                address=compute.ray,  # `local` starts a cluster of its own, whatever runs here
                # An actor asks for one CPU: more workers than cores must still be placed.
                num_cpus=max(os.cpu_count() or 1, compute.workers) if local else None,
                include_dashboard=False if local else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            raise AigiError(f"compute.ray: {compute.ray}: {error}") from error
    gpus = compute.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") and compute.device != "cpu" else 0.0
    return gpus


def with_ray(
    function: Callable[..., R], arguments: Iterable[tuple[Any, ...]], compute: Compute
) -> Iterator[R]:
    """Results of a function in Ray tasks, in order; two a worker are under way.

    A task whose worker or machine dies is run again elsewhere.
    """
    import ray

    gpus = connect(compute)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(function)
    waiting: deque[Any] = deque()
    for given in arguments:
        waiting.append(task.remote(*given))
        if len(waiting) > 2 * compute.workers:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def _with_ray(
    stage: Map, store: Store, names: list[str], compute: Compute
) -> Iterator[dict[str, Any]]:
    """Ray Data moves shard names; the actors read and write the shards themselves."""
    import ray

    gpus = connect(compute)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that kills its worker is named below, others go on
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left = dict.fromkeys(names)
    # A worker or a machine that dies takes the shards with it that wait there: those without an
    # answer are asked for again, on new workers.
    for _ in range(RAY_ROUNDS):
        rows = ray.data.from_items([{"name": name} for name in left], override_num_blocks=len(left))
        with warnings.catch_warnings():
            # Retries have no other name yet, and Ray Data's own default tries for ever.
            warnings.filterwarnings("ignore", message=".*ray_remote_args")
            made = rows.map(
                _ShardMaker,
                fn_constructor_args=(stage, store),
                concurrency=min(compute.workers, len(left)),
                num_cpus=1,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=1,
            )
        for result in made.iter_rows():
            left.pop(result["name"], None)
            yield result
        if not left:
            return


def _run_map(
    stage: Map, store: Store, record: dict[str, Any], compute: Compute, progress: Progress
) -> None:
    names = stage.names(store)
    present = store.shards(stage.table)
    whole = store.rows_of(stage.table, [name for name in names if name in present])
    missing = [name for name in names if whole.get(name) is None]
    if not missing and record.get("status") == "done":
        progress.skip(stage.table, len(names))
        return
    for name in set(present) - set(names):
        store.remove(stage.table, f"{name}.parquet")
    if missing:
        stage.check()
    hashes = {name: sha for name, sha in record.get("sha256", {}).items() if name in whole}
    for name in missing:
        hashes.pop(name, None)
    record |= {"status": "running", "expected": len(names), "failed": {}, "sha256": hashes}
    store.write_json(record, "_stages", f"{stage.table}.json")
    before, started = float(record.get("seconds", 0.0)), time.perf_counter()
    failed: dict[str, str] = {}
    in_a_row = 0

    def save(status: str) -> None:
        record.update(
            status=status,
            failed=failed,
            seconds=round(before + time.perf_counter() - started, 3),
        )
        store.write_json(record, "_stages", f"{stage.table}.json")

    done = sum(rows for rows in whole.values() if rows is not None)
    with progress.stage(stage.table, len(names), len(names) - len(missing), done) as bar:
        results = (
            _serially(stage, store, missing)
            if compute.ray is None
            else _with_ray(stage, store, missing, compute)
        )
        saved = time.monotonic()
        unanswered = set(missing)
        try:
            for result in results:
                name = result["name"]
                unanswered.discard(name)
                if result["fatal"]:
                    save("stopped")
                    raise DiskFull(f"{stage.table}: {result['fatal']}")
                if result["error"]:
                    failed[name] = result["error"]
                    in_a_row += 1
                    bar.fail(name, result["error"])
                else:
                    in_a_row = 0
                    hashes[name] = result["sha256"]
                    bar.advance(result["rows"])
                if in_a_row >= FAILURES_IN_A_ROW:
                    break
                if time.monotonic() - saved > 5:
                    save("running")
                    saved = time.monotonic()
        except BaseException:
            save("stopped")
            raise
        if in_a_row < FAILURES_IN_A_ROW:
            for name in unanswered:
                failed[name] = "its worker died each time (out of memory, or killed?)"
    if failed:
        save("failed")
        first = min(failed)
        last_line = failed[first].strip().splitlines()[-1]
        stopped = f" (stopped after {FAILURES_IN_A_ROW} in a row)" * (in_a_row >= FAILURES_IN_A_ROW)
        raise AigiError(
            f"{stage.table}: {len(failed)} of {len(names)} shards failed{stopped}, first {first}: "
            f"{last_line}\nWhole error texts: {store.path('_stages', stage.table + '.json')}. "
            "Finished shards are kept; run the same command again to make the rest."
        )
    save("done")


def _run_build(stage: Build, store: Store, record: dict[str, Any], progress: Progress) -> None:
    present = store.shards(stage.table)
    seen = {
        "shards": {name: sorted(store.shards(name)) for name in stage.inputs},
        "state": json.loads(json.dumps(stage.state(store))),
    }
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
    same = record.get("seen") == digest and present == record.get("sizes")
    if record.get("status") == "done" and same:
        progress.skip(stage.table, len(present))
        return
    record["seen"] = digest
    store.write_json({**record, "status": "running"}, "_stages", f"{stage.table}.json")
    started = time.perf_counter()
    made = stage.build(store, progress)
    for name in set(present) - {shard.name for shard in made}:
        store.remove(stage.table, f"{name}.parquet")
    record |= {
        "status": "done",
        "expected": len(made),
        "failed": {},
        "sizes": {shard.name: shard.bytes for shard in made},
        "seconds": round(time.perf_counter() - started, 3),
    }
    store.write_json(record, "_stages", f"{stage.table}.json")


def run_stages(stages: Iterable[Stage], store: Store, compute: Compute, progress: Progress) -> None:
    """Run the stages in order; finished ones are skipped, half-done ones are completed.

    Raises:
        AigiError: settings differ from those that a table was made with, or shards failed.
        DiskFull: no space; everything finished is kept.
    """
    for stage in stages:
        inputs = {}
        for name in stage.inputs:
            made = store.read_json("_stages", f"{name}.json")
            if made is None or made.get("status") != "done":
                raise AigiError(
                    f"{stage.table}: needs the {name} table, which this run does not have. "
                    f"Add the {name} section to the workflow, or use the run that has it."
                )
            inputs[name] = str(made["fingerprint"])
        if isinstance(stage, Map) and (state := stage.state(store)) is not None:
            inputs["(state)"] = str(state)
        digest = fingerprint(stage, inputs)
        record = store.read_json("_stages", f"{stage.table}.json") or {}
        if record and record.get("fingerprint") != digest:
            if not stage.remake:
                _refuse(stage, record, inputs, store)
            progress.say(f"{stage.table}: its settings or inputs have changed, made anew")
            record = {}
            if isinstance(stage, Map):
                for name in store.shards(stage.table):
                    store.remove(stage.table, f"{name}.parquet")
        record |= {
            "table": stage.table,
            "version": stage.version,
            "settings": dict(stage.settings),
            "inputs": inputs,
            "fingerprint": digest,
        }
        store.sweep(stage.table)
        if isinstance(stage, Map):
            _run_map(stage, store, record, compute, progress)
        else:
            _run_build(stage, store, record, progress)


@dataclass(frozen=True)
class Status:
    """Where one stage of a run stands."""

    table: str
    state: str
    done: int
    failed: int
    missing: int
    rows: int
    bytes: int
    seconds: float


def status(store: Store) -> list[Status]:
    """State of every stage of a run, in the order in which they were started.

    None, where all that the run holds are codecs in training, which keep files of their own.

    Raises:
        AigiError: the folder holds no run.
    """
    try:
        files = store.fs.find(store.path("_stages"))
    except FileNotFoundError:
        files = []
    records = [store.read_json("_stages", file.rsplit("/", 1)[-1]) or {} for file in files]
    if not records and not store.fs.isdir(store.path("train")):
        raise AigiError(f"{store.url}: no run here (no _stages folder)")
    found = []

    def depth(record: dict[str, Any]) -> int:
        below = [r for r in records if r["table"] in record.get("inputs", {})]
        return 1 + max((depth(r) for r in below), default=0)

    for record in sorted(records, key=lambda r: (depth(r), str(r["table"]))):
        table = str(record["table"])
        sizes = store.shards(table)
        rows = store.rows_of(table, list(sizes))
        whole = {name: count for name, count in rows.items() if count is not None}
        expected = int(record.get("expected", len(whole)))
        found.append(
            Status(
                table=table,
                state=str(record.get("status", "?")),
                done=len(whole),
                failed=len(record.get("failed", {})),
                missing=max(0, expected - len(whole)),
                rows=sum(whole.values()),
                bytes=sum(sizes[name] for name in whole),
                seconds=float(record.get("seconds", 0.0)),
            )
        )
    return found
