"""What is written says what is in it, the shipped pictures are drawn by this code, sheets fit."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.demo import TINY
from pipeline.tiny import gallery
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scene import Scene, Thing
from pipeline.tiny.scenes import draw_scene

SHIPPED = TINY / "pictures"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    gallery._main([str(folder), "--demo"])
    return folder


def pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def test_the_demos_pictures_are_those_that_this_code_draws(drawn: Path) -> None:
    """By pixels: encoders change with their versions."""
    names = {path.relative_to(SHIPPED) for path in SHIPPED.rglob("*.*")}
    assert names == {path.relative_to(drawn) for path in drawn.rglob("*.*")}
    assert len(names) == 19
    for name in names:
        old, new = (SHIPPED / name).read_bytes(), (drawn / name).read_bytes()
        if name.suffix in (".csv", ".jsonl"):
            assert old == new, name
        elif name.suffix == ".zip":
            first, second = zipfile.ZipFile(io.BytesIO(old)), zipfile.ZipFile(io.BytesIO(new))
            assert first.namelist() == second.namelist()
            for member in first.namelist():
                assert (pixels(first.read(member)) == pixels(second.read(member))).all(), member
        else:
            most = 2 if name.suffix == ".jpg" else 0
            assert np.abs(pixels(old) - pixels(new)).max() <= most, name


def test_the_demos_captions_name_every_file(drawn: Path) -> None:
    with (drawn / "mj52" / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} | {"captions.csv"} == {
        path.name for path in (drawn / "mj52").iterdir()
    }


def test_the_data_set_holds_exact_ground_truth_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(tmp_path), "--count", "5", "--seed", "40", "--size", "96", "64"]
    calls = []

    def stopping(scene: Scene, width: int, height: int, seed: int) -> object:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(scene, width, height, seed)

    monkeypatch.setattr(gallery, "render", stopping)
    with pytest.raises(KeyboardInterrupt):
        gallery._main(command)
    assert not (tmp_path / "scenes.jsonl").exists()
    gallery._main(command)
    assert calls == [40, 41, 42, 42, 43, 44]
    rows = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [40, 41, 42, 43, 44]
    for row in rows:
        things = tuple(Thing(**thing) for thing in row["scene"].pop("things"))
        scene = Scene(things=things, **row["scene"])
        assert scene == draw_scene(row["seed"])
        assert row["captions"] == captions(scene, row["seed"])
        assert row["text"] in row["captions"]
        shown = pixels((tmp_path / row["file"]).read_bytes())
        assert (shown == render(scene, 96, 64, row["seed"])).all()
    assert not list(tmp_path.glob("*.partial"))


def test_contact_sheet(tmp_path: Path) -> None:
    gallery._main(["--sheet", str(tmp_path / "sheet.png"), "--count", "7", "--seed", "3"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 256 and sheet.height > 2 * 256


@pytest.mark.parametrize(
    "wrong",
    [[], ["folder", "--sheet", "a.png"], ["folder", "--count", "0"], ["--sheet", "a.png", "--demo"],
     ["folder", "--size", "32", "256"]],
)  # fmt: skip
def test_wrong_arguments_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        gallery._main(wrong)
