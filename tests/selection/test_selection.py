"""Rules, duplicates, quotas, review and top-up: what stays, and why the rest does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.decisions import read_decisions
from pipeline.selection.candidates import Asked, Candidates
from pipeline.selection.rules import REASONS, Selection, columns_of, flags
from pipeline.selection.selection import Selected, select, stage
from pipeline.tables import DUPLICATES

SCORES = (*columns_of("embeddings"), *columns_of("quality"))


def known(rows: list[dict[str, Any]]) -> Candidates:
    """Candidates of rows; what a row does not say is good or unknown."""
    names = [row.get("id", f"i{n:03d}") for n, row in enumerate(rows)]
    units: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    concepts = sorted({c for row in rows for c in row.get("concepts", {})})
    every = np.arange(len(rows), dtype=np.int32)

    def place(row: dict[str, Any]) -> int:
        key = row.get("source", "sd"), row.get("split", "train")
        return places.setdefault(key, len(places))

    def unit(row: dict[str, Any], name: str) -> int:
        return units.setdefault(row.get("unit", name), len(units))

    of = np.array([place(row) for row in rows], np.int32)
    return Candidates(
        list(places),
        of,
        {"shard": 0},
        np.array([unit(row, name) for row, name in zip(rows, names, strict=True)], np.int32),
        np.array([row.get("failed", False) for row in rows], np.bool_),
        {s: np.array([row.get(s, np.nan) for row in rows], np.float64) for s in SCORES},
        {c: np.array([row.get("concepts", {}).get(c, np.nan) for row in rows]) for c in concepts},
        lambda at: pa.array(names, pa.string()).take(pa.array(at)),
        Asked(pa.array(names, pa.string()), every, every),
    )


class Found:
    """What was selected, as lists: reason, kept image and similarity of every row."""

    def __init__(self, known: Candidates, chosen: Selected) -> None:
        columns = (column.to_pylist() for column in chosen.columns(known.unit))
        self.reason, self.duplicate_of, self.similarity = columns


def pairs(*found: tuple[str, str, str, float]) -> pa.Table:
    columns = zip(*found, strict=True) if found else [[], [], [], []]
    return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, DUPLICATES, strict=True)],
                    schema=DUPLICATES)  # fmt: skip


def chosen(
    rows: list[dict[str, Any]],
    rules: Selection | None = None,
    quota: int | None = None,
    near: pa.Table | None = None,
    review: dict[str, str] | None = None,
) -> Found:
    wanted = {(row.get("source", "sd"), row.get("split", "train")): quota for row in rows}
    mine = known(rows)
    near = pairs() if near is None else near
    return Found(mine, select(mine, rules or Selection(), wanted, near, review or {}))


@pytest.mark.parametrize(
    ("row", "rules", "reason"),
    [
        ({"failed": True}, {}, "failed"),
        ({"width_ok": 0}, {}, "size"),
        ({"width_ok": 0}, {"planned_size": False}, None),
        ({"width_ok": 1}, {}, None),
        ({"black": 0.99}, {}, "blank"),
        ({"blank": 1.0}, {}, "blank"),
        ({"blank": 1.0}, {"max_blank": None}, None),
        ({"luminance_std": 1.0}, {"min_luminance_std": 2.0}, "blank"),
        ({"entropy": 0.5}, {"min_entropy": 1.0}, "blank"),
        ({"blockiness": 3.0}, {"max_blockiness": 2.0}, "compressed"),
        ({"nsfw": 0.01}, {"max_nsfw": 0.0}, "nsfw"),
        ({"nsfw": -0.01}, {"max_nsfw": 0.0}, None),
        ({"nsfw": 0.01}, {}, None),
        ({"concepts": {"rain": 0.9}}, {"max_concepts": {"rain": 0.5}}, "concept"),
        ({"concepts": {"rain": 0.4}}, {"max_concepts": {"rain": 0.5}}, None),
        ({"clip_score": 0.1}, {"min_clip_score": 0.2}, "clip_score"),
        ({"clip_score": 0.2}, {"min_clip_score": 0.2}, None),
        ({"clip_score": float("nan")}, {"min_clip_score": 0.2}, None),
        ({"failed": True, "clip_score": 0.1}, {"min_clip_score": 0.2}, "failed"),
    ],
)
def test_one_reason_for_every_fault(
    row: dict[str, Any], rules: dict[str, Any], reason: str | None
) -> None:
    assert chosen([row], Selection(**rules)).reason == [reason]


def test_a_threshold_on_a_concept_that_was_not_scored_is_refused() -> None:
    with pytest.raises(AigiError, match=r"max_concepts\.fire.*rain"):
        flags(known([{"concepts": {"rain": 0.1}}]), Selection(max_concepts={"fire": 0.5}))


@pytest.mark.parametrize(
    ("sections", "rules", "said"),
    [
        ({}, {"min_clip_score": 0.2}, "min_clip_score: this rule needs embeddings"),
        ({"quality": {}}, {"max_nsfw": 0}, "max_nsfw: this rule needs quality.safety_checker"),
        ({}, {"max_nsfw": 0}, "max_nsfw: this rule needs quality.safety_checker"),
        ({}, {"min_entropy": 1}, "min_entropy: this rule needs quality"),
        ({}, {"max_black": 0.5}, "max_black: this rule needs quality"),
        ({}, {"min_similarity": 0.9}, "min_similarity: this rule needs duplicates.min_similarity"),
        (
            {"duplicates": {"min_similarity": None}},
            {"min_similarity": 0.9},
            "min_similarity: this rule needs duplicates.min_similarity",
        ),
        (
            {"duplicates": {"min_similarity": 0.95}},
            {"min_similarity": 0.9},
            r"0.9 is below duplicates.min_similarity \(0.95\)",
        ),
        (
            {"duplicates": {"min_similarity": None}, "quality": {}},
            {"min_hash_similarity": 0.9},
            "this rule needs duplicates.min_hash_similarity",
        ),
        ({"quality": {}}, {"max_concepts": {"rain": 0.5}}, "rain: no such concept is scored"),
        # Defaults, and what is switched off, ask for nothing.
        ({}, {"max_black": None, "exact_duplicates": False, "planned_size": False}, None),
        ({}, {}, None),
        ({}, Selection().model_dump(), None),
        (
            {"duplicates": {"min_similarity": None}},
            {"exact_duplicates": True, "min_similarity": None},
            None,
        ),
    ],
)
def test_a_threshold_without_its_score_is_refused(
    make_workflow: Any, sections: dict[str, Any], rules: dict[str, Any], said: str | None
) -> None:
    workflow = workflows.load(make_workflow(**sections, selection=rules))
    if said is None:
        stage(workflow.rules, workflow.planned("selection"), workflow.scored)
        return
    with pytest.raises(AigiError, match=said):
        stage(workflow.rules, workflow.planned("selection"), workflow.scored)


def test_of_a_group_the_held_out_then_the_best_scored_then_the_first_id_stays() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "split": "train", "clip_score": 0.9},
        {"id": "b", "split": "test", "clip_score": 0.1},
        {"id": "c", "split": "validation", "clip_score": 0.5},
        {"id": "d", "split": "train", "clip_score": 0.3},
        {"id": "f", "split": "train", "clip_score": 0.4},
        {"id": "e", "split": "train", "clip_score": 0.4},
    ]
    near = pairs(
        ("a", "c", "vector", 0.97), ("b", "c", "vector", 0.98),  # a chain: one group
        ("d", "f", "vector", 0.99), ("f", "e", "vector", 0.96), ("d", "e", "vector", 0.95),
    )  # fmt: skip
    found = chosen(rows, Selection(min_similarity=0.95), near=near)
    assert found.reason == ["duplicate", None, "duplicate", "duplicate", "duplicate", None]
    assert found.duplicate_of == ["b", None, "b", "e", "e", None]
    assert found.similarity[2] == pytest.approx(0.98)
    assert found.similarity[0] == pytest.approx(0.97)  # not compared with b, but with c


def test_pairs_below_the_threshold_or_of_dropped_pictures_drop_nothing() -> None:
    rows: list[dict[str, Any]] = [{"id": "a"}, {"id": "b"}, {"id": "c", "failed": True}]
    near = pairs(("a", "b", "vector", 0.94), ("b", "c", "pixels", 1.0))
    assert chosen(rows, Selection(min_similarity=0.95), near=near).reason == [None, None, "failed"]
    # No threshold: vectors are not asked, equal pixels are.
    same = pairs(("a", "b", "vector", 1.0))
    assert chosen(rows, near=same).reason[:2] == [None, None]
    same = pairs(("a", "b", "pixels", 1.0))
    assert chosen(rows, near=same).reason[:2] == [None, "duplicate"]
    rules = Selection(exact_duplicates=False)
    assert chosen(rows, rules, near=same).reason[:2] == [None, None]


def test_variants_of_a_generation_stand_or_fall_together() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "unit": "a", "clip_score": 0.5},
        {"id": "a2", "unit": "a", "clip_score": 0.1},
        {"id": "b", "unit": "b", "clip_score": 0.5},
        {"id": "b2", "unit": "b", "clip_score": 0.5},
        {"id": "c", "unit": "c", "clip_score": 0.5},
        {"id": "c2", "unit": "c", "clip_score": 0.5},
    ]
    found = chosen(rows, Selection(min_clip_score=0.2), quota=1)
    assert found.reason == ["clip_score"] * 2 + [None] * 2 + ["surplus"] * 2


def test_people_overrule_scores_but_not_failures_and_quotas() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "nsfw": 1.0},
        {"id": "b"},
        {"id": "c", "failed": True},
        {"id": "d", "nsfw": 1.0},
        {"id": "e"},
    ]
    review = {"a": "keep", "b": "drop", "c": "keep", "d": "unsure"}
    found = chosen(rows, Selection(max_nsfw=0.0), quota=1, review=review)
    assert found.reason == [None, "review", "failed", "nsfw", "surplus"]


def test_what_people_keep_fills_the_quota_first() -> None:
    rows: list[dict[str, Any]] = [{"id": name} for name in "abcd"]
    found = chosen(rows, quota=2, review={"c": "keep"})
    assert found.reason == [None, "surplus", None, "surplus"]
    found = chosen(rows, quota=2, review=dict.fromkeys("bcd", "keep"))
    assert found.reason == ["surplus", None, None, "surplus"]


def test_people_overrule_duplicates_within_a_split() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "clip_score": 0.9},
        {"id": "b"},
        {"id": "c"},
        {"id": "t", "split": "test"},
        {"id": "u"},
        {"id": "v", "split": "test"},
    ]
    near = pairs(
        ("a", "b", "vector", 0.97), ("b", "c", "vector", 0.98), ("t", "u", "vector", 0.99),
        ("t", "v", "vector", 0.97),
    )  # fmt: skip
    rules = Selection(min_similarity=0.95)
    assert chosen(rows, rules, near=near).reason == [
        None, "duplicate", "duplicate", None, "duplicate", "duplicate"
    ]  # fmt: skip
    found = chosen(rows, rules, near=near, review=dict.fromkeys("buv", "keep"))
    # b differs from a, says a person; c is still one too many, and u would leak into the test.
    assert found.reason == [None, None, "duplicate", None, "duplicate", None]
    assert found.duplicate_of == [None, None, "a", None, "t", None]
    found = chosen(rows, rules, near=near, review={"a": "drop", "b": "keep", "u": "keep"})
    assert found.reason == ["review", None, "duplicate", None, "duplicate", "duplicate"]


def test_review_files(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("image_id,decision,note\na,keep,\nb,drop,blurred\n", encoding="utf-8-sig")
    assert read_decisions(str(path), "image_id") == {"a": "keep", "b": "drop"}
    path.write_text("image_id,decision\na,keep\nb,maybe\n")
    with pytest.raises(AigiError, match=r"decisions\.csv: row 3: .*'maybe'"):
        read_decisions(str(path), "image_id")
    path.write_text("image_id,decision\na,keep\na,drop\n")
    with pytest.raises(AigiError, match="row 3: a is drop here and keep further up"):
        read_decisions(str(path), "image_id")
    with pytest.raises(AigiError, match="no such file"):
        read_decisions(str(tmp_path / "missing.csv"), "image_id")


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "split": st.sampled_from(["train", "validation", "test"]),
            "source": st.sampled_from(["sd", "sdxl"]),
            "failed": st.booleans(),
            "clip_score": st.sampled_from([0.1, 0.3, float("nan")]),
            "nsfw": st.sampled_from([-1.0, 1.0, float("nan")]),
        }
    ),
    max_size=24,
)


@given(rows=ROWS, data=st.data(), quota=st.sampled_from([None, 0, 1, 3]))
def test_selection_partitions_the_plan(
    rows: list[dict[str, Any]], data: st.DataObject, quota: int | None
) -> None:
    number = len(rows)
    names = [f"i{n:03d}" for n in range(number)]
    index = st.integers(0, max(number - 1, 0))
    edge = st.tuples(index, index, st.sampled_from(["vector", "hash", "pixels"]))
    edges = data.draw(st.lists(edge, max_size=12)) if number else []
    edges = [(a, b, kind) for a, b, kind in edges if a < b]
    for n in range(1, number):  # some are variants of the one before
        if data.draw(st.integers(0, 3)) == 0:
            rows[n] |= {key: rows[n - 1][key] for key in ("split", "source")}
            rows[n]["unit"] = rows[n - 1].get("unit", names[n - 1])
    unit = [row.get("unit", name) for row, name in zip(rows, names, strict=True)]
    near = pairs(*((names[a], names[b], kind, 0.97) for a, b, kind in edges))
    rules = Selection(
        min_similarity=0.95, min_hash_similarity=0.95, min_clip_score=0.2, max_nsfw=0.0
    )
    review = data.draw(
        st.dictionaries(st.sampled_from(names), st.sampled_from(["keep", "drop", "unsure"]))
        if number
        else st.just({})
    )
    found = chosen(rows, rules, quota, near, review)
    # Every row is kept, or has one reason; variants fare alike.
    assert len(found.reason) == number
    assert set(found.reason) <= {None, *REASONS}
    assert len(set(zip(unit, found.reason, strict=True))) == len(set(unit))
    kept: dict[tuple[str, str], set[str]] = {}
    for n, why in enumerate(found.reason):
        if why is None:
            assert not rows[n]["failed"] and review.get(names[n]) != "drop"
            kept.setdefault((rows[n]["source"], rows[n]["split"]), set()).add(unit[n])
    assert all(quota is None or len(units) <= quota for units in kept.values())
    if quota is not None and quota > 0:
        for key in {(row["source"], row["split"]) for row in rows}:
            surplus = any(
                why == "surplus" and (row["source"], row["split"]) == key
                for why, row in zip(found.reason, rows, strict=True)
            )
            assert not surplus or len(kept.get(key, ())) == quota, "surplus before it was full"
    # No two kept pictures are joined, but where a person keeps one: never over two splits.
    spared = {unit[n] for n, name in enumerate(names) if review.get(name) == "keep"}
    for a, b, _ in edges:
        if unit[a] != unit[b] and found.reason[a] is None and found.reason[b] is None:
            assert rows[a]["split"] == rows[b]["split"] and spared & {unit[a], unit[b]}
    for why, twin in zip(found.reason, found.duplicate_of, strict=True):
        assert (twin is not None) == (why == "duplicate")
        if twin is not None:
            assert found.reason[names.index(twin)] in (None, "surplus")
