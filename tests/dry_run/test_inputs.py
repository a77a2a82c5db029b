"""What a dry run says of inputs: all that will certainly fail, at once, and the run agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import PROMPTS, WorkflowMaker, aigi_here


def dry(path: Path, *settings: str) -> tuple[int, list[str]]:
    """The exit code of a dry run, and its errors."""
    done = aigi_here(
        "run", str(path), "--dry-run", *(s for one in settings for s in ("--set", one))
    )
    assert "nothing was made" in done.stdout or done.returncode, done.stdout
    lines = done.stderr.splitlines()
    return done.returncode, [line for line in lines if line.startswith("error: ")]


def run(path: Path, *settings: str) -> Any:
    return aigi_here("run", str(path), *(s for one in settings for s in ("--set", one)))


def test_what_is_there_and_enough_is_fine(make_workflow: WorkflowMaker, models: Path) -> None:
    path = make_workflow(embeddings={"folder": str(models / "clip")}, quality={})
    assert dry(path) == (0, [])


def test_all_that_is_wrong_is_said_at_once(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,caption\n1,a boat\n")
    path = make_workflow(
        prompts={
            "sources": [
                {"kind": "text", "path": "absent.txt"},
                {"kind": "csv", "path": "list.csv", "column": "text"},
            ],
            "filters": {"blocklist": "words.txt", "names": "names.txt"},
            "review": "decisions.csv",
        },
        embeddings={"folder": "clip"},
        quality={"safety_checker": {"folder": "checker"}},
        selection={"review": "images.csv"},
        sources={"sd": {"folder": "nowhere"}, "sdxl": {"folder": "nowhere-either"}},
    )
    code, errors = dry(path, "plan.reuse=[before]")
    assert code == 1
    for part in (
        "prompts.sources.0: ", "absent.txt: no such file", "prompts.sources.1: ",
        "Set column to one of: id, caption", "prompts.filters.blocklist: ", "words.txt",
        "prompts.filters.names: ", "prompts.review: ", "embeddings.folder: ",
        "quality.safety_checker.folder: ", "selection.review: ", "sources.sd.folder: ",
        "sources.sdxl.folder: ", "plan.reuse: ",
    ):  # fmt: skip
        assert any(part in line for line in errors), part
    assert len(errors) == 11, "each of them once"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["prompts.select.count=4"], "prompts.select.count is 4: about 3 of them will be in train"),
        (["split.test=0"], "3 prompts are needed in test"),
        (["plan.sources=[sd]", "prompts.sources.0.path={few}"], "have 3 different ones"),
    ],
)
def test_too_few_prompts(
    settings: list[str], said: str, make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{text}\n" for text in PROMPTS[:3] * 20))
    path = make_workflow()
    settings = [one.format(few=few) for one in settings]
    code, errors = dry(path, *settings)
    assert code == 1 and any(said in line for line in errors), errors
    done = run(path, *settings)
    assert done.returncode == 1 and "raise" in done.stderr.lower(), "and so it is"


def test_enough_by_chance_is_not_called_too_few(make_workflow: WorkflowMaker) -> None:
    path = make_workflow()
    assert dry(path, "prompts.select.count=40") == (0, [])
    assert dry(path, "plan.limit=1", "prompts.select.count=8") == (0, [])


def test_models_that_cannot_be_loaded(
    make_workflow: WorkflowMaker, models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(models / "sd", tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("conv_out.weight")
    save_file(tensors, weights)
    code, errors = dry(make_workflow(), f"sources.sd.folder={folder}")
    assert code == 1 and any("conv_out.weight" in line for line in errors), errors
    done = run(make_workflow(), f"sources.sd.folder={folder}")
    assert done.returncode == 1 and errors[0].removeprefix("error: ") in done.stderr


def imported(tmp_path: Path, **source: object) -> Path:
    size: dict[str, Any] = {"train": {}, "test": {}}
    dataset = {"name": "mine", "title": "Mine", "licence": "MIT", "sources": {
        "own": {"kind": "import", "title": "Own", "licence": "MIT", "model": "x", "splits": size}
    }}  # fmt: skip
    path = tmp_path / "import.yaml"
    sources = {"own": {"kind": "import", "path": "images", "fit": "keep", **source}}
    data = {"run": "run", "plan": {"dataset": dataset}, "sources": sources, "images": {}}
    path.write_text(yaml.safe_dump(data))
    return path


def test_imports_without_images_captions_or_columns(tmp_path: Path) -> None:
    path = imported(tmp_path)
    code, (error,) = dry(path)
    assert code == 1 and "sources.own: " in error and "images: no such" in error
    (tmp_path / "images").mkdir()
    assert "no images in it" in dry(path)[1][0]
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.png")
    assert "and so for all that were looked at" in dry(path)[1][0]
    (tmp_path / "images" / "a.txt").write_text("a black square")
    assert dry(path) == (0, [])
    (tmp_path / "list.csv").write_text("name,prompt\na.png,a black square\n")
    said = dry(imported(tmp_path, captions="list.csv"))[1]
    assert "list.csv: text: no such column" in said[0] and "name, prompt" in said[0]
    fine = imported(tmp_path, captions="list.csv", text_column="prompt", file_column="name")
    assert dry(fine) == (0, [])


def test_captions_of_another_kind(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": PROMPTS}), tmp_path / "list.parquet")
    (tmp_path / "list.json").write_text(json.dumps({"annotations": []}))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "lists.jsonl").write_text('{"text": ["a", "b"]}\n')
    for source, said in (
        ({"kind": "jsonl", "path": "list.parquet", "column": "text"}, "list.parquet"),
        ({"kind": "text", "path": "empty.txt"}, "no captions in it"),
        ({"kind": "cc12m", "path": "prompts.txt"}, "no caption in its rows"),
        ({"kind": "jsonl", "path": "lists.jsonl", "column": "text"}, "no caption in its rows"),
        ({"kind": "text", "path": "*.nothing"}, "no file fits this pattern"),
    ):
        path = make_workflow(prompts={"sources": [source], "near_duplicates": None})
        code, errors = dry(path)
        assert code == 1 and said in errors[0], (source, errors)
        assert errors[0].startswith("error: prompts.sources.0: ")
