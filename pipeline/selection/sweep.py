"""A run with scores in; what each threshold of the selection would drop, with examples, out.

Nothing is changed: use it to choose thresholds before setting them in `selection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.selection.candidates import Candidates, candidates
from pipeline.selection.rules import PAIRS, THRESHOLDS, Rule, Selection, flags
from pipeline.selection.selection import asked_ids, near_pairs_of, select
from pipeline.store import Store

SHARES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
"""The thresholds would drop these shares of the scored images."""
SWEPT = tuple(sorted(THRESHOLDS, key=lambda rule: (rule.side != "below", rule.needs)))
"""Rules in the order shown: those that drop low scores, then those that drop high ones."""
_STEPS = {"vector": 0.01, "hash": 1 / 64}
_NONE = {"planned_size": False, **{rule.setting: None for rule in THRESHOLDS + PAIRS}}


@dataclass(frozen=True)
class Drop:
    """One threshold of one setting.

    Attributes:
        setting: of the selection section, `max_concepts.NAME` for concepts.
        threshold: its value; `current` where it is the workflow's own.
        dropped: images that it alone would drop, of `scored`.
        sources: the same by source.
        examples: ids of those nearest to the threshold, the doubtful ones.
        twins: of duplicates, the image that stays for each example; else empty.
    """

    setting: str
    threshold: float
    current: bool
    dropped: int
    scored: int
    sources: dict[str, int]
    examples: tuple[str, ...]
    twins: tuple[str, ...] = ()


def _by_source(known: Candidates, rows: NDArray[np.int64]) -> dict[str, int]:
    """How many of these rows each source has, as it comes first."""
    places, first, counts = np.unique(known.place[rows], return_index=True, return_counts=True)
    found = Counter[str]()
    for at in np.argsort(first).tolist():
        found[known.places[places[at]][0]] += int(counts[at])
    return dict(found)


def _drop(
    known: Candidates,
    setting: str,
    threshold: float,
    current: bool,
    marked: NDArray[np.bool_],
    distance: NDArray[np.float64],
    examples: int,
) -> Drop:
    gone = np.flatnonzero(marked)
    nearest = gone[np.argsort(distance[gone], kind="stable")][:examples]
    return Drop(
        setting,
        threshold,
        current,
        len(gone),
        int(np.isfinite(distance).sum()),
        _by_source(known, gone),
        tuple(known.ids(nearest).to_pylist()),
    )


def _scores(
    known: Candidates, setting: str, values: NDArray[Any], low: bool,
    now: float | None, examples: int,
) -> Iterator[Drop]:  # fmt: skip
    values = values.astype(np.float64)
    scored = values[np.isfinite(values)]
    if not len(scored):
        return
    shares = SHARES if low else tuple(1 - share for share in SHARES)
    cuts = {float(f"{cut:.4g}") for cut in np.quantile(scored, shares)}
    for cut in sorted(cuts | ({now} if now is not None else set()), reverse=not low):
        marked = values < cut if low else values > cut
        yield _drop(known, setting, cut, cut == now, marked, np.abs(values - cut), examples)


def sweep(rules: Selection, store: Store, examples: int) -> Iterator[Drop]:
    """Yield every setting at several thresholds, those that drop the least first.

    Raises:
        AigiError: the run has no images.
    """
    if not store.shards("images"):
        raise AigiError(f"{store.url}: this run has no images yet; run the workflow first")
    pairs = near_pairs_of(store)
    known = candidates(store, asked_ids(pairs))
    flags(known, rules)  # a concept without scores is refused here
    for rule in SWEPT:
        now, values = getattr(rules, rule.setting), known.scores[rule.column]
        yield from _scores(known, rule.setting, values, rule.side == "below", now, examples)
    for name, values in known.concepts.items():
        now = rules.max_concepts.get(name)
        yield from _scores(known, f"max_concepts.{name}", values, False, now, examples)
    for rule in PAIRS:
        yield from _duplicates(known, rule, pairs, rules, examples)


def _duplicates(
    known: Candidates, rule: Rule, pairs: pa.Table, rules: Selection, examples: int
) -> Iterator[Drop]:
    """What each least similarity of one kind would drop, of all that was made."""
    mine = pairs.filter(pc.equal(pairs["kind"], rule.column))
    if not len(mine):
        return
    setting, step = rule.setting, _STEPS[rule.column]
    least = np.ceil(min(mine["similarity"].to_pylist()) / step - 1e-9) * step
    cuts = {float(f"{cut:.4f}") for cut in np.arange(least, 1 + step / 2, step)}
    now = getattr(rules, setting)
    bare = Selection().model_copy(update=_NONE)
    failed = replace(known, failed=np.zeros(len(known.unit), np.bool_))
    for cut in sorted(cuts | ({now} if now is not None else set()), reverse=True):
        found = select(failed, bare.model_copy(update={setting: cut}), {}, mine, {})
        why, twin, similarity = found.columns(known.unit)
        marked = pc.fill_null(pc.equal(why, "duplicate"), False).to_numpy(zero_copy_only=False)
        near = similarity.fill_null(np.inf).to_numpy()
        drop = _drop(known, setting, cut, cut == now, marked, near, examples)
        gone = np.flatnonzero(marked)
        nearest = gone[np.argsort(near[gone], kind="stable")][:examples]
        yield replace(
            drop,
            scored=len(known.unit),
            twins=tuple(str(name) for name in twin.take(pa.array(nearest)).to_pylist()),
        )
