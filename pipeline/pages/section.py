"""What a report is made of: sections of text, tables, charts and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.pages.thumbnails import Place


@dataclass(frozen=True)
class Table:
    """A table; the last `right` columns hold numbers.

    Attributes:
        shares: for a bar in front of each row, 0 to 1; empty: no bars.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: int = 0
    shares: Sequence[float] = ()


@dataclass(frozen=True)
class Shown:
    """A picture with its prompt and a line of facts."""

    place: Place
    text: str
    facts: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading; `veiled` ones are folded away until somebody asks for them."""

    title: str
    pictures: Sequence[Shown]
    veiled: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name: its anchor, in letters.
        charts: SVG text, escaped already.
        code: text shown as it is, folded away.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[str] = ()
    galleries: Sequence[Gallery] = ()
    code: Sequence[tuple[str, str]] = field(default=())
