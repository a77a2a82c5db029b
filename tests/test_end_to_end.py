"""Prompts in, a release that loads out: through the command, killed, with Ray and on S3."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.manifest import MANIFEST, open_release
from pipeline.release.verify import compare
from pipeline.store import Store
from tests.conftest import ROOT, WorkflowMaker, aigi, aigi_here


def contents(root: Path) -> dict[str, str]:
    """sha256 of every file of the images and the release."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("images", "release")
        for path in sorted((root / table).rglob("*"))
        if path.is_file()
    }


def test_load_dataset_gives_the_generated_pictures(finished: tuple[Path, Path]) -> None:
    import io

    from datasets import get_dataset_config_names, load_dataset
    from PIL import Image

    _, run = finished
    release = str(run / "release")
    made = {
        row["image_id"]: row
        for row in Store(str(run)).read_all("images", ["image_id", "image"]).to_pylist()
    }
    counts = {("sd", "train"): 24, ("sd", "test"): 2, ("sdxl", "train"): 4, ("sdxl", "test"): 6}
    assert set(get_dataset_config_names(release)) == {"sd", "sdxl"}
    for (config, split), count in counts.items():
        loaded = load_dataset(release, config, split=split, cache_dir=str(run / "cache"))
        streamed = load_dataset(release, config, split=split, streaming=True)
        assert len(loaded) == count
        for row, same in zip(loaded, streamed, strict=True):
            original = Image.open(io.BytesIO(made[row["image_id"]]["image"]["bytes"]))
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(original))
            np.testing.assert_array_equal(np.asarray(same["image"]), np.asarray(original))
            assert row["text"] == same["text"]
            assert row["image"].size == (row["width"], row["height"])


def test_release_files_are_as_the_hub_expects(finished: tuple[Path, Path]) -> None:
    _, run = finished
    names = [str(path.relative_to(run / "release")) for path in (run / "release").rglob("*")]
    assert "sdxl/test-00000.parquet" in names
    assert "sd/train-00002.parquet" in names
    assert {"README.md", "croissant.json", "sheet.webp", MANIFEST} <= set(names)
    for name in names:
        if not name.endswith(".parquet"):
            continue
        data = pq.read_metadata(run / "release" / name)
        assert b"huggingface" in data.metadata
        assert data.row_group(0).num_rows <= 100
        assert data.row_group(0).column(0).has_offset_index
    card = (run / "release" / "README.md").read_text()
    meta = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in meta["configs"]] == ["sd", "sdxl"]


def test_the_watermarked_twin_is_in_the_release(finished: tuple[Path, Path]) -> None:
    from datasets import load_dataset

    from pipeline.marks.dwt_dct import embed_dwt_dct

    _, run = finished
    rows = load_dataset(
        str(run / "release"), "sdxl", split="test", cache_dir=str(run / "cache")
    ).to_list()
    plain = {row["pair_id"]: row for row in rows if row["watermark"] == "none"}
    marked = {row["pair_id"]: row for row in rows if row["watermark"] == "dwt-dct"}
    assert len(plain) == len(marked) == 3
    import io

    from PIL import Image

    for name, row in plain.items():
        a, b = (
            np.asarray(Image.open(io.BytesIO(some["image"]["bytes"])))
            for some in (row, marked[name])
        )
        np.testing.assert_array_equal(embed_dwt_dct(a), b)


