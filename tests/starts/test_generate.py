"""One command from a list of prompts to a release that loads; its file is for editing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.files import file_sha256
from pipeline.plan import specification
from pipeline.plan.specification import DiffusersSpec
from pipeline.starts.generate import Wanted, captions_of, file_of, known_models
from pipeline.starts.generate import generate as workflow_of
from tests.conftest import PROMPTS, ROOT
from tests.hub import serve
from tests.hub.conftest import script
from tests.images.test_parts import lora

Folder = Callable[[str], Path]
LIST = [*PROMPTS[:5], "ein rotes Boot", "x", PROMPTS[0]]  # the last one is there twice


def aigi(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as in this process, in a folder of the user's."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a list of prompts, in which nobody has worked yet."""
    (tmp_path / "prompts.txt").write_text("".join(f"{line}\n" for line in LIST))
    return tmp_path


def command(models: Path, *more: str) -> list[str]:
    return ["generate", "--model", str(models / "sd"), "--prompts", "prompts.txt", "--steps", "2",
            "--size", "64x64", "--out", "runs/mine", *more]  # fmt: skip


def spec_of(home: Path, name: str = "mine", source: str | None = None) -> DiffusersSpec:
    plan = workflows.load(home / "runs" / f"{name}.yaml").plan
    assert plan is not None
    sources = specification.load(plan.dataset).sources
    spec = sources[source] if source else next(iter(sources.values()))
    assert isinstance(spec, DiffusersSpec)
    return spec


def rows(home: Path, name: str = "mine") -> list[dict[str, Any]]:
    files = (home / "runs" / name / "release").rglob("train-*.parquet")
    found: list[dict[str, Any]] = pa.concat_tables(map(pq.read_table, sorted(files))).to_pylist()
    return found


def test_one_command_makes_a_release_that_loads(home: Path, models: Path) -> None:
    done = aigi(home, *command(models))
    assert done.returncode == 0, done.stderr
    assert f"release: {home}/runs/mine/release" in done.stdout
    assert "images: 7, prompts: 7" in done.stderr, "each different prompt once"
    assert "workflow: runs/mine.yaml" in done.stderr
    release = str(home / "runs" / "mine" / "release")
    images = datasets.load_dataset(release, "sd", split="train", cache_dir=str(home / "cache"))
    assert {row["text"] for row in images} == set(LIST), "none was refused, whatever it says"
    assert {row["image"].size for row in images} == {(64, 64)}
    # The same command again makes nothing, and its file is as it was.
    text = (home / "runs" / "mine.yaml").read_text()
    again = aigi(home, *command(models))
    assert again.returncode == 0 and "images: 1 shards, already made" in again.stderr
    assert (home / "runs" / "mine.yaml").read_text() == text


def test_a_higher_count_extends_the_run(home: Path, models: Path) -> None:
    assert aigi(home, *command(models, "--count", "3")).returncode == 0
    before = {row["image_id"]: row["pixels_sha256"] for row in rows(home)}
    done = aigi(home, *command(models, "--count", "12"))
    assert done.returncode == 0, done.stderr
    assert "images: 12, prompts: 7, 2 of each" in done.stderr
    after = {row["image_id"]: row["pixels_sha256"] for row in rows(home)}
    assert len(before) == 3 and len(after) == 12 and before.items() <= after.items()


def test_an_edited_file_is_run_and_never_written_over(home: Path, models: Path) -> None:
    assert aigi(home, *command(models, "--count", "2")).returncode == 0
    file = home / "runs" / "mine.yaml"
    edited = file.read_text().replace("count: 2", "count: 4")
    file.write_text(edited)
    done = aigi(home, *command(models, "--count", "3"))
    assert done.returncode == 1
    assert "runs/mine.yaml: edited since aigi wrote it" in done.stderr
    assert "`aigi run runs/mine.yaml`" in done.stderr and file.read_text() == edited
    done = aigi(home, "run", "runs/mine.yaml")
    assert done.returncode == 0, done.stderr
    assert len(rows(home)) == 4


def test_changed_settings_are_refused_until_replaced(home: Path, models: Path) -> None:
    assert aigi(home, *command(models, "--count", "2")).returncode == 0
    other = command(models, "--count", "2", "--negative-prompt", "blurry")
    done = aigi(home, *other)
    assert done.returncode == 1 and "--replace" in done.stderr
    done = aigi(home, *other, "--replace")
    assert done.returncode == 0, done.stderr
    assert {row["negative_prompt"] for row in rows(home)} == {"blurry"}


