"""The parts of a report: sections of text, tables, charts and galleries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.pages.thumbnails import Place


def counted(number: int) -> str:
    return f"{number:,}"


def share_of(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def floats_of(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The finite values of a column, as float64, shape (n,), in their order."""
    values: NDArray[np.float64] = column.drop_null().cast(pa.float64()).to_numpy()
    return values[np.isfinite(values)]


def named(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def by_reason(counts: Counter[tuple[str, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, reason), count in counts.items():
        found[reason] += count
    return found


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
    """An image with its prompt and a line of facts."""

    place: Place
    text: str
    facts: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images under a heading; a `veiled` gallery is hidden until a reader opens it."""

    title: str
    pictures: Sequence[Shown]
    veiled: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name: its anchor, in letters.
        charts: SVG text, escaped already.
        code: text shown as it is, hidden until a reader opens it.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[str] = ()
    galleries: Sequence[Gallery] = ()
    code: Sequence[tuple[str, str]] = field(default=())
