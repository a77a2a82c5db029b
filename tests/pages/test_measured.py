"""What readers of a release measured, in the report: real benchmarks, real logs of training."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from scipy.interpolate import PchipInterpolator

from pipeline.demo import TINY
from pipeline.pages.measured import rate_distortion
from pipeline.pages.report import report
from pipeline.pages.section import Section
from pipeline.pages.trained import training
from pipeline.store import Store
from pipeline.training.logs import Log
from tests.benchmark.conftest import execute
from tests.pages.conftest import Visit
from tests.pages.test_report import axe

Rates = dict[float, list[tuple[float, float, float]]]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A real benchmark of a few codecs over three small pictures and a damaged one."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "boats").mkdir()
    drawn = sorted((TINY / "pictures" / "mj52").glob("*.png"))[:3]
    for picture in drawn:
        shutil.copy(picture, folder / "boats")
    (folder / "boats" / "broken.png").write_bytes(drawn[0].read_bytes()[:500])
    codecs = [
        {"codec": "jpeg", "qualities": [20, 50, 90]},
        {"codec": "webp", "qualities": [20, 50, 90]},
        {"codec": "avif", "qualities": [10, 30, 50]},
        {"codec": "jpeg", "name": "tiny", "qualities": [1, 2, 3]},
    ]
    section = {"pictures": {"place": str(folder / "boats")}, "codecs": codecs, "anchor": "jpeg"}
    workflow = folder / "workflow.yaml"
    workflow.write_text(yaml.safe_dump({"run": str(folder / "run"), "benchmark": section}))
    return execute(workflow)[0]


def codecs_of(store: Store) -> Section:
    return next(section for section in report(store)[1] if section.name == "codecs")


def test_bd_rates_are_those_of_the_measurements(benchmark: Store) -> None:
    found: dict[str, Rates] = defaultdict(lambda: defaultdict(list))
    for row in benchmark.read_all("measurements").to_pylist():
        if row["error"] is None:
            numbers = (row["bpp"], row["psnr"], row["ms_ssim"])
            found[row["codec"]][row["quality"]].append(numbers)

    def curve(codec: str, metric: int) -> tuple[np.ndarray, np.ndarray]:
        means = np.array([np.mean(rows, 0) for _, rows in sorted(found[codec].items())])
        values = means[:, 1] if metric == 1 else -10 * np.log10(1 - means[:, 2])
        return np.log(means[:, 0]), values

    def bd_rate(codec: str, metric: int) -> float:
        """Bjøntegaard's integral, by hand."""
        (one, x), (other, y) = curve("jpeg", metric), curve(codec, metric)
        low, high = max(x[0], y[0]), min(x[-1], y[-1])
        areas = [PchipInterpolator(v, r).integrate(low, high) for v, r in ((x, one), (y, other))]
        return float(100 * np.expm1((areas[1] - areas[0]) / (high - low)))

    section = codecs_of(benchmark)
    (table,) = section.tables
    assert "against jpeg" in table.caption
    rows = {row[1]: row for row in table.rows}
    assert rows.pop("tiny")[2:] == ("none", "none")
    assert any(line.startswith("No BD-rate of tiny, boats, PSNR") for line in section.text)
    assert set(rows) == {"webp", "avif"} and {row[0] for row in rows.values()} == {"boats"}
    for codec, row in rows.items():
        for metric, cell in enumerate(row[2:], 1):
            said, _, interval = cell.partition(" [")
            assert float(said) == pytest.approx(bd_rate(codec, metric), abs=0.06)
            low, high = (float(end) for end in interval.rstrip("]").split(", "))
            assert low <= float(said) <= high


def test_curves_have_every_codec(benchmark: Store) -> None:
    section = codecs_of(benchmark)
    psnr, structure = section.charts
    assert "boats: PSNR (RGB)" in psnr and "boats: MS-SSIM" in structure
    heights = [re.findall(r'<circle cx="[^"]+" cy="([^"]+)"', chart) for chart in (psnr, structure)]
    assert heights[0] != heights[1]
    for chart in section.charts:
        assert chart.count("<circle") == 12
        assert all(f">{codec}</text>" in chart for codec in ("jpeg", "webp", "avif"))
    assert "48 measurements of 4 images, of which 12 failed" in section.text[0]


def test_marked_pictures_have_curves_of_their_own(benchmark: Store) -> None:
    """Pooled, marked and unmarked pictures would hide what a mark costs."""
    table = benchmark.read_all("measurements").filter(pa.compute.field("error").is_null())
    column = table.schema.get_field_index("watermark")
    marked = table.set_column(column, "watermark", pa.array(["dwt-dct"] * table.num_rows))
    titles = ("boats: ", "boats (dwt-dct): ", "all: ")
    charts = rate_distortion(pa.concat_tables([table, marked]), []).charts
    assert [chart.count(title) > 0 for chart in charts for title in titles] == [
        *(True, False, False) * 2, *(False, True, False) * 2, *(False, False, True) * 2
    ]  # fmt: skip


def test_each_rate_of_a_training_has_its_own_row_and_line() -> None:
    rows = [
        {"step": step, "quality": quality, "lambda": 0.01 * quality, "loss": quality / step,
         "y_bpp": 0.5, "z_bpp": 0.01, "psnr": 30, "calibration": 0.9, "gradient_norm": 2}
        for step in (10.0, 20.0) for quality in (1.0, 2.0)
    ]  # fmt: skip
    curve = [{"step": step, "loss": 1 / step, "seconds": 9} for step in (10.0, 20.0)]
    section = training([Log("catc", 20, curve, [], rows)])
    table = section.tables[-1]
    assert list(table.rows[1]) == [
        "catc, quality 2", "20", "0.02", "0.1", "0.5000", "0.0100", "30.00", "0.900", "2"
    ]  # fmt: skip
    assert len(table.rows) == 2 and table.right == 8
    assert "loss of each λ" in section.charts[-1] and "catc, quality 1" in section.charts[-1]
    # A training of before has no such file.
    assert len(training([Log("catc", 20, curve, [], [])]).tables) == 1


def test_axe_finds_nothing(chromium: Any, benchmark: Store, tmp_path: Path) -> None:
    source = axe()
    shutil.copytree(benchmark.path(), tmp_path / "run")
    folder = tmp_path / "run" / "train" / "<catc>"
    folder.mkdir(parents=True)
    (folder / "curve.csv").write_text("step,loss,bpp,psnr,seconds\n10,2.5,0.4,25,9\n20,2,0.3,2")
    (folder / "validation.csv").write_text("step,loss,bpp,psnr,ms_ssim\n10,2.1,0.41,25.5,\n")
    (folder / "rates.csv").write_text(
        "step,quality,lambda,loss,y_bpp\n10,1,0.01,2,0.4\n10,2,0.1,3,0.5\n"
    )
    (tmp_path / "report.html").write_text(report(Store(str(tmp_path / "run")))[0])
    with Visit(chromium, tmp_path / "report.html", bypass_csp=True) as visit:
        assert "10" in visit.page.locator("#training td").first.inner_text(), "no half line"
        visit.page.evaluate(source)
        found = visit.page.evaluate("axe.run()")
        assert len(found["passes"]) > 15 and not visit.said and not visit.strangers()
        assert [(item["id"], item["nodes"][0]["html"]) for item in found["violations"]] == []
