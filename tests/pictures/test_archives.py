"""Archives, shards and tables as places of images: damage, lies, and what is read once."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.pictures import names
from pipeline.pictures.container import Container
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import Escapes
from pipeline.pictures.pictures import open_pictures
from pipeline.pictures.several import HELD, Several
from pipeline.pictures.sources import ImportSource
from pipeline.pictures.tars import TarPictures
from pipeline.pixels import BadPicture
from pipeline.plan.imports import listed_imports
from pipeline.prompts.text import SplitShares
from tests.pictures.test_containers import (
    CONTAINERS,
    bare,
    folder,
    image,
    imported,
    tar_bytes,
    zip_bytes,
)


def test_a_tar_that_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    files = {f"{n:09d}.{end}": image(n) for n in range(4) for end in ("png", "txt")}
    whole = tar_bytes(files)
    end = whole.rstrip(b"\0")
    path = tmp_path / "x.tar"
    for cut in range(0, len(end), 211):
        path.write_bytes(whole[:cut])
        with pytest.raises(AigiError, match=r"x\.tar: not readable as a tar archive"):
            open_pictures(str(path))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        headers = {info.offset for info in archive}
    for place in range(0, len(end), 512):  # a header, or data, in which a bit is wrong
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if place in headers:
            with pytest.raises(AigiError, match=r"x\.tar: not readable as a tar archive"):
                open_pictures(str(path))
        else:
            assert sorted(open_pictures(str(path)).files()) == sorted(files)


def _tar_with(path: Path, **fields: Any) -> str:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(fields.pop("name", "a.png"))
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return str(path)


def test_entries_of_a_tar_that_lead_out(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for name in ("../a.png", "/etc/a.png", "x/../../a.png"):
        with pytest.raises(Escapes, match="escapes the folder"):
            open_pictures(_tar_with(path, name=name))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with pytest.raises(Escapes, match="is a link"):
            open_pictures(_tar_with(path, type=kind, linkname="/etc/passwd"))
    with pytest.raises(AigiError, match="no regular file"):
        open_pictures(_tar_with(path, type=tarfile.FIFOTYPE))
    with open_pictures(_tar_with(path, size=5)) as found:
        with pytest.raises(Escapes):
            found.read("../a.png")
        with pytest.raises(BadPicture, match="no such picture"):
            found.read("b.png")


def test_twins_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for second, works in ((image(1), True), (image(2), False)):
        with tarfile.open(path, "w") as archive:
            for data in (image(1), second):
                info = tarfile.TarInfo("a.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        if works:
            assert open_pictures(str(path)).names() == ["a.png"]
        else:
            with pytest.raises(AigiError, match="is in it twice, and differs"):
                open_pictures(str(path))


def test_a_packed_tar_says_what_to_do(tmp_path: Path) -> None:
    for name in ("x.tar.gz", "x.tgz", "x.tar.zst"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(AigiError, match=r"unpack it to a \.tar"):
            open_pictures(str(tmp_path / name))


def test_a_damaged_archive_in_an_archive(tmp_path: Path) -> None:
    place = tmp_path / "x.zip"
    place.write_bytes(zip_bytes({"a.png": image(1), "in.zip": b"no archive"}))
    with pytest.raises(AigiError, match=r"x\.zip/in\.zip: not readable as a zip archive"):
        open_pictures(str(place)).names()
    bomb = zip_bytes({"b.png": b"\0" * 3_000_000})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in.zip", b"\0" * 5_000_000 + bomb)
    place.write_bytes(out.getvalue())
    with pytest.raises(AigiError, match="unpack it yourself"):
        open_pictures(str(place)).names()


def test_shards_are_opened_when_they_are_read_and_few_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    count = HELD + 5
    for number in range(count):
        data = tar_bytes({"a.png": image(number), "a.txt": b"a house"})
        (tmp_path / "place" / f"{number:05d}.tar").write_bytes(data)
    with open_pictures(str(tmp_path / "place")) as found:
        assert isinstance(found, Several) and not found._open
        assert found.read("00003.tar/a.png") == image(3)
        assert list(found._open) == ["00003.tar"]
        assert found.names() == [f"{number:05d}.tar/a.png" for number in range(count)]
        assert len(found._open) <= HELD
        assert [found.read(name) for name in found.names()] == [image(n) for n in range(count)]
    (tmp_path / "place" / "00002.tar").write_bytes(b"cut")
    with pytest.raises(AigiError, match=r"00002\.tar: not readable as a tar archive"):
        open_pictures(str(tmp_path / "place")).names()


def test_one_row_group_is_held_however_many_shards_there_are(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    for number in range(4):
        rows = [{"bytes": image(number), "path": "a.png"}]
        pq.write_table(pa.table({"image": rows}), tmp_path / "place" / f"{number}.parquet")
    with open_pictures(str(tmp_path / "place")) as found:
        assert isinstance(found, Several)
        for number in (0, 1, 2, 3, 1):
            assert found.read(f"{number}.parquet/a.png") == image(number)
            held = [part for part in found._open.values() if getattr(part, "_held", None)]
            assert len(held) == 1


@given(st.text(st.sampled_from("ab./\\:_MACOSX\0 "), max_size=14))
@settings(max_examples=500, deadline=None)
def test_fast_ways_to_look_at_a_name_agree_with_slow_ones(name: str) -> None:
    plain = name.replace("\\", "/")
    up = plain.startswith("/") or (plain[1:2] == ":" and plain[0].isalpha()) or "\0" in plain
    assert names.escapes(name) == (up or ".." in plain.split("/"))
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    assert names.seen(name) == (not hidden)
    if not hidden:
        assert names.ending_of(name) == os.path.splitext(name)[1].lower()


@st.composite
def members(draw: st.DrawFn) -> tuple[int, list[tuple[tarfile.TarInfo, bytes]]]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        data = draw(st.binary(max_size=1500))
        long = draw(st.sampled_from(["", "x" * 120 + "/", "y/" * 80, "ä", "./"]))
        info = tarfile.TarInfo(f"{long}{number}.png")
        info.size = len(data)
        info.mtime = draw(st.sampled_from([0, 1.5, 8**11 + 5, 1_700_000_000]))
        info.uid = draw(st.sampled_from([0, 3_000_000]))
        info.uname = draw(st.sampled_from(["", "root", "Ä"]))
        if draw(st.booleans()) and draw(st.booleans()):
            info.type, info.size, data = tarfile.DIRTYPE, 0, b""
        found.append((info, data))
    kind = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    return kind, found


@given(members())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_tar_is_indexed_as_tarfile_does(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[int, Any]
) -> None:
    kind, entries = made
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for info, data in entries:
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for this form
                return
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(out.getvalue())
    expected = {info.name.removeprefix("./"): data for info, data in entries if info.isreg()}
    with open_pictures(str(path)) as found:
        assert sorted(found.files()) == sorted(expected)
        assert {name: found.read(name) for name in found.files()} == expected


def test_images_beside_archives_are_a_folder_of_images(tmp_path: Path) -> None:
    place = folder(tmp_path, {"a.png": image(1), "b.zip": zip_bytes({"c.png": image(2)})})
    taken, refused = imported(place)
    assert not taken
    assert {(one.name, one.problem) for one in refused} == {
        ("a.png", "no caption"),
        ("b.zip", "not an image"),
    }


def test_a_tar_at_a_url() -> None:
    import fsspec

    data = tar_bytes({"a.png": image(1), "a.txt": b"a house"})
    fsspec.filesystem("memory").pipe_file("/tars/x.tar", data)
    with open_pictures("memory://tars/x.tar") as found:
        assert isinstance(found, TarPictures)
        assert found.read("a.png") == image(1) and found.head("a.png", 8) == image(1)[:8]
    assert imported("memory://tars/x.tar")[0] == {"a.png": "a house"}


def test_rows_of_a_table_of_images_are_read_in_their_order(tmp_path: Path) -> None:
    """An import reads each row group once, though its plan is drawn by hashes."""
    from pipeline.plan.imports import imported_shards
    from pipeline.plan.quotas import Plan
    from pipeline.plan.specification import ImportSpec

    names = [f"{n:03d}.png" for n in range(60)]
    images = [{"bytes": image(n), "path": name} for n, name in enumerate(names)]
    texts = [f"a house with {n} windows" for n in range(60)]
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "p.parquet",
                   row_group_size=5)  # fmt: skip
    source = ImportSource(kind="import", path=str(tmp_path / "p.parquet"), fit="keep")
    rows = listed_imports("mj", source, SplitShares(validation=0, test=0), [], [])
    spec = ImportSpec.model_validate({
        "kind": "import", "title": "t", "licence": "x", "licence_url": "https://a.b",
        "model": "m", "splits": {"train": {"count": 20, "width": 4, "height": 4}},
    })  # fmt: skip
    plan = Plan(dataset="d.yaml", margin=0.5)
    shards = list(imported_shards("mj", spec, source, "train", rows, plan, [7]))
    found = pa.concat_tables(table for _, table in shards)
    paths, ranks = found["path"].to_pylist(), found["rank"].to_pylist()
    assert sorted(ranks) == list(range(37))
    assert dict(zip(paths, ranks, strict=True)) == {
        row.path: rank for rank, row in enumerate(rows[:37])
    }
    for number, start, end in ((0, 0, 30), (1, 30, 37)):
        own = [path for path, rank in zip(paths, ranks, strict=True) if start <= rank < end]
        assert own == sorted(own), number

    class Counting(ParquetPictures):
        groups = 0

        def read(self, name: str) -> bytes:
            before = self._held
            data = super().read(name)
            Counting.groups += self._held is not before
            return data

    with Counting(str(tmp_path / "p.parquet")) as opened:
        for path in paths[:30]:
            opened.read(path)
    assert Counting.groups <= 12  # row groups of the table


def test_containers_have_one_interface(tmp_path: Path) -> None:
    files = {"a.png": image(1), "a.txt": b"a house", "x.pdf": b"%PDF"}
    places = {}
    for kind, make in CONTAINERS.items():
        (tmp_path / kind).mkdir()
        places[kind] = make(tmp_path / kind, files)
    for kind, place in places.items():
        with open_pictures(place) as found:
            assert isinstance(found, Container)
            (name,) = found.names()
            assert bare(name, kind) == "a.png"
            again = pickle.loads(pickle.dumps(found))  # noqa: S301 (as Ray's workers get it)
            assert again.names() == [name] and again.read(name) == image(1)
            again.close()
            assert found.size(name) == len(image(1)) and found.head(name, 4) == b"\x89PNG"
            assert (found.sidecar(name) or ("", b""))[1] == b"a house"
            assert "x.pdf" in {bare(one, kind) for one, _ in found.left_out()}
            assert found.checksum(name) == open_pictures(places["folder"]).checksum("a.png")
