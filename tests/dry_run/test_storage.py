"""What a dry run says of disk, downloads and the Hub is what a run then takes, or `unknown`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import workflow as workflows
from pipeline.build import estimate
from pipeline.demo import TINY
from pipeline.dry_run import disk as disks
from pipeline.dry_run import storage as storages
from pipeline.dry_run.disk import DOCUMENTS, WITHIN, Stored, disk, peak
from pipeline.dry_run.limits import limits_hit
from pipeline.dry_run.rows import file_bytes, table_bytes
from pipeline.images.diffusion.pipelines import loaded_files
from pipeline.pixels import Format
from pipeline.plan import quotas
from pipeline.store import Store
from pipeline.tables import PLAN, QUALITY, embeddings_schema
from pipeline.workflow import Workflow
from tests.conftest import ROOT, aigi, aigi_here
from tests.hub import serve
from tests.release import rich


def loaded(path: Path, *overrides: str) -> Workflow:
    return workflows.load(path, overrides)


def stages(workflow: Workflow) -> dict[str, Stored]:
    return {one.stage: one for one in disk(workflow, estimate(workflow))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow of all stages without further rounds, and its finished run."""
    folder = tmp_path_factory.mktemp("disk")
    path = rich.workflow(folder)
    done = aigi("run", str(path), "--set", "selection.rounds=0", "--allow-fewer", "--quiet")
    assert done.returncode == 0, done.stderr
    return path


def size_of(run: Path, stage: str) -> int:
    """Bytes of a stage in a run, as the file system has them."""
    if stage == "documents":
        return sum((run / "release" / name).stat().st_size for name in DOCUMENTS)
    if stage == "records":
        return sum(file.stat().st_size for file in (run / "_stages").glob("*.json"))
    return sum(file.stat().st_size for file in (run / stage).rglob("*.parquet"))


# --- disk ----------------------------------------------------------------------------------------


def pixels_of(run: Path) -> float:
    """Bytes of the files of images for each pixel of them."""
    store, size, pixels = Store(str(run)), 0, 0
    for shard in store.shards("images"):
        for row in store.read("images", shard, ["image", "width", "height"]).to_pylist():
            size += len(row["image"]["bytes"])
            pixels += row["width"] * row["height"]
    return size / pixels


