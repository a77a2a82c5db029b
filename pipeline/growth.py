"""A changed workflow and a run in; the run with a plan that keeps its images, or its losses, out.

Prompts and plan of the changed workflow are made beside the run, in `RUN/_next`, and compared with
the images that the run has. Only then do they take the place of the old ones, in steps that the
next run ends if this one is killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError, gate, held
from pipeline.images.images import shards_of
from pipeline.intact import Checks
from pipeline.plan import specification
from pipeline.plan.plan import PATHS_BEFORE, SPLITS_BEFORE, changed_lists, keep_before
from pipeline.plan.quotas import quotas
from pipeline.plan.rounds import ROUNDS, extra_of
from pipeline.progress import Progress
from pipeline.prompts.choice import SPREAD
from pipeline.prompts.prompts import CHOSEN, chosen_before
from pipeline.running import put_back, run_stages
from pipeline.stage import Build, Map, Stage, differences, only_settings
from pipeline.store import RECORDS, Store
from pipeline.workflow import Workflow

NEXT = "_next"
READY = "ready.json"
TABLES = ("prompts", "plan")


class _Ready(gate.Checked):
    """What of the tables beside a run takes the place of the run's."""

    tables: list[Literal["prompts", "plan"]]


@dataclass
class Loss:
    """Images of a run that a changed workflow cannot keep.

    Attributes:
        counts: by source and split.
        work: their share of all that the run has made, 0 to 1.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    work: float = 0.0


class _Told(Progress):
    """What is said of a plan that is made beside a run, as if it were made in it."""

    def __init__(self, progress: Progress, beside: Store, store: Store) -> None:
        super().__init__(quiet=True)
        self.progress, self.beside, self.store = progress, beside.path(), store.path()

    def say(self, text: str) -> None:
        self.progress.say(text.replace(self.beside, self.store))


def _changes(stage: Stage, store: Store) -> list[str] | None:
    """What differs from the settings that a table was made with; None: it is not made, or the same.

    A try that made nothing is no table.
    """
    record = store.record(stage.table)
    if record is None or record.empty:
        return None
    found = differences(record.settings, stage.settings)
    if not found and not only_settings(stage, record):
        return ["its columns, or the version of the stage"]
    return found or None


def grow(
    workflow: Workflow,
    store: Store,
    building: Sequence[Stage],
    progress: Progress,
    checks: Checks,
) -> None:
    """Take the prompts and the plan of a changed workflow into a run.

    Args:
        building: the stages of the workflow, in order.

    Raises:
        AigiError: the run would lose images, and may not; or prompts and plan cannot be made.
    """
    finish(store)
    stages = {stage.table: stage for stage in building}
    for table in TABLES:
        if table in stages and (record := store.record(table)) is not None:
            put_back(store, record, checks, progress)
    told = {name: _changes(stages[name], store) for name in TABLES if name in stages}
    plan = store.record("plan")
    if "plan" in stages and plan is not None and not plan.empty:
        files = changed_lists(store, workflow.sources)
        told["plan"] = [*(told["plan"] or ()), *files] or None
    images, lost_sources = stages.get("images"), set[str]()
    if isinstance(images, Map):
        lost_sources, why = _other_images(images, store)
        told["images"] = why
    if not any(told.values()):
        return
    changed = [stage for name in TABLES if (stage := stages.get(name)) is not None]
    beside = Store(f"{store.url.rstrip('/')}/{NEXT}")
    beside.remove()
    try:
        if told.get("prompts") or told.get("plan"):
            _prepare(workflow, store, beside, stages)
            run_stages(changed, beside, workflow.compute, _Told(progress, beside, store))
        new = beside if told.get("prompts") or told.get("plan") else store
        loss, kept, missing = _compared(store, new, lost_sources)
        if loss.counts and not checks.replace:
            raise AigiError(_lost(store, loss, kept, told))
        lines = [line for found in told.values() for line in found or ()]
        what = "; ".join(lines[:5]) + "; …" * (len(lines) > 5)
        gone = loss.counts.total()
        progress.say(
            f"the workflow has changed: {what}. {kept:,} images are kept, {gone:,} are not, "
            f"{missing:,} are missing"
        )
        if new is beside:
            made = {name: beside.record(name) for name in told if name in TABLES}
            beside.write_json({"tables": [name for name in made if made[name]]}, READY)
            finish(store)
    except AigiError as error:
        # What was refused is worth reading, whatever came of the others.
        for name in beside.shards("rejects"):
            with beside.fs.open(beside.path("rejects", f"{name}.parquet"), "rb") as file:
                store.copy(file, "rejects", f"{name}.parquet")
        raise type(error)(str(error).replace(beside.path(), store.path())) from None
    finally:
        if beside.read_json(READY) is None:
            beside.remove()


def _other_images(stage: Map, store: Store) -> tuple[set[str], list[str] | None]:
    """Sources whose images would be others with the settings of now, and which settings differ."""
    record = store.record("images")
    if record is None or record.empty:
        return set(), None
    settings = stage.settings
    if record.settings == settings or stage.extends(record.settings, settings):
        return set(), None
    names = list(store.shards("images"))
    gone = set(stage.replaces(record.settings, settings, names))
    sources = {*record.settings.get("sources", ()), *settings["sources"]}
    found = {name for name in sources if gone & set(shards_of(name, names))}
    return found, differences(record.settings, settings)


def _prepare(
    workflow: Workflow,
    store: Store,
    beside: Store,
    stages: Mapping[str, Stage],
) -> None:
    """Put beside the run what its next prompts and plan are made from."""
    prompts = stages.get("prompts")
    for table in ("texts", *(["prompts"] if prompts is None else [])):
        if (record := store.record(table)) is not None:
            for name in store.shards(table):
                with store.fs.open(store.path(table, f"{name}.parquet"), "rb") as file:
                    beside.copy(file, table, f"{name}.parquet")
            beside.write_record(record)
    before = store.record("prompts")
    if isinstance(prompts, Build) and before is not None:
        chosen = chosen_before(store, before.settings, prompts.settings)
        if chosen is not None:
            beside.write_arrow([chosen], chosen.schema, "prompts", CHOSEN)
    plan = store.record("plan")
    if plan is None or plan.empty or "plan" not in stages:
        return
    keep_before(store, beside)
    if workflow.planned("plan").manifest is not None:
        return
    extra = extra_of(store)
    now = stages["plan"].settings.get("dataset", {})
    then = plan.settings.get("dataset", {})
    # A source of another model or revision is not pinned to the commit of the one before.
    same = {
        name for name in now
        if all(now[name].get(key) == then.get(name, {}).get(key)
               for key in ("model", "revision", "models"))
    }  # fmt: skip
    pins = {key: sha for key, sha in extra["pins"].items() if key.partition("/")[0] in same}
    rounds = _still_planned(workflow, store)
    beside.write_json({"pins": pins, "rounds": [rounds] if rounds else []}, "plan", ROUNDS)


def _still_planned(workflow: Workflow, store: Store) -> dict[str, int]:
    """By source and split, how many generations are made beyond the first ones of the new plan.

    They stay planned: as what a top-up round added.
    """
    planned = workflow.planned("plan")
    most: dict[str, int] = {}
    for shard in _both_tables(store):
        columns = ["source", "split", "rank"]
        rows = store.aligned(shard, {"plan": columns, "images": ["error"]})
        made = rows["plan"].filter(pc.is_null(rows["images"]["error"]))
        if made.num_rows:
            key = "/".join(_cell(made))
            most[key] = max(most.get(key, 0), pc.max(made["rank"]).as_py() + 1)
    found = {}
    for quota in quotas(specification.load(planned.dataset), planned):
        key = f"{quota.source}/{quota.split}"
        if quota.spec.count is not None and (more := most.get(key, 0) - quota.planned) > 0:
            found[key] = more
    return found


def _both_tables(store: Store) -> list[str]:
    """Shards of images whose rows are those of the plan as it is."""
    record = store.record("images")
    if record is None:
        return []
    planned = store.shards("plan")
    return [name for name in store.shards("images") if name in planned and name in record.shards]


def _cell(rows: pa.Table) -> tuple[str, str]:
    """Source and split of rows of one shard of the plan."""
    return rows["source"][0].as_py(), rows["split"][0].as_py()


def _compared(store: Store, new: Store, lost_sources: set[str]) -> tuple[Loss, int, int]:
    """What the run would lose, how many of its images it keeps, and how many would be missing."""
    if not new.shards("plan"):
        return Loss(), 0, 0
    wanted = new.read_all("plan", ["image_id"])["image_id"]
    loss, kept, made, lost = Loss(), 0, 0.0, 0.0
    for shard in _both_tables(store):
        columns = ["source", "split", "width", "height", "steps", "path"]
        rows = store.aligned(shard, {"plan": columns, "images": ["error"]})
        plan = rows["plan"].filter(pc.is_null(rows["images"]["error"]))
        work = pc.multiply(
            pc.multiply(pc.cast(pc.fill_null(plan["width"], 1), pa.float64()),
                        pc.fill_null(plan["height"], 1)),
            pc.if_else(pc.is_valid(plan["path"]), 1, pc.fill_null(plan["steps"], 1)),
        )  # fmt: skip
        if not plan.num_rows:
            continue
        gone = pc.invert(pc.is_in(plan["image_id"], value_set=wanted))
        cell = _cell(plan)
        if cell[0] in lost_sources:
            gone = pa.chunked_array([pa.array([True] * plan.num_rows, pa.bool_())])
        count = pc.sum(gone).as_py() or 0
        made += pc.sum(work).as_py() or 0.0
        lost += pc.sum(work.filter(gone)).as_py() or 0.0
        kept += plan.num_rows - count
        if count:
            loss.counts[cell] += count
    for shard in held.shards(store, "images"):  # a growth before this one has not ended
        ids = store.read(held.folder("images"), shard, ["image_id"])["image_id"]
        kept += pc.sum(pc.is_in(ids, value_set=wanted)).as_py() or 0
    loss.work = lost / made if made else 0.0
    return loss, kept, max(0, len(wanted) - kept)


def _lost(store: Store, loss: Loss, kept: int, told: Mapping[str, list[str] | None]) -> str:
    """The refusal, with what would be lost and what it cost."""
    record = store.record("images")
    hours = 0.0 if record is None else record.seconds * loss.work / 3600
    changes = [f"  {line}" for lines in told.values() for line in lines or ()]
    cost = f"{hours:,.1f} hours" if hours >= 0.1 else f"{hours * 3600:,.0f} seconds"
    counts = [f"  {' '.join(cell)}: {count:,}" for cell, count in sorted(loss.counts.items())]
    return "\n".join(
        [
            f"{store.url}: the changed workflow cannot keep {loss.counts.total():,} of the run's "
            f"images, which took {cost} to make:",
            *counts,
            f"{kept:,} would be kept. What has changed:",
            *changes,
            "Nothing is changed yet. Go back to the old settings, use a new run directory (--set "
            "run=...), or give --replace to remove these images.",
        ]
    )


def finish(store: Store) -> None:
    """Put what is ready beside a run in its place; killed in between, the next call ends it.

    Files beside it that are not ready are removed.
    """
    beside = Store(f"{store.url.rstrip('/')}/{NEXT}")
    remedy = f"Delete {beside.path()}, and run the workflow again."
    found = beside.read_json(READY, remedy=remedy)
    if found is None:
        if beside.fs.exists(beside.path()):
            beside.remove()
        return
    for table in gate.check(_Ready, found, beside.path(READY), remedy).tables:
        _swap(beside, store, table, remedy)
    beside.remove()


def _swap(beside: Store, store: Store, table: str, remedy: str) -> None:
    """Give a run the table that is beside it, its files and at the end its record.

    Raises:
        AigiError: the record beside it is gone: all of it was there before it was ready.
    """
    record = beside.record(table)
    if record is None:
        path = beside.path(RECORDS, f"{table}.json")
        raise AigiError(f"{path}: missing, and {beside.path(READY)} names the table. {remedy}")
    paths = [f"{table}/{name}.parquet" for name in record.shards]
    paths += [path for path in record.beside if path not in paths]
    notes = (CHOSEN, SPREAD, SPLITS_BEFORE, PATHS_BEFORE)
    paths += [f"{table}/{name}" for name in notes if beside.size(table, name)]
    for path in dict.fromkeys(paths):
        if beside.size(path) is None:
            continue
        with beside.fs.open(beside.path(path), "rb") as file:
            store.copy(file, path)
    for name in set(store.shards(table)) - set(record.shards):
        store.remove(table, f"{name}.parquet")
    for name in notes:
        if beside.size(table, name) is None:
            store.remove(table, name)
    store.write_record(record)