def test_a_killed_command_resumes(home: Path, models: Path) -> None:
    arguments = [sys.executable, "-m", "pipeline.cli", *command(models, "--count", "60")]
    text = "".join(f"a {thing} number {n}\n" for thing in ("boat", "tree") for n in range(30))
    (home / "prompts.txt").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=home, env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    images = home / "runs" / "mine" / "images"
    while not any(images.glob("*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = aigi(home, *command(models, "--count", "60"))
    assert done.returncode == 0, done.stderr
    assert len({row["image_id"] for row in rows(home)}) == 60


def test_dry_run_writes_nothing(home: Path, models: Path) -> None:
    done = aigi(home, *command(models, "--dry-run"))
    assert done.returncode == 0 and "nothing was made" in done.stdout, done.stderr
    assert sorted(path.name for path in home.iterdir()) == ["prompts.txt"]


# --- Lists of prompts ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["txt", "txt.gz", "csv", "tsv", "jsonl", "json", "parquet"])
def test_prompts_come_from_any_file(ending: str, tmp_path: Path) -> None:
    import gzip
    import json

    place = tmp_path / f"list.{ending}"
    table = pa.table({"n": [1, 2], "text": PROMPTS[:2]})
    if ending == "parquet":
        pq.write_table(table, place)
    elif ending in ("csv", "tsv"):
        tab = "," if ending == "csv" else "\t"
        lines = [f"n{tab}text", *(f"{n}{tab}{text}" for n, text in enumerate(PROMPTS[:2]))]
        place.write_text("\n".join(lines))
    elif ending in ("json", "jsonl"):
        listed = [json.dumps(row) for row in table.to_pylist()]
        place.write_text("\n".join(listed) if ending == "jsonl" else f"[{','.join(listed)}]")
    else:
        data = "\n".join(PROMPTS[:2]).encode()
        place.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    found = workflow_of(Wanted(model="sdxl", prompts=str(place), out=str(tmp_path / "run")))
    assert "images: 2, prompts: 2" in found.said


def test_columns_are_found_by_name_or_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("id,subject\n1,a boat\n")
    with pytest.raises(AigiError, match=r"which column has the prompts\?.*--column, one of: id, s"):
        captions_of(str(table), None)
    assert captions_of(str(table), "subject").column == "subject"  # type: ignore[union-attr]
    with pytest.raises(AigiError, match="subjct: no such column"):
        captions_of(str(table), "subjct")
    text = tmp_path / "list.txt"
    text.write_text("a boat\n")
    with pytest.raises(AigiError, match="a text without columns"):
        captions_of(str(text), "subject")


# --- Models --------------------------------------------------------------------------------------


def wanted(tmp_path: Path, **more: Any) -> Wanted:
    (tmp_path / "p.txt").write_text("a red boat\n")
    given: dict[str, Any] = {"model": "sdxl", "out": str(tmp_path / "runs" / "mine"), **more}
    return Wanted(prompts=str(tmp_path / "p.txt"), **given)


def made(tmp_path: Path, **more: Any) -> tuple[DiffusersSpec, dict[str, Any], list[str]]:
    """The entry in the specification, the places beside it, and what was said."""
    found = workflow_of(wanted(tmp_path, **more))
    found.file.parent.mkdir(exist_ok=True)
    found.file.write_text(found.text)
    loaded = workflows.load(found.file)
    local = loaded.sources[found.source].model_dump(exclude_defaults=True)
    return spec_of(tmp_path), local, found.said


FIELDS = ("model", "revision", "pipeline", "steps", "guidance_scale", "dtype", "licence",
          "scheduler", "options", "variant", "sha256")  # fmt: skip


@pytest.mark.parametrize("name", sorted(known_models()))
def test_a_model_that_aigi_specifies_has_the_settings_of_its_card(
    name: str, tmp_path: Path
) -> None:
    known = known_models()[name]
    for given in (name, known.model):
        spec, local, said = made(tmp_path, model=given)
        for field in FIELDS:
            assert getattr(spec, field) == getattr(known, field), field
        assert not local and any("specification of" in line for line in said)
        assert spec.splits["train"].width == known.splits["train"].width
    pinned, _, _ = made(tmp_path, model=f"{known.model}@{'1' * 40}", size="512", steps=3)
    assert (pinned.revision, pinned.steps, pinned.sha256) == ("1" * 40, 3, {})
    assert pinned.splits["train"].height == 512


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("sd", ("sd", 50, 7.5, 128)),
        ("sdxl", ("sdxl", 50, 5.0, 192)),
        ("sd3", ("sd3", 28, 7.0, 256)),
        ("flux", ("flux", 28, 3.5, 1024)),
        ("pixart-sigma", ("pixart-sigma", 20, 4.5, 256)),
    ],
)
def test_a_folder_tells_its_family_size_and_usual_settings(
    name: str, usual: tuple[Any, ...], tmp_path: Path, family: Folder
) -> None:
    spec, local, said = made(tmp_path, model=str(family(name)))
    size = spec.splits["train"]
    assert (spec.pipeline, spec.steps, spec.guidance_scale, size.width) == usual
    assert local["folder"] == str(family(name))
    assert spec.dtype == "float32" and any("--dtype" in line for line in said)
    assert any(line.startswith("steps ") for line in said)
    assert any("--licence" in line for line in said)


