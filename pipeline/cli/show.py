"""What all verbs share: their options, how they print, and how errors reach the user."""

from __future__ import annotations

import io
import json
import logging
import re
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pipeline import AigiError
from pipeline.cli import completion
from pipeline.execute import Stopped
from pipeline.faults import in_short, of_machine
from pipeline.progress import LOG
from pipeline.shown import lines, one_line

if TYPE_CHECKING:
    from rich.table import Table


Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one value, e.g. plan.limit=8.",
        autocompletion=completion.settings,
    ),
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print failures only.")]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass
class Document:
    """What a command prints on standard output, for a program.

    Attributes:
        values: results by name.
        tables: rows of tables by their titles; each row has its cells by the headings.
        lines: further lines.
        errors: what went wrong.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


_document: ContextVar[Document | None] = ContextVar("document", default=None)
verbose: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether an error is shown with what led to it."""


@contextmanager
def documented() -> Iterator[Document]:
    """Collect what is printed, in place of printing it."""
    before = _document.set(found := Document())
    try:
        yield found
    finally:
        _document.reset(before)


def note(**values: Any) -> None:
    """Results by name, as JSON values, for a program that asks for JSON."""
    if (document := _document.get()) is not None:
        document.values |= values


def complain(text: str) -> None:
    """Print an error."""
    if (document := _document.get()) is not None:
        document.errors.append(lines(text))
    LOG.info("error: %s", lines(text))  # as an error, logging itself would print it
    if verbose.get():
        print(lines(traceback.format_exc()), end="", file=sys.stderr)
    print(f"error: {lines(text)}", file=sys.stderr)


REPEATED = 10.0
"""Seconds in which a second signal is the first one again: Slurm and launchers send several."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` where schedulers and closed terminals ask this process to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -REPEATED

    def stop(number: int, frame: object) -> None:
        nonlocal last
        # While things are put in order, this must not be interrupted.
        if time.monotonic() - last >= REPEATED:
            last = time.monotonic()
            raise Stopped(number)

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    ends = False
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        ends = True  # and while it does, another signal must not cut that short
        raise
    finally:
        for number in () if ends else numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def explained() -> Iterator[None]:
    """Print errors that users can act on, without a traceback."""
    try:
        with stoppable():
            yield
    except AigiError as error:
        complain(hinted(str(error)))
        raise typer.Exit(1) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise  # typer knows what that is
        # The outside again: disks and networks have more ways to fail than any list.
        complain(one_line(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        raise _end(error.number if isinstance(error, Stopped) else signal.SIGINT) from None
    except (typer.Exit, typer.Abort):
        raise
    except ModuleNotFoundError as error:
        if (name := (error.name or "").partition(".")[0]) in ("", "pipeline"):
            raise
        complain(f"this needs the package {name}, which is not installed: pip install 'aigi[all]'")
        raise typer.Exit(1) from None
    except SystemExit as error:
        # Ray's handler, while Ray starts.
        if error.code != signal.SIGTERM:
            raise
        raise _end(signal.SIGTERM) from None
    except Exception as error:
        if of_machine(error):
            complain(one_line(in_short(error)))
            raise typer.Exit(1) from None
        # A defect, whose traceback may quote a location.
        print(lines(traceback.format_exc()), end="", file=sys.stderr)
        raise typer.Exit(1) from None


_WIDE = 1 << 16
_MISSING = re.compile(r"(?:^|: )(?P<path>[^:\n]+): no such (?:file|folder)[^\n]*")


def hinted(text: str) -> str:
    """A message that also says which file may be meant in place of each that is missing."""
    if "no such f" not in text:
        return text
    from pipeline.complaints import near_path

    def line(found: re.Match[str]) -> str:
        said = found[0]
        meant = None if "did you mean" in said else near_path(found["path"].strip())
        return said if meant is None else f'{said.rstrip(".")}. Did you mean "{meant}"?'

    return _MISSING.sub(line, text)


def _unread() -> bool:
    """Whether whoever reads standard output has gone: `aigi … | head`."""
    with suppress(OSError, ValueError):
        looks = select.poll()
        looks.register(sys.stdout, 0)
        return any(event & select.POLLERR for _, event in looks.poll(0))
    return False


def _end(number: int) -> typer.Exit:
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    with suppress(OSError):  # a closed terminal takes no more text
        print(
            f"\nstopped{name}. Finished shards are kept; run the same command again to resume.",
            file=sys.stderr,
        )
    return typer.Exit(128 + number)


@cache
def guard() -> None:
    """Let warnings and logs of all libraries through as everything else is shown."""
    record_of, warning_of = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*given: Any, **more: Any) -> logging.LogRecord:
        made = record_of(*given, **more)
        with suppress(TypeError, ValueError, LookupError):  # the logger reports its own mistake
            made.msg, made.args = lines(made.getMessage()), ()
        return made

    def warning(*given: Any, **more: Any) -> str:
        return lines(warning_of(*given, **more))

    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning


def show(part: Table | str) -> None:
    """Print a table, or a line. Cells are plain text: no markup, whatever they hold."""
    if isinstance(part, str):
        tell(part)
        return
    if (document := _document.get()) is not None:
        headings = [str(column.header) or "note" for column in part.columns]
        cells = zip(*(map(str, column.cells) for column in part.columns), strict=True)
        rows = [dict(zip(headings, row, strict=True)) for row in cells]
        document.tables[str(part.title or "table")] = rows
        return
    from rich import box
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """A console that takes every text for what it is, and shows all of it."""

        def render_str(self, text: str, **options: Any) -> Text:
            plain = {"markup": False, "emoji": False, "highlight": False}
            return super().render_str(one_line(text), **options | plain)

    for column in part.columns:
        column.overflow = "fold"  # a long name goes on below, and loses nothing
    if not sys.stdout.isatty():
        part.box, part.show_edge = box.MARKDOWN, True  # plain signs, one line a row
    # A pipe has no width of its own; there, a row is a line, whatever it holds.
    Plain(width=None if sys.stdout.isatty() else _WIDE, soft_wrap=True).print(part)


Trust = Annotated[
    bool,
    typer.Option("--trust", help="Load the models, datasets and logos that a manifest asks for."),
]


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        autocompletion=completion.places,
        help="Release folder, run, or hf://datasets/ORG/NAME@REVISION.",
    ),
]


def tell(text: str, **values: Any) -> None:
    """Print one line of the result, on standard output.

    Args:
        values: as of `note`.
    """
    LOG.info(one_line(text))
    note(**values)
    if (document := _document.get()) is not None:
        document.lines.append(one_line(text))
    else:
        print(one_line(text), flush=True)


def talk(text: str) -> None:
    """Print one line about the work, on standard error."""
    LOG.info(one_line(text))
    print(one_line(text), file=sys.stderr)


class _Visible(io.StringIO):
    """Standard output for rows of a table of text: what is written is shown at once."""

    def write(self, text: str) -> int:
        sys.stdout.write(lines(text))
        return len(text)


def rows_out() -> IO[str]:
    """Where CSV goes: to a program as it is, to a terminal as everything else is shown."""
    return _Visible() if sys.stdout.isatty() else sys.stdout


def dump(value: object, line: bool = False) -> None:
    """Print JSON, for programs.

    Args:
        line: on one line, at once: more will follow.
    """
    print(json.dumps(value, indent=None if line else 1), flush=line)


def clear() -> None:
    """Clear the terminal, for what is shown again and again."""
    print("\x1b[H\x1b[2J", end="")


def read_file(path: Path) -> bytes:
    from pipeline.outside import on_this_machine, reached

    with reached(on_this_machine(path)):
        return path.read_bytes()
