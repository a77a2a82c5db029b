"""The report in a real browser: whole, quiet, accessible, safe; and small for 100,000 images."""

from __future__ import annotations

import base64
import hashlib
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import AigiError, freed
from pipeline.marks.names import embed
from pipeline.pages.build import watermarks_section
from pipeline.pages.gallery import sheets_section
from pipeline.pages.report import MOST_PICTURES, SIDE, report
from pipeline.pages.thumbnails import Place, thumbnails
from pipeline.pixels import pixels_sha256, png_bytes
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, QUALITY, SELECTION
from tests.conftest import aigi_here, record_table
from tests.pages.conftest import PICTURES, Visit


@pytest.fixture(scope="module")
def page(hostile: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    done = aigi_here("report", str(hostile[1]), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def axe() -> str:
    """The source of axe-core, as one of our development packages brings it."""
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def cells(page: Any, caption: str) -> list[list[str]]:
    rows = page.locator("table", has_text=caption).first.locator("tbody tr")
    return [
        [text.strip() for text in row.locator("th, td").all_inner_texts()] for row in rows.all()
    ]


def test_the_report_says_what_the_tables_say(
    chromium: Any, page: Path, hostile: tuple[Path, Path]
) -> None:
    selection = Store(str(hostile[1])).read_all("selection").to_pylist()
    kept = sum(row["keep"] for row in selection)
    with Visit(chromium, page) as visit:
        flow = {row[0]: row for row in cells(visit.page, "Stages")}
        assert flow["plan"][3] == str(PICTURES + 8)
        assert flow["selection"][1:4] == [
            f"{PICTURES + 8} planned",
            flow["selection"][2],
            str(kept),
        ]
        for reason in ("blank", "duplicate", "concept"):
            count = sum(row["reason"] == reason for row in selection)
            assert count and f"{reason} {count}" in flow["selection"][2]
        assert flow["release"][3] == str(kept)
        planned = {
            tuple(row[:2]): row[2:4] for row in cells(visit.page, "Images by source and split")
        }
        assert planned["drawn", "train"][0] == str(PICTURES)
        scores = {row[0]: row for row in cells(visit.page, "Scores")}
        black = sum(row["reason"] == "blank" for row in selection)
        assert scores["black"][1:4] == ["at most 0.98", str(PICTURES + 8), str(black)]
        assert scores["<b>rain</b>"][1] == "at most 0.12"
        groups = visit.page.locator("#duplicates .groups > div")
        assert groups.count() == sum(row["reason"] == "duplicate" for row in selection)
        assert groups.first.locator("img").count() == 2
        unsafe = visit.page.locator("#dropped details")
        assert unsafe.count() == 1 and not unsafe.locator("img").first.is_visible()
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert visit.page.evaluate(broken) == 0
        assert not visit.said and not visit.strangers()


def test_captions_are_shown_not_run(chromium: Any, page: Path) -> None:
    with Visit(chromium, page) as visit:
        assert visit.page.title().startswith("Report of ")
        assert visit.page.locator("main script, main iframe, main b").count() == 0
        assert visit.page.locator("img:not([src^='data:image/webp'])").count() == 0
        text = visit.page.locator("#sheets").inner_text()
        assert "<script>document.title = 'run'; console.error('run')</script> a boat" in text
        assert "\u202e" not in visit.page.content()
        policy = visit.page.locator("meta[http-equiv]").get_attribute("content")
        assert "default-src 'none'" in policy and "script-src 'none'" in policy
        assert not visit.said


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("report", "light"), ("report", "dark"), ("review", "light"), ("review grid", "dark")],
)
def test_axe_finds_nothing_serious(
    chromium: Any, page: Path, hostile: tuple[Path, Path], tmp_path: Path, name: str, scheme: str
) -> None:
    source = axe()
    if name != "report":
        from pipeline.pages.review import review

        page = tmp_path / "review.html"
        page.write_text(review(Store(str(hostile[1])), ["kept", "concept", "duplicate"], 12)[0])
    with Visit(chromium, page, color_scheme=scheme, bypass_csp=True) as visit:
        if "grid" in name:
            visit.page.keyboard.press("k")
            visit.page.keyboard.press("g")
        visit.page.evaluate(source)
        # The dark pages differ from the light ones in nothing but colours.
        rules = "{runOnly: ['color-contrast']}" if scheme == "dark" else ""
        found = visit.page.evaluate(f"axe.run({rules})")
        assert len(found["passes"]) > (0 if rules else 15)
        assert [
            (item["id"], item["nodes"][0]["html"][:200]) for item in found["violations"]
        ] == [], "nothing at all, so nothing serious"


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_its_screen(
    chromium: Any, page: Path, hostile: tuple[Path, Path], tmp_path: Path, width: int
) -> None:
    from pipeline.pages.review import review

    other = tmp_path / "review.html"
    other.write_text(review(Store(str(hostile[1])), ["kept"], 12)[0])
    for file in (page, other):
        with Visit(chromium, file, viewport={"width": width, "height": 700}) as visit:
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints(chromium: Any, page: Path) -> None:
    with Visit(chromium, page, color_scheme="dark") as visit:
        visit.page.emulate_media(media="print")
        colors = "[...document.styleSheets[0].cssRules].filter(r => r.selectorText == ':root')"
        for name in visit.page.evaluate(f"[...{colors}[0].style].filter(n => n.startsWith('--c'))"):
            # On paper the ground is white, whatever the screen likes.
            light = visit.page.evaluate(f"{colors}[0].style.getPropertyValue('{name}')")
            paper = f"getComputedStyle(document.documentElement).getPropertyValue('{name}')"
            assert visit.page.evaluate(paper).strip() == light.strip()
        assert not visit.page.locator("nav").is_visible()
        assert visit.page.pdf().startswith(b"%PDF")


