"""The page and all that it links: figures, tables, strips and files for exchange."""

from __future__ import annotations

import io
import json
import re
import shutil
from html import unescape
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from markdown_it import MarkdownIt
from PIL import Image

from pipeline import AigiError
from pipeline.benchmark import published, rates
from pipeline.benchmark.report import latex, latex_table
from pipeline.benchmark.search import nearest
from pipeline.benchmark.strips import busiest
from pipeline.workflow import load
from tests.benchmark.conftest import CODECS, PROMPT, execute, write_workflow
from tests.benchmark.test_measurements import Measured, rows_of
from tests.conftest import aigi


@pytest.fixture
def page(measured: Measured) -> str:
    """The text of the page."""
    return Path(measured[1].path("benchmark", "README.md")).read_text()


def test_every_link_of_the_page_leads_somewhere(measured: Measured, page: str) -> None:
    folder = Path(measured[1].path("benchmark"))
    links = re.findall(r"\]\(([^)<>]+)\)", page)
    assert len(links) > 12
    for link in links:
        assert (folder / link).exists(), link
    written = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert written == {".md", ".tex", ".png", ".svg", ".json", ".csv", ".parquet"}
    linked = {Path(link).name for link in links}
    for path in (folder / "figures").iterdir():
        assert path.name in linked


def test_figures_and_strips_are_pictures(measured: Measured) -> None:
    folder = Path(measured[1].path("benchmark"))
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    curves = list((folder / "figures").glob("rd-*.svg"))
    assert len(curves) == 2
    for path in curves:
        text = path.read_text()
        assert "<svg" in text and "<dc:date>" not in text


def test_page_names_what_is_missing_and_what_failed(page: str) -> None:
    html = MarkdownIt().enable("table").render(page)
    assert "bpg: programs.bpgenc: /nowhere/bpgenc: no such file" in html
    assert "7 measurements that failed" in html and "picture: truncated" in html
    assert "4 pictures:" in html and "1 of boats (161x176)" in html and "(unreadable)" in html


def test_prompts_cannot_write_on_the_page(page: str) -> None:
    html = MarkdownIt().enable("table").render(page)
    assert "<b>bold" not in html and 'href="http' not in html
    (shown,) = re.findall(r"<p>Prompt: (.*)</p>", html)
    assert unescape(shown) == PROMPT


def test_bd_rates_are_against_the_anchor(measured: Measured, page: str) -> None:
    html = MarkdownIt().enable("table").render(page)
    table = html.split("BD-rate against jpeg")[1].split("</table>")[0]
    cells = re.findall(r"<td.*?>(.*?)</td>", table)
    assert cells[0] == "webp" and re.fullmatch(r"[+-]\d+\.\d \[[+-].*, [+-].*\]", cells[1])
    assert cells[2:] == ["vtm-stand-in", "-"]
    assert "vtm-stand-in: test: 1 points, 2 are needed" in html
    tex = Path(measured[1].path("benchmark", "tables", "bd-rate-psnr.tex")).read_text()
    assert tex.startswith("\\begin{tabular}{lr}") and "BD-rate, \\%" in tex


def test_exchange_files_hold_the_means(measured: Measured) -> None:
    _, store, _ = measured
    data = json.loads(Path(store.path("benchmark", "compressai", "boats", "jpeg.json")).read_text())
    assert set(data) == {"name", "description", "results"}
    mine = [r for r in rows_of(store) if r["codec"] == "jpeg" and r["error"] is None]
    for i, quality in enumerate((20, 60, 90)):
        of = [row for row in mine if row["quality"] == quality]
        for name, column in (("bpp", "bpp"), ("psnr-rgb", "psnr"), ("ms-ssim-rgb", "ms_ssim")):
            mean = np.mean([row[column] for row in of])
            assert data["results"][name][i] == pytest.approx(mean)
    assert all(value > 0 for value in data["results"]["encoding_time"])


def test_codecs_are_compared_at_the_wanted_rate(measured: Measured) -> None:
    rows = rows_of(measured[1], "comparisons")
    assert {row["codec"] for row in rows} == {"jpeg", "webp", "vtm-stand-in"}
    for row in rows:
        if row["codec"] != "vtm-stand-in":
            assert row["bpp"] == pytest.approx(1.5, rel=0.1)
        decoded = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert decoded.size == (row["width"], row["height"])


