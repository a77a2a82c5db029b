"""`aigi verify --pixels`: rows of a release made again in their batch, and how far they differ."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import AigiError
from pipeline import audit as audits
from pipeline.audit import Remade, audit
from pipeline.manifest import open_release
from pipeline.pixels import Container, pixels_sha256, webp_bytes
from pipeline.release.regenerate import places_of
from pipeline.store import Store
from pipeline.tables import IMAGES
from tests.conftest import ROOT, aigi_here, listed


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[1] / "release", tmp_path / "release")
    return tmp_path / "release"


def changed(release: Path, images: set[str], by: int) -> None:
    """Change one pixel of these images by `by` levels, and the files and manifest with them."""
    store = Store(str(release))
    manifest = json.loads((release / "manifest.json").read_text())
    for record in manifest["files"]:
        name = record["path"].removesuffix(".parquet")
        table = store.read("", name)
        rows = table.to_pylist()
        for row in rows:
            if row["image_id"] in images:
                rgb = np.array(Image.open(io.BytesIO(row["image"]["bytes"])))
                rgb[0, 0, 0] = int(rgb[0, 0, 0]) + by if rgb[0, 0, 0] < 128 else rgb[0, 0, 0] - by
                row["image"]["bytes"] = webp_bytes(rgb)
                row["pixels_sha256"] = pixels_sha256(rgb)
        made = store.write("", name, pa.Table.from_pylist(rows, schema=table.schema), table.schema)
        record |= {"bytes": made.bytes, "sha256": made.sha256}
    store.write_json(manifest, "manifest.json")


def made_again(release: Path, run: Path, count: int, **more: Any) -> list[Remade]:
    store, manifest = open_release(str(release))
    return list(audit(store, manifest, places_of(str(run)), count, **more))


def test_rows_made_again_are_equal_whatever_their_place_in_a_batch(
    finished: tuple[Path, Path],
) -> None:
    """Batches of 3 and 2, twins of a pair: all of the release but a few rows."""
    _, run = finished
    rows = made_again(run / "release", run, 30)
    assert len({row.image_id for row in rows}) == 30
    assert {row.source for row in rows} == {"sd", "sdxl"}
    assert {row.same for row in rows} == {"bytes"}
    assert all(row.there == row.here and "torch" in row.here for row in rows)


def test_the_command_makes_rows_again_with_the_places_of_the_run(
    finished: tuple[Path, Path],
) -> None:
    _, run = finished
    done = aigi_here("verify", str(run / "release"), "--pixels", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal bytes") == 3
    assert "36 rows, all equal to the manifest" in done.stdout
    assert "made again with: cpu, diffusers" in done.stdout
    assert "3 images made again, none differs" in done.stdout
    relative = os.path.relpath(run, ROOT)  # where the command runs
    other = aigi_here("verify", relative, "--pixels", "3", "--seed", "1")
    assert other.returncode == 0 and other.stdout != done.stdout


def test_other_pixels_are_told_with_psnr_and_the_exit_code(
    finished: tuple[Path, Path], copy: Path, models: Path, tmp_path: Path
) -> None:
    path, run = finished
    drawn = made_again(copy, run, 4)
    changed(copy, {drawn[0].image_id}, 64)
    command = ["verify", str(copy), "--pixels", "4", "--workflow", str(path)]
    done = aigi_here(*command)
    assert done.returncode == 1
    assert done.stdout.count("equal bytes") == 3 and done.stdout.count(" different ") == 1
    assert "1 of 4 images differ" in done.stderr
    # One of 3 x 64 x 64 values is 64 levels off: 10 log10(255^2 * 12288 / 64^2).
    expected = {"64x64": "52.90", "96x64": "54.66", "64x96": "54.66"}
    row = next(row for row in open_rows(copy) if row["image_id"] == drawn[0].image_id)
    assert expected[f"{row['width']}x{row['height']}"] in done.stdout
    assert aigi_here(*command, "--min-psnr", "50").returncode == 0
    assert aigi_here(*command, "--min-psnr", "60").returncode == 1


def open_rows(release: Path) -> list[dict[str, Any]]:
    store, manifest = open_release(str(release))
    return [
        row
        for record in manifest["files"]
        for row in store.read("", record["path"].removesuffix(".parquet")).to_pylist()
    ]


def test_clip_similarity_where_the_model_is_known(
    finished: tuple[Path, Path], copy: Path, models: Path
) -> None:
    _, run = finished
    manifest = json.loads((copy / "manifest.json").read_text())
    drawn = made_again(copy, run, 2)
    manifest["workflow"]["embeddings"] = {"folder": "clip"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    changed(copy, {drawn[1].image_id}, 100)
    store, manifest = open_release(str(copy))
    mine = places_of(str(run)) | {"embeddings": {"folder": str(models / "clip")}}
    rows = {row.image_id: row for row in audit(store, manifest, mine, 2)}
    similarity = rows[drawn[1].image_id].clip_similarity
    assert similarity is not None and 0.9 < similarity < 1
    said: list[str] = []
    rows = {
        row.image_id: row for row in audit(store, manifest, places_of(str(run)), 2, say=said.append)
    }
    assert rows[drawn[1].image_id].clip_similarity is None
    assert "no CLIP similarity" in said[0]


def test_without_models_it_says_which_one(copy: Path, tmp_path: Path) -> None:
    done = aigi_here("verify", str(copy), "--pixels", "2")
    assert done.returncode == 1
    assert "sources.sd" in done.stderr and "test/tiny-sd" in done.stderr
    assert "Traceback" not in done.stderr


def test_imported_rows_need_their_pictures(finished: tuple[Path, Path], copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("sd", "sdxl"):
        source = manifest["specification"]["sources"][name]
        manifest["specification"]["sources"][name] = {
            "kind": "import",
            "model": "closed",
            **{key: source[key] for key in ("title", "licence", "splits")},
        }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AigiError, match="every source is imported; give the place"):
        made_again(copy, finished[1], 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_are_those_of_the_diffuser(variants: list[int], size: int) -> None:
    """Generations with their variants side by side, cut as `Diffuser.__call__` cuts them."""
    from pipeline.images.diffusion.diffuser import Diffuser, _Picture
    from pipeline.tables import PLAN

    rows = [
        {
            "image_id": f"{number}-{variant}",
            "pair_id": f"{number}-0" if count > 1 else None,
            "watermark": "none",
        }
        for number, count in enumerate(variants)
        for variant in range(count)
    ]
    asked: list[list[str]] = []

    class Recording(Diffuser):
        def __init__(self) -> None:
            self.name, self.encode_threads, self.container = "x", 1, Container()
            self.local: Any = type("local", (), {"batch_size": size, "compile": False})
            self.texts = None
            self.provenance = {"device": "cpu", "versions": "{}"}

        def generate(self, rows: list[dict[str, Any]], size: int | None = None) -> list[_Picture]:
            asked.append([row["image_id"] for row in rows])
            return [_Picture(np.zeros((2, 2, 3), np.uint8), None, len(rows)) for _ in rows]

    table = pa.Table.from_pylist(rows, schema=PLAN)
    made = list(Recording()(table))
    assert pa.concat_tables(made).schema == IMAGES
    batches = list(audits._batches(table, size))
    assert [
        list(dict.fromkeys(f"{i.split('-')[0]}-0" for i in batch["image_id"].to_pylist()))
        for batch in batches
    ] == asked
    assert pa.concat_tables(batches) == table


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.data())
def test_a_halved_batch_is_found_again(count: int, data: st.DataObject) -> None:
    """As `Diffuser.generate` halves where memory runs out: the part that a row was made in."""
    from pipeline.tables import PLAN

    rows = [{"image_id": str(number), "watermark": "none"} for number in range(count)]
    parts = [list(range(count))]
    while len(parts[0]) > 1 and data.draw(st.booleans()):
        parts = [
            half
            for part in parts
            for half in (part[: len(part) // 2], part[len(part) // 2 :])
            if half
        ]
    part = data.draw(st.sampled_from(parts))
    number = data.draw(st.sampled_from(part))
    table = pa.Table.from_pylist(rows, schema=PLAN)
    found = audits._made_in(table, str(number), len(part))["image_id"].to_pylist()
    assert str(number) in found and len(found) <= len(part)
    assert found == [str(i) for i in part] or len(found) < len(part)


def test_an_image_that_is_not_what_its_row_states_is_no_equal_row(
    finished: tuple[Path, Path], copy: Path
) -> None:
    """Its hash alone would be that of the row made again."""
    drawn = made_again(copy, finished[1], 2)[0].image_id
    store = Store(str(copy))
    for name in store.shards(""):
        table = store.read("", name)
        rows = table.to_pylist()
        for row in rows:
            if row["image_id"] == drawn:
                rgb = np.zeros((row["height"], row["width"], 3), np.uint8)
                row["image"]["bytes"] = webp_bytes(rgb)
        store.write("", name, pa.Table.from_pylist(rows, schema=table.schema), table.schema)
        listed(copy, f"{name}.parquet")
    with pytest.raises(AigiError, match=rf"row \d+ \({drawn}\): other pixels than its pixels_sha"):
        made_again(copy, finished[1], 2)
