"""Split zip archives: what is read from the volumes is what the whole archive holds."""

from __future__ import annotations

import bisect
import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.pictures.volumes import Volumes, open_zip
from pipeline.pictures.zips import ZipPictures
from pipeline.pixels import BadPicture

SPANNED = b"PK\7\x08"  # what a split archive starts with


def zipped(files: dict[str, bytes], comment: bytes = b"", zip64: bool = False) -> bytes:
    """A plain archive; every other file is deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=zip64) as file:
                file.write(data)
        archive.comment = comment
    return out.getvalue()


def entries_of(data: bytes) -> tuple[int, list[bytes]]:
    """Where the central directory starts, and its entries."""
    end = data.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<2L", data, end + 12)
    found, at = [], start
    while at < start + size:
        lengths = struct.unpack_from("<3H", data, at + 28)
        found.append(data[at : at + 46 + sum(lengths)])
        at += len(found[-1])
    return start, found


def split(data: bytes, cuts: list[float], zip64: bool = False) -> list[bytes]:
    """The volumes of a plain archive that is cut at these shares of its length.

    Args:
        zip64: sizes, offsets and the place of the central directory stand in Zip64 records.
    """
    start, entries = entries_of(data)
    comment = data[data.rindex(b"PK\5\6") + 22 :]
    growth = 4 + 3 * 8 + 4 if zip64 else 0
    directory = len(SPANNED) + start
    length = sum(len(entry) + growth for entry in entries)
    # The end records stand in the last volume, whole; anything else may be cut anywhere.
    starts = [0, *sorted({int(cut * (directory + length)) for cut in cuts} - {0})]

    def place(at: int) -> tuple[int, int]:
        volume = bisect.bisect_right(starts, at) - 1
        return volume, at - starts[volume]

    moved = []
    for entry in entries:
        (offset,) = struct.unpack_from("<L", entry, 42)
        volume, offset = place(offset + len(SPANNED))
        names, extras, _ = struct.unpack_from("<3H", entry, 28)
        extra = entry[46 + names : 46 + names + extras]
        packed, unpacked = struct.unpack_from("<2L", entry, 20)
        if zip64:
            extra = struct.pack("<2H3QL", 1, 28, unpacked, packed, offset, volume) + extra
            volume, offset, packed, unpacked = 0xFFFF, *[0xFFFF_FFFF] * 3
        moved.append(
            entry[:20]
            + struct.pack("<2L", packed, unpacked)
            + entry[28:30]
            + struct.pack("<2H", len(extra), len(entry) - 46 - names - extras)
            + struct.pack("<H", volume)
            + entry[36:42]
            + struct.pack("<L", offset)
            + entry[46 : 46 + names]
            + extra
            + entry[46 + names + extras :]
        )
    last, count = len(starts) - 1, len(entries)
    volume, offset = place(directory)
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, last, volume, count, count, length, offset
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", last, directory + length - starts[-1], last + 1)
    numbers = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)
    if not zip64:
        numbers = (last, volume, count, count, length, offset)
    end = struct.pack("<4s4H2LH", b"PK\5\6", *numbers, len(comment)) + comment
    whole = SPANNED + data[:start] + b"".join(moved) + (end64 + locator) * zip64 + end
    return [whole[a:b] for a, b in zip(starts, [*starts[1:], len(whole)], strict=True)]


def write_volumes(volumes: list[bytes], archive: Path) -> Path:
    """Write them as `A.z01`, `A.z02`, …, `A.zip`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(volumes[:-1], start=1):
        archive.with_suffix(f".z{number:02d}").write_bytes(data)
    archive.write_bytes(volumes[-1])
    return archive


