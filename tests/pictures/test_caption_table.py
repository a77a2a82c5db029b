"""One table of captions through every door: the same rows are taken, the same ones refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.analysis.places import read_shard, shard_names, state
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import COLUMNS, Collection, Pictures
from pipeline.pictures.lists import list_captions
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import png_bytes
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.training import stages as training
from pipeline.training.settings import Train
from tests.conftest import aigi_here

NAMES = ["a.png", "b c.PNG", "deep/d.jxl", "deep/a.png", "e.jfif", "ä.webp"]
"""`e.jfif` is an image by its content, and `a.png` is the base name of two."""


class Table(NamedTuple):
    """A table, and what every door makes of it."""

    name: str
    data: bytes
    taken: dict[str, str] | None = None
    refused: str = ""


TABLES = {
    "as it should be": Table("t.csv", b'file,text\na.png,"one, two"\n', {"a.png": "one, two"}),
    "an unquoted comma": Table(
        "t.csv", b"file,text\na.png,one, two\n", None, "3 fields, the header has 2"
    ),
    "an open quote": Table("t.csv", b'file,text\na.png,"one\n', None, "line 2: not CSV: a quote"),
    "another spelling": Table("t.csv", b"file,text\n./b c.PNG, x \n", {"b c.PNG": "x"}),
    "a base name": Table("t.csv", b"file,text\nd.jxl,x\n", {"deep/d.jxl": "x"}),
    "a base name of none": Table("t.csv", b"file,text\nf.png,x\n", None, "no such picture"),
    "an image by its content": Table("t.csv", b"file,text\ne.jfif,x\n", {"e.jfif": "x"}),
    "out of the folder": Table("t.csv", b"file,text\n../a.png,x\n", None, "escapes the folder"),
    "a byte order mark": Table("t.csv", b"\xef\xbb\xbffile,text\r\na.png,x\r\n", {"a.png": "x"}),
    "another Unicode form": Table("t.csv", "file,text\na\u0308.webp,x\n".encode(), {"ä.webp": "x"}),
    "not UTF-8": Table("t.csv", b"file,text\na.png,\xff\n", None, "line 2: invalid UTF-8"),
    "tabs": Table("t.tsv", b"file\ttext\na.png\tone, two\n", {"a.png": "one, two"}),
    "semicolons": Table("t.csv", b'file;text\na.png;"one; two"\n', {"a.png": "one; two"}),
    "a comma in a name beside": Table("t.csv", b'"a;b",file,text\n1,a.png,x\n', {"a.png": "x"}),
    "no such column": Table("t.csv", b"file,prompt\na.png,x\n", None, "text: no such column"),
    "lines": Table("t.jsonl", b'{"file": "a.png", "text": "x"}\n\n', {"a.png": "x"}),
    "a line that is no object": Table("t.jsonl", b"[1]\n", None, ": expected an object"),
    "a line that is cut": Table("t.jsonl", b'{"file": "a.png"', None, ": not JSON"),
    "a number for a text": Table(
        "t.jsonl", b'{"file": "a.png", "text": 1}\n', None, "'text' is int, not text"
    ),
    "another kind": Table(
        "t.txt", b"a.png\tx\n", None, "captions are read from .csv, .tsv, .jsonl"
    ),
}


def imported(place: str, table: str) -> dict[str, str]:
    found = list(list_captions(ImportSource(kind="import", path=place, captions=table)))
    # What an image lacks is its own affair; what a row lacks is the table's.
    bad = [f"{one.name}: {one.problem}" for one in found if one.problem not in (None, "no caption")]
    if bad:
        raise AigiError("\n".join(bad))
    return {one.name: one.text for one in found if one.text is not None}


def texts(collection: Collection) -> dict[str, str]:
    rows = [row for part in collection.parts for row in collection.read(part.name).to_pylist()]
    return {row["image"]["path"]: row["text"] for row in rows}


def measured(place: str, table: str) -> dict[str, str]:
    pictures = Pictures(place=place, captions=table)
    benchmark = Benchmark(pictures=pictures, codecs=["jpeg"], anchor="jpeg")
    return texts(Collection(benchmark.measured))


def through_places(pictures: tuple[Pictures, ...]) -> dict[str, str]:
    store = Store("run")
    assert state(pictures, store)
    shards = [read_shard(pictures, COLUMNS.names, store, name)
              for name in shard_names(pictures, store)]  # fmt: skip
    return {row["image"]["path"]: row["text"] for shard in shards for row in shard.to_pylist()}


def analysed(place: str, table: str) -> dict[str, str]:
    section = Characteristics(pictures=[Pictures(place=place, captions=table)])
    return through_places(section.pictures)


def aligned(place: str, table: str) -> dict[str, str]:
    pictures = [Pictures(place=place, captions=table)]
    section = Alignments(pictures=pictures, models={"clip": {"kind": "open_clip"}})
    return through_places(section.pictures)


def trained(place: str, table: str) -> dict[str, str]:
    settings = Train(data=Pictures(place=place, captions=table))
    stage = training.stage(settings, "run", Compute())
    stage.state(Store("run"))  # reads the table
    return texts(Collection(settings.data)) if settings.data else {}


DOORS = {
    "import": imported,
    "benchmark": measured,
    "analysis": analysed,
    "alignment": aligned,
    "training": trained,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doors") / "pictures"
    data = png_bytes(np.zeros((4, 4, 3), np.uint8))
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("packed", ["folder", "zip", "parquet"])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_is_the_same_through_every_door(
    place: Path,
    tmp_path: Path,
    table: Table,
    door: Callable[[str, str], dict[str, str]],
    packed: str,
) -> None:
    where = place
    if packed == "parquet":
        where = tmp_path / "pictures.parquet"
        images = [{"bytes": (place / name).read_bytes(), "path": name}
                  for name in NAMES]  # fmt: skip
        pq.write_table(pa.table({"image": images}), where, row_group_size=2)
    elif packed == "zip":
        where = tmp_path / "pictures.zip"
        with zipfile.ZipFile(where, "w") as archive:
            for name in NAMES:
                archive.write(place / name, name)
    (tmp_path / table.name).write_bytes(table.data)
    if table.taken is not None:
        assert door(str(where), str(tmp_path / table.name)) == table.taken
        return
    with pytest.raises(AigiError) as found:
        door(str(where), str(tmp_path / table.name))
    assert table.refused in str(found.value)


def test_a_table_that_is_not_there_is_named_through_every_door(place: Path) -> None:
    for door in DOORS.values():
        with pytest.raises(AigiError, match=r"gone\.csv: no such file"):
            door(str(place), "gone.csv")


def test_an_image_may_have_an_empty_prompt_where_prompts_are_not_the_point(
    place: Path, tmp_path: Path
) -> None:
    """An import needs a prompt for every image; who measures takes the image without."""
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"file": "a.png", "text": ""}) + '\n{"file": "b c.PNG"}\n')
    assert imported(str(place), str(table)) == {}
    for door in (measured, analysed, aligned):
        assert door(str(place), str(table)) == {"a.png": "", "b c.PNG": ""}


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jxl", ".jfif", ".txt", ""])
def test_what_is_an_image_is_one_list(tmp_path: Path, ending: str) -> None:
    from pipeline.pictures.pictures import open_pictures

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / f"x{ending}").write_bytes(png_bytes(np.zeros((4, 4, 3), np.uint8)))
    known = ending != ".txt"  # else its content decides
    assert bool(open_pictures(str(tmp_path / "p")).names()) == known
    if known:
        assert list(texts(Collection(Pictures(place=str(tmp_path / "p"))))) == [f"x{ending}"]
    else:
        with pytest.raises(AigiError, match="no images"):
            Collection(Pictures(place=str(tmp_path / "p")))


def test_one_bad_row_costs_an_import_one_reject_with_its_line(place: Path, tmp_path: Path) -> None:
    tables = {
        "t.csv": b"file,text\na.png,one, two\nd.jxl,x\nb c.PNG,y\n",
        "t.jsonl": b'{"file": "a.png"\n{"file": "d.jxl", "text": "x"}\n[1]\n'
        b'{"file": "b c.PNG", "text": "y"}\n{"file": "e.jfif", "text": ["z", "z"]}\n',
    }
    lines = {"t.csv": {2}, "t.jsonl": {1, 3, 5}}
    for name, data in tables.items():
        (tmp_path / name).write_bytes(data)
        given = ImportSource(kind="import", path=str(place), captions=str(tmp_path / name))
        found = list(list_captions(given))
        taken = {one.name: one.text for one in found if one.text is not None}
        assert taken == {"deep/d.jxl": "x", "b c.PNG": "y"}
        assert {one.line for one in found if one.line is not None} == lines[name]
        # Who measures, analyses or trains goes on without such rows, and says so.
        assert measured(str(place), str(tmp_path / name)) == taken
        collection = Collection(Pictures(place=str(place), captions=str(tmp_path / name)))
        assert {one.line for one in collection.refused} == lines[name]
        assert f"{name}:{min(lines[name])}: " in collection.notes[-1]
        assert f"({len(lines[name])} of " in collection.notes[-1]


def test_a_benchmark_says_which_rows_it_left_out(place: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('file,text\na.png,x\nno.png,y\nd.jxl,"open\nb c.PNG,z\n')
    run = tmp_path / "run"
    settings = {
        "run": run, "benchmark.strips": "null", "benchmark.anchor": "jpeg",
        "benchmark.codecs": "[{codec: jpeg, qualities: [50]}]",
        "benchmark.pictures.place": place, "benchmark.pictures.captions": table,
    }  # fmt: skip
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = aigi_here("run", "workflows/benchmark.yaml", *given)
    assert done.returncode == 0, done.stderr
    said = f"{table}:3: no.png: no such picture in {place} (2 of 4 rows do not fit)"
    assert f"{said}; they are left out" in done.stdout + done.stderr
    rows = pq.read_table(run / "rejects/benchmark.parquet").to_pylist()
    assert [(row["line"], row["reason"]) for row in rows] == [
        (3, "no such picture"),
        (4, "not CSV: a quote is never closed"),
    ]
    page = (run / "benchmark/README.md").read_text()
    assert page.count("Note") == 1 and "2 of 4 rows do not fit" in page


def test_an_analysis_without_a_table_says_what_it_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes(np.full((32, 32, 3), 90, np.uint8)))
    (folder / "b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "w.yaml").write_text("run: run\ncharacteristics: {pictures: [{place: mine}]}\n")
    done = aigi_here("run", str(tmp_path / "w.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"characteristics-00: {folder}: left out: 1 " in done.stdout + done.stderr
