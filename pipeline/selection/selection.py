"""Plan, images and scores in, the `selection` table out: keep, or the one reason against it.

Thresholds are used here alone, so a new one costs seconds: the table is made again whenever they
change, and nothing that needed a GPU is touched. A dropped image has a reason, the first of
`rules.RULES` that applies. These reasons need more than a threshold:

failed       no image was made
review       a person decided to drop it; a person's keep overrules the scores below, and
             `duplicate` where the image that stays is in the same split, so that no training
             image is near a held-out one
size         not of the planned size
concept      a zero-shot concept's probability
duplicate    near another image that is kept (`duplicate_of`), or near one of another split
surplus      the quota is full; images that a person keeps fill it first

The variants of one generation are kept or dropped together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.manifest import read_manifest
from pipeline.plan import specification
from pipeline.plan.quotas import Plan
from pipeline.plan.rounds import rounds_made
from pipeline.plan.specification import PromptedSpec
from pipeline.progress import Progress
from pipeline.selection.candidates import Candidates, candidates
from pipeline.selection.kept import record, release_names
from pipeline.selection.review import read_review
from pipeline.selection.rules import PAIRS, REASONS, Scored, Selection, check_rules, flags
from pipeline.selection.tally import Generation, as_json, tally, wanted
from pipeline.stage import Build
from pipeline.store import Shard, Store
from pipeline.tables import REJECTS, SELECTION

VERSION = 3


# --- What is known of every image --------------------------------------------------------------


# --- Rules -------------------------------------------------------------------------------------


def _by_unit(known: Candidates, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which images belong to a unit with a marked variant."""
    units = int(known.unit.max()) + 1 if len(known.unit) else 0
    found = np.zeros(units, np.bool_)
    found[known.unit[marked]] = True
    return found


@dataclass(frozen=True)
class Selected:
    """The reason of every image (or None), and the image that it is a near duplicate of."""

    reason: list[str | None]
    duplicate_of: list[str | None]
    similarity: list[float | None]


def select(
    known: Candidates,
    rules: Selection,
    wanted: Mapping[tuple[str, str], int | None],
    pairs: pa.Table,
    review: Mapping[str, str],
) -> Selected:
    """Give every image its reason.

    Args:
        known: images in plan order; quotas are filled in this order, after what people keep.
        rules: thresholds.
        wanted: generations of each source and split; None: all.
        pairs: DUPLICATES rows; those below the thresholds are ignored.
        review: decision by image id.
    """
    units = int(known.unit.max()) + 1 if len(known.unit) else 0
    reason: list[str | None] = [None] * units
    decision = np.array([review.get(i, "") for i in known.image_id], dtype=object)
    asked = {"failed": known.failed, "review": decision == "drop"}
    asked |= flags(known, rules)
    spared = _by_unit(known, decision == "keep")
    for why, marked in asked.items():
        for unit in np.flatnonzero(_by_unit(known, marked)).tolist():
            if why not in ("failed", "review") and spared[unit]:
                continue
            if reason[unit] is None:
                reason[unit] = why
    first = np.full(units, -1, np.int64)  # the first image of each unit
    first[known.unit[::-1]] = np.arange(len(known.unit))[::-1]
    twin, near = _duplicates(known, rules, pairs, reason, first, spared)
    kept: Counter[tuple[str, str]] = Counter()
    for unit in np.argsort(~spared, kind="stable").tolist():  # what a person keeps comes first
        at = first[unit]
        key = (known.source[at], known.split[at])
        if reason[unit] is not None:
            continue
        quota = wanted.get(key)
        if quota is not None and kept[key] >= quota:
            reason[unit] = "surplus"
        else:
            kept[key] += 1
    return Selected(
        [reason[unit] for unit in known.unit],
        [known.image_id[twin[unit]] if unit in twin else None for unit in known.unit.tolist()],
        [near.get(int(unit)) for unit in known.unit],
    )


