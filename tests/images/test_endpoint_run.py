"""A source of an endpoint from prompts to a release: content, keys, resuming, what is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import PROMPTS, ROOT, aigi, aigi_here
from tests.endpoint import KEY, MODEL, Fault, Server, serving, tiny

VARIABLE = "TEST_ENDPOINT_KEY"
SPECIFICATION = """
name: asked
title: Asked
licence: Apache-2.0
sources:
  api:
    title: An endpoint
    licence: terms of the service
    kind: http
    model: {model}
    seeds: true
    request: {{num_inference_steps: 2, response_format: b64_json}}
    images_per_prompt: 2
    splits:
      train: {{count: 12, width: 64, height: 64}}
      test: {{count: 2, width: 96, height: 64, watermarks: [none, dwt-dct]}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    server.faults.clear()
    server.asked.clear()
    server.delay = 0


def workflow(folder: Path, server: Server, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "asked.yaml").write_text(SPECIFICATION.format(model=MODEL))
    source = {"kind": "http", "url": server.url, "key_env": VARIABLE, "timeout": 60, "retries": 1}
    data: dict[str, Any] = {
        "run": str(folder / "run"),
        "split": {"validation": 0.0, "test": 0.3},
        "prompts": {"sources": [{"kind": "text", "path": "prompts.txt"}], "near_duplicates": None},
        # Four generations of 64x64 a shard.
        "plan": {"dataset": "asked.yaml", "shard_mb": 0.025},
        "sources": {"api": {**source, **changes}},
        "images": {},
        "release": {"version": "1.0.0"},
    }
    path = folder / "asked_workflow.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run / table).to_pylist()
    return found


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Path]:
    """A run that is finished, and not to be changed."""
    folder = tmp_path_factory.mktemp("asked")
    path = workflow(folder, server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, KEY)
        done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout + done.stderr)
    yield folder


def test_the_release_has_the_images_and_is_verified(released: Path, server: Server) -> None:
    run = released / "run"
    done = aigi_here("verify", str(run), "--deep")
    assert done.returncode == 0, done.stderr
    loaded = datasets.load_dataset(str(run / "release"), "api", split="train")
    assert len(loaded) == 12
    first = loaded[0]
    assert np.asarray(first["image"]).shape == (64, 64, 3)
    assert first["model"] == MODEL and first["device"] == "endpoint" and first["steps"] is None
    # Its seed is in the row, so the same server gives the same image.
    drawn = server.draw({"prompt": first["text"], "size": "64x64", "seed": first["seed"]})
    np.testing.assert_array_equal(np.asarray(first["image"]), np.asarray(drawn))
    assert len({row["seed"] for row in loaded}) == 12
    assert all(0 <= row["seed"] < 1 << 31 for row in loaded)
    test = rows_of(run, "release/api")
    assert sorted(row["watermark"] for row in test if row["width"] == 96) == [
        "dwt-dct", "dwt-dct", "none", "none",
    ]  # fmt: skip


def test_the_card_and_the_manifest_say_that_none_can_be_made_again(released: Path) -> None:
    release = released / "run" / "release"
    card = (release / "README.md").read_text()
    assert "by an endpoint for images, asked with the seed of each row" in card
    assert "none can be made again" in card and "imported" not in card.split("## Sources")[1][:900]
    assert card.count("endpoint local, pillow") == 1, "requests are not kinds of images"
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["workflow"]["sources"] == {"api": {"kind": "http"}}
    assert manifest["specification"]["sources"]["api"]["request"]["num_inference_steps"] == 2
    again = aigi_here(
        "run", str(ROOT / "workflows/regenerate.yaml"), "--set",
        f"plan.manifest={release / 'manifest.json'}", "--set", f"run={released / 'again'}",
    )  # fmt: skip
    assert again.returncode == 1
    assert (
        "sources.api: its images cannot be made again: they came from an endpoint" in again.stderr
    )
    assert not (released / "again" / "images").exists()
    assert "aigi run" not in card and "Its images cannot be made again" in card
    pixels = aigi_here("verify", str(released / "run"), "--pixels", "2")
    assert pixels.returncode == 1
    assert "every image is of an endpoint; none can be made again" in pixels.stderr
    row = rows_of(released / "run", "release/api")[0]
    coded = aigi_here(
        "encode", "--recipe", f"{release}#{row['image_id']}", "--out", str(released / "x.aigi")
    )
    assert coded.returncode != 0
    assert (
        "an image of an endpoint, which gives another one each time" in coded.stderr + coded.stdout
    )


def test_no_file_and_no_line_has_the_key(released: Path) -> None:
    report = aigi_here("report", str(released / "run"), "--out", str(released / "report.html"))
    assert report.returncode == 0, report.stderr
    files = [file for file in released.rglob("*") if file.is_file()]
    assert len(files) > 15 and released / "printed" in files
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file
        if file.suffix == ".parquet":
            assert KEY not in str(pq.read_table(file).to_pylist()), file
    assert VARIABLE not in (released / "run/release/manifest.json").read_text()
    assert "127.0.0.1" not in (released / "run/release/manifest.json").read_text()
    assert "What made the images" in (released / "report.html").read_text()


def test_a_finished_run_asks_nothing_again(released: Path, server: Server) -> None:
    done = aigi_here("run", str(released / "asked_workflow.yaml"))
    assert done.returncode == 0, done.stderr
    made = [line.split(":")[0] for line in done.stderr.splitlines() if "already made" in line]
    names = ["lines", "texts", "prompts", "plan", "images", "selection", "release", "manifest"]
    assert made == names
    assert not server.asked
    # Where it is and how it is asked decides no row.
    done = aigi_here(
        "run", str(released / "asked_workflow.yaml"), "--set", "sources.api.url=http://x/v1",
        "--set", "sources.api.concurrency=9",
    )  # fmt: skip
    assert done.returncode == 0 and "images: 5 shards, already made" in done.stderr, done.stderr


