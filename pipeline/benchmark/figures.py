"""Curves and comparisons in, figures out as PNG and SVG that read well in print."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.benchmark.bd import Curve
from pipeline.benchmark.metrics import METRICS
from pipeline.benchmark.rates import Comparison, Curves
from pipeline.markdown import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; black for the anchor.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^vP*X<>"
DASHES = ("-", "--", ":")
SETTINGS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "aigi",  # the same figure has the same bytes
}


def literal(text: str) -> str:
    """Text that matplotlib draws as it is, in one line: no formula between dollar signs."""
    return plain(text).replace("$", r"\$")


def style(label: str, order: Sequence[str]) -> dict[str, Any]:
    """Colour, marker and dash of a codec, the same in every figure."""
    index = order.index(label)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "markersize": 4,
        "linewidth": 1.3,
    }


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as `png` (200 dots an inch) and `svg`, without a date."""
    import matplotlib

    made = {}
    with matplotlib.rc_context(SETTINGS):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=200, metadata=metadata)
            made[kind] = out.getvalue()
    return made


def rate_distortion(
    title: str,
    curves: Mapping[str, Curves],
    metric: str,
    published: Mapping[str, Curve],
    order: Sequence[str],
) -> Figure:
    """Quality over bits a pixel, a line a codec; published curves are thin lines behind them."""
    figure, (axes,) = _figure(5.2, 3.9)
    for curve in published.values():
        axes.plot(curve.rates, curve.values, color="#aaaaaa", linewidth=0.7, zorder=1)
    drawn = []
    for label, found in curves.items():
        curve = found.curve(metric)
        if not np.isfinite(curve.values).all():
            continue  # pictures too small for it
        axes.plot(curve.rates, curve.values, label=literal(label), zorder=3, **style(label, order))
        drawn.append(max(curve.rates))
    _name_ends(axes, published)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(METRICS[metric].axis)
    axes.set_title(literal(title), fontsize=9)
    if drawn:
        axes.legend(fontsize=7, loc="lower right", frameon=False)
    return figure


def _name_ends(axes: Axes, published: Mapping[str, Curve]) -> None:
    """Names of published curves in a column right of their ends, in the order of these."""
    if not published:
        return
    bottom, top = axes.get_ylim()
    x = max(max(curve.rates) for curve in published.values())
    at = -np.inf
    for name, curve in sorted(published.items(), key=lambda item: item[1].values[-1]):
        at = max(curve.values[-1], at + 0.022 * (top - bottom))
        axes.annotate(
            name,
            (x, at),
            (3, 0),
            textcoords="offset points",
            fontsize=5,
            color="#777777",
            va="center",
        )


def watermark(
    title: str, curves: Mapping[str, Curves], original: float | None, order: Sequence[str]
) -> Figure:
    """Share of a mark's bits that is read rightly over bits a pixel, a line a codec.

    Args:
        original: the share before any codec.
    """
    figure, (axes,) = _figure(5.2, 3.9)
    marks = [(0.5, "by chance")] + ([] if original is None else [(original, "before any codec")])
    for share, words in marks:
        axes.axhline(share, color="#777777", linewidth=0.8, linestyle="--", zorder=1)
        axes.annotate(
            words,
            (1, share),
            (0, 2),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            fontsize=6,
            color="#777777",
            ha="right",
        )
    for label, found in curves.items():
        if "watermark_accuracy" in found.values:
            curve = found.curve("watermark_accuracy")
            axes.plot(
                curve.rates, curve.values, label=literal(label), zorder=3, **style(label, order)
            )
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel("share of bits read rightly")
    axes.set_title(literal(title), fontsize=9)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def bars(
    title: str, comparisons: Mapping[str, Mapping[str, Comparison]], order: Sequence[str]
) -> Figure:
    """BD-rate of every codec, a block of bars a source, with the interval over images."""
    groups = list(comparisons)
    shown = [
        label
        for label in order
        if any(label in found and found[label].rate for found in comparisons.values())
    ]
    figure, (axes,) = _figure(max(4.5, 0.22 * len(groups) * (len(shown) + 1.5) + 2.0), 3.6)
    width = 0.8 / max(len(shown), 1)
    for label in shown:
        place, name = shown.index(label), literal(label)
        for at, group in enumerate(groups):
            found = comparisons[group].get(label)
            if found is None or found.rate is None:
                continue
            x = at + (place - (len(shown) - 1) / 2) * width
            axes.bar(
                x,
                found.rate.value,
                width * 0.92,
                color=style(label, order)["color"],
                label=name if name not in axes.get_legend_handles_labels()[1] else None,
            )
            if found.interval is not None:
                axes.plot([x, x], [found.interval.low, found.interval.high], "#444444", lw=0.9)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [literal(group) for group in groups])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("BD-rate, %")
    axes.set_title(literal(title), fontsize=9)
    if shown:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def rate_time(
    title: str,
    curves: Mapping[str, Curves],
    comparisons: Mapping[str, Comparison],
    anchor: str,
    order: Sequence[str],
) -> Figure:
    """BD-rate over seconds a megapixel, to code on the left and to decode on the right."""
    figure, both = _figure(7.2, 3.4, columns=2)
    for axes, name, field in zip(
        both, ("encode", "decode"), ("encode_s_per_mp", "decode_s_per_mp"), strict=True
    ):
        for label, found in curves.items():
            compared = comparisons.get(label)
            rate = compared.rate.value if compared and compared.rate else None
            if label == anchor:
                rate = 0.0
            if rate is None:
                continue
            x = float(np.median(getattr(found, field)))
            point = {key: style(label, order)[key] for key in ("color", "marker")}
            axes.plot([x], [rate], linestyle="none", markersize=6, **point)
            axes.annotate(
                literal(label), (x, rate), xytext=(5, 4), textcoords="offset points", fontsize=7
            )
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.12)
        axes.set_xlabel(f"seconds a megapixel to {name}")
        axes.axhline(0, color="black", linewidth=0.6)
    both[0].set_ylabel(f"BD-rate against {literal(anchor)}, %")
    figure.suptitle(literal(title), fontsize=9)
    return figure
