"""Charts are well-formed, say their numbers in words, and hide nothing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.charts import HEIGHT, WIDTH, Line, histogram, lines, ring, ticks

SVG = "{http://www.w3.org/2000/svg}"
Finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(Finite, st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    slack = 1e-6 * width
    assert all(low - slack <= value <= high + slack for value in found)
    step = found[1] - found[0]
    digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(digits - nice) for nice in (1, 2, 5, 10)) < 1e-3


@given(st.lists(Finite, min_size=1, max_size=40), st.none() | Finite, st.booleans(), st.booleans())
def test_histograms_count_every_value(
    values: list[float], limit: float | None, low: bool, whole: bool
) -> None:
    numbers = np.round(values) if whole else np.array(values)
    chart = ET.fromstring(
        histogram("a < b", numbers, "x", limit, low, whole=whole and limit is None)
    )
    said = chart.get("aria-label") or ""
    assert said.startswith(f"a < b: histogram of {len(values):,} images")
    if limit is not None:
        beyond = sum(value < limit if low else value > limit for value in numbers.tolist())
        assert f": {beyond:,} {'below' if low else 'above'} it" in said
    lines_of = [line for line in chart.iter(f"{SVG}line") if ":1.5" in (line.get("style") or "")]
    bars = list(chart.iter(f"{SVG}rect"))
    if limit is not None:
        place = float(lines_of[0].get("x1", "nan"))
        for bar in bars:  # the limit cuts none, and the colours change there
            left, width = float(bar.get("x", "nan")), float(bar.get("width", "nan"))
            gone = "--drop" in (bar.get("style") or "")
            assert left + width <= place + 0.7 if gone == low else left >= place - 0.7
    for bar in bars:
        left, width = float(bar.get("x", "nan")), float(bar.get("width", "nan"))
        assert left >= 0 and left + width <= WIDTH and width > 0
        top, height = float(bar.get("y", "nan")), float(bar.get("height", "nan"))
        assert top >= 0 and height >= 0 and top + height <= HEIGHT


def test_a_limit_near_the_end_leaves_no_value_out() -> None:
    for limit in (0.0, 0.002, 0.998, 1.0):
        chart = ET.fromstring(histogram("t", np.array([0.0, 0.001, 0.5, 0.999, 1.0]), "x", limit))
        heights = [float(bar.get("height", "0")) for bar in chart.iter(f"{SVG}rect")]
        highest = max(heights)
        # The highest bar counts one value or two.
        assert 5 in {round(sum(heights) / highest * most) for most in (1, 2)}, limit


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    chart = histogram("t", np.repeat([1.0, 2.0, 3.0], [1, 4, 2]), "x", up="prompts", whole=True)
    heights = [float(bar.get("height", "0")) for bar in ET.fromstring(chart).iter(f"{SVG}rect")]
    assert heights == pytest.approx([heights[1] / 4, heights[1], heights[1] / 2], abs=0.15)


def test_text_is_escaped() -> None:
    bad = "<script>&\"'"
    for chart in (
        lines(bad, [Line(bad, np.arange(2.0), np.arange(2.0))], bad, bad),
        histogram(bad, np.arange(3.0), bad),
        ring(bad, {bad: 1.0}),
    ):
        root = ET.fromstring(chart)
        assert "<script" not in chart
        assert bad in {item.text for item in root.iter(f"{SVG}text")}


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_rings_close(parts: list[float]) -> None:
    shares = {f"s{i}": part / sum(parts) for i, part in enumerate(parts)}
    root = ET.fromstring(ring("t", shares))
    arcs = list(root.iter(f"{SVG}circle"))
    turns = [float(re.findall(r"rotate\((\S+)", arc.get("transform", ""))[0]) for arc in arcs]
    assert turns[0] == -90 and len(arcs) == len(shares)
    lengths = [float(re.findall(r"dasharray:(\S+)", arc.get("style", ""))[0]) for arc in arcs]
    gaps = 1.5 * (len(arcs) > 1)
    around = 2 * math.pi * 82
    begins = np.cumsum([0.0, *shares.values()])[:-1]
    assert turns == pytest.approx((begins * 360 - 90).tolist(), abs=0.01)
    wanted = [max(share * around - gaps, 0) for share in shares.values()]
    assert lengths == pytest.approx(wanted, abs=0.01)
    texts = {item.text for item in root.iter(f"{SVG}text")}
    assert all(f"{name} {share:.1%}" in texts for name, share in shares.items())
