"""The one table of rules: whatever tells of reasons and thresholds tells of all of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import workflow as workflows
from pipeline.pages.build import scores_section
from pipeline.release.words import rule_words
from pipeline.selection import sweep as sweeps
from pipeline.selection.rules import PAIRS, REASONS, RULES, THRESHOLDS, Rule, Selection
from pipeline.store import Store
from pipeline.tables import QUALITY
from tests.selection.test_selection import chosen, known, pairs

NEAR = pairs(("i000", "i001", "vector", 0.9), ("i000", "i001", "hash", 0.9))


def test_every_setting_of_the_section_is_a_rule_and_the_reverse() -> None:
    assert {rule.setting for rule in RULES} - {""} == set(Selection.model_fields) - {"rounds"}


def test_the_reasons_are_those_of_the_table_in_its_order() -> None:
    listed = [rule.reason for rule in RULES]
    assert list(REASONS) == sorted(set(listed), key=listed.index)
    assert listed == sorted(listed, key=REASONS.index), "rules of one reason stand together"


@pytest.mark.parametrize("rule", THRESHOLDS, ids=lambda rule: rule.setting)
def test_a_row_just_beyond_a_threshold_has_its_reason_and_one_just_within_none(rule: Rule) -> None:
    limit = 0.5
    rules = Selection(**{rule.setting: limit})
    beyond, within = np.nextafter(limit, -9), np.nextafter(limit, 9)
    if rule.side == "above":
        beyond, within = within, beyond
    rows = [{rule.column: value} for value in (beyond, limit, within, np.nan)]
    assert chosen(rows, rules).reason == [rule.reason, None, None, None]
    off = Selection(**{rule.setting: None})
    assert chosen([{rule.column: beyond}], off).reason == [None]


@pytest.mark.parametrize("rule", PAIRS, ids=lambda rule: rule.setting)
def test_a_pair_is_a_duplicate_from_its_least_similarity_on(rule: Rule) -> None:
    for least, reason in ((np.float32(0.9), rule.reason), (0.901, None)):
        rules = Selection(**{rule.setting: float(least)})
        assert chosen([{}, {}], rules, near=NEAR).reason == [None, reason]


def test_sweep_report_and_card_tell_of_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{rule.column: 0.25 for rule in THRESHOLDS} | {"concepts": {"rain": 0.25}}] * 2
    monkeypatch.setattr(sweeps, "candidates", lambda *_: known(rows))
    monkeypatch.setattr(sweeps, "near_pairs_of", lambda _: NEAR)
    monkeypatch.setattr(Store, "shards", lambda *_: {"shard": 2})
    numbers = {rule.setting: 0.75 for rule in THRESHOLDS + PAIRS}
    flow = workflows.Workflow.model_validate(
        {
            "run": "r",
            "embeddings": {},
            "quality": {
                "safety_checker": {},
                "concepts": {"rain": {"texts": ["rain"], "neutral": ["sun"]}},
            },
            "duplicates": {},
            "selection": {**numbers, "max_concepts": {"rain": 0.75}},
        }
    )
    swept = {line.setting for line in sweeps.sweep(flow.rules, Store("r"), 1)}
    assert swept == {*numbers, "max_concepts.rain"}

    columns = {rule.column: pa.array([0.25] * 2) for rule in THRESHOLDS}
    columns["concepts"] = pa.array([[("rain", 0.25)]] * 2, QUALITY.field("concepts").type)
    section = scores_section(pa.table(columns), numbers, NEAR)
    shown = {row[0] for row in section.tables[0].rows}
    pair_rows = {f"pairs ({rule.column})" for rule in PAIRS}
    assert shown == {rule.column for rule in THRESHOLDS} | {"rain"} | pair_rows
    assert all(rule.words for rule in RULES)
    assert all(rule.meaning for rule in THRESHOLDS + PAIRS)

    card = rule_words(flow.rules, flow.scored)
    assert list(card) == list(REASONS)
    for rule in THRESHOLDS + PAIRS:
        assert f"{rule.words} {rule.side} 0.75" in card[rule.reason]
    assert card["concept"] == "probability of “rain” above 0.75"
    assert card["duplicate"].startswith("equal pixels or ")
