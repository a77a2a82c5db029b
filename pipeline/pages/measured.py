"""Characteristics, alignments and measurements of a run in, sections of its report out."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analysis.best import attributes, best, unmarked
from pipeline.analysis.plots import MOST, figures
from pipeline.charts import Line, lines, ring
from pipeline.pages.section import Section, Table
from pipeline.tables import Store

_TITLES = {"texture": "Texture", "color": "Colour", "compressibility": "Compressibility"}
_METRICS = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def characteristics(table: pa.Table, effects: pa.Table | None) -> list[Section]:
    """A section for each figure, and one of the effect sizes."""
    failed = table.num_rows - table["error"].null_count
    text = (
        "Densities by source, over the range from the lowest half per cent of any source to the "
        f"highest; in brackets the number of images, of which at most {MOST:,} are drawn. Pictures "
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
                    f"Each source beside {against or 'all others'}, the largest effect first. "
                    "Cliff's delta is the chance that a picture of the source has the higher value "
                    "less the chance of the lower one; d is Cohen's; KS is the two-sample "
                    "Kolmogorov-Smirnov statistic, its p-value adjusted for all rows (Benjamini "
                    "and Hochberg). Pictures of one prompt are not independent, and with many "
                    "pictures every difference has a small p-value: look at the effect sizes."
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
    """Rings of the best source, and attributes that are right."""
    rings = best(table)
    text = [
        "Of prompts of which every source here has a picture, the share for which each source's "
        "pictures have the highest mean score. Pictures with a watermark are left out."
    ]
    for name, found in rings.items():
        left = f"; without {', '.join(found.left_out)}, which share none" * bool(found.left_out)
        text.append(f"{name}: {found.prompts:,} prompts{left}.")
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in unmarked(table).select(["source", "scores"]).to_pylist():
        for name, score in row["scores"] or ():
            scores[name, row["source"]].append(score)
    tables = [
        Table(
            "Scores of picture and prompt",
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
                "Attributes: pictures that suit the word of their prompt best of all words",
                ("attribute", "source", "right of all", "share"),
                [
                    (*key, f"{good:,} of {total:,}", f"{good / total:.1%}")
                    for key, (good, total) in right.items()
                ],
                2,
            )
        )
    charts = [ring(f"{name}: best source", found.shares) for name, found in rings.items()]
    return Section("alignment", "Alignment", text if rings else [], tables, charts)


def rate_distortion(table: pa.Table, bd_rates: Sequence[Table]) -> Section:
    """RD curves of every source, a line for each codec, and BD-rates.

    A point is the mean over the pictures of a source at one quality.
    """
    good = table.filter(pc.is_null(table["error"])) if "error" in table.column_names else table
    keys = ["source", "codec", "quality"]
    means = good.group_by(keys, use_threads=False).aggregate(
        [*((name, "mean") for name in ("bpp", *_METRICS)), ([], "count_all")]
    )
    points = means.to_pylist()
    charts = []
    for source in sorted({point["source"] for point in points}):
        for metric, words in _METRICS.items():
            series = []
            mine = [
                point
                for point in points
                if point["source"] == source and point[f"{metric}_mean"] is not None
            ]
            for codec in sorted({point["codec"] for point in mine}):
                of = sorted(
                    (p["bpp_mean"], p[f"{metric}_mean"]) for p in mine if p["codec"] == codec
                )
                rates, values = np.array(of, np.float64).T
                series.append(Line(codec, rates, values))
            if series:
                charts.append(
                    lines(source, series, "bits a pixel", words, markers=True, from_zero=False)
                )
    return Section(
        "codecs",
        "Codecs",
        [
            f"{good.num_rows:,} measurements. Each point is the mean over the pictures of a source "
            "at one quality."
        ],
        bd_rates,
        charts,
    )


def measured(store: Store) -> list[Section]:
    """The sections that the run has tables for."""
    sections: list[Section] = []
    if store.shards("characteristics"):
        effects = store.read_all("effects") if store.shards("effects") else None
        sections += characteristics(store.read_all("characteristics"), effects)
    if store.shards("alignments"):
        sections.append(alignments(store.read_all("alignments")))
    if store.shards("measurements"):
        sections.append(rate_distortion(store.read_all("measurements"), _bd_rates(store)))
    return sections


def _bd_rates(store: Store) -> list[Table]:
    """Tables of BD-rates that the benchmark has written, in Markdown."""
    folder = store.path("benchmark", "tables")
    if not store.fs.isdir(folder):
        return []
    found = []
    for path in sorted(store.fs.find(folder)):
        name = path.rsplit("/", 1)[-1].removesuffix(".md")
        if path.endswith(".md") and name.startswith("bd-rate"):
            rows = [
                [html.unescape(cell) for cell in line.strip("| ").split(" | ")]
                for line in store.fs.cat_file(path).decode().splitlines()
                if line.startswith("| ")
            ]
            if rows:
                found.append(Table(name, rows[0], rows[2:], len(rows[0]) - 1))
    return found
