"""Content, not names: what is on disk is what was written, and follows what it was made from.

Real runs of tiny models, whose files are then flipped, cut, exchanged or lost.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline import store as store_module
from pipeline.intact import Checks
from pipeline.pixels import decode, pixels_sha256, webp_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Build, Compute
from pipeline.status import damage
from pipeline.store import Damaged, Store
from tests import toy
from tests.conftest import aigi_here, record_as_written

TABLES = ("prompts", "plan", "images", "embeddings", "quality", "duplicates", "selection")


def made(root: Path, checks: Checks | None = None, **options: Any) -> str:
    """What the toy stages say."""
    out = io.StringIO()
    stages = toy.stages(**options)
    run_stages(stages, Store(str(root)), Compute(), Progress(out), checks or Checks())
    return out.getvalue()


def squares(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "squares").glob("*.parquet"))}


def times(root: Path, table: str) -> dict[str, int]:
    folder = root / table
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def quietly(path: Path, change: Callable[[Path], None]) -> None:
    """Change a file as a disk does that goes bad: its size and times stay."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- the spine -----------------------------------------------------------------------------------


def test_a_shard_that_changed_is_made_again_and_no_other(tmp_path: Path) -> None:
    made(tmp_path)
    good, before = squares(tmp_path), times(tmp_path, "squares")
    flip(tmp_path / "squares" / "part-00004.parquet", 4000)
    said = made(tmp_path)
    assert "squares: part-00004: changed since it was written; made again" in said or (
        "squares: part-00004: damaged; made again" in said
    )
    assert squares(tmp_path) == good
    now = times(tmp_path, "squares")
    assert {name for name in now if now[name] != before[name]} == {"part-00004.parquet"}
    assert "squares: 12 shards, already made" in made(tmp_path)


def test_a_shard_that_was_only_copied_or_touched_is_not_made_again(tmp_path: Path) -> None:
    made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    before = times(tmp_path / "b", "squares")
    said = made(tmp_path / "b")
    assert "squares: 12 shards, already made" in said and "again" not in said
    assert times(tmp_path / "b", "squares") == before


def test_damage_that_left_no_trace_is_found_by_rehash(tmp_path: Path) -> None:
    made(tmp_path)
    good = squares(tmp_path)
    path = tmp_path / "squares" / "part-00002.parquet"
    quietly(path, lambda path: flip(path, 2400))
    assert "squares: 12 shards, already made" in made(tmp_path)
    with pytest.raises(Damaged, match=r"part-00002\.parquet: damaged .*--rehash"):
        Store(str(tmp_path)).read("squares", "part-00002")
    made(tmp_path, Checks(rehash=True))
    assert squares(tmp_path) == good


def test_what_was_made_from_a_changed_shard_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    stages = toy.stages()
    made(tmp_path)
    before = times(tmp_path, "squares")
    numbers = stages[0]
    assert isinstance(numbers, Build)

    def other(store: Store, progress: Progress) -> list[Any]:
        shards = toy.numbers(store, progress)
        table = pa.table([pa.array(range(1000, 1000 + toy.ROWS))], schema=toy.NUMBERS)
        shards[7] = store.write("numbers", "part-00007", table, toy.NUMBERS)
        return shards

    out = io.StringIO()
    (tmp_path / "numbers" / "part-00001.parquet").unlink()
    run_stages(
        [replace(numbers, build=other), stages[1]],
        Store(str(tmp_path)),
        Compute(),
        Progress(out),
    )
    assert "squares: part-00007: what it was made from has changed; made again" in out.getvalue()
    now = times(tmp_path, "squares")
    assert {name for name in now if now[name] != before[name]} == {"part-00007.parquet"}
    rows = Store(str(tmp_path)).read("squares", "part-00007")
    assert rows["square"][0].as_py() == 1000**2


def test_shards_of_a_killed_driver_say_themselves_what_they_are(tmp_path: Path) -> None:
    made(tmp_path)
    good, before = squares(tmp_path), times(tmp_path, "squares")
    path = tmp_path / "_stages" / "squares.json"
    record = json.loads(path.read_text())
    for name in ("part-00003", "part-00004", "part-00005"):
        del record["shards"][name]
    path.write_text(json.dumps(record | {"status": "running"}))
    quietly(tmp_path / "squares" / "part-00004.parquet", lambda path: flip(path, 2400))
    foreign = pq.read_table(tmp_path / "squares" / "part-00005.parquet")
    pq.write_table(foreign, tmp_path / "squares" / "part-00003.parquet")
    made(tmp_path)
    now = times(tmp_path, "squares")
    again = {name for name in now if now[name] != before[name]}
    assert again == {"part-00003.parquet", "part-00004.parquet"}, "part-00005 is taken up"
    assert squares(tmp_path) == good


