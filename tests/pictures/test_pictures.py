"""Folders, archives and tables of pictures in; names and bytes out, and nothing from elsewhere."""

from __future__ import annotations

import os
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import AigiError
from pipeline.pictures import names, pictures
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.lists import list_captions
from pipeline.pictures.names import Escapes
from pipeline.pictures.pictures import FolderPictures, UrlPictures, open_pictures
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import BadPicture
from tests.test_pixels import NOISE_PNG, encoded

FILES = {
    "b.png": NOISE_PNG,
    "a/Ä n.JPG": b"jpg",
    "a/c.jxl": b"",
    "a/note.txt": b"hello",
    "b.png.txt": b"beside",
    "__MACOSX/b.png": b"x",
    ".hidden.png": b"x",
    ".dir/x.png": b"x",
    "readme.md": b"x",
}
NAMES = ["a/c.jxl", "a/Ä n.JPG", "b.png"]


def folder_of(root: Path, files: dict[str, bytes] = FILES) -> str:
    for name, data in files.items():
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root / "pictures")


def zip_of(root: Path, files: dict[str, bytes] = FILES) -> str:
    with zipfile.ZipFile(root / "p.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return str(root / "p.zip")


@pytest.mark.parametrize("make", [folder_of, zip_of])
def test_folder_and_zip_read_alike(tmp_path: Path, make: Callable[[Path], str]) -> None:
    with open_pictures(make(tmp_path)) as found:
        assert not isinstance(found, ParquetPictures)
        assert found.names() == NAMES
        again = pickle.loads(pickle.dumps(found))  # noqa: S301
        assert again.names() == NAMES
        assert again.read("b.png") == NOISE_PNG and found.size("b.png") == len(NOISE_PNG)
        assert found.head("b.png", 8) == NOISE_PNG[:8]
        assert found.read("a/c.jxl") == b""
        assert found.sidecar("a/note.jpg") == ("a/note.txt", b"hello")
        beside = found.sidecar("b.png")
        assert beside is not None and beside[1] == b"beside"
        assert found.sidecar("a/c.jxl") is None
        with pytest.raises(BadPicture, match="no such picture"):
            found.read("missing.png")
        with pytest.raises(BadPicture, match="no such picture"):
            found.size("missing.png")
        for name in ("../b.png", "/etc/x.png", "C:/x.png", "a/../b.png", "..\\b.png", "a\0.png"):
            with pytest.raises(Escapes, match="escapes the folder"):
                found.read(name)
        again.close()


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path))
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "inside.png").symlink_to(folder / "b.png")
    with open_pictures(str(folder)) as found:
        assert found.names() == sorted([*NAMES, "inside.png"])
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    with open_pictures(str(folder)) as found:
        for call in (found.names, lambda: found.read("out.png")):
            with pytest.raises(Escapes, match=r"out\.png.*escapes the folder"):
                call()
    (folder / "out.png").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    with open_pictures(str(folder)) as found:
        with pytest.raises(Escapes, match="linked"):
            found.names()
        with pytest.raises(Escapes, match="escapes"):
            found.read("linked/x.png")


def test_odd_things_in_a_folder(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path))
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    with open_pictures(str(folder)) as found:
        assert found.names() == sorted([*NAMES, "gone.png"])
        for name in ("pipe.png", "dir.png", "gone.png"):
            with pytest.raises(BadPicture):
                found.read(name)
    os.write(fd := os.open(os.fsencode(folder) + b"/\xff.png", os.O_CREAT | os.O_WRONLY), b"x")
    os.close(fd)
    with open_pictures(str(folder)) as found, pytest.raises(AigiError, match="not UTF-8"):
        found.names()


def test_file_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (names, pictures):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    columns = {"image": [{"bytes": NOISE_PNG, "path": "b.png"}]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    for location in (folder_of(tmp_path), zip_of(tmp_path), str(tmp_path / "p.parquet")):
        with open_pictures(location) as found, pytest.raises(BadPicture, match="too large: 7"):
            found.read("b.png")


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "C:\\x.png", "a/../../x.txt", "..\\x"])
def test_zip_entries_that_escape_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Escapes, match="escapes the folder"):
        open_pictures(zip_of(tmp_path, {"ok.png": b"x", name: b"x"}))


