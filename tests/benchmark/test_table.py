"""A metric is a row of one table: columns, curves, figures and pages follow from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.benchmark.cells import tile_lines
from pipeline.benchmark.measurements import measurements_schema
from pipeline.benchmark.metrics import METRICS, Metric, shown
from pipeline.benchmark.settings import Benchmark
from pipeline.pages.measured import measured
from pipeline.pixels import RGB, decibels
from tests.benchmark.conftest import cells_of, execute, page_of, write_workflow
from tests.benchmark.test_measurements import rows_of

PLAIN = [{"codec": codec, "qualities": [10, 60, 90]} for codec in ("jpeg", "webp")]


def test_columns_are_the_rows_of_the_table_in_their_order() -> None:
    schema = measurements_schema(True, True, ["lpips", "dists"])
    assert [name for name in schema.names if name in METRICS] == list(METRICS)
    assert all(schema.field(name).type == metric.kind for name, metric in METRICS.items())
    assert [name for name in measurements_schema().names if name in METRICS] == [
        name for name, metric in METRICS.items() if not metric.needs
    ]
    assert "lpips" in measurements_schema(distances=["lpips"]).names
    assert "dists" not in measurements_schema(distances=["lpips"]).names


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_metric_has_a_function_or_a_setting_that_asks_for_it(metric: Metric) -> None:
    assert (metric.function is None) == bool(metric.needs)
    assert not metric.needs or metric.needs in Benchmark.model_fields


def absolute(one: RGB, other: RGB) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_another_row_is_measured_drawn_and_compared(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Metric(
        *("mae", "Absolute (RGB)", "dB", "MAE", absolute),
        db=lambda mean: 2 * decibels(255, mean),
        form=".1f",
        caption="MAE {:.3f}",
        exchange="mae-rgb",
        words="MAE is of all levels.",
    )
    monkeypatch.setitem(METRICS, "mae", row)
    store, _ = execute(write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=PLAIN, strips=None))
    rows = [row for row in rows_of(store) if row["error"] is None]
    means = [
        float(np.mean([row["mae"] for row in rows if (row["codec"], row["quality"]) == key]))
        for key in (("jpeg", 10), ("jpeg", 60), ("jpeg", 90))
    ]
    assert means == sorted(means, reverse=True) and means[-1] > 0
    # The page: words, a table of the curve, BD-rates and figures.
    html, folder = page_of(store), Path(store.path("benchmark"))
    assert "MAE is of all levels. Times are" in html
    head, *body = cells_of(html, "boats")
    at = head.index("MAE, dB")
    assert head[at - 2 : at] == ["PSNR, dB", "MS-SSIM, dB"]
    decibel = [f"{20 * np.log10(255 / mean):.1f}" for mean in means]
    assert [cells[at] for cells in body if cells[0] == "jpeg"] == decibel
    assert cells_of(html, "Absolute (RGB), dB")[1][0] == "webp"
    assert all(f"figures/{name}-mae.svg" in html for name in ("bd-rate", "rd-boats"))
    assert "<!-- Absolute (RGB), dB -->" in (folder / "figures/rd-boats-mae.svg").read_text()
    assert "MAE, dB" in (folder / "tables" / "rd-boats.tex").read_text()
    # Files for others.
    exchanged = json.loads((folder / "compressai" / "boats" / "jpeg.json").read_text())
    assert exchanged["results"]["mae-rgb"] == pytest.approx(means)
    with (folder / "bd-rates.csv").open() as file:
        (compared,) = (line for line in csv.DictReader(file) if line["metric"] == "mae")
    assert compared["codec"] == "webp" and float(compared["low"]) < float(compared["bd_rate"])
    # The report of the run, and tiles.
    (section,) = measured(store)
    assert sum("boats: Absolute (RGB)" in chart for chart in section.charts) == 1
    assert section.tables[0].headings[-1] == "by Absolute (RGB)"
    assert tile_lines(rows[0])[-1] == f"MAE {rows[0]['mae']:.3f}"


def test_tables_of_before_have_no_such_column() -> None:
    assert [metric.name for metric in shown(["psnr", "ms_ssim_scales", "lpips", "bpp"])] == [
        *("psnr", "lpips")
    ]
