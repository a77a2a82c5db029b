"""A log for each command: with times, workers' lines and full errors; without secrets; bounded."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import AigiError, logbook
from pipeline.cli import app
from pipeline.folder import Folder
from pipeline.logbook import LOGS, Ended, entry, heard, last_word
from pipeline.progress import LOG, Progress
from pipeline.status import damage, status
from pipeline.store import Store
from tests import toy
from tests.conftest import ROOT, WorkflowMaker

ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
SECRET = "https://user:Pass0000word@host/a.csv?X-Amz-Signature=0123abcd"


def logs(root: Path) -> list[Path]:
    return sorted((root / LOGS).glob("*.log"))


def checked(text: str) -> list[str]:
    """Entries of a log; each line has a time, or goes on behind a bar."""
    for line in text.splitlines():
        assert ENTRY.match(line) or line.startswith("  | "), line
        assert line.isprintable()
    return text.splitlines()


def test_every_line_has_a_time_and_no_secret(tmp_path: Path) -> None:
    with logbook.logbook(str(tmp_path), f"aigi run --set a={SECRET}") as book:
        Progress(quiet=True).say(f"prompts: \x1b[2J {SECRET}\nforged")
        LOG.warning("two\nlines")
        logging.getLogger("library").warning("token=0123456789abcdef")
        logging.getLogger("library").info("not of interest")
        warnings.showwarning("old", UserWarning, "module.py", 7)
        with book._lock:
            try:
                raise ValueError(f"bad {SECRET}")
            except ValueError:
                logging.getLogger("library").exception("failed")
        book.end(0)
    (path,) = logs(tmp_path)
    text = path.read_text()
    found = [ENTRY.sub("", line) for line in checked(text)]
    assert found[:4] == [
        "aigi run --set a=https://***@host/a.csv?...",
        "prompts: [U+001B][2J https://***@host/a.csv?... forged",
        "warning: two",
        "  | lines",
    ]
    assert "0123" not in text and "Pass0000" not in text and "not of interest" not in text
    assert any(line.startswith("warning: UserWarning: old (module.py:7)") for line in found)
    assert "error: failed" in found and "  | ValueError: bad https://***@host/a.csv?..." in found
    assert found[-1] == "ended with exit code 0"
    assert last_word(Folder(str(tmp_path))) == Ended(code=0, log=path.name)
    # Afterwards nobody listens.
    LOG.warning("later")
    assert "later" not in path.read_text() and LOG.level == logging.NOTSET


def test_what_libraries_say_still_reaches_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log listens; it is no handler, so none of those that print is left out."""
    before = list(logging.getLogger().handlers)
    with logbook.logbook(str(tmp_path), "x"):
        assert logging.getLogger().handlers == before
        with pytest.warns(UserWarning, match="seen"):
            warnings.warn("seen", stacklevel=1)
    with logbook.logbook(str(tmp_path), "x"):
        logging.lastResort.handle(LOG.makeRecord("pipeline", 30, "f", 1, "shown", (), None))  # type: ignore[union-attr]
    assert "shown" in capsys.readouterr().err


def test_a_log_is_bounded_and_keeps_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "BYTES", 4000)
    monkeypatch.setattr(logbook, "_ENTRY", 1000)
    with logbook.logbook(str(tmp_path), "aigi run") as book:
        for number in range(300):
            book.add(f"line {number}")
        book.add("x" * 10**6)
        book.end(1, "the last")
    old, new = sorted(logs(tmp_path))
    assert old.name.endswith(".1.log") and new.name == old.name.replace(".1.log", ".log")
    assert old.stat().st_size <= 4000
    assert "What was before is in" in new.read_text().splitlines()[1]
    assert " aigi run" in new.read_text().splitlines()[0]
    assert "[…]" in new.read_text() and new.stat().st_size <= 4000
    assert checked(new.read_text())[-1] == "  | ended with exit code 1"


