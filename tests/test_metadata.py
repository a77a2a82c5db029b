"""Image files with secrets beside their pixels in; the same pixels without them out."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from pipeline.benchmark.strips import strip
from pipeline.cli import app
from pipeline.images.importer import Importer
from pipeline.metadata import bare_png, bare_profile, beside_pixels, kinds_of, noted
from pipeline.pages.thumbnails import _small
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import PNG_MAGIC, decode, png_bytes, png_chunks
from pipeline.tables import PLAN
from tests.conftest import WorkflowMaker, aigi_here

RGB = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SECRET = b"sk-TEST-0000-NOT-A-REAL-KEY"
MOST = 1 << 20


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(*chunks: bytes, after: bytes = b"", rgb: Any = RGB) -> bytes:
    """A PNG with more chunks in front of its pixels, and something after its end."""
    plain = png_bytes(rgb)
    return plain[:33] + b"".join(chunks) + plain[33:] + after


def exif(gps: bool = False, orientation: int = 1) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = SECRET.decode()
    if gps:
        found.get_ifd(0x8825)[1] = "N"
    return found.tobytes()


def encoded(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, kind, **options)
    return out.getvalue()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The copyright in it is text that anybody can write.
assert b"mluc" in SRGB or b"text" in SRGB
PROFILE = b"my profile\0\0" + zlib.compress(SRGB)
NUMBERS = [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"sRGB", b"\0"),
           chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))]  # fmt: skip
FRAME = b"XML:com.adobe.xmp\0\0\0\0\0"

DIRTY = {
    "text": (chunk(b"tEXt", b"prompt\0" + SECRET),),
    "packed text": (chunk(b"zTXt", b"prompt\0\0" + zlib.compress(SECRET)),),
    "international text": (chunk(b"iTXt", b"prompt\0\0\0\0\0" + SECRET),),
    "XMP": (chunk(b"iTXt", FRAME + SECRET),),
    "EXIF": (chunk(b"eXIf", exif()[6:] if exif().startswith(b"Exif") else exif()),),
    "time": (chunk(b"tIME", b"\x07\xe9\1\1\1\1\1"),),
    "private": (chunk(b"prVt", SECRET),),
    "provenance": (chunk(b"caBX", SECRET),),
    "palette": (chunk(b"PLTE", (SECRET * 3)[:27]),),
    "long gamma": (chunk(b"gAMA", b"\0\0\0\1" + SECRET),),
}
KINDS = {
    "text": "text", "packed text": "text", "international text": "text", "XMP": "XMP",
    "EXIF": "EXIF", "time": "time", "private": "other data", "provenance": "other data",
    "palette": "other data", "long gamma": "other data",
}  # fmt: skip


@pytest.mark.parametrize("name", DIRTY)
def test_a_png_keeps_its_pixels_and_nothing_that_is_said_beside_them(name: str) -> None:
    dirty = png_with(*NUMBERS, *DIRTY[name])
    bare, kinds = bare_png(dirty)
    assert bare == png_with(*NUMBERS)  # pixels and numbers as they were, byte for byte
    assert kinds == (KINDS[name],)
    assert SECRET not in bare and zlib.compress(SECRET) not in bare
    assert decode(bare, MOST).lossless_png and np.array_equal(decode(bare, MOST).rgb, RGB)
    assert bare_png(bare) == (bare, ())


def test_what_follows_the_image_goes() -> None:
    bare, kinds = bare_png(png_with(after=SECRET))
    assert bare == png_bytes(RGB) and kinds == ("other data",)


def test_a_place_is_named() -> None:
    content = exif(gps=True)
    bare, kinds = bare_png(png_with(chunk(b"eXIf", content.removeprefix(b"Exif\0\0"))))
    assert bare == png_bytes(RGB) and kinds == ("EXIF", "GPS")


def test_a_png_without_metadata_is_the_same_file() -> None:
    for data in (png_bytes(RGB), png_with(*NUMBERS)):
        assert bare_png(data)[0] is data and bare_png(data)[1] == ()


def test_a_profile_keeps_its_colours_and_loses_its_texts() -> None:
    bare, kinds = bare_png(png_with(chunk(b"iCCP", PROFILE)))
    assert kinds == ("text of the colour profile",)
    content = next(bytes(found) for kind, found in png_chunks(bare, check=True) if kind == b"iCCP")
    profile = zlib.decompress(content.partition(b"\0")[2][1:])
    assert b"my profile" not in bare and "built-in".encode("utf-16-be") not in profile
    before, after = (ImageCms.ImageCmsProfile(io.BytesIO(one)) for one in (SRGB, profile))
    lab = ImageCms.createProfile("LAB")
    shown = [
        np.asarray(ImageCms.profileToProfile(Image.fromarray(RGB), one, lab, outputMode="LAB"))
        for one in (before, after)
    ]
    assert np.array_equal(shown[0], shown[1])
    assert bare_profile(profile) == profile and bare_png(bare) == (bare, ())
    # Nor is there room for a text in the name, or behind the packed profile.
    named = chunk(b"iCCP", SECRET + content[3:])
    longer = chunk(b"iCCP", content + SECRET)
    assert bare_png(png_with(named))[0] == bare_png(png_with(longer))[0] == bare


@pytest.mark.parametrize(
    "profile",
    [
        b"", SECRET * 9, SRGB[:100], SRGB[:132], SRGB[:400],
        SRGB[:36] + b"xxxx" + SRGB[40:], SRGB[:128] + b"\xff\xff\xff\xff" + SRGB[132:],
    ],
    ids=["empty", "text", "short", "header", "cut", "kind", "count"],
)  # fmt: skip
def test_a_profile_that_is_none_goes_whole(profile: bytes) -> None:
    bare, kinds = bare_png(png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))))
    assert bare == png_bytes(RGB) and kinds == ("colour profile",)
    assert bare_png(png_with(chunk(b"iCCP", b"x\0\0" + SECRET))) == (png_bytes(RGB), kinds)


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (encoded("JPEG"), ()),
        (encoded("JPEG", exif=exif()), ("EXIF",)),
        (encoded("JPEG", exif=exif(gps=True)), ("EXIF", "GPS")),
        (encoded("JPEG", comment=SECRET), ("comment",)),
        (encoded("JPEG", icc_profile=SRGB), ("colour profile",)),
        (encoded("JPEG", xmp=b"<x>" + SECRET), ("XMP",)),
        (encoded("WEBP"), ()),
        (encoded("WEBP", exif=exif(gps=True), xmp=SECRET), ("EXIF", "GPS", "XMP")),
        (encoded("AVIF"), ()),
        (encoded("AVIF", exif=exif()), ("EXIF",)),
        (encoded("GIF", comment=SECRET), ("comment",)),
        (encoded("BMP"), ()),
        (encoded("TIFF"), ()),
        (encoded("TIFF", description=SECRET.decode()), ("text",)),
        (encoded("TIFF", icc_profile=SRGB), ("colour profile",)),
        (png_with(*DIRTY["text"], rgb=RGB), ("text",)),
        (b"no image", ()),
    ],
)  # fmt: skip
def test_what_other_files_say_is_named(data: bytes, kinds: tuple[str, ...]) -> None:
    assert beside_pixels(data) == kinds


def test_a_note_says_what_was_left_out_and_can_be_read_back() -> None:
    assert noted(None, ()) is None and noted("laid over white", ()) == "laid over white"
    both = noted("laid over white", ("EXIF", "text"))
    assert both == "laid over white; left out: EXIF, text"
    assert kinds_of(both) == ("EXIF", "text") and kinds_of(None) == kinds_of("x") == ()


IMPORT = """
name: leaks
title: Leaks
licence: CC0-1.0
sources:
  mj: {title: MJ, licence: CC0-1.0, kind: import, model: mj, splits: {train: {}}}
