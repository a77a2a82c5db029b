"""What all verbs share: their options, how they print, and how errors reach the user."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pipeline import AigiError
from pipeline.shown import lines, one_line

if TYPE_CHECKING:
    from rich.table import Table


Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value, e.g. plan.limit=8."),
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print failures only.")]


@contextmanager
def explained() -> Iterator[None]:
    """Print errors that users can act on, without a traceback."""
    try:
        yield
    except AigiError as error:
        print(f"error: {lines(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(
            "\nstopped. Finished shards are kept; run the same command again to resume.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:  # a defect, whose traceback may quote a location
        print(lines(traceback.format_exc()), end="", file=sys.stderr)
        raise typer.Exit(1) from None


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
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """A console that takes every text for what it is, and shows all of it."""

        def render_str(self, text: str, **options: Any) -> Text:
            plain = {"markup": False, "emoji": False, "highlight": False}
            return super().render_str(one_line(text), **options | plain)

    # A pipe has no width of its own; never cut a number there.
    Plain(width=None if sys.stdout.isatty() else 160, soft_wrap=True).print(part)


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Release folder, run, or hf://datasets/ORG/NAME@REVISION.",
    ),
]


def tell(text: str) -> None:
    """Print one line of the result, on standard output."""
    print(one_line(text), flush=True)


def talk(text: str) -> None:
    """Print one line about the work, on standard error."""
    print(one_line(text), file=sys.stderr)


class _Visible(io.StringIO):
    """Standard output for rows of a table of text: what is written is shown at once."""

    def write(self, text: str) -> int:
        sys.stdout.write(lines(text))
        return len(text)


def rows_out() -> IO[str]:
    """Where CSV goes: to a program as it is, to a terminal as everything else is shown."""
    return _Visible() if sys.stdout.isatty() else sys.stdout


def dump(value: object) -> None:
    """Print JSON, for programs."""
    print(json.dumps(value, indent=1))


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AigiError(f"{path}: cannot be read: {error.strerror}") from error
