"""Pictures and caption files in; caption triples and image rows out, every defect named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
import unicodedata
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from pipeline import AigiError
from pipeline.images import importer
from pipeline.images.importer import CHUNK_ROWS, Importer
from pipeline.pictures.lists import list_captions
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import Container, decode, pixels_sha256, stored
from pipeline.tables import IMAGES, PLAN

NOISE = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def source(path: Path | str, **settings: Any) -> ImportSource:
    values = {"kind": "import", "path": str(path)} | settings
    return ImportSource.model_validate(values)


def triples(given: ImportSource) -> list[tuple[str, str | None, str | None]]:
    """Name, caption and problem of every picture."""
    return [(found.name, found.text, found.problem) for found in list_captions(given)]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


# With a resolution, so that we would not write the same bytes.
PNG = encoded(Image.fromarray(NOISE), "PNG", dpi=(72, 72))


def test_splits_of_the_list(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a.png": PNG, "b.png": PNG})
    table = tmp_path / "c.csv"
    table.write_text("file,text,part\na.png,one,test\nb.png,two,train\n")
    given = source(folder, captions=str(table), split_column="part")
    assert [(found.name, found.split) for found in list_captions(given)] == [
        ("a.png", "test"),
        ("b.png", "train"),
    ]
    with pytest.raises(AigiError, match=r"c\.csv: half: no such column\. Set split_column"):
        list(list_captions(source(folder, captions=str(table), split_column="half")))


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "pictures"


def zip_of(root: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root / "p.zip", "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return root / "p.zip"


def plan(paths: Sequence[str | None], width: int | None, height: int | None) -> pa.Table:
    rows = [
        {"image_id": f"id{row}", "path": path, "width": width, "height": height}
        for row, path in enumerate(paths)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def imported(settings: ImportSource, rows: pa.Table) -> list[dict[str, Any]]:
    chunks = list(Importer(settings)(rows))
    assert all(chunk.schema == IMAGES and chunk.num_rows <= CHUNK_ROWS for chunk in chunks)
    found: list[dict[str, Any]] = pa.concat_tables(chunks).to_pylist()
    assert [row["image_id"] for row in found] == rows["image_id"].to_pylist()
    return found


# --- captions -------------------------------------------------------------------------------


def captions_of(root: Path, files: list[str], text: str, **settings: Any) -> list[Any]:
    folder = folder_of(root, dict.fromkeys(files, PNG))
    suffix = "jsonl" if text.startswith("{") else "csv"
    (root / f"captions.{suffix}").write_text(text, encoding="utf-8")
    return triples(source(folder, captions=str(root / f"captions.{suffix}"), **settings))


def test_every_problem_of_a_captions_file_is_named(tmp_path: Path) -> None:
    files = ["a/1.png", "a/2.png", "b/2.png", "3.png", "4.png", "c/5.png"]
    text = (
        "\ufefffile,text\n"
        'a/1.png,"a red, round\nball"\n'
        "3.png,  \n"
        "2.png,which one\n"
        "./a/2.png,two\n"
        "a\\2.png,again\n"
        "../../etc/passwd.png,out\n"
        "/3.png,out too\n"
        "9.png,nine\n"
        "5.png, five \n"
    )
    assert captions_of(tmp_path, files, text) == [
        ("3.png", None, "no caption"),
        ("4.png", None, "no caption"),
        ("a/1.png", "a red, round\nball", None),
        ("a/2.png", "two", None),
        ("b/2.png", None, "no caption"),
        ("c/5.png", "five", None),
        ("2.png", "which one", "2 pictures have this name; give folders"),
        ("a\\2.png", "again", "listed twice"),
        ("../../etc/passwd.png", "out", "escapes the folder"),
        ("/3.png", "out too", "escapes the folder"),
        ("9.png", "nine", "no such picture"),
    ]


def test_jsonl_and_other_columns(tmp_path: Path) -> None:
    lines = ['{"name": "1.png", "prompt": "one"}', "", '{"name": "2.png", "prompt": null}']
    text = "\n".join([*lines, '{"name": "3.png"}\n'])
    found = captions_of(
        tmp_path, ["1.png", "2.png"], text, file_column="name", text_column="prompt"
    )
    assert found == [
        ("1.png", "one", None),
        ("2.png", None, "no caption"),
        ("3.png", None, "no such picture"),
    ]


def test_two_spellings_of_one_unicode_name(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "Äther é.png")
    listed = unicodedata.normalize("NFC", name)
    assert name != listed
    assert captions_of(tmp_path, [name], f"file,text\n{listed},air\n") == [(name, "air", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,text\n1.png,x\n",
            r"captions\.csv: file: no such column\. Set file_column.*name, text",
        ),
        ("file,caption\n1.png,x\n", r"captions\.csv: text: no such column\. Set text_column"),
        ("", r"captions\.csv: no row in it"),
        ('{"file": "1.png"}\n', r"captions\.jsonl: text: no such column.*: file"),
        ('{"text": "x"}\n', r"captions\.jsonl: file: no such column.*: text"),
    ],
)
def test_captions_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AigiError, match=message):
        captions_of(tmp_path, ["1.png"], text)


def test_captions_file_missing_or_of_another_kind(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"1.png": PNG})
    with pytest.raises(AigiError, match=r"gone\.csv: no such file"):
        (triples(source(folder, captions=str(tmp_path / "gone.csv"))))
    with pytest.raises(AigiError, match=r"x\.txt: captions are read from"):
        (triples(source(folder, captions=str(tmp_path / "x.txt"))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AigiError, match="no images in it"):
        (triples(source(tmp_path / "empty")))


def test_sidecars_and_embedded_prompts(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a house\nNegative prompt: blur")
    own = encoded(Image.fromarray(NOISE), "PNG", pnginfo=info)
    files = {
        "a.png": own,
        "a.txt": b"\xef\xbb\xbfbeside it\n",
        "b.png": own,
        "c.png": PNG,
        "d.jpg": b"x",
        "d.jpg.txt": b"of a jpg",
        "e.webp": b"x",
        "f.png": b"x",
        "f.txt": b"\xff\xfe",
        "g.png": own,
        "g.txt": b" \n",
    }
    expected = [
        ("a.png", "beside it", None),
        ("b.png", "a house", None),
        ("c.png", None, "no caption"),
        ("d.jpg", "of a jpg", None),
        ("e.webp", None, "no caption"),
        ("f.png", None, "the caption file is not UTF-8"),
        ("g.png", None, "no caption"),
    ]
    assert (triples(source(folder_of(tmp_path, files)))) == expected
    assert (triples(source(zip_of(tmp_path, files)))) == expected


def test_captions_in_the_parquet_of_the_pictures(tmp_path: Path) -> None:
    rows = [{"bytes": PNG, "path": f"{n}.png"} for n in range(3)]
    pq.write_table(pa.table({"image": rows, "text": ["x", " ", None]}), tmp_path / "p.parquet")
    assert (triples(source(tmp_path / "p.parquet"))) == [
        ("0.png", "x", None),
        ("1.png", None, "no caption"),
        ("2.png", None, "no caption"),
    ]
    with pytest.raises(AigiError, match="prompt: no such column"):
        (triples(source(tmp_path / "p.parquet", text_column="prompt")))


# --- pictures -------------------------------------------------------------------------------


def test_lossless_png_is_kept_and_others_are_stored_anew(tmp_path: Path) -> None:
    files = {
        "kept.png": PNG,
        "new.webp": encoded(Image.fromarray(NOISE), "WEBP", lossless=True),
        "grey.png": encoded(Image.fromarray(NOISE).convert("L"), "PNG"),
    }
    names = ["new.webp", "kept.png", "grey.png"]
    rows = plan(names, 32, 24)
    folder = folder_of(tmp_path, files)
    new, kept, grey = imported(source(folder), rows)
    assert kept["image"] == {"bytes": PNG, "path": "id1.png"}
    assert new["image"]["path"] == "id0.webp" and grey["image"]["path"] == "id2.webp"
    assert new["pixels_sha256"] == kept["pixels_sha256"] == pixels_sha256(NOISE)
    for row, name in ((new, "new.webp"), (kept, "kept.png"), (grey, "grey.png")):
        assert row["original_sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert (row["width"], row["height"], row["error"]) == (32, 24, None)
        assert (row["device"], row["batch_size"]) == ("cpu", None)
        assert json.loads(row["versions"]) == {"pillow": PIL.__version__}
        assert pixels_sha256(stored(row["image"], 10**6)) == row["pixels_sha256"]
    assert imported(source(zip_of(tmp_path, files)), rows) == [new, kept, grey]
    as_png = list(Importer(source(folder), Container("png"))(rows))
    for row, other in zip(pa.concat_tables(as_png).to_pylist(), (new, kept, grey), strict=True):
        assert row["image"]["path"] == f"{row['image_id']}.png"
        assert decode(row["image"]["bytes"], 10**6).lossless_png
        assert row | {"image": None} == other | {"image": None}, "but for the file, the same row"


def test_fit(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"p.png": PNG})

    def row(fit: str, width: int | None, height: int | None) -> dict[str, Any]:
        return imported(source(folder, fit=fit), plan(["p.png"], width, height))[0]

    wrong = row("reject", 16, 16)
    assert wrong["error"] == "size 32x24, expected 16x16 (set fit: crop or keep)"
    assert wrong["image"] is None and wrong["width"] is None
    assert wrong["original_sha256"] == hashlib.sha256(PNG).hexdigest()
    for fit in ("reject", "crop", "keep"):
        assert row(fit, 32, 24)["image"]["bytes"] == PNG
        assert row(fit, None, None)["image"]["bytes"] == PNG
        assert row(fit, 32, None)["image"]["bytes"] == PNG
    centre = row("crop", 15, 16)
    assert (centre["width"], centre["height"]) == (15, 16)
    assert centre["pixels_sha256"] == pixels_sha256(NOISE[4:20, 8:23])
    assert np.array_equal(decode(centre["image"]["bytes"], 1000).rgb, NOISE[4:20, 8:23])
    assert row("crop", 33, 16)["error"] == "too small: 32x24, expected at least 33x16"
    assert row("keep", 64, 64)["image"]["bytes"] == PNG


def test_bad_pictures_are_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    frames = [Image.fromarray(np.roll(NOISE, n)) for n in range(2)]
    folder = folder_of(
        tmp_path,
        {
            "cut.png": PNG[:-40],
            "empty.png": b"",
            "text.jpg": b"hello",
            "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "big.bmp": encoded(Image.new("RGB", (40, 40)), "BMP"),
            "good.png": PNG,
        },
    )
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names: list[str | None] = ["cut.png", "empty.png", "text.jpg", "moving.gif", "big.bmp"]
    names += ["gone.png", "../secret.png", "link.png", None, "good.png"]
    rows = imported(source(folder, max_pixels=1000), plan(names, None, None))
    errors = [row["error"] for row in rows]
    assert errors[:6] == [
        "truncated",
        "empty",
        "not a picture",
        "animated: 2 frames",
        "too large: 40x40 pixels > 1000",
        "no such picture",
    ]
    assert all("escapes the folder" in error for error in errors[6:8])
    assert errors[8] == "the plan names no picture (path is null)"
    assert errors[9] is None and rows[9]["image"]["bytes"] == PNG
    for row in rows[:9]:
        assert row["image"] is None and row["pixels_sha256"] is None
    assert [row["original_sha256"] is None for row in rows] == [False] * 5 + [True] * 4 + [False]


def test_chunks_are_small_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{n}.png": encoded(Image.new("RGB", (2, 2), (n, 0, 0)), "PNG") for n in range(50)}
    settings = source(folder_of(tmp_path, files))
    names = list(files)
    chunks = Importer(settings)(plan(names, None, None))
    assert isinstance(chunks, Generator)
    first = next(chunks)
    assert first["image_id"].to_pylist() == [f"id{n}" for n in range(16)]
    chunks.close()  # a writer that stops early leaves no thread behind
    rows = imported(settings, plan(names, None, None))
    assert [row["image"]["bytes"] for row in rows] == list(files.values())
    assert list(Importer(settings)(plan([], None, None))) == []
    monkeypatch.setattr(importer, "CHUNK_BYTES", 3 * len(files["0.png"]) - 1)
    by_bytes = list(Importer(settings)(plan(names[:10], None, None)))
    assert [chunk.num_rows for chunk in by_bytes] == [3, 3, 3, 1]


def test_missing_source() -> None:
    with pytest.raises(AigiError, match="no such file or folder"):
        Importer(source("/no/such/folder"))


# --- real pictures --------------------------------------------------------------------------


def test_real_pictures(shared: Path) -> None:
    folder, manifest = shared / "aigi", shared / "aigi" / "manifest.csv"
    if not manifest.exists():
        pytest.skip(f"real pictures are not here: {folder}")
    settings = source(folder, captions=str(manifest), text_column="prompt", fit="keep")
    listed = triples(settings)
    assert len(listed) == 2077
    assert sum(problem is None for *_, problem in listed) == 1745
    assert {problem for *_, problem in listed} == {None, "no caption"}
    names = [name for name, *_ in listed[:: len(listed) // 60]][:60]
    started = time.perf_counter()
    rows = imported(settings, plan(names, None, None))
    print(f"{len(rows) / (time.perf_counter() - started):.1f} pictures/s")
    with open(manifest, newline="", encoding="utf-8") as file:
        sizes = {
            row["file"]: (int(row["width"]), int(row["height"])) for row in csv.DictReader(file)
        }
    for name, row in zip(names, rows, strict=True):
        assert row["error"] is None
        assert (row["width"], row["height"]) == sizes[name]
        with Image.open(io.BytesIO(row["image"]["bytes"])) as stored:
            assert pixels_sha256(np.asarray(stored.convert("RGB"))) == row["pixels_sha256"]