"""


def released(tmp_path: Path, make_workflow: WorkflowMaker, **settings: object) -> tuple[Any, str]:
    """Rows of a release of six files with secrets and two without; and what the run printed."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = {
        "a.png": png_with(*DIRTY["text"], *DIRTY["EXIF"]),
        "b.png": png_with(*DIRTY["packed text"], after=SECRET),
        "c.jpg": encoded("JPEG", exif=exif(), comment=SECRET),
        "d.webp": encoded("WEBP", exif=exif(), xmp=SECRET),
        "e.png": encoded("PNG"),
        "f.png": png_with(*NUMBERS),
    }
    for number, (name, data) in enumerate(files.items()):
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text(f"a tin robot and {number} tulips in a quiet garden")
    (tmp_path / "leaks.yaml").write_text(IMPORT)
    path = make_workflow(
        split={"validation": 0.0, "test": 0.0},
        prompts=None,
        plan={"dataset": "leaks.yaml"},
        sources={"mj": {"kind": "import", "path": str(folder), "fit": "keep", **settings}},
    )
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run/release/mj").glob("train-*.parquet")
    rows = {row["path"]: row for row in pq.read_table(file).to_pylist()}
    for name, row in rows.items():
        pixels = decode(files[name], MOST).rgb
        assert np.array_equal(decode(row["image"]["bytes"], MOST).rgb, pixels)
        row["file"] = files[name]
    return rows, done.stderr


