"""Stages in, finished tables out: resume, failures, progress, serial or by Ray.

The record of a stage is in `ROOT/_stages/<table>.json`; the driver alone writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.intact import USUAL, Checks, intact, intact_files
from pipeline.outside import created, reached
from pipeline.progress import Progress
from pipeline.record import Driver, Record, Written
from pipeline.shards import run_map
from pipeline.stage import (
    Build,
    Compute,
    Files,
    Map,
    Stage,
    built_from,
    differences,
    fingerprint,
    only_settings,
)
from pipeline.store import RECORDS, Damaged, Store

LOCK = ".lock"
_STATE = "(state)"
"""Among the inputs of records of earlier versions: what a map stage depended on beside them."""


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

    with reached(run):
        Path(run).mkdir(parents=True, exist_ok=True)
    with created(os.path.join(run, LOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AigiError(
                f"{run}: another run is using it. Wait until that run ends, or use another "
                "directory (--set run=…)."
            ) from None
        yield


def _refuse(stage: Stage, record: Record, inputs: Mapping[str, str], store: Store) -> None:
    changes = differences(record.settings, stage.settings)
    for name, digest in inputs.items():
        if record.inputs.get(name) != digest:
            changes.append(f"its input table {name} has changed")
    if record.version != stage.version:
        changes.append(f"stage version: {record.version} -> {stage.version}")
    if not changes:
        changes = ["the schema of the table, or the size of its row groups"]
    raise AigiError(
        f"{stage.table}: made with other settings than the workflow has now:\n  "
        + "\n  ".join(changes)
        + "\nGo back to the old settings, use a new run directory (--set run=...), or give "
        f"--replace to remove {store.path(stage.table)} and make it again."
    )


# --- what is there, and is it what was written? --------------------------------------------------


def put_back(
    store: Store, record: Record, checks: Checks, progress: Progress
) -> tuple[dict[str, Written], dict[str, str]]:
    """Write small files beside a table again that are lost or damaged, as its record has them.

    Returns: the files that are what was written, and what is wrong with those without a copy.
    """
    good, wrong = intact_files(store, record.beside, checks.rehash)
    lost = {}
    for path, why in wrong.items():
        text = record.beside[path].text
        if text is None:
            lost[path] = why
        else:
            progress.say(f"{record.table}: {store.path(path)}: {why}; put back from the record")
            store.write_bytes(text.encode(), path)
    return good, lost


def _check_input(store: Store, table: str, needed_by: str, rehash: bool) -> None:
    """Refuse a table that is not what its stage wrote.

    Raises:
        Damaged: names the first file, and what remakes it.
    """
    record = store.record(table)
    assert record is not None  # its status was looked at
    _, wrong = intact(store, table, record.shards, rehash)
    strange = sorted(set(store.shards(table)) - set(record.shards))
    if wrong:
        name = min(wrong)
        more = f" ({len(wrong)} files of {table} are not what was written)" * (len(wrong) > 1)
        path = store.path(table, f"{name}.parquet")
        raise store.damaged(f"{needed_by}: {path}", wrong[name] + more)
    if strange:
        raise Damaged(
            f"{needed_by}: {store.path(table, strange[0])}.parquet: the {table} stage did not "
            "write it. Remove it from the run."
        )


# --- stages that are made as a whole -------------------------------------------------------------


def _seen(stage: Build | Files, store: Store) -> str:
    """What records of earlier versions have as a digest of inputs and state."""
    seen = {
        "shards": {name: sorted(store.shards(name)) for name in stage.inputs},
        "state": json.loads(json.dumps(stage.state(store))),
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _unchanged(stage: Build | Files, store: Store, record: Record, source: str) -> bool:
    """Whether a finished table or its files are made from what is there now."""
    if record.status != "done":
        return False
    if record.made_from is None:
        return record.seen == _seen(stage, store)
    return record.made_from == source


@contextmanager
def _noted(record: Record, store: Store) -> Iterator[dict[str, Any]]:
    """Record that a stage runs, that it failed, or what is put into the result.

    A stage that does not end well is recorded with what it had made before.
    """
    store.write_record(record.model_copy(update={"status": "running", "driver": Driver.here()}))
    started = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        yield found
    except BaseException:
        seconds = round(time.perf_counter() - started, 3)
        stopped = {"status": "stopped", "seconds": seconds, "driver": None}
        store.write_record(record.model_copy(update=stopped))
        raise
    seconds = round(time.perf_counter() - started, 3)
    end = {"status": "done", "failed": {}, "seconds": seconds, "driver": None, "seen": None}
    store.write_record(record.model_copy(update={**end, **found}))


def _run_build(
    stage: Build, store: Store, record: Record, progress: Progress, checks: Checks
) -> None:
    shards, wrong = intact(store, stage.table, record.shards, checks.rehash)
    beside, lost = put_back(store, record, checks, progress)
    present = store.shards(stage.table)
    source = built_from(stage, store, record.made_as)
    unchanged = _unchanged(stage, store, record, source)
    if unchanged and not wrong and not lost and present.keys() == shards.keys():
        kept = {"shards": shards, "beside": {**record.beside, **beside}, "made_from": source}
        if (now := record.model_copy(update={**kept, "seen": None})) != store.record(stage.table):
            store.write_record(now)
        progress.skip(stage.table, len(present))
        return
    if unchanged:
        for name, why in {**wrong, **lost}.items():
            progress.say(f"{stage.table}: {name}: {why}; the table is made again")
    with _noted(record, store) as found, store.logged() as log:
        made = stage.build(store, progress)
        for name in set(present) - {shard.name for shard in made}:
            store.remove(stage.table, f"{name}.parquet")
        mine = {f"{stage.table}/{shard.name}.parquet" for shard in made}
        others = {path for path in log - mine if not path.startswith(f"{RECORDS}/")}
        found |= {
            "expected": len(made),
            "shards": {shard.name: shard.written(None) for shard in made},
            "beside": {path: one for path in sorted(others) if (one := store.look(path))},
            "made_from": built_from(stage, store, record.made_as),
        }


def _run_files(
    stage: Files, store: Store, record: Record, progress: Progress, checks: Checks
) -> None:
    first = first_process()
    files, wrong = intact_files(store, record.files, checks.rehash)
    source = built_from(stage, store, record.made_as)
    unchanged = _unchanged(stage, store, record, source)
    if unchanged and not wrong and files:
        if first:
            kept = {"files": files, "made_from": source, "seen": None}
            if (now := record.model_copy(update=kept)) != store.record(stage.table):
                store.write_record(now)
            progress.skip(stage.table, len(files), "files")
        return
    if not first:  # of the processes of a launcher: the first keeps the record
        stage.make(store, progress)
        return
    if unchanged:
        for path, why in wrong.items():
            progress.say(f"{stage.table}: {store.path(path)}: {why}; made again")
    with _noted(record, store) as found:
        made = {path: store.look(path) for path in stage.make(store, progress)}
        gone = [path for path, one in made.items() if one is None]
        if gone:
            raise AigiError(f"{stage.table}: {store.path(gone[0])}: was made, but is missing")
        found |= {"expected": len(made), "files": made, "made_from": source}


# --- all of them ---------------------------------------------------------------------------------


def _begun(
    stage: Stage, store: Store, inputs: Mapping[str, str], progress: Progress, checks: Checks
) -> Record:
    """The record that a stage begins with: what it made so far with the same settings.

    Raises:
        AigiError: it was made with other settings, or there are shards without a record.
    """
    identity = fingerprint(stage, inputs)
    begun = Record(
        table=stage.table,
        version=stage.version,
        settings=dict(stage.settings),
        inputs=dict(inputs),
        fingerprint=identity,
    )
    record = store.record(stage.table)
    if record is None:
        present = [] if isinstance(stage, Files) else list(store.shards(stage.table))
        if present and not checks.adopt and isinstance(stage, Map):
            raise AigiError(
                f"{stage.table}: {len(present)} shards in {store.path(stage.table)}, but no record "
                f"of how they were made ({store.path(RECORDS, stage.table + '.json')} is missing). "
                "Put the record back, run again with --adopt to take them up as they are, or "
                f"delete {store.path(stage.table)} to remake them."
            )
        return begun
    if record.empty and not (isinstance(stage, Map) and store.shards(stage.table)):
        return begun  # a try that made nothing binds nobody
    was = record.inputs.get(_STATE)
    if was is not None and isinstance(stage, Map):
        same = record.fingerprint == fingerprint(stage, {**inputs, _STATE: was})
        shards = record.shards if was == str(stage.state(store)) else {}
    else:
        same, shards = record.fingerprint == identity, record.shards
    kept = begun.model_dump(include={"version", "settings", "inputs", "fingerprint"})
    if not same and (goes_on := _goes_on(stage, record)) is not None:
        return record.model_copy(update={**kept, "identity": goes_on})
    if not same:
        if not stage.remake and not checks.replace:
            _refuse(stage, record, inputs, store)
        progress.say(f"{stage.table}: its settings or inputs have changed; it is remade")
        if isinstance(stage, Map):
            for name in stage.replaces(
                record.settings, begun.settings, [*store.shards(stage.table)]
            ):
                store.remove(stage.table, f"{name}.parquet")
        return begun.model_copy(update={"shards": _others(stage, store, record)})
    return record.model_copy(update={**kept, "shards": shards})


def _goes_on(stage: Stage, record: Record) -> str | None:
    """What `made_from` is computed with, where content alone tells what must be made again.

    So it is where only the inputs changed, or settings for what is still missing. None: it is not.
    """
    if not only_settings(stage, record):
        return None
    if stage.settings == record.settings:
        return record.made_as
    extends = not isinstance(stage, Files) and stage.extends(record.settings, stage.settings)
    # A table that is built as a whole is built again; its shards then have the content they had.
    return None if not extends else "" if isinstance(stage, Build) else record.made_as


def _others(stage: Stage, store: Store, record: Record) -> dict[str, Written]:
    """Shards of a table that is replaced from which rows may be taken."""
    if not isinstance(stage, Map) or stage.takes is None:
        return {}
    there = store.shards(stage.table)
    # Made from nothing that anything is made from now.
    return {
        name: one.model_copy(update={"made_from": "replaced"})
        for name, one in record.shards.items()
        if name in there
    }


def run_stages(
    stages: Iterable[Stage],
    store: Store,
    compute: Compute,
    progress: Progress,
    checks: Checks = USUAL,
) -> None:
    """Run the stages in order; finished ones are skipped, half-done ones are completed.

    Args:
        retry: make rows that have an error again, and what was made from them.

    Raises:
        AigiError: settings differ from those that a table was made with, or shards failed.
        Damaged: a table that no stage of these makes is not what was written.
        DiskFull: no space; everything finished is kept.
    """
    store.sweep()
    made = set()
    for stage in stages:
        inputs = {}
        for name in stage.inputs:
            record = store.record(name)
            if record is None or record.status != "done":
                raise AigiError(
                    f"{stage.table}: needs the {name} table, which this run does not have. "
                    f"Add the {name} section to the workflow, or use the run that has it."
                )
            inputs[name] = record.fingerprint
            if name not in made:
                _check_input(store, name, stage.table, checks.rehash)
                made.add(name)
        with progress.at(stage.table):
            begun = _begun(stage, store, inputs, progress, checks)
            if isinstance(stage, Map):
                run_map(stage, store, begun, compute, progress, checks)
            elif isinstance(stage, Build):
                _run_build(stage, store, begun, progress, checks)
            else:
                _run_files(stage, store, begun, progress, checks)
        made.add(stage.table)
