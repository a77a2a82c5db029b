"""Stages in, finished tables out: resume, failures, progress, serial or by Ray.

Which names are missing is all that resuming a map stage needs to know. The record of a stage is
in `ROOT/_stages/<table>.json` and is written by the driver alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.cluster import shards_with_ray
from pipeline.loaded import Weights
from pipeline.progress import Progress
from pipeline.stage import (
    Build,
    Compute,
    Files,
    Map,
    Stage,
    differences,
    fingerprint,
    make_shard,
)
from pipeline.store import DiskFull, Store

# A model that cannot load fails every shard; there is no use in trying thousands.
FAILURES_IN_A_ROW = 8
RUN_WORKFLOW = "_workflow.json"
"""In a run: the workflow that made it, with all defaults."""
LOCK = ".lock"


def first_process() -> bool:
    """Whether this is the first of the processes of a launcher, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def alone(run: str) -> Iterator[None]:
    """Keep a second run out of a run directory on this machine's disks until this one ends.

    Only local folders are guarded.

    Raises:
        AigiError: another run is using it.
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
                f"{run}: another run is using it. Wait until that run ends, or use another "
                "directory (--set run=…)."
            ) from None
        yield


def _refuse(
    stage: Stage, record: Mapping[str, Any], inputs: Mapping[str, str], store: Store
) -> None:
    settings = json.loads(json.dumps(stage.settings))
    changes = differences(record.get("settings", {}), settings)
    for name, digest in inputs.items():
        if record.get("inputs", {}).get(name) != digest:
            changes.append(f"its input table {name} has changed")
    if record.get("version") != stage.version:
        changes.append(f"stage version: {record.get('version')} -> {stage.version}")
    if not changes:
        changes = ["the schema of the table, or the size of its row groups"]
    raise AigiError(
        f"{stage.table}: made with other settings than the workflow has now:\n  "
        + "\n  ".join(changes)
        + f"\nGo back to the old settings, use a new run directory (--set run=...), or delete "
        f"{store.path(stage.table)} and {store.path('_stages', stage.table + '.json')} "
        "to remake it."
    )


def _serially(stage: Map, store: Store, names: list[str]) -> Iterator[dict[str, Any]]:
    worker = stage.make_worker()
    for name in names:
        yield make_shard(stage, store, worker, name)


def _run_map(
    stage: Map, store: Store, record: dict[str, Any], compute: Compute, progress: Progress
) -> None:
    names = stage.names(store)
    present = store.shards(stage.table)
    rows = store.rows_of(stage.table, [name for name in names if name in present])
    whole = {name: count for name, count in rows.items() if count is not None}
    for name in stage.outdated(store, list(whole), progress):
        del whole[name]  # its file stays until another one takes its place
    missing = [name for name in names if name not in whole]
    if not missing and record.get("status") == "done":
        progress.skip(stage.table, len(names))
        return
    for name in set(present) - set(names):
        store.remove(stage.table, f"{name}.parquet")
    if missing:
        stage.check()
    weights = Weights(stage.table, store, list(whole), stage.inputs)
    hashes = {name: sha for name, sha in record.get("sha256", {}).items() if name in whole}
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

    done = sum(whole.values())
    with progress.stage(stage.table, len(names), len(whole), done) as bar:
        results = (
            _serially(stage, store, missing)
            if compute.ray is None
            else shards_with_ray(stage, store, missing, compute)
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
                    weights.add(name, result["weights"])
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
            f"{last_line}\nFull error texts: {store.path('_stages', stage.table + '.json')}. "
            "Finished shards are kept; run the same command again to make the rest."
        )
    save("done")


def _seen(stage: Build | Files, store: Store) -> str:
    """A digest of what a stage depends on beside its settings."""
    seen = {
        "shards": {name: sorted(store.shards(name)) for name in stage.inputs},
        "state": json.loads(json.dumps(stage.state(store))),
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


@contextmanager
def _noted(record: dict[str, Any], store: Store) -> Iterator[None]:
    """Record that a stage runs and, if it does not end well, that it failed."""
    name = f"{record['table']}.json"
    store.write_json({**record, "status": "running"}, "_stages", name)
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        seconds = round(time.perf_counter() - started, 3)
        store.write_json({**record, "status": "stopped", "seconds": seconds}, "_stages", name)
        raise
    record |= {"status": "done", "failed": {}, "seconds": round(time.perf_counter() - started, 3)}
    store.write_json(record, "_stages", name)


def _run_build(stage: Build, store: Store, record: dict[str, Any], progress: Progress) -> None:
    present, digest = store.shards(stage.table), _seen(stage, store)
    same = record.get("seen") == digest and present == record.get("sizes")
    if record.get("status") == "done" and same:
        progress.skip(stage.table, len(present))
        return
    record["seen"] = digest
    with _noted(record, store):
        made = stage.build(store, progress)
        for name in set(present) - {shard.name for shard in made}:
            store.remove(stage.table, f"{name}.parquet")
        record |= {
            "expected": len(made),
            "sizes": {shard.name: shard.bytes for shard in made},
        }


def _intact(files: Mapping[str, int], store: Store) -> list[str]:
    """Those of the files that are there, with these sizes."""
    return [path for path, size in files.items() if store.size(path) == size]


def _run_files(stage: Files, store: Store, record: dict[str, Any], progress: Progress) -> None:
    digest = _seen(stage, store)
    # Records of before this kind of stage name no files.
    files = record.get("files", {})
    intact = len(_intact(files, store)) == len(files)
    first = first_process()
    if record.get("status") == "done" and record.get("seen") == digest and intact:
        if first:
            progress.skip(stage.table, len(files), "files")
        return
    if not first:  # of the processes of a launcher: the first keeps the record
        stage.make(store, progress)
        return
    record["seen"] = digest
    with _noted(record, store):
        sizes = {path: store.size(path) for path in stage.make(store, progress)}
        gone = [path for path, size in sizes.items() if size is None]
        if gone:
            raise AigiError(f"{stage.table}: {store.path(gone[0])}: was made, but is missing")
        record |= {"expected": len(sizes), "files": sizes}


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
            progress.say(f"{stage.table}: its settings or inputs have changed; it is remade")
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
        elif isinstance(stage, Build):
            _run_build(stage, store, record, progress)
        else:
            _run_files(stage, store, record, progress)


@dataclass(frozen=True)
class Status:
    """The state of one stage of a run."""

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

    Empty for a run whose workflow is recorded but whose stages have not started.

    Raises:
        AigiError: the folder contains no run.
    """
    try:
        files = store.fs.find(store.path("_stages"))
    except FileNotFoundError:
        files = []
    records = [store.read_json("_stages", file.rsplit("/", 1)[-1]) or {} for file in files]
    if not records and store.read_json(RUN_WORKFLOW) is None:
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
        intact = _intact(files := record.get("files", {}), store)
        done = len(whole) + len(intact)
        expected = int(record.get("expected", done))
        found.append(
            Status(
                table=table,
                state=str(record.get("status", "?")),
                done=done,
                failed=len(record.get("failed", {})),
                missing=max(0, expected - done),
                rows=sum(whole.values()),
                bytes=sum(sizes[name] for name in whole) + sum(files[path] for path in intact),
                seconds=float(record.get("seconds", 0.0)),
            )
        )
    return found
