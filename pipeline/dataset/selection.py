"""`plan` and `images` in, the `selection` table out: keep, or the one reason against it.

Thresholds live here alone, so that a new one costs seconds. Dropping is giving a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pyarrow as pa

from pipeline import AigiError
from pipeline.dataset import specification
from pipeline.dataset.plan import quotas
from pipeline.dataset.specification import DiffusersSpec
from pipeline.progress import Progress
from pipeline.run import Build
from pipeline.tables import SELECTION, Shard, Store
from pipeline.workflow import Workflow

VERSION = 1


def release_name(source: str, split: str, number: int, total: int) -> str:
    """Name of a release file, as the Hub writes them: `sdxl/test-00000-of-00001`."""
    return f"{source}/{split}-{number:05d}-of-{total:05d}"


def _build(workflow: Workflow, store: Store, progress: Progress) -> list[Shard]:
    assert workflow.plan is not None
    dataset = specification.load(workflow.plan.dataset)
    wanted = {
        (quota.source, quota.split): None if quota.spec.count is None else quota.generations
        for quota in quotas(dataset, workflow.plan)
    }
    kept: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    made = []
    # Shards of a source and split come in the order of their ranks, so the first good ones
    # fill the quota and the rest is surplus.
    for shard in store.shards("plan"):
        plan = store.read("plan", shard, ["image_id", "source", "split", "pair_id"]).to_pylist()
        images = store.read("images", shard, ["image_id", "error"]).to_pylist()
        if [row["image_id"] for row in plan] != [row["image_id"] for row in images]:
            raise AigiError(
                f"{store.path('images', shard)}.parquet does not have the rows of the plan. "
                "Delete it and run again to make it anew."
            )
        groups: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(plan):
            groups[row["pair_id"] or row["image_id"]].append(i)
        reason: list[str | None] = [None] * len(plan)
        for members in groups.values():
            key = (plan[members[0]]["source"], plan[members[0]]["split"])
            why = None
            if any(images[i]["error"] is not None for i in members):
                why = "failed"  # a pair stays a pair
            elif (quota := wanted[key]) is not None and kept[key] >= quota:
                why = "surplus"
            else:
                kept[key] += 1
            for i in members:
                reason[i] = why
        reasons.update(why for why in reason if why is not None)
        if None in reason:
            files[plan[0]["source"], plan[0]["split"]].append(shard)
        table = pa.table(
            [
                pa.array([row["image_id"] for row in plan], pa.string()),
                pa.array([row["source"] for row in plan], pa.string()),
                pa.array([row["split"] for row in plan], pa.string()),
                pa.array([why is None for why in reason], pa.bool_()),
                pa.array(reason, pa.string()),
            ],
            schema=SELECTION,
        )
        made.append(store.write("selection", shard, table, SELECTION))
    for (source, split), quota in wanted.items():
        if quota is not None and kept[source, split] < quota:
            made_here = isinstance(dataset.sources[source], DiffusersSpec)
            progress.say(
                f"selection: {source} {split}: {kept[source, split]:,} of {quota:,} wanted"
                + ("; raise plan.margin to have spare ones" if made_here else "")
            )
    names = {
        release_name(source, split, number, len(shards)): shard
        for (source, split), shards in files.items()
        for number, shard in enumerate(shards)
    }
    store.write_json(names, "selection", "_files.json")
    progress.say(
        f"selection: {sum(kept.values()):,} generations kept"
        + "".join(f", {count:,} {why}" for why, count in sorted(reasons.items()))
    )
    return made


def stage(workflow: Workflow) -> Build:
    """The selection stage of a workflow that has plan and images sections."""
    assert workflow.plan is not None
    dataset = specification.load(workflow.plan.dataset)
    return Build(
        table="selection",
        version=VERSION,
        schema=SELECTION,
        settings={
            "quotas": {
                f"{quota.source} {quota.split}": quota.generations
                for quota in quotas(dataset, workflow.plan)
            }
        },
        inputs=("plan", "images"),
        build=lambda store, progress: _build(workflow, store, progress),
    )
