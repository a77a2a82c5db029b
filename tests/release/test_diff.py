"""`aigi diff`: rows added, removed and changed between two releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.release import diff as module
from pipeline.release.diff import Difference, diff
from pipeline.store import Store
from pipeline.tables import RELEASE
from tests.conftest import aigi_here
from tests.release import row_by_row

Rows = dict[str, dict[str, Any]]


def release(folder: Path, rows: Rows, files: int = 2) -> str:
    """A release of rows by image id; `config` and `split` say where each stands."""
    store = Store(str(folder))
    folder.mkdir()
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for image, row in rows.items():
        row = {"image_id": image, "image": {"bytes": b"p", "path": "p"}, **row}
        places.setdefault((row.pop("config"), row.pop("split")), []).append(row)
    records = []
    for (config, split), found in places.items():
        for number in range(files):
            name = f"{config}/{split}-{number:05d}"
            table = pa.Table.from_pylist(found[number::files], schema=RELEASE)
            made = store.write("", name, table, RELEASE)
            records.append(
                {"path": f"{name}.parquet", "config": config, "split": split}
                | {"rows": made.rows, "bytes": made.bytes, "sha256": made.sha256}
            )
    (folder / "manifest.json").write_text(json.dumps({"files": records}))
    return str(folder)


def row(text: str = "a boat", config: str = "sd", split: str = "train", **more: Any) -> Any:
    return {"text": text, "config": config, "split": split, "pixels_sha256": "00", **more}


def test_kinds_of_difference(tmp_path: Path) -> None:
    old = {"a": row(), "b": row(), "c": row(), "d": row(), "e": row(seed=1)}
    new = {
        "a": row(),
        "c": row(split="test"),
        "d": row(pixels_sha256="11", note="scaled"),
        "e": row(seed=2),
        "f": row(config="sdxl"),
    }
    found = list(diff(release(tmp_path / "a", old), release(tmp_path / "b", new)))
    assert found[-1] == Difference("added", "sdxl", "train", "f")
    assert {(d.what, d.image_id): (d.config, d.split, d.columns) for d in found[:-1]} == {
        ("removed", "b"): ("sd", "train", ""),
        ("changed", "c"): ("sd", "test", "split"),
        ("changed", "d"): ("sd", "train", "pixels_sha256 note"),
        ("changed", "e"): ("sd", "train", "seed"),
    }


IDS = st.sampled_from("abcdefgh")
ROWS = st.dictionaries(
    IDS,
    st.builds(
        row,
        st.sampled_from(["x", "y"]),
        st.sampled_from(["sd", "sdxl"]),
        st.sampled_from(["train", "test"]),
        seed=st.one_of(st.none(), st.integers(0, 1)),
    ),
)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS, st.integers(1, 3), st.integers(1, 3))
def test_differences_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, old: Rows, new: Rows, one: int, other: int
) -> None:
    """Whatever the files that the rows stand in."""
    folder = tmp_path_factory.mktemp("d")
    before, after = dict(old), dict(new)
    found = list(diff(release(folder / "a", old, one), release(folder / "b", new, other)))
    assert {d.image_id for d in found if d.what == "added"} == set(after) - set(before)
    assert {d.image_id for d in found if d.what == "removed"} == set(before) - set(after)
    both = set(before) & set(after)
    assert {d.image_id: set(d.columns.split()) for d in found if d.what == "changed"} == {
        i: {name for name in before[i] if before[i][name] != after[i][name]}
        for i in both
        if before[i] != after[i]
    }
    assert len(found) == len({d.image_id for d in found})


SCHEMA = pa.schema([
    ("image_id", pa.string()), ("pixels_sha256", pa.string()), ("text", pa.string()),
    ("seed", pa.int64()), ("clip_score", pa.float32()), ("good", pa.bool_()),
    ("concepts", pa.map_(pa.string(), pa.float32())), ("vector", pa.list_(pa.int8())),
    ("about", pa.struct([("place", pa.string()), ("size", pa.int32())])), ("blob", pa.binary()),
])  # fmt: skip
OTHERS = {"text": pa.large_string(), "seed": pa.int32(), "image_id": pa.large_string()}
"""The same values in other types."""
WORDS = st.sampled_from([None, "", "a", "ab", "b", "a\0", "\u00e9", "x" * 40, "x" * 20_000])
VALUES = st.fixed_dictionaries({
    "pixels_sha256": WORDS, "text": WORDS,
    "seed": st.sampled_from([None, 0, 1, -1, 2**31 - 1]),
    "clip_score": st.sampled_from([None, 0.5, 1.0, 0.0]),
    "good": st.sampled_from([None, True, False]),
    "concepts": st.sampled_from([None, [], [("a", 0.5)], [("a", None)], [("a", 0.5), ("b", 1.0)],
                                 [("b", 1.0), ("a", 0.5)]]),
    "vector": st.sampled_from([None, [], [1], [1, 2], [2, 1], [None], [0]]),
    "about": st.sampled_from([None, {"place": None, "size": None}, {"place": "a", "size": 1}]),
    "blob": st.sampled_from([None, b"", b"a", b"\0", b"\0\0"]),
})  # fmt: skip
RELEASE_OF = st.tuples(
    st.dictionaries(IDS, VALUES, max_size=6),
    st.sets(st.sampled_from([name for name in SCHEMA.names if name != "image_id"]), max_size=2),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([("sd", "train"), ("sd", "test"), ("sdxl", "train")]),
)


def any_release(folder: Path, given: Any) -> str:
    """A release without some columns, or with other types of the same values."""
    rows, absent, wide, count, (config, split) = given
    fields = [
        pa.field(f.name, OTHERS.get(f.name, f.type) if wide else f.type)
        for f in SCHEMA
        if f.name not in absent
    ]
    schema, store, records = pa.schema(fields), Store(str(folder)), []
    listed = [{"image_id": name, **each} for name, each in rows.items()]
    for number in range(count):
        name = f"{config}/{split}-{number:05d}"
        table = pa.Table.from_pylist(listed[number::count], schema=schema)
        made = store.write("", name, table, schema)
        records.append(
            {"path": f"{name}.parquet", "config": config, "split": split}
            | {"rows": made.rows, "bytes": made.bytes, "sha256": made.sha256}
        )
    (folder / "manifest.json").write_text(json.dumps({"files": records}))
    return str(folder)


@settings(max_examples=150, deadline=None)
@given(RELEASE_OF, RELEASE_OF)
def test_differences_are_those_of_a_plain_comparison(
    tmp_path_factory: pytest.TempPathFactory, old: Any, new: Any
) -> None:
    """Of any columns, types and files, in the same order and with the same names of columns."""
    folder = tmp_path_factory.mktemp("d")
    places = any_release(folder / "a", old), any_release(folder / "b", new)
    assert list(diff(*places)) == list(row_by_row.diff(*places))


def test_an_id_that_is_there_twice_is_named_with_its_files(tmp_path: Path) -> None:
    rows = {"a": row(), "b": row(), "c": row()}
    one = release(tmp_path / "a", {name: row("another") for name in rows})
    other = release(tmp_path / "b", {**rows, "d": row()})
    store = Store(other)
    table = store.read("", "sd/train-00001")
    twice = pa.concat_tables([table, store.read("", "sd/train-00000").slice(0, 1)])
    made = store.write("", "sd/train-00001", twice, RELEASE)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["files"][1] |= {"rows": made.rows, "bytes": made.bytes, "sha256": made.sha256}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AigiError, match=r"a is there twice: in sd/train-00000\.parquet and sd/"):
        list(diff(one, other))


def test_equal_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {str(number): row() for number in range(8)}
    one = release(tmp_path / "a", rows)
    other = release(tmp_path / "b", {**rows, "1": row("another text")})
    opened: list[str] = []
    before = module.narrow

    def noted(store: Store, path: str) -> pa.Table:
        opened.append(path)
        return before(store, path)

    monkeypatch.setattr(module, "narrow", noted)
    assert [(d.what, d.image_id, d.columns) for d in diff(one, other)] == [("changed", "1", "text")]
    assert {path.rsplit("/")[-1] for path in opened} == {"train-00001.parquet"}


def test_the_command_counts_names_and_exits(tmp_path: Path) -> None:
    old = release(tmp_path / "a", {str(i): row() for i in range(9)})
    new = release(tmp_path / "b", {str(i): row("a, ship" if i < 2 else "a boat") for i in range(5)})
    done = aigi_here("diff", old, new, "--limit", "1")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["changed sd/train 0: text", "removed sd/train 6"]
    assert "sd/train: 2 changed" in done.stderr and "sd/train: 4 removed" in done.stderr
    listed = aigi_here("diff", old, new, "--csv").stdout.splitlines()
    assert listed[0] == "what,config,split,image_id,columns" and len(listed) == 7
    same = aigi_here("diff", old, old)
    assert same.returncode == 0 and same.stdout == "" and "no row differs" in same.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    one = release(tmp_path / "a", {"a": row(), "b": row()})
    (tmp_path / "a" / "sd" / "train-00001.parquet").unlink()
    with pytest.raises(AigiError, match=r"train-00001\.parquet: missing"):
        list(diff(one, one))
    with pytest.raises(AigiError, match="not a release"):
        list(diff(str(tmp_path), one))
