"""Signs of life of the processes of a run: written beside its tables, and read with their ages.

A process that works writes one small object every ten seconds, `RUN/_alive/<command>/<who>.json`,
from a thread of its own: so a sign says that the process lives, and its `idle` when it last
finished a batch. All of them go when the command ends. The age of a sign is that of the object by
the clock of its storage; who looks twice knows it from what changed between both looks.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from pipeline import AigiError
from pipeline.faults import in_short
from pipeline.folder import Folder
from pipeline.gate import Checked, Number, check, parse
from pipeline.logbook import heard, text_of
from pipeline.outside import ABANDONED, Unreachable
from pipeline.progress import LOG, Doing, Progress, duration
from pipeline.record import Driver

ALIVE = "_alive"
EVERY = 10.0
"""Seconds between two signs of a process."""
SILENT = 6
"""A process that gave no sign for so many times that long is called silent."""
_FIRST = 1.0
_LINES, _SHOWN, _LONGEST = 200, 20, 4000
"""Lines of a worker that wait for its shard to end, those in its sign, and characters of one."""
_REMEDY = "It is a sign of life, and of no use once its process has ended: delete it."


class Line(Checked):
    """One line of a worker's log.

    Attributes:
        number: it counts the lines of the worker, from 1.
        time: seconds since 1970, by the clock of the worker.
        level: as the `logging` module counts.
    """

    number: Number
    time: float
    level: Number
    text: str


class Sign(Checked):
    """What a process says of itself.

    Attributes:
        role: `driver`, which runs the command; or `worker`, which makes shards for it.
        beat: number of the sign, from 1: it changes as long as the process lives.
        every: seconds between two signs.
        stage: the table that is being made, or the name of the work; empty: nothing yet.
        shard: what a worker is making.
        unit, done, total, shards, of_shards, rate, left, idle: as in `progress.Doing`.
        fresh: rows of `done` that a worker made itself; others were kept from before.
        lines: the last lines of a worker's log.
    """

    role: Literal["driver", "worker"]
    process: Driver
    beat: Number
    every: float = Field(gt=0)
    stage: str = ""
    shard: str = ""
    unit: str = ""
    done: Number = 0
    total: Number | None = None
    shards: Number | None = None
    of_shards: Number | None = None
    rate: float | None = None
    left: float | None = None
    idle: float = 0.0
    fresh: Number = 0
    lines: list[Line] = Field(default_factory=list)

    def doing(self) -> Doing:
        """The same as what it does."""
        shards = None if self.shards is None else (self.shards, self.of_shards or 0)
        return Doing(
            self.stage, self.unit, self.done, self.total, shards, self.rate, self.left, self.idle
        )


def _sign(role: Literal["driver", "worker"], me: Driver, beat: int, doing: Doing | None) -> Sign:
    if doing is None:
        return Sign(role=role, process=me, beat=beat, every=EVERY)
    shards, of_shards = doing.shards or (None, None)
    return Sign(
        role=role, process=me, beat=beat, every=EVERY, stage=doing.stage, unit=doing.unit,
        done=doing.done, total=doing.total, shards=shards, of_shards=of_shards, rate=doing.rate,
        left=doing.left, idle=round(doing.idle, 1),
    )  # fmt: skip


# --- written -------------------------------------------------------------------------------------


class _Beat:
    """A thread that writes the sign of this process; it ends with the process.

    Args:
        now: the sign; None: there is nothing to tell, and no sign is left.
        also: what else is done each time.
    """

    def __init__(
        self,
        url: str,
        path: tuple[str, ...],
        now: Callable[[int], Sign | None],
        also: Callable[[Folder], None] = lambda folder: None,
    ) -> None:
        self.url, self.path, self.now, self.also = url, path, now, also
        self._end, self._beat, self._there, self._said = threading.Event(), 0, False, False
        self._thread = threading.Thread(target=self._run, name="alive", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = min(_FIRST, EVERY)
        while not self._end.wait(wait):
            wait = EVERY
            try:
                self._once()
            except (OSError, AigiError) as error:  # of the storage: the run itself will tell
                if not self._said:
                    self._said = True
                    LOG.warning("signs of life cannot be written: %s. The run goes on.",
                                in_short(error))  # fmt: skip

    def _once(self) -> None:
        folder = Folder(self.url)
        sign = self.now(self._beat + 1)
        if sign is not None:
            self._beat += 1
            folder.write_json(sign.model_dump(mode="json", exclude_defaults=True), *self.path)
            self._there = True
        elif self._there:
            folder.remove(*self.path)
            self._there = False
        self.also(folder)

    def end(self) -> None:
        """No more signs are written; one that is being written may still appear."""
        self._end.set()
        self._thread.join(5.0)


@contextmanager
def driver(url: str, progress: Progress) -> Iterator[None]:
    """While this process runs a command, it says so, and what it is doing."""
    me, mine = Driver.here(), (ALIVE, uuid.uuid4().hex)
    swept = False

    def also(folder: Folder) -> None:
        nonlocal swept
        if not swept:
            swept = True
            _without_abandoned(folder, mine[1])
        if progress.bar is not None:
            progress.bar.look()

    def now(beat: int) -> Sign:
        asked = progress.doing
        return _sign("driver", me, beat, None if asked is None else asked())

    beat = _Beat(url, (*mine, "driver.json"), now, also)
    try:
        yield
    finally:
        beat.end()
        if beat._there:
            _removed(url, *mine)


def _removed(url: str, *path: str) -> None:
    with suppress(OSError, AigiError):  # the storage may be what failed
        folder = Folder(url)
        folder.remove(*path)
        if folder.local:
            os.rmdir(folder.path(ALIVE))  # unless those of another are there


def _without_abandoned(folder: Folder, mine: str) -> None:
    """Remove the signs of killed commands; at an object store, only very old ones.

    A local run has no other command: `run.alone` sees to that.
    """
    with suppress(FileNotFoundError):
        for path in folder.fs.find(folder.path(ALIVE)):
            command = posixpath.basename(posixpath.dirname(path))
            old = folder.local or datetime.now(UTC) - folder.fs.modified(path) > ABANDONED
            if command != mine and old:
                with suppress(FileNotFoundError):
                    folder.remove(ALIVE, command)


class Worker:
    """The signs and the log of a process that makes shards for a command elsewhere.

    Args:
        command: the folder of the signs of that command's workers.
        stage: the table that is made.
    """

    def __init__(self, url: str, command: str, stage: str) -> None:
        self.me, self.stage = Driver.here(), stage
        self.shard, self.made, self.batch = "", (0, 0), time.monotonic()
        self._lines: deque[Line] = deque(maxlen=_LINES)
        self._number, self._lock = 0, threading.Lock()
        self._hears = heard(self._take)
        self._hears.__enter__()  # until the process ends
        _Beat(url, (ALIVE, command, f"{uuid.uuid4().hex}.json"), self._now)

    def _take(self, record: logging.LogRecord) -> None:
        text = text_of(record)[:_LONGEST]
        with self._lock:
            self._number += 1
            self._lines.append(
                Line(number=self._number, time=record.created, level=record.levelno, text=text)
            )

    def told(self, name: str, rows: int, fresh: int) -> None:
        """Hear of a batch, as `stage.Told`."""
        if name != self.shard or rows != self.made[0]:
            self.batch = time.monotonic()
        self.shard, self.made = name, (rows, fresh)

    def _now(self, beat: int) -> Sign | None:
        if not self.shard:
            return None
        rows, fresh = self.made
        doing = Doing(self.stage, "rows", rows, idle=time.monotonic() - self.batch)
        with self._lock:
            last = list(self._lines)[-_SHOWN:]
        more = {"shard": self.shard, "fresh": fresh, "lines": last}
        return _sign("worker", self.me, beat, doing).model_copy(update=more)

    def over(self, make: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        """Make a shard; its result has the log of the worker beside it."""
        try:
            result = make(*given, told=self.told)
        finally:
            self.shard = ""
        with self._lock:
            found = [line.model_dump() for line in self._lines]
            self._lines.clear()
        # As text: between machines a result is a row of a table.
        return {**result, "log": json.dumps({"process": self.me.model_dump(), "lines": found})}


class Workers:
    """What the workers of a command say, for the command: of their shards, and of all else.

    Args:
        told: hears how far a shard is, as `stage.Told`.

    Attributes:
        command: the folder of their signs.
    """

    def __init__(self, url: str, told: Callable[[str, int, int], None]) -> None:
        self.url, self.told, self.command = url, told, uuid.uuid4().hex
        self._heard: dict[str, int] = {}
        self._lock = threading.Lock()
        self._beat = _Beat(url, (), lambda beat: None, self._look)

    def _look(self, folder: Folder) -> None:
        for sign in _signs(folder, self.command):
            if isinstance(sign, Sign):
                self.told(sign.shard, sign.done, sign.fresh)
                self._relay(sign.process, sign.lines)

    def result(self, result: dict[str, Any]) -> None:
        """Take the log out of the result of a worker."""
        said = json.loads(result.pop("log"))
        found = [Line.model_validate(line) for line in said["lines"]]
        self._relay(Driver.model_validate(said["process"]), found)

    def _relay(self, process: Driver, found: list[Line]) -> None:
        who = f"{process.host}/{process.pid}"
        with self._lock:
            for line in found:
                last = self._heard.get(who, 0)
                if line.number <= last:
                    continue
                self._heard[who] = line.number
                when = datetime.fromtimestamp(line.time, UTC).strftime("%H:%M:%S")
                lost = line.number - last - 1
                more = f" ({lost} lines before it are lost)" * bool(lost)
                LOG.log(line.level, "worker %s, %s by its clock%s: %s", who, when, more, line.text)

    def close(self) -> None:
        """All of them are done, or nobody waits for them any more."""
        self._beat.end()
        _removed(self.url, ALIVE, self.command)


# --- read ----------------------------------------------------------------------------------------


def _changed(info: dict[str, Any]) -> float | None:
    """When a file changed by the clock of its storage, in seconds since 1970; None: not known."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    return None


