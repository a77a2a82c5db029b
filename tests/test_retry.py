"""Failed rows are made again when asked, and nothing else is; what was made from them follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline.intact import Checks
from pipeline.progress import Progress
from pipeline.retry import in_place, made_again
from pipeline.running import run_stages
from pipeline.stage import Build, Compute, Map
from pipeline.store import Shard, Store
from tests import toy
from tests.test_run import files, times


def test_failed_rows_alone_are_made_again_when_asked(tmp_path: Path) -> None:
    """Each by itself, in its place; no other shard is touched, and what follows is made."""
    seen: list[list[int]] = []

    class Noted(toy.Squarer):
        def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
            seen.append(rows["number"].to_pylist())
            for chunk in super().__call__(rows, start):
                errors = chunk["error"].to_pylist()
                wrong = [e or ("odd" if n in wrongs else None) for n, e in
                         zip(chunk["number"].to_pylist(), errors, strict=True)]  # fmt: skip
                yield chunk.set_column(2, "error", pa.array(wrong, pa.string()))

    def copied(store: Store, progress: Progress) -> list[Shard]:
        built.append(len(built))
        table = store.read_all("squares")
        return [store.write("sums", "all", table, toy.SQUARES)]

    numbers, squares = toy.stages()
    assert isinstance(squares, Map)
    squares = replace(squares, make_worker=partial(Noted, 0.0, None, None, None))
    after = replace(squares, table="cubes", inputs=("squares",), schema=toy.NUMBERS,
                    make_worker=lambda: lambda rows: [rows])  # fmt: skip
    sums = Build("sums", 1, toy.SQUARES, {}, ("squares",), copied)
    built: list[int] = []

    def go(retry: bool = False) -> None:
        store = Store(str(tmp_path))
        run_stages(
            [numbers, squares, after, sums],
            store,
            Compute(),
            Progress(quiet=True),
            Checks(retry=retry),
        )

    wrongs = {5, 6, 90}
    go()
    before, cubes = times(tmp_path), {p.name: p.stat().st_mtime_ns for p in
                                      (tmp_path / "cubes").glob("*.parquet")}  # fmt: skip
    seen.clear()
    go()
    assert not seen and times(tmp_path) == before and len(built) == 1
    wrongs = {90}
    go(retry=True)
    assert seen == [[5], [6], [90]]
    assert [row["number"] for row in Store(str(tmp_path)).read_all("squares").to_pylist()
            if row["error"]] == [90]  # fmt: skip
    again = {name for name, when in times(tmp_path).items() if when != before[name]}
    assert again == {"part-00000.parquet", "part-00002.parquet"}
    followed = {p.name for p in (tmp_path / "cubes").glob("*.parquet")
                if p.stat().st_mtime_ns != cubes[p.name]}  # fmt: skip
    # 90 failed again, so what is made from its shard stays.
    assert followed == {"part-00000.parquet"} and len(built) == 2
    wrongs = set()
    go(retry=True)
    toy.make(str(tmp_path / "undisturbed"))
    assert files(tmp_path) == files(tmp_path / "undisturbed"), "as if none had ever failed"
    go(retry=True)
    assert len(built) == 3


def test_a_shard_whose_row_cannot_be_made_again_keeps_what_it_has(tmp_path: Path) -> None:
    toy.make(str(tmp_path), bad_row=77)
    before = files(tmp_path)
    numbers, squares = toy.stages(bad_shard=77)  # the machine fails at it this time
    with pytest.raises(AigiError, match="1 of 12 shards failed"):
        run_stages(
            [numbers, squares],
            Store(str(tmp_path)),
            Compute(),
            Progress(quiet=True),
            Checks(retry=True),
        )
    assert files(tmp_path) == before
    toy.make(str(tmp_path))
    assert files(tmp_path) == before


def test_rows_of_one_unit_are_made_again_together() -> None:
    def worker(rows: pa.Table) -> Iterator[pa.Table]:
        asked.append(rows["name"].to_pylist())
        yield rows.select(["name"]).append_column("error", pa.nulls(rows.num_rows, pa.string()))

    asked: list[list[str]] = []
    names = ["a", "b", "b2", "c", "d", "d2"]
    rows = pa.table({"name": names, "pair": [None, "b", "b", None, "d", "d"]})
    old = pa.table({"name": names, "error": pa.array(["x", "x", "x", None, None, "x"])})
    made = pa.concat_tables(in_place(old, made_again(old, rows, worker, "pair")))
    assert asked == [["a"], ["b", "b2"], ["d2"]]
    assert made["name"].to_pylist() == names and made["error"].null_count == 6
    asked.clear()
    assert [part["name"].to_pylist() for part in made_again(old, rows, worker, "pair", 3)] == [
        ["d2"]
    ], "three failed rows are made already"
    assert asked == [["d2"]]
    with pytest.raises(AigiError, match="6 rows for 5"):
        list(made_again(old, rows.slice(1), worker))
    with pytest.raises(AigiError, match="0 rows out of 1: the worker lost some"):
        list(made_again(old, rows, lambda rows: [old.select([0, 1]).slice(0, 0)]))