def test_page_is_written_anew_without_measuring(measured: Measured, tmp_path: Path) -> None:
    workflow, store, _ = measured
    shutil.copytree(workflow.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / "benchmark.yaml"
    copy.write_text(workflow.read_text().replace(store.url, str(tmp_path / "copy" / "run")))
    folder = tmp_path / "copy" / "run" / "benchmark"
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    _, said = execute(copy)
    assert "already made" in said and "rows/s" not in said
    after = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == after  # no date, no random names


def test_command_runs_and_plans(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=["jpeg"], strips=None, anchor="vvc"
    )
    plan = aigi("run", str(workflow), "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.search(r"jpeg\s+│\s+7\s+│\s+4\s+│\s+28", plan.stdout)
    assert not (tmp_path / "run").exists()
    done = aigi("run", str(workflow))
    assert done.returncode == 0, done.stderr
    place = done.stdout.strip().removeprefix("benchmark: ")
    assert Path(place) == tmp_path / "run" / "benchmark" / "README.md"
    assert "There is none: vvc: it is not among the codecs" in Path(place).read_text()


def test_groups_are_sources_and_marks(measured: Measured) -> None:
    table = measured[1].read_all("measurements")
    alone = rates.curves(table, ["jpeg", "webp"])
    assert list(alone) == ["boats"] and list(alone["boats"]) == ["jpeg", "webp"]
    marked = table.set_column(
        table.schema.get_field_index("watermark"), "watermark", [["dwt-dct"] * table.num_rows]
    )
    both = rates.curves(pa.concat_tables([table, marked]), ["jpeg"])
    assert list(both) == ["boats", "boats (dwt-dct)", rates.POOLED]
    one, pooled = both["boats"]["jpeg"], both[rates.POOLED]["jpeg"]
    assert len(pooled.images) == 2 * len(one.images) == 6 and pooled.failed == 2
    assert pooled.curve("psnr").values == pytest.approx(one.curve("psnr").values)
    assert one.qualities == (20, 60, 90)


def test_ms_ssim_is_averaged_before_it_is_in_db() -> None:
    of = np.array([[0.9, 0.99], [0.8, 0.97]])
    ones = np.ones_like(of)
    curves = rates.Curves((1, 2), ("a", "b"), 0, of, ones, of, ones, ones)
    assert curves.curve("ms_ssim").values == pytest.approx(
        (-10 * np.log10(0.15), -10 * np.log10(0.02))
    )


def test_published_curves_are_drawn_behind_those_of_the_dataset() -> None:
    for source, mark in published.SUBSETS:
        assert rates.group_name(source, mark) in {
            *("sd21-base", "sd21", "sdxl", "sdxl (dwt-dct)", "mj52", "mod")
        }


def test_latex_shows_any_text() -> None:
    assert latex(r"50 % of $x_1$ & {y} #1 ~ ^ \z") == (
        r"50 \% of \$x\_1\$ \& \{y\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    lines = latex_table(["a", "b&c"], [["x_y", "-1.0"]]).splitlines()
    assert lines[2] == r"a & b\&c \\" and lines[4] == r"x\_y & -1.0 \\"


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=80, unique=True),
    st.floats(0.005, 120),
)
def test_search_finds_the_nearest(values: list[float], target: float) -> None:
    values = sorted(values)
    calls = 0

    def measure(quality: float) -> float:
        nonlocal calls
        calls += 1
        return values[int(quality)]

    quality, found = nearest(range(len(values)), measure, target)
    assert found == values[int(quality)]
    assert abs(found - target) == min(abs(value - target) for value in values)
    assert calls <= np.log2(len(values)) + 3


def test_search_wants_something_to_choose_from() -> None:
    with pytest.raises(AigiError, match="no qualities"):
        nearest([], lambda quality: 1.0, 1.0)


def test_the_crop_is_where_the_edges_are() -> None:
    image = np.full((100, 160, 3), 90, np.uint8)
    image[50:70, 100:120:2] = 255
    top, left = busiest(image, 40)
    assert top <= 50 <= 70 <= top + 40 and left <= 100 <= 120 <= left + 40
    assert busiest(image[:10, :10], 40) == (0, 0)


def test_codecs_have_short_names(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=["avif", "compressai:cheng2020-attn:4"]
    )
    found = load(workflow).benchmark
    assert found is not None
    zoo = found.codecs[1]
    assert zoo.label == "cheng2020-attn" and zoo.qualities == (4.0,)
    assert list(zoo.models) == ["cheng2020-attn"]
    write_workflow(workflow, pictures, {}, codecs=["avif", *CODECS, "jpeg"])
    with pytest.raises(AigiError, match="two codecs are called jpeg"):
        load(workflow)
    write_workflow(workflow, pictures, {}, strips={"bpp": 1.0, "psnr": 30})
    with pytest.raises(AigiError, match="give either bpp or psnr"):
        load(workflow)
    model = tmp_path / "model"
    model.mkdir()
    write_workflow(
        workflow, pictures, {}, codecs=[{"codec": "learned", "models": ["model", "ORG/NAME"]}]
    )
    found = load(workflow).benchmark
    assert found is not None and found.codecs[0].models == (str(model), "ORG/NAME")
