"""A killed shard goes on where it was: the same bytes, and no finished batch is made again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError, parts
from pipeline.folder import DiskFull
from pipeline.intact import Checks
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute, Map
from pipeline.status import damage, status
from pipeline.store import Store
from pipeline.tables import IMAGES
from tests import toy
from tests.test_run import files, start

BATCHES = [str(number) for number in range(0, 2 * toy.ROWS, 10)]
"""The first numbers of the batches of two shards."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    toy.make(str(root), shards=2)
    return root


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in the third batch of its first shard."""
    root = tmp_path_factory.mktemp("dead") / "run"
    assert killed(root, 25) == BATCHES[:3]
    return root


@pytest.fixture
def half(dead: Path, tmp_path: Path) -> Path:
    """The same, to go on with."""
    return Path(shutil.copytree(dead, tmp_path / "run"))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every batch."""
    monkeypatch.setattr(parts, "EVERY", 0.0)
    monkeypatch.setattr(parts, "_SHARE", 0.0)


def kept(root: Path) -> list[Path]:
    return sorted((root / "_parts").rglob("*.arrow"))


def killed(root: Path, at: int, *more: str) -> list[str]:
    """Make the toy's tables in a process that kills itself at a number; the batches it made."""
    log = root.parent / f"{root.name}.log"
    arguments = ("--keep-every", "0", "--log", str(log), "--kill-at", str(at), "--shards", "2")
    process = start(root, *arguments, *more)
    process.communicate()
    if "--ray" not in more:
        assert process.returncode == -signal.SIGKILL
    return log.read_text().split()


def again(root: Path, *more: str) -> list[str]:
    """The same command once more; the batches that it made."""
    log = root.parent / f"{root.name}.log"
    before = len(log.read_text().split())
    process = start(root, "--keep-every", "0", "--log", str(log), "--shards", "2", *more)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return log.read_text().split()[before:]


