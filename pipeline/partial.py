"""A run in which some sources are complete in, a release of these alone out (`publish --partial`).

The run may be at work all the while, and nothing of it changes: its finished shards are linked into
a run of their own below it. There the stages behind the images are made for these sources alone:
scores that the run does not have yet, selection, release.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline import AigiError, settings
from pipeline.build import stages
from pipeline.outside import reached
from pipeline.plan import specification
from pipeline.plan.quotas import chosen
from pipeline.plan.rounds import ROUNDS, extra_of, source_of_shard
from pipeline.progress import Progress
from pipeline.record import Record, Written
from pipeline.release.recipe import Recipe, Release
from pipeline.release.release import manifest_stage
from pipeline.running import alone, run_stages
from pipeline.selection.tally import lacks
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.workflow import Workflow

PLACE = "_partial"
"""Folder in a run: the run of its complete sources."""
_WHOLE = ("prompts",)
_BY_SHARD = ("plan", "images", "embeddings", "quality")
"""Tables whose shards are named as those of the plan."""


@dataclass(frozen=True)
class Partial:
    """A release of the complete sources of a run.

    Attributes:
        folder: the run that has it.
        sources: in the order of the specification.
        missing: what the others lack, by source.
    """

    folder: str
    sources: tuple[str, ...]
    missing: Mapping[str, str]


def _workflow(store: Store) -> Workflow:
    """The workflow that makes a run.

    Raises:
        AigiError: this is no run, it is not on this machine, or has no release to come.
    """
    if not store.local:
        raise AigiError(f"{store.url}: --partial needs a run on a disk of this machine")
    found = store.read_json(RUN_WORKFLOW)
    if found is None:
        raise AigiError(
            f"{store.url}: no {RUN_WORKFLOW}: not a run. --partial needs the run, not its release."
        )
    where = store.path(RUN_WORKFLOW)
    known = {name: each for name, each in found.items() if name in Recipe.model_fields}
    workflow = settings.check(Workflow, known, where)
    for section in ("plan", "images", "release"):
        if getattr(workflow, section) is None:
            raise AigiError(
                f"{store.url}: the workflow of this run has no `{section}` section, so it will "
                "have no release of which a part could be published. Add it, and run it again."
            )
    return workflow


def _shards(store: Store) -> dict[str, list[str]]:
    """Planned shards by source."""
    record = store.record("plan")
    if record is None or record.status != "done":
        raise AigiError(f"{store.url}: its plan is not made yet, so no source is complete")
    found: dict[str, list[str]] = defaultdict(list)
    for name in record.shards:
        found[source_of_shard(name)].append(name)
    return dict(found)


def _unmade(
    store: Store, shards: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, str]:
    """What the images of each source lack; a source that lacks nothing is not in it."""
    there = store.shards("images")
    record = store.record("images")
    failed = {} if record is None else record.failed
    found = {}
    for name in names:
        mine = shards.get(name, ())
        made = sum(shard in there for shard in mine)
        if not mine:
            found[name] = "no image of it is planned"
        elif made < len(mine):
            broken = sum(shard in failed for shard in mine)
            found[name] = f"images: {made:,} of {len(mine):,} shards are made" + (
                f", {broken:,} failed" if broken else ""
            )
    return found


# --- a run of some sources -----------------------------------------------------------------------


def _linked(store: Store, here: Store, table: str, name: str) -> None:
    """Let a shard be in both runs; a copy, where the disk has no links."""
    source, place = (one.path(table, f"{name}.parquet") for one in (store, here))
    if os.path.exists(place) and os.path.samefile(source, place):
        return
    with reached(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        to = f"{place}.link"
        if os.path.exists(to):
            os.remove(to)
        try:
            os.link(source, to)
        except OSError:
            shutil.copy2(source, to)
        os.replace(to, place)


def _take(store: Store, here: Store, table: str, names: Sequence[str]) -> None:
    """Take shards of a table, with a record of them alone.

    Where the run does not have all of them yet, the table is left as it is: it is made here.
    """
    record, there = store.record(table), store.shards(table)
    if record is None or not names or any(name not in there for name in names):
        return
    known: dict[str, Written] = {}
    for name in names:
        _linked(store, here, table, name)
        written = record.shards.get(name)
        if written is None:  # its writer was killed, or has not recorded it yet
            written = store.look(table, f"{name}.parquet")
            assert written is not None
            made_from = store.made_from(table, name)
            written = written.model_copy(update={"made_from": made_from})
        known[name] = written
    for name in set(here.shards(table)) - set(names):
        here.remove(table, f"{name}.parquet")
    taken = record.model_dump(include={"table", "version", "settings", "inputs", "fingerprint"})
    here.write_record(Record(**taken, status="done", expected=len(known), shards=known))


def _take_rounds(store: Store, here: Store, names: Sequence[str]) -> None:
    found = extra_of(store)
    pins = {key: each for key, each in found["pins"].items() if key.split("/")[0] in names}
    rounds = [
        {cell: many for cell, many in more.items() if cell.split("/")[0] in names}
        for more in found["rounds"]
    ]
    here.write_json({"pins": pins, "rounds": rounds}, "plan", ROUNDS)


def _take_released(store: Store, here: Store, names: Sequence[str]) -> None:
    """Files of the release that the run has: those of the same rows need not be made again."""
    record = store.record("release")
    there = store.shards("release")
    if record is None:
        return
    mine = {
        name: one
        for name, one in record.shards.items()
        if name.split("/")[0] in names and name in there
    }
    for name in mine:
        _linked(store, here, "release", name)
    here.write_record(record.model_copy(update={"shards": mine, "status": "stopped", "failed": {}}))


def _made(
    store: Store, workflow: Workflow, names: Sequence[str], shards: Mapping[str, Sequence[str]],
    progress: Progress,
) -> tuple[Store, dict[str, str]]:  # fmt: skip
    """Make the release of some sources; what they lack of their quotas, by source."""
    here = Store(store.path(PLACE))
    for table in _WHOLE:
        _take(store, here, table, list(store.shards(table)))
    for table in _BY_SHARD:
        _take(store, here, table, sorted(name for source in names for name in shards[source]))
    for table in ("prompts", "plan"):
        if table in store.shards("rejects"):
            _linked(store, here, "rejects", table)
    _take_rounds(store, here, names)
    _take_released(store, here, names)
    own = {
        "run": here.url,
        "compute": workflow.compute.model_copy(update={"ray": None}),
        "plan": workflow.planned("release").model_copy(update={"sources": tuple(names)}),
        "release": (workflow.release or Release()).model_copy(update={"record": None}),
    }
    workflow = workflow.model_copy(update=own)
    # Captions are not read again: they may be gone, and the plan is made.
    found = stages(workflow.model_copy(update={"prompts": None}))
    behind = [one for one in found if one.table not in ("plan", "images", "manifest")]
    cut = [one.table for one in behind].index("selection") + 1
    run_stages(behind[:cut], here, workflow.compute, progress)
    lacking: dict[str, str] = {}
    for lack in lacks(workflow.planned("selection"), here):
        lacking.setdefault(lack.source, f"selection: {lack}")
    if not lacking:
        last = manifest_stage(workflow, workflow.release or Release())
        run_stages([*behind[cut:], last], here, workflow.compute, progress)
    return here, lacking


@contextmanager
def complete(
    run: str,
    asked: Sequence[str] | None,
    progress: Progress,
    say: Callable[[str], None],
    keep: bool = False,
) -> Iterator[Partial]:
    """The release of the complete sources of a run, for as long as a block lasts.

    A source is complete when all its planned shards are made and, selected without the others, its
    quotas are met. What was made for that stays if the block fails, and is removed if it ends.

    Args:
        asked: these sources; None: all that are complete.
        keep: what was made for that stays in any case.

    Raises:
        AigiError: none is complete, or one that is asked for is not: each with what it lacks; or
            all are, so that nothing is partial.
    """
    store = Store(run)
    workflow = _workflow(store)
    plan = workflow.planned("release")
    every = chosen(specification.load(plan.dataset), plan)
    for name in asked or ():
        if name not in every:
            raise AigiError(f"--source {name}: {run} makes {', '.join(every)}")
    shards = _shards(store)
    missing = _unmade(store, shards, every)
    with alone(store.path(PLACE)):
        while True:
            names = [n for n in every if n not in missing and (asked is None or n in asked)]
            lines = "; ".join(f"{name}: {why}" for name, why in missing.items())
            if not names or any(name in missing for name in asked or ()):
                raise AigiError(
                    f"{run}: {'no source is' if not names else 'not all of these are'} complete: "
                    f"{lines}. The same aigi run goes on."
                )
            say(f"{run}: makes the release of {', '.join(names)} alone")
            here, lacking = _made(store, workflow, names, shards, progress)
            if not lacking:
                break
            missing |= lacking
        if len(names) == len(every):
            raise AigiError(
                f"{run}: every source is complete, so no release of it is partial. Let aigi run "
                "finish it, and publish it without --partial."
            )
        for name, why in missing.items():
            say(f"not yet complete: {name}: {why}")
        yield Partial(here.url, tuple(names), missing)
    if not keep:
        store.remove(PLACE)
