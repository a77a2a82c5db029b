"""The plan in columns is the plan made row by row: every id, seed, shard and file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import plan as plans
from pipeline.plan import specification
from pipeline.plan.generated import RANKS, parts_of
from pipeline.plan.hashed import image_ids, joined, pair_ids, seeds
from pipeline.plan.ids import image_id_of, pair_id_of, seed_of, spans
from pipeline.plan.quotas import Plan, generations_of, shard_rows
from pipeline.plan.specification import PromptedSpec
from pipeline.plan.usable import Prompts, Stated
from pipeline.progress import Progress
from pipeline.prompts.text import SplitShares
from pipeline.store import Store
from pipeline.tables import OPTIONS, PLAN, PROMPTS, with_options
from tests.plan import row_by_row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['a "b"', "a\\b", "\x00\x1f\x7f", "\n\t\u2028", "ü😀", ""]
)
COMMIT = "0" * 40
NAMES = st.sampled_from(["none", "dwt-dct", "visible:x"])
ROW = st.fixed_dictionaries(
    {
        "text": TEXTS,
        "source": st.sampled_from(["sd", 's"d']),
        "model": TEXTS,
        "revision": TEXTS,
        "seed": st.none() | st.integers(0, 2**63 - 1),
        "steps": st.none() | st.integers(0, 50),
        "guidance_scale": st.none()
        | st.floats(width=64)
        | st.sampled_from([0.0, -0.0, 7.5, 1e16, 1e-7]),
        "negative_prompt": st.none() | TEXTS,
        "scheduler": st.none() | TEXTS,
        "dtype": st.none() | TEXTS,
        "width": st.none() | st.integers(1, 64),
        "height": st.none() | st.integers(1, 64),
        "watermark": NAMES,
        "path": st.none() | TEXTS,
        "index": st.integers(0, 9),
        "options": st.none() | TEXTS,
    }
)


@given(st.lists(ROW, max_size=12))
def test_ids_of_columns_are_those_of_rows(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=with_options(PLAN, True))
    expected = [image_id_of(row) for row in rows]
    assert expected == [row_by_row.image_id(row) for row in rows]
    assert image_ids(table).to_pylist() == expected
    assert image_ids(pa.concat_tables([table.slice(0, 3), table.slice(3)])).to_pylist() == expected
    bare = table.drop_columns([OPTIONS.name])
    without = [image_id_of({**row, "options": None}) for row in rows]
    assert image_ids(bare).to_pylist() == without


@given(
    st.lists(st.tuples(TEXTS, st.integers(0, 10**6)), max_size=9),
    st.sampled_from(["sd", "a:b"]),
    st.integers(-5, 2**64),
)
def test_seeds_of_columns_are_those_of_rows(
    rows: list[tuple[str, int]], source: str, salt: int
) -> None:
    import numpy as np

    found = seeds(
        pa.array([text for text, _ in rows], pa.string()),
        source,
        np.array([index for _, index in rows], np.int64),
        salt,
    )
    assert found.tolist() == [seed_of(text, source, index, salt) for text, index in rows]
    assert found.tolist() == [row_by_row.seed(text, source, index, salt) for text, index in rows]


def test_more_rows_than_are_hashed_at_once_keep_their_order() -> None:
    rows = [{"text": f"a {n}", "source": "sd", "path": f"{n}.png", "watermark": "none"}
            for n in range(20_000)]  # fmt: skip
    found = image_ids(pa.Table.from_pylist(rows)).to_pylist()
    assert found == [row_by_row.image_id(row) for row in rows]


@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.integers(0, 4))
def test_variants_share_the_id_of_the_unmarked_one(marks: list[str], images: int) -> None:
    ids = [f"{n}{mark}" for n in range(images) for mark in marks]
    expected = [
        pair_id_of({mark: f"{n}{mark}" for mark in marks}) for n in range(images) for _ in marks
    ]
    assert pair_ids(pa.array(ids, pa.string()), tuple(marks)).to_pylist() == expected


@given(st.lists(st.lists(st.sampled_from(["a", "b", ""]), max_size=4), max_size=3))
def test_joined_strings_are_those_of_python(parts: list[list[str]]) -> None:
    chunked = pa.chunked_array([pa.array(part, pa.string()) for part in parts], pa.string())
    assert joined(chunked) == ",".join(one for part in parts for one in part)


# --- Whole plans -------------------------------------------------------------------------------


def prompts(store: Store, count: int, shards: int = 3) -> None:
    """A prompts table with texts that JSON writes in its own way."""
    rows = [
        {
            "prompt_id": f"{number:032x}",
            "text": f'a "boat" {number}\\ü' if number % 3 else f"a boat {number}",
            "source": ("blip", "cc12m", "mine")[number % 3],
            "split": ("train", "train", "test", "train", "validation")[number % 5],
        }
        for number in range(count)
    ]
    size = -(-count // shards)
    for number in range(shards):
        mine = rows[number * size : (number + 1) * size]
        store.write("prompts", f"part-{number:05d}", pa.Table.from_pylist(mine, PROMPTS), PROMPTS)


def source(kind: str, **more: Any) -> dict[str, Any]:
    """A specification of one source."""
    sizes = {"train": {"count": 40}, "test": {"count": 7}, "validation": {"count": 0}}
    sides = {"width": 512, "height": 512}
    found: dict[str, Any] = {
        "title": "S", "licence": "l", "kind": kind,
        "splits": {split: {**size, **sides} for split, size in sizes.items()},
    }  # fmt: skip
    drawn = {"pipeline": "sd", "steps": 4, "guidance_scale": 5.0, "scheduler": "pndm"}
    if kind == "diffusers":
        found |= {"model": "org/m", "revision": COMMIT, **drawn}
    elif kind == "http":
        found |= {"model": "org/m", "seeds": True}
    else:
        found |= {
            "each": drawn,
            "models": [{"model": f"org/{n}", "revision": f"{n}" * 40, "train": 31 - 15 * n}
                       for n in range(3)],
            "images_per_model": {"test": 2, "validation": 0},
        }  # fmt: skip
        for size in found["splits"].values():
            del size["count"]
    return found | more


def check(folder: Path, spec: dict[str, Any], plan: dict[str, Any], rounds: list[int],
          stated: dict[str, str]) -> int:  # fmt: skip
    """Compare the shards of all splits with those made row by row; returns how many there are."""
    (folder / "d.yaml").write_text(
        yaml.safe_dump({"name": "d", "title": "D", "licence": "l", "sources": {"sd": spec}})
    )
    store = Store(str(folder / "run"))
    if not store.shards("prompts"):
        prompts(store, 90)
    settings = Plan.model_validate({"dataset": str(folder / "d.yaml"), **plan})
    found = specification.load(settings.dataset).sources["sd"]
    assert isinstance(found, PromptedSpec)
    options = found.row_options is not None
    counted = Prompts(store, Stated.of_mapping(stated))
    everything = row_by_row.prompts_of(store, stated)
    shards = 0
    for split, size in found.splits.items():
        planned = generations_of(size, settings)
        more = rounds if planned else []  # no round adds to what is not wanted
        expected = row_by_row.generated("sd", found, split, everything, settings, more, options)
        each = shard_rows(512, 512, len(size.watermarks), settings.shard_mb)
        parts = parts_of(
            "sd", found, split, counted.usable(split, found.captions), settings.seed, each,
            options, spans([planned, *more]),
        )  # fmt: skip
        made = dict(one for part in parts for one in part.shards())
        assert made.keys() == expected.keys()
        for name, table in made.items():
            assert table.schema == expected[name].schema
            assert table.to_pylist() == expected[name].to_pylist(), name
        shards += len(made)
    return shards


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["diffusers", "http", "zoo"]),
    marks=st.sampled_from([["none"], ["none", "dwt-dct"], ["dwt-dct", "none"], ["dwt-dct"]]),
    each=st.integers(1, 3),
    captions=st.none() | st.sampled_from([["blip"], ["cc12m", "blip"]]),
    rounds=st.lists(st.integers(0, 30), max_size=2),
    shard_mb=st.sampled_from([0.1, 3.0, 10.0]),
    seed=st.integers(0, 9),
    stated=st.dictionaries(
        st.integers(0, 120).map(lambda n: f"{n:032x}"), st.sampled_from(["train", "test"])
    ),
)
def test_a_plan_in_columns_is_the_plan_made_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, kind: str, marks: list[str], each: int,
    captions: list[str] | None, rounds: list[int], shard_mb: float, seed: int,
    stated: dict[str, str],
) -> None:  # fmt: skip
    """Whatever the source, its marks, laps over the prompts, rounds, shards and stated splits."""
    spec = source(kind, images_per_prompt=each, captions=captions)
    for size in spec["splits"].values():
        size["watermarks"] = marks
    if kind == "http":
        spec |= {"seeds": each > 1, "request": {"quality": 'h"d'} if each == 2 else {}}
    folder = tmp_path_factory.mktemp("plan")
    assert check(folder, spec, {"shard_mb": shard_mb, "seed": seed}, rounds, stated)


def test_a_zoo_deals_blocks_of_ranks_and_keeps_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.plan.generated._BLOCK", 7)
    assert check(tmp_path, source("zoo"), {"shard_mb": 3.0}, [11], {}) > 15


def test_parts_of_a_source_begin_at_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.generated.RANKS", 11)
    assert check(tmp_path, source("diffusers"), {"shard_mb": 3.0}, [25], {}) > 8
    assert RANKS > 11


def test_files_of_a_plan_are_those_of_its_rows(tmp_path: Path) -> None:
    """The whole stage, down to the bytes."""
    store, other = Store(str(tmp_path / "run")), Store(str(tmp_path / "other"))
    prompts(store, 90)
    whole = {"name": "d", "title": "D", "licence": "l", "sources": {"sd": source("diffusers")}}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(whole))
    settings = Plan(dataset=str(tmp_path / "d.yaml"), shard_mb=3.0)
    built = plans.stage(settings, {}, SplitShares()).build(store, Progress(io.StringIO()))
    spec = specification.load(settings.dataset).sources["sd"]
    assert isinstance(spec, PromptedSpec)
    everything = row_by_row.prompts_of(store, {})
    expected = [
        other.write("plan", name, table, PLAN)
        for split in ("train", "validation", "test")
        for name, table in row_by_row.generated(
            "sd", spec, split, everything, settings, [], False
        ).items()
    ]
    assert [(one.name, one.rows, one.sha256) for one in built] == [
        (one.name, one.rows, one.sha256) for one in expected
    ]
