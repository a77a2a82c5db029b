"""The plan: published counts, one split a prompt, seeds and ids that are hashes."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import estimate
from pipeline.pictures.sources import ImportSource
from pipeline.plan import imports, plan, quotas, specification
from pipeline.progress import Progress
from pipeline.prompts import prompts
from pipeline.running import run_stages
from pipeline.stage import Stage
from pipeline.store import Store
from tests.conftest import ROOT, WorkflowMaker, aigi_here

PKU = ROOT / "manifests" / "pku-aigi-500k.yaml"


def planned(path: Path, *overrides: str) -> tuple[list[dict[str, Any]], Store]:
    workflow = workflows.load(path, overrides)
    store = Store(workflow.run)
    stages: list[Stage] = []
    if workflow.prompts is not None:
        stages += prompts.stages(workflow.prompts, workflow.split, workflow.compute)
    stages.append(plan.stage(workflow.planned("plan"), workflow.sources, workflow.split))
    run_stages(stages, store, workflow.compute, Progress(io.StringIO()))
    rows: list[dict[str, Any]] = []
    for shard in store.shards("plan"):
        table = store.read("plan", shard)
        # A shard has one source, one split and one size.
        for column in ("source", "split", "width", "height"):
            assert len(table[column].unique()) == 1
        rows += table.to_pylist()
    return rows, store


def test_published_counts() -> None:
    dataset = specification.load(str(PKU))
    counts = {
        (name, split): spec.images
        for name, source in dataset.sources.items()
        for split, spec in source.splits.items()
    }
    assert counts == {
        ("sd21-base", "train"): 202_265,
        ("sd21-base", "validation"): 40,
        ("sd21-base", "test"): 40,
        ("sd21", "train"): 203_242,
        ("sd21", "validation"): 40,
        ("sd21", "test"): 40,
        ("sdxl", "train"): 105_554,
        ("sdxl", "validation"): 20,
        ("sdxl", "test"): 80,
        ("mj52", "train"): 13_240,
        ("mj52", "validation"): 10,
        ("mj52", "test"): 25,
        ("mod", "train"): 3_670,
        ("mod", "validation"): 5,
        ("mod", "test"): 25,
    }


def test_dry_run_prints_the_table_without_torch() -> None:
    code = (
        "import sys\nfrom pipeline.cli import app\n"
        "try:\n    app(['run', 'workflows/regenerate.yaml', '--dry-run'])\n"
        "except SystemExit as stop:\n    assert stop.code == 1, stop.code\n"
        "assert not {'torch', 'diffusers', 'ray', 'datasets', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("202,265", "203,242", "105,554", "13,240", "3,670", "2048x1024"):
        assert part in done.stdout
    assert "train: 527,971 images" in done.stdout
    assert "test: 210 images" in done.stdout
    assert "cc12m.tsv: no such file" in done.stderr, "none of its inputs is here"


def test_dry_run_and_plan_agree(make_workflow: WorkflowMaker) -> None:
    path = make_workflow()
    rows, store = planned(path, "plan.margin=0.2")
    lines = estimate(workflows.load(path, ["plan.margin=0.2"]))
    for line in lines:
        mine = [row for row in rows if (row["source"], row["split"]) == (line.source, line.split)]
        assert len(mine) == line.planned
        shards = [name for name in store.shards("plan") if name.startswith(
            f"{line.source}-{line.split}-")]  # fmt: skip
        assert len(shards) == line.shards


def test_a_prompt_is_in_one_split_over_all_sources(make_workflow: WorkflowMaker) -> None:
    rows, _ = planned(make_workflow())
    splits = defaultdict(set)
    sources = defaultdict(set)
    for row in rows:
        splits[row["prompt_id"]].add(row["split"])
        sources[row["prompt_id"]].add(row["source"])
    assert all(len(found) == 1 for found in splits.values())
    assert any(len(found) == 2 for found in sources.values()), "the sources share prompts"


def test_ids_and_seeds(make_workflow: WorkflowMaker) -> None:
    rows, _ = planned(make_workflow())
    assert len({row["image_id"] for row in rows}) == len(rows)
    generations = {(row["source"], row["prompt_id"], row["index"]): row["seed"] for row in rows}
    assert len(set(generations.values())) == len(generations)
    assert all(0 <= seed < 2**63 for seed in generations.values())
    sd = [row for row in rows if row["source"] == "sd" and row["split"] == "train"]
    assert [row["rank"] for row in sd] == list(range(24))
    assert [row["index"] for row in sd] == [0, 1] * 12


def test_the_pair_shares_everything_but_the_watermark(make_workflow: WorkflowMaker) -> None:
    rows, _ = planned(make_workflow())
    pairs = defaultdict(list)
    for row in rows:
        if row["pair_id"]:
            pairs[row["pair_id"]].append(row)
    assert len(pairs) == 3
    for name, (plain, marked) in pairs.items():
        assert (plain["watermark"], marked["watermark"]) == ("none", "dwt-dct")
        assert plain["image_id"] == name != marked["image_id"]
        for field in plain.keys() - {"image_id", "watermark"}:
            assert plain[field] == marked[field]


def test_same_input_same_bytes_and_a_seed_changes_all(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    path = make_workflow()
    _, one = planned(path, f"run={tmp_path}/one")
    _, two = planned(path, f"run={tmp_path}/two")
    for shard in one.shards("plan"):
        assert one.sha256("plan", f"{shard}.parquet") == two.sha256("plan", f"{shard}.parquet")
    first, _ = planned(path, f"run={tmp_path}/one")
    other, _ = planned(path, f"run={tmp_path}/three", "plan.seed=1")
    assert not {row["seed"] for row in first} & {row["seed"] for row in other}
    assert not {row["image_id"] for row in first} & {row["image_id"] for row in other}


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 3), ("guidance_scale", 4.0), ("scheduler", "euler"), ("dtype", "bfloat16"),
     ("negative_prompt", "blurry"), ("revision", "seed-7"), ("model", "test/other")],
)  # fmt: skip
def test_every_field_that_decides_pixels_is_in_the_id(
    make_workflow: WorkflowMaker, tmp_path: Path, field: str, value: object
) -> None:
    path = make_workflow()
    before, _ = planned(path, f"run={tmp_path}/before")
    data = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    data["sources"]["sd"][field] = value
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(data))
    after, _ = planned(path, f"run={tmp_path}/after")
    ids = [{row["image_id"] for row in rows if row["source"] == "sd"} for rows in (before, after)]
    assert not ids[0] & ids[1]
    with pytest.raises(AigiError, match=rf"dataset\.sd\.{field}: .* -> {value}"):
        planned(path, f"run={tmp_path}/before")


def test_too_few_prompts_say_what_to_do(make_workflow: WorkflowMaker) -> None:
    path = make_workflow()
    with pytest.raises(AigiError) as error:
        planned(path, "split.test=0.0", "split.validation=0.0")
    text = str(error.value)
    assert "sd test: needs 1 test prompts (2 images, 2 per prompt)" in text
    assert "split.test" in text


def test_limit_and_sources(make_workflow: WorkflowMaker) -> None:
    rows, _ = planned(make_workflow(), "plan.limit=2", "plan.sources=[sdxl]")
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        counts[row["source"], row["split"]] += 1
    assert counts == {("sdxl", "train"): 2, ("sdxl", "test"): 4}
    with pytest.raises(AigiError, match=r"plan\.sources: 'sdd' is not in .* sd, sdxl"):
        planned(make_workflow("other"), "plan.sources=[sdd]")


def test_a_branch_needs_the_hub_or_a_folder(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    path = make_workflow(sources={})
    data = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    data["sources"]["sd"]["revision"] = "main"
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(AigiError, match=r"cannot look up revision 'main' of test/tiny-sd"):
        planned(path)


@given(st.integers(8, 4096), st.integers(8, 4096), st.integers(1, 3), st.floats(0.01, 200.0))
def test_shards_stay_below_the_release_limit(
    width: int, height: int, variants: int, shard_mb: float
) -> None:
    rows = quotas.shard_rows(width, height, variants, shard_mb)
    assert rows >= 1
    # Noise takes 3 bytes a pixel and a little; a release file may have 500 MB.
    assert rows == 1 or rows * variants * width * height * 3.1 < 500e6


IMPORTED = """
name: imported
title: Imported
licence: l
sources:
  mj:
    title: MJ
    licence: l
    kind: import
    model: closed
    splits:
      train: {width: 32, height: 32}
      test: {width: 32, height: 32}
  sd:
    title: SD
    licence: l
    kind: diffusers
    pipeline: sd
    model: test/tiny-sd
    revision: 0123456789abcdef0123456789abcdef01234567
    scheduler: ddim
    steps: 2
    guidance_scale: 5.0
    splits:
      train: {count: 8, width: 64, height: 64}
