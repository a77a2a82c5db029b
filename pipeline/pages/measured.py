"""Characteristics, alignments and measurements of a run in, sections of its report out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analysis.best import attributes, best, unmarked
from pipeline.analysis.plots import MOST, figures
from pipeline.benchmark.metrics import METRICS, shown
from pipeline.benchmark.rates import BD_RATES, FOLDER, REPORTED, curves
from pipeline.charts import Line, lines, ring
from pipeline.pages.section import Section, Table
from pipeline.store import Store

_TITLES = {"texture": "Texture", "color": "Colour", "compressibility": "Compressibility"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def characteristics(table: pa.Table, effects: pa.Table | None) -> list[Section]:
    """A section for each figure, and one of the effect sizes."""
    failed = table.num_rows - table["error"].null_count
    text = (
        "The charts show densities by source, from the lowest half per cent of any source to the "
        f"highest. The number of images is in brackets; at most {MOST:,} of them are used. Images "
        "with a watermark are left out" + (f", and {failed:,} without numbers." if failed else ".")
    )
    sections = [
        Section(name, _TITLES[name], [] if number else [text], charts=charts)
        for number, (name, charts) in enumerate(figures(table).items())
    ]
    if effects is not None and effects.num_rows:
        rows = effects.to_pylist()
        rows.sort(key=lambda row: -abs(row["cliffs_delta"]))
        against = rows[0]["against"]
        sections.append(
            Section(
                "effects",
                "How sources differ",
                [
                    f"Each source is compared with {against or 'all others'}, the largest effect "
                    "first. Cliff's delta is the chance that an image of the source has the higher "
                    "value minus the chance that it has the lower one; d is Cohen's d; KS is the "
                    "two-sample Kolmogorov-Smirnov statistic, and its p-value is adjusted for all "
                    "rows (Benjamini and Hochberg). Images of one prompt are not independent, and "
                    "with many images every difference has a small p-value: look at the effect "
                    "sizes."
                ],
                [
                    Table(
                        "Effect sizes",
                        ("characteristic", "source", "images", "mean", "against", "delta", "d",
                         "KS", "p"),
                        [
                            (
                                row["characteristic"],
                                row["source"],
                                f"{row['images']:,} / {row['images_against']:,}",
                                _number(row["mean"]),
                                _number(row["mean_against"]),
                                f"{row['cliffs_delta']:+.2f}",
                                "" if row["cohens_d"] is None else f"{row['cohens_d']:+.2f}",
                                f"{row['ks']:.2f}",
                                f"{row['p_adjusted']:.2g}",
                            )
                            for row in rows
                        ],
                        7,
                    )
                ],
            )
        )  # fmt: skip
    return sections


def alignments(table: pa.Table) -> Section:
    """The shares of prompts for which each source is best, and of attributes that are right."""
    rings = best(table)
    text = [
        "The rings show the share of prompts for which the images of a source have the highest "
        "mean score, among prompts for which every source here has an image. Images with a "
        "watermark are left out."
    ]
    for name, found in rings.items():
        left = f"; without {', '.join(found.left_out)}, which share no prompt" * bool(
            found.left_out
        )
        text.append(f"{name}: {found.prompts:,} prompts{left}.")
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in unmarked(table).select(["source", "scores"]).to_pylist():
        for name, score in row["scores"] or ():
            scores[name, row["source"]].append(score)
    tables = [
        Table(
            "Scores of image and prompt",
            ("score", "source", "images", "5 %", "median", "95 %"),
            [
                (
                    *key,
                    f"{len(values):,}",
                    *(_number(float(q)) for q in np.quantile(values, (0.05, 0.5, 0.95))),
                )
                for key, values in sorted(scores.items())
            ],
            4,
        )
    ]
    right = attributes(table)
    if right:
        tables.append(
            Table(
                "Attributes: images that match the word of their prompt best of all words",
                ("attribute", "source", "right", "share"),
                [
                    (*key, f"{good:,} of {total:,}", f"{good / total:.1%}")
                    for key, (good, total) in right.items()
                ],
                2,
            )
        )
    charts = [ring(f"{name}: best source", found.shares) for name, found in rings.items()]
    return Section("alignment", "Alignment", text if rings else [], tables, charts)


def rate_distortion(table: pa.Table, bd_rates: Sequence[Mapping[str, str]]) -> Section:
    """RD curves and BD-rates by source, as on the benchmark's own page.

    Args:
        table: rows of MEASUREMENTS.
        bd_rates: rows of the benchmark's `bd-rates.csv`; empty: there is no such table.
    """
    labels = sorted(pc.unique(table["codec"]).to_pylist())
    found = curves(table, labels)
    charts = []
    for group, codecs in found.items():
        for metric in shown(table.column_names):
            if metric.db is None:
                continue
            series = []
            for label in labels:  # all of them, so that a codec looks the same in every chart
                made = codecs.get(label)
                curve = None if made is None else made.curve(metric.name)
                if curve is None or not np.isfinite(curve.values).all():
                    series.append(Line(f"{label} (none)", np.empty(0), np.empty(0)))
                else:
                    series.append(Line(label, np.array(curve.rates), np.array(curve.values)))
            if any(len(line.x) for line in series):
                title = f"{group}: {metric.title}"
                charts.append(
                    lines(title, series, "bits a pixel", metric.axis, markers=True, from_zero=False)
                )
    failed = table.num_rows - table["error"].null_count
    pictures = len({row["image_id"] for row in table.select(["image_id"]).to_pylist()})
    text = [
        f"There are {table.num_rows:,} measurements of {pictures:,} images"
        + (f", of which {failed:,} failed" if failed else "")
        + ". A point is the mean over the images of a source that the codec coded at every "
        "quality. MS-SSIM is averaged before it is converted to dB. BD-rates below 0 mean fewer "
        "bits at equal quality; the 95 % interval over images is in brackets."
    ]
    text += [
        f"No BD-rate of {row['codec']}, {row['source']}, {METRICS[row['metric']].axis}: "
        f"{row['reason']}."
        for row in bd_rates
        if row["reason"]
    ]
    return Section("codecs", "Codecs", text, _bd_rates(bd_rates), charts)


def _bd_rates(rows: Sequence[Mapping[str, str]]) -> list[Table]:
    """One table: a row for each source and codec, a column for each metric."""
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        cells[row["source"], row["codec"]][row["metric"]] = _per_cent(row)
    if not cells:
        return []
    metrics = [metric for metric in METRICS if any(metric in found for found in cells.values())]
    return [
        Table(
            f"BD-rate against {rows[0]['anchor']}, %",
            ("source", "codec", *(f"by {METRICS[name].title}" for name in metrics)),
            [
                (*key, *(found.get(metric, "") for metric in metrics))
                for key, found in cells.items()
            ],
            len(metrics),
        )
    ]


def _per_cent(row: Mapping[str, str]) -> str:
    if not row["bd_rate"]:
        return "none"
    interval = f" [{float(row['low']):+.1f}, {float(row['high']):+.1f}]" if row["low"] else ""
    return f"{float(row['bd_rate']):+.1f}{interval}"


def measured(store: Store) -> list[Section]:
    """The sections that the run has tables for."""
    sections: list[Section] = []
    if store.shards("characteristics"):
        effects = store.read_all("effects") if store.shards("effects") else None
        sections += characteristics(store.read_all("characteristics"), effects)
    if store.shards("alignments"):
        sections.append(alignments(store.read_all("alignments")))
    if store.shards("measurements"):
        rates = store.read_csv(FOLDER, BD_RATES)
        # Beside what the report is of, the table may hold what was asked for before.
        reported = store.rows(FOLDER, REPORTED) is not None
        table = store.read(FOLDER, REPORTED) if reported else store.read_all("measurements")
        sections.append(rate_distortion(table, rates))
    return sections
