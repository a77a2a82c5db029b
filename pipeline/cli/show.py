"""What all verbs share: their options, how they print, and how errors reach the user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError
from pipeline.faults import in_short, of_machine

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
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except Exception as error:
        if not of_machine(error):
            raise
        print(f"error: {in_short(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(
            "\nstopped. Finished shards are kept; run the same command again to resume.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def show(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width of its own; never cut a number there.
    Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True).print(table)


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Release folder, run, or hf://datasets/ORG/NAME@REVISION.",
    ),
]


def talk(text: str) -> None:
    print(text, file=sys.stderr)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AigiError(f"{path}: cannot be read: {error.strerror}") from error
