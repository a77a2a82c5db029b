"""The page and all that it links: figures, tables, strips and files for exchange."""

from __future__ import annotations

import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from markdown_it import MarkdownIt
from PIL import Image

from pipeline import AigiError
from pipeline.benchmark import figures, published, rates
from pipeline.benchmark.cells import file_names
from pipeline.benchmark.latex import latex, latex_table
from pipeline.benchmark.report import Report
from pipeline.benchmark.search import nearest
from pipeline.benchmark.strips import busiest, strip
from pipeline.codecs.codec import CodecSettings
from pipeline.collection import Collection
from pipeline.pixels import png_bytes
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.workflow import load
from tests.benchmark.conftest import CODECS, PROMPT, cells_of, execute, page_of, write_workflow
from tests.benchmark.test_measurements import Measured, rows_of
from tests.benchmark.test_metrics import pair
from tests.conftest import aigi_here


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
    assert "4 images:" in html and "1 of boats (161x176)" in html and "(unreadable)" in html


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
        # Pictures of several sizes: the mean of their seconds, whatever their sizes are.
        for name, column in (("encoding_time", "encode_ms"), ("decoding_time", "decode_ms")):
            mean = np.mean([row[column] / 1000 for row in of])
            assert data["results"][name][i] == pytest.approx(mean)


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
        tmp_path / "w.yaml", pictures, {}, codecs=["jpeg"], strips=None, anchor="jpeg"
    )
    plan = aigi_here("run", str(workflow), "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.search(r"jpeg\s+\|\s+7\s+\|\s+4\s+\|\s+28", plan.stdout)
    assert not (tmp_path / "run").exists()
    done = aigi_here("run", str(workflow))
    assert done.returncode == 0, done.stderr
    place = done.stdout.strip().removeprefix("benchmark: ")
    assert Path(place) == tmp_path / "run" / "benchmark" / "README.md"
    assert "There is none: jpeg: it is the only codec" in Path(place).read_text()


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


def test_a_source_may_be_called_as_the_pooled_group(measured: Measured) -> None:
    def called(source: str) -> pa.Table:
        table = measured[1].read_all("measurements")
        column = table.schema.get_field_index("source")
        return table.set_column(column, "source", [[source] * table.num_rows])

    alone = rates.curves(called(rates.POOLED), ["jpeg"])
    assert [(name, len(of["jpeg"].images)) for name, of in alone.items()] == [("all", 3)]
    both = rates.curves(pa.concat_tables([called(rates.POOLED), called("boats")]), ["jpeg"])
    sizes = [(name, len(of["jpeg"].images)) for name, of in both.items()]
    assert sizes == [("all", 3), ("boats", 3), ("all together", 6)]


ODD = "a$\\frac$b\n船 50 %"


def test_odd_names_stand_on_the_page_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes(pair(0, 176, 162)[1]))
    codecs = [
        {"codec": codec, "qualities": [20, 60, 90], "name": name}
        for codec, name in (("jpeg", "a.b"), ("webp", "a-b"))
    ]
    workflow = write_workflow(
        *(tmp_path / "w.yaml", folder, {}),
        codecs=codecs,
        anchor="a.b",
        pictures={"place": str(folder), "name": ODD},
    )
    store, _ = execute(workflow)
    made = Path(store.path("benchmark"))
    assert len(cells_of(page_of(store), " ".join(ODD.split()))) == 7
    (drawn,) = (made / "figures").glob("rd-*-psnr.svg")
    assert "<!-- a$\\frac$b 船 50 % -->" in drawn.read_text()
    for path in (made / "tables").glob("*.tex"):
        for line in path.read_text().splitlines():
            assert line.endswith(r"\\") or line.startswith(("\\", "\\end")), (path, line)
    exchanged = [json.loads(path.read_text()) for path in made.glob("compressai/*/*.json")]
    assert {data["name"] for data in exchanged} == {"a.b", "a-b"}