def test_shards_without_a_record_are_refused_or_adopted(tmp_path: Path) -> None:
    made(tmp_path)
    good, before = squares(tmp_path), times(tmp_path, "squares")
    (tmp_path / "_stages" / "squares.json").unlink()
    with pytest.raises(AigiError, match=r"squares: 12 shards in .*no record .*--adopt"):
        made(tmp_path)
    made(tmp_path, Checks(adopt=True))
    assert times(tmp_path, "squares") == before and squares(tmp_path) == good


def test_adopted_shards_must_have_the_rows_of_what_they_are_made_from(tmp_path: Path) -> None:
    made(tmp_path)
    good = squares(tmp_path)
    (tmp_path / "_stages" / "squares.json").unlink()
    path = tmp_path / "squares" / "part-00006.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    made(tmp_path, Checks(adopt=True))
    assert squares(tmp_path) == good


EARLIER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "numbers": lambda record: {
        **{k: record[k] for k in ("table", "version", "settings", "fingerprint", "status")},
        "inputs": {},
        "sizes": {name: shard["bytes"] for name, shard in record["shards"].items()},
        "failed": {},
        "expected": len(record["shards"]),
        "seconds": 0.1,
    },
    "squares": lambda record: {
        **{k: record[k] for k in ("table", "version", "fingerprint", "status", "inputs")},
        "settings": {},
        "sha256": {name: shard["sha256"] for name, shard in record["shards"].items()},
        "failed": {},
        "expected": len(record["shards"]),
        "seconds": 0.1,
    },
}
"""Records as they were before the content of inputs was in them."""


def as_before(root: Path) -> None:
    from pipeline.running import _seen

    (numbers, _) = toy.stages()
    for table, earlier in EARLIER.items():
        path = root / "_stages" / f"{table}.json"
        record = {"inputs": {}, **json.loads(path.read_text())}
        old = earlier(record)
        if table == "numbers":
            old["seen"] = _seen(numbers, Store(str(root)))  # type: ignore[arg-type]
        path.write_text(json.dumps(old))


def test_runs_of_earlier_versions_are_taken_up_and_then_watched(tmp_path: Path) -> None:
    made(tmp_path)
    before = times(tmp_path, "squares")
    as_before(tmp_path)
    said = made(tmp_path)
    assert "numbers: 12 shards, already made" in said
    assert "squares: 12 shards of an earlier version of aigi" in said
    assert "squares: 12 shards, already made" in said
    assert times(tmp_path, "squares") == before
    assert "earlier version" not in made(tmp_path)
    as_before(tmp_path)
    flip(tmp_path / "squares" / "part-00000.parquet", 2400)
    said = made(tmp_path)
    assert "part-00000" in said and "made again" in said


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"table": "squ', "not JSON"),
        ("[]", "expected an object"),
        ('{"table": "squares", "version": 1, "fingerprint": 7}', "fingerprint"),
        ('{"table": "squares", "version": "x", "fingerprint": ""}', "version"),
        (
            '{"table": "squares", "version": 1, "fingerprint": "", "status": "great"}',
            "status",
        ),
        (
            '{"table": "squares", "version": 1, "fingerprint": "", "shards": {"a": 3}}',
            "shards.a",
        ),
        (
            '{"table": "squares", "version": 1, "fingerprint": "", "shards": {"a": {"bytes": -1}}}',
            "shards.a.bytes",
        ),
        ("[" * 100_000, "too deep"),
        ("\udcff", "not JSON"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_it(tmp_path: Path, text: str, field: str) -> None:
    made(tmp_path)
    path = tmp_path / "_stages" / "squares.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Damaged) as error:
        made(tmp_path)
    said = str(error.value)
    assert "\n" not in said and str(path) in said and field in said and "--adopt" in said


def test_a_record_of_another_table_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    shutil.copy(tmp_path / "_stages" / "numbers.json", tmp_path / "_stages" / "squares.json")
    with pytest.raises(Damaged, match=r"squares\.json: table: .*numbers"):
        made(tmp_path)


def test_an_input_that_nothing_here_makes_must_be_what_was_written(tmp_path: Path) -> None:
    made(tmp_path)
    last = toy.stages()[1]
    path = tmp_path / "numbers" / "part-00003.parquet"
    data = path.read_bytes()

    def only_squares() -> None:
        run_stages([last], Store(str(tmp_path)), Compute(), Progress(quiet=True))

    flip(path, 2400)
    with pytest.raises(Damaged, match=r"squares: .*numbers/part-00003\.parquet: .*rehash"):
        only_squares()
    path.unlink()
    with pytest.raises(Damaged, match=r"numbers/part-00003\.parquet: missing"):
        only_squares()
    path.write_bytes(data)
    stray = tmp_path / "numbers" / "part-99999.parquet"
    stray.write_bytes(data)
    with pytest.raises(Damaged, match=r"part-99999\.parquet: the numbers stage did not write it"):
        only_squares()
    stray.unlink()
    only_squares()


def test_the_reason_of_damage_is_told_whatever_the_folder_is_called(tmp_path: Path) -> None:
    root = tmp_path / "was damaged (a). b.parquet: c"
    made(root)
    for name in ("part-00002", "part-00004"):
        path = root / "squares" / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-4] + b"none")
    for name, data in (("part-00006", b""), ("part-00007", b"none")):
        (root / "squares" / f"{name}.parquet").write_bytes(data)
    found = damage(Store(str(root)), Progress(quiet=True))
    why = "damaged (it does not end as a parquet file does)"
    assert found[:2] == [f"squares/part-0000{n}.parquet: {why}" for n in (2, 4)]
    assert [line.partition(" and ")[0] for line in found[2:]] == [
        f"squares/part-0000{n}.parquet: {count} bytes," for n, count in ((6, 0), (7, 4))
    ]
    last = toy.stages()[1]
    squares = str(root / "squares" / "part-00002.parquet")
    with pytest.raises(Damaged) as error:
        after = replace(last, table="cubes", inputs=("squares",))
        run_stages([after], Store(str(root)), Compute(), Progress(quiet=True))
    assert str(error.value).startswith(f"cubes: {squares}: {why} (4 files of squares are not ")
    assert str(error.value).count(squares) == 1 and str(error.value).count("--rehash") == 1
    copy = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert (str(copy), copy.why) == (str(error.value), error.value.why), "as Ray sends it"
    said = made(root)
    assert f"squares: part-00002 and 1 more: {why}; made again" in said
    assert "squares: part-00007: 4 bytes, and" in said