def test_killed_in_mid_images_then_finished(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = finished
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--set", f"run={run}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list((run / "images").glob("*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in (run / "images").glob("*.parquet")}
    assert len(kept) < len(list((undisturbed / "images").glob("*.parquet")))
    # First without a release, to which the images move.
    for more in (["--set", "release=null"], []):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not more or all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert contents(run) == contents(undisturbed)


@pytest.mark.slow  # test_ray has small stages for every day
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_gives_the_same_bytes(
    finished: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    path, undisturbed = finished
    done = aigi(
        "run", str(path), "--set", f"run={tmp_path}/run", "--set", "compute.ray=local",
        "--set", f"compute.workers={workers}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_on_an_object_store(
    finished: tuple[Path, Path], moto: str, s3: Callable[[str], None]
) -> None:
    """A whole run on S3 (moto's server), killed once; the same bytes as on disk."""
    path, undisturbed = finished
    s3(moto)
    store = Store("s3://bucket/runs/a")
    store.fs.mkdir("bucket")
    options = ("run", str(path), "--set", "run=s3://bucket/runs/a")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while len(store.shards("images")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = aigi(*options)
    assert done.returncode == 0, done.stderr
    for name, digest in contents(undisturbed).items():
        if name != "release/manifest.json":  # it names the tables' records
            assert store.sha256(*name.split("/")) == digest, name
    assert aigi("verify", "s3://bucket/runs/a/release").returncode == 0


def test_status_and_verify_of_a_finished_run(finished: tuple[Path, Path]) -> None:
    _, run = finished
    shown = aigi_here("status", str(run))
    assert shown.returncode == 0
    for stage in ("prompts", "plan", "images", "selection", "release", "manifest"):
        assert stage in shown.stdout
    assert shown.stdout.count("done") >= 6
    right = aigi_here("verify", str(run / "release"))
    assert right.returncode == 0
    assert "36 rows, all equal to the manifest" in right.stdout


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(finished[1] / "release", tmp_path / "release")
    return tmp_path / "release"


def test_verify_names_what_differs(copy: Path) -> None:
    flipped = copy / "sd" / "train-00001.parquet"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    (copy / "sdxl" / "test-00000.parquet").unlink()
    (copy / "sdxl" / "extra.parquet").write_bytes(b"PAR1")
    (copy / "README.md").write_text("mine")
    done = aigi_here("verify", str(copy))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("sd/train-00001.parquet: sha256 ")
    assert lines[1:3] == [
        "sdxl/test-00000.parquet: missing",
        "sdxl/extra.parquet: not in the manifest",
    ]
    assert lines[3].startswith("README.md: 4 bytes, expected ")
    assert aigi_here("verify", str(copy / "sd")).returncode == 1


def test_manifest_is_a_record(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = finished
    store, manifest = open_release(str(run))
    assert compare(store, manifest) == []
    assert manifest["version"] == "1.2.3"
    assert sum(file["rows"] for file in manifest["files"]) == 36
    assert manifest["wanted"] == {"sd/train": 24, "sd/test": 2, "sdxl/train": 4, "sdxl/test": 6}
    assert manifest["versions"]["diffusers"]
    assert manifest["specification"]["sources"]["sd"]["steps"] == 2
    assert manifest["workflow"]["plan"]["seed"] == 0
    assert str(run) not in (run / "release" / MANIFEST).read_text()
    recorded = aigi_here(
        "run", str(path), "--set", f"run={run}", "--set", f"release.record={tmp_path}/records"
    )
    assert recorded.returncode == 0, recorded.stderr
    record = tmp_path / "records" / "test-set-1.2.3.json"
    assert record.read_bytes() == (run / "release" / MANIFEST).read_bytes()


def test_a_record_is_written_beside_the_specifications(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    path = make_workflow(release={"version": "2.0.0", "record": "records"})
    done = aigi_here("run", str(path), "--set", "plan.limit=1", "--set", "plan.sources=[sd]")
    assert done.returncode == 0, done.stderr
    record = tmp_path / "records" / "test-set-2.0.0.json"
    assert record.read_bytes() == (tmp_path / "run" / "release" / MANIFEST).read_bytes()


def test_a_changed_workflow_is_refused_by_name(finished: tuple[Path, Path]) -> None:
    path, run = finished
    before = contents(run)
    done = aigi_here("run", str(path), "--set", "sources.sd.attention_slicing=true")
    assert done.returncode == 1
    assert "cannot keep 26 of the run's images" in done.stderr
    assert "sources.sd.attention_slicing: False -> True" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(run) == before