@pytest.mark.parametrize("at", [0, 25, 40, 71])
def test_a_killed_shard_goes_on_where_it_was(tmp_path: Path, undisturbed: Path, at: int) -> None:
    root = tmp_path / "run"
    made = killed(root, at)
    assert made == BATCHES[: at // 10 + 1], "it died in the batch that it had begun last"
    found = status(Store(str(root)))[-1]
    if at % toy.ROWS >= 10:
        assert found.kept_rows == at % toy.ROWS // 10 * 10
        assert found.kept_bytes == sum(path.stat().st_size for path in kept(root))
    rest = again(root)
    assert rest == BATCHES[at // 10 :], "only what was not finished is made"
    assert files(root) == files(undisturbed)
    assert not (root / "_parts").exists()
    assert damage(Store(str(root)), Progress(quiet=True)) == []


def test_a_shard_is_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    root = tmp_path / "run"
    made: list[str] = []
    for at in (10, 30, 70):
        made += killed(root, at)[len(made) :]
        (tmp_path / "run.log.killed").unlink()
    made += again(root)
    # The batch in which it died is begun twice; no other is.
    assert made == sorted([*BATCHES, "10", "30", "70"], key=int)
    assert files(root) == files(undisturbed)


def test_another_worker_of_ray_goes_on_where_one_was_killed(
    tmp_path: Path, undisturbed: Path
) -> None:
    pytest.importorskip("ray")
    root = tmp_path / "run"
    made = killed(root, 25, "--ray", "local", "--workers", "1")
    assert (tmp_path / "run.log.killed").exists()
    assert sorted(made, key=int) == sorted([*BATCHES, "20"], key=int)
    assert files(root) == files(undisturbed)
    assert not (root / "_parts").exists() and not list((root / "_alive").rglob("*.json"))


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def renamed(path: Path, data: bytes) -> None:
    """Other content, under a name that has its hash."""
    name = path.name[:18] + hashlib.sha256(data).hexdigest() + ".arrow"
    path.unlink()
    path.with_name(name).write_bytes(data)


def retold(**more: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        chunks, about = parts.unpacked(path.read_bytes())
        renamed(path, bytes(parts.packed(chunks, about | more)))

    return change


def other_rows(path: Path) -> None:
    chunks, about = parts.unpacked(path.read_bytes())
    numbers = pa.array(range(100, 110), pa.int64())
    renamed(path, bytes(parts.packed([chunks[0].set_column(0, "number", numbers)], about)))


def one_row_less(path: Path) -> None:
    chunks, about = parts.unpacked(path.read_bytes())
    less = [chunks[0].slice(0, 9)]
    about["nbytes"] = [parts.unpacked(parts.packed(less, about))[0][0].nbytes]
    renamed(path, bytes(parts.packed(less, about)))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (changed, "its content is not what was written"),
        (cut, "its content is not what was written"),
        (emptied, "its content is not what was written"),
        (lambda path: renamed(path, b"ARROW1 or so"), "thrown away"),
        (retold(identity="f" * 64), "made from something else, or with other settings"),
        (retold(notes={"aigi.weights": "{}"}), "other weights"),
        (retold(notes=[]), "it does not say with which weights"),
        (retold(nbytes=[1]), "its batches are not as they were made"),
        (other_rows, "rows of another number"),
        (one_row_less, "9 rows from row 1 on"),
        (lambda path: renamed(path, b"\0" * 100), "thrown away"),
    ],
)
@pytest.mark.usefixtures("always")
def test_a_part_that_is_not_what_was_written_is_thrown_away_with_a_word(
    half: Path,
    undisturbed: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    why: str,
) -> None:
    first, _ = kept(half)
    harm(first)
    with caplog.at_level(logging.WARNING):
        toy.make(str(half), shards=2, keeps=True)
    assert why in caplog.text and "thrown away, its rows are made again" in caplog.text
    assert files(half) == files(undisturbed)
    assert not (half / "_parts").exists()


def test_a_gap_between_parts_is_made_again(
    half: Path, undisturbed: Path, tmp_path: Path, always: None, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    kept(half)[0].unlink()
    toy.make(str(half), shards=2, keeps=True, log=str(log))
    assert "no part has the rows before it; thrown away" in caplog.text
    assert log.read_text().split() == BATCHES
    assert files(half) == files(undisturbed)


def test_other_settings_make_their_own_batches(
    half: Path, tmp_path: Path, always: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What was kept before the record was deleted is of other settings."""
    root = half
    shutil.rmtree(root / "_stages")
    shutil.rmtree(root / "numbers")
    log = tmp_path / "other.log"
    toy.make(str(root), shards=2, keeps=True, settings={"other": 1}, log=str(log))
    assert "made from something else, or with other settings" in caplog.text
    assert log.read_text().split() == BATCHES


def test_other_weights_make_the_whole_shard_again(
    half: Path, tmp_path: Path, always: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Other(toy.Squarer):
        def __init__(self) -> None:
            super().__init__(0.0, None, None, None, str(tmp_path / "other.log"))
            self.loaded = {"toy": "1" * 64}

    root = half
    numbers, squares = toy.stages(shards=2, keeps=True)
    assert isinstance(squares, Map)
    squares = replace(squares, make_worker=Other)
    run_stages([numbers, squares], Store(str(root)), Compute(), Progress(quiet=True))
    assert "made with other weights; thrown away" in caplog.text
    # The batch that showed it was made before the others.
    assert (tmp_path / "other.log").read_text().split() == ["20", *BATCHES]
    assert b"1" * 64 in (root / "squares" / "part-00000.parquet").read_bytes()
    assert b"0" * 64 not in (root / "squares" / "part-00000.parquet").read_bytes()


def test_batches_of_another_device_are_not_mixed_with_new_ones(
    half: Path, dead: Path, always: None, caplog: pytest.LogCaptureFixture
) -> None:
    root = half
    numbers, squares = toy.stages(shards=2, keeps=True, bad_row=21)
    assert isinstance(squares, Map)
    # The column of errors stands for a device: all rows that have one have the same.
    same = replace(squares, keeps=("error",))
    run_stages([numbers, same], Store(str(root)), Compute(), Progress(quiet=True))
    assert "thrown away" not in caplog.text, "rows without one do not count"
    shutil.rmtree(root)
    shutil.copytree(dead, root)
    for path in kept(root):
        chunks, about = parts.unpacked(path.read_bytes())
        errors = pa.array(["other"] * 10, pa.string())
        chunk = pa.Table.from_batches(chunks[0].set_column(2, "error", errors).to_batches())
        about["nbytes"] = [parts.unpacked(parts.packed([chunk], about))[0][0].nbytes]
        renamed(path, bytes(parts.packed([chunk], about)))
    numbers, squares = toy.stages(shards=2, keeps=True, bad_row=21)
    assert isinstance(squares, Map)
    same = replace(squares, keeps=("error",))
    run_stages([numbers, same], Store(str(root)), Compute(), Progress(quiet=True))
    assert "another error made it than makes the rest; thrown away" in caplog.text
    errors = Store(str(root)).read("squares", "part-00000")["error"].to_pylist()
    assert "other" not in errors


@pytest.mark.usefixtures("always")
def test_batches_are_kept_only_after_one_row_has_succeeded(tmp_path: Path) -> None:
    """A worker may fail a shard because all of its rows fail, which it sees at the end."""
    store, shown = Store(str(tmp_path)), []
    mine = parts.Parts(store, "squares", "a", "x", (), dict)
    mine.load(pa.table({"number": [0, 1, 2]}))
    for error in ("bad", "bad", None):
        mine.add(pa.table({"number": [1], "error": pa.array([error], pa.string())}))
        shown.append(
            [(part.first, part.end) for part in parts.found(store, "squares").get("a", [])]
        )
    assert shown == [[], [], [(0, 3)]]


def test_a_part_that_takes_long_makes_the_next_one_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fiftieth of the time is the most that keeping takes."""
    monkeypatch.setattr(parts, "EVERY", 1.0)
    now, ends = 1000.0, [0]
    monkeypatch.setattr("pipeline.parts.time.monotonic", lambda: now)
    mine = parts.Parts(Store(str(tmp_path)), "squares", "a", "x", (), dict)
    mine.load(pa.table({"number": range(500)}))

    def written(chunks: list[pa.Table], end: int, notes: object) -> float:
        ends.append(end)
        return 4.0

    monkeypatch.setattr(mine, "_write", written)
    for _ in range(250):
        now += 1.0
        mine.add(pa.table({"number": [1]}))
        if mine._flight is not None:
            mine._flight[0].result()
    assert ends == [0, 1, 201]
    mine._end_writer()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_is_unsaved_is_kept_when_a_run_is_stopped(
    tmp_path: Path, undisturbed: Path, how: signal.Signals
) -> None:
    """In order, with a part that would else be written after an hour."""
    root, log = tmp_path / "run", tmp_path / "run.log"
    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pipeline import parts\n"
        "from pipeline.cli.show import stoppable\n"
        "from tests import toy\n"
        "parts.EVERY, parts._ORDERLY = 3600.0, 0.0\n"
        "class Stopping(toy.Squarer):\n"
        "    def __call__(self, rows, start=0):\n"
        "        for number, chunk in enumerate(super().__call__(rows, start)):\n"
        "            if number == 3:\n"
        f"                os.kill(os.getpid(), {int(how)})\n"
        "            yield chunk\n"
        "toy.Squarer = Stopping\n"
        "with stoppable():\n"
        "    toy.make(sys.argv[1], shards=2, keeps=True, log=sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(root), str(log)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "Stopped" in done.stderr or "KeyboardInterrupt" in done.stderr
    assert [path.name[:17] for path in kept(root)] == ["00000000-00000030"]
    assert again(root) == BATCHES[3:]
    assert files(root) == files(undisturbed)


@pytest.mark.usefixtures("always")
def test_a_shard_that_fails_keeps_its_finished_batches(tmp_path: Path, undisturbed: Path) -> None:
    root, log = tmp_path / "run", tmp_path / "log"
    with pytest.raises(AigiError, match="1 of 2 shards failed"):
        toy.make(str(root), shards=2, keeps=True, bad_shard=25)
    toy.make(str(root), shards=2, keeps=True, log=str(log))
    assert log.read_text().split() == ["20", "30"]
    assert files(root) == files(undisturbed)


@pytest.mark.usefixtures("always")
def test_a_disk_that_takes_no_part_does_not_stop_the_shard(
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = Store.write_bytes

    def full(self: Store, data: bytes, *names: str) -> None:
        if names[0] == parts.PARTS:
            raise DiskFull("no space left on the device")
        write(self, data, *names)

    monkeypatch.setattr(Store, "write_bytes", full)
    toy.make(str(tmp_path / "run"), shards=2, keeps=True)
    assert "finished batches cannot be kept: DiskFull: no space left" in caplog.text
    assert files(tmp_path / "run") == files(undisturbed)


@pytest.mark.usefixtures("always")
def test_failed_rows_that_are_made_again_are_kept_too(tmp_path: Path) -> None:
    root, log = tmp_path / "run", tmp_path / "run.log"
    bad = {3, 15, 38}

    class Bad(toy.Squarer):
        def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
            for chunk in super().__call__(rows, start):
                if fatal is not None and fatal in chunk["number"].to_pylist():
                    raise ValueError("no device")
                errors = [
                    "bad" if number in bad else None for number in chunk["number"].to_pylist()
                ]
                yield chunk.set_column(2, "error", pa.array(errors, pa.string()))

    def go(retry: bool) -> None:
        numbers, squares = toy.stages(shards=1, keeps=True)
        assert isinstance(squares, Map)
        made = replace(squares, make_worker=lambda: Bad(0.0, None, None, None, str(log)))
        checks = Checks(retry=retry)
        run_stages([numbers, made], Store(str(root)), Compute(), Progress(quiet=True), checks)

    fatal: int | None = None
    go(False)
    bad, fatal = set(), 38
    log.unlink()
    with pytest.raises(AigiError, match="no device"):
        go(True)
    fatal = None
    go(True)
    assert log.read_text().split() == ["3", "15", "38", "38"]
    toy.make(str(tmp_path / "good"), shards=1)
    assert files(root) == files(tmp_path / "good")


def test_parts_of_shards_that_are_not_made_any_more_are_swept(half: Path) -> None:
    root = half
    numbers, squares = toy.stages(shards=2, keeps=True)
    assert isinstance(squares, Map)
    other = replace(squares, names=lambda store: ["part-00001"])
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign,assignment]
    run_stages([numbers, other], Store(str(root)), Compute(), progress)
    assert any("finished batches of 1 shards that are not being made" in line for line in said)
    assert not (root / "_parts").exists()


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path, always: None) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.mkdir()
    (root / "_parts").symlink_to(elsewhere)
    with pytest.raises(AigiError, match="a link leads out"):
        toy.make(str(root), shards=2, keeps=True)
    assert list(elsewhere.iterdir()) == []


PICTURE = png_bytes(np.zeros((8, 8, 3), np.uint8))
ROWS = st.builds(
    lambda number, error, size: {
        "image_id": f"{number:032d}",
        "image": None if error else {"bytes": PICTURE[: size or 1], "path": f"{number}.png"},
        "width": None if error else 8,
        "error": error,
        "batch_size": 2,
        "device": "cpu",
    },
    st.integers(0, 10**6),
    st.none() | st.text(max_size=5),
    st.integers(0, len(PICTURE)),
)


@settings(max_examples=30)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_batches_come_back_as_they_were(batches: list[list[dict[str, Any]]]) -> None:
    """Down to the sizes of single rows, by which row groups are cut."""
    chunks = [pa.Table.from_pylist(batch, IMAGES) for batch in batches]
    found, about = parts.unpacked(bytes(parts.packed(chunks, {"a": 1})))
    assert found == chunks and about == {"a": 1}
    for one, other in zip(chunks, found, strict=True):
        assert other.schema.equals(one.schema, check_metadata=True)
        for row in range(one.num_rows):
            assert one.slice(row, 1).nbytes == other.slice(row, 1).nbytes


def test_a_part_says_what_it_is(dead: Path) -> None:
    for path in kept(dead):
        assert path.parent.name == "part-00000.shard" and path.parent.parent.name == "squares"
        assert hashlib.sha256(path.read_bytes()).hexdigest() in path.name
        _, about = parts.unpacked(path.read_bytes())
        assert about.keys() == {"identity", "notes", "nbytes"}
        assert json.loads(about["notes"]["aigi.weights"])  # type: ignore[index]
