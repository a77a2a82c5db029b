"""Measured numbers in, cells of the report's tables out: means, decibels, short labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.benchmark.bd import Array
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


def decibels(values: Sequence[float], i: int) -> str:
    return f"{values[i]:.3f}" if np.isfinite(values[i]) else "-"


def content_of(column: str, means: Mapping[str, Any], i: int) -> str:
    if column not in means:
        return "-"
    value = means[column][i]
    if column == "clip_score_change":
        return f"{value:+.4f}"
    return f"{value:.3f}" if column == "watermark_accuracy" else f"{value:.4f}"


def given_of(rows: Iterable[Mapping[str, Any]], column: str) -> list[float]:
    """The values that are not null."""
    return [row[column] for row in rows if row[column] is not None]


def means_of(values: Array) -> list[float | None]:
    """Means over the pictures that have numbers throughout; None, which JSON has, without any."""
    whole = values[np.isfinite(values).all(1)]
    return whole.mean(0).tolist() if len(whole) else [None] * values.shape[1]
