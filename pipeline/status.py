"""A run in; the state of its stages, and what is wrong with its files, out. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline import AigiError, parts
from pipeline.alive import Seen
from pipeline.intact import intact, intact_files, wrong_pixels
from pipeline.loaded import Weights
from pipeline.logbook import last_word
from pipeline.progress import Progress, duration
from pipeline.record import Record, Written
from pipeline.store import RECORDS, RUN_WORKFLOW, Store


@dataclass(frozen=True)
class Status:
    """The state of one stage of a run.

    Attributes:
        state: running, stopped (its process reported that it ended), gone (it runs no more, and
            could not report that), failed or done.
        note: what is to be known of its process, in a sentence; or nothing.
        kept_rows, kept_bytes: finished batches of unfinished shards.
    """

    table: str
    state: str
    done: int
    failed: int
    missing: int
    rows: int
    bytes: int
    seconds: float
    note: str = ""
    kept_rows: int = 0
    kept_bytes: int = 0


def state_of(record: Record, seen: Sequence[Seen] = ()) -> tuple[str, str]:
    """The state of a stage, and what is to be known of the process that runs it.

    Args:
        seen: signs of life of the run.
    """
    driver = record.driver
    if record.status != "running" or driver is None:
        return record.status, ""
    gone = driver.gone()
    if gone:
        note = f"its process {driver.pid} has gone without a word. Run the same command again."
        return "gone", note
    there = f"process {driver.pid} on {driver.host}"
    mine = [one for one in seen if one.sign.role == "driver" and one.sign.process == driver]
    if mine:
        return "running", f"{there}: {mine[0]}" * mine[0].silent
    return "running", f"{there}; from here nobody can see whether it still runs" * (gone is None)


def records(store: Store) -> list[Record]:
    """The records of a run, in the order in which its stages start; none before the first.

    Raises:
        AigiError: the folder contains no run.
        Damaged: a record is not one.
    """
    try:
        files = store.fs.find(store.path(RECORDS))
    except FileNotFoundError:
        files = []
    names = [file.rsplit("/", 1)[-1] for file in files]
    found = [
        record
        for name in names
        if name.endswith(".json") and not name.startswith(".")
        if (record := store.record(name.removesuffix(".json"))) is not None
    ]
    if not found and store.read_json(RUN_WORKFLOW) is None:
        raise AigiError(f"{store.url}: no run here (no {RECORDS} folder)")
    by_name = {record.table: record for record in found}

    def depth(record: Record, above: frozenset[str] = frozenset()) -> int:
        below = (record.inputs.keys() & by_name.keys()) - above
        return 1 + max((depth(by_name[name], above | {record.table}) for name in below), default=0)

    return sorted(found, key=lambda record: (depth(record), record.table))


def status(store: Store, seen: Sequence[Seen] = ()) -> list[Status]:
    """State of every stage of a run, in the order in which they were started.

    Empty for a run whose workflow is recorded but whose stages have not started.

    Args:
        seen: signs of life of the run.

    Raises:
        AigiError: as `records`.
    """
    found = []
    for record in records(store):
        sizes = store.shards(record.table)
        rows: dict[str, int | None] = {}
        unsure = []
        for name, size in sizes.items():
            known = record.shards.get(name)
            if known is None or (not known.stamp and known.bytes in (None, size)):
                unsure.append(name)  # of a stage that runs, or of a record of an earlier version
            else:
                rows[name] = known.rows if known.bytes == size else None
        rows |= store.rows_of(record.table, unsure)
        whole = {name: count for name, count in rows.items() if count is not None}
        now = {path: store.size(path) for path in record.files}
        there = [size for path, size in now.items() if size and size == record.files[path].bytes]
        done = len(whole) + len(there)
        state, note = state_of(record, seen)
        kept = parts.found(store, record.table) if state != "done" else {}
        expected = done if record.expected is None else record.expected
        found.append(
            Status(
                table=record.table,
                state=state,
                done=done,
                failed=len(record.failed),
                missing=max(0, expected - done),
                rows=sum(whole.values()),
                bytes=sum(sizes[name] for name in whole) + sum(there),
                seconds=record.seconds,
                note=note,
                kept_rows=sum(parts.rows_kept(mine) for mine in kept.values()),
                kept_bytes=sum(part.bytes for mine in kept.values() for part in mine),
            )
        )
    return found


# --- does it still run? --------------------------------------------------------------------------

GONE = 4
"""Exit code of a watch whose run ended without a word, or gives no sign of life any more."""
GIVEN_UP = 15 * 60.0
"""Seconds of silence after which a process that cannot be asked is given up."""
_STARTING = 60.0


def verdict(
    store: Store, found: Sequence[Status], seen: Sequence[Seen], watched: float
) -> tuple[int, str] | None:
    """How a run ended: the exit code of its command, or `GONE`, and a sentence; None: it runs.

    Args:
        watched: seconds since it was first looked at.

    Raises:
        AigiError: the last word of its command is damaged.
    """
    drivers = [one for one in seen if one.sign.role == "driver"]
    if any(not one.gone and (one.age or 0.0) < GIVEN_UP for one in drivers):
        return None
    again = "Run the same command again."
    for one in drivers:
        who = f"process {one.sign.process.pid} on {one.sign.process.host}"
        if one.gone:
            return GONE, f"gone: {who} has ended without a word. {again}"
        ago = duration(one.age or 0.0)
        return GONE, f"silent for {ago}: {who} has died, or cannot reach the run. {again}"
    states = {one.state: one for one in found}
    if "gone" in states:
        return GONE, f"gone: {states['gone'].table}: {states['gone'].note}"
    if "running" in states:
        mine = store.record(states["running"].table)
        unknown = mine is None or mine.driver is None or mine.driver.gone() is None
        # At its beginning and its end, a command is without a sign for a moment.
        if not unknown or watched < _STARTING:
            return None
        return GONE, f"{states['running'].table}: nothing gives a sign of life. {again}"
    last = last_word(store)
    if last is not None:
        return last.code, f"ended with exit code {last.code}" + f": {last.said}" * bool(last.said)
    wrong = [one for one in found if one.state != "done"]
    if wrong:
        return 1, f"ended: {wrong[0].table} {wrong[0].state}"
    return 0, "ended: every stage is done"


# --- what is wrong -------------------------------------------------------------------------------


def damage(store: Store, progress: Progress, deep: bool = False) -> list[str]:
    """A line for every file of a run that is not what its stage wrote; all files are hashed.

    Args:
        deep: decode every image of the images table, and compare its pixels with their hash.

    Raises:
        AigiError: as `records`.
    """
    found = []
    all_records = {record.table: record for record in records(store)}
    total = sum(len(r.shards) + len(r.files) + len(r.beside) for r in all_records.values())
    with progress.stage("files", total, 0, 0) as bar:
        for table, record in all_records.items():
            if record.status != "done":
                found.append(f"{table}: {state_of(record)[0]}; its table is not whole")
            for name, digest in record.inputs.items():
                if name in all_records and all_records[name].fingerprint != digest:
                    found.append(f"{table}: made from another {name} table")
            shards, wrong = intact(store, table, record.shards, rehash=True)
            files, lost = intact_files(store, {**record.files, **record.beside}, rehash=True)
            found += [f"{table}/{name}.parquet: {why}" for name, why in wrong.items()]
            found += [f"{path}: {why}" for path, why in lost.items()]
            found += [
                f"{table}/{name}.parquet: the {table} stage did not write it"
                for name in store.shards(table)
                if name not in record.shards
            ]
            unhashed = [name for name, one in _named(record) if one.sha256 == ""]
            if unhashed:
                found.append(
                    f"{unhashed[0]}: its content was not recorded by the version of aigi that made "
                    f"it ({len(unhashed)} such files of {table}); run the workflow once more"
                )
            try:
                Weights(table, store, shards)
            except AigiError as error:
                found.append(str(error))
            for name, one in {**shards, **files}.items():
                if deep and table == "images" and name in shards:
                    found += [
                        f"images/{name}.parquet: {why}" for why in wrong_pixels(store, table, name)
                    ]
                bar.advance(one.rows)
    return found


def _named(record: Record) -> Iterator[tuple[str, Written]]:
    for name, one in record.shards.items():
        yield f"{record.table}/{name}.parquet", one
    yield from record.files.items()