def _duplicates(
    known: Candidates,
    rules: Selection,
    pairs: pa.Table,
    reason: list[str | None],
    first: NDArray[np.int64],
    spared: NDArray[np.bool_],
) -> tuple[dict[int, int], dict[int, float]]:
    """Drop all but one unit of every group; return the kept image and the similarity of each.

    A `spared` unit, which a person keeps, stays beside a kept one of its own split.
    """
    from pipeline.duplicates.groups import SPLIT_RANK, components, kept
    from pipeline.duplicates.pairs import Pairs

    row_of = {image: i for i, image in enumerate(known.image_id)}
    least = {"pixels": 0.0 if rules.exact_duplicates else np.inf}
    for rule in PAIRS:
        value = getattr(rules, rule.setting)
        least[rule.column] = np.inf if value is None else value
    edges: dict[tuple[int, int], float] = {}
    for row in pairs.to_pylist():
        one, other = row_of.get(row["image_id"]), row_of.get(row["other_id"])
        if one is None or other is None or row["similarity"] < least[row["kind"]]:
            continue
        a, b = sorted((int(known.unit[one]), int(known.unit[other])))
        if a != b and reason[a] is None and reason[b] is None:
            edges[a, b] = max(edges.get((a, b), -1.0), row["similarity"])
    if not edges:
        return {}, {}
    one, other = np.array(list(edges), dtype=np.int64).T
    group = components(len(first), [Pairs(one, other, np.array(list(edges.values())))])
    units = np.unique(np.concatenate([one, other]))
    at = first[units]
    stays = kept(
        group[units],
        [
            np.array([SPLIT_RANK[known.split[i]] for i in at]),
            -known.scores["clip_score"][at],
            np.array([known.image_id[i] for i in at]),
        ],
    )
    keeper = dict(zip(group[units[stays]].tolist(), units[stays].tolist(), strict=True))
    best: dict[int, float] = {}
    for pair, similarity in edges.items():
        for unit in pair:
            best[unit] = max(best.get(unit, -1.0), similarity)
    twin: dict[int, int] = {}
    near: dict[int, float] = {}
    for unit in units[~stays].tolist():
        keeps = keeper[int(group[unit])]
        if spared[unit] and known.split[first[unit]] == known.split[first[keeps]]:
            continue
        reason[unit] = "duplicate"
        twin[unit] = int(first[keeps])
        near[unit] = edges.get((min(keeps, unit), max(keeps, unit)), best[unit])
    return twin, near


# --- The stage ---------------------------------------------------------------------------------


def near_pairs_of(store: Store) -> pa.Table:
    """The duplicates table of a run; empty where it has none."""
    from pipeline.tables import DUPLICATES

    shards = store.shards("duplicates")
    parts = [store.read("duplicates", shard) for shard in shards]
    return pa.concat_tables(parts) if parts else DUPLICATES.empty_table()


def _write_failures(store: Store, known: Candidates) -> dict[str, Counter[str]]:
    """Write the images that could not be made to the rejects, each with its reason.

    Returns: how often each reason occurs, by `source/split`; what is behind a colon is left out.
    """
    shards = dict.fromkeys(known.shard[i] for i in np.flatnonzero(known.failed))
    rows = []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    columns = ["source", "split", "path", "image_id", "text"]
    for shard in shards:
        plan = store.read("plan", shard, columns).to_pylist()
        errors = store.read("images", shard, ["error"])["error"].to_pylist()
        rows += [
            {
                "source": row["source"],
                "file": row["path"] or row["image_id"],
                "line": None,
                "reason": error,
                "text": row["text"],
            }
            for row, error in zip(plan, errors, strict=True)
            if error is not None
        ]
        for row, error in zip(plan, errors, strict=True):
            if error is not None:
                counts[f"{row['source']}/{row['split']}"][error.partition(":")[0]] += 1
    store.write("rejects", "images", pa.Table.from_pylist(rows, schema=REJECTS), REJECTS)
    return counts


