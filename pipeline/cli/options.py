"""A verb in, the same with the options that all verbs have out: --json, --log-file, --verbose."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.show import Json, documented, dump, explained, verbose
from pipeline.progress import LOG

LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", help="Append all that is said, with times, to this file."),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show what libraries log, and what led to an error."),
]
_ADDED: dict[str, Any] = {"as_json": Json, "log_file": LogFile, "be_verbose": Verbose}
_USUAL: dict[str, Any] = {"as_json": False, "log_file": None, "be_verbose": False}


def scripted(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb with these options; one that prints JSON by itself keeps its own --json."""
    signature = inspect.signature(verb, eval_str=True)
    own = [name for name in _ADDED if name in signature.parameters]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_USUAL[name], annotation=kind
        )
        for name, kind in _ADDED.items()
        if name not in own
    ]

    @functools.wraps(verb)
    def command(*given: Any, **options: Any) -> None:
        asked = {name: options.pop(name, _USUAL[name]) for name in _ADDED if name not in own}
        with ExitStack() as stack:
            if asked["be_verbose"]:
                stack.enter_context(_shown())
            if asked["log_file"] is not None:
                stack.enter_context(_kept(asked["log_file"]))
            if asked.get("as_json"):
                stack.enter_context(_as_document())
            verb(*given, **options)

    kept = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()
    ]
    whole = signature.replace(parameters=[*kept, *added])
    command.__signature__ = whole  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in whole.parameters.values()}
    return command


@contextmanager
def _as_document() -> Iterator[None]:
    """Print one JSON document at the end, whatever the end is."""
    code = 0
    with documented() as document:
        try:
            yield
        except typer.Exit as end:
            code = end.exit_code
            raise
        except BaseException:
            code = 1
            raise
        finally:
            dump(
                {
                    "exit_code": code,
                    **document.values,
                    "tables": document.tables,
                    "lines": document.lines,
                    "errors": document.errors,
                }
            )


class _Format(logging.Formatter):
    converter = staticmethod(time.gmtime)


_LINE = _Format("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")


@contextmanager
def _handled(handler: logging.Handler) -> Iterator[None]:
    """Give the lines of the pipeline and of all libraries to a handler, for a while."""
    root = logging.getLogger()
    levels = root.level, LOG.level
    handler.setFormatter(_LINE)
    root.addHandler(handler)
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        LOG.setLevel(levels[1])
        handler.close()


@contextmanager
def _shown() -> Iterator[None]:
    before = verbose.set(True)
    handler = logging.StreamHandler(sys.stderr)
    # What the pipeline says is on standard error anyway.
    handler.addFilter(lambda line: line.name != LOG.name or line.levelno == logging.DEBUG)
    try:
        with _handled(handler):
            yield
    finally:
        verbose.reset(before)


@contextmanager
def _kept(file: Path) -> Iterator[None]:
    from pipeline.outside import on_this_machine, reached

    with explained(), reached(on_this_machine(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    code: object = 0
    with _handled(handler):
        try:
            yield
        except typer.Exit as end:
            code = end.exit_code
            raise
        except BaseException as error:
            code = type(error).__name__
            raise
        finally:
            LOG.info("aigi ends with exit code %s", code)
