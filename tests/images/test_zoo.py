"""A zoo of ten tiny models, one of them broken, from prompts to a verified release."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import yaml

from pipeline.images.diffusion.diffuser import Diffuser
from tests.conftest import PROMPTS, aigi, aigi_here, cmp

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MODELS = [f"org/model-{number}" for number in range(10)]
BROKEN = 4


def copies(folder: Path, model: Path) -> None:
    """Copies of a tiny pipeline with other weights each."""
    tensors = safetensors.torch.load_file(model / WEIGHTS)
    for number, name in enumerate(MODELS):
        shutil.copytree(model, folder / name)
        changed = {key: value * (1 + 0.02 * number) for key, value in tensors.items()}
        safetensors.torch.save_file(changed, folder / name / WEIGHTS)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Copies of a tiny pipeline; the weights of one are cut off."""
    folder = tmp_path_factory.mktemp("zoo")
    copies(folder, models / "sd")
    whole = (folder / MODELS[BROKEN] / WEIGHTS).read_bytes()
    (folder / MODELS[BROKEN] / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    return folder


FEW = [MODELS[2], MODELS[BROKEN], MODELS[5]]


def workflow(folder: Path, zoo: Path, models: list[str] = MODELS, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    lines = [f"{name},v1,{2 + number % 2}" for number, name in enumerate(models)]
    (folder / "zoo.csv").write_text("\n".join(["model,revision,steps", *lines]) + "\n")
    source = {
        "title": "Ten models",
        "licence": "see each model",
        "kind": "zoo",
        "models": "zoo.csv",
        "each": {"pipeline": "sd", "guidance_scale": 3.0, "scheduler": "ddim"},
        "images_per_model": {"train": 3, "test": 1},
        "images_per_prompt": 10,
        "splits": {"train": {"width": 64, "height": 64}, "test": {"width": 64, "height": 64}},
    }
    dataset = {"name": "z", "title": "Z", "licence": "l", "sources": {"zoo": source}}
    (folder / "zoo.yaml").write_text(yaml.safe_dump(dataset))
    data: dict[str, Any] = {
        "run": str(folder / "run"),
        "split": {"validation": 0.0, "test": 0.3},
        "prompts": {"sources": [{"kind": "text", "path": "prompts.txt"}], "near_duplicates": None},
        "plan": {"dataset": "zoo.yaml", "shard_mb": 0.0125},  # two images a shard
        "sources": {"zoo": {"folder": str(zoo), "batch_size": 2}},
        "images": {},
        "release": {"version": "1.0.0"},
        **changes,
    }
    (folder / "w.yaml").write_text(yaml.safe_dump(data))
    return folder / "w.yaml"


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run / table).to_pylist()
    return found


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> Iterator[tuple[Path, str]]:
    """A finished run, not to be changed, and what it said; models were counted as they loaded."""
    folder = tmp_path_factory.mktemp("released")
    loaded: list[str] = []
    real = Diffuser.__init__

    def counted(self: Diffuser, name: str, spec: Any, *given: Any, **more: Any) -> None:
        loaded.append(spec.model)
        real(self, name, spec, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffuser, "__init__", counted)
        done = aigi_here("run", str(workflow(folder, zoo)))
    assert done.returncode == 3, done.stderr
    assert loaded == MODELS, "each once, for all its shards of both splits"
    yield folder, done.stderr


def test_each_model_makes_its_images_and_a_shard_has_one_model(
    released: tuple[Path, str],
) -> None:
    run = released[0] / "run"
    made = {row["image_id"]: row for row in rows_of(run, "images")}
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows_of(run, "plan"):
        counts[row["model"], row["split"]] += 1
        assert (made[row["image_id"]]["error"] is None) == (row["model"] != MODELS[BROKEN])
        assert row["steps"] == 2 + MODELS.index(row["model"]) % 2
    assert counts == {(name, s): n for name in MODELS for s, n in (("train", 3), ("test", 1))}
    for file in (run / "plan").glob("*.parquet"):
        (model,) = {row["model"] for row in rows_of(file, "")}
        assert f"-m{MODELS.index(model):04d}-" in file.name
    # The same prompt goes to every model, whose other weights make another image.
    texts = Counter(row["text"] for row in rows_of(run, "plan"))
    assert set(texts.values()) == {10}
    first = [row["image_id"] for row in rows_of(run, "plan") if row["text"] == min(texts)]
    assert len({made[image]["pixels_sha256"] for image in first}) == 10
    versions = [json.loads(row["versions"]) for row in made.values() if not row["error"]]
    assert len({one["weights"]["unet"] for one in versions}) == 9


def test_a_broken_model_is_named_before_and_after(released: tuple[Path, str]) -> None:
    run, said = released[0] / "run", released[1]
    before, after = said.split("images: ", 1)
    assert "sources.zoo: 1 of 10 models make no image; their rows have an error" in before
    assert f"model {MODELS[BROKEN]}@v1 cannot be used: sources.zoo" in before
    assert "zoo train: 27 of 30: 3 failed" in after
    assert f"zoo {MODELS[BROKEN]}@v1 train: 0 of 3: 3 failed (model {MODELS[BROKEN]}@v1" in after
    rejects = rows_of(run, "rejects/images.parquet")
    assert len(rejects) == 4
    assert all(f"model {MODELS[BROKEN]}@v1 cannot be used" in row["reason"] for row in rejects)


def test_the_release_is_one_config_and_is_verified(released: tuple[Path, str]) -> None:
    run = released[0] / "run"
    done = aigi_here("verify", str(run), "--deep")
    assert done.returncode == 0, done.stderr
    loaded = datasets.load_dataset(str(run / "release"), "zoo", split="train")
    assert Counter(loaded["model"]) == {name: 3 for name in MODELS if name != MODELS[BROKEN]}
    card = (run / "release" / "README.md").read_text()
    assert all(name in card for name in MODELS if name != MODELS[BROKEN])
    manifest = json.loads((run / "release" / "manifest.json").read_text())
    listed = manifest["specification"]["sources"]["zoo"]["models"]
    assert [one["model"] for one in listed] == MODELS


def test_images_of_a_zoo_are_made_again_from_its_manifest(
    released: tuple[Path, str], zoo: Path
) -> None:
    run = released[0] / "run"
    done = aigi_here("verify", str(run), "--pixels", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4" in done.stdout
    again = released[0] / "again"
    done = aigi_here(
        "run", "workflows/regenerate.yaml", "--set", f"run={again}", "--allow-fewer",
        "--set", f"plan.manifest={run / 'release' / 'manifest.json'}",
        "--set", f"sources.zoo.folder={zoo}", "--set", "release.record=null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other = (
        {row["image_id"]: row["pixels_sha256"] for row in rows_of(place, "images")}
        for place in (run, again)
    )
    assert one == other
    assert cmp(run / "release", again / "release") == []


def test_a_recipe_names_the_model_of_its_row(released: tuple[Path, str], zoo: Path) -> None:
    from pipeline.manifest import open_release
    from pipeline.release.making import COLUMNS, Makings

    store, manifest = open_release(str(released[0] / "run" / "release"))
    makings = Makings(store, manifest)
    row = rows_of(released[0] / "run", "release/zoo")[-1]
    known = makings.known({name: row.get(name) for name in COLUMNS})
    assert known.certain().model == row["model"] and known.certain().steps == row["steps"]
    assert known.folder == str(zoo / row["model"])


def test_a_changed_list_is_another_plan(released: tuple[Path, str], tmp_path: Path) -> None:
    path = released[0] / "w.yaml"
    done = aigi_here("run", str(path))
    assert done.returncode == 3 and done.stderr.count("already made") == 8, done.stderr
    before = (released[0] / "zoo.csv").read_text()
    try:
        (released[0] / "zoo.csv").write_text(before.replace("model-9,v1,3", "model-9,v1,5"))
        done = aigi_here("run", str(path))
    finally:
        (released[0] / "zoo.csv").write_text(before)
    assert done.returncode == 1
    assert "cannot keep 4 of the run's images" in done.stderr
    assert "models.9.steps: 3 -> 5" in done.stderr


def test_rounds_fill_from_the_other_models_and_the_broken_one_is_still_reported(
    tmp_path: Path, zoo: Path
) -> None:
    path = workflow(tmp_path, zoo, FEW, selection={"rounds": 3, "exact_duplicates": False})
    done = aigi_here("run", str(path))
    assert done.returncode == 3, done.stderr
    assert "zoo train: " not in done.stderr.split("fewer images than wanted")[1]
    assert f"zoo {MODELS[BROKEN]}@v1 train: 0 of 3" in done.stderr
    kept = [row for row in rows_of(tmp_path / "run", "selection") if row["keep"]]
    assert Counter(row["split"] for row in kept) == {"train": 9, "test": 3}
    assert aigi_here("verify", str(tmp_path / "run")).returncode == 0


def test_a_zoo_without_a_sound_model_makes_nothing(tmp_path: Path, zoo: Path) -> None:
    path = workflow(tmp_path, zoo)
    (tmp_path / "zoo.csv").write_text(f"model,revision,steps\n{MODELS[BROKEN]},v1,2\n../etc,v1,2\n")
    done = aigi_here("run", str(path))
    assert done.returncode == 1
    assert "sources.zoo: none of its models can be used" in done.stderr
    assert "../etc: no name of a model" in done.stderr
    assert not list((tmp_path / "run" / "images").glob("*.parquet"))


@pytest.mark.parametrize("name", ["models", "device"])
def test_what_is_no_fault_of_the_model_fails_the_shard(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torch

    def failing(*_: Any, **__: Any) -> None:
        if name == "device":
            raise torch.OutOfMemoryError("CUDA out of memory")
        raise ConnectionError("the Hub is away")

    monkeypatch.setattr(Diffuser, "__init__", failing)
    done = aigi_here("run", str(workflow(tmp_path, zoo, FEW)))
    assert done.returncode == 1 and "shards failed" in done.stderr
    assert not list((tmp_path / "run" / "images").glob("*.parquet"))


def test_a_model_that_makes_only_noise_costs_its_own_rows(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Diffuser._infer

    def black(self: Diffuser, rows: list[Any]) -> Any:
        made = real(self, rows)
        return made * 0 if self.spec.model == MODELS[2] else made

    monkeypatch.setattr(Diffuser, "_infer", black)
    done = aigi_here("run", str(workflow(tmp_path, zoo, FEW)))
    assert done.returncode == 3, done.stderr
    assert f"zoo {MODELS[2]}@v1 train: 0 of 3: 3 failed (all black" in done.stderr


@pytest.mark.slow
def test_workers_of_ray_make_the_same_images(
    released: tuple[Path, str], tmp_path: Path, zoo: Path
) -> None:
    path = workflow(tmp_path, zoo)
    done = aigi("run", str(path), "--set", "compute.ray=local", "--set", "compute.workers=2")
    assert done.returncode == 3, done.stderr
    one, other = (
        {row["image_id"]: (row["pixels_sha256"], row["error"]) for row in rows_of(run, "images")}
        for run in (released[0] / "run", tmp_path / "run")
    )
    assert one == other
