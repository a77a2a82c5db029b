"""Measurements in, Markdown tables and JSON-ready dictionaries out; and what machine it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Measurement:
    """Our figure beside that of a peer, taken in the same run.

    Attributes:
        what: what was measured.
        unit: of both figures, for example `images/s`.
        peer: None where there is nothing to compare with.
        target: in words; empty where there is none.
        met: None where there is no target.
        detail: what it takes to judge the figures: sizes, single runs, seconds.
    """

    what: str
    unit: str
    ours: float
    peer: float | None = None
    target: str = ""
    met: bool | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Our figure over the peer's."""
        return None if not self.peer else self.ours / self.peer

    def to_json(self) -> dict[str, Any]:
        """The fields and the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def peak_gib() -> float:
    """Peak resident memory of this process so far, as the kernel counts it (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / GIB


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, versions and date."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except FileNotFoundError:  # not Linux
        found = None
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        # Near the number of cores before a benchmark starts, others work here: measure again.
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.date.today().isoformat(),
    }


def machine_line(found: dict[str, Any]) -> str:
    """One line of `machine()` for people."""
    return (
        f"Machine: {found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, "
        f"load {found['load']} at the start, Python {found['python']}, "
        f"torch {found['torch']}, {found['date']}"
    )


def number(value: float | None) -> str:
    """Three significant digits, thousands apart; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand in line in plain text as well."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in ruled
    )


def table(measurements: Sequence[Measurement]) -> str:
    """The table of a benchmark: our figure, the peer's, the ratio, the target, the verdict."""
    verdict = {True: "met", False: "NOT MET", None: ""}
    return markdown(
        ["", "unit", "ours", "peer", "ratio", "target", ""],
        [
            [
                m.what,
                m.unit,
                number(m.ours),
                number(m.peer),
                number(m.ratio),
                m.target,
                verdict[m.met],
            ]
            for m in measurements
        ],
    )
