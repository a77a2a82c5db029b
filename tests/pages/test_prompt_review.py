"""A review of captions by keyboard in a real browser, and what its decisions do to the prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline.decisions import read_any, read_decisions
from pipeline.pages.prompt_review import prompt_review
from pipeline.prompts.text import prompt_id
from pipeline.store import Store
from tests.conftest import aigi_here
from tests.pages.conftest import Visit

GOOD = [f"a {color} {thing} on a calm lake" for color in ("red", "green", "old", "small")
        for thing in ("boat", "house", "ferry")]  # fmt: skip
GERMAN = "ein Mann mit Hut wartet auf den Bus"
NAKED = "a naked lady on a bed"
HOSTILE = "<script>document.title = 'run'</script> der Mann und die Frau warten \u202egnirts"
TWIN = "the red house on the calm lake"
CAPTIONS = [*GOOD, GERMAN, NAKED, HOSTILE, TWIN, "too short", "hi"]


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    path = tmp_path / "flow.yaml"
    path.write_text(json.dumps(
        {"run": "run", "prompts": {"sources": [{"kind": "text", "path": "captions.txt"}],
                                   "filters": {"min_ascii_letters": 0.5}}}
    ))  # fmt: skip
    assert aigi_here("run", str(path)).returncode == 0
    return path


def texts(folder: Path) -> list[str]:
    found: list[str] = pq.read_table(folder / "run" / "prompts")["text"].to_pylist()
    return found


def reasons(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "run" / "rejects" / "prompts.parquet").to_pylist()
    return {row["text"]: row["reason"] for row in rows}


def decided(folder: Path, decisions: dict[str, str], *more: str) -> str:
    """Run again with these decisions, by text; what was said."""
    lines = ["prompt_id,decision", *(f"{prompt_id(t)},{d}" for t, d in decisions.items())]
    (folder / "decisions.csv").write_text("\n".join(lines) + "\n")
    done = aigi_here("run", str(folder / "flow.yaml"), "--replace", "--set",
                     f"prompts.review={folder}/decisions.csv", *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_captions_are_reviewed_by_keyboard_and_decisions_count(
    chromium: Any, flow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "review.html"
    done = aigi_here("review", str(tmp_path / "run"), "--of", "prompts", "--out", str(out),
                     "--reason", "unsafe,language,near duplicate")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{out}: 5 prompts" in done.stdout, "and the one that stays for the near duplicate"
    assert "--set prompts.review=decisions.csv" in done.stderr + done.stdout
    page = out.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|src=\"(?!data:)|@import", re.sub(r'id="data">.*', "", page))
    with Visit(chromium, out) as visit:
        view = visit.page
        shown = view.locator("#pictures")
        assert "Prompt 1 of 5" in view.locator("#said").inner_text()
        assert shown.inner_text() == "Hidden: may be unsafe"
        view.keyboard.press("s")
        assert shown.inner_text() == NAKED
        assert "refused: unsafe: lexicon" in view.locator("#facts").inner_text()
        seen = {}
        for _ in range(5):
            text = shown.inner_text().splitlines()[0]
            seen[text] = view.locator("#facts").inner_text()
            key = "d" if text in GOOD else "k" if text in (GERMAN, TWIN) else "u"
            if text == TWIN:
                assert "The prompt that stays" in shown.inner_text()
            view.keyboard.press(key)
        assert set(seen) >= {NAKED, GERMAN, TWIN}
        assert any(text.startswith("<script>") and "\u202e" not in text for text in seen)
        assert "refused: language: de" in seen[GERMAN]
        assert "5 decided: all done" in view.locator("#said").inner_text()
        view.keyboard.press("g")
        # Cells out of sight are not laid out, so their text is no "inner" text.
        assert GERMAN in (view.locator("#grid").text_content() or "")
        with view.expect_download() as download:
            view.keyboard.press("e")
        download.value.save_as(tmp_path / "decisions.csv")
        assert view.title().startswith("Review of ") and not visit.said and not visit.strangers()
    found = read_decisions(str(tmp_path / "decisions.csv"), "prompt_id")
    assert found[prompt_id(GERMAN)] == found[prompt_id(TWIN)] == "keep"
    done = aigi_here("run", str(flow), "--replace", "--set",
                     f"prompts.review={tmp_path}/decisions.csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {GERMAN, TWIN} < set(texts(tmp_path)) and NAKED not in texts(tmp_path)
    assert GOOD[1] not in texts(tmp_path) and reasons(tmp_path)[GOOD[1]] == "review: dropped"


def test_keep_overrules_every_filter_but_a_dropped_one_is_out(flow: Path, tmp_path: Path) -> None:
    assert set(texts(tmp_path)) == set(GOOD)
    kept = [GERMAN, NAKED, TWIN, "too short"]
    decided(tmp_path, {**dict.fromkeys(kept, "keep"), GOOD[3]: "drop", GOOD[4]: "unsure"})
    assert set(texts(tmp_path)) == {*GOOD, *kept} - {GOOD[3]}
    assert texts(tmp_path)[:4] == kept, "those that people keep come first"
    decided(tmp_path, dict.fromkeys(kept, "keep"), "--set", "prompts.select.count=6")
    assert len(texts(tmp_path)) == 6 and texts(tmp_path)[:4] == kept
    long = "prompts.filters.max_tokens=6"
    decided(tmp_path, {GERMAN: "keep"}, "--set", long)
    assert texts(tmp_path) == [GERMAN], "the filter of tokens, too"


def test_kept_prompts_are_in_a_choice_that_spreads(flow: Path, tmp_path: Path) -> None:
    for method in ("diverse", "facility_location"):
        decided(tmp_path, {GERMAN: "keep", GOOD[5]: "keep"}, "--set", "prompts.select.count=4",
                "--set", f"prompts.select.method={method}")  # fmt: skip
        assert texts(tmp_path)[:2] == [GERMAN, GOOD[5]] and len(texts(tmp_path)) == 4


def test_decisions_without_effect_are_said(flow: Path, tmp_path: Path) -> None:
    said = decided(tmp_path, {"a prompt of another run": "drop", GERMAN: "keep", NAKED: "keep"},
                   "--set", "prompts.select.count=1")  # fmt: skip
    assert "1 reviewed prompts are not among the captions, the first is " in said
    assert "people keep 2, and prompts.select.count is 1" in said
    again = aigi_here("run", str(flow), "--set", f"prompts.review={tmp_path}/none.csv")
    assert again.returncode == 1
    assert "prompts.review: " in again.stderr and "none.csv: no such file" in again.stderr


def test_other_decisions_are_other_settings(flow: Path, tmp_path: Path) -> None:
    decided(tmp_path, {GERMAN: "keep"})
    (tmp_path / "decisions.csv").write_text(f"prompt_id,decision\n{prompt_id(NAKED)},keep\n")
    done = aigi_here("run", str(flow), "--set", f"prompts.review={tmp_path}/decisions.csv")
    assert NAKED in texts(tmp_path) and GERMAN not in texts(tmp_path), done.stdout + done.stderr


def test_samples_are_even_and_repeat(flow: Path, tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    one, shown = prompt_review(run, ["kept", "too few words"], 4, seed=1)
    assert shown == 4 and one.count("refused: too few words") == 2
    assert one == prompt_review(run, ["kept", "too few words"], 4, seed=1)[0]
    assert one != prompt_review(run, ["kept", "too few words"], 4, seed=2)[0]
    assert "4 of 14 that are kept, too few words" in one


def test_kept_ones_are_not_shown_as_refused(flow: Path, tmp_path: Path) -> None:
    decided(tmp_path, {GERMAN: "keep"})
    page, _ = prompt_review(Store(str(tmp_path / "run")), ["language"], 9)
    assert GERMAN not in page


def test_what_is_refused(flow: Path, tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    with pytest.raises(AigiError, match="--reason ugly: expected one of kept, too few words"):
        prompt_review(run, ["ugly"], 5)
    with pytest.raises(AigiError, match="no caption is personal"):
        prompt_review(run, ["personal"], 5)
    with pytest.raises(AigiError, match="no prompts table"):
        prompt_review(Store(str(tmp_path)), ["kept"], 5)


def test_reviews_of_prompts_are_merged_and_not_with_those_of_images(tmp_path: Path) -> None:
    for name, column in (("anna", "prompt_id"), ("ben", "prompt_id"), ("eva", "image_id")):
        (tmp_path / f"{name}.csv").write_text(f"{column},decision\na,keep\nb,drop\n")
    files = [str(tmp_path / f"{name}.csv") for name in ("anna", "ben", "eva")]
    out = tmp_path / "both.csv"
    done = aigi_here("merge-reviews", *files[:2], "--out", str(out))
    assert done.returncode == 0 and "2 prompts, 0 unsure" in done.stdout
    assert read_any(str(out))[0] == "prompt_id"
    mixed = aigi_here("merge-reviews", *files, "--out", str(out))
    assert mixed.returncode == 1 and "merge files of one kind" in mixed.stderr
    (tmp_path / "none.csv").write_text("name,decision\na,keep\n")
    with pytest.raises(AigiError, match="expected a column image_id or prompt_id, found name"):
        read_any(str(tmp_path / "none.csv"))