def test_a_licence_is_that_of_the_models_card(tmp_path: Path, family: Folder) -> None:
    folder = shutil.copytree(family("sd"), tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: mine-1.0\n---\n# Hi\n")
    assert made(tmp_path, model=str(folder))[0].licence == "mine-1.0"
    spec, _, said = made(tmp_path, model=str(folder), licence="MIT")
    assert spec.licence == "MIT" and not any("--licence" in line for line in said)


@pytest.mark.parametrize(
    "card", ["", "# No front matter\n", "---\n- a list\n---\n", "---\nlicense"]
)
def test_a_card_that_states_no_licence_is_no_error(
    card: str, tmp_path: Path, family: Folder
) -> None:
    folder = shutil.copytree(family("sd"), tmp_path / "model")
    (folder / "README.md").write_text(card)
    spec, _, said = made(tmp_path, model=str(folder))
    assert spec.licence == "not stated" and any("--licence" in line for line in said)


def test_distilled_models_are_asked_about(tmp_path: Path, family: Folder) -> None:
    for name in ("sdxl-turbo", "SDXL-Lightning-4step", "Hyper-SD", "some-LCM"):
        folder = shutil.copytree(family("sd"), tmp_path / name)
        with pytest.raises(AigiError, match=r"distilled.*Give --steps and --guidance-scale"):
            made(tmp_path, model=str(folder))
        spec, _, _ = made(tmp_path, model=str(folder), steps=4, guidance_scale=0.0)
        assert (spec.steps, spec.guidance_scale) == (4, 0.0)


def test_one_file_of_weights_makes_images(home: Path, family: Folder) -> None:
    """With the configurations of a folder; what makes it is pinned by the file's hash."""
    config = shutil.copytree(family("flux"), home / "config")
    weights = config / "transformer" / "diffusion_pytorch_model.safetensors"
    file = home / "My Tune.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(weights).items()}, file)
    weights.unlink()
    done = aigi(home, "generate", "--model", "My Tune.safetensors", "--config", "config",
                "--prompts", "prompts.txt", "--count", "2", "--steps", "2", "--size", "64x64",
                "--guidance-scale", "3.5", "--out", "runs/tuned")  # fmt: skip
    assert done.returncode == 0, done.stderr
    spec = spec_of(home, "tuned", "my-tune")
    assert spec.file == file_sha256(str(file))
    assert len(rows(home, "tuned")) == 2
    # A later file under the same name is another model.
    save_file(
        {"x": load_file(home / "My Tune.safetensors")["proj_out.weight"]},
        home / "My Tune.safetensors",
    )
    done = aigi(home, "run", "runs/tuned.yaml", "--set", "run=runs/again")
    assert done.returncode == 1 and "sha256" in done.stderr


def test_what_a_file_of_weights_is_can_be_told_by_its_tensors(tmp_path: Path) -> None:
    import torch

    from pipeline.images.diffusion.usual import config_of

    file = tmp_path / "x.safetensors"
    xl = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    save_file({xl: torch.zeros(2)}, file)
    assert config_of("--model", str(file)) == "stabilityai/stable-diffusion-xl-base-1.0"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 4)}, file)
    assert config_of("--model", str(file)) == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    save_file({"something.else": torch.zeros(2)}, file)
    with pytest.raises(AigiError, match=r"do not tell which configuration.*--config"):
        config_of("--model", str(file))
    key = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.zeros(2, 1024)}, file)
    with pytest.raises(AigiError, match=r"Stable Diffusion 2.*sd2-community"):
        config_of("--model", str(file))


def test_loras_are_in_the_specification_by_their_hash(home: Path, family: Folder) -> None:
    pytest.importorskip("peft")
    folder = shutil.copytree(family("flux"), home / "flux")
    first, second = lora(folder, "style"), lora(folder, "grain")
    for name in ("style", "grain"):
        assert (home / f"{name}.safetensors").exists()
    done = aigi(home, "generate", "--model", "flux", "--prompts", "prompts.txt", "--count", "1",
                "--size", "64", "--steps", "2", "--out", "runs/mine",
                "--lora", "style.safetensors@0.8", "--lora", "grain.safetensors")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = spec_of(home).loras
    assert [(one.name, one.sha256, one.scale) for one in found] == [
        ("style", first["sha256"], 0.8), ("grain", second["sha256"], 1.0)
    ]  # fmt: skip
    assert len(rows(home)) == 1


UPLOAD = """
api.create_repo(sys.argv[1])
print(json.dumps(api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2]).oid))
"""


