"""What is measured and trained on: releases and folders, in parts."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline.collection import COLUMNS, Collection, Pictures
from pipeline.pixels import decode, png_bytes
from tests.conftest import listed


def _all(collection: Collection) -> list[dict[str, object]]:
    return [row for part in collection.parts for row in collection.read(part.name).to_pylist()]


def _folder(root: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(1)
    (root / "deep").mkdir(parents=True)
    for i in range(count):
        picture = rng.integers(0, 256, (8 + i, 16, 3), dtype=np.uint8)
        (root / ("deep" if i % 2 else ".") / f"{i}.png").write_bytes(png_bytes(picture))
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    return root


def test_a_release_gives_every_row_once_and_in_order(finished: tuple[Path, Path]) -> None:
    run = finished[1]
    collection = Collection(Pictures(place=str(run)))
    rows = _all(collection)
    manifest = json.loads((run / "release" / "manifest.json").read_text())
    expected = [
        image
        for record in manifest["files"]
        for image in pq.read_table(run / "release" / record["path"])["image_id"].to_pylist()
    ]
    assert [row["image_id"] for row in rows] == expected
    for part in collection.parts:
        table = collection.read(part.name)
        assert table.schema == COLUMNS
        assert table.num_rows == part.rows
        assert set(table["split"].to_pylist()) == {part.split}
        assert set(table["source"].to_pylist()) == {part.source}
    assert len({part.name for part in collection.parts}) == len(collection.parts)
    narrow = collection.read(collection.parts[0].name, ["text", "image_id"])
    assert narrow.column_names == ["text", "image_id"]


def test_sources_splits_and_limits_choose_rows(finished: tuple[Path, Path]) -> None:
    run = str(finished[1])
    whole = Collection(Pictures(place=run))
    source, split = whole.parts[0].source, whole.parts[0].split
    some = Collection(Pictures(place=run, sources=(source,), splits=(split,), limit=1))
    assert len(_all(some)) == 1
    assert some.state != whole.state
    assert Collection(Pictures(place=run)).state == whole.state
    with pytest.raises(AigiError, match=r"no source nothing; there are .*" + source):
        Collection(Pictures(place=run, sources=("nothing",)))


def test_long_row_groups_are_cut_and_joined_again_without_loss(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    shutil.copytree(finished[1] / "release", release)
    manifest = json.loads((release / "manifest.json").read_text())
    record = manifest["files"][0]
    table = pq.read_table(release / record["path"])
    long = pa.concat_tables([table] * (250 // table.num_rows + 1)).slice(0, 250)
    pq.write_table(long, release / record["path"], row_group_size=250)
    listed(release, record["path"])
    pictures = Pictures(place=str(release), sources=(record["config"],), splits=(record["split"],))
    collection = Collection(pictures)
    of_file = [part for part in collection.parts if part.path == record["path"]]
    assert [part.rows for part in of_file] == [100, 100, 50]
    found = pa.concat_tables([collection.read(part.name, ["image_id"]) for part in of_file])
    assert found["image_id"].to_pylist() == long["image_id"].to_pylist()
    first = Collection(pictures.model_copy(update={"limit": 130})).parts
    assert [part.rows for part in first] == [100, 30]


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_is_not_the_one_of_the_manifest_is_not_read(
    finished: tuple[Path, Path], tmp_path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files are hashed when they are read, large ones of this machine once before."""
    if not whole:
        monkeypatch.setattr("pipeline.store.WHOLE", 0)
    release = tmp_path / "release"
    shutil.copytree(finished[1] / "release", release)
    path = release / json.loads((release / "manifest.json").read_text())["files"][0]["path"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    collection = Collection(Pictures(place=str(release)))
    with pytest.raises(AigiError, match=rf"{path}: damaged .*content is not what was written"):
        for part in collection.parts:
            collection.read(part.name, ["image_id"])
    path.write_bytes(data[:-9])
    with pytest.raises(AigiError, match="missing or damaged"):
        Collection(Pictures(place=str(release)))


def test_a_folder_is_one_source_of_test_pictures(tmp_path: Path) -> None:
    root = _folder(tmp_path / "my pictures")
    collection = Collection(Pictures(place=str(root)))
    rows = _all(collection)
    names = [row["image"]["path"] for row in rows]  # type: ignore[index]
    assert names == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    assert {(r["source"], r["split"], r["text"], r["watermark"]) for r in rows} == {
        ("my pictures", "test", "", "none")
    }
    assert collection.parts[0].name == "my_pictures/test-00000"
    assert [row["height"] for row in rows] == [8, 10, 12, 9, 11]
    first = decode(rows[0]["image"]["bytes"], 10**6)  # type: ignore[index]
    assert first.rgb.shape == (8, 16, 3)


def test_captions_choose_files_and_name_what_is_missing(tmp_path: Path) -> None:
    root = _folder(tmp_path / "pictures")
    captions = tmp_path / "captions.csv"
    with captions.open("w", newline="") as file:
        csv.writer(file).writerows([["file", "prompt"], ["2.png", "a cat,\nand more"]])
    asked = Pictures(place=str(root), captions=str(captions), text_column="prompt", name="cats")
    rows = _all(Collection(asked))
    assert [(row["source"], row["text"]) for row in rows] == [("cats", "a cat,\nand more")]
    with pytest.raises(AigiError, match=r"captions\.csv: text: no such column. Set text_column"):
        Collection(asked.model_copy(update={"text_column": "text"}))
    lines = tmp_path / "captions.jsonl"
    lines.write_text('{"file": "absent.png", "text": "x"}\n')
    with pytest.raises(AigiError, match=r"jsonl:1: absent\.png: no such picture in"):
        Collection(asked.model_copy(update={"captions": str(lines), "text_column": "text"}))


def test_what_is_no_collection_says_so(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"no manifest\.json, so not a release"):
        Collection(Pictures(place=str(tmp_path / "nowhere")))
    with pytest.raises(AigiError, match="no images"):
        Collection(Pictures(place=str(tmp_path)))
    record = {"path": "../x.parquet", "config": "a", "split": "test", "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": [record]}))
    with pytest.raises(AigiError, match=r"files\.0: path: expected a/test-….parquet, found"):
        Collection(Pictures(place=str(tmp_path)))


