"""The duplicates table: scopes, the held-out line, one generation, shards that come later."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import stages
from pipeline.duplicates.duplicates import COVERED, Duplicates, _build
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, embeddings_schema

DIMENSIONS = 16


def vector(seed: int, near: int | None = None) -> np.ndarray:
    """A random direction, or one close to that of another seed."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=DIMENSIONS)
    if near is not None:
        base = np.random.default_rng(near).normal(size=DIMENSIONS)
        found = base + 0.05 * found
    return found / np.linalg.norm(found)


def write(store: Store, shard: str, rows: list[dict[str, object]]) -> None:
    """Plan, images and embeddings of one shard: id, vector or None, pixels, pair."""
    source, split = shard.split("-")[:2]
    ids = [row["id"] for row in rows]

    def table(schema: pa.Schema, **columns: Sequence[object]) -> pa.Table:
        return pa.table(
            [pa.array(columns.get(f.name, [None] * len(rows)), f.type) for f in schema],
            schema=schema,
        )

    store.write(
        "plan",
        shard,
        table(
            PLAN,
            image_id=ids,
            source=[source] * len(rows),
            split=[split] * len(rows),
            pair_id=[row.get("pair") for row in rows],
        ),
        PLAN,
    )
    pixels = [row.get("pixels", row["id"]) for row in rows]
    store.write("images", shard, table(IMAGES, image_id=ids, pixels_sha256=pixels), IMAGES)
    schema = embeddings_schema(DIMENSIONS)
    vectors = [
        None if row["vector"] is None else np.asarray(row["vector"], np.float16) for row in rows
    ]
    store.write("embeddings", shard, table(schema, image_id=ids, image_vector=vectors), schema)


def found(store: Store) -> set[tuple[str, str, str]]:
    rows = [
        row for s in store.shards("duplicates") for row in store.read("duplicates", s).to_pylist()
    ]
    triples = [(row["image_id"], row["other_id"], row["kind"]) for row in rows]
    assert len(triples) == len(set(triples)), "a pair was found twice"
    return set(triples)


def build(store: Store, **settings: object) -> set[tuple[str, str, str]]:
    _build(Duplicates.model_validate(settings), Compute(device="cpu"), store, Progress(quiet=True))
    return found(store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "run"))
    write(
        made,
        "sd-train-00000",
        [
            {"id": "a", "vector": vector(1)},
            {"id": "b", "vector": vector(101, near=1)},
            {"id": "c", "vector": vector(3)},
            {"id": "broken", "vector": None, "pixels": None},
            {"id": "gone", "vector": None, "pixels": None},
        ],
    )
    write(
        made,
        "xl-test-00000",
        [
            {"id": "t", "vector": vector(103, near=3), "pair": "t"},
            {"id": "t2", "vector": vector(104, near=3), "pair": "t"},
        ],
    )
    write(
        made,
        "xl-train-00000",
        [
            {"id": "d", "vector": vector(105, near=1)},
            {"id": "e", "vector": vector(9), "pixels": "c"},
        ],
    )
    return made


def test_inside_a_source_and_across_the_held_out_line(store: Store) -> None:
    assert build(store) == {("a", "b", "vector"), ("c", "t", "vector"), ("c", "t2", "vector")}


def test_a_similarity_is_not_rounded_below_the_threshold(tmp_path: Path) -> None:
    """The selection compares what is stored: as a float32 this cosine would be less than itself."""
    made = Store(str(tmp_path / "run"))
    write(made, "sd-train-00000", [{"id": str(i), "vector": vector(i)} for i in range(9)])
    rows = np.array(made.read("embeddings", "sd-train-00000")["image_vector"].to_pylist())
    cosines = (rows.astype(np.float64) @ rows.astype(np.float64).T)[np.triu_indices(9, 1)]
    tau = next(float(c) for c in sorted(cosines) if c > 0 and float(np.float32(c)) < c)
    build(made, min_similarity=tau)
    (least, *_) = sorted(made.read_all("duplicates")["similarity"].to_pylist())
    assert least == tau


def test_anywhere(store: Store) -> None:
    assert build(store, scope="all") == {
        ("a", "b", "vector"),
        ("a", "d", "vector"),
        ("b", "d", "vector"),
        ("c", "t", "vector"),
        ("c", "t2", "vector"),
        ("c", "e", "pixels"),
    }


