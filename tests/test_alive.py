"""Signs of life: who is at work, how far, and when it was last heard of; `aigi status --watch`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import alive
from pipeline.alive import ALIVE, Seen, Sign, Watcher, Worker, Workers
from pipeline.cli import app
from pipeline.folder import Folder
from pipeline.logbook import Ended
from pipeline.progress import Doing, Progress
from pipeline.record import Driver
from pipeline.status import GIVEN_UP, GONE, status, verdict
from pipeline.store import Store
from tests import toy
from tests.conftest import ROOT
from tests.test_run import wait_for_shards

DOING = Doing("images", "rows", 120, 400, (1, 4), 2.0, 140.0, 3.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "EVERY", 0.05)


def until(done: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.02)


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A run here, and one on an object store."""
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    url = f"memory://alive-{tmp_path.name}"
    yield url
    Store(url).remove("")


def signs(url: str) -> list[Seen]:
    return Watcher(Folder(url)).look()[0]


@pytest.mark.usefixtures("quick")
def test_a_command_gives_signs_of_life_and_takes_them_away(place: str) -> None:
    progress = Progress(quiet=True)
    with alive.driver(place, progress):
        until(lambda: signs(place))
        (one,) = signs(place)
        assert one.sign.role == "driver" and one.sign.stage == ""
        assert one.gone is False and one.sign.process == Driver.here()
        progress.doing = lambda: DOING
        until(lambda: signs(place)[0].sign.stage == "images")
        assert signs(place)[0].sign.doing() == DOING
    assert signs(place) == [] and not Folder(place).fs.exists(Folder(place).path(ALIVE, "x"))


@pytest.mark.usefixtures("quick")
def test_signs_of_a_killed_command_are_removed_by_the_next_one(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json({}, ALIVE, "killed", "driver.json")
    with alive.driver(str(tmp_path), Progress(quiet=True)):
        until(lambda: not (tmp_path / ALIVE / "killed").exists())


@pytest.mark.usefixtures("quick")
def test_two_commands_on_an_object_store_keep_their_signs(tmp_path: Path) -> None:
    url = f"memory://two-{tmp_path.name}"
    folder = Folder(url)
    folder.write_json({}, ALIVE, "old", "driver.json")
    for file in folder.fs.store.values():
        file.modified -= timedelta(days=3)
    with alive.driver(url, Progress(quiet=True)):
        until(lambda: len(signs(url)) == 1)
        with alive.driver(url, Progress(quiet=True)):
            until(lambda: len(signs(url)) == 2)
        assert len(signs(url)) == 1
        assert not folder.fs.exists(folder.path(ALIVE, "old", "driver.json"))


@pytest.mark.usefixtures("quick")
def test_a_storage_that_takes_no_signs_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def refuse(*given: object) -> None:
        asked.append(1)
        raise OSError(28, "no space left")

    monkeypatch.setattr(Folder, "write_json", refuse)
    with alive.driver(str(tmp_path), Progress(quiet=True)):
        until(lambda: len(asked) > 3)
    assert caplog.text.count("signs of life cannot be written: OSError: [Errno 28]") == 1


@pytest.mark.usefixtures("quick")
def test_what_workers_say_reaches_the_command(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """While a shard is made by their signs, at its end by its result; each line once."""
    heard: list[tuple[str, int, int]] = []
    caplog.set_level(logging.INFO)
    workers = Workers(place, lambda *given: heard.append(given))
    worker = Worker(place, workers.command, "images")

    def make(name: str, source: str, told: Callable[[str, int, int], None]) -> dict[str, Any]:
        told(name, 8, 0)
        logging.getLogger("pipeline").info("begun")
        told(name, 12, 4)
        until(lambda: ("a", 12, 4) in heard)
        (one,) = signs(place)
        assert (one.sign.role, one.sign.shard, one.sign.done) == ("worker", "a", 12)
        until(lambda: "begun" in caplog.text)
        logging.getLogger("other").warning("a token=0123456789abcdef and \x1b[2J")
        return {"name": name}

    try:
        result = worker.over(make, "a", "source")
        workers.result(result)
        until(lambda: not signs(place))  # an idle worker has none
    finally:
        worker._hears.__exit__(None, None, None)
        workers.close()
    assert result == {"name": "a"}
    # This one process is both, so the worker hears what the command says of it: once removed.
    mine = [one for one in caplog.records if one.getMessage().count("worker ") == 1]
    assert [one.getMessage().rpartition(" by its clock: ")[2] for one in mine] == [
        "begun",
        "a token=... and [U+001B][2J",
    ]
    levels = [one.levelname for one in mine]
    assert levels == ["INFO", "WARNING"], "warnings are shown on the screen of the command"


def write(url: str, **more: Any) -> None:
    sign = alive._sign("driver", more.pop("process", Driver.here()), more.pop("beat", 1), DOING)
    data = sign.model_copy(update=more).model_dump(mode="json", exclude_defaults=True)
    Folder(url).write_json(data, ALIVE, "one", "driver.json")


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


ELSEWHERE = Driver(host="gpu-7", pid=4711, started=1.0)


def test_ages_are_those_of_the_storage_until_they_are_measured(tmp_path: Path) -> None:
    """A clock of this machine that is behind or ahead is not believed once a sign has changed."""
    path = tmp_path / ALIVE / "one" / "driver.json"
    write(str(tmp_path), process=ELSEWHERE)
    aged(path, 300)
    watcher = Watcher(Folder(str(tmp_path)))
    (one,) = watcher.look()[0]
    assert 299 < (one.age or 0) < 310 and not one.measured and one.silent
    assert str(one) == "silent for 5 min 00 s" and one.gone is None
    write(str(tmp_path), process=ELSEWHERE, beat=2)
    aged(path, 300)  # by a clock that is five minutes behind
    (one,) = watcher.look()[0]
    assert (one.age or 0) < 5 and one.measured and not one.silent
    aged(path, -300)  # and by one that is ahead
    (other,) = Watcher(Folder(str(tmp_path))).look()[0]
    assert other.age == 0.0 and not other.measured


def test_a_sign_that_does_not_change_grows_old_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(str(tmp_path), process=ELSEWHERE)
    aged(tmp_path / ALIVE / "one" / "driver.json", -3600)
    watcher = Watcher(Folder(str(tmp_path)))
    assert watcher.look()[0][0].age == 0.0
    now = time.monotonic
    monkeypatch.setattr("pipeline.alive.time.monotonic", lambda: now() + 120)
    (one,) = watcher.look()[0]
    assert 119 < (one.age or 0) < 125 and one.silent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{}", "role"),
        (b"[1]", "expected an object"),
        (b'{"role": "driver"', "not JSON"),
        (b"\xff", "invalid UTF-8"),
        (b'{"role": "driver", "process": {"host": "a", "pid": -1, "started": 1.0}}', "pid"),
    ],
)
def test_a_damaged_sign_is_named_and_nothing_else(tmp_path: Path, data: bytes, why: str) -> None:
    toy.make(str(tmp_path), shards=1)
    Folder(str(tmp_path)).write_bytes(data, ALIVE, "x", "driver.json")
    write(str(tmp_path))
    seen, (wrong,) = Watcher(Folder(str(tmp_path))).look()
    assert len(seen) == 1
    assert "_alive/x/driver.json" in wrong and why in wrong and "delete it" in wrong
    said = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert said.exit_code == 0 and "_alive/x/driver.json" in said.output


