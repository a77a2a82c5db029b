"""A run and its release have one copy of each image, and what follows still needs no model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline import freed, shards
from pipeline.folder import Folder
from pipeline.intact import wrong_pixels
from pipeline.store import Store
from tests.conftest import WorkflowMaker, make_workflow
from tests.killed import killed
from tests.test_growth import changed, drawn, release_of, rows_of, run

__all__ = ["drawn"]  # a fixture
SCORES = {"quality": {}, "selection": {"max_black": 1.0}}


def without_models(workflow: Path) -> Path:
    """The same workflow on a machine that has no model."""
    data = yaml.safe_load(workflow.read_text())
    for name, source in data["sources"].items():
        source["folder"] = str(workflow.parent / "gone" / name)
    return changed(workflow, sources=data["sources"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The workflow file of a finished run whose images have moved: not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    path: Path = make_workflow.__wrapped__(folder, models)(  # type: ignore[attr-defined]
        **SCORES
    )
    run(path)
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    return changed_run(tmp_path / made.name, tmp_path / "run")


def changed_run(workflow: Path, place: Path) -> Path:
    data = yaml.safe_load(workflow.read_text())
    workflow.write_text(yaml.safe_dump({**data, "run": str(place)}))
    return workflow


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


def lacking(run_: Path) -> int:
    """Rows of the files of images that have neither an image nor an error."""
    files = (run_ / "images").glob("*.parquet")
    tables = [pq.read_table(file, columns=["image", "error"], partitioning=None) for file in files]
    rows = [row for table in tables for row in table.to_pylist()]
    return sum(row["image"] is None and row["error"] is None for row in rows)


def test_whoever_reads_images_gets_them_all_the_same(made: Path, make_workflow: WorkflowMaker,
                                                     tmp_path: Path) -> None:  # fmt: skip
    place = made.parent / "run"
    assert lacking(place) == 36
    other = make_workflow(**SCORES, release={"version": "1.2.3", "pixels": "copied"})
    run(other)
    assert lacking(tmp_path / "run") == 0
    for table in ("images", "quality", "selection"):
        assert rows_of(place, table) == rows_of(tmp_path / "run", table)
    assert release_of(place) == release_of(tmp_path / "run")
    store = Store(str(place))
    for shard in store.shards("images"):
        count = store.rows("images", shard) or 0
        assert not list(wrong_pixels(store, "images", shard))
        for wanted in ([count - 1], [0, count - 1], range(0, count, 2)):
            rows = dict(store.rows_at("images", shard, wanted))
            whole = store.read("images", shard).to_pylist()
            assert rows == {row: whole[row] for row in wanted}
    said = run(changed(other, release={"pixels": "moved"}))
    assert said.count("already made") >= 6 and lacking(tmp_path / "run") == 36
    assert release_of(place) == release_of(tmp_path / "run")
    run(changed(other, release={"pixels": "copied"}))
    assert lacking(tmp_path / "run") == 0


def test_a_run_of_before_keeps_its_copies(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    path = make_workflow(release={"version": "1.2.3", "pixels": "copied"})
    run(path)
    data = yaml.safe_load(path.read_text())
    del data["release"]["pixels"]
    path.write_text(yaml.safe_dump(data))
    assert run(path).count("already made") >= 5
    assert lacking(tmp_path / "run") == 0


def test_the_peak_on_disk_is_the_images_and_a_few_shards(
    make_workflow: WorkflowMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    dice, lines = np.random.default_rng(0), ["file,text"]
    for number in range(40):
        noise = dice.integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a picture of noise of number {number}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "noise.yaml").write_text(
        "name: noise\ntitle: Noise\nlicence: MIT\nsources:\n  noise: {title: N, licence: MIT, "
        "kind: import, model: m, revision: r, splits: {train: {width: 512, height: 512}}}\n"
    )
    path = make_workflow(
        prompts=None,
        plan={"dataset": "noise.yaml", "shard_mb": 0.8},
        sources={"noise": {"kind": "import", "path": str(folder),
                           "captions": str(folder / "captions.csv")}},
    )  # fmt: skip
    monkeypatch.setattr(shards, "WAVE", 1)
    peak = 0
    replace = Folder._replace

    def measured(self: Folder, where: str, fill: Any) -> Any:
        nonlocal peak
        found = replace(self, where, fill)
        peak = max(
            peak, sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file())
        )
        return found

    monkeypatch.setattr(Folder, "_replace", measured)
    run(path)
    images = sum(
        len(row["image"]["bytes"]) for row in rows_of(tmp_path / "run", "release").values()
    )
    assert len(list((tmp_path / "run" / "release" / "noise").iterdir())) >= 12
    assert images > 16_000_000 and peak < 1.15 * images
    # A new version of the card needs no second copy either.
    peak = 0
    run(changed(path, release={"version": "1.3.0"}))
    assert 0 < peak < 1.15 * images


def test_other_thresholds_need_no_model_and_lose_nothing(copy: Path, made: Path) -> None:
    place = copy.parent / "run"
    before = rows_of(place, "images")
    without_models(copy)
    entropy = sorted(row["entropy"] for row in rows_of(place, "quality").values())
    run(changed(copy, selection={"min_entropy": entropy[9]}), "--allow-fewer")
    assert 20 < len(rows_of(place, "release")) < 30
    assert lacking(place) == len(rows_of(place, "release"))
    assert rows_of(place, "images") == before
    run(changed(copy, selection={"min_entropy": entropy[-1] + 1}), code=1)
    assert rows_of(place, "images") == before
    run(changed(copy, selection={"min_entropy": None}))
    assert release_of(place) == release_of(made.parent / "run")
    assert rows_of(place, "images") == before


def test_scores_that_come_later_read_what_has_moved(
    make_workflow: WorkflowMaker, tmp_path: Path, made: Path
) -> None:
    path = make_workflow()
    run(path)
    run(changed(without_models(path), quality={}, selection=SCORES["selection"]))
    assert rows_of(tmp_path / "run", "quality") == rows_of(made.parent / "run", "quality")


Harm = Callable[[Path], None]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, flip], ids=["deleted", "damaged"])
def test_what_the_release_lost_is_taken_back_from_a_published_one(
    copy: Path, made: Path, harm: Harm, tmp_path: Path
) -> None:
    place = copy.parent / "run"
    whole = rows_of(place, "images")
    harm(place / "release" / "sd" / "train-00001.parquet")
    without_models(copy)
    said = run(copy, code=1)
    assert "images: sd-train-00001: its images are in release/sd/train-00001.parquet: " in said
    assert "gone" in said, "without a model, they cannot be made again"
    published = made.parent / "run" / "release"
    said = run(changed(copy, plan={"reuse": [str(published)]}))
    assert f"8 of 8 to make are taken from {published}" in said
    assert rows_of(place, "images") == whole
    assert release_of(place) == release_of(made.parent / "run")


def test_without_one_they_are_made_again(copy: Path, made: Path) -> None:
    place = copy.parent / "run"
    whole = rows_of(place, "images")
    shutil.rmtree(place / "release")
    said = run(copy)
    assert "its images are in release/" in said and "made again" in said
    assert rows_of(place, "images") == whole
    assert release_of(place) == release_of(made.parent / "run")


@pytest.mark.parametrize(
    ("moment", "count", "released"),
    [
        ("move", 1, True),
        pytest.param("release", 2, True, marks=pytest.mark.slow),
        pytest.param("write_record", 12, False, marks=pytest.mark.slow),
        pytest.param("move", 4, True, marks=pytest.mark.slow),
        pytest.param("_moving", 2, True, marks=pytest.mark.slow),
        pytest.param("images", 9, True, marks=pytest.mark.slow),
        pytest.param("write_record", 17, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_move_that_is_killed_loses_nothing(
    make_workflow: WorkflowMaker,
    made: Path,
    tmp_path: Path,
    drawn: list[str],
    moment: str,
    count: int,
    released: bool,
) -> None:
    path = make_workflow(**SCORES)
    assert killed(moment, count, "run", str(path))
    run(path)
    assert not (drawn and released), "all images had been made"
    place = tmp_path / "run"
    assert lacking(place) == 36 and not (place / freed.MOVING).exists()
    assert rows_of(place, "images") == rows_of(made.parent / "run", "images")
    assert release_of(place) == release_of(made.parent / "run")
