"""A map stage and what it made before in; its missing shards made, serially or by Ray, out.

A shard is made again where its content, or that of what it was made from, is not what the record
of its stage says.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipeline import AigiError, freed, held, parts
from pipeline.cluster import shards_with_ray
from pipeline.folder import DiskFull
from pipeline.intact import Checks, intact
from pipeline.loaded import Weights
from pipeline.progress import Bar, Progress
from pipeline.record import Driver, Record, Written
from pipeline.retry import failed_shards
from pipeline.stage import Compute, Map, Told, made_from, make_shard
from pipeline.store import RECORDS, Store

FAILURES_IN_A_ROW = 8
"""A model that cannot load fails every shard; there is no use in trying thousands."""
WAVE = 32
"""Shards of a stage that does something before and after: that much room is needed beside all."""
_SAVED_EVERY = 5.0  # seconds between two records of a stage under way


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


@dataclass
class _Making:
    """Shards of a stage that are being made, and the record of it.

    Attributes:
        wanted: how many shards it will have.
        shards: those that are made.
        failed: error texts of those that could not be made.
    """

    store: Store
    record: Record
    wanted: int
    shards: dict[str, Written]
    failed: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def save(self, status: str) -> None:
        """Write the record as of now."""
        now = {
            "status": status,
            "shards": self.shards,
            "failed": self.failed,
            "expected": self.wanted,
            "seconds": round(self.record.seconds + time.perf_counter() - self.started, 3),
            "driver": Driver.here() if status == "running" else None,
        }
        self.store.write_record(self.record.model_copy(update=now))

    def refuse_failed(self, stopped: bool) -> None:
        """Raises AigiError: shards have failed."""
        if not self.failed:
            return
        self.save("failed")
        table, first = self.record.table, min(self.failed)
        last_line = self.failed[first].strip().splitlines()[-1]
        early = f" (stopped after {FAILURES_IN_A_ROW} in a row)" * stopped
        raise AigiError(
            f"{table}: {len(self.failed)} of {self.wanted} shards failed{early}, first {first}: "
            f"{last_line}\nFull error texts: {self.store.path(RECORDS, table + '.json')}. "
            "Finished shards are kept; run the same command again to make the rest."
        )


def _make(
    stage: Map,
    missing: Mapping[str, str],
    again: Mapping[str, int],
    made: _Making,
    compute: Compute,
    bar: Bar,
) -> bool:
    """Make shards, and note each as soon as it is there.

    Args:
        missing: their names, and digests of what they are made from.
        again: failed rows of those of which these alone are made.

    Returns: whether so many failed in a row that the others were not tried.
    """
    store = made.store
    one = _serially if compute.ray is None else partial(shards_with_ray, compute=compute)
    making = partial(one, stage, store, told=bar.under_way)
    results = making(missing)
    if stage.before is not None:
        results = _in_waves(stage, store, missing, making, lambda: made.save("running"))
    weights = Weights(stage.table, store, list(made.shards), stage.inputs)
    saved = time.monotonic()
    unanswered = set(missing)
    in_a_row = 0
    for result in results:
        name = result["name"]
        unanswered.discard(name)
        if result["fatal"]:
            raise DiskFull(f"{stage.table}: {result['fatal']}")
        if result["error"]:
            made.failed[name] = result["error"]
            in_a_row += 1
            bar.fail(name, result["error"])
        else:
            weights.add(name, result["weights"])
            in_a_row = 0
            kept = {key: result[key] for key in Written.model_fields if key in result}
            made.shards[name] = Written(**kept, made_from=missing[name])
            if stage.taker is not None:
                stage.taker.taken(store, name)
            rows = again.get(name, result["rows"])
            bar.advance(rows, name, min(rows, result["fresh"]))
        if in_a_row >= FAILURES_IN_A_ROW:
            return True
        if time.monotonic() - saved > _SAVED_EVERY:
            made.save("running")
            saved = time.monotonic()
    for name in unanswered:
        made.failed[name] = "its worker died each time (out of memory, or killed?)"
    return False


def run_map(
    stage: Map,
    store: Store,
    record: Record,
    compute: Compute,
    progress: Progress,
    checks: Checks,
) -> None:
    """Make the shards of a stage that are not there, or not made from what is there now.

    Args:
        record: what it begins with.

    Raises:
        AigiError: shards failed; the others are kept.
        DiskFull: no space; everything finished is kept.
    """
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
        _end(stage, store, wanted, progress, checks)
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
    made = _Making(store, record, len(wanted), dict(whole))
    made.save("running")
    # Of a shard whose failed rows are made again, those alone are work.
    left = {name: again.get(name) or stage.rows_of(store, name) for name in missing}
    done = good + sum(one.rows for one in whole.values())
    of = None if None in left.values() else done + sum(filter(None, left.values()))
    with progress.stage(stage.table, len(wanted), len(whole), done, of) as bar:
        try:
            stopped = _make(stage, missing, again, made, compute, bar)
        except BaseException:
            made.save("stopped")
            raise
    made.refuse_failed(stopped)
    made.save("done")
    _end(stage, store, wanted, progress, checks)


def _end(
    stage: Map, store: Store, wanted: Iterable[str], progress: Progress, checks: Checks
) -> None:
    """All shards are there: what is left of the way to them goes."""
    parts.sweep(store, stage.table)
    _taken(stage, store, progress, checks)
    if stage.after is not None:
        stage.after(store, list(wanted))


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
