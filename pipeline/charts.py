"""Numbers in, charts as SVG text out: for pages, and as files of their own.

Legends are below the plot and hide nothing. Lines differ by colour and by dashes, so that they
are told apart in grey and by the colour-blind. Colours are those of the page around (`--c0` …
`--ink`); without a page, those of a white one. matplotlib, which draws the benchmark's figures for
print, cannot do that: its SVG has fixed colours, and ids that collide where two are in one page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.shown import one_line

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 420, 250  # pixels of the plot with its axes, legend not counted
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 30, 42
_LEGEND = 18
BARS = 40
# Okabe and Ito's colours, which the colour-blind tell apart, darkened for a white ground.
_COLOURS = (
    "#0072b2", "#c25400", "#00815e", "#a8507f", "#8a6d00", "#2a7fb0", "#555b66", "#7a3db8",
)  # fmt: skip
_DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 2", "12 3", "2 5", "6 2 2 2 2 2")


@dataclass(frozen=True)
class Line:
    """One line of a chart: points in the order in which they are joined.

    Attributes:
        name: what the legend calls it.
        x, y: float64, shape (N,), finite, in the units of the axes.
    """

    name: str
    x: Floats
    y: Floats


def _colour(number: int) -> str:
    slot = number % len(_COLOURS)
    return f"var(--c{slot},{_COLOURS[slot]})"


def _dash(number: int) -> str:
    # The same colour comes again with other dashes.
    return _DASHES[(number + number // len(_COLOURS)) % len(_DASHES)]


def _number(value: float) -> str:
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between `low` and `high`: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * step for step in (1, 2, 5, 10) if power * step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """A plot area: axes and grid, and where a value is in it."""

    def __init__(
        self, title: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]
    ) -> None:
        self.x, self.y = (_wide(*x), _wide(*y))
        self.parts: list[str] = []
        across, up = labels
        for value in ticks(*self.x):
            place = self.at_x(value)
            self.parts.append(_stroke(place, _TOP, place, HEIGHT - _BOTTOM, "--line,#c9cdd4", 0.5))
            self.parts.append(_text(place, HEIGHT - _BOTTOM + 15, _number(value), "middle"))
        for value in ticks(*self.y):
            place = self.at_y(value)
            self.parts.append(_stroke(_LEFT, place, WIDTH - _RIGHT, place, "--line,#c9cdd4", 0.5))
            self.parts.append(_text(_LEFT - 6, place + 4, _number(value), "end"))
        self.parts.append(_text(WIDTH / 2, 18, title, "middle", 14, bold=True))
        self.parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, across, "middle"))
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        self.parts.append(_text(13, middle, up, "middle", turned=True))

    def at_x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range of some width, also where all values are one."""
    if high > low:
        return low, high
    return low - (abs(low) * 0.05 or 0.5), low + (abs(low) * 0.05 or 0.5)


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:var({colour});stroke-width:{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    size: int = 11,
    bold: bool = False,
    turned: bool = False,
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    weight = ";font-weight:600" if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn} '
        f'style="fill:var(--ink,#16191f);font-size:{size}px{weight}">{html.escape(one_line(text))}</text>'
    )


def _legend(names: Sequence[str], top: float, filled: bool) -> tuple[list[str], float]:
    """Entries in rows below the plot, and where they end."""
    parts, x, y = [], float(_LEFT), top
    for number, name in enumerate(names):
        width = 36 + 6.6 * len(name)
        if x > _LEFT and x + width > WIDTH - _RIGHT:
            x, y = float(_LEFT), y + _LEGEND
        if filled:
            parts.append(
                f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" '
                f'style="fill:{_colour(number)}"/>'
            )
        else:
            parts.append(
                f'<line x1="{x:.1f}" y1="{y - 4:.1f}" x2="{x + 24:.1f}" y2="{y - 4:.1f}" '
                f'style="stroke:{_colour(number)};stroke-width:2;'
                f'stroke-dasharray:{_dash(number) or "none"}"/>'
            )
        parts.append(_text(x + (17 if filled else 29), y, name))
        x += width
    return parts, y + _LEGEND / 2


