"""The text of a workflow in, its file out; never over one that a person has edited.

The last line of a file has the hash of all before it, so that the command that wrote it knows its
own work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import AigiError
from pipeline.files import write_file
from pipeline.outside import reached

_TEMPLATES = Path(__file__).parent / "templates"
_MARK = "# Written by aigi; unedited as long as this is its hash: "


def filled(template: str, values: Mapping[str, Any]) -> str:
    """A template (`templates/`) with values in it, each written as YAML on one line.

    Raises:
        jinja2.UndefinedError: a value is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    room = Environment(  # YAML, where nothing is to be escaped as in HTML
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_yaml,
    )
    return room.get_template(template).render(values)


class Comment(str):
    """A text for a comment: one line, and not written as YAML."""

    def __new__(cls, text: str) -> Comment:
        seen = "".join(char if char.isprintable() else " " for char in text)
        return super().__new__(cls, " ".join(seen.split()))


def _yaml(value: object) -> str:
    if isinstance(value, Comment):
        return str(value)
    text = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def from_file(place: str, file: Path) -> str:
    """How a workflow file names a place: from its own folder where both are below this one."""
    if "://" in place:
        return place
    path, here = Path(place).resolve(), Path.cwd()
    if path.is_relative_to(here) and file.resolve().is_relative_to(here):
        return os.path.relpath(path, file.resolve().parent)
    return str(path)


def _marked(text: str) -> str:
    return f"{text}{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def write(file: Path, text: str, over: bool) -> None:
    """Write a workflow file.

    Args:
        over: in place of one that was written so, and that nobody has edited since.

    Raises:
        AigiError: there is another file, or one that was edited.
    """
    with reached(str(file)):
        if file.exists():
            before = file.read_text(encoding="utf-8", errors="replace")
            if before == _marked(text):
                return
            mine = before == _marked(before.rpartition(_MARK)[0])
            if not over or not mine:
                why = "edited since aigi wrote it" if over else "there already"
                raise AigiError(
                    f"{file}: {why}, so it stays as it is. Run it: `aigi run {file}`; "
                    "or give another name."
                )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, _marked(text).encode())
