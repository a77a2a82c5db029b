"""Signals end a run with a message, its record and their exit code; kills leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from pipeline.files import scratch, sweep_scratch
from pipeline.status import status
from pipeline.store import Store
from tests import toy
from tests.conftest import ROOT, WorkflowMaker
from tests.test_outside import DRAWN
from tests.training.release import write_release

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of all processes of a test, this one too."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # names of sockets must be short
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.kill()
            process.communicate()


def start(*arguments: str) -> subprocess.Popen[str]:
    def as_from_a_terminal() -> None:  # jobs in the background ignore SIGINT
        for number in CODES:
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=as_from_a_terminal,
    )
    STARTED.append(process)
    return process


def until(done: Callable[[], object], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.02)


def record(run: Path, table: str) -> dict[str, Any]:
    path = run / "_stages" / f"{table}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def leftovers(run: Path, temporary: Path) -> list[Path]:
    return [*run.rglob("*.tmp"), *temporary.glob("aigi-*")]


def stop(process: subprocess.Popen[str], number: signal.Signals, run: Path, table: str) -> None:
    """Send a signal, and check how the process and its record end."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == CODES[number], said
    name = "" if number == signal.SIGINT else f" by {number.name}"
    assert f"\nstopped{name}. Finished shards are kept" in said
    assert "Traceback" not in said
    assert record(run, table)["status"] == "stopped"
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_ends_a_run_in_order(
    number: signal.Signals, make_workflow: WorkflowMaker, tmp_path: Path, temporary: Path
) -> None:
    path, run = make_workflow(), tmp_path / "run"
    process = start("run", str(path))
    until(lambda: list((run / "images").glob("*.parquet")), process)
    stop(process, number, run, "images")
    assert not leftovers(run, temporary)


def test_a_signal_ends_the_workers_of_ray(
    make_workflow: WorkflowMaker, tmp_path: Path, temporary: Path
) -> None:
    pytest.importorskip("ray")
    path, run = make_workflow(compute={"ray": "local", "workers": 2}), tmp_path / "run"
    process = start("run", str(path))
    until(lambda: list((run / "images").glob("*.parquet")), process)
    stop(process, signal.SIGTERM, run, "images")
    assert not leftovers(run, temporary)


def test_a_signal_ends_training(tmp_path: Path, temporary: Path) -> None:

    run, path = tmp_path / "run", tmp_path / "train.yaml"
    picture = np.full((64, 64, 3), 90, np.uint8)
    data = {"place": str(write_release(tmp_path / "release", {("a", "train"): [picture]}))}
    settings: dict[str, Any] = {
        "data": data,
        "steps": 100_000,
        "crop": 64,
        "batch": 1,
        "log_every": 1,
    }
    settings |= {"lambdas": [0.01], "network": "catc-small-no-text", "validation_pictures": 0}
    path.write_text(yaml.safe_dump({"run": str(run), "train": settings}))
    process = start("run", str(path))
    until(lambda: list((run / "train").glob("*/curve.csv")), process)
    stop(process, signal.SIGTERM, run, "train")
    assert not leftovers(run, temporary)


SLOW = """#!/bin/sh
[ $# = 0 ] && exit 0
sleep 300 &
echo $! > {started}
wait
"""
"""A program of VTM that has a child of its own and takes its time."""


@pytest.fixture
def measuring(tmp_path: Path) -> Path:
    """A workflow that measures a codec whose encoder does not end."""
    for name in ("EncoderApp", "DecoderApp"):
        (tmp_path / name).write_text(SLOW.format(started=tmp_path / "started"))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vtm.cfg").touch()
    programs = {"EncoderApp": "EncoderApp", "DecoderApp": "DecoderApp"}
    benchmark = {
        "pictures": {"place": str(DRAWN), "limit": 1},
        "codecs": ["vtm"],
        "anchor": "vtm",
        "programs": {**programs, "encoder_intra_vtm.cfg": "vtm.cfg"},
    }
    path = tmp_path / "measure.yaml"
    path.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "benchmark": benchmark}))
    return path


@pytest.fixture
def stray(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """The number of the process that the slow program has started; it is ended with the test."""

    def number() -> int:
        path = tmp_path / "started"
        return int(path.read_text() or 0) if path.exists() else 0

    yield number
    if number() and psutil.pid_exists(number()):
        os.kill(number(), signal.SIGKILL)


@pytest.mark.parametrize("ray", [None, pytest.param("local", marks=pytest.mark.slow)])
def test_a_signal_ends_programs_and_what_they_have_started(
    ray: str | None,
    measuring: Path,
    stray: Callable[[], int],
    tmp_path: Path,
    temporary: Path,
) -> None:
    process = start("run", str(measuring), "--set", f"compute.ray={ray or 'null'}")
    until(stray, process)
    assert list(temporary.glob("aigi-codec-*"))
    stop(process, signal.SIGTERM, tmp_path / "run", "measurements")
    assert not psutil.pid_exists(stray()), "the child of the program"
    assert not leftovers(tmp_path / "run", temporary)


def test_the_next_run_removes_the_folders_of_a_killed_one(
    measuring: Path, stray: Callable[[], int], tmp_path: Path, temporary: Path
) -> None:
    process = start("run", str(measuring))
    until(stray, process)
    process.kill()
    process.communicate()
    assert list(temporary.glob("aigi-codec-*"))
    with scratch("mine") as mine:
        only = tmp_path / "only.yaml"
        only.write_text(f"run: {tmp_path / 'run'}\n")
        start("run", str(only)).communicate()
        assert [str(path) for path in temporary.glob("aigi-*")] == [mine]


KILLED = """
import os, signal, sys
from pipeline.files import replaced, scratch
with replaced(sys.argv[1]) as name, open(name, "w") as file, scratch("test") as folder:
    file.write("half")
    file.flush()
    open(os.path.join(folder, "spill"), "w").write("rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> None:
    """Write a file in a process that is killed before it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT)
    assert list(path.parent.glob(f".{path.name[:40]}.*.tmp"))


def test_the_next_run_removes_temporary_files_wherever_they_are(
    tmp_path: Path, temporary: Path
) -> None:
    run = tmp_path / "run"
    toy.make(str(run))
    for name in ("_stages/squares.json", "_workflow.json", "release/a/x.parquet", "train/a/b.csv"):
        killed(run / name)
    assert len(list(run.rglob("*.tmp"))) == 4
    assert list(temporary.glob("aigi-test-*"))
    toy.make(str(run))
    sweep_scratch()
    assert not leftovers(run, temporary)
    assert status(Store(str(run)))


def test_a_file_that_is_written_again_has_no_leftovers_beside_it(tmp_path: Path) -> None:
    from pipeline.files import write_file

    out = tmp_path / "report.html"
    killed(out)
    killed(tmp_path / "other.html")
    write_file(out, b"whole")
    assert sorted(path.name[:8] for path in tmp_path.iterdir()) == [".other.h", "report.h"]