def test_status_shows_what_each_process_does(tmp_path: Path) -> None:
    root = str(tmp_path)
    toy.make(root, shards=1)
    write(root)
    sign = Sign(role="worker", process=ELSEWHERE, beat=3, every=10.0, stage="images", shard="sd-1",
                unit="rows", done=12, idle=4.0)  # fmt: skip
    Folder(root).write_json(sign.model_dump(mode="json"), ALIVE, "two", "a.json")
    aged(tmp_path / ALIVE / "two" / "a.json", 700)
    said = " ".join(CliRunner().invoke(app, ["status", root]).output.split())
    assert "images: 120/400 rows, 1/4 shards, 2.0 rows/s, 2 min 20 s left" in said
    assert f"/{os.getpid()}]; last batch 3." in said and "alive 0." in said
    assert "worker gpu-7/4711: images/sd-1: 12 rows made; last batch 11 min 4" in said
    assert "silent for 11 min 4" in said and "by the clocks of this machine and the storage" in said
    found = json.loads(CliRunner().invoke(app, ["status", root, "--json"]).output)
    (images,) = (row for row in found if row["table"] == "images")
    assert [one["role"] for one in images["alive"]] == ["driver", "worker"]
    assert images["alive"][0]["done"] == 120 and images["alive"][1]["silent"] is True


def state(store: Store, how: str, driver: Driver | None = None) -> None:
    record = store.record("squares")
    assert record is not None
    store.write_record(record.model_copy(update={"status": how, "driver": driver}))


def test_how_a_run_ended(tmp_path: Path) -> None:
    toy.make(str(tmp_path), shards=1)
    store = Store(str(tmp_path))
    me = Driver.here()

    def ended(watched: float = 0.0) -> tuple[int, str] | None:
        seen = signs(str(tmp_path))
        return verdict(store, status(store, seen), seen, watched)

    assert ended() == (0, "ended: every stage is done")
    state(store, "failed")
    assert ended() == (1, "ended: squares failed")
    store.write_json(Ended(code=3, said="fewer").model_dump(), "_logs", "last.json")
    assert ended() == (3, "ended with exit code 3: fewer")
    state(store, "running", me)
    assert ended(1e9) is None, "it is there, though it gave no sign yet"
    state(store, "running", me.model_copy(update={"started": 1.0}))
    code, why = ended() or (0, "")
    assert code == GONE and "has gone without a word" in why
    state(store, "running", ELSEWHERE)
    assert ended(0.0) is None
    code, why = ended(100.0) or (0, "")
    assert (code, why) == (
        GONE,
        "squares: nothing gives a sign of life. Run the same command again.",
    )
    write(str(tmp_path), process=ELSEWHERE)
    assert ended(1e9) is None
    aged(tmp_path / ALIVE / "one" / "driver.json", GIVEN_UP - 60)
    assert ended() is None, "it may come back"
    aged(tmp_path / ALIVE / "one" / "driver.json", GIVEN_UP + 60)
    code, why = ended() or (0, "")
    assert code == GONE and why.startswith("silent for 16 min 0")
    assert "process 4711 on gpu-7 has died, or cannot reach the run" in why
    write(str(tmp_path), process=me.model_copy(update={"started": 1.0}))
    code, why = ended() or (0, "")
    assert code == GONE and f"gone: process {me.pid}" in why