def test_models_and_loras_of_the_hub(home: Path, family: Folder, tmp_path: Path) -> None:
    """From a Hub to a release, in a process of its own: the branch's commit is in every row."""
    pytest.importorskip("peft")
    flux = shutil.copytree(family("flux"), tmp_path / "flux")
    lora(flux, "style")
    loras = tmp_path / "loras"
    loras.mkdir()
    (tmp_path / "style.safetensors").rename(loras / "style.safetensors")
    with serve(tmp_path / "hub") as hub:
        script(hub, UPLOAD, "ann/style", loras)
        commit = script(hub, UPLOAD, "ann/tiny-flux", flux)
        environment = hub.environment(PYTHONPATH=str(ROOT))
        arguments = ["generate", "--model", "ann/tiny-flux", "--prompts", "prompts.txt",
                     "--count", "1", "--size", "64", "--steps", "2", "--out", "runs/mine",
                     "--lora", "ann/style@0.5"]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=home,
                              env=environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (row,) = rows(home)
        assert (row["model"], row["revision"]) == ("ann/tiny-flux", commit)
        (found,) = spec_of(home).loras
        assert (found.model, found.weight_name, found.scale) == (
            "ann/style",
            "style.safetensors",
            0.5,
        )
        missing = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "generate", "--model", "ann/tiny-flx",
             "--prompts", "prompts.txt", "--out", "runs/other"],
            cwd=home, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert missing.returncode == 1 and "ann/tiny-flx" in missing.stderr
        assert "Traceback" not in missing.stderr and not (home / "runs" / "other.yaml").exists()


# --- What is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "sdxxl"}, 'no id of the Hub .*did you mean "sdxl"'),
        ({"model": "x.ckpt"}, "no such folder or file"),
        ({"size": "big"}, "--size big: expected WIDTHxHEIGHT"),
        ({"loras": ("nowhere.safetensors",)}, "--lora nowhere.safetensors: no such file"),
        ({"loras": ("./a/b",)}, "--lora ./a/b: no such file"),
        ({"loras": ("a/b@much",)}, "expected a number behind @"),
        ({"loras": ("a/b@nan",)}, "expected a number behind @"),
        ({"config": "x"}, "--config: only beside --model FILE.safetensors"),
    ],
)
def test_wrong_options_are_named(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=said):
        workflow_of(wanted(tmp_path, **more))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for name in ("weights.ckpt", "p.docx"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AigiError, match=r"weights.ckpt: weights in pickle files are not read"):
        workflow_of(wanted(tmp_path, model=str(tmp_path / "weights.ckpt")))
    with pytest.raises(AigiError, match=r"p.docx: expected .txt \(a prompt a line\), .csv"):
        workflow_of(Wanted("sdxl", str(tmp_path / "p.docx"), "out"))
    with pytest.raises(AigiError, match=r"absent.txt: no such file"):
        workflow_of(Wanted("sdxl", str(tmp_path / "absent.txt"), "out"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(AigiError, match=r"empty.txt: no prompt in it"):
        workflow_of(Wanted("sdxl", str(tmp_path / "empty.txt"), "out"))


def test_errors_of_settings_name_the_file_that_would_have_them(home: Path, models: Path) -> None:
    done = aigi(home, *command(models, "--dtype", "float8"))
    assert done.returncode == 1
    assert re.search(r'runs/mine.yaml: plan.dataset.sources.sd.dtype: no "float8"', done.stderr)
    assert not (home / "runs").exists()


def test_hostile_names_stay_values(tmp_path: Path, family: Folder) -> None:
    """A folder or list whose name is YAML, a comment or several lines."""
    folder = shutil.copytree(family("sd"), tmp_path / "a: {b} # c")
    (folder / "README.md").write_text("---\nlicense: 'x\n\n  run: /etc'\n---\n")
    prompts = tmp_path / "p\nrun: elsewhere.txt"
    prompts.write_text("a boat\n")
    found = workflow_of(Wanted(str(folder), str(prompts), str(tmp_path / "out")))
    data = yaml.safe_load(found.text)
    assert data["run"] == str(tmp_path / "out")
    assert data["plan"]["dataset"]["sources"]["a-b-c"]["title"] == "a: {b} # c"
    assert data["prompts"]["sources"][0]["path"] == str(prompts)


@pytest.mark.parametrize(
    ("out", "file"),
    [
        ("runs/mine", "runs/mine.yaml"),
        ("runs/mine/", "runs/mine.yaml"),
        ("mine.v2", "mine.v2.yaml"),
        ("s3://bucket/runs/mine", "mine.yaml"),
    ],
)
def test_the_file_is_beside_the_run(out: str, file: str) -> None:
    assert file_of(out) == Path(file)