def _numbered(plan: Plan) -> bool:
    """Whether files get names as releases of before had: one that is made again keeps them."""
    if plan.manifest is None:
        return False
    return any("-of-" in record["path"] for record in read_manifest(plan.manifest)["files"])


def _build(rules: Selection, plan: Plan, store: Store, progress: Progress) -> list[Shard]:
    dataset = specification.load(plan.dataset)
    needed = wanted(plan)
    known = candidates(store)
    errors = _write_failures(store, known)
    review = {} if rules.review is None else read_review(rules.review)
    strangers = set(review) - set(known.image_id)
    if strangers:
        progress.say(
            f"selection: {len(strangers):,} reviewed images are not in this run, "
            f"the first is {min(strangers)}"
        )
    chosen = select(known, rules, needed, near_pairs_of(store), review)
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    made = []
    start = 0
    kept: Counter[tuple[str, str]] = Counter()
    units: set[int] = set()
    while start < len(known.image_id):
        shard = known.shard[start]
        end = start
        while end < len(known.shard) and known.shard[end] == shard:
            end += 1
        part = slice(start, end)
        table = pa.table(
            [
                pa.array(known.image_id[part], pa.string()),
                pa.array(known.source[part], pa.string()),
                pa.array(known.split[part], pa.string()),
                pa.array([why is None for why in chosen.reason[part]], pa.bool_()),
                pa.array(chosen.reason[part], pa.string()),
                pa.array(chosen.duplicate_of[part], pa.string()),
                pa.array(chosen.similarity[part], pa.float32()),
            ],
            schema=SELECTION,
        )
        made.append(store.write("selection", shard, table, SELECTION))
        key = (known.source[start], known.split[start])
        good = {int(known.unit[i]) for i in range(start, end) if chosen.reason[i] is None}
        kept[key] += len(good - units)
        units |= good
        if good:
            files[key].append(shard)
        start = end
    for (source, split), quota in needed.items():
        if quota is not None and kept[source, split] < quota:
            made_here = isinstance(dataset.sources[source], PromptedSpec)
            last = made_here and rounds_made(store) >= rules.rounds
            progress.say(
                f"selection: {source} {split}: kept {kept[source, split]:,}, quota {quota:,}"
                + ("; raise plan.margin or selection.rounds" if last else "")
            )
    names = release_names(files, _numbered(plan))
    digest = hashlib.sha256(repr([(shard.name, shard.sha256) for shard in made]).encode())
    counted = tally(
        Generation(f"{source}/{split}", unit, why)
        for source, split, unit, why in zip(
            known.source, known.split, known.unit.tolist(), chosen.reason, strict=True
        )
    )
    for name, counts in errors.items():
        counted[name].errors = counts
    record(store, names, digest.hexdigest(), as_json(counted))
    reasons = Counter(why for why in chosen.reason if why is not None)
    progress.say(
        f"selection: {chosen.reason.count(None):,} of {len(chosen.reason):,} images kept"
        + "".join(f", {reasons[why]:,} {why}" for why in REASONS if reasons[why])
    )
    return made


def stage(rules: Selection, plan: Plan, scored: Scored) -> Build:
    """The selection stage, given the scores that this run makes.

    Raises:
        AigiError: a threshold whose score no section makes.
    """
    check_rules(rules, scored)
    scores = [name for name, section in scored._asdict().items() if section is not None]
    settings = rules.model_dump(mode="json", exclude={"rounds"})
    if rules.review is not None:
        settings["review"] = read_review(rules.review)
    return Build(
        table="selection",
        version=VERSION,
        schema=SELECTION,
        settings={
            **settings,
            "quotas": {"/".join(key): quota for key, quota in wanted(plan).items()},
        },
        inputs=("plan", "images", *scores),
        build=partial(_build, rules, plan),
        remake=True,
    )
