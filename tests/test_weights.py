"""Runs whose weights are incomplete, change on the way, or differ between workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.build import make
from pipeline.loaded import WEIGHTS, of_shard
from pipeline.progress import Progress
from pipeline.release.words import library_words
from pipeline.running import run_stages
from pipeline.stage import Build, Compute, Map
from pipeline.store import Store
from pipeline.workflow import load
from tests import toy
from tests.conftest import ROOT, WorkflowMaker, aigi, record_as_written


def changed(path: Path, prefix: str = "", more: float = 0.0) -> None:
    """Put something before the name of each tensor of a file, or add a number to one."""
    state = load_file(path)
    first = sorted(state)[0]
    state[first] = state[first] + more
    save_file({prefix + n: v for n, v in state.items()}, path, metadata={"format": "pt"})


SPECIFICATION = """
name: test-set
title: Test set
licence: Apache-2.0
sources:
  sd:
    title: Tiny SD
    licence: Apache-2.0
    kind: diffusers
    pipeline: sd
    model: test/tiny-sd
    revision: seed-0
    scheduler: ddim
    steps: 1
    guidance_scale: 1.0
    splits:
      train: {count: 9, width: 64, height: 64}
"""


def test_a_run_with_incomplete_or_changed_weights(
    make_workflow: WorkflowMaker, models: Path, tmp_path: Path
) -> None:
    """Misnamed, as the command says it in a process of its own; whole; changed between two runs."""
    folder = tmp_path / "sd"
    shutil.copytree(models / "sd", folder)
    text = folder / "text_encoder" / "model.safetensors"
    sound = text.read_bytes()
    path = make_workflow(sources={"sd": {"folder": str(folder), "batch_size": 3}})
    (tmp_path / "dataset.yaml").write_text(SPECIFICATION)
    changed(text, "x.")
    run = Store(str(tmp_path / "run"))

    done = aigi("run", str(path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert f"sources.sd.folder: {folder}: text_encoder: its weights lack 52 tensors (" in error
    assert "and have 52 tensors (x." in error and "Copy or download the model anew" in error
    assert not run.shards("images") and run.read_json("_stages", "images.json") is None

    text.write_bytes(sound)
    flow = load(path)
    make(flow, run, Progress(quiet=True))
    shards = list(run.shards("images"))
    assert len(shards) > 1
    rows = run.read_all("images", ["versions"])["versions"].unique().to_pylist()
    assert len(rows) == 1
    weights = json.loads(rows[0])["weights"]
    assert list(weights) == ["text_encoder", "unet", "vae"]
    assert all(len(sha256) == 64 for sha256 in weights.values())
    made = {f"sd.{part}": sha256 for part, sha256 in weights.items()}
    assert [of_shard(run, "images", shard) for shard in shards] == [made] * len(shards)
    released = run.read_all("release", ["versions"])["versions"].unique().to_pylist()
    assert released == rows
    words = library_words(rows[0])
    assert words in (tmp_path / "run" / "release" / "README.md").read_text()
    assert "weights" in words and len(words) < 100

    changed(folder / "vae" / "diffusion_pytorch_model.safetensors", more=0.01)
    kept = run.sha256("images", f"{shards[0]}.parquet")
    run.remove("images", f"{shards[1]}.parquet")
    with pytest.raises(AigiError) as other:
        make(flow, run, Progress(quiet=True))
    assert str(other.value).startswith(
        f"images: sd.vae: images/{shards[1]} was made with weights of sha256 "
    )
    assert f"…, images/{shards[0]} with {weights['vae'][:12]}…. Give every" in str(other.value)
    assert list(run.shards("images")) == [s for s in shards if s != shards[1]]
    assert run.sha256("images", f"{shards[0]}.parquet") == kept


class Loader(toy.Squarer):
    """A worker with weights that say which shard they are to make."""

    def __init__(self, odd: str | None, parts: dict[str, str]) -> None:
        super().__init__(0.0, None, None, None)
        self.odd, self.parts = odd, parts
        self.loaded: dict[str, str] = {}

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """As a model that is only loaded with the first rows."""
        number = rows["number"][0].as_py() // toy.ROWS
        other = dict.fromkeys(self.parts, "f" * 64)
        self.loaded = other if f"part-{number:05d}" == self.odd else self.parts
        yield from super().__call__(rows, start)


def stages(odd: str | None = None, **parts: str) -> tuple[Build, Map]:
    numbers, squares = toy.stages(shards=4)
    assert isinstance(numbers, Build) and isinstance(squares, Map)
    return numbers, replace(squares, make_worker=partial(Loader, odd, parts))


def run_of(store: Store, *given: Build | Map, compute: Compute | None = None) -> None:
    run_stages(given, store, compute or Compute(), Progress(quiet=True))


A, B = "a" * 64, "b" * 64
OTHER = (
    r"squares: net: squares/part-00002 was made with weights of sha256 f{12}…, "
    r"squares/part-00000 with a{12}…\. Give every machine the same weights"
)


def test_workers_that_loaded_different_weights_are_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(AigiError, match=OTHER):
        run_of(store, *stages(odd="part-00002", net=A))
    # What the odd one made is gone; what was right is kept, and the same command goes on.
    assert list(store.shards("squares")) == ["part-00000", "part-00001"]
    assert (store.read_json("_stages", "squares.json") or {})["status"] == "stopped"
    run_of(store, *stages(net=A))
    assert [of_shard(store, "squares", name) for name in store.shards("squares")] == [
        {"net": A}
    ] * 4


ON_RAY = """
import sys
from tests.test_weights import A, Compute, Store, run_of, stages