def test_the_worst_thumbnails_stay_below_the_bound(tmp_path: Path) -> None:
    """Noise compresses worst: the most pictures of it leave room for everything else."""
    noise = np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    image = {"bytes": png_bytes(noise), "path": None}
    first = {"image_id": "a", "image": image, "width": 400, "height": 400}
    rows = [first | {"pixels_sha256": pixels_sha256(noise)}, {"image_id": "b"}]
    Store(str(tmp_path)).write("images", "s", pa.Table.from_pylist(rows, IMAGES), IMAGES)
    found = thumbnails(Store(str(tmp_path)), [Place("s", 0), Place("s", 1)], SIDE, 75)
    assert list(found) == [Place("s", 0)], "a row without a picture is left out"
    assert (found[Place("s", 0)].width, found[Place("s", 0)].height) == (SIDE, SIDE)
    data = base64.b64decode(found[Place("s", 0)].address.split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE)
    assert len(found[Place("s", 0)].address) * MOST_PICTURES < 12_000_000


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    image = {"bytes": b"no picture", "path": None}
    rows = [{"image_id": "a", "image": image, "width": 4, "height": 4}]
    Store(str(tmp_path)).write("images", "s", pa.Table.from_pylist(rows, IMAGES), IMAGES)
    with pytest.raises(AigiError, match=r"s\.parquet: row 1 \(a\): not a picture"):
        thumbnails(Store(str(tmp_path)), [Place("s", 0)], SIDE)


def large_run(root: Path, count: int, shards: int) -> Store:
    """Narrow tables of `count` images of five sources, small pictures, every reason."""
    store = Store(str(root))
    grey = np.full((8, 8, 3), 90, np.uint8)
    data = png_bytes(grey)
    each = count // shards
    for shard in range(shards):
        ids = [hashlib.sha256(f"{shard}.{n}".encode()).hexdigest()[:32] for n in range(each)]
        name, source = f"s-{shard:05d}", f"source-{shard % 5}"
        common = {"image_id": ids}
        reasons = [(None, "nsfw", "blank", "clip_score", "duplicate")[n % 5] for n in range(each)]
        columns: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
            "plan": (PLAN, {
                "source": [source] * each, "split": ["train"] * each,
                "text": [f"a prompt of many words <i>{n}</i> " * 4 for n in range(each)],
            }),
            "images": (IMAGES, {
                "image": [{"bytes": data, "path": None}] * each, "width": [8] * each,
                "height": [8 + n % 300 for n in range(each)], "device": ["cpu"] * each,
                "pixels_sha256": [pixels_sha256(grey)] * each,
            }),
            "quality": (QUALITY, {
                "entropy": [n / each for n in range(each)],
                "concepts": [[("rain", 0.5)]] * each,
            }),
            "selection": (SELECTION, {
                "source": [source] * each, "split": ["train"] * each,
                "keep": [reason is None for reason in reasons], "reason": reasons,
                "duplicate_of": [ids[0] if why == "duplicate" else None for why in reasons],
                "similarity": [0.97] * each,
            }),
        }  # fmt: skip
        for table, (schema, given) in columns.items():
            values = common | given
            arrays = [
                pa.array(values.get(field.name, [None] * each), field.type) for field in schema
            ]
            store.write(table, name, pa.Table.from_arrays(arrays, schema=schema), schema)
    for table in ("plan", "images", "quality", "selection"):
        record_table(store, table)
    return store


