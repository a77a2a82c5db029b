"""Bookkeeping of duplicates on columns is that on plain lists, in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.duplicates import duplicates as module
from pipeline.duplicates.duplicates import Duplicates, _find, _vectors
from pipeline.duplicates.pairs import gathered
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, QUALITY, embeddings_schema
from tests.duplicates import row_by_row

ROW = st.fixed_dictionaries({
    "id": st.integers(0, 30),
    "pair": st.sampled_from([None, "", "p1", "p2", "0" * 32]),
    "pixels": st.sampled_from([None, "a" * 64, "b" * 64, "c" * 64, "short"]),
    "hash": st.sampled_from([None, 0, 1, 7, 2**63, 2**64 - 1]),
})  # fmt: skip
SHARD = st.tuples(
    st.sampled_from(["sd", "sdxl"]),
    st.sampled_from(["train", "test", "validation"]),
    st.lists(ROW, max_size=6),
)


def written(folder: Path, shards: list[Any]) -> tuple[Store, list[str]]:
    store, names = Store(str(folder)), []
    for number, (source, split, rows) in enumerate(shards):
        name = f"{source}-{split}-{number:05d}"
        names.append(name)
        ids = [{"image_id": f"{row['id']:032x}"} for row in rows]
        tables = {
            "plan": (
                PLAN,
                [{"pair_id": r["pair"], "source": source, "split": split} for r in rows],
            ),
            "images": (IMAGES, [{"pixels_sha256": r["pixels"]} for r in rows]),
            "quality": (QUALITY, [{"perceptual_hash": r["hash"]} for r in rows]),
        }
        for table, (schema, values) in tables.items():
            every = [{**one, **more} for one, more in zip(ids, values, strict=True)]
            store.write(table, name, pa.Table.from_pylist(every, schema=schema), schema)
    return store, names


@settings(max_examples=120, deadline=None)
@given(st.lists(SHARD, max_size=5), st.integers(0, 3), st.sampled_from(["source", "all"]))
def test_pairs_on_columns_are_those_on_lists(
    tmp_path_factory: pytest.TempPathFactory, shards: list[Any], old: int, scope: str
) -> None:
    store, names = written(tmp_path_factory.mktemp("d"), shards)
    old = min(old, len(names))
    asked = Duplicates.model_validate(
        {"scope": scope, "min_similarity": None, "min_hash_similarity": 1 - 4 / 64}
    )
    compute, quiet = Compute(device="cpu"), Progress(quiet=True)
    tables = list(_find(asked, compute, quiet, store, names, old, Path(store.root)))
    found = [
        (row["image_id"], row["other_id"], row["kind"])
        for table in tables
        for row in table.to_pylist()
    ]
    assert found == row_by_row.found(store, names, old, scope)


def test_pixels_whose_hashes_look_equal_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": n, "pair": None, "pixels": p * 64, "hash": None} for n, p in enumerate("abca")]
    store, names = written(tmp_path, [("sd", "train", rows)])

    class Same:
        def values(self, column: pa.ChunkedArray) -> Any:
            return [1] * len(column)

    monkeypatch.setattr(module, "Digests", Same)
    seen = module._rows(store, names, 0, "all")
    pairs = gathered(module._equal_pixels(store, seen))
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0], [3])


def test_vectors_of_other_rows_than_the_plans_are_refused(tmp_path: Path) -> None:
    row = {"id": 1, "pair": None, "pixels": None, "hash": None}
    store, names = written(tmp_path, [("sd", "train", [row])])
    schema = embeddings_schema(2)
    other = pa.Table.from_pylist(
        [{"image_id": "0" * 32, "image_vector": [1.0, 0.0]}], schema=schema
    )
    store.write("embeddings", names[0], other, schema)
    with pytest.raises(AigiError, match="does not have the rows of the plan"):
        _vectors(store, names, tmp_path)
