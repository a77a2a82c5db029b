"""The hub by hand: runs until interrupted, and prints what turns a client to it."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from tests.hub.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub", description="A Hub on this machine"
    )
    parser.add_argument("folder", type=Path, help="where its repositories are kept")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="take uploads by Xet, not by LFS")
    given = parser.parse_args()
    with serve(given.folder, given.xet, port=given.port) as hub:
        for name, value in hub.settings().items():
            print(f"export {name}={value}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
