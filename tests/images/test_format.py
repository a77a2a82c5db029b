"""`images.format`: new runs are WebP; what began as PNG stays PNG, and nothing is mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import workflow as workflows
from pipeline.audit import audit
from pipeline.build import estimate, stages
from pipeline.manifest import open_release
from pipeline.pixels import stored
from pipeline.plan.quotas import shard_rows
from pipeline.release.regenerate import places_of
from pipeline.stage import fingerprint
from pipeline.store import Store
from tests.conftest import WorkflowMaker, aigi_here, make_workflow

SMALL = {"dataset": "dataset.yaml", "sources": ["sd"], "limit": 5, "shard_mb": 0.05}


def rows_of(run: Path, table: str = "images") -> list[dict[str, Any]]:
    store = Store(str(run))
    return [row for shard in store.shards(table) for row in store.read(table, shard).to_pylist()]


def endings(run: Path) -> set[str]:
    """What the names of images end in; that their contents agree is looked at, too."""
    found = [row["image"] for row in rows_of(run)]
    assert all(stored(image, 1 << 20) is not None for image in found)
    return {Path(image["path"]).suffix for image in found}


def files_of(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        file: (file.stat().st_mtime_ns, file.read_bytes())
        for file in run.rglob("*.parquet")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Callable[[str], Path]:
    """The workflow files of a run in PNG, as all were, and of one in WebP: not to be changed."""

    def made(kind: str) -> Path:
        make: WorkflowMaker = make_workflow.__wrapped__(  # type: ignore[attr-defined]
            tmp_path_factory.mktemp(kind), models
        )
        images: dict[str, Any] = {"format": "png"} if kind == "png" else {}
        images["fill_batches"] = False  # as all were
        path = make(plan=SMALL, quality={}, images=images)
        done = aigi_here("run", str(path), "--quiet")
        assert done.returncode == 0, done.stderr
        return path

    found = {kind: made(kind) for kind in ("png", "webp")}
    return found.__getitem__


def copied(workflow: Path, folder: Path, **images: Any) -> Path:
    """The run of a workflow file in another folder, and its workflow with these `images`."""
    import shutil

    shutil.copytree(workflow.parent / "run", folder / "run")
    data = yaml.safe_load(workflow.read_text()) | {"run": str(folder / "run"), "images": images}
    path = workflow.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_both_hold_the_same_pixels_and_everything_that_follows_from_them(
    both: Callable[[str], Path],
) -> None:
    png, webp = both("png").parent / "run", both("webp").parent / "run"
    assert endings(png) == {".png"} and endings(webp) == {".webp"}
    for table in ("images", "release/sd"):
        one, other = rows_of(png, table), rows_of(webp, table)
        assert len(one) == len(other) > 5
        for a, b in zip(one, other, strict=True):
            assert a["pixels_sha256"] == b["pixels_sha256"]
            assert len(b["image"]["bytes"]) < len(a["image"]["bytes"])
            assert a | {"image": None} == b | {"image": None}, "but for the file, the same row"
    assert rows_of(png, "plan") == rows_of(webp, "plan"), "shards are planned as before"
    assert rows_of(png, "quality") == rows_of(webp, "quality"), "png_bpp too"
    for run, word in ((png, "PNG"), (webp, "WebP")):
        said = f"the picture, as lossless {word}: 8-bit RGB"
        assert said in (run / "release" / "README.md").read_text()
        assert said in (run / "release" / "croissant.json").read_text()
        assert aigi_here("verify", str(run / "release"), "--deep").returncode == 0


def test_each_loads_as_a_dataset(both: Callable[[str], Path], tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = [
        load_dataset(
            str(both(kind).parent / "run" / "release"), "sd", cache_dir=str(tmp_path), split="train"
        )
        for kind in ("png", "webp")
    ]
    for a, b in zip(*loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(a["image"]), np.asarray(b["image"]))


# --- what began as PNG ----------------------------------------------------------------------------


def test_a_png_run_is_recorded_as_runs_of_before_were(both: Callable[[str], Path]) -> None:
    """To the byte of its fingerprint: no version of aigi can tell it from an earlier one."""
    workflow = workflows.load(both("png"))
    store = Store(workflow.run)
    record = store.record("images")
    assert record is not None and set(record.settings) == {"png", "threads", "sources"}
    (stage,) = (stage for stage in stages(workflow) if stage.table == "images")
    assert fingerprint(stage, record.inputs) == record.fingerprint
    manifest = json.loads((Path(workflow.run) / "release" / "manifest.json").read_text())
    assert manifest["workflow"]["images"] == {"png": "fast", "encode_threads": None}
    other = json.loads((both("webp").parent / "run" / "release" / "manifest.json").read_text())
    assert other["workflow"]["images"]["format"] == "webp"


def test_a_finished_run_of_before_stays_as_it_is(
    both: Callable[[str], Path], tmp_path: Path
) -> None:
    path = copied(both("png"), tmp_path)
    before = files_of(tmp_path / "run")
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already made") == 9 and "rows in" not in done.stderr
    assert files_of(tmp_path / "run") == before


def test_a_half_finished_run_of_before_is_finished_in_png(
    both: Callable[[str], Path], tmp_path: Path
) -> None:
    path = copied(both("png"), tmp_path)
    lost = sorted((tmp_path / "run" / "images").glob("*.parquet"))[-1]
    whole = lost.read_bytes()
    lost.unlink()
    done = aigi_here("run", str(path), "--quiet")
    assert done.returncode == 0, done.stderr
    assert lost.read_bytes() == whole and endings(tmp_path / "run") == {".png"}


def test_shards_that_are_adopted_say_themselves_what_the_run_began_with(
    both: Callable[[str], Path], tmp_path: Path
) -> None:
    path = copied(both("png"), tmp_path)
    (tmp_path / "run" / "_stages" / "images.json").unlink()
    refused = aigi_here("run", str(path), "--quiet")
    assert refused.returncode == 1 and "--adopt" in refused.stderr
    lost = sorted((tmp_path / "run" / "images").glob("*.parquet"))[-1]
    lost.unlink()
    done = aigi_here("run", str(path), "--quiet", "--adopt")
    assert done.returncode == 0, done.stderr
    assert endings(tmp_path / "run") == {".png"}


@pytest.mark.parametrize(("kind", "other"), [("png", "webp"), ("webp", "png")])
def test_another_format_over_a_run_is_refused_with_remedies(
    both: Callable[[str], Path], tmp_path: Path, kind: str, other: str
) -> None:
    path = copied(both(kind), tmp_path, format=other)
    before = files_of(tmp_path / "run")
    done = aigi_here("run", str(path))
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"images.format: {other}, but the images of {tmp_path}/run are {kind}" in said
    assert "Leave format out to go on" in said and "--set run=" in said
    assert files_of(tmp_path / "run") == before


def test_a_manifest_of_before_makes_png_and_a_new_one_what_it_names(
    both: Callable[[str], Path], tmp_path: Path, models: Path
) -> None:
    for kind in ("png", "webp"):
        release = both(kind).parent / "run" / "release"
        mine = {
            "run": str(tmp_path / kind),
            "plan": {"manifest": str(release / "manifest.json")},
            "sources": {"sd": {"folder": str(models / "sd")}},
            "images": {"format": "webp" if kind == "png" else "png"},  # the manifest decides
            "release": {"version": "1.2.3"},
        }
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(mine))
        done = aigi_here("run", str(tmp_path / f"{kind}.yaml"), "--quiet")
        assert done.returncode == 0, done.stderr
        for file in sorted(release.glob("*/*.parquet")):
            again = tmp_path / kind / "release" / file.relative_to(release)
            assert again.read_bytes() == file.read_bytes(), file.name


def test_rows_made_again_in_the_other_container_have_equal_pixels(
    both: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    run = both("png").parent / "run"
    shutil.copytree(run / "release", tmp_path / "release")
    store, manifest = open_release(str(tmp_path / "release"))
    mine = places_of(str(run))
    assert {row.same for row in audit(store, manifest, mine, 2)} == {"bytes"}
    manifest = json.loads((tmp_path / "release" / "manifest.json").read_text())
    manifest["workflow"]["images"]["format"] = "webp"
    (tmp_path / "release" / "manifest.json").write_text(json.dumps(manifest))
    store, manifest = open_release(str(tmp_path / "release"))
    assert {row.same for row in audit(store, manifest, mine, 2)} == {"pixels"}


# --- settings -------------------------------------------------------------------------------------


def test_an_effort_of_png_is_not_ignored_by_webp(
    both: Callable[[str], Path], make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    for images in ({"png": "small"}, {"png": "small", "format": "webp"}):
        path = make_workflow(plan=SMALL, images=images)
        for more in ((), ("--dry-run",)):
            done = aigi_here("run", str(path), *more)
            assert done.returncode == 1
            assert "png: small is an effort of PNG alone" in done.stderr
            assert "format: png" in done.stderr
    assert not (tmp_path / "run" / "images").exists()
    workflow = workflows.load(make_workflow(plan=SMALL, images={"png": "small", "format": "png"}))
    (stage,) = (stage for stage in stages(workflow) if stage.table == "images")
    assert stage.settings["png"] == "small" and "format" not in stage.settings


def test_disk_is_estimated_for_the_container_and_shards_are_planned_as_before(
    both: Callable[[str], Path], make_workflow: WorkflowMaker
) -> None:
    def disk(**images: Any) -> tuple[float, int]:
        found = estimate(workflows.load(make_workflow(plan=SMALL, images=images)))
        return sum(line.gigabytes or 0 for line in found), sum(line.shards for line in found)

    (webp, shards), (png, others) = disk(), disk(format="png")
    pixels = 5 * 64 * 64 + 2 * 96 * 64
    assert png == pytest.approx(1.5 * pixels / 1e9) and webp == pytest.approx(1.2 * pixels / 1e9)
    assert shards == others and shard_rows(64, 64, 1, 0.05) == 8
    # A run that began as PNG goes on so.
    began = estimate(workflows.load(copied(both("png"), Path(str(make_workflow().parent / "c")))))
    assert sum(line.gigabytes or 0 for line in began) == pytest.approx(png)


def test_an_import_keeps_png_and_stores_the_rest_as_webp(tmp_path: Path) -> None:
    """One release of both: its card says so, every name is right, and it is read whole."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(3)
    for number in range(8):
        rgb = random.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        kind = ("png", "jpg", "webp", "bmp")[number % 4]
        Image.fromarray(rgb).save(folder / f"{number}.{kind}")
        (folder / f"{number}.txt").write_text(f"a red boat number {number} on a calm lake")
    spec = {
        "name": "mixed", "title": "Mixed", "licence": "MIT",
        "sources": {"mj": {"title": "MJ", "licence": "MIT", "kind": "import", "model": "m",
                           "splits": {"train": {"count": 8}}}},
    }  # fmt: skip
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(spec))
    data = {
        "run": str(tmp_path / "run"),
        "split": {"validation": 0, "test": 0},
        "plan": {"dataset": "dataset.yaml"},
        "sources": {"mj": {"kind": "import", "path": str(folder)}},
        "images": {},
        "release": {},
    }
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(data))
    done = aigi_here("run", str(tmp_path / "workflow.yaml"), "--quiet")
    assert done.returncode == 0, done.stderr
    plan = {row["image_id"]: row["path"] for row in rows_of(tmp_path / "run", "plan")}
    for row in rows_of(tmp_path / "run", "release/mj"):
        kept = plan[row["image_id"]].endswith(".png")
        assert Path(row["image"]["path"]).suffix == (".png" if kept else ".webp")
        if kept:
            assert row["image"]["bytes"] == (folder / plan[row["image_id"]]).read_bytes()
    card = (tmp_path / "run" / "release" / "README.md").read_text()
    assert "the picture, as lossless WebP or PNG: 8-bit RGB" in card
    assert aigi_here("verify", str(tmp_path / "run"), "--deep").returncode == 0
    done = aigi_here("run", str(tmp_path / "workflow.yaml"))
    assert done.stderr.count("already made") == 5 and "rows in" not in done.stderr
