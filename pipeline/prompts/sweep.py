"""Scored texts in; what each threshold of `prompts.filters` would refuse, with examples, out.

Nothing is changed: use it to choose thresholds before setting them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.prompts.filters import COLUMNS, OFF, RULES, PromptFilters, Rule
from pipeline.store import Store


@dataclass
class Refusal:
    """One threshold of one setting.

    Attributes:
        setting: of `prompts.filters`.
        threshold: its value; `current` where it is the workflow's own.
        refused: texts that it alone would refuse, of `scored`.
        sources: the same by caption source.
        examples: texts that it refuses, and that the value before it does not.
    """

    setting: str
    threshold: float
    current: bool
    refused: int = 0
    scored: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def _lines(rule: Rule, limits: PromptFilters) -> list[Refusal]:
    setting, values = rule.swept
    now = getattr(limits, setting)
    laxest_first = values[0] < values[-1]
    every = sorted({*values, *([float(now)] if now is not None else [])}, reverse=not laxest_first)
    return [Refusal(setting, value, value == now) for value in every]


def limits_of(store: Store) -> PromptFilters:
    """The thresholds that the prompts of a run were chosen with; the usual ones where none were."""
    record = store.record("prompts")
    if record is None:
        return PromptFilters()
    found = {**OFF, **record.settings.get("filters", {})}
    return PromptFilters.model_validate({**found, "blocklist": None, "names": None})


def sweep(
    limits: PromptFilters, store: Store, examples: int, sources: Mapping[str, str] | None = None
) -> Iterator[Refusal]:
    """Yield every threshold at several values, those that refuse the least first.

    Args:
        limits: the thresholds of now.
        examples: how many texts to show of each.
        sources: names of caption sources, by the beginnings of names of shards.

    Raises:
        AigiError: a shard of the texts is damaged.
    """
    swept = [(rule, _lines(rule, limits)) for rule in RULES if rule.swept[0]]
    for shard in store.shards("texts"):
        rows = store.read("texts", shard, ["text", *COLUMNS])
        rows = rows.filter(pc.is_null(rows["problem"]))
        source = (sources or {}).get(shard[: shard.rindex("-") + 1], "captions")
        for rule, lines in swept:
            _count(rule, lines, rows, limits, source, examples)
    for _, lines in swept:
        yield from lines


def _count(
    rule: Rule, lines: list[Refusal], rows: pa.Table, limits: PromptFilters, source: str,
    examples: int,
) -> None:  # fmt: skip
    before = pa.array([False] * rows.num_rows, pa.bool_())
    for line in lines:
        asked = limits.model_copy(update={line.setting: line.threshold})
        mask = rule.mask(rows, asked)
        count = pc.sum(mask).as_py() or 0
        line.refused += count
        line.scored += rows.num_rows
        if count:
            line.sources[source] += count
        if count and (more := examples - len(line.examples)) > 0:
            fresh = rows["text"].filter(pc.and_not(mask, before))
            line.examples += fresh.slice(0, more).to_pylist()
        before = mask
