"""Logs of training in, the report's section about them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.charts import Line, lines
from pipeline.pages.section import Section, Table
from pipeline.progress import duration
from pipeline.training.logs import Log

POINTS = 300  # of a line
_CHARTS = {"bpp": "bits a pixel", "psnr": "PSNR (RGB), dB", "loss": "loss"}
_RATES = (
    ("lambda", "λ", ".4g"), ("loss", "J", ".4g"), ("y_bpp", "bpp of y", ".4f"),
    ("z_bpp", "bpp of z", ".4f"), ("psnr", "PSNR, dB", ".2f"),
    ("calibration", "calibration", ".3f"), ("gradient_norm", "gradient norm", ".3g"),
)  # fmt: skip


def _line(name: str, log: Sequence[dict[str, float]], column: str) -> Line:
    """A column of a log over its steps: means of at most POINTS stretches."""
    rows = [(row["step"], row[column]) for row in log if column in row]
    points = np.array([row for row in rows if np.isfinite(row).all()]).reshape(-1, 2)
    parts = np.array_split(points, min(POINTS, len(points))) if len(points) else []
    x, y = (np.array([part[:, axis].mean() for part in parts]) for axis in range(2))
    return Line(name, x, y)


def _rates(logs: Sequence[Log]) -> list[Table]:
    """What makes up the loss of each λ, from the last row of each."""
    rows = []
    for log in logs:
        for name, found in log.by_quality(log.rates).items():
            last = found[-1]
            cells = [f"{last[key]:{form}}" if key in last else "" for key, _, form in _RATES]
            rows.append((name, f"{last['step']:,.0f}", *cells))
    headings = ("codec", "step", *(words for _, words, _ in _RATES))
    caption = "Training at each λ; calibration is the mean of (residual / scale)²"
    return [Table(caption, headings, rows, len(headings) - 1)] if rows else []


def training(logs: Sequence[Log]) -> Section:
    """Curves of rate, quality and loss by step, and the last validation of each codec."""
    charts = []
    for column, words in _CHARTS.items():
        series = [_line(log.name, log.curve, column) for log in logs]
        if any(len(line.x) for line in series):
            charts.append(lines(f"Training: {words}", series, "step", words, from_zero=False))
    # The losses of one network at its own rates; curve.csv has only their mean.
    series = [
        _line(name, rows, "loss")
        for log in logs
        if len(found := log.by_quality(log.rates)) > 1
        for name, rows in found.items()
    ]
    if any(len(line.x) for line in series):
        charts.append(lines("Training: loss of each λ", series, "step", "loss", from_zero=False))
    rows = []
    for log in logs:
        for name, validation in log.by_quality(log.validation).items():
            last = validation[-1]
            best = min(validation, key=lambda row: row["loss"])
            cells = [
                f"{last[column]:{form}}" if column in last else ""
                for column, form in (
                    ("pictures", ".0f"), ("bpp", ".4f"), ("bpp_without_prompt", ".4f"),
                    ("psnr", ".2f"), ("ms_ssim", ".4f"), ("loss", ".4g"),
                )
            ]  # fmt: skip
            rows.append((name, f"{last['step']:,.0f}", *cells, f"{best['step']:,.0f}"))
    tables = [
        Table(
            "Progress of each codec",
            ("codec", "step", "time"),
            [(log.name, log.progress, duration(log.seconds)) for log in logs],
            2,
        )
    ]
    headings = ("codec", "step", "images", "bpp", "without prompt", "PSNR, dB", "MS-SSIM")
    if rows:
        tables.append(
            Table("Last validation with real files", (*headings, "loss", "best at step"), rows, 8)
        )
    tables += _rates(logs)
    return Section(
        "training",
        "Training",
        [
            "The curves come from random crops and estimated rates; validation codes whole images "
            "to real files. Losses of different λ cannot be compared."
        ],
        tables,
        charts,
    )
