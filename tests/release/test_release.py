"""Selection and release: quotas met exactly, pairs whole, no prompt in two splits."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.pixels import pixels_sha256, png_bytes
from pipeline.progress import Progress
from pipeline.release import release
from pipeline.selection import selection
from pipeline.selection.kept import release_names
from pipeline.settings import check
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, RELEASE

SPEC = """
name: small
title: Small
licence: l
sources:
  sd:
    title: SD
    licence: l
    kind: diffusers
    pipeline: sd
    model: test/sd
    revision: r
    scheduler: ddim
    steps: 2
    guidance_scale: 5.0
    splits:
      test: {count: 3, width: 64, height: 64, watermarks: [none, dwt-dct]}
      train: {count: 4, width: 64, height: 64}
"""

PIXELS = np.full((4, 4, 3), 90, np.uint8)
GREY = {
    "image": {"bytes": png_bytes(PIXELS), "path": None},
    "width": 4,
    "height": 4,
    "pixels_sha256": pixels_sha256(PIXELS),
}


def made(folder: Path, failed: set[tuple[str, int, str]], planned: int = 6) -> tuple[Any, Store]:
    """A run with a plan and images; `failed` names (split, rank, watermark)."""
    (folder / "spec.yaml").write_text(SPEC)
    data = {"run": str(folder / "run"), "plan": {"dataset": str(folder / "spec.yaml")}}
    workflow = check(workflows.Workflow, data, str(folder / "flow.yaml"))
    store = Store(workflow.run)
    for split, marks in (("test", ["none", "dwt-dct"]), ("train", ["none"])):
        for shard in range(2):
            rows = [
                {
                    "image_id": f"{split}{rank}{mark}",
                    "pair_id": f"{split}{rank}none" if len(marks) > 1 else None,
                    "prompt_id": f"{split}{rank}",
                    "source": "sd",
                    "split": split,
                    "rank": rank,
                    "watermark": mark,
                }
                for rank in range(shard * planned // 2, (shard + 1) * planned // 2)
                for mark in marks
            ]
            images = [
                {"image_id": row["image_id"], "error": "black"}
                if (row["split"], row["rank"], row["watermark"]) in failed
                else {"image_id": row["image_id"], **GREY}
                for row in rows
            ]
            name = f"sd-{split}-{shard:05d}"
            store.write("plan", name, pa.Table.from_pylist(rows, schema=PLAN), PLAN)
            store.write("images", name, pa.Table.from_pylist(images, schema=IMAGES), IMAGES)
    return workflow, store


def select(workflow: Any, store: Store) -> tuple[dict[str, str | None], str]:
    said = io.StringIO()
    stage = selection.stage(workflow.rules, workflow.planned("selection"), workflow.scored)
    stage.build(store, Progress(said))
    rows = store.read_all("selection").to_pylist()
    assert all(row["keep"] == (row["reason"] is None) for row in rows)
    return {row["image_id"]: row["reason"] for row in rows}, said.getvalue()


def test_spare_images_replace_failed_ones_and_the_rest_is_surplus(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, {("train", 1, "none"), ("test", 0, "dwt-dct")})
    reasons, said = select(workflow, store)
    assert [reasons[f"train{i}none"] for i in range(6)] == [
        None, "failed", None, None, None, "surplus",
    ]  # fmt: skip
    for mark in ("none", "dwt-dct"):
        assert [reasons[f"test{i}{mark}"] for i in range(6)] == [
            "failed", None, None, None, "surplus", "surplus",
        ]  # fmt: skip
    assert "10 of 18 images kept, 3 failed, 5 surplus" in said
    assert "wanted" not in said


def test_a_shortage_is_said(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, {("train", rank, "none") for rank in range(4)})
    _, said = select(workflow, store)
    assert "sd train: kept 2, quota 4; raise plan.margin" in said


@settings(max_examples=25, deadline=None)
@given(
    st.sets(
        st.one_of(
            st.tuples(st.just("train"), st.integers(0, 5), st.just("none")),
            st.tuples(st.just("test"), st.integers(0, 5), st.sampled_from(["none", "dwt-dct"])),
        )
    )
)
def test_selection_partitions_the_plan(
    tmp_path_factory: pytest.TempPathFactory, failed: set[tuple[str, int, str]]
) -> None:
    workflow, store = made(tmp_path_factory.mktemp("s"), failed)
    reasons, _ = select(workflow, store)
    plan = store.read_all("plan").to_pylist()
    assert set(reasons) == {row["image_id"] for row in plan}
    kept = Counter(row["split"] for row in plan if reasons[row["image_id"]] is None)
    bad = {split: {rank for s, rank, _ in failed if s == split} for split in ("train", "test")}
    assert kept["train"] == min(4, 6 - len(bad["train"]))
    assert kept["test"] == 2 * min(3, 6 - len(bad["test"]))
    for row in plan:
        if row["pair_id"]:
            assert reasons[row["image_id"]] == reasons[row["pair_id"]]


def test_rows_that_do_not_match_the_plan_are_refused(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, set())
    other = store.read("images", "sd-train-00001")
    store.write("images", "sd-train-00000", other, IMAGES)
    with pytest.raises(AigiError, match=r"sd-train-00000\.parquet does not have the rows"):
        select(workflow, store)


def test_only_kept_rows_are_released(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, {("train", 1, "none"), ("test", 0, "dwt-dct")})
    reasons, _ = select(workflow, store)
    released = [
        row["image_id"]
        for name in release._names(store)
        for row in release._read(store, name).to_pylist()
    ]
    assert sorted(released) == sorted(name for name, why in reasons.items() if why is None)


def test_a_prompt_in_two_splits_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for split, prompts in (("test", ["a", "b"]), ("train", ["c", "b"])):
        rows = [{"image_id": f"{split}{p}", "prompt_id": p} for p in prompts]
        (name,) = release_names({("sd", split): [f"sd-{split}-00000"]})
        store.write("release", name, pa.Table.from_pylist(rows, schema=RELEASE), RELEASE)
    names = ["sd/test-00000", "sd/train-00000"]
    release._check_splits(store, names[:1])
    with pytest.raises(AigiError, match="prompt b is in test and in train"):
        release._check_splits(store, names)


def test_features_are_those_of_datasets() -> None:
    from datasets import Features, Image

    features = Features.from_arrow_schema(release.release_schema())
    assert features["image"] == Image()
    assert list(features) == RELEASE.names