def test_no_secret_of_an_imported_image_is_in_the_release(
    tmp_path: Path, make_workflow: WorkflowMaker
) -> None:
    rows, said = released(tmp_path, make_workflow)
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or SECRET not in file.read_bytes(), file
    assert {name: row["note"] for name, row in rows.items()} == {
        "a.png": "left out: EXIF, text",
        "b.png": "left out: other data, text",
        "c.jpg": "left out: comment, EXIF",
        "d.webp": "left out: EXIF, XMP",
        "e.png": None,
        "f.png": None,
    }
    assert all(rows[name]["image"]["bytes"] == rows[name]["file"] for name in ("e.png", "f.png"))
    assert (
        "metadata of 4 images was left out: EXIF 3, XMP 1, comment 1, other data 1, text 2"
    ) in said
    card = (tmp_path / "run/release/README.md").read_text()
    assert "Metadata of 4 files was left out" in card and "were converted" not in card
    # Everything that aigi writes as an image has pixels alone.
    assert SECRET not in (tmp_path / "run/release/sheet.webp").read_bytes()
    assert beside_pixels((tmp_path / "run/release/sheet.webp").read_bytes()) == ()


def test_a_source_that_keeps_metadata(tmp_path: Path, make_workflow: WorkflowMaker) -> None:
    rows, said = released(tmp_path, make_workflow, keep_metadata=True)
    for name in ("a.png", "b.png", "e.png", "f.png"):
        assert rows[name]["image"]["bytes"] == rows[name]["file"] and rows[name]["note"] is None
    assert rows["c.jpg"]["note"] == "left out: comment, EXIF"
    assert SECRET not in rows["c.jpg"]["image"]["bytes"]
    assert "metadata of 2 images" in said


def test_archives_and_tables_of_images_too(tmp_path: Path) -> None:
    dirty = png_with(*DIRTY["text"], *DIRTY["EXIF"])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", dirty)
        archive.comment = SECRET
    table = pa.table({"image": [{"bytes": dirty, "path": "a.png"}]})
    pq.write_table(table, tmp_path / "a.parquet")
    plan = pa.Table.from_pylist([{"image_id": "a", "path": "a.png"}], schema=PLAN)
    for name in ("a.zip", "a.parquet"):
        given = ImportSource(kind="import", path=str(tmp_path / name))
        (row,) = pa.concat_tables(Importer(given)(plan)).to_pylist()
        assert row["image"]["bytes"] == png_bytes(RGB)
        assert row["note"] == "left out: EXIF, text" and bare_png(row["image"]["bytes"])[1] == ()


def test_a_marked_image_and_a_coded_one_have_pixels_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_with(*DIRTY["text"], *DIRTY["EXIF"]))
    plan = pa.Table.from_pylist(
        [{"image_id": "a", "path": "a.png", "watermark": "dwt-dct"}], schema=PLAN
    )
    given = ImportSource(kind="import", path=str(tmp_path), keep_metadata=True)
    (row,) = pa.concat_tables(Importer(given)(plan)).to_pylist()
    assert beside_pixels(row["image"]["bytes"]) == () and SECRET not in row["image"]["bytes"]
    assert row["note"] == "left out: EXIF, text"
    coded, decoded = tmp_path / "a.aigi", tmp_path / "decoded.png"
    for arguments in (
        ["encode", str(tmp_path / "a.png"), "-m", "mean-scale-small", "-o", str(coded)],
        ["decode", str(coded), "-o", str(decoded)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert SECRET not in coded.read_bytes()
    assert {kind for kind, _ in png_chunks(decoded.read_bytes(), check=True)} == {
        b"IHDR", b"IDAT", b"IEND"
    }  # fmt: skip
    assert beside_pixels(base64.b64decode(_small(RGB, 16, 80).address.partition(",")[2])) == ()
    assert beside_pixels(strip(RGB, [(["jpeg"], RGB)], 16)) == ()


def test_images_that_aigi_makes_have_pixels_alone() -> None:
    assert [kind for kind, _ in png_chunks(png_bytes(RGB), check=True)] == [
        b"IHDR", b"IDAT", b"IEND"
    ]  # fmt: skip
    assert png_bytes(RGB).startswith(PNG_MAGIC) and beside_pixels(png_bytes(RGB)) == ()