def test_the_state_of_a_run_elsewhere_is_known_from_its_signs(tmp_path: Path) -> None:
    toy.make(str(tmp_path), shards=1)
    store = Store(str(tmp_path))
    state(store, "running", ELSEWHERE)
    write(str(tmp_path), process=ELSEWHERE)
    assert status(store, signs(str(tmp_path)))[1].note == ""
    aged(tmp_path / ALIVE / "one" / "driver.json", 100)
    note = status(store, signs(str(tmp_path)))[1].note
    assert note == "process 4711 on gpu-7: silent for 1 min 40 s"


RUN = """
import sys
from pipeline import alive
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.store import Store
from tests import toy
alive.EVERY = 0.1
root, ray = sys.argv[1], sys.argv[2] or None
progress = Progress()
compute = Compute(ray=ray, workers=2)
with alive.driver(root, progress):
    stages = toy.stages(seconds=1.0, shards=int(sys.argv[3]), beat=0.1)
    run_stages(stages, Store(root), compute, progress)
"""


def running(root: Path, ray: str = "", shards: int = 4) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(root), ray, str(shards)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def watching(root: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "status", str(root), "--watch", *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_watch_ends_with_its_run(tmp_path: Path) -> None:
    process = running(tmp_path)
    until(lambda: list((tmp_path / ALIVE).rglob("*.json")))
    watch = watching(tmp_path)
    out, err = watch.communicate(timeout=120)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert watch.returncode == 0, err
    assert "squares: " in out and "/160 rows, " in out and "alive 0." in out
    assert err == "ended: every stage is done\n"
    assert not list((tmp_path / ALIVE).rglob("*.json"))


def test_a_watch_says_that_a_killed_run_is_gone(tmp_path: Path) -> None:
    process = running(tmp_path)
    wait_for_shards(tmp_path, 1, process)
    watch = watching(tmp_path, "--json")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = watch.communicate(timeout=120)
    assert watch.returncode == GONE, err
    assert err.startswith(f"gone: process {process.pid} on ") and "Run the same command" in err
    (squares,) = (row for row in json.loads(out.splitlines()[-1]) if row["table"] == "squares")
    assert squares["state"] == "gone" and squares["alive"][0]["gone"] is True


def test_a_watch_that_is_stopped_stops_nothing(tmp_path: Path) -> None:
    process = running(tmp_path, shards=12)
    until(lambda: list((tmp_path / ALIVE).rglob("*.json")))
    watch = watching(tmp_path)
    assert watch.stdout is not None and "squares" in watch.stdout.readline()
    watch.send_signal(signal.SIGTERM)
    _, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (143, "no longer watched; the run itself is not stopped\n")
    assert process.wait() == 0


def test_workers_of_ray_are_seen_and_counted(tmp_path: Path) -> None:
    """Their batches are in the progress of the driver before a shard is finished."""
    pytest.importorskip("ray")
    process = running(tmp_path, "local", 4)
    found: dict[str, Sign] = {}
    partial = 0

    def look() -> bool:
        nonlocal partial
        assert process.poll() is None, process.communicate()[0]
        for one in signs(str(tmp_path)):
            found[one.path] = one.sign
            if one.sign.role == "driver" and one.sign.done % toy.ROWS:
                partial = one.sign.done
        return bool(partial) and sum(one.role == "worker" for one in found.values()) >= 2

    until(look)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    workers = [one for one in found.values() if one.role == "worker"]
    assert {one.stage for one in workers} == {"squares"} and partial % 10 == 0
    assert all(one.shard.startswith("part-0000") for one in workers)
    assert len({one.process.pid for one in workers}) == 2 and process.pid not in {
        one.process.pid for one in workers
    }
    assert not list((tmp_path / ALIVE).rglob("*.json"))


def test_nothing_is_written_by_who_looks(tmp_path: Path) -> None:
    toy.make(str(tmp_path), shards=1)
    write(str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    tmp_path.chmod(0o555)
    try:
        for more in ([], ["--json"]):
            assert CliRunner().invoke(app, ["status", str(tmp_path), *more]).exit_code == 0
    finally:
        tmp_path.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