def test_the_estimate_of_each_stage_is_within_the_stated_factor(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is not there yet, with the bytes a pixel that its images turn out to have."""
    run = made.parent / "run"
    each = pixels_of(run)
    usual: dict[Format, float] = {"png": each, "webp": each}
    monkeypatch.setattr(quotas, "BYTES_PER_PIXEL", usual)
    found = stages(loaded(made, f"run={made.parent / 'not-there'}"))
    assert not (made.parent / "not-there").exists()
    assert found.keys() >= {
        "prompts", "plan", "images", "embeddings", "quality", "selection", "release", "documents",
    }  # fmt: skip
    told = {}
    for name, stage in found.items():
        assert stage.there == 0
        if name in ("rejects", "duplicates", "release"):
            continue
        if name in ("lines", "texts"):  # at most
            assert stage.bytes >= size_of(run, name) - 4096
            continue
        told[name] = stage.bytes / size_of(run, name)
    # Those that the plan needs: nobody said how many to choose. The rest counts as captions.
    assert told.pop("prompts") < WITHIN
    assert found["prompts"].bytes + found["rejects"].bytes > size_of(run, "prompts")
    assert all(1 / WITHIN < share < WITHIN for share in told.values()), told
    # The selection dropped some of what was wanted; what is wanted is what is estimated.
    kept = Store(str(run)).record("release")
    assert kept is not None
    rows = sum(one.rows for one in kept.shards.values())
    share = found["release"].bytes / (found["release"].rows or 1) * rows / size_of(run, "release")
    assert 1 / WITHIN < share < WITHIN
    assert found["rejects"].bytes >= size_of(run, "rejects") - 4096  # with an empty table of each


def test_a_finished_run_has_nothing_to_write(made: Path) -> None:
    found = stages(loaded(made, "selection.rounds=0"))
    for name, stage in found.items():
        assert stage.there == size_of(made.parent / "run", name), name
        assert stage.bytes == stage.there or name == "records", name
        assert stage.counted, name


def test_of_a_half_made_run_the_rest_is_to_be_written(made: Path, tmp_path: Path) -> None:
    """As it is after a kill: a table whose record has a part of the shards."""
    run = shutil.copytree(made.parent / "run", tmp_path / "run")
    record = json.loads((run / "_stages" / "images.json").read_text())
    gone = sorted(record["shards"])[::2]
    rows = sum(record["shards"].pop(name)["rows"] for name in gone)
    for name in gone:
        (run / "images" / f"{name}.parquet").unlink()
    (run / "_stages" / "images.json").write_text(json.dumps({**record, "status": "stopped"}))
    whole = stages(loaded(made))["images"]
    found = stages(loaded(made, f"run={run}"))["images"]
    assert found.there < whole.there and found.rows == whole.rows
    fresh = stages(loaded(made, f"run={tmp_path / 'fresh'}"))["images"]
    each = fresh.bytes / (fresh.rows or 1)
    assert found.bytes - found.there == pytest.approx(each * rows, rel=0.1)


def test_the_peak_has_the_release_beside_the_images_only_where_it_copies_them(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"run={made.parent / 'not-there'}"
    copied, moved = (loaded(made, place, f"release.pixels={kind}") for kind in ("copied", "moved"))
    lines = estimate(copied)
    kept = sum(line.images for line in lines) / sum(line.planned for line in lines)
    copy = sum(line.gigabytes or 0 for line in lines) * 1e9 * kept
    monkeypatch.setattr(disks, "WAVE", 0)
    found = disk(copied, lines)
    assert peak(found) == sum(one.bytes for one in found)
    assert next(one for one in found if one.stage == "images").passing > 0
    assert peak(found) - peak(disk(moved, lines)) == pytest.approx(copy)
    # A few shards are in both places for a while: of a run this small, all.
    monkeypatch.undo()
    assert peak(disk(moved, lines)) > peak(found) - copy / 2


def test_what_passes_counts_at_its_time_alone() -> None:
    one = Stored("images", 1, 1, 100, 40, passing=70)
    two = Stored("release", 1, 1, 30, 0, passing=5)
    assert peak([one]) == 170
    assert peak([one, two]) == 170
    assert peak([one, Stored("release", 1, 1, 90, 0, passing=5)]) == 195
    assert peak([]) == 0


def test_an_import_without_a_count_makes_everything_at_least(tmp_path: Path) -> None:
    path = rich.workflow(tmp_path)
    data = yaml.safe_load((tmp_path / "rich.yaml").read_text())
    data["sources"]["mj52"]["splits"] = {"train": {}}
    (tmp_path / "rich.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    found = stages(loaded(path))
    assert not found["images"].counted and not found["release"].counted
    done = aigi_here("run", str(path), "--dry-run")
    assert "disk at its peak: at least " in done.stdout
    assert "files of the release: at least " in done.stdout


def test_a_damaged_record_is_one_line(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made.parent / "run", tmp_path / "run")
    (run / "_stages" / "quality.json").write_text("{")
    done = aigi_here("run", str(made), "--set", f"run={run}", "--dry-run")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "quality.json: not JSON" in line and "Traceback" not in line


@given(st.integers(1, 4000), st.integers(1, 9))
def test_more_rows_take_more_bytes_and_more_files_too(rows: int, files: int) -> None:
    schema = pa.schema([QUALITY.field("image_id"), QUALITY.field("black")])
    one = table_bytes(schema, rows, files)
    assert table_bytes(schema, rows + 500, files) > one
    # Other cuts of the same rows compress a little better or worse.
    assert table_bytes(schema, rows, files + 1) >= 0.99 * one
    assert table_bytes(schema, 0, files) == table_bytes(schema, rows, 0) == 0


def test_long_files_are_estimated_from_short_ones() -> None:
    """At the size of the shards of a real dataset, too."""
    import io

    from pipeline.dry_run.rows import typical
    from pipeline.parquet import Hashing, no_notes, write_parquet

    for schema in (PLAN, embeddings_schema(32)):
        sink = Hashing(io.BytesIO())
        write_parquet(sink, [typical(schema, 6000)], schema, no_notes)
        assert file_bytes(schema, 6000) == pytest.approx(sink.bytes, rel=0.05)


def test_files_of_a_release_name_their_features_in_about_as_many_bytes() -> None:
    from pipeline.release.release import release_schema

    schema = release_schema(options=True)
    assert schema.metadata is not None
    assert len(schema.metadata[b"huggingface"]) == pytest.approx(50 * len(schema), rel=0.15)


# --- space ---------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def test_what_does_not_fit_is_warned_of(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = loaded(made, f"run={made.parent / 'not-there' / 'below'}")
    lines = estimate(workflow)

    def said(free: int) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9, 9, free))
        return "\n".join(p for p in storages.storage(workflow, lines) if isinstance(p, str))

    need = peak(disk(workflow, lines))
    assert "WARNING" not in said(int(2 * need))
    text = said(1000)
    assert f"WARNING: this does not fit: {made.parent} has 1.0 kB free" in text
    assert "lower plan.limit" in text


def test_of_a_finished_run_nothing_more_is_needed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = loaded(made)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9, 9, 200_000))
    found = storages.storage(workflow, estimate(workflow))
    assert not [part for part in found if isinstance(part, str) and "WARNING" in part]


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"),
     (1.25e12, "1.2 TB"), (3e15, "3,000.0 TB")],
)  # fmt: skip
def test_sizes_have_a_unit(size: float | None, text: str) -> None:
    assert storages.shown_bytes(size) == text


# --- the Hub's limits ----------------------------------------------------------------------------


def test_each_limit_is_named_where_it_is_hit_and_not_before() -> None:
    def hit(**changes: Any) -> list[str]:
        most: dict[str, Any] = {
            "folders": {f"s{number}": 10_000 for number in range(9)}, "documents": 10_000,
            "size": 100e9, "largest": 50e9,
        }  # fmt: skip
        return list(limits_hit(**{**most, **changes}))

    assert hit() == []
    (line,) = hit(folders={"sdxl": 10_001}, documents=5)
    assert line.startswith("the Hub: files in a folder: 10,000; sdxl: 10,001 are planned. Raise")
    (line,) = hit(documents=10_001)
    assert line.startswith("the Hub: files in a repository: 100,000; 100,001 are planned.")
    (line,) = hit(largest=51e9)
    assert line.startswith("the Hub: a file: 50 GB; 51.0 GB are planned.")
    (line,) = hit(size=100.1e9)
    assert "private storage on a free account: 100 GB; 100.1 GB are planned" in line
    assert "--public" in line


def test_the_published_dataset_would_not_be_private_on_a_free_account(tmp_path: Path) -> None:
    """And small shards would be too many files."""
    done = aigi_here(
        "run", "workflows/regenerate.yaml", "--dry-run", "--set", f"run={tmp_path}",
        "--set", "plan.shard_mb=2",
    )  # fmt: skip
    assert done.returncode == 1 and "no such file" in done.stderr, "its captions are not here"
    assert "WARNING: the Hub: private storage on a free account: 100 GB" in done.stdout
    assert "WARNING: the Hub: files in a folder: 10,000; sd21-base: 41," in done.stdout
    assert "WARNING: the Hub: files in a repository: 100,000; " in done.stdout
    assert "307.1" in done.stdout, "GPU-hours beside"


# --- downloads -----------------------------------------------------------------------------------

FETCH = """
import sys, os, json
from pathlib import Path
import diffusers
from pipeline.images.diffusion.places import pipeline_folder, place_of, given_of
from pipeline.images.diffusion.pipelines import runner
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.models.weights import INDEX, read_index
from pipeline.plan import specification
spec = specification.load(sys.argv[1]).sources["art"]
place = place_of("art", spec, DiffusersSource())
index = read_index(place, place.fetch(INDEX))
run = runner(place, index, spec.pipeline)
folder = place.repository and str(run.kind.download(
    place.repository, revision=place.revision, use_safetensors=True, variant=spec.variant,
    **given_of(run, spec, DiffusersSource())))
files = [path for path in Path(folder).rglob("*") if path.is_file()]
print(sum(path.stat().st_size for path in files))
"""

UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("org/model")
HfApi().upload_folder(repo_id="org/model", folder_path=sys.argv[1])
"""


def python(code: str, *arguments: object, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as many are: with pickles, a variant, an ema, and components that nobody asks for."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(TINY / "weights" / "sd", folder)
    unet = folder / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema"):
        shutil.copy(weights, unet / f"{name}.safetensors")
    with (unet / "diffusion_pytorch_model.fp16.safetensors").open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"p" * 5000)
    (folder / "unet_onnx").mkdir()
    (folder / "unet_onnx" / "model.onnx").write_bytes(b"o" * 7000)
    (folder / "v1.ckpt").write_bytes(b"c" * 9000)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"s" * 3000)
    return folder