names = st.text("abcÄ日-_ ", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(names, st.binary(max_size=400), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    zip64=st.booleans(),
    comment=st.binary(max_size=30).filter(lambda text: b"PK" not in text),
)
def test_volumes_hold_what_the_whole_archive_holds(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    cuts: list[float],
    zip64: bool,
    comment: bytes,
) -> None:
    data = zipped(files, comment)
    path = write_volumes(split(data, cuts, zip64), tmp_path_factory.mktemp("v") / "a.zip")
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        file = open_zip(str(path))
        with zipfile.ZipFile(file) as parts:
            assert parts.namelist() == whole.namelist() == list(files)
            for one, other in zip(parts.infolist(), whole.infolist(), strict=True):
                assert one.header_offset == other.header_offset + len(SPANNED)
                for field in ("CRC", "file_size", "compress_size", "compress_type", "date_time"):
                    assert getattr(one, field) == getattr(other, field)
                assert parts.read(one) == whole.read(other)
        file.close()


@settings(max_examples=100)
@given(
    parts=st.lists(st.binary(max_size=20), max_size=6),
    moves=st.lists(st.tuples(st.integers(0, 130), st.integers(-1, 130)), max_size=10),
)
def test_reading_volumes_is_reading_them_joined(
    parts: list[bytes], moves: list[tuple[int, int]]
) -> None:
    joined, volumes = io.BytesIO(b"".join(parts)), Volumes([io.BytesIO(part) for part in parts])
    for at, count in moves:
        assert volumes.seek(at) == joined.seek(at)
        assert volumes.read(count) == joined.read(count)
        assert volumes.tell() == joined.tell()
    assert volumes.seek(-0, 2) == joined.seek(0, 2)
    assert volumes.seek(0, 1) == joined.seek(0, 1)
    with pytest.raises(OSError, match="before the start"):
        volumes.seek(-1)


FILES = {f"train/{n}_0.png": bytes([n]) * 300 for n in range(1, 9)}


def test_the_pictures_of_a_split_archive(tmp_path: Path) -> None:
    """Also one whose own numbers are of Zip64, as programs write them that do not know sizes."""
    for zip64 in (False, True):
        data = zipped(FILES, zip64=zip64)
        path = write_volumes(split(data, [0.1, 0.4, 0.8], zip64), tmp_path / f"{zip64}.zip")
        with ZipPictures(str(path)) as pictures:
            assert pictures.files() == list(FILES)
            assert {name: pictures.read(name) for name in FILES} == FILES


def test_on_an_object_store(tmp_path: Path) -> None:
    import fsspec

    for number, volume in enumerate(split(zipped(FILES), [0.3, 0.6]), start=1):
        name = "a.zip" if number == 3 else f"a.z{number:02d}"
        with fsspec.open(f"memory://split/{name}", "wb") as file:
            file.write(volume)
    with ZipPictures("memory://split/a.zip") as pictures:
        assert pictures.read("train/5_0.png") == FILES["train/5_0.png"]


def test_more_than_99_volumes(tmp_path: Path) -> None:
    volumes = split(zipped(FILES), [n / 120 for n in range(1, 120)])
    assert len(volumes) == 120
    path = write_volumes(volumes, tmp_path / "a.zip")
    assert (tmp_path / "a.z119").exists()
    with ZipPictures(str(path)) as pictures:
        assert {name: pictures.read(name) for name in FILES} == FILES


def test_a_missing_volume_is_named(tmp_path: Path) -> None:
    path = write_volumes(split(zipped(FILES), [0.2, 0.4, 0.6]), tmp_path / "SD21.zip")
    (tmp_path / "SD21.z02").unlink()
    with pytest.raises(AigiError, match=r"SD21\.z02: missing\. .*SD21\.zip is the last of 4"):
        ZipPictures(str(path))


def test_a_volume_cut_short_harms_its_own_entries_alone(tmp_path: Path) -> None:
    volumes = split(zipped(dict(list(FILES.items())[::2])), [0.5])
    path = write_volumes([volumes[0][:-100], volumes[1]], tmp_path / "a.zip")
    with ZipPictures(str(path)) as pictures:
        bad = []
        for name in pictures.files():
            try:
                assert pictures.read(name) == FILES[name]
            except BadPicture as error:
                assert "damaged in the archive" in str(error)
                bad.append(name)
    assert len(bad) == 1


@pytest.mark.parametrize("zip64", [False, True])
def test_damaged_directories_are_refused(tmp_path: Path, zip64: bool) -> None:
    volumes = split(zipped(FILES), [0.3, 0.5], zip64)
    at = volumes[-1].rindex(b"PK\1\2")
    field = volumes[-1].rindex(b"PK\6\6" if zip64 else b"PK\5\6")
    wrong = {
        "entry": (at, b"XXXX"),
        "volume": (at + 34, b"\x77\0") if not zip64 else (field + 20, b"\x77\0\0\0"),
        "size": (field + 40, b"\xff" * 7) if zip64 else (field + 12, b"\xff\xff\xff\x7f"),
        "count": (field + 32, b"\xff\xff") if zip64 else (field + 10, b"\xff\x7f"),
    }
    for name, (where, data) in wrong.items():
        last = bytearray(volumes[-1])
        last[where : where + len(data)] = data
        path = write_volumes([*volumes[:-1], bytes(last)], tmp_path / f"{name}.zip")
        with pytest.raises(AigiError, match=rf"{name}\.zip: not readable as the last of 3 volumes"):
            ZipPictures(str(path))