def test_the_dry_run_counts_no_gpu_hours(released: Path, server: Server) -> None:
    done = aigi_here("run", str(released / "asked_workflow.yaml"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("endpoint") >= 2 and not server.asked
    (line,) = [line for line in done.stdout.splitlines() if "64x64" in line]
    assert line.rstrip(" |").endswith("endpoint")


def test_an_id_is_of_all_that_was_asked_for(released: Path) -> None:
    """Another number of the same prompt is another image, too."""
    from pipeline.plan.ids import image_id_of

    for row in rows_of(released / "run", "plan"):
        assert image_id_of(row) == row["image_id"]
        assert row["options"] == '{"num_inference_steps":2,"response_format":"b64_json"}'
        for change in (
            {"index": row["index"] + 1}, {"seed": 1}, {"width": 65}, {"model": "x"},
            {"options": '{"quality":"low"}'}, {"options": None},
        ):  # fmt: skip
            assert image_id_of(row | change) != row["image_id"]


def test_failed_rows_alone_are_asked_for_again(tmp_path: Path, server: Server) -> None:
    refusal = {"error": {"code": "content_policy_violation", "message": "no boats"}}
    server.faults.append(Fault(when="boat", status=400, body=refusal))
    path = workflow(tmp_path, server)
    done = aigi_here("run", str(path))
    assert done.returncode == 3, "fewer images than wanted"
    assert "refused: " in done.stderr
    rejects = rows_of(tmp_path / "run", "rejects/images.parquet")
    assert rejects and all("no boats" in row["reason"] for row in rejects)
    before = len(server.prompts)
    server.faults.clear()
    done = aigi_here("run", str(path), "--retry-failed")
    assert done.returncode == 0, done.stderr
    again = server.prompts[before:]
    failed = {row["file"] for row in rejects}
    plan = rows_of(tmp_path / "run", "plan")
    assert len(again) == len({row["seed"] for row in plan if row["image_id"] in failed})
    assert all("boat" in prompt for prompt in again)


def test_wrong_set_ups_end_before_the_first_image(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workflow(tmp_path, server)
    monkeypatch.setenv(VARIABLE, "sk-wrong-wrong-wrong-0000")
    done = aigi_here("run", str(path))
    assert done.returncode == 1 and f"Set the environment variable {VARIABLE}" in done.stderr
    assert "sk-wrong" not in done.stderr
    done = aigi_here("run", str(path), "--set", "sources.api.key_env=null")
    assert done.returncode == 1 and "sources.api.key_env names the environment" in done.stderr
    monkeypatch.setenv(VARIABLE, KEY)
    text = (tmp_path / "asked.yaml").read_text()
    (tmp_path / "asked.yaml").write_text(text.replace(MODEL, "tiny-sdd"))
    done = aigi_here("run", str(path), "--set", f"run={tmp_path / 'other'}")
    assert done.returncode == 1 and "it offers no model 'tiny-sdd'" in done.stderr
    assert not server.prompts
    done = aigi_here("run", str(path), "--set", "sources={}", "--set", f"run={tmp_path / 'third'}")
    assert done.returncode == 1 and "sources.api: an endpoint makes the images" in done.stderr


def test_what_was_paid_for_is_not_paid_for_again_after_a_kill(
    tmp_path: Path, server: Server
) -> None:
    """All of train is one shard: what is kept are its first rows, one by one."""
    path = workflow(tmp_path, server, concurrency=1)
    path.write_text(path.read_text().replace("shard_mb: 0.025", "shard_mb: 10"))
    server.delay = 0.3
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path)]

    def parts() -> list[Path]:
        return list((tmp_path / "run" / "_parts").rglob("api-train-00000.shard/*.arrow"))

    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len(parts()) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    kept = max(int(part.name.split("-")[1]) for part in parts())
    assert 4 <= kept < 12
    server.delay = 0
    before = len(server.prompts)
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    asked = [one.fields["seed"] for one in server.asked if one.method == "POST"]
    train = [row["seed"] for row in rows_of(tmp_path / "run", "plan") if row["split"] == "train"]
    assert asked[before:] == train[kept:], "those that are kept are not asked for again"
    made = [row for row in rows_of(tmp_path / "run", "images") if row["width"] == 64]
    assert len(made) == 12 and all(row["error"] is None for row in made)


def test_a_server_that_goes_away_fails_shards_and_no_row(tmp_path: Path, server: Server) -> None:
    with serving(server.draw) as other:
        path = workflow(tmp_path, other, retries=0)
        other.faults.append(Fault(times=4))
        other.faults.append(Fault(cut=0))
        done = aigi_here("run", str(path))
        assert done.returncode == 1 and "shards failed" in done.stderr, done.stderr
        assert "Look at the endpoint, then run the same command again" in done.stderr
        made = rows_of(tmp_path / "run", "images")
        assert made and all(row["error"] is None for row in made)
        other.faults.clear()
        done = aigi_here("run", str(path))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_of_ray_make_the_same_rows(tmp_path: Path, server: Server, released: Path) -> None:
    path = workflow(tmp_path, server)
    done = aigi("run", str(path), "--set", "compute.ray=local", "--set", "compute.workers=2")
    assert done.returncode == 0, done.stderr
    both = [
        {row["image_id"]: row["pixels_sha256"] for row in rows_of(run, "images")}
        for run in (tmp_path / "run", released / "run")
    ]
    assert both[0] == both[1]