@given(st.sets(st.text(max_size=6), max_size=8))
def test_file_names_are_apart_and_safe(names: set[str]) -> None:
    found = file_names(names)
    assert set(found) == names
    made = list(found.values())
    assert all(re.fullmatch("[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name) for name in made)
    assert len({name.lower() for name in made}) == len(made)


def test_file_names_tell_what_they_are_of() -> None:
    assert file_names(["lake (dwt-dct)", "lake"]) == {
        "lake (dwt-dct)": "lake-dwt-dct",
        "lake": "lake",
    }
    apart = file_names(["a.b", "a-b", "船", "湖"]).values()
    assert [re.sub("[0-9a-f]{8}$", "#", name) for name in apart] == ["a-b-#", "a-b-#", "#", "#"]


def test_ms_ssim_is_averaged_before_it_is_in_db() -> None:
    of = np.array([[0.9, 0.99], [0.8, 0.97]])
    ones = np.ones_like(of)
    values = {"psnr": ones, "ms_ssim": of}
    curves = rates.Curves((1, 2), ("a", "b"), 0, of, ones, ones, ones[:, 0], values)
    assert curves.curve("ms_ssim").values == pytest.approx(
        (-10 * np.log10(0.15), -10 * np.log10(0.02))
    )


def test_pictures_too_small_for_ms_ssim_have_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png_bytes(pair(i, 9 + i, 8)[1]))
    workflow = write_workflow(
        tmp_path / "w.yaml", folder, {}, codecs=CODECS[:2], pictures={"place": str(folder)}
    )
    store, _ = execute(workflow)
    html = page_of(store)
    body = cells_of(html, "small")[1:]
    assert len(body) == 6 and all(float(cells[4]) > 10 and cells[5] == "-" for cells in body)
    assert "small, webp: no image that both coded at every quality" in html
    text = Path(store.path("benchmark", "compressai", "small", "webp.json")).read_text()
    results = json.loads(text)["results"]
    assert results["ms-ssim-rgb"] == [None] * 3 and "NaN" not in text
    assert results["psnr-rgb"] == pytest.approx([float(c[4]) for c in body[3:]], abs=1e-3)


FFMPEG = """#!/bin/sh
case "$*" in
  *-encoders*) echo " V....D libvvenc             VVC";;
  *-version*) echo "ffmpeg version 0";;
  *) echo "[libvvenc @ 0x55d8$$] broken on purpose" >&2; exit 1;;
esac
"""


def test_a_program_that_always_fails_costs_its_cells_alone(tmp_path: Path, pictures: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text(FFMPEG)
    broken.chmod(0o755)
    codecs = [{"codec": "jpeg", "qualities": [20, 60]}, {"codec": "vvc", "qualities": [37]}]
    workflow = write_workflow(
        *(tmp_path / "w.yaml", pictures, {"ffmpeg": str(broken)}),
        codecs=codecs,
        strips={"count": 4, "bpp": 1.5},
    )
    html = page_of(execute(workflow)[0])
    assert "There is none: jpeg: no other codec coded an image at every quality." in html
    said = "ffmpeg: exit code 1: [libvvenc @ 0x…] broken on purpose"
    shown = html.split("<h2>Side by side")[1].split("<h2>")[0]
    assert shown.count("<img") == 3  # and one that is damaged for all
    assert shown.count(f"Not shown: vvc: CodecFailed: {said}") == 3
    assert shown.count("Not shown: jpeg, vvc: BadPicture: truncated") == 1
    cells = {row[0]: row for row in cells_of(html, "Codecs")[1:]}
    assert cells["jpeg"][-1] == "in its library" and cells["vvc"][-1] == "failed"
    assert f"vvc: the conversion failed: {said}" in html
    assert f"vvc, 3 times: CodecFailed: {said}" in html


def test_networks_that_code_rgb_convert_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes(pair(0, 64, 64)[1]))
    workflow = write_workflow(
        tmp_path / "w.yaml",
        folder,
        {},
        codecs=[{"codec": "learned", "qualities": [1]}],
        pictures={"place": str(folder)},
        strips=None,
    )
    (row,) = cells_of(page_of(execute(workflow, device="cpu")[0]), "Codecs")[1:]
    assert row[0] == "learned" and row[-1] == "none"


def test_published_curves_are_drawn_behind_those_of_the_dataset(tmp_path: Path) -> None:
    for source, mark in published.SUBSETS:
        assert rates.group_name(source, mark) in {
            *("sd21-base", "sd21", "sdxl", "sdxl (dwt-dct)", "mj52", "mod")
        }
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes(pair(0, 176, 162)[1]))
    workflow = write_workflow(
        *(tmp_path / "w.yaml", folder, {}),
        codecs=CODECS[:1],
        pictures={"place": str(folder), "name": "mj52"},
        strips=None,
    )
    store, _ = execute(workflow)
    assert "Thin lines:" in page_of(store)
    for metric in ("psnr", "ms-ssim"):
        drawn = Path(store.path("benchmark", "figures", f"rd-mj52-{metric}.svg")).read_text()
        assert all(f"<!-- {name} -->" in drawn for name in published.curves("MJ5.2", "psnr"))


