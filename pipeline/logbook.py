"""What a run, its workers and their libraries say in, one log file with times out.

`RUN/_logs/<time>-<number>.log`: every line without secrets and control characters, errors with
their full text. A local file is appended to, line by line. Object stores cannot append: there the
file is written anew once a minute while there is something new, and at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from pipeline import AigiError
from pipeline.faults import in_short
from pipeline.files import scratch
from pipeline.folder import Folder
from pipeline.gate import Checked, Number, check
from pipeline.progress import LOG
from pipeline.shown import lines, one_line

LOGS = "_logs"
EVERY = 60.0
"""Seconds between two copies of the log of a run on an object store."""
BYTES = 4 << 20
"""A longer log goes on in a new file. The one before it is kept, as `….1.log`."""
KEPT = 30
"""Logs of a run that are kept: those of the last commands."""
_ENTRY = 1 << 16  # characters of one entry
_LAST = "last.json"


class Ended(Checked):
    """The last word of a command about its run: `RUN/_logs/last.json`.

    Attributes:
        code: its exit code.
        said: why, in a line; empty: nothing went wrong.
        log: name of its log.
    """

    code: Number
    said: str = ""
    log: str = ""


def last_word(folder: Folder) -> Ended | None:
    """How the last command that worked on a run ended; None: it has not, or it could not tell.

    Raises:
        AigiError: the file is damaged.
    """
    remedy = "Delete it: it only tells how the last command ended."
    data = folder.read_json(LOGS, _LAST, remedy=remedy)
    return None if data is None else check(Ended, data, folder.path(LOGS, _LAST), remedy)


@contextmanager
def heard(take: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Give every record of a logger and every warning to `take` too; all else stays as it is."""
    record_of, shown = logging.getLogRecordFactory(), warnings.showwarning
    level = LOG.level

    def record(*given: Any, **more: Any) -> logging.LogRecord:
        made = record_of(*given, **more)
        if made.name.partition(".")[0] == LOG.name or made.levelno >= logging.WARNING:
            take(made)
        return made

    def warned(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        text = f"{category.__name__}: {message} ({filename}:{lineno})"
        take(logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, (), None))
        shown(message, category, filename, lineno, file, line)

    logging.setLogRecordFactory(record)
    warnings.showwarning = warned
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.setLogRecordFactory(record_of)
        warnings.showwarning = shown
        LOG.setLevel(level)


def text_of(record: logging.LogRecord) -> str:
    """The whole text of a record, with its traceback, without secrets and control characters."""
    try:
        text = logging.Formatter("%(message)s").format(record)
    except (TypeError, ValueError, LookupError):  # the logger reports its own mistake
        text = str(record.msg)
    return lines(text)[:_ENTRY]


def entry(when: float, level: int, text: str) -> str:
    """One entry of the log: a time in UTC, and further lines of its text behind a bar."""
    stamp = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    mark = f"{logging.getLevelName(level).lower()}: " if level >= logging.WARNING else ""
    return f"{stamp}Z {mark}" + "\n  | ".join(text.rstrip("\n").split("\n")) + "\n"