"""


def import_workflow(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Pictures with (file, text, split), and a workflow that plans them beside `sd`."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    with (pictures / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "text", "split"), *rows])
    for name, _, _ in rows:
        Image.new("RGB", (32, 32), "red").save(pictures / name)
    (folder / "imported.yaml").write_text(IMPORTED)
    (folder / "texts.txt").write_text(
        "".join(f"a red boat number {i}x on a lake\n" for i in range(9))
    )
    path = folder / "import.yaml"
    flow = {
        "run": "run",
        "split": {"validation": 0.0, "test": 0.0},
        "prompts": {"sources": [{"kind": "text", "path": "texts.txt"}], "near_duplicates": None},
        "plan": {"dataset": "imported.yaml"},
        "sources": {
            "mj": {
                "kind": "import",
                "path": "pictures",
                "captions": "pictures/captions.csv",
                "split_column": "split",
            }
        },
    }
    path.write_text(yaml.safe_dump(flow))
    return path


def test_stated_splits_win_over_the_hash_for_all_sources(tmp_path: Path) -> None:
    shared_prompt = "a red boat number 3x on a lake"
    path = import_workflow(
        tmp_path,
        [
            ("a.png", shared_prompt, "test"),
            ("b.png", "a castle on a hill", "train"),
            ("c.png", "a  castle on a hill", "test"),
            ("d.png", "a castle by the sea", "trian"),
            ("e.png", " ", "train"),
        ],
    )
    rows, store = planned(path, "plan.sources=[mj, sd]")
    mj = {row["path"]: row["split"] for row in rows if row["source"] == "mj"}
    assert mj == {"a.png": "test", "c.png": "test"}, "of two splits, the held-out one"
    sd = [row["text"] for row in rows if row["source"] == "sd"]
    assert len(sd) == 8, "all nine but the one that is held out"
    assert shared_prompt not in sd
    reasons = {
        row["file"].rpartition(":")[2]: row["reason"]
        for row in store.read("rejects", "plan").to_pylist()
    }
    assert reasons["b.png"].startswith("split: listed as train, but its prompt is in test")
    assert reasons["d.png"] == "unknown split: trian"
    assert reasons["e.png"] == "no caption"


def test_an_import_without_a_place_is_named(tmp_path: Path) -> None:
    path = import_workflow(tmp_path, [("a.png", "a castle on a hill", "train")])
    data = yaml.safe_load(path.read_text())
    del data["sources"]
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(AigiError, match=r"--set sources\.mj\.path=FOLDER_OR_ZIP"):
        planned(path)


def test_open_sizes_of_damaged_pictures(tmp_path: Path) -> None:
    """Their rows say what is wrong with them; the plan only wants to know how large they are."""
    out = io.BytesIO()
    Image.new("RGB", (32, 16), "red").save(out, "PNG")
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, out.getvalue())
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX", 1))
    source = ImportSource(kind="import", path=str(path))
    sizes = imports._pixels(source, ["a.png", "b.png"], None, None)
    assert sizes == [imports.UNKNOWN_PIXELS, 32 * 16]


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"]])
def test_a_source_that_the_specification_does_not_have_is_an_error(
    make_workflow: WorkflowMaker, tmp_path: Path, models: Path, command: list[str]
) -> None:
    """Its settings would decide nothing, without a word."""
    folder = {"folder": str(models / "sd"), "batch_size": 3}
    path = make_workflow(sources={"sdd": folder, "sdxl": {"folder": str(models / "sdxl")}})
    done = aigi_here(command[0], str(path), *command[1:])
    assert done.returncode == 1
    assert f'sources.sdd: no source of {tmp_path}/dataset.yaml; did you mean "sd"?' in done.stderr
    assert not (tmp_path / "run" / "plan").exists()
