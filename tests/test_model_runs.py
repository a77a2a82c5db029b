"""Whole runs over models as people have them: killed, by Ray, from a manifest: the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pipeline import workflow as workflows
from pipeline.files import file_sha256
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.plan.options import parsed
from pipeline.release.making import Makings
from pipeline.release.trust import asked
from pipeline.store import Store
from tests.conftest import ROOT, WorkflowMaker, aigi_here
from tests.families import MAKERS
from tests.images.test_parts import lora
from tests.images.test_zoo import MODELS, copies
from tests.test_options import dataset_of, train

Folder = Callable[[str], Path]


def images_of(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "images").glob("*.parquet"))}


@pytest.fixture
def two(
    make_workflow: WorkflowMaker, family: Folder, tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """A workflow of FLUX and PixArt in shards of some images, and the folder of its run."""

    def made(run: str, **sections: Any) -> tuple[Path, Path]:
        data, places = dataset_of(family, ["flux", "pixart-sigma"])
        for source in data["sources"].values():
            source["splits"]["train"]["count"] = 6
        (tmp_path / "families.yaml").write_text(yaml.safe_dump(data))
        plan = {"dataset": "families.yaml", "shard_mb": 0.03}
        path = make_workflow(
            run, run=str(tmp_path / run), plan=plan, sources=places, release=None, **sections
        )
        return path, tmp_path / run

    return made


def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    two: Callable[..., tuple[Path, Path]],
) -> None:
    path, run = two("killed")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", str(path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not images_of(run) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = images_of(run)
    assert before, "it was killed between two shards"
    assert aigi_here("run", str(path)).returncode == 0
    other, undisturbed = two("undisturbed")
    assert aigi_here("run", str(other)).returncode == 0
    found = images_of(run)
    assert found == images_of(undisturbed) and len(found) > len(before)


@pytest.mark.slow
def test_workers_of_ray_make_the_bytes_of_a_serial_run(
    two: Callable[..., tuple[Path, Path]],
) -> None:
    pytest.importorskip("ray")
    one, serial = two("serial")
    other, parallel = two("parallel", compute={"ray": "local", "workers": 2})
    for path in (one, other):
        assert aigi_here("run", str(path)).returncode == 0
    assert images_of(serial) == images_of(parallel)


def test_files_beside_a_model_go_from_prompts_to_a_release_that_is_made_again(
    make_workflow: WorkflowMaker, family: Folder, tmp_path: Path
) -> None:
    """One file, a LoRA and another text encoder; all named in rows, none in a recipe."""
    pytest.importorskip("peft")
    weights = family("flux") / "transformer" / "diffusion_pytorch_model.safetensors"
    file = tmp_path / "tuned.safetensors"
    save_file({key: 1.5 * value for key, value in load_file(weights).items()}, file)
    (tmp_path / "flux").symlink_to(family("flux"))
    style = lora(tmp_path / "flux")
    encoder = family("flux") / "text_encoder_2"
    sha256 = {"model.safetensors": file_sha256(str(encoder / "model.safetensors"))}
    data, _ = dataset_of(family, ["flux"])
    data["sources"]["flux"] |= {
        "file": file_sha256(str(file)),
        "config": "test/flux@v1",
        "loras": [style],
        "components": {"text_encoder_2": {"model": "test/t5", "revision": "v1", "sha256": sha256}},
    }
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(data))
    places = {
        "folder": str(family("flux")),
        "file": str(file),
        "loras": {"style": str(tmp_path / "style.safetensors")},
        "components": {"text_encoder_2": str(encoder)},
    }
    path = make_workflow(plan={"dataset": "files.yaml"}, sources={"flux": places})
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    again = aigi_here("run", str(path))
    assert again.returncode == 0 and "already made" in again.stdout + again.stderr
    release = tmp_path / "run" / "release"
    rows = pq.read_table(train(release, "flux")).to_pylist()
    options = parsed(rows[0]["options"])
    assert options["file"] == file_sha256(str(file))
    assert options["loras"][0]["sha256"] == style["sha256"]
    assert options["components"]["text_encoder_2"]["sha256"] == sha256
    assert str(tmp_path) not in (release / MANIFEST).read_text()
    assert aigi_here("verify", str(release), "--deep").returncode == 0
    manifest = read_manifest(str(release / MANIFEST))
    known = Makings(Store(str(release)), manifest).known(rows[0])
    assert known.making is None and "made with files beside the model" in known.reason
    # From the manifest: first without the files, then with them.
    command = [
        "run", str(ROOT / "workflows" / "regenerate.yaml"), f"--set=run={tmp_path / 'again'}",
        f"--set=plan.manifest={release / MANIFEST}", "--set=release.version=1.2.3",
        "--set=release.record=null", f"--set=sources.flux.folder={family('flux')}",
    ]  # fmt: skip
    done = aigi_here(*command)
    assert done.returncode == 1
    for name in ("file", "loras.style"):
        assert f"--set sources.flux.{name}=..." in done.stderr
    command += [f"--set=sources.flux.file={file}"]
    command += [f"--set=sources.flux.loras.style={places['loras']['style']}"]  # type: ignore[index]
    mine = workflows.load(command[1], [part.removeprefix("--set=") for part in command[2:]])
    assert [line for line in asked(mine) if "test/t5@v1" in line], "a model of the Hub is asked for"
    command += [f"--set=sources.flux.components.text_encoder_2={encoder}"]
    done = aigi_here(*command)
    assert done.returncode == 0, done.stderr
    made = train(tmp_path / "again" / "release", "flux")
    assert made.read_bytes() == train(release, "flux").read_bytes()


@pytest.mark.slow
def test_one_run_has_eight_families_a_file_a_lora_and_a_zoo_of_ten(
    make_workflow: WorkflowMaker, family: Folder, models: Path, tmp_path: Path
) -> None:
    """Eleven sources in one specification: released, loaded, and made again to be compared."""
    pytest.importorskip("peft")
    names = list(MAKERS)
    data, places = dataset_of(family, names)
    one = data["sources"]["flux"]
    weights = family("flux") / "transformer" / "diffusion_pytorch_model.safetensors"
    file = tmp_path / "tuned.safetensors"
    save_file({key: 1.5 * value for key, value in load_file(weights).items()}, file)
    (tmp_path / "flux").symlink_to(family("flux"))
    pin = {"file": file_sha256(str(file)), "config": "test/flux@v1"}
    data["sources"]["tuned"] = one | pin
    data["sources"]["styled"] = one | {"loras": [lora(tmp_path / "flux")]}
    copies(tmp_path / "zoo", models / "sd")
    size = {"width": 64, "height": 64}
    data["sources"]["zoo"] = {
        "title": "Ten", "licence": "MIT", "kind": "zoo", "models": MODELS,
        "each": {"pipeline": "sd", "revision": "v1", "steps": 2, "guidance_scale": 3.0},
        "images_per_model": {"train": 2, "test": 1}, "images_per_prompt": 10,
        "splits": {"train": size, "test": size},
    }  # fmt: skip
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(data))
    flux = {"folder": str(family("flux")), "batch_size": 2}
    style = {"style": str(tmp_path / "style.safetensors")}
    places |= {"tuned": flux | {"file": str(file)}, "styled": flux | {"loras": style}}
    places["zoo"] = {"folder": str(tmp_path / "zoo")}
    path = make_workflow(plan={"dataset": "all.yaml"}, sources=places)
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    release = tmp_path / "run" / "release"
    pixels = set()
    for name in (*names, "tuned", "styled", "zoo"):
        loaded = datasets.load_dataset(str(release), name, split="train")
        assert len(loaded) == (20 if name == "zoo" else 3)
        assert loaded[0]["image"].size == (64, 64)
        pixels |= set(loaded["pixels_sha256"])
    assert len(pixels) == 3 * 10 + 20, "no source draws what another one does"
    done = aigi_here("verify", str(tmp_path / "run"), "--pixels", "70")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "70 images made again, none differs" in done.stdout
