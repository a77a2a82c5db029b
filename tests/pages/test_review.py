"""A review by keyboard in a real browser, its file applied; merged files and their agreement."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import make
from pipeline.decisions import DECISIONS, read_decisions
from pipeline.pages.review import review
from pipeline.progress import Progress
from pipeline.selection.agreement import as_csv, cohens_kappa, merge
from pipeline.shown import visible
from pipeline.store import Store
from tests.conftest import aigi_here
from tests.pages.conftest import Visit


@pytest.fixture(scope="module")
def page(hostile: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 30 images, written by the command."""
    out = tmp_path_factory.mktemp("review") / "review.html"
    done = aigi_here(
        "review", str(hostile[1]), "--reason", "kept,blank,duplicate", "--sample", "30",
        "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{out}: 30 images" in done.stdout
    return out


def selection(run: Path) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in Store(str(run)).read_all("selection").to_pylist()}


def test_thirty_images_by_keyboard(
    chromium: Any, page: Path, hostile: tuple[Path, Path], tmp_path: Path
) -> None:
    with Visit(chromium, page) as visit:
        view = visit.page
        said = view.locator("#said")
        for key in "kdu" * 10:
            view.keyboard.press(key)
        assert "30 decided: all done" in said.inner_text()
        for _ in range(3):
            view.keyboard.press("z")
        assert "27 decided" in said.inner_text()
        view.keyboard.press("g")  # goes on in the grid: the last of undo has the focus
        for key in ("k", "d", "d"):
            view.keyboard.press(key)
        assert "30 decided" in said.inner_text()
        view.reload()
        assert "30 decided" in said.inner_text(), "the browser keeps the decisions"
        with view.expect_download() as download:
            view.keyboard.press("e")
        assert download.value.suggested_filename == "decisions.csv"
        download.value.save_as(tmp_path / "decisions.csv")
        assert not visit.said and not visit.strangers()
    decisions = read_decisions(str(tmp_path / "decisions.csv"), "image_id")
    assert [list(decisions.values()).count(name) for name in DECISIONS] == [10, 11, 9]
    shutil.copytree(hostile[1], tmp_path / "run")
    review_set = f"selection.review={tmp_path}/decisions.csv"
    loaded = workflows.load(hostile[0], [f"run={tmp_path}/run", review_set])
    make(loaded, Store(loaded.run), Progress(quiet=True))
    before, after = selection(hostile[1]), selection(tmp_path / "run")
    for image, decision in decisions.items():
        if decision == "drop":
            assert after[image]["reason"] == "review"
        elif decision == "keep" and before[image]["reason"] == "blank":
            assert after[image]["reason"] is None
    blank = [image for image in decisions if before[image]["reason"] == "blank"]
    assert {decisions[image] for image in blank} >= {"keep"}, "the test has one to bring back"
    released = {
        row["image_id"]
        for shard in Store(loaded.run).shards("release")
        for row in Store(loaded.run).read("release", shard, ["image_id"]).to_pylist()
    }
    assert not released & {image for image, decision in decisions.items() if decision == "drop"}


def test_keys_move_and_reveal(chromium: Any, hostile: tuple[Path, Path], tmp_path: Path) -> None:
    html, _ = review(Store(str(hostile[1])), ["concept", "duplicate"], 500)
    (tmp_path / "review.html").write_text(html)
    with Visit(chromium, tmp_path / "review.html") as visit:
        view = visit.page
        veiled = view.locator("#pictures .veil")
        assert veiled.count() == 1, "what a concept dropped is blurred"
        view.keyboard.press("s")
        assert veiled.count() == 0
        view.keyboard.press("s")
        view.keyboard.press("g")
        cells = view.locator("#grid button")
        last = cells.count() - 2
        assert "Image 1 of" in view.locator("#said").inner_text()
        for _ in range(last):
            view.keyboard.press("ArrowRight")
        view.keyboard.press("g")
        assert view.locator("#pictures figure").count() == 2, (
            "a duplicate beside the one that stays"
        )
        assert "now\ndropped: duplicate" in view.locator("#facts").inner_text()
        view.click("#back")
        view.click("#drop")
        assert "1 decided" in view.locator("#said").inner_text()
        assert not visit.said