def test_published_curves_are_thin_lines_with_names() -> None:
    ones = np.ones((1, 2))
    mine = rates.Curves((1, 2), ("a",), 0, ones, ones, ones, ones[:, 0], {"psnr": 30 * ones})
    theirs = published.curves("MJ5.2", "psnr")
    (axes,) = figures.rate_distortion("mj52", {"jpeg": mine}, "psnr", theirs, ["jpeg"]).axes
    *behind, front = sorted(axes.lines, key=lambda line: line.get_zorder())
    assert front.get_label() == "jpeg" and np.all(front.get_ydata() == 30.0)
    assert [np.transpose(line.get_xydata()).tolist() for line in behind] == [
        [list(curve.rates), list(curve.values)] for curve in theirs.values()
    ]
    for line in behind:
        assert line.get_zorder() < front.get_zorder()
        assert line.get_linewidth() < front.get_linewidth()
    assert {text.get_text() for text in axes.texts} == set(theirs)


def report_of(measured: Measured, store: Store, **settings: Any) -> Report:
    """A report of the run with other settings."""
    found = load(measured[0]).benchmark
    assert found is not None
    benchmark = found.model_copy(update=settings)
    return Report(benchmark, Compute(), store, Collection(benchmark.measured))


@pytest.mark.parametrize(
    ("codecs", "anchor", "why"),
    [
        (["jpeg"], "jpeg", "jpeg: it is the only codec."),
        (["jpeg", "bpg"], "jpeg", "jpeg: no other codec coded an image at every quality."),
        (["jpeg", "bpg"], "bpg", "bpg: programs.bpgenc: /nowhere/bpgenc: no such file."),
        (["jpeg", "avif"], "avif", "avif: it coded no image at every quality."),
        (["jpeg", "webp"], "vvc", "vvc: it is not among the codecs."),
    ],
)
def test_the_page_says_why_there_are_no_bd_rates(
    measured: Measured, codecs: list[str], anchor: str, why: str
) -> None:
    given = tuple(CodecSettings(codec=codec) for codec in codecs)
    report = report_of(measured, measured[1], codecs=given, anchor=anchor)
    assert unescape(report.bd_rates()[2]) == f"There is none: {why}"


def test_all_versions_of_a_codec_are_listed(measured: Measured, tmp_path: Path) -> None:
    shutil.copytree(measured[1].url, tmp_path / "run")
    report = report_of(measured, Store(str(tmp_path / "run")))
    rows = report.measurements.to_pylist()
    (version,) = {row["codec_version"] for row in rows if row["codec"] == "jpeg"} - {None}
    for row in rows:
        if row["codec"] == "jpeg" and row["quality"] == 20 and row["error"] is None:
            row |= {"codec_version": "JPEG of old", "device": "another"}
    report.measurements = pa.Table.from_pylist(rows, report.measurements.schema)
    html = unescape(MarkdownIt().enable("table").render("\n".join(report.codecs())))
    cells = {row[0]: row for row in cells_of(html, "Codecs")[1:]}
    assert cells["jpeg"][4:6] == ["; ".join(sorted([version, "JPEG of old"])), "another; cpu"]
    assert cells["webp"][5] == "cpu"


def test_latex_shows_any_text() -> None:
    assert latex(r"50 % of $x_1$ & {y} #1 ~ ^ \z") == (
        r"50 \% of \$x\_1\$ \& \{y\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert latex("two\nlines\x00of it") == "two lines of it"
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


@pytest.mark.parametrize(("size", "codecs"), [((12, 4000), 2), ((4000, 12), 2), ((90, 160), 10)])
def test_a_strip_is_as_wide_as_a_page_at_most(size: tuple[int, int], codecs: int) -> None:
    tints = [(20 * i + 9, 255 - 20 * i, 60 + 15 * (i % 3)) for i in range(codecs + 1)]
    original, *others = (np.full((*size, 3), tint, np.uint8) for tint in tints)
    data = strip(original, [(["a codec", "1 bpp", ""], other) for other in others], 160)
    with Image.open(io.BytesIO(data)) as sheet:
        assert sheet.width <= 920 and sheet.height <= 500 * -(-(codecs + 1) // 3)
        counts = {tint: count for count, tint in sheet.convert("RGB").getcolors(1 << 24) or ()}
    # Each has its crop, but for the frame.
    assert all(counts[tint] >= 220 * 220 for tint in tints)


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
