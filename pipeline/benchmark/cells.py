"""Measured numbers in, cells of the report's tables out, and short names of files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from pipeline.benchmark.metrics import METRICS
from pipeline.benchmark.rates import Comparison


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name of letters, digits and dashes for each name, no two alike in any case."""
    short = {name: re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") for name in names}
    alike = Counter(made.lower() for made in short.values())
    return {
        name: made
        if made and alike[made.lower()] == 1
        else f"{made}-{sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
        for name, made in short.items()
    }


def kind_of(error: str) -> str:
    """The first line of an error, without the addresses that programs print: alike for alike."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x…", error.partition("\n")[0])


def cell_of(found: Comparison | None) -> str:
    if found is None or found.rate is None:
        return "-"
    text = f"{found.rate.value:+.1f}"
    if found.interval is not None:
        text += f" [{found.interval.low:+.1f}, {found.interval.high:+.1f}]"
    return text


def shortened(value: float | None) -> str:
    """Three significant digits; empty for None."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float, form: str) -> str:
    """As the form says; a dash for what is no number."""
    return f"{value:{form}}" if math.isfinite(value) else "-"


def listed(values: Iterable[float]) -> list[float | None]:
    """As JSON has them: None for what is no number."""
    return [value if math.isfinite(value) else None for value in values]


def tile_lines(row: Mapping[str, Any]) -> list[str]:
    """What stands below a codec's tile: its rate with the first metric, and each other one."""
    first, *others = (
        "" if row[metric.name] is None else metric.caption.format(row[metric.name])
        for metric in METRICS.values()
        if metric.caption
    )
    return [f"{row['bpp']:.3f} bpp, {first}", *others]