def test_the_logs_of_the_last_commands_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "KEPT", 3)
    for number in range(5):
        path = tmp_path / LOGS / f"2020010{number}T000000Z-abcdef.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
        path.with_name(path.name.replace(".log", ".1.log")).write_text("older")
    with logbook.logbook(str(tmp_path), "x") as book:
        book.end(0)
    names = [path.name for path in logs(tmp_path)]
    assert len(names) == 5 and names[0].startswith("20200103") and names[2].startswith("20200104")


def test_a_log_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        closed = False

        def tell(self) -> int:
            return 0

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    with logbook.logbook(str(tmp_path), "x") as book:
        book._file = Full()  # type: ignore[assignment]
        book.add("one")
        book.add("two")
        book.end(0)
    said = capsys.readouterr().err
    assert said.count("the log cannot be written") == 1 and "No space left" in said


def test_an_object_store_gets_copies_and_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "EVERY", 0.05)
    folder = Folder(f"memory://logs-{tmp_path.name}")

    def text() -> str:
        files = [path for path in folder.fs.find(folder.path(LOGS)) if path.endswith(".log")]
        return folder.fs.cat_file(files[0]).decode() if files else ""

    with logbook.logbook(folder.url, "aigi run") as book:
        book.add("in the middle")
        limit = time.monotonic() + 30
        while "in the middle" not in text():
            assert time.monotonic() < limit
            time.sleep(0.02)
        book.end(3, "fewer")
    assert checked(text())[-1].endswith("ended with exit code 3")
    word = last_word(folder)
    assert word is not None and (word.code, word.said) == (3, "fewer")


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / LOGS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AigiError, match="a link leads out"), logbook.logbook(str(run), "x"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_damaged_last_word_is_named(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write_bytes(b'{"code": "x"}', LOGS, "last.json")
    with pytest.raises(AigiError, match=r"last.json: code: .*Delete it"):
        last_word(Folder(str(tmp_path)))


def test_an_entry_cannot_be_forged() -> None:
    text = "a\n2026-01-01T00:00:00.000Z error: forged"
    assert entry(0.0, logging.INFO, text) == (
        "1970-01-01T00:00:00.000Z a\n  | 2026-01-01T00:00:00.000Z error: forged\n"
    )


# --- of whole commands ---------------------------------------------------------------------------


@pytest.fixture
def analysis(tmp_path: Path) -> Iterator[Path]:
    """A workflow that takes seconds: characteristics of a folder of images."""
    import numpy as np

    from pipeline.pixels import png_bytes

    (tmp_path / "images").mkdir()
    for number in range(3):
        rgb = np.full((64, 64, 3), 40 * number, np.uint8)
        (tmp_path / "images" / f"{number}.png").write_bytes(png_bytes(rgb))
    path = tmp_path / "workflow.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run": str(tmp_path / "run"),
                "characteristics": {"pictures": [{"place": str(tmp_path / "images")}]},
            }
        )
    )
    yield path