def test_a_damaged_file_is_named(finished: tuple[Path, Path], tmp_path: Path) -> None:
    release = tmp_path / "release"
    shutil.copytree(finished[1] / "release", release)
    path = json.loads((release / "manifest.json").read_text())["files"][0]["path"]
    collection = Collection(Pictures(place=str(release)))
    (release / path).unlink()
    with pytest.raises(AigiError, match=path.split("/")[-1]):
        collection.read(collection.parts[0].name)
    with pytest.raises(AigiError, match=path):
        Collection(Pictures(place=str(release)))


def test_a_table_of_images_is_a_collection_with_its_texts(tmp_path: Path) -> None:
    images = [
        {"bytes": png_bytes(np.full((4, 4 + n, 3), n, np.uint8)), "path": f"{n}.png"}
        for n in range(5)
    ]
    place = tmp_path / "mine.parquet"
    table = pa.table({"image": images, "text": [" a ", None, "c", "d", "e"]})
    pq.write_table(table, place, row_group_size=2)
    rows = _all(Collection(Pictures(place=str(place))))
    assert [row["text"] for row in rows] == ["a", "", "c", "d", "e"]
    assert {row["source"] for row in rows} == {"mine"}
    assert [row["width"] for row in rows] == [4, 5, 6, 7, 8]
    with pytest.raises(AigiError, match="caption: no such column"):
        Collection(Pictures(place=str(place), text_column="caption"))
    pq.write_table(table.drop_columns(["text"]), place)
    assert {row["text"] for row in _all(Collection(Pictures(place=str(place))))} == {""}


def test_a_folder_may_have_the_name_of_an_archive(tmp_path: Path) -> None:
    root = _folder(tmp_path / "pictures.zip")
    assert len(_all(Collection(Pictures(place=str(root))))) == 5
