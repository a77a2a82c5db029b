"""A run with prompts in, a page out on which a person reviews a sample of its captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError
from pipeline.pages.review import KEPT, Drawn, check_reasons, in_turn, order_of, page_of
from pipeline.prompts import filters
from pipeline.prompts.filters import RULES, PromptFilters
from pipeline.prompts.sweep import limits_of
from pipeline.prompts.text import prompt_id
from pipeline.shown import one_line
from pipeline.store import Store

NEAR = "near duplicate"
_LATER = (NEAR, "too many tokens")
"""Reasons that are found when prompts are compared and chosen."""
REASONS = (KEPT, *(rule.reason for rule in RULES if rule.reason), *_LATER)
"""What a caption on the page may be; a caption without text cannot be brought back."""


class _Caption(NamedTuple):
    """A caption, as the run judged it."""

    prompt_id: str
    text: str
    reason: str
    said: str
    where: str
    scores: Mapping[str, Any]


def _refused(store: Store, limits: PromptFilters, wanted: set[str]) -> Iterator[_Caption]:
    """Captions that the filters refuse, with their scores; without those that people keep."""
    if wanted.isdisjoint(rule.reason for rule in RULES):
        return
    columns = ["text", "prompt_id", *filters.COLUMNS]
    stay = pa.concat_arrays(store.read_all("prompts", ["prompt_id"])["prompt_id"].chunks)
    for shard in store.shards("texts"):
        rows = store.read("texts", shard, columns)
        reasons = filters.reasons(rows, limits)
        rows = rows.append_column("reason", reasons)
        mine = pc.and_not(pc.is_valid(reasons), pc.is_in(rows["prompt_id"], stay))
        rows = rows.filter(mine)
        for row in rows.to_pylist():
            reason = row["reason"].partition(":")[0]
            if row["text"] is not None and reason in wanted:
                yield _Caption(
                    row["prompt_id"], row["text"], reason, row["reason"], "", row
                )  # fmt: skip


def _later(store: Store, wanted: set[str]) -> Iterator[_Caption]:
    """Captions that were refused beside others."""
    if "prompts" not in store.shards("rejects") or wanted.isdisjoint(_LATER):
        return
    for row in store.read("rejects", "prompts").to_pylist():
        reason = row["reason"].partition(":")[0]
        if reason in wanted and reason in _LATER:
            where = f"{row['file']}:{row['line']}"
            yield _Caption(prompt_id(row["text"]), row["text"], reason, row["reason"], where, {})


def _kept(store: Store, wanted: set[str]) -> Iterator[_Caption]:
    for shard in store.shards("prompts") if KEPT in wanted else ():
        for row in store.read("prompts", shard).to_pylist():
            yield _Caption(
                row["prompt_id"], row["text"], KEPT, KEPT,
                f"{row['source']}, {row['source_ref']}, {row['split']}", {},
            )  # fmt: skip


def _sample(
    captions: Iterator[_Caption], reasons: Sequence[str], most: int, seed: int
) -> tuple[list[_Caption], int]:
    """At most `most` captions, drawn by a hash, and of how many; each reason gets as many."""
    queues: dict[str, list[Drawn]] = {reason: [] for reason in reasons}
    there: dict[str, set[str]] = {reason: set() for reason in reasons}
    for caption in captions:
        seen, queue = there[caption.reason], queues[caption.reason]
        if caption.prompt_id in seen:
            continue
        seen.add(caption.prompt_id)
        queue.append((order_of(seed, caption.prompt_id), caption.prompt_id, caption))
        if len(queue) >= 2 * most:  # no more texts are held than may be shown
            queue[:] = sorted(queue)[:most]
    drawn: list[_Caption] = [entry[2] for entry in islice(in_turn(queues.values()), most)]
    drawn.sort(key=lambda caption: reasons.index(caption.reason))
    return drawn, sum(map(len, there.values()))


def _item(caption: _Caption, limits: PromptFilters) -> dict[str, Any]:
    said = caption.said if caption.reason == KEPT else f"refused: {caption.said}"
    if caption.reason == NEAR:
        said = f"refused: {NEAR}"
    facts = [("now", one_line(said)), ("prompt", caption.prompt_id)]
    if caption.where:
        facts.append(("from", one_line(caption.where)))
    unsafe = dict(caption.scores.get("unsafe") or {})
    facts += [(f"unsafe, {one_line(name)}", f"{score:.2f}") for name, score in unsafe.items()]
    if (language := caption.scores.get("language")) is not None:
        facts.append(("language", f"{language} ({caption.scores['language_probability']:.2f})"))
    worst = 0.5 if limits.max_unsafe is None else limits.max_unsafe
    return {
        "id": caption.prompt_id,
        "reason": caption.reason,
        "text": one_line(caption.text),
        "facts": facts,
        "veil": caption.reason == "unsafe" or max(unsafe.values(), default=0.0) > worst,
        "similarity": None,
        "picture": None,
        "twin": None,
    }


def prompt_review(
    store: Store, reasons: Sequence[str], sample: int, seed: int = 0
) -> tuple[str, int]:
    """The review page, and the number of captions on it.

    Args:
        store: a run with prompts.
        reasons: some of `REASONS`; each gets the same number of captions.
        sample: most captions, without the prompts that stay in place of near duplicates.
        seed: draws them.

    Raises:
        AigiError: an unknown reason, no prompts, or no such caption.
    """
    check_reasons(reasons, REASONS)
    if not store.shards("prompts"):
        raise AigiError(f"{store.url}: no prompts table; run the workflow first")
    reasons, wanted, limits = list(dict.fromkeys(reasons)), set(reasons), limits_of(store)

    def captions() -> Iterator[_Caption]:
        yield from _kept(store, wanted)
        yield from _refused(store, limits, wanted)
        yield from _later(store, wanted)

    drawn, total = _sample(captions(), reasons, sample, seed)
    if not drawn:
        raise AigiError(
            f"{store.url}: no caption is {' or '.join(reasons)}, so there is nothing to review"
        )
    items = [_item(caption, limits) for caption in drawn]
    place = {item["id"]: number for number, item in enumerate(items)}
    for caption, item in zip(drawn, list(items), strict=True):
        if caption.reason == NEAR:
            text = caption.said.partition(": ")[2]
            stays = _Caption(prompt_id(text), text, KEPT, KEPT, "", {})
            if stays.prompt_id not in place:
                place[stays.prompt_id] = len(items)
                items.append(_item(stays, limits))
            item["twin"] = place[stays.prompt_id]
    beside = "that stay in place of near duplicates"
    return page_of(store, "prompt_id", items, reasons, len(drawn), total, beside)
