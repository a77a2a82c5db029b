"""The spine: resume after kill -9, bad rows and shards, changed settings, full disks, status."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline import AigiError, parquet
from pipeline.cli import app
from pipeline.progress import Progress
from pipeline.record import Driver
from pipeline.running import run_stages
from pipeline.stage import Build, Compute, Files, Map, fingerprint
from pipeline.status import damage, status
from pipeline.store import Shard, Store
from pipeline.tables import IMAGES
from tests import toy
from tests.conftest import ROOT


def files(root: Path, table: str = "squares") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / table).glob("*.parquet"))}


def times(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (root / "squares").glob("*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    toy.make(str(root))
    return root


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toy", str(root), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Jobs of a shell's background ignore SIGINT, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_shards(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list((root / "squares").glob("*.parquet"))) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.parametrize("after", [1, 5, 11])
def test_kill_driver_then_the_same_command_finishes(
    tmp_path: Path, undisturbed: Path, after: int
) -> None:
    process = start(tmp_path, "--seconds", "0.2")
    wait_for_shards(tmp_path, after, process)
    time.sleep(0.05)  # into the middle of the next shard
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = times(tmp_path)
    assert len(kept) >= after
    done = start(tmp_path)
    assert done.wait() == 0, done.communicate()[0]
    assert files(tmp_path) == files(undisturbed)
    assert {name: when for name, when in times(tmp_path).items() if name in kept} == kept
    assert not list((tmp_path / "squares").glob(".*")), "the half-written file is swept"


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    toy.make(str(tmp_path))
    before = times(tmp_path)
    assert "already made" in toy.make(str(tmp_path))
    assert times(tmp_path) == before


@pytest.mark.parametrize("keep", [0, 40, -1])
def test_a_shard_cut_short_is_made_again(tmp_path: Path, undisturbed: Path, keep: int) -> None:
    toy.make(str(tmp_path))
    path = tmp_path / "squares" / "part-00003.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    toy.make(str(tmp_path))
    assert files(tmp_path) == files(undisturbed)


def test_a_lost_shard_is_made_again_and_a_stray_one_removed(
    tmp_path: Path, undisturbed: Path
) -> None:
    toy.make(str(tmp_path))
    (tmp_path / "squares" / "part-00003.parquet").unlink()
    stray = tmp_path / "squares" / "part-99999.parquet"
    stray.write_bytes((tmp_path / "squares" / "part-00001.parquet").read_bytes())
    toy.make(str(tmp_path))
    assert files(tmp_path) == files(undisturbed)


def test_one_bad_row_fails_alone(tmp_path: Path) -> None:
    toy.make(str(tmp_path), bad_row=77)
    rows = Store(str(tmp_path)).read_all("squares").to_pylist()
    assert len(rows) == toy.SHARDS * toy.ROWS
    assert [row["number"] for row in rows if row["error"]] == [77]
    assert all(row["square"] == row["number"] ** 2 for row in rows if not row["error"])


def test_one_bad_shard_fails_alone_and_is_named(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(AigiError) as error:
        toy.make(str(tmp_path), bad_shard=130)
    text = str(error.value)
    assert "1 of 12 shards failed" in text
    assert "part-00003: ValueError: cannot square 130" in text
    assert "run the same command again" in text
    assert len(files(tmp_path)) == toy.SHARDS - 1
    state = {stage.table: stage for stage in status(Store(str(tmp_path)))}["squares"]
    assert (state.state, state.done, state.failed, state.missing) == ("failed", 11, 1, 1)
    toy.make(str(tmp_path))
    assert files(tmp_path) == files(undisturbed)


def test_a_worker_that_loses_rows_fails_its_shard(tmp_path: Path) -> None:
    class Loser(toy.Squarer):
        def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
            yield from list(super().__call__(rows, start))[1:]

    numbers, squares = toy.stages()
    assert isinstance(squares, Map)
    losing = replace(squares, make_worker=partial(Loser, 0.0, None, None, None))
    with pytest.raises(AigiError, match="30 rows out of 40: the worker lost some"):
        run_stages([numbers, losing], Store(str(tmp_path)), Compute(), Progress(quiet=True))
    assert files(tmp_path) == {}


def test_failing_everywhere_stops_early(tmp_path: Path) -> None:
    class Broken:
        def __call__(self, rows: object) -> list[object]:
            raise RuntimeError("no CUDA here")

    numbers, squares = toy.stages(shards=30)
    assert isinstance(squares, Map)
    broken = replace(squares, make_worker=Broken)
    with pytest.raises(AigiError, match=r"8 of 30 shards failed \(stopped after 8 in a row\)"):
        run_stages([numbers, broken], Store(str(tmp_path)), Compute(), Progress(quiet=True))


def test_a_changed_setting_is_refused_by_name(tmp_path: Path) -> None:
    toy.make(str(tmp_path), settings={"model": {"steps": 50, "name": "a"}})
    before = files(tmp_path)
    with pytest.raises(AigiError) as error:
        toy.make(str(tmp_path), settings={"model": {"steps": 30, "name": "a"}})
    text = str(error.value)
    assert "squares: made with other settings" in text
    assert "model.steps: 50 -> 30" in text
    assert "name" not in text.split("\n")[1]
    assert str(tmp_path / "squares") in text, "says what to delete"
    assert files(tmp_path) == before


def test_a_changed_setting_is_refused_by_name_and_a_changed_input_is_followed(
    tmp_path: Path,
) -> None:
    toy.make(str(tmp_path))
    record = tmp_path / "_stages" / "numbers.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps(data | {"fingerprint": "other", "settings": {"shards": 11}}))
    with pytest.raises(AigiError, match="shards: 11 -> 12"):
        toy.make(str(tmp_path))
    record.unlink()
    (tmp_path / "numbers" / "part-00011.parquet").unlink()
    said = toy.make(str(tmp_path), shards=11)
    assert "squares: 11 shards, already made" in said
    assert len(list((tmp_path / "squares").glob("*"))) == 11
    record.unlink()
    said = toy.make(str(tmp_path), shards=13)
    assert "squares: 13/13 shards" in said
    assert sum("squares:" in line and "made" in line for line in said.splitlines()) == 0
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "squares").glob("*")}
    record.unlink()
    toy.make(str(tmp_path), shards=14)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "squares").glob("*")}
    assert len(after) == 14 and times.items() <= after.items(), "the others were not made again"


@pytest.mark.parametrize("number", [0, 1])
def test_another_version_of_a_stage_is_refused_by_name(tmp_path: Path, number: int) -> None:
    toy.make(str(tmp_path))
    stages = toy.stages()
    stages[number] = replace(stages[number], version=2)
    with pytest.raises(AigiError, match=rf"{stages[number].table}: .*\n.*stage version: 1 -> 2"):
        run_stages(stages, Store(str(tmp_path)), Compute(), Progress(quiet=True))


OLD = {
    "numbers": "f05a14ed9dd26ec0934759ecef228bbc20b051704c77a125b90e3cad1b48da99",
    "squares": "d512a1175bc3d3fce70d1a1915da9ad6c6f74f7c36664b8157083321f2de0ca0",
    "images": "beafe8db7ed0d91272a83723d4ac1535e5afe8096e1992a26a28dcf6e6ece83d",
}
"""Fingerprints of the time when the size of row groups was not part of them."""


@pytest.mark.parametrize(
    ("limit", "changed"),
    [
        (None, set()),
        ("IMAGE_ROWS", {"images"}),
        ("IMAGE_BYTES", {"images"}),
        ("NARROW_ROWS", {"numbers", "squares"}),
    ],
)
def test_the_size_of_row_groups_is_in_the_fingerprint_of_what_it_shapes(
    limit: str | None, changed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, squares = toy.stages()
    stages = [numbers, squares, replace(squares, table="images", schema=IMAGES)]
    if limit is not None:
        monkeypatch.setattr(parquet, limit, getattr(parquet, limit) // 2)
    now = {stage.table: fingerprint(stage, {"numbers": "0"}) for stage in stages}
    assert {table for table in OLD if now[table] != OLD[table]} == changed


def test_row_groups_of_another_size_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.make(str(tmp_path))
    monkeypatch.setattr(parquet, "NARROW_ROWS", 10)
    with pytest.raises(AigiError, match="or the size of its row groups"):
        toy.make(str(tmp_path))
    toy.make(str(tmp_path / "new"))
    found = pq.read_metadata(tmp_path / "new" / "squares" / "part-00000.parquet")
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [10] * 4


def test_outdated_shards_are_made_again_and_no_others(tmp_path: Path) -> None:
    toy.make(str(tmp_path))
    before, first = times(tmp_path), files(tmp_path)
    asked: list[list[str]] = []

    def outdated(store: Store, names: Sequence[str], progress: Progress) -> set[str]:
        asked.append(list(names))
        progress.say("two of old")
        return {"part-00003", "part-00007"} if len(asked) == 1 else set()

    numbers, squares = toy.stages()
    assert isinstance(squares, Map)
    squares = replace(squares, outdated=outdated)
    cut = tmp_path / "squares" / "part-00005.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    out = io.StringIO()
    run_stages([numbers, squares], Store(str(tmp_path)), Compute(), Progress(out))
    assert "two of old\nsquares: 12/12 shards, 480 rows" in out.getvalue()
    assert "part-00005" not in asked[0] and len(asked[0]) == 11
    again = {name for name, time in times(tmp_path).items() if time != before[name]}
    assert again == {f"part-0000{i}.parquet" for i in (3, 5, 7)} and files(tmp_path) == first
    record = Store(str(tmp_path)).read_json("_stages", "squares.json")
    assert record is not None and len(record["shards"]) == 12
    run_stages([numbers, squares], Store(str(tmp_path)), Compute(), Progress(out))
    assert out.getvalue().endswith("squares: 12 shards, already made\n")


def test_a_missing_input_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match="squares: needs the numbers table"):
        run_stages(toy.stages()[1:], Store(str(tmp_path)), Compute(), Progress(quiet=True))


def test_object_store_without_rename(undisturbed: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    toy.make(url)
    store = Store(url)
    for name, data in files(undisturbed).items():
        assert store.fs.cat_file(store.path("squares", name)) == data
    store.fs.pipe_file(store.path("squares", "part-00002.parquet"), b"PAR1half")
    toy.make(url)
    expected = files(undisturbed)["part-00002.parquet"]
    assert store.fs.cat_file(store.path("squares", "part-00002.parquet")) == expected


def test_full_disk_stops_cleanly_and_goes_on_with_space(tmp_path: Path, undisturbed: Path) -> None:
    """In a mount namespace with a tmpfs too small for all shards, then a larger one."""
    size = sum(len(data) for data in files(undisturbed).values())
    script = (
        f"mount -t tmpfs -o size={size // 2} tmpfs {tmp_path} && "
        f"{{ {sys.executable} -m tests.toy {tmp_path}; echo code $?; "
        f"ls -A {tmp_path}/squares; "
        f"mount -o remount,size=64m {tmp_path} && {sys.executable} -m tests.toy {tmp_path}; "
        f"echo code $?; sha256sum {tmp_path}/squares/*; }}"
    )
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    _, second = done.stdout.split("code 1")
    assert "no space left on the device" in done.stderr
    assert ".tmp" not in second, "nothing half-written stays"
    assert "code 0" in second, done.stderr
    import hashlib

    for name, data in files(undisturbed).items():
        assert f"{hashlib.sha256(data).hexdigest()}  {tmp_path}/squares/{name}" in second


def test_status_tells_where_a_run_stands(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "0.3")
    wait_for_shards(tmp_path, 3, process)
    alive = status(Store(str(tmp_path)))[1]
    assert (alive.state, alive.note) == ("running", "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    numbers, squares = status(Store(str(tmp_path)))
    assert (numbers.table, numbers.state, numbers.done) == ("numbers", "done", 12)
    assert squares.table == "squares"
    assert squares.state == "gone", "a killed driver cannot say that it stopped"
    assert str(process.pid) in squares.note and "Run the same command again" in squares.note
    assert squares.done >= 3
    assert squares.done + squares.missing == 12
    assert squares.rows == squares.done * toy.ROWS
    assert squares.bytes == sum(len(data) for data in files(tmp_path).values())
    with pytest.raises(AigiError, match="no run here"):
        status(Store(str(tmp_path / "elsewhere")))


def test_status_is_honest_about_the_process_of_a_run(tmp_path: Path) -> None:
    """Its number may belong to another process by now, and another machine cannot be asked."""
    toy.make(str(tmp_path))
    store = Store(str(tmp_path))
    record = store.record("squares")
    assert record is not None and record.driver is None, "nobody runs what is done"
    me = Driver.here()

    def state(driver: Driver | None) -> tuple[str, str]:
        store.write_record(record.model_copy(update={"status": "running", "driver": driver}))
        found = status(Store(str(tmp_path)))[1]
        said = CliRunner().invoke(app, ["status", str(tmp_path)]).output
        assert found.state in said and f"squares: {found.note}" * bool(found.note) in said
        return found.state, found.note

    assert state(me) == ("running", "")
    assert state(None) == ("running", ""), "a record of an earlier version"
    assert state(me.model_copy(update={"started": me.started - 3600}))[0] == "gone"
    there = state(me.model_copy(update={"host": "gpu-7"}))
    assert there[0] == "running" and f"process {me.pid} on gpu-7" in there[1]
    (line,) = damage(store, Progress(quiet=True))
    assert line == "squares: running; its table is not whole"


def test_interrupt_is_recorded(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "0.3")
    wait_for_shards(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    process.wait()
    squares = status(Store(str(tmp_path)))[1]
    assert squares.state == "stopped"
    assert squares.seconds > 0


def documents(root: Path, text: str = "one", name: str = "a.txt") -> Files:
    """A stage of two files, of which it says that it makes `name`."""

    def make(store: Store, progress: Progress) -> list[str]:
        store.write_bytes(text.encode(), "papers", "a.txt")
        store.write_bytes(b"two", "papers", "b.txt")
        with (root / "log").open("a") as log:
            log.write(text + "\n")
        return [f"papers/{name}", "papers/b.txt"]

    return Files("papers", 1, {}, (), make, state=lambda store: {"text": text})


def written(root: Path) -> list[str]:
    return (root / "log").read_text().splitlines()


def test_files_are_made_once_and_again_when_one_is_lost_or_cut(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), io.StringIO()

    def again() -> None:
        run_stages([documents(tmp_path)], store, Compute(), Progress(said))

    again()
    again()
    assert written(tmp_path) == ["one"]
    assert said.getvalue() == "papers: 2 files, already made\n"
    (state,) = status(store)
    assert (state.state, state.done, state.missing, state.bytes) == ("done", 2, 0, 6)
    (tmp_path / "papers" / "b.txt").unlink()
    assert status(store)[0].missing == 1
    again()
    (tmp_path / "papers" / "a.txt").write_text("on")
    again()
    assert written(tmp_path) == ["one"] * 3
    assert (tmp_path / "papers" / "a.txt").read_text() == "one"
    again()
    assert len(written(tmp_path)) == 3


def test_files_are_made_again_when_what_they_tell_of_changes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for text in ("one", "two", "two"):
        run_stages([documents(tmp_path, text)], store, Compute(), Progress(quiet=True))
    assert written(tmp_path) == ["one", "two"]


def test_a_file_that_was_promised_and_not_made_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(AigiError, match=r"papers/c.txt: was made, but is missing"):
        run_stages([documents(tmp_path, name="c.txt")], store, Compute(), Progress(quiet=True))
    assert status(store)[0].state == "stopped"


def test_files_of_a_record_without_their_names_are_made_once_more(tmp_path: Path) -> None:
    """The manifest of a run that was made before the record named files."""
    store = Store(str(tmp_path))
    run_stages([documents(tmp_path)], store, Compute(), Progress(quiet=True))
    record = store.read_json("_stages", "papers.json")
    assert record is not None
    del record["files"]
    store.write_json(record, "_stages", "papers.json")
    (tmp_path / "papers" / "b.txt").unlink()
    for _ in range(2):
        run_stages([documents(tmp_path)], store, Compute(), Progress(quiet=True))
    assert written(tmp_path) == ["one"] * 2 and (tmp_path / "papers" / "b.txt").exists()


def test_a_table_that_could_not_be_built_is_recorded_as_stopped(tmp_path: Path) -> None:
    def build(store: Store, progress: Progress) -> list[Shard]:
        raise AigiError("numbers: none")

    store = Store(str(tmp_path))
    with pytest.raises(AigiError, match="numbers: none"):
        stage = Build("numbers", 1, toy.NUMBERS, {}, (), build)
        run_stages([stage], store, Compute(), Progress(quiet=True))
    assert status(store)[0].state == "stopped"
