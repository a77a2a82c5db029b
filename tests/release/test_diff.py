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
from pipeline.release.diff import Difference, diff
from pipeline.store import Store
from pipeline.tables import RELEASE
from tests.conftest import aigi_here

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
