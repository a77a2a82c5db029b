"""Any text in, Markdown that shows exactly this text, and nothing else, out.

Prompts, titles and file names come from outside. Whatever they hold, a cell stays one cell and a
line stays one line. Characters that Markdown, HTML or a Hub's renderer could act on become
character references, which every renderer shows as they were; a backslash would mean something
to those that know formulas.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NewType

Safe = NewType("Safe", str)
"""Markdown that stands in one line and one table cell; the type says that somebody saw to it."""

# Marks that turn the direction of text, and the byte order mark: they could reorder a whole line.
_TURNS = {0x061C, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ACTS = re.compile(r"[!#$&*:<>@\[\\\]_`|~]|(?<=www)\.", re.IGNORECASE)
# At the start of a line only: lists, rules and headings by underlining.
_STARTS = re.compile(r"[-+=]|\d{1,9}[.)](?=\s|$)")


def _valid(text: str) -> str:
    """Valid Unicode; a control character is a space, and turning marks are gone."""
    whole = text.encode("utf-8", "replace").decode()  # half a surrogate pair fits in no file
    return "".join(
        " " if unicodedata.category(char) == "Cc" else char
        for char in whole
        if ord(char) not in _TURNS
    )


def plain(text: str) -> str:
    """The text in one line, every run of white space one space, none at the ends."""
    return " ".join(_valid(text).split())


def _reference(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def escape(text: object) -> Safe:
    """Markdown that shows `plain(str(text))`: in a paragraph, a heading, a cell or a caption."""
    shown = _ACTS.sub(_reference, plain(str(text)))
    start = _STARTS.match(shown)
    if start is not None:
        at = start.end() - 1
        shown = f"{shown[:at]}&#{ord(shown[at])};{shown[start.end() :]}"
    return Safe(shown)


def code(name: str) -> Safe:
    """A name in code style; for names of our own, which hold letters, digits and `-._/*` alone."""
    if not re.fullmatch(r"[\w.*/-]+", name, re.ASCII):
        raise ValueError(f"{name!r} is no plain name")
    return Safe(f"`{name}`")


def number(value: int) -> Safe:
    """A count, with commas."""
    return Safe(f"{value:,}")


def link(text: str, url: str | None) -> Safe:
    """A link; without an address the text alone. The address is one that was checked."""
    return escape(text) if url is None else Safe(f"[{escape(text)}](<{url}>)")


def table(headings: Sequence[Safe], rows: Iterable[Sequence[Safe]], right: int = 0) -> list[str]:
    """Lines of a table; the last `right` columns hold numbers.

    Raises:
        ValueError: a row has another length than the headings.
    """
    marks = [Safe("---")] * (len(headings) - right) + [Safe("---:")] * right
    lines = []
    for cells in (headings, marks, *rows):
        if len(cells) != len(headings):
            raise ValueError(f"{len(cells)} cells in a table of {len(headings)} columns: {cells}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def fence(text: str, language: str = "") -> list[str]:
    """Lines of a code block that shows the text; its fence is longer than any run inside."""
    lines = [_valid(line.expandtabs(4)).rstrip() for line in text.strip("\r\n").splitlines()]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    mark = "`" * max(3, longest + 1)
    return [mark + language, *lines, mark]
