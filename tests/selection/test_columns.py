"""The selection on columns is the one on plain lists: of runs of any shape, byte for byte."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.columns import Growing, fingerprints, is_in, repeated
from pipeline.plan import units
from pipeline.plan.quotas import Plan
from pipeline.progress import Progress
from pipeline.selection import candidates as module
from pipeline.selection.candidates import candidates
from pipeline.selection.kept import FILES
from pipeline.selection.rules import Selection
from pipeline.selection.selection import _build, asked_ids, near_pairs_of, select
from pipeline.selection.tally import Counting, Generation, as_json, tally
from pipeline.store import Store
from pipeline.tables import DUPLICATES, IMAGES, PLAN, QUALITY, embeddings_schema
from tests.release.test_release import SPEC
from tests.selection import plain

EMBEDDINGS = embeddings_schema(2)
SCORE = st.sampled_from([None, 0.1, 0.25, 0.5, 0.9])
ROW = st.fixed_dictionaries(
    {
        "id": st.integers(0, 40),
        "pair": st.sampled_from([None, "", "p1", "p2", "p3", "0" * 32, "1" * 32]),
        "long": st.booleans(),
        "error": st.sampled_from([None, None, None, "black: all of it", "", "memory"]),
        "nsfw": SCORE,
        "width_ok": st.sampled_from([None, True, True, False]),
        "clip_score": SCORE,
        "rain": SCORE,
        "path": st.sampled_from([None, "", "a.png"]),
    }
)
SHARD = st.tuples(
    st.sampled_from(["train", "test", "validation"]),
    st.lists(ROW, max_size=8),
    st.booleans(),
    st.booleans(),
)


def name_of(row: dict[str, Any]) -> str:
    return f"{row['id']:032x}" if row["long"] else f"i{row['id']}"


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def written(folder: Path, shards: list[Any], edges: list[tuple[str, str, str, float]]) -> Store:
    """A run with these shards; ids may be there twice, and variants in two shards."""
    store = Store(str(folder / "run"))
    for number, (split, rows, quality, embeddings) in enumerate(shards):
        name = f"sd-{split}-{number:05d}"
        ids = [{"image_id": name_of(row)} for row in rows]
        plan = [
            {**one, "pair_id": row["pair"], "source": "sd", "split": split, "path": row["path"],
             "text": "words"}
            for one, row in zip(ids, rows, strict=True)
        ]  # fmt: skip
        images = [{**one, "error": row["error"]} for one, row in zip(ids, rows, strict=True)]
        store.write("plan", name, table(plan, PLAN), PLAN)
        store.write("images", name, table(images, IMAGES), IMAGES)
        if quality:
            scores = [
                {**one, "nsfw": row["nsfw"], "width_ok": row["width_ok"], "black": row["nsfw"],
                 "concepts": None if row["rain"] is None else [("rain", row["rain"])]}
                for one, row in zip(ids, rows, strict=True)
            ]  # fmt: skip
            store.write("quality", name, table(scores, QUALITY), QUALITY)
        if embeddings:
            scores = [{**i, "clip_score": row["clip_score"]} for i, row in zip(ids, rows)]  # noqa: B905
            store.write("embeddings", name, table(scores, EMBEDDINGS), EMBEDDINGS)
    near = [dict(zip(DUPLICATES.names, edge, strict=True)) for edge in edges]
    store.write("duplicates", "all", table(near, DUPLICATES), DUPLICATES)
    return store


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    shards=st.lists(SHARD, min_size=1, max_size=4),
    quota=st.sampled_from([None, 0, 1, 3]),
)
def test_a_selection_on_columns_is_the_one_on_lists(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    shards: list[Any],
    quota: int | None,
) -> None:
    names = [*sorted({name_of(row) for _, rows, _, _ in shards for row in rows}), "strange"]
    kind, near = st.sampled_from(["vector", "hash", "pixels"]), st.sampled_from([0.9, 0.96, 1.0])
    some = st.sampled_from(names)
    edges = data.draw(st.lists(st.tuples(some, some, kind, near), max_size=8))
    review = data.draw(st.dictionaries(some, st.sampled_from(["keep", "drop", "unsure"])))
    store = written(tmp_path_factory.mktemp("s"), shards, edges)
    asked = {"max_concepts": {"rain": 0.25}} if any(
        quality and any(row["rain"] is not None for row in rows) for _, rows, quality, _ in shards
    ) else {}  # fmt: skip
    rules = Selection(
        min_similarity=0.95, min_hash_similarity=0.95, min_clip_score=0.25, max_nsfw=0.5, **asked
    )
    wanted = {("sd", split): quota for split in ("train", "validation", "test")}
    pairs = near_pairs_of(store)
    before = plain.plain(store)
    expected = plain.select(before, rules, wanted, pairs, review)
    known = candidates(store, asked_ids(pairs, review))
    found = select(known, rules, wanted, pairs, review)
    reason, twin, similarity = (column.to_pylist() for column in found.columns(known.unit))
    assert reason == expected.reason
    assert twin == expected.duplicate_of and similarity == expected.similarity
    assert known.unit.tolist() == before.unit.tolist()
    assert known.asked.strangers() == sorted(
        ({*pairs["image_id"].to_pylist(), *pairs["other_id"].to_pylist()} | set(review))
        - set(before.image_id)
    )
    counted = tally(
        Generation(f"{source}/{split}", unit, why)
        for source, split, unit, why in zip(
            before.source, before.split, before.unit.tolist(), expected.reason, strict=True
        )
    )
    counting = Counting(known.places, known.units)
    for _, rows in known.parts():
        unit = known.unit[rows]
        counting.add(known.place[rows], unit, found.why[unit])
    # In one order, too: it is that of the file beside the selection.
    assert json.dumps(as_json(counting.found())) == json.dumps(as_json(counted))


def test_ids_are_found_again_though_all_fingerprints_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"long": True, "error": None, "nsfw": 0.1, "width_ok": True, "clip_score": 0.5,
           "rain": None, "path": None}  # fmt: skip
    shards = [
        ("train", [{**row, "id": n, "pair": p} for n, p in rows], True, True)
        for rows in ([(1, None), (2, "p1")], [(3, "p1"), (4, None)], [(1, None)])
    ]
    store = written(tmp_path, shards, [(f"{1:032x}", f"{4:032x}", "pixels", 1.0)])
    pairs = near_pairs_of(store)
    expected = candidates(store, asked_ids(pairs))
    assert expected.unit.tolist() == [0, 1, 1, 2, 0] == plain.plain(store).unit.tolist()
    for one in (module, units):
        monkeypatch.setattr(one, "fingerprints", lambda names: np.zeros(len(names), np.uint64))
    found = candidates(store, asked_ids(pairs))
    assert found.unit.tolist() == expected.unit.tolist()
    assert found.asked.row.tolist() == expected.asked.row.tolist() == [0, 3, 4]
    assert found.ids(np.array([4, 0, 2, 2])).to_pylist() == [f"{n:032x}" for n in (1, 1, 3, 3)]


def test_a_strange_kind_of_pair_is_refused(tmp_path: Path) -> None:
    store = written(tmp_path, [], [("a", "b", "sound", 1.0)])
    pairs = near_pairs_of(store)
    with pytest.raises(AigiError, match="'sound' is no kind of pair; there are pixels, vector"):
        select(candidates(store, asked_ids(pairs)), Selection(), {}, pairs, {})


@pytest.mark.parametrize("shards", [[], [("train", [], False, False)]])
def test_the_selection_of_a_run_without_images_is_empty(tmp_path: Path, shards: list[Any]) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    store = written(tmp_path, shards, [])
    said = io.StringIO()
    plan = Plan(dataset=str(tmp_path / "spec.yaml"))
    assert _build(Selection(), plan, store, Progress(said)) == []
    assert "0 of 0 images kept" in said.getvalue()
    assert (store.read_json("selection", FILES) or {})["tally"] == {}


NAMES = st.lists(
    st.one_of(st.text(max_size=40), st.text("0123456789abcdef", min_size=32, max_size=32))
)


@given(names=NAMES, cut=st.integers(0, 8))
def test_equal_strings_have_equal_fingerprints(names: list[str], cut: int) -> None:
    whole = fingerprints(pa.array(names, pa.string()))
    assert (
        len({*zip(names, whole.tolist(), strict=True)}) == len({*names}) == len({*whole.tolist()})
    )
    for name, mark in zip(names, whole, strict=True):
        assert fingerprints(pa.array([name], pa.string()))[0] == mark
    sliced = pa.array(names, pa.string())[cut:]
    assert fingerprints(sliced).tolist() == whole[cut:].tolist()
    chunked = pa.chunked_array([pa.array(names[:cut], pa.string()), sliced])
    assert fingerprints(chunked).tolist() == whole.tolist()


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_repeated_values_are_found(values: list[int], others: list[int]) -> None:
    found = repeated(np.array(values, np.uint64))
    assert found.tolist() == sorted({value for value in values if values.count(value) > 1})
    known = np.array(sorted(others), np.uint64)
    assert is_in(np.array(values, np.uint64), known).tolist() == [v in others for v in values]


def test_what_grows_keeps_its_values_and_takes_wider_ones() -> None:
    column = Growing(np.float32, 3, np.nan)
    for start in range(0, 9000, 1000):
        column.add(np.arange(start, start + 1000, dtype=np.float32))
    assert np.isnan(column.values()[:3]).all() and len(column) == 9003
    assert column.values().dtype == np.float32
    column.add(np.array([0.1]))
    assert column.values().dtype == np.float64 and column.values()[-1] == 0.1
    assert column.values()[3:-1].tolist() == list(range(9000))
