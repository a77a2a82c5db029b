"""One table of captions and images in every layout and container: the same through every door."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline import AigiError
from pipeline.collection import Collection, Pictures
from pipeline.pictures.lists import list_captions
from pipeline.pictures.names import Caption
from pipeline.pictures.pictures import open_pictures
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import png_bytes
from pipeline.plan.imports import listed_imports
from pipeline.prompts.captions import CaptionSource, read
from pipeline.prompts.text import SplitShares
from tests.conftest import ROOT

README = ROOT / "pipeline/pictures/README.md"
Files = Mapping[str, bytes]
Captions = Mapping[str, str]


def image(number: int) -> bytes:
    return png_bytes(np.full((4, 4, 3), number % 251, np.uint8))


# --- containers: files in, a place out -----------------------------------------------------------


def folder(root: Path, files: Files) -> str:
    for name, data in files.items():
        path = root / "place" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root / "place")


def zip_bytes(files: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def zipped(root: Path, files: Files) -> str:
    (root / "place.zip").write_bytes(zip_bytes(files))
    return str(root / "place.zip")


def zip_in_zip(root: Path, files: Files) -> str:
    inner = zip_bytes(files)
    (root / "place.zip").write_bytes(zip_bytes({"README.md": b"", "in/inner.zip": inner}))
    return str(root / "place.zip")


def tar_bytes(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tarred(root: Path, files: Files) -> str:
    (root / "place.tar").write_bytes(tar_bytes(files))
    return str(root / "place.tar")


def _halves(files: Files) -> list[Files]:
    """The files in two parts; what belongs to one image stays together, tables are in the first."""
    stems = sorted({name.split(".")[0] for name in files if "metadata" not in name})
    first = set(stems[: (len(stems) + 1) // 2])
    parts: list[dict[str, bytes]] = [{}, {}]
    for name, data in files.items():
        parts[0 if name.split(".")[0] in first or "metadata" in name else 1][name] = data
    return [part for part in parts if part]


def tar_shards(root: Path, files: Files) -> str:
    (root / "place").mkdir()
    for number, part in enumerate(_halves(files)):
        (root / "place" / f"{number:05d}.tar").write_bytes(tar_bytes(part))
        (root / "place" / f"{number:05d}_stats.json").write_text("{}")
        # Beside each shard, img2dataset writes a table of urls.
        pq.write_table(pa.table({"url": ["u"]}), root / "place" / f"{number:05d}.parquet")
    return str(root / "place")


CONTAINERS: dict[str, Callable[[Path, Files], str]] = {
    "folder": folder, "zip": zipped, "zip in zip": zip_in_zip, "tar": tarred, "tars": tar_shards,
}  # fmt: skip
INSIDE = {"zip in zip": ("in/inner.zip/",), "tars": ("00000.tar/", "00001.tar/")}


# --- tables: captions in, a file out -------------------------------------------------------------


def _csv(captions: Captions, delimiter: str = ",", header: bool = True) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    if header:
        writer.writerow(["file", "n", "text"])
    for number, (name, text) in enumerate(captions.items()):
        writer.writerow([name, number, text])
    return out.getvalue()


def _jsonl(captions: Captions) -> str:
    rows = ({"file": name, "text": text} for name, text in captions.items())
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _array(captions: Captions) -> str:
    rows = [{"text": text, "file": name} for name, text in captions.items()]
    return json.dumps(rows, indent=1)


def _coco(captions: Captions) -> str:
    return json.dumps({
        "images": [{"id": n, "file_name": name} for n, name in enumerate(captions)],
        "annotations": [{"image_id": n, "caption": t} for n, t in enumerate(captions.values())],
    })  # fmt: skip


def _karpathy(captions: Captions) -> str:
    images = [{"filename": n, "sentences": [{"raw": t}]} for n, t in captions.items()]
    return json.dumps({"images": images})


def _parquet(captions: Captions, kind: pa.DataType) -> bytes:
    out = io.BytesIO()
    columns = {"file": pa.array(list(captions)).cast(kind), "text": pa.array(captions.values())}
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


TABLES: dict[str, tuple[str, Callable[[Captions], str | bytes], dict[str, Any]]] = {
    "csv": ("t.csv", _csv, {}),
    "tsv": ("t.tsv", lambda c: _csv(c, "\t"), {}),
    "semicolons": ("t.csv", lambda c: _csv(c, ";"), {}),
    "utf-16": ("t.csv", lambda c: _csv(c).encode("utf-16"), {}),
    "utf-8 with a mark": ("t.csv", lambda c: _csv(c).encode("utf-8-sig"), {}),
    "another encoding": ("t.csv", lambda c: _csv(c).encode("gb18030"), {"encoding": "gb18030"}),
    "no header": ("t.csv", lambda c: _csv(c, header=False), {"header": ["file", "n", "text"]}),
    "gzip": ("t.csv.gz", lambda c: gzip.compress(_csv(c).encode()), {}),
    "zstd": ("t.jsonl.zst", lambda c: pa.compress(_jsonl(c).encode(), "zstd", asbytes=True), {}),
    "jsonl": ("t.jsonl", _jsonl, {}),
    "array": ("t.json", _array, {}),
    "coco": ("t.json", _coco, {}),
    "karpathy": ("t.json", _karpathy, {}),
    "parquet": ("t.parquet", lambda c: _parquet(c, pa.string()), {}),
    "large strings": ("t.parquet", lambda c: _parquet(c, pa.large_string()), {}),
    "views": ("t.parquet", lambda c: _parquet(c, pa.string_view()), {}),
    "dictionary": ("t.parquet", lambda c: _parquet(c, pa.dictionary(pa.int8(), pa.string())), {}),
}


def stem(name: str) -> str:
    return name.rpartition(".")[0]


BESIDE: dict[str, Callable[[Captions], Files]] = {
    ".txt": lambda c: {f"{stem(name)}.txt": text.encode() for name, text in c.items()},
    ".TXT": lambda c: {f"{stem(name)}.TXT": text.encode() for name, text in c.items()},
    ".caption": lambda c: {f"{stem(name)}.caption": text.encode() for name, text in c.items()},
    ".json": lambda c: {
        f"{stem(name)}.json": json.dumps({"caption": t, "url": "u"}).encode()
        for name, t in c.items()
    },
    "img2dataset": lambda c: {
        f"{stem(name)}.{ending}": data
        for name, text in c.items()
        for ending, data in {"txt": text.encode(), "json": b'{"status": "success"}'}.items()
    },
    "metadata.jsonl": lambda c: {
        "metadata.jsonl": _jsonl(c).replace('"file":', '"file_name":').encode()
    },
    "metadata.csv": lambda c: {"metadata.csv": _csv(c).encode()},
    "metadata of each folder": lambda c: {
        f"{place}metadata.jsonl": "".join(
            json.dumps({"file_name": name[len(place) :], "text": text}) + "\n"
            for name, text in c.items()
            if name[: name.rfind("/") + 1] == place
        ).encode()
        for place in {name[: name.rfind("/") + 1] for name in c}
    },
}
"""Captions that a place itself has."""


# --- doors: a place in, captions by name out -----------------------------------------------------


def bare(name: str, kind: str) -> str:
    """The name of an image without that of the archive that it is in."""
    for prefix in INSIDE.get(kind, ()):
        name = name.removeprefix(prefix)
    return name


def imported(place: str, **more: Any) -> tuple[dict[str, str], list[Caption]]:
    found = list(list_captions(ImportSource(kind="import", path=place, **more)))
    taken = {one.name: one.text for one in found if one.text is not None and one.problem is None}
    return taken, [one for one in found if one.problem is not None]


def planned(place: str, **more: Any) -> dict[str, str]:
    source, rejects = ImportSource(kind="import", path=place, **more), list[dict[str, Any]]()
    rows = listed_imports("mj", source, SplitShares(), rejects, [])
    return {row.path: row.text for row in rows}


def collected(place: str, **more: Any) -> dict[str, str]:
    """As benchmarks, analysis and training read it."""
    found = Collection(Pictures(place=place, **more))
    rows = [row for part in found.parts for row in found.read(part.name).to_pylist()]
    return {row["image"]["path"]: row["text"] for row in rows}


WORDS = st.text(st.sampled_from('abcXYZ012 ,;"|éß猫\u200d#:/.-'), min_size=1, max_size=24).filter(
    lambda text: any(map(str.isalnum, text))
)
ODD_NAMES = ["a.png", "B 2.PNG", "deep/c.png", "deep/er/ä.png", "x,y;z.png", "夜.png", "0001.png"]


@st.composite
def tables(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.lists(st.sampled_from(ODD_NAMES), min_size=1, max_size=5, unique=True))
    return {name: draw(WORDS).strip() for name in names}


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(captions=tables(), layout=st.sampled_from(sorted(TABLES)))
def test_every_table_with_every_container(
    tmp_path_factory: pytest.TempPathFactory, kind: str, captions: dict[str, str], layout: str
) -> None:
    root = tmp_path_factory.mktemp("table")
    files = {name: image(number) for number, name in enumerate(captions)}
    place = CONTAINERS[kind](root, files)
    name, write, form = TABLES[layout]
    data = write(captions)
    (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    more = {"captions": str(root / name), "table": form}
    taken, refused = imported(place, **more)
    assert {bare(n, kind): text for n, text in taken.items()} == captions
    assert {one.name for one in refused} <= {"README.md"}
    assert collected(place, **more) == taken
    assert planned(place, **more).keys() == taken.keys()
    kinds = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
    asked = {"kind": kinds.get(Path(name.removesuffix(".gz")).suffix, "jsonl"), "column": "text"}
    asked = {"kind": "coco"} if layout in ("coco", "karpathy") else asked
    source: CaptionSource = TypeAdapter(CaptionSource).validate_python(
        {"path": str(root / name), "table": form, **asked}
    )
    assert [text for _, text, _ in read(source)] == list(captions.values())


def planted(captions: Captions, how: str) -> tuple[Captions, str]:
    """Captions with one row too many, and the problem of that row."""
    if how == "no such image":
        return {"no.such": "of nothing", **captions}, "no such picture"
    first = next(iter(captions))
    return {**captions, f"./{first}": "once more"}, "listed twice"


@pytest.mark.parametrize("how", ["no such image", "twice"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(captions=tables(), layout=st.sampled_from(sorted(TABLES)), kind=st.sampled_from(
    sorted(CONTAINERS)))  # fmt: skip
def test_one_bad_row_in_every_layout(
    tmp_path_factory: pytest.TempPathFactory,
    how: str, captions: dict[str, str], layout: str, kind: str,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("bad")
    place = CONTAINERS[kind](root, {name: image(n) for n, name in enumerate(captions)})
    name, write, form = TABLES[layout]
    rows, problem = planted(captions, how)
    data = write(rows)
    (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    more = {"captions": str(root / name), "table": form}
    taken, refused = imported(place, **more)
    assert {bare(n, kind): text for n, text in taken.items()} == captions
    (row,) = [one for one in refused if one.line is not None]
    assert problem in str(row.problem)
    assert collected(place, **more) == taken
    found = Collection(Pictures(place=place, **more))
    assert [one.problem for one in found.refused] == [row.problem]
    assert problem in found.notes[-1] and "they are left out" in found.notes[-1]


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(captions=tables(), layout=st.sampled_from(sorted(BESIDE)))
def test_captions_of_the_place_itself(
    tmp_path_factory: pytest.TempPathFactory, kind: str, captions: dict[str, str], layout: str
) -> None:
    root = tmp_path_factory.mktemp("beside")
    files = {name: image(number) for number, name in enumerate(captions)}
    if "metadata" in layout and kind == "tars":
        return  # such a table is for the images of its own shard
    place = CONTAINERS[kind](root, {**files, **BESIDE[layout](captions)})
    taken, refused = imported(place)
    assert {bare(n, kind): text for n, text in taken.items()} == captions
    assert {one.name for one in refused} <= {"README.md"}
    assert collected(place) == taken


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    captions=tables(),
    kinds=st.sampled_from([
        (pa.string(), pa.binary(), pa.string()),
        (pa.large_string(), pa.large_binary(), pa.large_string()),
        (pa.string_view(), pa.binary_view(), pa.string_view()),
        (pa.string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())),
        (pa.string(), pa.binary(), pa.list_(pa.string())),
        (pa.string(), pa.binary(), pa.large_list(pa.large_string())),
    ]),
    shards=st.booleans(),
)  # fmt: skip
def test_tables_of_images_of_every_type(
    tmp_path_factory: pytest.TempPathFactory,
    captions: dict[str, str],
    kinds: tuple[pa.DataType, pa.DataType, pa.DataType],
    shards: bool,
) -> None:
    root = tmp_path_factory.mktemp("rows")
    path, data, text = kinds
    images = [image(number) for number in range(len(captions))]

    def table(part: slice) -> pa.Table:
        column = pa.StructArray.from_arrays(
            [pa.array(images[part], pa.binary()).cast(data),
             pa.array(list(captions)[part], pa.string()).cast(path)], ["bytes", "path"],
        )  # fmt: skip
        listed: list[Any] = list(captions.values())[part]
        if "list" in str(text):
            return pa.table({"image": column, "text": pa.array([[t] for t in listed], text)})
        return pa.table({"image": column, "text": pa.array(listed, pa.string()).cast(text)})

    (root / "place").mkdir()
    place = str(root / "place") if shards else str(root / "place.parquet")
    if shards:
        for number in range(2):
            part = slice(None, 1) if number == 0 else slice(1, None)
            pq.write_table(table(part), root / f"place/train-{number}.parquet")
    else:
        rows = None if pa.types.is_binary_view(data) else 2  # of views, Arrow writes no part
        pq.write_table(table(slice(None)), place, row_group_size=rows)
    taken, refused = imported(place)
    found = {name.removeprefix("train-0.parquet/").removeprefix("train-1.parquet/"): caption
             for name, caption in taken.items()}  # fmt: skip
    assert found == captions and not refused
    assert collected(place) == taken
    with open_pictures(place) as opened:
        assert [opened.read(name) for name in taken] == [image(n) for n, _ in enumerate(captions)]


def test_a_table_that_is_none_of_captions_is_told_and_passed_over(tmp_path: Path) -> None:
    place = folder(tmp_path, {
        "a.png": image(1), "a.txt": b"a house", "metadata.csv": b"id,url\n1,u\n",
        "x/metadata.jsonl": b'{"file_name": "b.png", "label": 3}\n', "x/b.png": image(2),
    })  # fmt: skip
    taken, refused = imported(place)
    assert taken == {"a.png": "a house"}
    assert {one.name: (one.problem or "").partition(":")[0] for one in refused} == {
        "metadata.csv": "not used for captions",
        "x/metadata.jsonl": "not used for captions",
        "x/b.png": "no caption",
    }
    assert sum("text: no such column" in str(one.problem) for one in refused) == 2
    assert collected(place) == {"a.png": "a house", "x/b.png": ""}


def test_who_measures_is_told_what_is_left_out(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic" + b"\0" * 40
    place = folder(tmp_path, {"a.png": image(1), "b.heic": heic, "c.heic": heic, "n.md": b""})
    found = Collection(Pictures(place=place))
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"{place}: left out: 2 ") and "HEIC" in found.notes[0]


def test_a_pattern_of_what_is_no_archive(tmp_path: Path) -> None:
    place = folder(tmp_path, {"a.png": image(1), "b.txt": b""})
    with pytest.raises(AigiError, match=r"a\.png fits this pattern, and is none of \.zip, \.par"):
        open_pictures(f"{place}/*")


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "asked", "found", "note"),
    [
        (["a.png"], "a.png", "a.png", ""),
        (["x/a.png"], "./x\\a.png", "x/a.png", ""),
        (["x/a.png", "x/b.png"], "a.png", "x/a.png", "by the name of the file alone"),
        (["x/a.png", "y/a.png"], "a.png", "2 pictures have this name", ""),
        (["IMG_0.PNG"], "img_0.png", "IMG_0.PNG", "with other capitals or another ending"),
        (["a.webp"], "a.png", "a.webp", "with other capitals or another ending"),
        (["a.webp"], "a", "a.webp", "with other capitals or another ending"),
        (["x/a.webp"], "A.jpg", "x/a.webp", "alone, with other capitals or another ending"),
        (["a.webp", "A.jpg"], "a.png", "2 pictures have this name", ""),
        (["a.png", "A.png"], "a.png", "a.png", ""),
        (["a.png"], "../a.png", "escapes the folder", ""),
        (["a.png"], "b.png", "no such picture", ""),
    ],
)
def test_how_names_are_matched(
    tmp_path: Path, images: list[str], asked: str, found: str, note: str
) -> None:
    place = folder(tmp_path, {name: image(1) for name in images})
    table = tmp_path / "t.csv"
    table.write_text(f'file,text\n"{asked}",a house\n')
    notes: list[str] = []
    source = ImportSource(kind="import", path=place, captions=str(table))
    taken = [one for one in list_captions(source, notes) if one.text or one.line]
    assert len(taken) == 1
    if found in images:
        assert (taken[0].name, taken[0].text, taken[0].problem) == (found, "a house", None)
        assert [note in line for line in notes] == ([True] if note else [])
    else:
        assert found in str(taken[0].problem) and not notes


ROWS = {
    "folder": "folder",
    "zip, also in a zip": "zip in zip",
    "tar": "tar",
    "folder or pattern of tar": "tars",
    "CSV, TSV": "semicolons",
    "JSON lines": "jsonl",
    "JSON array": "array",
    "COCO, official or Karpathy": "karpathy",
    "parquet table of captions": "dictionary",
    "compressed tables": "zstd",
    "UTF-16, other encodings": "another encoding",
    "a file beside an image": ".caption",
    "imagefolder": "metadata of each folder",
}
"""Rows of the README that a layout or container of this file tries; the others have a test each."""
TESTED = {
    "parquet of images": test_tables_of_images_of_every_type,
    "folder or pattern of parquet": test_tables_of_images_of_every_type,
}


def test_the_readme_lists_what_is_tried_here() -> None:
    section = README.read_text().partition("| what | how |")[2].partition("\n\n")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    listed = [line.split("|")[1].strip() for line in lines]
    assert sorted(listed) == sorted([*ROWS, *TESTED])
    assert set(ROWS.values()) <= CONTAINERS.keys() | TABLES.keys() | BESIDE.keys()