def test_the_command_that_remakes_can_be_pasted(tmp_path: Path) -> None:
    root = tmp_path / "a run; of 'mine'"
    made(root)
    Store(str(root)).write_json({}, "_workflow.json")
    flip(root / "squares" / "part-00001.parquet", 2400)
    with pytest.raises(Damaged) as error:
        Store(str(root)).read("squares", "part-00001")
    command = shlex.split(str(error.value).partition("To remake it: ")[2])
    path = f"{root}/_workflow.json"
    assert command == ["aigi", "run", path, "--set", f"run={root}", "--rehash"]


# --- a whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[tuple[Path, Path]]:
    """A workflow with every building stage, and its finished run."""
    from tests import conftest

    folder = tmp_path_factory.mktemp("content")
    make: Any = conftest.make_workflow.__wrapped__  # type: ignore[attr-defined]
    path = make(folder, models)(
        embeddings={"folder": str(models / "clip")},
        quality={},
        duplicates={"min_similarity": 0.8},
        characteristics={},
        # So that every table has files of its own to harm.
        release={"version": "1.2.3", "pixels": "copied"},
    )
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    yield path, folder / "run"


@pytest.fixture
def run(curated: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    path, run = curated
    return path, Path(shutil.copytree(run, tmp_path / "copy"))


def again(path: Path, run: Path, *more: str) -> str:
    done = aigi_here("run", str(path), "--set", f"run={run}", *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


def mirrored(path: Path, honest: bool = False) -> str:
    """Exchange the first image of a shard for its mirror image; its id.

    Args:
        honest: its row states the hash of its pixels.
    """
    table = pq.read_table(path)
    rows = table.to_pylist()
    row = next(row for row in rows if row["image"])
    rgb = np.ascontiguousarray(decode(row["image"]["bytes"], 1 << 20).rgb[:, ::-1])
    row["image"]["bytes"] = webp_bytes(rgb)
    if honest:
        row["pixels_sha256"] = pixels_sha256(rgb)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return str(row["image_id"])


def test_an_exchanged_image_never_gets_into_a_release(run: tuple[Path, Path]) -> None:
    path, folder = run
    again(path, folder)
    before = {table: times(folder, table) for table in (*TABLES, "release", "characteristics")}
    shard = sorted((folder / "images").glob("sd-train-*.parquet"))[0]
    good = shard.read_bytes()
    mirrored(shard)
    said = again(path, folder)
    assert f"images: {shard.stem}" in said and "made again" in said
    assert shard.read_bytes() == good, "the same models make the same bytes"
    after = {table: times(folder, table) for table in before}
    assert after.pop("images") != before.pop("images")
    assert after == before, "what follows was made from the same content"


def test_no_release_is_made_of_pixels_that_their_row_does_not_state(
    run: tuple[Path, Path],
) -> None:
    path, folder = run
    shard = sorted((folder / "images").glob("sd-train-*.parquet"))[0]
    name = mirrored(shard)
    record_as_written(Store(str(folder)), "images", shard.stem)
    done = aigi_here("run", str(path), "--set", f"run={folder}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert f"{shard}: row" in line and name in line and "pixels_sha256" in line


def test_an_image_that_really_changed_is_followed_by_all_that_tells_of_it(
    run: tuple[Path, Path],
) -> None:
    path, folder = run
    again(path, folder)
    tables = ("embeddings", "quality", "selection", "release", "characteristics")
    before = {table: times(folder, table) for table in tables}
    shard = sorted((folder / "images").glob("sd-train-*.parquet"))[0]
    name = mirrored(shard, honest=True)
    record_as_written(Store(str(folder)), "images", shard.stem)
    again(path, folder)
    for table in ("embeddings", "quality"):
        after = times(folder, table)
        changed = {one for one in after if after[one] != before[table][one]}
        assert changed == {shard.name}, "and nothing else"
    for table in ("release", "characteristics"):
        after = times(folder, table)
        assert len({one for one in after if after[one] != before[table].get(one)}) == 1
    store = Store(str(folder))
    rows = {row["image_id"]: row for row in store.read("images", shard.stem).to_pylist()}
    released = [
        row
        for file in store.shards("release")
        for row in store.read("release", file).to_pylist()
        if row["image_id"] == name
    ]
    assert [row["pixels_sha256"] for row in released] == [rows[name]["pixels_sha256"]]
    assert aigi_here("verify", str(folder)).returncode == 0


def test_a_lost_release_and_lost_side_files_come_back(run: tuple[Path, Path]) -> None:
    path, folder = run
    again(path, folder)
    whole = {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.parent.name not in ("_stages", "_logs")
        and file.name != "manifest.json"
    }

    def same() -> None:
        for name, data in whole.items():
            assert (folder / name).read_bytes() == data, name

    shutil.rmtree(folder / "release")
    again(path, folder)
    same()
    assert (folder / "release" / "manifest.json").is_file()
    for name in ("selection/_files.json", "plan/_rounds.json", "duplicates/_covered.json"):
        for change in (Path.unlink, lambda path: path.write_text('{"rou')):
            change(folder / name)
            assert name in again(path, folder)
            same()
    for name in ("rejects/images.parquet", "rejects/plan.parquet"):
        flip(folder / name, 800)
        again(path, folder)
        same()


def test_a_number_that_changed_in_a_side_file_is_put_back(run: tuple[Path, Path]) -> None:
    path, folder = run
    again(path, folder)
    rounds = folder / "plan" / "_rounds.json"
    text = rounds.read_text()
    rounds.write_text(json.dumps(json.loads(text) | {"rounds": [{"sd/train": 5}]}))
    assert "put back from the record" in again(path, folder)
    assert rounds.read_text() == text


# --- single bits ---------------------------------------------------------------------------------


def flips(run: Path, count: int, seed: int, whole: bool) -> Iterator[tuple[Path, int, str]]:
    """Bits of shards of every table, and what reading said: `same`, `found`, or what it was."""
    store = Store(str(run))
    draw = random.Random(seed)
    shards = {
        table: sorted((run / table).rglob("*.parquet")) for table in (*TABLES, "characteristics")
    }
    for number in range(count):
        table = [*shards][number % len(shards)]
        path = draw.choice(shards[table])
        name = str(path.relative_to(run / table)).removesuffix(".parquet")
        columns = None if whole else [c for c in pq.read_schema(path).names if c != "image"]
        good = store.read(table, name, columns)
        data = path.read_bytes()
        bit = draw.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        before = path.stat()
        path.write_bytes(changed)
        try:
            said = "same" if store.read(table, name, columns).equals(good) else "other content"
        except Damaged as error:
            text = str(error)
            named = str(path) in text and "--rehash" in text and "\n" not in text
            said = "found" if named else f"not one line with file and remedy: {text}"
        finally:
            path.write_bytes(data)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        yield path, bit, said


@pytest.mark.parametrize("whole", [True, False])
def test_no_single_bit_is_read_as_other_content(
    curated: tuple[Path, Path], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that are read whole, and of large ones, of which only some columns are read."""
    if not whole:
        monkeypatch.setattr(store_module, "WHOLE", 0)
    said = [(str(path), bit, said) for path, bit, said in flips(curated[1], 1200, 18, whole)]
    assert {line for _, _, line in said} <= {"same", "found"}, said
    found = sum(line == "found" for _, _, line in said)
    assert found == 1200 if whole else found > 400


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_none_of_20_000_single_bits_is_read_as_other_content(
    curated: tuple[Path, Path], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(store_module, "WHOLE", 0)
    wrong = [
        (str(path), bit, said)
        for path, bit, said in flips(curated[1], 10_000, 81, whole)
        if said not in ("same", "found")
    ]
    assert not wrong, wrong