def test_captions_are_shown_not_run(chromium: Any, page: Path) -> None:
    with Visit(chromium, page) as visit:
        seen = set()
        for _ in range(30):
            seen.add(re.sub(r" number \d+$", "", visit.page.locator("#text").inner_text()))
            visit.page.keyboard.press("ArrowRight")
        assert visit.page.title().startswith("Review of ")
        assert visit.page.locator("main script, main iframe, main b").count() == 0
        assert not visit.said
    assert "<script>document.title = 'run'; console.error('run')</script> a boat" in seen
    assert any("a tree" in text and "}}dlrow{{ {% raw %}" in text for text in seen)
    assert not any("\u202e" in text for text in seen)


def test_the_page_needs_no_network(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    # The data may hold anything that a caption says; the rest names no address.
    assert not re.search(r"https?://|src=\"(?!data:)|@import", re.sub(r'id="data">.*', "", text))


def test_what_is_refused(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    run = Store(str(hostile[1]))
    with pytest.raises(AigiError, match="--reason ugly: expected one of kept, review, size"):
        review(run, ["ugly"], 5)
    with pytest.raises(AigiError, match="no image is nsfw"):
        review(run, ["nsfw"], 5)
    with pytest.raises(AigiError, match="no selection table"):
        review(Store(str(tmp_path)), ["nsfw"], 5)


def test_samples_are_even_and_repeat(hostile: tuple[Path, Path]) -> None:
    run = Store(str(hostile[1]))
    one, shown = review(run, ["kept", "blank"], 6, seed=1)
    assert shown == 6
    assert one == review(run, ["kept", "blank"], 6, seed=1)[0]
    assert one != review(run, ["kept", "blank"], 6, seed=2)[0]
    assert one.count("dropped: blank") == 2, "both black ones, though there are far more kept"


def test_two_people_are_merged(tmp_path: Path) -> None:
    one = tmp_path / "anna.csv"
    other = tmp_path / "ben.csv"
    one.write_text("image_id,decision\n" + "a,keep\nb,drop\nc,keep\nd,unsure\ne,drop\n")
    other.write_text("image_id,decision\n" + "a,keep\nb,keep\nc,keep\nd,unsure\nf,drop\n")
    done = aigi_here("merge-reviews", str(one), str(other), "--out", str(tmp_path / "both.csv"))
    assert done.returncode == 0, done.stderr
    assert f"b  {one}: drop  {other}: keep" in done.stdout
    # 3 of 4 the same; by chance (2 * 3 + 1 * 0 + 1 * 1) / 16.
    assert f"3 of 4 decisions agree, Cohen's kappa {(3 / 4 - 7 / 16) / (9 / 16):.3f}" in done.stdout
    assert read_decisions(str(tmp_path / "both.csv"), "image_id") == {
        "a": "keep", "b": "unsure", "c": "keep", "d": "unsure", "e": "drop", "f": "drop"
    }  # fmt: skip
    alone = aigi_here("merge-reviews", str(one), "--out", str(tmp_path / "both.csv"))
    assert alone.returncode == 1 and "two people" in alone.stderr


Decisions = st.lists(st.sampled_from(DECISIONS), min_size=1, max_size=30)


@given(Decisions, st.randoms())
def test_laws_of_kappa(one: list[str], random: Any) -> None:
    other = random.sample(one, len(one))
    kappa = cohens_kappa(one, other)
    assert kappa == cohens_kappa(other, one)
    if len(set(one)) == 1:
        assert kappa is None, "chance alone agrees fully"
    else:
        assert cohens_kappa(one, one) == 1.0
        assert kappa is not None and -1 <= kappa <= 1


def test_kappa_of_the_textbook() -> None:
    """50 proposals of two readers, 20 yes and 15 no together: 0.4 (Wikipedia's example)."""
    one = ["keep"] * 25 + ["drop"] * 25
    other = ["keep"] * 20 + ["drop"] * 5 + ["keep"] * 10 + ["drop"] * 15
    assert cohens_kappa(one, other) == pytest.approx(0.4)


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from(DECISIONS)))
def test_a_merge_of_equals_is_the_same(decisions: dict[str, str]) -> None:
    merged = merge({"one": decisions, "other": decisions})
    assert merged.decisions == decisions and not merged.disagreements
    assert as_csv(decisions).count("\n") == len(decisions) + 1


def test_marks_are_spelled_out() -> None:
    assert visible("a\u202eb\x00\nc\ud800") == "a[U+202E]b[U+0000] c?"