def test_no_more_thumbnails_are_drawn_than_a_page_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = large_run(tmp_path, 400, 4)
    whole, sections = report(store)
    galleries = [g for section in sections for g in section.galleries if g.pictures]
    drawn = whole.count("<img")
    assert drawn > 20 and "not drawn" not in whole
    monkeypatch.setattr("pipeline.pages.report.MOST_PICTURES", 20)
    text, _ = report(store)
    assert 0 < text.count("<img") < drawn
    places = {shown.place for g in galleries for shown in g.pictures}
    assert f"{len(places) - 20:,} more examples are not drawn" in text


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_images_are_a_small_page(tmp_path: Path, count: int) -> None:
    text, _ = report(large_run(tmp_path, count, 20))
    assert text.count("<img") <= MOST_PICTURES
    assert len(text.encode()) + 12_000_000 < 20_000_000, "beside the worst thumbnails"
    assert f"{count:,} images planned" in text
    assert "The first 60 of 1," in text or count == 5_000
    assert "There are 20 groups, of which 20 are shown" in text


def test_no_run_no_report(tmp_path: Path) -> None:
    done = aigi_here("report", str(tmp_path), "--out", str(tmp_path / "report.html"))
    assert done.returncode == 1 and "no run here" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_half_made_run_has_a_report(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(hostile[1], tmp_path / "run")
    store = Store(str(tmp_path / "run"))
    for shard in store.shards("images"):
        freed.restore(store, shard)
    for table in ("selection", "quality", "embeddings", "duplicates", "release"):
        shutil.rmtree(tmp_path / "run" / table)
        (tmp_path / "run" / "_stages" / f"{table}.json").unlink()
    text, _ = report(Store(str(tmp_path / "run")))
    assert "Contact sheets" in text and "Dropped images" not in text


@pytest.mark.parametrize(("sources", "shown", "each"), [(2, 2, 24), (20, 20, 12), (100, 60, 4)])
def test_contact_sheets_share_the_room(sources: int, shown: int, each: int) -> None:
    rows = [
        {"image_id": f"{n:03d}", "source": f"s{source:03d}", "split": "test", "text": "a boat",
         "watermark": "dwt-dct" if n % 2 else "none", "keep": n < 40, "width": 8,
         "shard": "a", "row": n}
        for source in range(sources) for n in range(50)
    ]  # fmt: skip
    section = sheets_section(pa.Table.from_pylist(rows))
    assert [len(gallery.pictures) for gallery in section.galleries] == [each] * shown
    assert f"Up to {each} kept images" in section.text[0]
    assert [p.facts for p in section.galleries[0].pictures[:2]] == ["test", "test, dwt-dct"]
    dropped = pa.Table.from_pylist([row | {"keep": False} for row in rows[:5]])
    assert not sheets_section(dropped).galleries


def test_marks_are_read_back(tmp_path: Path) -> None:
    smooth = np.linspace(40, 200, 256)[:, None, None].repeat(256, 1).repeat(3, 2)
    noise = np.random.default_rng(5).integers(-20, 20, (3, 256, 256, 1))
    plain = [(smooth + one).astype(np.uint8) for one in noise]
    marks = ["dwt-dct-svd"] * 3 + ["none"] * 3 + ["visible:text=AI"]
    pictures = [*(embed(rgb, "dwt-dct-svd") for rgb in plain), *plain, plain[0]]
    rows = [
        {"image_id": f"{n}", "image": {"bytes": png_bytes(rgb), "path": None}, "width": 256,
         "height": 256, "pixels_sha256": pixels_sha256(rgb)}
        for n, rgb in enumerate(pictures)
    ]  # fmt: skip
    store = Store(str(tmp_path))
    store.write("images", "s", pa.Table.from_pylist(rows, IMAGES), IMAGES)
    known = [
        {"image_id": f"{n}", "source": "a", "split": "test", "watermark": mark, "keep": True,
         "width": 256, "shard": "s", "row": n}
        for n, mark in enumerate(marks)
    ]  # fmt: skip
    section = watermarks_section(store, pa.Table.from_pylist(known))
    assert section is not None
    marked, unmarked, visible = section.tables[0].rows
    assert marked[3:] == ("dwt-dct-svd", "3", "3", "3 of 3", "1.000")
    assert unmarked[3:7] == ("dwt-dct-svd", "3", "3", "0 of 3")
    assert 0.3 < float(unmarked[7]) < 0.7, "by chance"
    assert visible[3:] == ("", "1", "1", "", "")
    assert watermarks_section(store, pa.Table.from_pylist(known[3:6])) is None
