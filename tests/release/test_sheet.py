"""The sheet shows each picture once, in its row, and reads no more than it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import AigiError
from pipeline.release import sheet
from pipeline.release.sheet import SHEET, Sample
from pipeline.store import Store
from pipeline.tables import RELEASE
from tests.release.conftest import picture


def test_the_sheet_shows_each_picture_once_in_its_row(small: tuple[Path, str]) -> None:
    image = Image.open(small[0] / SHEET)
    assert image.format == "WEBP"
    assert image.width == 1200
    rgb = np.asarray(image.convert("RGB")).astype(int)
    # Four of 64 x 64 and two of 32 x 64; of the imports two wide ones, the others find no room.
    for number, widths in enumerate(([160] * 4 + [80] * 2, [441, 480])):
        line = rgb[number * 192 + 24 + 10 : number * 192 + 24 + 40].mean(axis=0)
        coloured = np.flatnonzero((line < 250).any(axis=1))
        runs = np.split(coloured, np.flatnonzero(np.diff(coloured) > 4) + 1)
        found = sorted(len(run) for run in runs)
        assert len(found) == len(widths)
        assert all(abs(a - b) <= 4 for a, b in zip(found, sorted(widths), strict=True))


def test_the_sheet_reads_one_row_group_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    rows = []
    for n in range(250):
        data, pixels = picture(n, 16, 16)
        rows.append({"image": {"bytes": data, "path": "x.png"}, "text": f"t{n}", "image_id": f"{n}",
                     "width": 16, "height": 16, "pixels_sha256": pixels})  # fmt: skip
    store.write("release", "sd/train-0", pa.Table.from_pylist(rows, schema=RELEASE), RELEASE)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counting(self: Any, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    samples = [Sample(f"{n}", f"{n}", "train", "sd/train-0", n, 16, 16) for n in (0, 99, 100, 249)]
    _, shown_there = sheet.draw(store, {"sd": samples})
    assert [one.text for one in shown_there] == ["t0", "t99", "t100", "t249"]
    assert read == [0, 0, 1, 2]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    image = {"bytes": b"\x89PNG\r\n\x1a\n", "path": "x.png"}
    rows = [{"image": image, "text": "t", "image_id": "i", "width": 16, "height": 16}]
    store.write("release", "sd/train-0", pa.Table.from_pylist(rows, schema=RELEASE), RELEASE)
    sample = Sample("i", "i", "train", "sd/train-0", 0, 16, 16)
    with pytest.raises(AigiError, match=r"sd/train-0\.parquet: row 1 \(i\): .*--rehash"):
        sheet.draw(store, {"sd": [sample]})


def test_thumbnails_keep_their_shape_and_their_row() -> None:
    for width, height in ((1, 10_000), (10_000, 1), (2048, 1024), (64, 64)):
        wide, high = sheet._thumbnail_size(Sample("", "", "", "", 0, width, height))
        assert 1 <= wide <= 480
        assert 1 <= high <= 160
    many = [Sample(str(n), str(n), "train", "s", n, 2048, 1024) for n in range(8)]
    assert len(sheet._that_fit(many)) == 3
