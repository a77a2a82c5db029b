"""Files appear whole or not at all, whatever breaks on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline.files import replaced, sweep, write_file
from tests.conftest import ROOT


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced(path) as name:
        Path(name).write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    with replaced(path) as name:
        Path(name).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_the_old_file_and_its_rest_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from pipeline.files import replaced\n"
        f"with replaced({str(path)!r}) as name:\n"
        "    Path(name).write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["a.txt"]


def test_names_as_long_as_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".txt")
    write_file(path, b"x")
    assert path.read_bytes() == b"x"


def test_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"nowhere/a: no such file or folder"):
        write_file(tmp_path / "nowhere" / "a", b"x")
