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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.decisions import read_decisions
from pipeline.manifest import read_manifest
from pipeline.plan import specification
from pipeline.plan.quotas import Plan
from pipeline.plan.rounds import rounds_made
from pipeline.plan.specification import PromptedSpec
from pipeline.progress import Progress
from pipeline.selection.candidates import Candidates, candidates
from pipeline.selection.kept import record, release_names
from pipeline.selection.rules import PAIRS, REASONS, Scored, Selection, check_rules, flags
from pipeline.selection.tally import Counting, as_json, wanted
from pipeline.stage import Build, Compute
from pipeline.store import Shard, Store
from pipeline.tables import REJECTS, SELECTION
from pipeline.threads import ahead, workers

VERSION = 3
_WRITERS = 4


# --- Rules -------------------------------------------------------------------------------------


def _by_unit(known: Candidates, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which units have a marked variant."""
    found = np.zeros(known.units, np.bool_)
    found[known.unit[marked]] = True
    return found


_CODE = {reason: code for code, reason in enumerate(REASONS, start=1)}
"""A reason in one byte; 0: kept."""


@dataclass(frozen=True)
class Selected:
    """Why each of n generations is dropped, and what the near duplicates among them are near to.

    Attributes:
        why: uint8, shape (n,): 0 where it is kept, else 1 + the place of its reason in `REASONS`.
        near: int64, shape (m,), ascending: the generations that are dropped as duplicates.
        duplicate_of: m strings, ids of the images that stay.
        similarity: float64, shape (m,).
    """

    why: NDArray[np.uint8]
    near: NDArray[np.int64]
    duplicate_of: pa.Array
    similarity: NDArray[np.float64]

    def columns(self, unit: NDArray[np.integer[Any]]) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Reason, kept image and similarity of images, given their units; else null.

        Reasons and ids are strings, similarities float64.
        """
        return (_reasons(self.why[unit]), *self.near_to(unit))

    def near_to(self, unit: NDArray[np.integer[Any]]) -> tuple[pa.Array, pa.Array]:
        """Kept image (string) and similarity (float64) of images, given their units; else null."""
        at = np.searchsorted(self.near, unit)
        at[at == len(self.near)] = 0
        none = self.near[at] != unit if len(self.near) else np.ones(len(unit), np.bool_)
        place = pa.array(at, mask=none)
        return (
            self.duplicate_of.take(place),
            pa.array(self.similarity, pa.float64()).take(place),
        )


def _reasons(why: NDArray[np.uint8]) -> pa.Array:
    """The words of reasons; null where an image is kept."""
    return pa.array(REASONS, pa.string()).take(pa.array(why - np.uint8(1), mask=why == 0))


@dataclass(frozen=True)
class _Reviewed:
    """Which images (bool, shape (n,)) a person keeps, and which one drops."""

    keep: NDArray[np.bool_]
    drop: NDArray[np.bool_]


def _reviewed(known: Candidates, review: Mapping[str, str]) -> _Reviewed:
    asked = known.asked
    decisions = [review.get(name) for name in asked.ids.to_pylist()]
    found = []
    for word in ("keep", "drop"):
        said = np.array([decision == word for decision in decisions], np.bool_)
        marked = np.zeros(len(known.unit), np.bool_)
        marked[asked.row[said[asked.which]]] = True
        found.append(marked)
    return _Reviewed(*found)


def asked_ids(pairs: pa.Table, review: Mapping[str, str] = MappingProxyType({})) -> pa.Array:
    """The ids that `select` asks candidates for: those of pairs and of decisions, each once."""
    ids = [*pairs["image_id"].chunks, *pairs["other_id"].chunks, pa.array(review, pa.string())]
    return pc.unique(pa.chunked_array(ids, pa.string()))


def select(
    known: Candidates,
    rules: Selection,
    wanted: Mapping[tuple[str, str], int | None],
    pairs: pa.Table,
    review: Mapping[str, str],
) -> Selected:
    """Give every generation its reason.

    Args:
        known: images in plan order; quotas are filled in this order, after what people keep. The
            rows of `asked_ids(pairs, review)` were asked for.
        rules: thresholds.
        wanted: generations of each source and split; None: all.
        pairs: DUPLICATES rows; those below the thresholds are ignored.
        review: decision by image id.
    """
    why = np.zeros(known.units, np.uint8)
    reviewed = _reviewed(known, review)
    asked = {"failed": known.failed, "review": reviewed.drop}
    asked |= flags(known, rules)
    spared = _by_unit(known, reviewed.keep)
    for reason, marked in asked.items():
        fresh = _by_unit(known, marked) & (why == 0)
        if reason not in ("failed", "review"):
            fresh &= ~spared
        why[fresh] = _CODE[reason]
    del asked, reviewed
    first = first_rows(known)
    near = _duplicates(known, rules, pairs, why, first, spared)
    place = known.place[first]
    for key, quota in wanted.items():
        if quota is None or key not in known.places:
            continue
        mine = (why == 0) & (place == known.places.index(key))
        if np.count_nonzero(mine) <= quota:
            continue
        good = np.flatnonzero(mine)
        if spared.any():  # what a person keeps comes first
            good = np.concatenate([good[spared[good]], good[~spared[good]]])
        why[good[quota:]] = _CODE["surplus"]
    return Selected(why, *near)


def first_rows(known: Candidates) -> NDArray[np.int32]:
    """The first image of each unit."""
    first = np.empty(known.units, np.int32)
    first[known.unit[::-1]] = np.arange(len(known.unit), dtype=np.int32)[::-1]
    return first


def _edges(
    known: Candidates, rules: Selection, pairs: pa.Table, why: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of units that are near enough and good, each once: lower, higher, similarity."""
    least = {"pixels": 0.0 if rules.exact_duplicates else np.inf}
    for rule in PAIRS:
        value = getattr(rules, rule.setting)
        least[rule.column] = np.inf if value is None else value
    one, other = known.asked.row_of(pairs["image_id"]), known.asked.row_of(pairs["other_id"])
    kind = pc.index_in(pairs["kind"], pa.array(least, pa.string()))
    if kind.null_count:
        strange = pairs["kind"].filter(pc.is_null(kind))[0].as_py()
        raise AigiError(
            f"duplicates: {strange!r} is no kind of pair; there are {', '.join(least)}. Make the "
            "table again: delete the run's folder duplicates, and run the workflow."
        )
    similarity = pairs["similarity"].to_numpy()
    near = ~(similarity < np.array([*least.values()])[kind.to_numpy()])
    near &= (one >= 0) & (other >= 0)
    units = np.sort([known.unit[one[near]], known.unit[other[near]]], axis=0).astype(np.int64)
    good = (units[0] != units[1]) & (why[units[0]] == 0) & (why[units[1]] == 0)
    keys, at = np.unique(units[0][good] * known.units + units[1][good], return_inverse=True)
    best = np.full(len(keys), -1.0)
    np.fmax.at(best, at, similarity[near][good])
    return keys // max(1, known.units), keys % max(1, known.units), best


def _duplicates(
    known: Candidates,
    rules: Selection,
    pairs: pa.Table,
    why: NDArray[np.uint8],
    first: NDArray[np.int32],
    spared: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], pa.Array, NDArray[np.float64]]:
    """Drop all but one unit of every group.

    A `spared` unit, which a person keeps, stays beside a kept one of its own split.

    Returns: what was dropped, the id of the kept image and the similarity of each.
    """
    from pipeline.duplicates.groups import SPLIT_RANK, components, kept
    from pipeline.duplicates.pairs import Pairs

    one, other, similarity = _edges(known, rules, pairs, why)
    units, ends = np.unique(np.concatenate([one, other]), return_inverse=True)
    a, b = ends[: len(one)], ends[len(one) :]
    group = components(len(units), [Pairs(a, b, similarity)])
    at = first[units]
    of = np.array([SPLIT_RANK[split] for _, split in known.places], np.int8)[known.place[at]]
    ids = known.ids(at)
    stays = kept(
        group,
        [of, -known.scores["clip_score"][at], np.array(ids.to_pylist(), dtype=np.str_)],
    )
    keeper = np.empty(len(units), np.int64)
    keeper[group[stays]] = np.flatnonzero(stays)  # a group is named after one of its rows
    best = np.full(len(units), -1.0)
    np.maximum.at(best, a, similarity)
    np.maximum.at(best, b, similarity)
    gone = np.flatnonzero(~stays)
    keeps = keeper[group[gone]]
    apart = ~(spared[units[gone]] & (of[gone] == of[keeps]))
    gone, keeps = gone[apart], keeps[apart]
    why[units[gone]] = _CODE["duplicate"]
    edge, key = a * len(units) + b, np.minimum(keeps, gone) * len(units) + np.maximum(keeps, gone)
    place = np.searchsorted(edge, key)
    place[place == len(edge)] = 0
    direct = edge[place] == key if len(edge) else np.zeros(0, np.bool_)
    near = np.where(direct, similarity[place], best[gone]) if len(edge) else best[gone]
    return units[gone], ids.take(pa.array(keeps)), near


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
    parts = []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for shard, rows in known.parts():
        if not known.failed[rows].any():
            continue
        errors = store.read("images", shard, ["error"])["error"]
        failed = errors.is_valid()
        columns = ["source", "split", "path", "image_id", "text"]
        plan = store.read("plan", shard, columns).filter(failed)
        named = pc.fill_null(pc.not_equal(plan["path"], ""), False)
        file = pc.if_else(named, plan["path"], plan["image_id"])
        reasons, line = errors.filter(failed), pa.nulls(plan.num_rows, REJECTS.field("line").type)
        parts.append(pa.table([plan["source"], file, line, reasons, plan["text"]], schema=REJECTS))
        for source, split, error in zip(
            plan["source"].to_pylist(), plan["split"].to_pylist(), reasons.to_pylist(), strict=True
        ):
            counts[f"{source}/{split}"][error.partition(":")[0]] += 1
    rejects = pa.concat_tables(parts).combine_chunks() if parts else REJECTS.empty_table()
    store.write("rejects", "images", rejects, REJECTS)
    return counts


def _numbered(plan: Plan) -> bool:
    """Whether files get names as releases of before had: one that is made again keeps them."""
    if plan.manifest is None:
        return False
    return any("-of-" in record["path"] for record in read_manifest(plan.manifest)["files"])


@dataclass
class _Written:
    """What was written of a selection.

    Attributes:
        made: its shards.
        files: shards with kept rows, in order, by source and split.
        kept: generations that are kept, by the source and split of the shard that has them first.
        reasons: images that have each code of a reason.
    """

    made: list[Shard]
    files: dict[tuple[str, str], list[str]]
    kept: Counter[tuple[str, str]]
    reasons: NDArray[np.int64]


def _write_shard(
    store: Store, shard: str, why: NDArray[np.uint8], twin: pa.Array, similarity: pa.Array
) -> Shard:
    """Write a shard of the selection.

    Args:
        why: as of `Selected`, of each image; likewise what it is near to.
    """
    plan = store.read("plan", shard, ["image_id", "source", "split"]).combine_chunks()
    own = [plan["image_id"], plan["source"], plan["split"]]
    table = pa.table(
        [*own, pa.array(why == 0), _reasons(why), twin, similarity.cast(pa.float32())],
        schema=SELECTION,
    )
    return store.write("selection", shard, table.combine_chunks(), SELECTION)


def _write(
    store: Store, known: Candidates, chosen: Selected, counted: Counting, compute: Compute | None
) -> _Written:
    """Write the selection, shard after shard, and count it."""
    done = _Written([], defaultdict(list), Counter(), np.zeros(len(REASONS) + 1, np.int64))
    seen = np.zeros(known.units, np.bool_)

    def shards() -> Iterator[tuple[Store, str, NDArray[np.uint8], pa.Array, pa.Array]]:
        for shard, rows in known.parts():
            unit = known.unit[rows]
            why = chosen.why[unit]
            key = known.places[known.place[rows.start]]
            good = unit[why == 0]
            fresh = np.unique(good[~seen[good]])
            seen[fresh] = True
            done.kept[key] += len(fresh)
            if len(good):
                done.files[key].append(shard)
            done.reasons += np.bincount(why, minlength=len(REASONS) + 1)
            counted.add(known.place[rows], unit, why)
            yield store, shard, why, *chosen.near_to(unit)

    if compute is None or compute.ray is None:
        with workers(_WRITERS, "selection") as pool:
            done.made += ahead(shards(), lambda given: _write_shard(*given), pool, _WRITERS)
        return done
    from pipeline.cluster import with_ray

    for shard in with_ray(_write_shard, shards(), compute, store):
        store.made_elsewhere("selection", shard)
        done.made.append(shard)
    return done


def _build(
    rules: Selection,
    plan: Plan,
    store: Store,
    progress: Progress,
    compute: Compute | None = None,
) -> list[Shard]:
    dataset = specification.load(plan.dataset)
    needed = wanted(plan)
    review = {} if rules.review is None else read_decisions(rules.review, "image_id")
    pairs = near_pairs_of(store)
    known = candidates(store, asked_ids(pairs, review), compute)
    errors = _write_failures(store, known)
    strangers = [name for name in known.asked.strangers() if name in review]
    if strangers:
        progress.say(
            f"selection: {len(strangers):,} reviewed images are not in this run, "
            f"the first is {strangers[0]}"
        )
    chosen = select(known, rules, needed, pairs, review)
    counting = Counting(known.places, known.units)
    done = _write(store, known, chosen, counting, compute)
    for (source, split), quota in needed.items():
        if quota is not None and done.kept[source, split] < quota:
            made_here = isinstance(dataset.sources[source], PromptedSpec)
            last = made_here and rounds_made(store) >= rules.rounds
            progress.say(
                f"selection: {source} {split}: kept {done.kept[source, split]:,}, quota {quota:,}"
                + ("; raise plan.margin or selection.rounds" if last else "")
            )
    names = release_names(done.files, _numbered(plan))
    digest = hashlib.sha256(repr([(shard.name, shard.sha256) for shard in done.made]).encode())
    counted = counting.found()
    for name, counts in errors.items():
        counted[name].errors = counts
    record(store, names, digest.hexdigest(), as_json(counted))
    images = dict(zip(("", *REASONS), done.reasons.tolist(), strict=True))
    progress.say(
        f"selection: {images['']:,} of {len(known.unit):,} images kept"
        + "".join(f", {images[why]:,} {why}" for why in REASONS if images[why])
    )
    return done.made


def stage(rules: Selection, plan: Plan, scored: Scored, compute: Compute | None = None) -> Build:
    """The selection stage, given the scores that this run makes.

    Args:
        compute: where shards are read and written; None: here.

    Raises:
        AigiError: a threshold whose score no section makes.
    """
    check_rules(rules, scored)
    scores = [name for name, section in scored._asdict().items() if section is not None]
    settings = rules.model_dump(mode="json", exclude={"rounds"})
    if rules.review is not None:
        settings["review"] = read_decisions(rules.review, "image_id")
    return Build(
        table="selection",
        version=VERSION,
        schema=SELECTION,
        settings={
            **settings,
            "quotas": {"/".join(key): quota for key, quota in wanted(plan).items()},
        },
        inputs=("plan", "images", *scores),
        build=partial(_build, rules, plan, compute=compute),
        remake=True,
    )
