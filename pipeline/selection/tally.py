"""The selection of a run in; what each source and split has and lacks, and why, out."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import specification
from pipeline.plan.quotas import Plan, quotas, shares
from pipeline.plan.rounds import exhausted
from pipeline.plan.specification import ZooSpec
from pipeline.selection.kept import counts_of
from pipeline.selection.rules import REASONS
from pipeline.store import Store

_MOST_ERRORS = 3


@dataclass
class Tally:
    """Generations of one source and split; the variants of one count once.

    Attributes:
        planned, kept: how many there are.
        reasons: why the others were dropped.
        errors: of rows that failed, the beginning of their texts.
    """

    planned: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Generation(NamedTuple):
    """A generation: its `source/split`, what tells it from the others there, its reason or None."""

    key: str
    unit: Hashable
    reason: str | None


def tally(generations: Iterable[Generation]) -> dict[str, Tally]:
    """Count generations by `source/split`; variants, which share their reason, count once."""
    found: dict[str, Tally] = defaultdict(Tally)
    for key, _, reason in {(one.key, one.unit): one for one in generations}.values():
        mine = found[key]
        mine.planned += 1
        if reason is None:
            mine.kept += 1
        else:
            mine.reasons[reason] += 1
    return dict(found)


class Counting:
    """Generations of columns of numbers, counted as `tally` counts them, part after part.

    Args:
        places: source and split by their number.
        units: how many generations there are.
    """

    def __init__(self, places: Sequence[tuple[str, str]], units: int) -> None:
        self._names = [f"{source}/{split}" for source, split in places]
        self._place = np.full(units, -1, np.int32)
        self._elsewhere: set[tuple[int, int]] = set()
        self._found: dict[str, Tally] = defaultdict(Tally)

    def add(
        self, place: NDArray[np.int32], unit: NDArray[np.int32], why: NDArray[np.uint8]
    ) -> None:
        """Count images, shape (n,), in the order of the plan.

        Args:
            why: 0 for those that are kept, else 1 + the place of the reason in `REASONS`.
        """
        before = self._place[unit]
        self._place[unit[::-1]] = np.where(before < 0, place, before)[::-1]
        fresh = np.zeros(len(unit), np.bool_)
        fresh[np.unique(unit, return_index=True)[1]] = True
        fresh &= before < 0
        # A generation that is in two splits counts in both; no plan that aigi makes has one.
        for row in np.flatnonzero(place != self._place[unit]).tolist():
            key = int(place[row]), int(unit[row])
            fresh[row] = key not in self._elsewhere
            self._elsewhere.add(key)
        both = place[fresh].astype(np.int64) * (len(REASONS) + 1) + why[fresh]
        codes, first, counts = np.unique(both, return_index=True, return_counts=True)
        for at in np.argsort(first).tolist():
            where, code = divmod(int(codes[at]), len(REASONS) + 1)
            mine, count = self._found[self._names[where]], int(counts[at])
            mine.planned += count
            if code == 0:
                mine.kept += count
            else:
                mine.reasons[REASONS[code - 1]] += count

    def found(self) -> dict[str, Tally]:
        """All that was counted, by `source/split`."""
        return dict(self._found)


def _selected(store: Store) -> Iterator[Generation]:
    for shard in store.shards("selection"):
        columns = {"plan": ["source", "split", "pair_id"], "selection": ["reason"]}
        found = store.aligned(shard, columns)
        reasons = found["selection"]["reason"].to_pylist()
        for row, reason in zip(found["plan"].to_pylist(), reasons, strict=True):
            key = f"{row['source']}/{row['split']}"
            yield Generation(key, row["pair_id"] or row["image_id"], reason)


def tally_of(store: Store) -> dict[str, Tally]:
    """The tally of a run: as its selection wrote it, else counted.

    Raises:
        AigiError: a table is missing or damaged.
    """
    written = counts_of(store)
    if written is None:
        return tally(_selected(store))
    return {
        key: Tally(one.planned, one.kept, Counter(one.reasons), Counter(one.errors))
        for key, one in written.items()
    }


def wanted(plan: Plan) -> dict[tuple[str, str], int | None]:
    """Generations that each source and split needs; None: as many as an import has."""
    dataset = specification.load(plan.dataset)
    return {
        (quota.source, quota.split): None if quota.spec.count is None else quota.generations
        for quota in quotas(dataset, plan)
    }


def shortage(plan: Plan, store: Store) -> dict[str, int]:
    """Generations that each `source/split` lacks, raised by the share that was dropped so far.

    Imports count only until a round found fewer images than it asked for.
    """
    found = tally_of(store)
    short = {}
    for (source, split), quota in wanted(plan).items():
        key = f"{source}/{split}"
        mine = found.get(key, Tally())
        lacking = 0 if quota is None else quota - mine.kept
        if lacking > 0 and not exhausted(store, key):
            share = max(0.1, mine.kept / mine.planned if mine.planned else 1.0)
            short[key] = math.ceil(lacking / share)
    return short


@dataclass(frozen=True)
class Lack:
    """What a source and split has fewer of than was wanted."""

    source: str
    split: str
    wanted: int
    found: Tally

    def __str__(self) -> str:
        parts = []
        if self.found.planned < self.wanted:
            parts.append(f"{self.wanted - self.found.planned:,} never planned")
        for reason in REASONS:
            if (count := self.found.reasons[reason]) and reason != "surplus":
                texts = self.found.errors.most_common(_MOST_ERRORS) if reason == "failed" else []
                more = ", ".join(f"{text}: {number:,}" for text, number in texts)
                parts.append(f"{count:,} {reason}" + (f" ({more})" if more else ""))
        why = ", ".join(parts)
        return f"{self.source} {self.split}: {self.found.kept:,} of {self.wanted:,}: {why}"


def lacks(plan: Plan, store: Store) -> list[Lack]:
    """The sources and splits of a finished run with fewer generations than were wanted.

    A split without a count wants every image of the import that was planned, up to `plan.limit`:
    only images that failed are missing there, since what rules drop nobody asked to replace. A
    model of a zoo without any image is missing, though others may have made as many.

    Raises:
        AigiError: a table is missing or damaged.
    """
    found, missing = tally_of(store), []
    for (source, split), quota in wanted(plan).items():
        mine = found.get(f"{source}/{split}", Tally())
        need, have = quota, mine.kept
        if need is None:
            need = min(mine.planned, plan.limit or mine.planned)
            have = mine.planned - mine.reasons["failed"]
        if have < need:
            missing.append(Lack(source, split, need, mine))
    return [*missing, *_silent(plan, store)]


def _silent(plan: Plan, store: Store) -> list[Lack]:
    """Models of zoos that have no image in a split in which they were to have some."""
    dataset = specification.load(plan.dataset)
    missing = []
    for quota in quotas(dataset, plan):
        spec = dataset.sources[quota.source]
        if not isinstance(spec, ZooSpec):
            continue
        counts = shares(spec, quota.split, quota.generations)
        found = _by_model(store, spec, quota.source, quota.split)
        for number, (member, count) in enumerate(zip(spec.members, counts, strict=True)):
            mine = found.get(number, Tally())
            if count and not mine.kept:
                name = f"{quota.source} {member.model}@{member.revision}"
                missing.append(Lack(name, quota.split, count, mine))
    return missing


def _by_model(store: Store, spec: ZooSpec, source: str, split: str) -> dict[int, Tally]:
    """The tally of each model of a zoo, by its number."""
    generations: list[Generation] = []
    errors: dict[str, Counter[str]] = defaultdict(Counter)
    for shard in store.shards("selection"):
        if not shard.startswith(f"{source}-{split}-"):
            continue
        found = store.aligned(shard, {"plan": None, "selection": ["reason"], "images": ["error"]})
        columns = (found["plan"], found["selection"], found["images"])
        for row, chosen, made in zip(*(table.to_pylist() for table in columns), strict=True):
            if row["source"] != source:
                break
            key = str(spec.number_of(row))
            unit = row["pair_id"] or row["image_id"]
            generations.append(Generation(key, unit, chosen["reason"]))
            if made["error"] is not None:
                errors[key][made["error"].partition(":")[0]] += 1
    counted = tally(generations)
    for key, texts in errors.items():
        counted[key].errors = texts
    return {int(key): one for key, one in counted.items() if key != "None"}


def as_json(found: dict[str, Tally]) -> dict[str, Any]:
    """A tally as it is recorded beside the selection."""
    return {
        key: {
            "planned": one.planned,
            "kept": one.kept,
            "reasons": dict(one.reasons),
            "errors": dict(one.errors),
        }
        for key, one in found.items()
    }
