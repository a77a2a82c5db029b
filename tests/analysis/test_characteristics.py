"""Folders and releases in; tables, effect sizes and a report out; resume, refusals, Ray."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from scipy.stats import ks_2samp

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.analysis import characteristics, effects
from pipeline.analysis.characteristics import CHARACTERISTICS, Characteristics, measured, middle
from pipeline.analysis.effects import compare
from pipeline.analysis.places import places
from pipeline.analysis.plots import densities, figures
from pipeline.analysis.stages import stages
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.store import Store
from tests.conftest import ROOT, aigi_here


def pictures(folder: Path, count: int, level: float, size: tuple[int, int] = (40, 48)) -> Path:
    """Noise about a level, in PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(int(level))
    for number in range(count):
        rgb = np.clip(noise.normal(level, 20, (*size, 3)), 0, 255).astype(np.uint8)
        (folder / f"{number:03d}.png").write_bytes(png_bytes(rgb))
    return folder


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    dark, light = pictures(tmp_path / "dark", 6, 60), pictures(tmp_path / "light", 5, 180)
    (dark / "broken.png").write_bytes(b"no picture")
    given = {
        "run": str(tmp_path / "run"),
        "characteristics": {
            "pictures": [{"place": str(dark)}, {"place": str(light), "name": "<i>light</i>"}],
            "reference": "dark",
        },
    }
    path = tmp_path / "analyze.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def execute(path: Path, *overrides: str) -> Store:
    loaded = workflows.load(path, overrides)
    store = Store(loaded.run)
    run_stages(
        stages(loaded.characteristics, None, loaded.run, loaded.compute),
        store,
        loaded.compute,
        Progress(quiet=True),
    )
    return store


def test_folders_become_a_table_and_a_report(workflow: Path, tmp_path: Path) -> None:
    done = aigi_here("run", str(workflow))
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / "run"))
    rows = store.read_all("characteristics").to_pylist()
    assert [row["source"] for row in rows] == ["dark"] * 7 + ["<i>light</i>"] * 5
    broken = [row for row in rows if row["error"]]
    assert [row["error"] for row in broken] == ["not a picture"]
    assert broken[0]["red_mean"] is None and broken[0]["width"] is None
    for row in rows:
        if not row["error"]:
            level = 60 if row["source"] == "dark" else 180
            assert row["green_mean"] == pytest.approx(level, abs=2)
            assert (row["width"], row["height"], row["jxl_bpp"]) == (48, 40, None)
    found = {row["characteristic"]: row for row in store.read_all("effects").to_pylist()}
    assert {row["against"] for row in found.values()} == {"dark"}
    assert found["red_mean"]["cliffs_delta"] == 1 and found["red_mean"]["ks"] == 1
    assert found["red_mean"]["images"] == 5 and found["red_mean"]["images_against"] == 6
    assert found["red_mean"]["p_adjusted"] >= found["red_mean"]["p_value"]
    page, figures = tmp_path / "report.html", tmp_path / "figures"
    done = aigi_here("report", str(store.url), "--out", str(page), "--figures", str(figures))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in figures.iterdir()}
    assert {"texture-01.svg", "color-09.svg", "compressibility-06.svg"} <= names
    assert ET.parse(figures / "color-01.svg").getroot().tag.endswith("svg")
    text = page.read_text()
    for title in ("Texture", "Colour", "Compressibility", "How sources differ"):
        assert f">{title}</h2>" in text
    assert "reference: dark" in text, "the settings are on the page"
    assert "&lt;i&gt;light&lt;/i&gt; (5)" in text and "<i>light" not in text


def test_again_nothing_is_made_and_changes_are_refused(workflow: Path, tmp_path: Path) -> None:
    store = execute(workflow)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")}
    execute(workflow)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")} == before
    with pytest.raises(AigiError, match=r"characteristics.*\n.*crop: None -> 8"):
        execute(workflow, "characteristics.crop=8")
    execute(workflow, "characteristics.reference=null")
    rows = store.read_all("effects").to_pylist()
    assert {(row["source"], row["against"]) for row in rows} == {
        ("dark", None), ("<i>light</i>", None)
    }  # fmt: skip
    with pytest.raises(AigiError, match="no source kodak; there are <i>light</i>, dark"):
        execute(workflow, "characteristics.reference=kodak")
    pictures(tmp_path / "light", 6, 180)
    execute(workflow)
    changed = {p for p, when in before.items() if p.stat().st_mtime_ns != when}
    assert {p.relative_to(tmp_path / "run").parts[0] for p in changed} == {
        "characteristics",
        "effects",
    }
    assert not [p for p in changed if "dark" in str(p)], "nothing else is made again"