ray = Compute(ray="local", workers=2)
store = Store(sys.argv[1])
try:
    run_of(store, *stages(odd="part-00002", net=A), compute=ray)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_workers_of_ray_that_loaded_different_weights_are_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Which of them answers first is chance.
    assert done.stdout.startswith("AigiError squares: net: squares/part-0000"), done.stderr
    assert "was made with weights of sha256" in done.stdout
    # Actors that still ran when it stopped may have written a shard of their own.
    store = Store(str(tmp_path))
    assert (store.read_json("_stages", "squares.json") or {})["status"] == "stopped"


def test_shards_that_lie_there_with_different_weights_are_found(tmp_path: Path) -> None:
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    run_of(one, *stages(net=A))
    run_of(two, *stages(net="f" * 64))
    shutil.copy(tmp_path / "two/squares/part-00002.parquet", tmp_path / "one/squares")
    run_of(one, *stages(net=A))
    shards = list(one.shards("squares"))
    assert [of_shard(one, "squares", shard) for shard in shards] == [{"net": A}] * 4, "made again"
    shutil.copy(tmp_path / "two/squares/part-00002.parquet", tmp_path / "one/squares")
    record_as_written(one, "squares", "part-00002")
    one.remove("squares", "part-00003.parquet")
    with pytest.raises(AigiError, match=OTHER):
        run_of(one, *stages(net=A))
    one.remove("squares", "part-00002.parquet")
    run_of(one, *stages(net=A))
    assert len(one.shards("squares")) == 4


def test_a_table_and_its_input_are_of_the_same_model(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    numbers, squares = stages(net=A, own=B)
    again = replace(squares, table="cubes", inputs=("numbers", "squares"))
    run_of(store, numbers, squares)
    other = replace(again, make_worker=partial(Loader, None, {"net": B, "new": A}))
    with pytest.raises(AigiError, match=r"cubes: net: cubes/part-00000 .* squares/part-00000 with"):
        run_of(store, numbers, squares, other)
    run_of(store, numbers, squares, again)
    assert len(store.shards("cubes")) == 4


def test_shards_of_before_and_of_workers_without_weights_say_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plain = toy.stages(shards=4, weighs=False)
    run_stages(plain, store, Compute(), Progress(quiet=True))
    before = {name: store.sha256("squares", f"{name}.parquet") for name in store.shards("squares")}
    assert of_shard(store, "squares", "part-00000") == {}
    store.remove("squares", "part-00001.parquet")
    run_of(store, *stages(net=A))
    assert of_shard(store, "squares", "part-00001") == {"net": A}
    # The rows are the same, and so is every shard that no model made.
    kept = {name: store.sha256("squares", f"{name}.parquet") for name in before}
    assert [name for name in before if kept[name] != before[name]] == ["part-00001"]
    assert store.read_all("squares").schema.equals(toy.SQUARES, check_metadata=True)


def test_damaged_weights_of_a_footer(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = pa.table({"number": [1]}, schema=toy.NUMBERS)
    for text in ("{", "[1]", "[" * 100_000):
        notes = {WEIGHTS: text}
        store.write("t", "a", rows, toy.NUMBERS, partial(dict, notes))
        with pytest.raises(AigiError, match=r"t/a\.parquet: its footer has damaged weights"):
            of_shard(store, "t", "a")


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ('{"torch": "2", "weights": {"unet": "ab"}}', "torch 2, weights 21eec1dadbcb"),
        ('{"pillow": "12"}', "pillow 12"),
        ("[1]", "[1]"),
        ("x", "x"),
        (None, "not stated"),
    ],
)
def test_words_of_versions(versions: str | None, words: str) -> None:
    assert library_words(versions) == words