class Book:
    """The log of a command that works on a run.

    Where it cannot be written, that is said once, and the run goes on.

    Args:
        folder: the run.
        path: of the file on this machine.
        head: its first entry, also where it goes on in a new file.
    """

    def __init__(self, folder: Folder, path: str, head: str) -> None:
        self.folder, self.path, self.head = folder, path, head
        self.changed = 0
        self._lock, self._file = threading.RLock(), open(path, "ab")  # noqa: SIM115
        self.add(head)

    def take(self, record: logging.LogRecord) -> None:
        """Write a record of a logger."""
        self.add(text_of(record), record.created, record.levelno)

    def add(self, text: str, when: float | None = None, level: int = logging.INFO) -> None:
        """Write an entry."""
        when = datetime.now(UTC).timestamp() if when is None else when
        text = lines(text)
        cut = text if len(text) <= _ENTRY else f"{text[: _ENTRY // 2]}\n[…]\n{text[-_ENTRY // 2 :]}"
        data = entry(when, level, cut).encode(errors="replace")
        with self._lock:
            if self._file.closed:
                return
            try:
                if self._file.tell() + len(data) > BYTES:
                    self._go_on()
                self._file.write(data)
                self._file.flush()
                self.changed += 1
            except OSError as error:
                with suppress(OSError):
                    self._file.close()
                say = f"{self.path}: the log cannot be written: {in_short(error)}. The run goes on."
                print(one_line(say), file=sys.stderr)

    def _go_on(self) -> None:
        self._file.close()
        os.replace(self.path, before(self.path))
        self._file = open(self.path, "ab")  # noqa: SIM115
        text = f"{self.head}\nWhat was before is in {os.path.basename(before(self.path))}."
        self._file.write(entry(datetime.now(UTC).timestamp(), logging.INFO, text).encode())

    def copy(self) -> None:
        """Write it to the object store that the run is on.

        Raises:
            OSError, AigiError: that cannot be reached.
        """
        for path in () if self.folder.local else (self.path, before(self.path)):
            with suppress(FileNotFoundError), open(path, "rb") as file:
                self.folder.copy(file, LOGS, os.path.basename(path))

    def end(self, code: int, said: str = "", reachable: bool = True) -> None:
        """Write the last word of the command.

        Args:
            code: its exit code.
            said: what went wrong, with the full text of an uncaught error.
            reachable: whether the run can be written; else its last word is not.
        """
        self.add(f"{said}\nended with exit code {code}".lstrip("\n"))
        with self._lock:
            self._file.close()
        if not reachable:
            return
        last = said.strip().splitlines()[-1:] or [""]
        word = Ended(code=code, said=one_line(last[0])[:1000], log=os.path.basename(self.path))
        try:
            self.copy()
            self.folder.write_json(word.model_dump(mode="json"), LOGS, _LAST)
            sweep(self.folder)
        except (OSError, AigiError) as error:
            say = f"{self.folder.path(LOGS)}: the log cannot be kept: {in_short(error)}"
            print(one_line(say), file=sys.stderr)


def before(path: str) -> str:
    """Where the part of a log is that is before its present file."""
    return f"{path.removesuffix('.log')}.1.log"


@contextmanager
def logbook(url: str, about: str) -> Iterator[Book]:
    """Keep the log of a command that works on a run; call its `end` before the block ends.

    Args:
        about: what the command is, for the first line.
    """
    folder = Folder(url)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:6]}.log"
    if folder.local:
        folder.remove(LOGS, _LAST)
        folder.write_bytes(b"", LOGS, name)  # which leaves no run by a link
        book = Book(folder, folder.path(LOGS, name), about)
        with heard(book.take):
            yield book
        return
    with scratch("log") as here:
        book = Book(folder, os.path.join(here, name), about)
        end = threading.Event()

        def copies() -> None:
            copied = 0
            while not end.wait(EVERY):
                if book.changed != copied:
                    copied = book.changed
                    with suppress(OSError, AigiError):  # the last copy tells
                        book.copy()

        thread = threading.Thread(target=copies, name="log", daemon=True)
        thread.start()
        try:
            with heard(book.take):
                yield book
        finally:
            end.set()
            thread.join(5.0)


def sweep(folder: Folder) -> None:
    """Remove the logs of all but the last commands."""
    try:
        files = folder.fs.find(folder.path(LOGS))
    except FileNotFoundError:
        return
    names = sorted(path.rsplit("/", 1)[-1] for path in files if path.endswith(".log"))
    kept = sorted({name.split(".")[0] for name in names})[-KEPT:]
    for name in names:
        if name.split(".")[0] not in kept:
            folder.remove(LOGS, name)