def test_a_lost_shard_is_made_again_alone(workflow: Path, tmp_path: Path) -> None:
    store = execute(workflow)
    one, other = sorted((tmp_path / "run" / "characteristics").rglob("*.parquet"))
    bytes_before, kept = one.read_bytes(), other.stat().st_mtime_ns
    one.unlink()
    execute(workflow)
    assert one.read_bytes() == bytes_before and other.stat().st_mtime_ns == kept
    assert store.read_all("characteristics").num_rows == 12


def test_the_release_of_the_same_run_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(f"run: {tmp_path}/run\ncharacteristics: {{}}\n")
    (place,) = places((), workflows.load(tmp_path / "w.yaml").run)
    assert place.place == f"{tmp_path}/run"


def test_pictures_with_a_watermark_are_not_counted_twice() -> None:
    rows = [
        {"source": "sdxl", "watermark": mark, "red_mean": value}
        for mark, value in (("none", 1.0), ("dwt-dct", 2.0), (None, 3.0), ("none", None))
    ]
    found = effects.by_source(
        pa.Table.from_pylist(rows, CHARACTERISTICS), ["red_mean", "saturation"]
    )
    assert found["red_mean"]["sdxl"].tolist() == [1, 3]
    assert found["saturation"] == {}


def test_crops_make_sizes_compare(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    assert np.array_equal(middle(rgb, 10), rgb[10:20, 15:25])
    assert np.array_equal(middle(rgb[:30, :30], 30), rgb[:30, :30])
    one = measured(middle(rgb, 10), Characteristics())
    assert one == measured(rgb[10:20, 15:25], Characteristics(crop=10))
    worker = characteristics.Characteriser(Characteristics(crop=31))
    row = {"image_id": "a", "image": {"bytes": png_bytes(rgb)}, "source": "s", "split": "test",
           "watermark": "none"}  # fmt: skip
    assert worker._row(row)["error"] == "smaller than the crop of 31 pixels"


def test_effect_sizes_by_hand() -> None:
    one, other = np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5])
    found = compare(one, other)
    greater, less = 1, 9  # of 12 pairs; 3 > none of them, 4 > 3; ties 3 = 3, 4 = 4
    assert found["cliffs_delta"] == pytest.approx((greater - less) / 12)
    pooled = np.sqrt((3 * one.var(ddof=1) + 2 * other.var(ddof=1)) / 5)
    assert found["cohens_d"] == pytest.approx((2.5 - 4) / pooled)
    assert found["ks"] == ks_2samp(one, other).statistic == 0.5
    alone = compare(np.array([1.0]), np.array([1.0]))
    assert alone["cohens_d"] is None and alone["std"] is None and alone["cliffs_delta"] == 0


def test_densities_name_every_source() -> None:
    noise = np.random.default_rng(2)
    values = {"a": noise.normal(0, 1, 500), "b & c": noise.normal(5, 1, 300), "few": np.ones(2)}
    chart = densities("title", "units", values)
    assert chart is not None
    root = ET.fromstring(chart)
    texts = [item.text for item in root.iter() if item.tag.endswith("text")]
    assert {"a (500)", "b & c (300)", "few (2, no density)"} <= set(texts)
    paths = [item for item in root.iter() if item.tag.endswith("polyline")]
    dashes = {(item.get("style") or "").split("stroke-dasharray:")[1] for item in paths}
    assert len(dashes) == len(paths) == 3
    # The legend begins below the axis: nothing is hidden.
    lowest = max(float(y.split(",")[1]) for p in paths for y in (p.get("points") or "0,0").split())
    legend = [item for item in root.iter() if item.text in ("a (500)", "few (2, no density)")]
    assert all(float(item.get("y", "0")) > lowest for item in legend)
    assert densities("title", "units", {"few": np.ones(2)}) is None


def test_few_large_values_leave_room_for_the_others() -> None:
    values = np.r_[np.random.default_rng(3).lognormal(-7, 0.5, 200), 0.5, 0.9]
    rows = [{"source": "a", "glcm_asm": value} for value in values.tolist()]
    (chart,) = figures(pa.Table.from_pylist(rows, CHARACTERISTICS))["texture"]
    assert "log10" in chart and ">-3</text>" in chart
    line = chart.split('<polyline points="')[1].split('"')[0].split()
    y = np.array([point.split(",")[1] for point in line], float)
    assert (y < y.max() - 5).mean() > 0.3, "the hump is wide, not a needle at the border"


def test_the_workflow_file_is_valid() -> None:
    loaded: Any = workflows.load(ROOT / "workflows" / "analyze.yaml")
    assert loaded.characteristics is not None


@pytest.mark.slow
def test_ray_makes_the_same_bytes(workflow: Path, tmp_path: Path) -> None:
    execute(workflow)
    execute(workflow, f"run={tmp_path}/ray", "compute.ray=local", "compute.workers=2")
    for path in (tmp_path / "run" / "characteristics").rglob("*.parquet"):
        other = tmp_path / "ray" / path.relative_to(tmp_path / "run")
        assert other.read_bytes() == path.read_bytes()