def _files(folder: Folder, command: str = "") -> dict[str, dict[str, Any]]:
    parts = (ALIVE, command) if command else (ALIVE,)
    try:
        found = folder.fs.find(folder.path(*parts), detail=True)
    except FileNotFoundError:
        return {}
    return {
        path: info
        for path, info in found.items()
        if path.endswith(".json") and not posixpath.basename(path).startswith(".")
    }


def _read(folder: Folder, path: str) -> Sign | str | None:
    """A sign; why it is none; or None: it has gone."""
    try:
        return check(Sign, parse(folder.fs.cat_file(path), path, _REMEDY), path, _REMEDY)
    except FileNotFoundError:
        return None
    except Unreachable:
        raise
    except AigiError as error:
        return str(error)


def _signs(folder: Folder, command: str) -> Iterator[Sign | str]:
    for path in _files(folder, command):
        if (found := _read(folder, path)) is not None:
            yield found


@dataclass(frozen=True)
class Seen:
    """A sign, as somebody sees it.

    Attributes:
        path: of its file.
        age: seconds since it was given.
        measured: whether `age` was seen to pass here; else it is by the clock of the storage and
            that of this machine, which may differ.
        gone: whether its process has ended; None: it is on another machine.
    """

    path: str
    sign: Sign
    age: float | None
    measured: bool
    gone: bool | None

    @property
    def silent(self) -> bool:
        """Whether it is too long ago."""
        return self.age is not None and self.age > SILENT * self.sign.every

    @property
    def dead(self) -> bool:
        """Whether its process has ended, or has been silent for so long that it must be thought."""
        return bool(self.gone) or self.silent

    def __str__(self) -> str:
        """`alive 4 s ago`, `gone` or `silent for 12 min 05 s`."""
        if self.gone:
            return "gone"
        if self.age is None:
            return "of unknown age"
        ago = duration(self.age)
        return f"silent for {ago}" if self.silent else f"alive {ago} ago"


class Watcher:
    """Looks at the signs of a run, again and again."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._before: dict[str, tuple[int, float, bool]] = {}  # beat, when seen, whether it changed

    def look(self) -> tuple[list[Seen], list[str]]:
        """The signs of all processes, drivers first; and what is wrong with other files there.

        Raises:
            AigiError: the run cannot be read.
        """
        seen, wrong = [], []
        clock, now = datetime.now(UTC).timestamp(), time.monotonic()
        for path, info in _files(self.folder).items():
            sign = _read(self.folder, path)
            if isinstance(sign, str):
                wrong.append(sign)
            if not isinstance(sign, Sign):
                continue
            beat, when, moved = self._before.get(path, (-1, now, False))
            if beat != sign.beat:
                moved, when = beat >= 0, now
            self._before[path] = sign.beat, when, moved
            changed = _changed(info)
            age = None if changed is None else max(0.0, clock - changed)
            if moved:
                age = now - when
            elif age is not None:
                age = max(age, now - when)
            seen.append(Seen(path, sign, age, moved, sign.process.gone()))
        return sorted(seen, key=lambda one: (one.sign.role, one.path)), wrong