def test_without_vectors_equal_pixels_are_left(store: Store) -> None:
    assert build(store, scope="all", min_similarity=None) == {("c", "e", "pixels")}


def test_new_shards_are_joined_with_old_ones_and_old_pairs_are_kept(store: Store) -> None:
    before = build(store, scope="all")
    first = store.shards("duplicates")
    write(
        store,
        "sd-train-round1-00000",
        [
            {"id": "f", "vector": vector(106, near=9)},
            {"id": "g", "vector": vector(107), "pixels": "c"},
        ],
    )
    after = build(store, scope="all")
    assert after - before == {("e", "f", "vector"), ("c", "g", "pixels"), ("e", "g", "pixels")}
    assert before <= after
    shards = store.shards("duplicates")
    assert len(shards) == 2
    assert first.items() <= shards.items()
    # All at once gives the same pairs, the order of rows aside.
    again = Store(store.url + "-again")
    for table in ("plan", "images", "embeddings"):
        for shard in store.shards(table):
            rows = store.read(table, shard)
            again.write(table, shard, rows, rows.schema)

    def unordered(pairs: set[tuple[str, str, str]]) -> set[tuple[frozenset[str], str]]:
        return {(frozenset(pair[:2]), pair[2]) for pair in pairs}

    assert unordered(after) == unordered(build(again, scope="all"))


def test_equal_pixels_are_found_whoever_came_first(store: Store) -> None:
    """A first picture of another source stands between no two others."""
    write(store, "mj-train-00000", [{"id": "m", "vector": vector(108), "pixels": "c"}])
    write(store, "xl-train-00001", [{"id": "h", "vector": vector(109), "pixels": "c"}])
    write(store, "xl-test-00001", [{"id": "u", "vector": vector(110), "pixels": "c"}])
    across = {("c", "u"), ("e", "u"), ("h", "u"), ("m", "u")}
    assert {(frozenset(pair[:2])) for pair in build(store, min_similarity=None)} == {
        frozenset(pair) for pair in across | {("e", "h")}
    }


@pytest.mark.parametrize("clusters", [1, 3])
def test_clusters_change_no_pair(store: Store, clusters: int) -> None:
    write(store, "sd-train-00001", [{"id": f"n{i}", "vector": vector(200 + i, i % 4)}
                                    for i in range(30)])  # fmt: skip
    again = Store(store.url + "-again")
    for table in ("plan", "images", "embeddings"):
        for shard in store.shards(table):
            rows = store.read(table, shard)
            again.write(table, shard, rows, rows.schema)
    expected = build(again)
    assert len(expected) > 30
    assert build(store, clusters=clusters) == expected


def test_a_lost_shard_of_pairs_is_found_anew(store: Store) -> None:
    before = build(store)
    store.remove("duplicates", "pairs-00000.parquet")
    assert build(store) == before
    assert list(store.read_json("duplicates", COVERED)["shards"]) == sorted(store.shards("plan"))  # type: ignore[index]


def test_pairs_of_a_shard_that_changed_are_found_anew(store: Store) -> None:
    """What was found in the content of before is forgotten, also beside a new shard."""
    before = build(store, scope="all", min_similarity=None)
    assert before == {("c", "e", "pixels")}
    shard = next(name for name in store.shards("plan") if "e" in _ids(store, name))
    ids = _ids(store, shard)
    write(store, shard, [{"id": one, "vector": None, "pixels": f"new {one}"} for one in ids])
    assert build(store, scope="all", min_similarity=None) == set()
    write(store, shard, [{"id": one, "vector": None, "pixels": "same"} for one in ids])
    write(store, "xl-train-00009", [{"id": "x", "vector": None, "pixels": "same"}])
    found = build(store, scope="all", min_similarity=None)
    assert {frozenset(pair[:2]) for pair in found} == {
        frozenset(pair) for pair in combinations([*ids, "x"], 2)
    }


def _ids(store: Store, shard: str) -> list[str]:
    return [str(one) for one in store.read("plan", shard, ["image_id"])["image_id"].to_pylist()]


def test_vectors_need_embeddings(make_workflow) -> None:  # type: ignore[no-untyped-def]
    workflow = workflows.load(make_workflow(duplicates={}))
    with pytest.raises(AigiError, match="needs the embeddings section"):
        stages(workflow)
    workflow = workflows.load(make_workflow(duplicates={"min_similarity": None}))
    found = {stage.table: stage for stage in stages(workflow)}
    assert found["duplicates"].inputs == ("plan", "images")
