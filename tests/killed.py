"""A command of aigi in, the same killed with SIGKILL at some moment of its work, out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT

_KILL = """
import os, signal, sys
from pipeline.folder import Folder
from pipeline.store import Store
moment, count = sys.argv[1], int(sys.argv[2])
seen = 0
def killing(kind, name):
    before = getattr(kind, name)
    def after(*given, **more):
        global seen
        found = before(*given, **more)
        if moment == name or any(moment in one for one in given[1:] if isinstance(one, str)):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(kind, name, after)
killing(Folder, "copy")
killing(Folder, "move")
killing(Store, "write_record")
killing(Store, "write")
from pipeline.cli import app
app(sys.argv[3:], standalone_mode=False)
"""


def killed(moment: str, count: int, *command: str, **environment: str) -> bool:
    """Run a command that is killed; returns whether it was, or ended before.

    Args:
        moment: `copy`, `move`, `write` or `write_record`; or part of a path that one of these is
            given.
        count: how often that has happened by then.
        command: arguments of `aigi`.
    """
    done = subprocess.run(
        [sys.executable, "-c", _KILL, moment, str(count), *command],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    return done.returncode != 0
