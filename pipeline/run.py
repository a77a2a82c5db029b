"""Stages in, finished tables out: resume, failures, progress, serial or by Ray.

A shard is made again where its content, or that of what it was made from, is not what the record
of its stage says. The record is in `ROOT/_stages/<table>.json`; the driver alone writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import AigiError, freed, held, parts
from pipeline.cluster import shards_with_ray
from pipeline.folder import DiskFull
from pipeline.intact import USUAL, Checks, intact, intact_files
from pipeline.loaded import Weights
from pipeline.outside import created, reached
from pipeline.progress import Progress
from pipeline.record import Driver, Record, Written
from pipeline.retry import failed_shards
from pipeline.stage import (
    Build,
    Compute,
    Files,
    Map,
    Stage,
    Told,
    built_from,
    differences,
    fingerprint,
    made_from,
    make_shard,
)
from pipeline.store import RECORDS, Damaged, Store

# A model that cannot load fails every shard; there is no use in trying thousands.
FAILURES_IN_A_ROW = 8
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
    settings = json.loads(json.dumps(stage.settings))
    changes = differences(record.settings, settings)
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


def _put_back(store: Store, record: Record, wrong: Mapping[str, str], progress: Progress) -> None:
    """Write small files that are lost or damaged again, from the copy that the record has."""
    for path, why in wrong.items():
        text = record.beside[path].text
        if text is not None:
            progress.say(f"{record.table}: {store.path(path)}: {why}; put back from the record")
            store.write_bytes(text.encode(), path)


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


# --- map stages ----------------------------------------------------------------------------------


def _serially(
    stage: Map, store: Store, missing: Mapping[str, str], told: Told
) -> Iterator[dict[str, Any]]:
    worker = stage.make_worker()
    for name, source in missing.items():
        yield make_shard(stage, store, worker, name, source, told)


def _unrecorded(
    stage: Map, store: Store, names: Sequence[str], wanted: Mapping[str, str | None], adopt: bool
) -> dict[str, Written]:
    """Shards that the record does not have yet, because its writer was killed.

    Each says itself what it was made from. With `adopt`, one that says nothing is believed.
    """
    found = {}
    for name in names:
        said = store.made_from(stage.table, name)
        if said != wanted[name] and not (adopt and said is None):
            continue
        try:
            rows = store.read(stage.table, name).num_rows  # every page, with its checksum
            now = store.look(stage.table, f"{name}.parquet")
            if now is not None and stage.takes is not None:
                now = freed.adopted(store, name, now)
        except AigiError:
            continue
        if now is not None and (not adopt or rows == stage.read(store, name).num_rows):
            found[name] = now.model_copy(update={"made_from": wanted[name]})
    return found


def _up_to_date(
    stage: Map,
    store: Store,
    record: Record,
    wanted: Mapping[str, str | None],
    checks: Checks,
    progress: Progress,
) -> dict[str, Written]:
    """Shards that need not be made, by name; reports why others are made again."""
    mine = {name: one for name, one in record.shards.items() if name in wanted}
    found, wrong = intact(store, stage.table, mine, checks.rehash)
    wrong = {name: why for name, why in wrong.items() if why != "missing"}
    fresh, early = {}, 0
    for name, one in found.items():
        if one.made_from is None:
            early += 1
            fresh[name] = one.model_copy(update={"made_from": wanted[name]})
        elif one.made_from == wanted[name] or wanted[name] is None:
            fresh[name] = one
        else:
            wrong[name] = "what it was made from has changed"
    if stage.takes is not None:
        gone = freed.lost(store, fresh, checks.rehash)
        wrong |= gone
        fresh = {name: one for name, one in fresh.items() if name not in gone}
    others = [name for name in store.shards(stage.table) if name in wanted and name not in mine]
    fresh |= _unrecorded(stage, store, others, wanted, checks.adopt)
    if early:
        progress.say(
            f"{stage.table}: {early} shards of an earlier version of aigi; from now on, their "
            "content and that of what they were made from is recorded"
        )
    reasons = defaultdict(list)
    for name, why in sorted(wrong.items()):
        reasons[why.partition(" (")[0]].append(name)
    for names in reasons.values():
        more = f" and {len(names) - 1} more" * (len(names) > 1)
        progress.say(f"{stage.table}: {names[0]}{more}: {wrong[names[0]]}; made again")
    for name in stage.outdated(store, list(fresh), progress):
        del fresh[name]  # its file stays until another one takes its place
    return {name: fresh[name] for name in wanted if name in fresh}


def _run_map(
    stage: Map,
    store: Store,
    record: Record,
    compute: Compute,
    progress: Progress,
    checks: Checks,
) -> None:
    wanted = {name: made_from(stage, store, name, record.made_as) for name in stage.names(store)}
    before = store.record(stage.table)
    whole = _up_to_date(stage, store, record, wanted, checks, progress)
    if stage.takes is not None:
        _set_aside(stage, store, record, whole)
    again: dict[str, int] = {}
    if checks.retry:
        mine = stage.possible([name for name in whole if wanted[name] is not None])
        again = failed_shards(store, stage.table, stage.schema, mine)
    for name in again if stage.takes is not None else ():
        freed.restore(store, name)  # its good rows are needed
    good = sum(whole[name].rows - count for name, count in again.items())
    whole = {name: one for name, one in whole.items() if name not in again}
    stage = replace(stage, again=frozenset(again))
    missing = {name: made for name, made in wanted.items() if made and name not in whole}
    gone = sorted(set(store.shards(stage.table)) - set(wanted))
    if stage.before is not None and gone:
        stage.before(store, gone)
    for name in gone:
        store.remove(stage.table, f"{name}.parquet")
    if not missing and record.status == "done":
        record = record.model_copy(update={"shards": whole, "expected": len(wanted)})
        if record != before:
            store.write_record(record)
        parts.sweep(store, stage.table)
        _taken(stage, store, progress, checks)
        if stage.after is not None:
            stage.after(store, list(wanted))
        progress.skip(stage.table, len(wanted))
        return
    if stale := parts.sweep(store, stage.table, missing):
        progress.say(
            f"{stage.table}: finished batches of {len(stale)} shards that are not being made are "
            f"thrown away, first {stale[0]}"
        )
    if stage.takes is not None and missing:
        others = [name for name in missing if name not in again]
        stage = replace(stage, taker=stage.takes(store, others, progress))
    if missing and not (stage.taker and stage.taker.all and not again):
        for line in stage.check() or ():
            progress.say(line)
    weights = Weights(stage.table, store, list(whole), stage.inputs)
    started = time.perf_counter()
    shards, failed = dict(whole), dict[str, str]()
    in_a_row = 0

    def save(status: str) -> None:
        seconds = round(record.seconds + time.perf_counter() - started, 3)
        now = {"status": status, "shards": shards, "failed": failed, "seconds": seconds}
        now["driver"] = Driver.here() if status == "running" else None
        store.write_record(record.model_copy(update={**now, "expected": len(wanted)}))

    save("running")
    # Of a shard whose failed rows are made again, those alone are work.
    left = {name: again.get(name) or stage.rows_of(store, name) for name in missing}
    done = good + sum(one.rows for one in whole.values())
    of = None if None in left.values() else done + sum(filter(None, left.values()))
    with progress.stage(stage.table, len(wanted), len(whole), done, of) as bar:
        make = _serially if compute.ray is None else partial(shards_with_ray, compute=compute)
        making = partial(make, stage, store, told=bar.under_way)
        results = making(missing) if stage.before is None else _in_waves(
            stage, store, missing, making, lambda: save("running")
        )  # fmt: skip
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
                    kept = {key: result[key] for key in Written.model_fields if key in result}
                    shards[name] = Written(**kept, made_from=missing[name])
                    if stage.taker is not None:
                        stage.taker.taken(store, name)
                    rows = again.get(name, result["rows"])
                    bar.advance(rows, name, min(rows, result["fresh"]))
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
            f"{stage.table}: {len(failed)} of {len(wanted)} shards failed{stopped}, first {first}: "
            f"{last_line}\nFull error texts: {store.path(RECORDS, stage.table + '.json')}. "
            "Finished shards are kept; run the same command again to make the rest."
        )
    save("done")
    parts.sweep(store, stage.table)
    _taken(stage, store, progress, checks)
    if stage.after is not None:
        stage.after(store, list(wanted))


WAVE = 32
"""Shards of a stage that does something before and after: that much room is needed beside all."""


def _in_waves(
    stage: Map,
    store: Store,
    missing: Mapping[str, str],
    making: Callable[[Mapping[str, str]], Iterator[dict[str, Any]]],
    save: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """The results of a stage that does something before and after a few shards are made."""
    names = list(missing)
    for start in range(0, len(names), WAVE):
        wave = {name: missing[name] for name in names[start : start + WAVE]}
        if stage.before is not None:
            stage.before(store, list(wave))
        yield from making(wave)
        save()
        if stage.after is not None:
            stage.after(store, list(wave))


def _set_aside(stage: Map, store: Store, record: Record, whole: Mapping[str, Written]) -> None:
    """Move shards that are made anew, or no longer wanted, to where their rows may be taken from.

    A damaged one stays, and is overwritten.
    """
    there = store.shards(stage.table)
    others = {
        name: one for name, one in record.shards.items() if name in there and name not in whole
    }
    for name, one in intact(store, stage.table, others)[0].items():
        if one.moved and not freed.lost(store, [name]):
            freed.restore(store, name)
            one = store.written(stage.table, name) or one
        held.move(store, stage.table, name, one)


def _taken(stage: Map, store: Store, progress: Progress, checks: Checks) -> None:
    """Remove what is left of shards that were set aside, if nothing of it is lost by that."""
    if stage.takes is None or not held.shards(store, stage.table):
        return
    taker = stage.taker or stage.takes(store, [], progress)
    if taker is not None:
        taker.end(store, progress, checks.replace)


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
    beside, lost = intact_files(store, record.beside, checks.rehash)
    _put_back(store, record, lost, progress)
    lost = {path: why for path, why in lost.items() if record.beside[path].text is None}
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
        settings=json.loads(json.dumps(stage.settings)),
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
    before = replace(stage, settings=record.settings)
    settings = json.loads(json.dumps(stage.settings))
    if fingerprint(before, record.inputs) != record.fingerprint:
        return None  # another version, or other columns
    if settings == record.settings:
        return record.made_as
    extends = not isinstance(stage, Files) and stage.extends(record.settings, settings)
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
                _run_map(stage, store, begun, compute, progress, checks)
            elif isinstance(stage, Build):
                _run_build(stage, store, begun, progress, checks)
            else:
                _run_files(stage, store, begun, progress, checks)
        made.add(stage.table)
