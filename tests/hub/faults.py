"""What can be made to go wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Fault:
    """What goes wrong for the next `times` calls that match, after `skip` that go well.

    method, path: expressions; the first must match the method, the second be found in the path or
    query. status: answer this, with `headers`, and do nothing. cut_after: close the connection
    after so many bytes of the request's body (nothing is done; the default side of a PUT or POST)
    or of the answer's (all is done; 0 sends nothing at all). delay: seconds before anything else,
    at most: `end` ends them.
    corrupt: an upload stores other bytes under the name it was given; a commit stores other bytes
    of its large files and names them; a listing tells wrong hashes; a download sends one wrong
    byte.
    """

    method: str = ".*"
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    side: Literal["request", "answer"] | None = None
    delay: float = 0
    end: threading.Event = field(default_factory=threading.Event)
    corrupt: bool = False
    used: int = 0

    def cut(self, side: str, method: str) -> int | None:
        """After how many bytes of this side the connection ends, if it does."""
        usual = "request" if method in ("PUT", "POST") else "answer"
        return self.cut_after if side == (self.side or usual) else None


class Faults:
    """The planted faults of a hub; a call gets the first that fits, in the order of planting."""

    def __init__(self) -> None:
        self.planted: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str = ".*", path: str = "", **wrong: Any) -> Fault:
        """Plant a `Fault` and return it; its `used` counts."""
        self.planted.append(Fault(method, path, **wrong))
        return self.planted[-1]

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.planted:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif fault.used < fault.times:
                        fault.used += 1
                        return fault
        return None

    def clear(self) -> None:
        self.planted.clear()


class Cut(Exception):
    """The connection ends here."""


def flipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes but one, which lies behind what a format's own header has room for."""
    for index, chunk in enumerate(chunks):
        at = min(100, len(chunk) - 1)
        yield chunk if index else chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
