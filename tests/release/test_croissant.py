"""Croissant validates, reads back the rows and lists every file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.markdown import plain
from pipeline.release.croissant import CROISSANT, croissant
from pipeline.tables import RELEASE
from tests.release.conftest import NAUGHTY, dataset_with, some_files


def test_croissant_validates_and_reads_back(small: tuple[Path, str]) -> None:
    import mlcroissant

    folder, _ = small
    loaded = mlcroissant.Dataset(folder / CROISSANT)
    assert not loaded.metadata.ctx.issues.errors
    assert loaded.metadata.version == "1.2.3"
    assert loaded.metadata.license[:2] == [
        "https://example.org/licence",
        "https://example.org/rail",
    ]
    for config in ("sd", "mj"):
        expected = {
            row["image_id"]: (row, path.name.split("-")[0])
            for path in (folder / config).glob("*.parquet")
            for row in pq.read_table(path).to_pylist()
        }
        records = list(loaded.records(config))
        assert len(records) == len(expected)
        for record in records:
            row, split = expected[record[f"{config}/image_id"].decode()]
            assert record[f"{config}/split"].decode() == split
            assert record[f"{config}/text"].decode() == row["text"]
            assert record[f"{config}/width"] == row["width"]
            assert record[f"{config}/guidance_scale"] == row["guidance_scale"]
            pixels = np.asarray(record[f"{config}/image"])
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["pixels_sha256"]
    test = list(mlcroissant.Dataset(folder / CROISSANT).records("sd", {"sd/split": "test"}))
    assert {record["sd/split"] for record in test} == {b"test"}
    assert len(test) == 4


def test_croissant_lists_every_file_by_a_path_that_starts_beside_it(
    small: tuple[Path, str],
) -> None:
    folder, _ = small
    described = json.loads((folder / CROISSANT).read_text())
    files = [part for part in described["distribution"] if part["@type"] == "cr:FileObject"]
    assert sorted(file["contentUrl"] for file in files) == sorted(
        str(path.relative_to(folder)) for path in folder.glob("*/*.parquet")
    )
    for file in files:
        data = (folder / file["contentUrl"]).read_bytes()
        assert file["contentSize"] == f"{len(data)} B"
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    records = {part["@id"]: part for part in described["recordSet"]}
    for config in ("sd", "mj"):
        names = [field["name"] for field in records[config]["field"]]
        assert names == ["split", *RELEASE.names]
    assert described["citeAs"].startswith("@misc{small,")


def test_hostile_texts_stay_in_their_strings() -> None:
    import mlcroissant

    for text in (NAUGHTY, "half a pair \ud83d", '"}], "x": ['):
        described = croissant(
            dataset_with(title=text, description=text, licence=text, licence_url=None),
            "1.0.0",
            some_files(("sd", "train", 1)),
            ["a"],
            ["WebP"],
        )
        again = json.loads(json.dumps(described, ensure_ascii=False).encode())
        loaded = mlcroissant.Dataset(again)
        assert not loaded.metadata.ctx.issues.errors
        assert loaded.metadata.description == plain(text)