def _svg(parts: Sequence[str], height: float, said: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{html.escape(one_line(said))}" '
        f'font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def lines(
    title: str, series: Sequence[Line], across: str, up: str, markers: bool = False,
    from_zero: bool = True,
) -> str:  # fmt: skip
    """A chart of lines.

    Args:
        title: above the plot.
        series: at least one, with finite points (float64 of N for each axis).
        across, up: labels of the axes, with their units.
        markers: show the points themselves, for measurements.
        from_zero: let the vertical axis begin at 0.
    """
    x = np.concatenate([line.x for line in series])
    y = np.concatenate([line.y for line in series])
    low = min(0.0, float(y.min())) if from_zero else float(y.min())
    margin = (float(y.max()) - low) * 0.05
    bottom = low if from_zero else low - margin
    beside = (float(x.max()) - float(x.min())) * 0.03 if markers else 0.0  # room for a marker
    frame = _Frame(
        title,
        (float(x.min()) - beside, float(x.max()) + beside),
        (bottom, float(y.max()) + margin),
        (across, up),
    )
    for number, line in enumerate(series):
        points = " ".join(
            f"{frame.at_x(a):.1f},{frame.at_y(b):.1f}"
            for a, b in zip(line.x.tolist(), line.y.tolist(), strict=True)
        )
        frame.parts.append(
            f'<polyline points="{points}" style="fill:none;stroke:{_colour(number)};'
            f'stroke-width:1.8;stroke-dasharray:{_dash(number) or "none"}"/>'
        )
        if markers:
            frame.parts += [
                f'<circle cx="{frame.at_x(a):.1f}" cy="{frame.at_y(b):.1f}" r="3" '
                f'style="fill:{_colour(number)}"/>'
                for a, b in zip(line.x.tolist(), line.y.tolist(), strict=True)
            ]
    legend, bottom = _legend([line.name for line in series], HEIGHT + 12, filled=False)
    said = f"{title}: {up} over {across}, for {', '.join(line.name for line in series)}"
    return _svg([*frame.parts, *legend], bottom, said)


def histogram(
    title: str, values: Floats, across: str, limit: float | None = None, low_goes: bool = True,
    up: str = "images", whole: bool = False,
) -> str:  # fmt: skip
    """A histogram; bars on the side of `limit` that is dropped are coloured, the limit is a line.

    Args:
        title: above the plot.
        values: float64 of N, at least one, finite.
        across: what they are, as the label of the axis.
        limit: a threshold; values below it are dropped, or above it where not `low_goes`.
        up: what is counted.
        whole: values are whole numbers, which bars do not cut.
    """
    ends = [float(values.min()), float(values.max()), *([] if limit is None else [limit])]
    low, high = _wide(min(ends), max(ends))
    edges = np.linspace(low, high, BARS + 1)
    if whole:
        step = max(1, math.ceil((high - low + 1) / BARS))
        edges = np.arange(math.floor(low) - 0.5, high + step + 0.5, step)
    elif limit is not None:  # a bar lies on one side of the limit
        # Never the first or the last edge, which would leave values out.
        edges[min(max(int(np.abs(edges - limit).argmin()), 1), BARS - 1)] = limit
    counts, _ = np.histogram(values, edges)
    frame = _Frame(
        title, (float(edges[0]), float(edges[-1])), (0.0, float(counts.max()) * 1.05), (across, up)
    )
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if not count:
            continue
        middle = (left + right) / 2
        gone = limit is not None and (middle < limit if low_goes else middle > limit)
        colour = "--drop,#b3261e" if gone else "--c0,#0072b2"
        x, top = frame.at_x(left), frame.at_y(count)
        width = max(frame.at_x(right) - x - 0.6, 0.6)
        frame.parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - _BOTTOM - top:.1f}" style="fill:var({colour})"/>'
        )
    said = (
        f"{title}: histogram of {len(values):,} {up} from {_number(values.min())} "
        f"to {_number(values.max())}"
    )
    if limit is not None:
        place = frame.at_x(limit)
        frame.parts.append(_stroke(place, _TOP, place, HEIGHT - _BOTTOM, "--ink,#16191f", 1.5))
        beyond = int((values < limit).sum() if low_goes else (values > limit).sum())
        told = f"threshold {_number(limit)}: {beyond:,} {'below' if low_goes else 'above'} it"
        said += f"; {told}"
        frame.parts.append(_text(_LEFT, HEIGHT + 12, told))
    return _svg(frame.parts, HEIGHT + (20 if limit is not None else 0), said)


def ring(title: str, shares: Mapping[str, float]) -> str:
    """A ring of shares that sum to 1, clockwise from the top; each is named with its percentage."""
    middle, radius, width = WIDTH / 2, 82.0, 44.0
    height = HEIGHT + 20
    centre = height / 2 + 14
    parts = [_text(middle, 18, title, "middle", 14, bold=True)]
    turn = 0.0
    around = 2 * math.pi * radius
    gap = 1.5 if len(shares) > 1 else 0.0  # pixels, so that neighbours part without colour too
    for number, share in enumerate(shares.values()):
        # A dash as long as the share, on a circle that is turned to where it begins.
        parts.append(
            f'<circle cx="{middle}" cy="{centre}" r="{radius}" '
            f'transform="rotate({turn * 360 - 90:.3f} {middle} {centre})" '
            f'style="fill:none;stroke:{_colour(number)};stroke-width:{width};'
            f'stroke-dasharray:{max(share * around - gap, 0):.3f} {around:.3f}"/>'
        )
        if share > 0.03:  # smaller ones would lie over one another; the legend has them all
            angle = 2 * math.pi * (turn + share / 2)
            x, y = middle + 126 * math.sin(angle), centre - 118 * math.cos(angle)
            parts.append(_text(x, y + 4, f"{share:.1%}", "middle"))
        turn += share
    names = [f"{name} {share:.1%}" for name, share in shares.items()]
    legend, bottom = _legend(names, height + 28, filled=True)
    return _svg([*parts, *legend], bottom, f"{title}: {', '.join(names)}")
