"""The life of a dataset: built, published, grown, made again, added to by others; and killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import PROMPTS, aigi
from tests.hub import Hub, serve
from tests.killed import killed
from tests.release.test_publish import REPO, TO
from tests.test_growth import pictures, release_of

pytestmark = pytest.mark.slow

SOURCE = """
  {name}:
    title: {name}
    licence: Apache-2.0
    kind: diffusers
    pipeline: {pipeline}
    model: test/{name}
    revision: seed-0
    scheduler: {scheduler}
    steps: 2
    guidance_scale: 5.0
    images_per_prompt: {each}
    captions: any
    splits:
      train: {{count: {train}, width: 64, height: 64}}
      test: {{count: {test}, width: 96, height: 64}}
"""
HEAD = "name: set\ntitle: A set\nlicence: Apache-2.0\nsources:\n"
IMPORTED = """
  photos:
    title: Photos
    licence: MIT
    kind: import
    model: camera
    revision: r
    splits: {train: {width: 64, height: 64}}
"""


def source(name: str, train: int, test: int, **more: Any) -> str:
    given = {"pipeline": "sd", "scheduler": "ddim", "each": 2, **more}
    return SOURCE.format(name=name, train=train, test=test, **given)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub", lfs_from=10_000) as hub:
        yield hub


class Builder:
    """A machine with a workflow, a run and a specification."""

    def __init__(self, folder: Path, models: Path, hub: Hub) -> None:
        self.folder, self.models, self.hub = folder, models, hub
        folder.mkdir()
        self.run = folder / "run"

    def specify(self, *sources: str, reuse: tuple[str, ...] = (), version: str = "1.0.0",
                captions: tuple[str, ...] = ("a",), **more: Any) -> None:  # fmt: skip
        for number, name in enumerate(("a", "b")):
            texts = [f"{text}{' in winter' * number}" for text in PROMPTS]
            (self.folder / f"{name}.txt").write_text("\n".join(texts) + "\n")
        (self.folder / "dataset.yaml").write_text(HEAD + "".join(sources))
        folders = {"one": "sd", "two": "sdxl", "three": "sd"}
        data: dict[str, Any] = {
            "run": str(self.run),
            "split": {"validation": 0.0, "test": 0.3},
            "prompts": {
                "sources": [{"kind": "text", "path": f"{n}.txt", "name": n} for n in captions],
                "near_duplicates": None,
            },
            "plan": {"dataset": "dataset.yaml", "shard_mb": 0.05, "reuse": list(reuse)},
            "sources": {
                name: {"folder": str(self.models / folder), "batch_size": 3}
                for name, folder in folders.items()
            },
            "images": {},
            "quality": {},
            "selection": {"max_black": 0.99},
            "release": {"version": version},
            **more,
        }
        text = yaml.safe_dump({name: each for name, each in data.items() if each is not None})
        (self.folder / "workflow.yaml").write_text(text)

    def aigi(self, *arguments: str, code: int = 0) -> str:
        done = aigi(*arguments, **self.hub.environment())
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def killed(self, moment: str, count: int, *arguments: str) -> None:
        killed(moment, count, *arguments, **self.hub.environment())

    def make(self, moments: tuple[tuple[str, int], ...] = ()) -> str:
        command = ("run", str(self.folder / "workflow.yaml"))
        for moment, count in moments:
            self.killed(moment, count, *command)
        return self.aigi(*command)


PHASES = (("plan", 2), ("images", 2), ("images", 3), ("quality", 1), ("selection", 2),
          ("release", 2), ("move", 2), ("release/README.md", 1))  # fmt: skip


@pytest.mark.parametrize("kills", [(), PHASES], ids=["undisturbed", "killed"])
def test_a_dataset_is_built_published_grown_joined_and_made_again(
    tmp_path: Path, models: Path, hub: Hub, kills: tuple[tuple[str, int], ...]
) -> None:
    # Two sources, published.
    mine = Builder(tmp_path / "mine", models, hub)
    mine.specify(source("one", 12, 2), source("two", 4, 2, pipeline="sdxl", scheduler="euler"))
    mine.make(kills)
    mine.aigi("publish", str(mine.run), "--to", TO)
    first = {row["image_id"]: row for f in (mine.run / "release").rglob("*/*.parquet")
             for row in pq.read_table(f, partitioning=None).to_pylist()}  # fmt: skip
    assert len(first) == 20

    # Larger counts, a third model and a second caption file; on another machine, which takes what
    # is published, and has no model of the second source.
    grown = Builder(tmp_path / "grown", models, hub)
    three = source("three", 6, 2, each=1)
    bigger = (source("one", 20, 4), source("two", 4, 2, pipeline="sdxl", scheduler="euler"), three)
    grown.specify(*bigger, captions=("a", "b"), version="1.1.0", reuse=(f"{TO}@v1.0.0",))
    data = yaml.safe_load((grown.folder / "workflow.yaml").read_text())
    data["prompts"]["sources"] = [s for s in data["prompts"]["sources"] if s["name"] == "a"]
    (grown.folder / "workflow.yaml").write_text(yaml.safe_dump(data))
    said = grown.make(kills)
    assert "20 of" in said or kills
    data["prompts"]["sources"] += [{"kind": "text", "path": "b.txt", "name": "b"}]
    (grown.folder / "workflow.yaml").write_text(yaml.safe_dump(data))
    assert "0 are not" in grown.make(kills) or kills
    grown.aigi("verify", str(grown.run / "release"), "--deep")
    grown.aigi("publish", str(grown.run), "--to", TO)
    changes = grown.aigi("diff", f"{TO}@v1.0.0", f"{TO}@v1.1.0", code=1)
    assert "one/train: 8 added" in changes and "three/test: 2 added" in changes
    assert "removed" not in changes and "changed" not in changes
    second = {row["image_id"]: row for f in (grown.run / "release").rglob("*/*.parquet")
              for row in pq.read_table(f, partitioning=None).to_pylist()}  # fmt: skip
    assert len(second) == 38
    for image, row in first.items():
        assert second[image]["pixels_sha256"] == row["pixels_sha256"]
        assert second[image]["image"]["bytes"] == row["image"]["bytes"]

    # Made again from its manifest, byte for byte.
    again = tmp_path / "again"
    command = ["run", str(grown.run / "release" / "manifest.json"), "--set", f"run={again}"]
    for name, model in (("one", "sd"), ("two", "sdxl"), ("three", "sd")):
        command += ["--set", f"sources.{name}.folder={models / model}"]
    for moment, count in kills:
        grown.killed(moment, count, *command, "--trust")
    grown.aigi(*command, "--trust")
    assert release_of(again) == release_of(grown.run)

    # A colleague adds imported images from another machine.
    other = Builder(tmp_path / "other", models, hub)
    names = [f"p{number}" for number in range(5)]
    folder = pictures(
        other.folder / "pictures", names, [f"a new photo of {n},train" for n in names]
    )
    other.specify(IMPORTED, version="1.2.0", prompts=None, quality=None, selection=None, sources={
        "photos": {"kind": "import", "path": str(folder),
                   "captions": str(folder / "captions.csv")}})  # fmt: skip
    other.make(kills)
    other.aigi("publish", str(other.run), "--to", TO, "--source", "photos")
    assert hub.tags(REPO).keys() == {"v1.0.0", "v1.1.0", "v1.2.0"}
    other.aigi("verify", f"{TO}@v1.2.0", "--deep")
    configs = {path.split("/")[0] for path in hub.files(REPO, "main") if "/" in path}
    assert configs == {"one", "two", "three", "photos"}
    assert all(many == 1 for many in hub.uploads.values()), "no file was sent twice"