def flow(folder: Path, **changes: Any) -> Path:
    """A workflow of one source of the Hub."""
    art = {**rich.SPECIFICATION["sources"]["art"], "model": "org/model", "revision": "main"}
    del art["options"]
    (folder / "set.yaml").write_text(
        yaml.safe_dump(
            {"name": "s", "title": "t", "licence": "l", "sources": {"art": art | changes}}
        )
    )
    (folder / "flow.yaml").write_text(
        yaml.safe_dump({"run": "run", "plan": {"dataset": "set.yaml"}, "images": {}})
    )
    return folder / "flow.yaml"


@pytest.mark.parametrize("variant", [None, pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_bytes_to_download_are_those_that_are_then_downloaded(
    repository: Path, tmp_path: Path, variant: str | None
) -> None:
    path = flow(tmp_path, **({} if variant is None else {"variant": variant}))
    ask = (
        "import sys; from pipeline import workflow; from pipeline.dry_run.downloads import *;"
        "found, silent = downloads(workflow.load(sys.argv[1]));"
        "print(*[f'{one.bytes}|{one.why}' for one in found], silent)"
    )
    with serve(tmp_path / "hub") as hub:
        env = hub.environment()
        python(UPLOAD, repository, env=env)
        asked = hub.environment()
        before = python(ask, path, env=asked)
        index = (repository / "model_index.json").stat().st_size
        got = int(python(FETCH, tmp_path / "set.yaml", env=env))
        after = python(ask, path, env=env)
    stated, why = before.split("|")
    # The index was fetched to know which files there are.
    assert why.strip() == "the rest is in the cache"
    assert int(stated) + index == pytest.approx(got, rel=0.01)
    assert after.strip() == "0|in the cache"


def test_nobody_says_nothing_of_what_the_hub_does_not_tell(tmp_path: Path) -> None:
    path = flow(tmp_path)
    with serve(tmp_path / "hub") as hub:
        done = aigi("run", str(path), "--dry-run", **hub.environment())
        assert done.returncode == 0, done.stderr
        assert "to download: unknown" in done.stdout and "org/model@main" in done.stdout
        assert "does not answer" not in done.stdout  # it said that there is no such model
        away = hub.environment(HF_ENDPOINT="http://127.0.0.1:9")
    done = aigi("run", str(path), "--dry-run", **away)
    assert done.returncode == 0, done.stderr
    assert "to download: unknown" in done.stdout
    assert "the Hub does not answer: " in done.stdout
    offline = aigi("run", str(path), "--dry-run", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "to download: unknown" in offline.stdout and " 0 B; " not in offline.stdout


def test_folders_of_this_machine_are_not_downloaded(made: Path) -> None:
    done = aigi_here("run", str(made), "--dry-run")
    assert "to download: nothing; all models are in folders of this machine" in done.stdout


def test_captions_of_the_hub_count_whole_and_are_not_stored(tmp_path: Path) -> None:
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi();"
        "api.create_repo('org/captions', repo_type='dataset');"
        "api.upload_file(repo_id='org/captions', repo_type='dataset', path_in_repo='c.csv',"
        "path_or_fileobj=b'text\\n' + 400 * b'a red boat on a lake\\n')"
    )
    path = rich.workflow(
        tmp_path,
        prompts={"sources": [{"kind": "hub", "dataset": "org/captions", "column": "text"}]},
    )
    with serve(tmp_path / "hub") as hub:
        env = hub.environment()
        python(upload, env=env)
        done = aigi("run", str(path), "--dry-run", **env)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "org/captions@main" in line)
    assert "9.4 kB" in line and "at most; read, not stored" in line
    assert "the cache of the Hub" not in done.stdout


@given(st.sets(st.sampled_from(["unet", "vae", "text_encoder"])), st.booleans())
def test_given_components_are_not_downloaded(given_parts: set[str], variant: bool) -> None:
    index = {
        "_class_name": "X", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"],
        "text_encoder": ["transformers", "T"], "safety_checker": [None, None],
        "tokenizer": ["transformers", "K"],
    }  # fmt: skip
    names = [
        "model_index.json", "README.md", "tokenizer/vocab.json", "safety_checker/model.safetensors",
        *(f"{part}/{file}" for part in ("unet", "vae", "text_encoder") for file in (
            "config.json", "model.safetensors", "model.fp16.safetensors", "model.bin",
            "model-00001-of-00002.safetensors", "model.safetensors.index.json",
            "model.safetensors.index.fp16.json",
        )),
    ]  # fmt: skip
    found = set(loaded_files(index, names, given_parts, "fp16" if variant else None))
    assert {"model_index.json", "tokenizer/vocab.json"} <= found
    assert not [name for name in found if name.split("/")[0] in given_parts]
    assert not [name for name in found if name.endswith(".bin") or "safety" in name]
    weights = {name for name in found if ".safetensors" in name}
    assert all((".fp16" in name) == variant for name in weights)
    assert len(weights) == (3 - len(given_parts)) * (2 if variant else 3)


def test_each_repository_counts_once(repository: Path, tmp_path: Path) -> None:
    path = flow(tmp_path)
    data = yaml.safe_load((tmp_path / "set.yaml").read_text())
    data["sources"]["same"] = data["sources"]["art"] | {"steps": 3}
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(data))
    with serve(tmp_path / "hub") as hub:
        env = hub.environment()
        python(UPLOAD, repository, env=env)
        done = aigi("run", str(path), "--dry-run", **env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "org/model@main" in line]
    assert len(lines) == 1 and "sources.art, sources.same" in lines[0]


def test_no_place_of_the_environment_is_needed(made: Path) -> None:
    """A dry run writes nothing, wherever it is asked."""
    run = made.parent / "elsewhere"
    before = set(os.listdir(made.parent))
    done = aigi_here("run", str(made), "--set", f"run={run}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert set(os.listdir(made.parent)) == before