def test_zip_links_twins_and_secrets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    link = zipfile.ZipInfo("l.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(Escapes, match=r"l\.png.* is a link and escapes the folder"):
        open_pictures(str(path))
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("t.png", b"1")
        file.writestr("t.png", b"2")
    with pytest.raises(AigiError, match=r"t\.png.* is in it twice"):
        open_pictures(str(path))
    data = bytearray(Path(zip_of(tmp_path)).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(AigiError, match="is encrypted"):
        open_pictures(str(path))


def test_zip_entry_that_lies_about_its_size(tmp_path: Path) -> None:
    data = bytearray(Path(zip_of(tmp_path, {"z.png": bytes(1 << 20)})).read_bytes())
    at = data.index(b"PK\1\2") + 24
    for declared, why in ((4_000_000_000, "too large: 4000000000 bytes"), (10, "damaged in the")):
        data[at : at + 4] = struct.pack("<I", declared)
        (tmp_path / "q.zip").write_bytes(data)
        with open_pictures(str(tmp_path / "q.zip")) as found, pytest.raises(BadPicture, match=why):
            found.read("z.png")


def test_damaged_zips(tmp_path: Path) -> None:
    whole = Path(zip_of(tmp_path)).read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 0xFF
    (tmp_path / "f.zip").write_bytes(flipped)
    why = "damaged in the archive"
    with open_pictures(str(tmp_path / "f.zip")) as found, pytest.raises(BadPicture, match=why):
        found.read("b.png")
    (tmp_path / "f.zip").write_bytes(whole[:-30])
    with pytest.raises(AigiError, match="not readable as a zip"):
        open_pictures(str(tmp_path / "f.zip"))


def test_zip_names_in_utf8_without_the_flag(tmp_path: Path) -> None:
    data = Path(zip_of(tmp_path, {"Ä.png": b"x"})).read_bytes()
    for mark in (b"PK\3\4", b"PK\1\2"):
        at = data.index(mark) + (6 if mark == b"PK\3\4" else 8)
        data = data[:at] + b"\0\0" + data[at + 2 :]
    (tmp_path / "mac.zip").write_bytes(data)
    with open_pictures(str(tmp_path / "mac.zip")) as found:
        assert found.names() == ["Ä.png"] and found.read("Ä.png") == b"x"


def test_parquet(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"0", "path": "z.png"},
        {"bytes": b"1", "path": None},
        {"bytes": b"2", "path": "z.png"},
        {"bytes": None, "path": "null.png"},
        None,
        {"bytes": b"5", "path": "ROW-00000001"},
        {"bytes": b"6", "path": "a.png"},
    ]
    path = str(tmp_path / "p.parquet")
    table = pa.table({"n": range(7), "image": rows, "text": [*"abcdef", None]})
    pq.write_table(table, path, row_group_size=2)
    with open_pictures(path) as found:
        assert isinstance(found, ParquetPictures)
        names = found.names()
        assert names == [
            "z.png",
            "ROW-00000001",
            "ROW-00000002",
            "null.png",
            "ROW-00000004",
            "ROW-00000005",
            "a.png",
        ]
        for row in (6, 0, 5, 2, 1):
            assert found.read(names[row]) == str(row).encode()
            assert 0 < found.size(names[row]) < 1_000, "roughly: nothing is read for it"
        assert found._held is not None and len(found._held[1]) <= 2
        for row in (3, 4):
            with pytest.raises(BadPicture, match="the row holds no bytes"):
                found.read(names[row])
        with pytest.raises(BadPicture, match="no such picture"):
            found.read("nothing")
        assert list(found.texts("text"))[-2:] == [("ROW-00000005", "f"), ("a.png", None)]
        with pytest.raises(AigiError, match=r"caption: no such column.* n, image, text"):
            list(found.texts("caption"))
        with pytest.raises(AigiError, match="n: expected text"):
            list(found.texts("n"))
        assert pickle.loads(pickle.dumps(found)).names() == names  # noqa: S301
    pq.write_table(pa.table({"photo": [b"x"]}), path)
    with open_pictures(path) as found:
        assert found.read("ROW-00000000") == b"x"
    for table in (pa.table({"n": [1]}), pa.table({"p": [b"x"], "q": [b"x"]})):
        pq.write_table(table, path)
        with pytest.raises(AigiError, match="no such column of images"):
            open_pictures(path)


def test_many_threads_read_one_archive(tmp_path: Path) -> None:
    files = {f"{n}.png": bytes([n]) * 10_000 for n in range(50)}
    table = pa.table({"image": [{"bytes": files[name], "path": name} for name in files]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=7)
    for location in (zip_of(tmp_path, files), str(tmp_path / "p.parquet")):
        with open_pictures(location) as found:
            wrong: list[str] = []

            def read(names: list[str], found: Any = found, wrong: list[str] = wrong) -> None:
                wrong.extend(name for name in names if found.read(name) != files[name])

            threads = [threading.Thread(target=read, args=(list(files)[n:],)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []


def test_urls(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://p.zip", "wb") as file:
        file.write(Path(zip_of(tmp_path)).read_bytes())
    with open_pictures("memory://p.zip") as found:
        assert found.names() == NAMES
    with pytest.raises(AigiError, match="no such file or folder"):
        open_pictures("memory://pictures")


def test_a_folder_at_a_url_gives_what_a_local_one_gives(tmp_path: Path) -> None:
    import fsspec

    local = tmp_path / "local"
    for name, data in {
        "b.png": b"bb", "deep/a.JPG": b"a", "deep/a.txt": b"a cat", ".hidden/c.png": b"",
        "notes.md": b"no picture",
    }.items():  # fmt: skip
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(data)
        with fsspec.open(f"memory://folder/{name}", "wb") as file:
            file.write(data)
    with open_pictures(str(local)) as one, open_pictures("memory://folder") as other:
        assert isinstance(one, FolderPictures) and isinstance(other, UrlPictures)
        assert one.names() == other.names() == ["b.png", "deep/a.JPG"]
        for name in one.names():
            assert one.read(name) == other.read(name)
            assert one.head(name, 1) == other.head(name, 1)
            assert one.size(name) == other.size(name)
            assert one.checksum(name) == other.checksum(name)
            assert one.sidecar(name) == other.sidecar(name)
        for pictures in (one, other):
            for ask in (pictures.read, pictures.size):
                with pytest.raises(BadPicture, match="no such picture"):
                    ask("gone.png")


def test_other_locations(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"x")
    (tmp_path / "x.parquet").write_bytes(b"x")
    with pytest.raises(AigiError, match="expected a folder"):
        open_pictures(str(tmp_path / "x.rar"))
    with pytest.raises(AigiError, match="not readable as parquet"):
        open_pictures(str(tmp_path / "x.parquet"))
    for name in ("gone", "gone.zip", "gone.parquet"):
        with pytest.raises(AigiError, match="no such file or folder"):
            open_pictures(str(tmp_path / name))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
ODD = {
    "a.jfif": encoded(Image.new("RGB", (4, 4)), "JPEG"), "a.txt": b"one",
    "deep/b": NOISE_PNG, "deep/b.caption": b"two",
    "c.PNG": NOISE_PNG, "c.TXT": b"three",
    "d.png": NOISE_PNG, "d.json": b'{"caption": "four", "url": "x"}',
    "e.png": NOISE_PNG, "e.json": b'{"key": "1"}',
    "f.heic": HEIC, "g.ppm": b"P6\n1 1\n255\nabc", "h.jp2": b"\xff\x4f\xff\x51\0\x2f",
    "i.bin": b"words", "README.md": b"# read", "empty": b"", "z.txt": b"of no image",
    ".hidden": b"x", "__MACOSX/a.png": b"x",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip", "url"])
def test_content_decides_and_what_is_not_taken_is_listed(tmp_path: Path, kind: str) -> None:
    place = zip_of(tmp_path, ODD) if kind == "zip" else folder_of(tmp_path, ODD)
    if kind == "url":
        place = f"file://{place}"
    with open_pictures(place) as found:
        assert not isinstance(found, ParquetPictures)
        assert found.names() == sorted(["a.jfif", "deep/b", "c.PNG", "d.png", "e.png"])
    given = ImportSource(kind="import", path=place)
    listed = {one.name: (one.text, one.problem) for one in list_captions(given)}
    assert listed == {
        "a.jfif": ("one", None), "deep/b": ("two", None), "c.PNG": ("three", None),
        "d.png": ("four", None),
        "e.png": (None, "no caption: e.json has no text under `caption`"),
        "f.heic": (None, "HEIC: Pillow cannot decode it; convert it to PNG"),
        "g.ppm": (None, "PNM, PSD, ICO, QOI or DDS: not read here; convert it to PNG"),
        "h.jp2": (None, "JPEG 2000: not read here; convert it to PNG"),
        "i.bin": (None, "not an image"), "README.md": (None, "not an image"),
        "empty": (None, "empty"), "z.txt": (None, "not an image"),
    }  # fmt: skip


def test_a_link_out_of_the_folder_is_listed_if_it_is_no_image_by_its_name(tmp_path: Path) -> None:
    place = folder_of(tmp_path, {"a.png": NOISE_PNG, "a.txt": b"one"})
    (tmp_path / "outside").write_bytes(NOISE_PNG)
    (Path(place) / "link").symlink_to(tmp_path / "outside")
    listed = {c.name: c.problem for c in list_captions(ImportSource(kind="import", path=place))}
    assert listed == {"a.png": None, "link": "a link that leads out of the folder"}
    (Path(place) / "link.png").symlink_to(tmp_path / "outside")
    with pytest.raises(Escapes):
        list(list_captions(ImportSource(kind="import", path=place)))


def test_the_table_of_an_import_is_no_file_that_is_left_out(tmp_path: Path) -> None:
    place = folder_of(tmp_path, {"a.png": NOISE_PNG, "captions.csv": b"file,text\na.png,one\n"})
    given = ImportSource(kind="import", path=place, captions=f"{place}/captions.csv")
    assert [(one.name, one.text, one.problem) for one in list_captions(given)] == [
        ("a.png", "one", None)
    ]


def test_equal_entries_of_a_zip_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for name, data in (("a.png", NOISE_PNG), ("README.txt", b"1"), ("x.bin", b"1")):
            file.writestr(name, data)
            file.writestr(name, data if name != "x.bin" else b"2")
    with open_pictures(str(path)) as found:
        assert found.names() == ["a.png"] and found.read("a.png") == NOISE_PNG
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("README.txt", b"2")
    with pytest.raises(AigiError, match=r"README\.txt.* is in it twice, and differs"):
        open_pictures(str(path))