def test_a_command_leaves_its_log_and_its_last_word(analysis: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        assert CliRunner().invoke(app, ["run", str(analysis), "--quiet"]).exit_code == 0
    first, second = (path.read_text() for path in logs(run))
    lines = checked(first)
    assert f"process {os.getpid()} on" in lines[0] and lines[-1].endswith("with exit code 0")
    assert any("characteristics: 00-" in line and "begun" in line for line in lines)
    assert any("characteristics: 1/1 shards, 3 rows" in line for line in lines), "though --quiet"
    assert "characteristics: 1 shards, already made" in second
    assert last_word(Folder(str(run))) == Ended(code=0, log=logs(run)[1].name)
    # It is no part of what the run made.
    assert damage(Store(str(run)), Progress(quiet=True)) == []
    assert {one.table for one in status(Store(str(run)))} == {"characteristics", "effects"}
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 0
    assert CliRunner().invoke(app, ["status", str(run), "--watch"]).exit_code == 0
    assert not (run / "_alive").exists() or not list((run / "_alive").rglob("*.json"))


def test_an_error_has_its_full_text_in_the_log_and_its_code_in_the_last_word(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.analysis import characteristics

    def broken(*given: object) -> None:
        raise ZeroDivisionError(f"at {SECRET}")

    monkeypatch.setattr(characteristics, "measured", broken)
    done = CliRunner().invoke(app, ["run", str(analysis)])
    assert done.exit_code == 1
    (path,) = logs(tmp_path / "run")
    lines = checked(path.read_text())
    assert any("failed:" in line for line in lines)
    assert any("  |   File " in line and "characteristics.py" in line for line in lines)
    assert "  | ZeroDivisionError: at https://***@host/a.csv?..." in lines
    word = last_word(Folder(str(tmp_path / "run")))
    assert word is not None and word.code == 1 and "Finished shards are kept" in word.said
    watched = CliRunner().invoke(app, ["status", str(tmp_path / "run"), "--watch"])
    assert watched.exit_code == 1 and "ended with exit code 1: " in watched.output


def test_fewer_images_than_wanted_are_the_last_word(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    path = make_workflow(plan={"dataset": "dataset.yaml", "sources": ["sd"], "limit": 2},
                         selection={"min_luminance_std": 128.0}, quality={})  # fmt: skip
    done = CliRunner().invoke(app, ["run", str(path)])
    assert done.exit_code == 3, done.output
    word = last_word(Folder(str(tmp_path / "run")))
    assert word is not None and word.code == 3
    assert "fewer images than wanted: sd" in logs(tmp_path / "run")[0].read_text()
    assert CliRunner().invoke(app, ["run", str(path), "--allow-fewer"]).exit_code == 0
    word = last_word(Folder(str(tmp_path / "run")))
    assert word is not None and word.code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_the_last_word(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = (
        "import os\n"
        "from pipeline.execute import at_work; from pipeline.progress import Progress\n"
        "from pipeline.cli.show import explained\n"
        "with explained(), at_work(os.sys.argv[1], Progress(quiet=True)):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    import time; time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "stopped" in done.stderr, done.stderr
    word = last_word(Folder(str(tmp_path)))
    assert word is not None and word.code == code and word.said.startswith("stopped")


def test_lines_of_workers_of_ray_are_in_the_log(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "run.py"
    script.write_text(
        "import logging, sys\n"
        "from dataclasses import replace\n"
        "from pipeline.logbook import logbook\n"
        "from pipeline.progress import Progress\n"
        "from pipeline.running import run_stages\n"
        "from pipeline.stage import Compute\n"
        "from pipeline.store import Store\n"
        "from tests import toy\n"
        "class Talking(toy.Squarer):\n"
        "    def __call__(self, rows, start=0):\n"
        "        logging.getLogger('library').warning('low on memory')\n"
        "        if rows['number'][0].as_py() == 40:\n"
        "            raise ZeroDivisionError('in a worker')\n"
        "        yield from super().__call__(rows, start)\n"
        "numbers, squares = toy.stages(shards=2)\n"
        "squares = replace(squares, make_worker=lambda: Talking(0.0, None, None, None))\n"
        "with logbook(sys.argv[1], 'test'):\n"
        "    run_stages([numbers, squares], Store(sys.argv[1]),\n"
        "               Compute(ray='local', workers=1), Progress())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "1 of 2 shards failed" in done.stderr
    (path,) = logs(tmp_path / "run")
    lines = checked(path.read_text())
    told = [line for line in lines if " worker " in line and " by its clock: " in line]
    assert sum("squares: part-00000: begun" in line for line in told) == 1
    assert sum("warning: worker" in line and "low on memory" in line for line in told) == 2
    assert any("ZeroDivisionError: in a worker" in line for line in lines)
    assert any("  |   File " in line and "run.py" in line for line in lines)
    assert "low on memory" in done.stderr, "warnings of workers are shown"


def test_heard_leaves_things_as_they_were() -> None:
    before = logging.getLogRecordFactory(), warnings.showwarning, LOG.level
    with pytest.raises(KeyError), heard(lambda record: None):
        raise KeyError
    assert (logging.getLogRecordFactory(), warnings.showwarning, LOG.level) == before
    assert json.dumps(toy.SHARDS)
