"""Top-up rounds of a run: what each requested, the names of its shards, and what pins the plan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import pyarrow as pa
from pydantic import ValidationError

from pipeline import AigiError, gate
from pipeline.gate import Checked, matching
from pipeline.manifest import Cell
from pipeline.plan.hashed import joined
from pipeline.plan.specification import Dataset, Number, Revision, SourceSpec, ZooSpec
from pipeline.store import Store

ROUNDS = "_rounds.json"
REMEDY = "Delete the run's folder plan, and run the workflow again."


_Pin = Annotated[str, matching(r"[a-z0-9][a-z0-9-]*(/\d+)?", "a source, or SOURCE/NUMBER")]


class _Rounds(Checked):
    pins: dict[_Pin, Revision]
    rounds: list[dict[Cell, Number]]


def extra_of(store: Store, rounds: Iterable[Mapping[str, int]] = ()) -> dict[str, Any]:
    """Commits that the first round pinned, and generations that each top-up round adds.

    Args:
        rounds: rounds that the plan begins with (for the plan of a manifest).

    Raises:
        AigiError: they are recorded, but the record is damaged.
    """
    found = store.read_json("plan", ROUNDS, remedy=REMEDY)
    if found is None:
        return {"pins": {}, "rounds": list(rounds)}
    gate.check(_Rounds, found, store.path("plan", ROUNDS), REMEDY)
    return found


def added(store: Store) -> list[dict[str, int]]:
    """Generations that each top-up round added to each `source/split`."""
    return list(extra_of(store)["rounds"])


def pinned(dataset: Dataset, store: Store) -> Dataset:
    """The specification with the commits that the plan's rows were given."""
    pins = extra_of(store)["pins"]
    sources = {name: pinned_source(name, spec, pins) for name, spec in dataset.sources.items()}
    return dataset.model_copy(update={"sources": sources})


def pinned_source(name: str, spec: SourceSpec, pins: Mapping[str, str]) -> SourceSpec:
    """A source with the commits that the plan's rows were given.

    Raises:
        AigiError: two models of a zoo are the same commit.
    """
    if not isinstance(spec, ZooSpec):
        return spec.model_copy(update={"revision": pins[name]}) if name in pins else spec
    keys = {number: f"{name}/{number}" for number in range(len(spec.members))}
    commits = {number: pins[key] for number, key in keys.items() if key in pins}
    try:
        return spec.pinned(commits) if commits else spec
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise AigiError(f"sources.{name}: with the commits of today, {why}") from None


def shards(store: Store) -> Iterator[pa.Table]:
    """The plan shard by shard, with its name in a column `shard`: what a release contains."""
    for name in store.shards("plan"):
        table = store.read("plan", name)
        yield table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))


def summary_of(shards: Iterable[tuple[str, pa.ChunkedArray]]) -> dict[str, Any]:
    """Shards, rows, and a sha256 over the names of shards and the images that they plan."""
    digest, count, rows = hashlib.sha256(), 0, 0
    for name, ids in shards:
        digest.update(f"{name}:{joined(ids)}\n".encode())
        count, rows = count + 1, rows + len(ids)
    return {"shards": count, "rows": rows, "sha256": digest.hexdigest()}


def summary(store: Store) -> dict[str, Any]:
    """The same of the plan of a run."""
    return summary_of(
        (name, store.read("plan", name, ["image_id"])["image_id"]) for name in store.shards("plan")
    )


def top_up(store: Store, short: Mapping[str, int]) -> None:
    """Request one more round: generations to add to each `source/split`.

    The plan is a function of its settings and these numbers; its next build adds the shards.
    """
    extra = extra_of(store)
    extra["rounds"].append(dict(short))
    store.rewrite("plan", extra, "plan", ROUNDS)


def rounds_made(store: Store) -> int:
    """Top-up rounds that the plan has had."""
    return len(extra_of(store)["rounds"])


def exhausted(store: Store, name: str) -> bool:
    """Whether the last round got less of `source/split` than it requested: an import's end."""
    asked = [(i, more[name]) for i, more in enumerate(extra_of(store)["rounds"], 1) if name in more]
    if not asked:
        return False
    number, count = asked[-1]
    source, split = name.split("/")
    prefix = shard_name(source, split, number, 0).removesuffix("00000")
    found = sum(
        store.rows("plan", shard) or 0 for shard in store.shards("plan") if shard.startswith(prefix)
    )
    return bool(found < count)


def shard_name(source: str, split: str, number: int, shard: int, model: int | None = None) -> str:
    """Name of a plan shard; those of a top-up round sort after those of the rounds before.

    Args:
        model: number of the model of a zoo, whose shards have one model each.
    """
    of = "" if model is None else f"m{model:04d}-"
    return f"{source}-{split}-" + (f"round{number}-" if number else "") + f"{of}{shard:05d}"


_SHARD = re.compile(r"(.+)-(train|validation|test)-(round\d+-)?(m\d{4,}-)?\d{5,}")


def source_of_shard(name: str) -> str:
    """The source of a plan shard.

    Raises:
        AigiError: no shard has such a name.
    """
    found = _SHARD.fullmatch(name)
    if found is None:
        raise AigiError(f"{name}: not the name of a shard of a plan. {REMEDY}")
    return found[1]


_OF_A_ZOO = re.compile(r"(.+)-(train|validation|test)-((?:round\d+-)?)m(\d{4,})-(\d{5,})")


def by_model(names: Iterable[str]) -> list[str]:
    """Names of shards in an order in which those of one model of a zoo are together."""

    def key(name: str) -> tuple[str, int, str]:
        found = _OF_A_ZOO.fullmatch(name)
        return (name, -1, "") if found is None else (found[1], int(found[4]), name)

    return sorted(names, key=key)
