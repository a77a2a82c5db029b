"""The dataset card says what is there and cannot be broken by what it quotes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest import CARD, open_release
from pipeline.markdown import plain
from pipeline.release import card, card_rows, words
from pipeline.release.counts import Counts, Kind, Origin, PromptCount
from pipeline.release.croissant import CROISSANT
from pipeline.release.sheet import SHEET, Shown
from pipeline.release.verify import compare
from pipeline.selection import rules
from pipeline.settings import SPLITS, check
from pipeline.tables import IMAGES, RELEASE, release_fields
from pipeline.workflow import Workflow
from tests.conftest import ROOT, record_table
from tests.release.conftest import (
    NAUGHTY,
    SPECIFICATION,
    body,
    dataset_with,
    finish,
    made,
    released,
    shown,
    some_files,
    tables,
)
from tests.test_markdown import HOSTILE, texts

# --- What it says -------------------------------------------------------------------------------


def test_every_column_is_explained(small: tuple[Path, str]) -> None:
    assert [column.name for column, _ in release_fields(["PNG"])] == RELEASE.names
    (fields,) = tables(small[1])["Fields"]
    assert [line[0] for line in fields[1:]] == RELEASE.names
    assert all(len(line[2]) > 3 for line in fields)


def test_counts_are_those_of_the_rows(small: tuple[Path, str]) -> None:
    folder, text = small
    rows = [
        (path.parent.name, path.name.split("-")[0], row)
        for path in sorted(folder.glob("*/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    found = tables(text)
    splits = Counter((config, split) for config, split, _ in rows)
    (counted,) = found["Configs and splits"]
    assert counted[0] == ["config", "source", "train", "validation", "test", "all"]
    for config, title in (("sd", "Stable"), ("mj", "Elsewhere")):
        numbers = [splits[config, split] for split in SPLITS]
        assert [config, title, *map(str, numbers), str(sum(numbers))] in counted
    assert counted[-1] == ["all", "", "7", "0", "5", "12"]
    sizes = Counter(
        (config, split, f"{row['width']} x {row['height']}") for config, split, row in rows
    )
    (resolutions,) = found["Resolutions"]
    assert sorted(resolutions[1:]) == sorted([*key, str(many)] for key, many in sizes.items())
    assert f"{len(rows)} images of {len({row['prompt_id'] for *_, row in rows})} prompts" in text


def test_sources_have_the_revisions_of_the_rows_and_a_licence(small: tuple[Path, str]) -> None:
    models, settings = tables(small[1])["Sources"]
    rail = "CreativeML OpenRAIL++-M"
    assert models[1:] == [
        ["sd", "test/sd", "a" * 40, rail, "7"],
        ["sd", "test/sd", "next|main", rail, "1"],
        ["mj", "closed", "not stated", "terms of others", "4"],
    ]
    assert settings[1:] == [["sd", "ddim", "2", "7.5", "", "float32"]]
    assert "[CreativeML OpenRAIL++-M](<https://example.org/rail>)" in small[1]


def test_prompts_have_an_origin_and_a_licence_or_say_that_none_is_stated(
    small: tuple[Path, str],
) -> None:
    origins, filters, refused, unplanned = tables(small[1])["Prompts"]
    assert origins[1:] == [
        ["cc12m", "cc12m", "captions.tsv", "any | use", "6", "4", "4"],
        ["own", "text", "captions.tsv", "not stated", "3", "2", "4"],
        ["mj", "with the pictures", "pictures", "not stated", "", "4", "4"],
    ]
    assert ["words", "3 to 77"] in filters
    assert refused == [
        ["reason", "cc12m", "own"],
        ["too few words", "3", "0"],
        ["a|b c", "0", "1"],
        ["duplicate", "0", "1"],
    ]
    assert unplanned == [["reason", "mj"], ["no caption", "1"]]


def test_watermarks_are_told_and_how_to_read_them(small: tuple[Path, str]) -> None:
    (marks,) = tables(small[1])["Watermarks"]
    assert marks[1:] == [["sd", "test", "dwt-dct", "2"]]
    assert "aigi watermark detect FOLDER" in small[1]
    assert "none after JPEG 90" in small[1]


def test_dropped_images_are_counted_by_reason_and_source(small: tuple[Path, str]) -> None:
    reasons, failed = tables(small[1])["Selection"]
    assert failed == [["reason", "sd"], ["black", "1"]]
    assert reasons[0] == ["reason", "rule", "sd", "mj"]
    by_reason = {line[0]: line[1:] for line in reasons[1:]}
    assert list(by_reason) == [*rules.REASONS, "kept"]
    assert by_reason["failed"] == ["no picture was made", "1", "0"]
    assert by_reason["surplus"][1:] == ["1", "0"]
    assert by_reason["concept"][0] == "probability of “a|b” above 0.5"
    assert by_reason["nsfw"][0] == "not measured"
    assert by_reason["kept"][1:] == ["8", "4"]
    assert "14 images were planned" in small[1]


def test_limits_name_what_is_short_imported_and_left_out(small: tuple[Path, str]) -> None:
    limits = small[1].split("## Known limits")[1].split("##")[0]
    assert "`mj` `train`: 3 of 5 wanted." in limits
    assert "`sd`" not in "".join(re.findall(r".* wanted\.", limits))
    assert "`mj`: imported." in limits
    assert "1 pictures were converted, see `note`" in limits
    assert "Not asked for: `left-out`" in limits
    assert "Of 6 prompts 1 are longer" in limits
    assert "`sd` “next&#124;main”" in limits
    assert "No safety checker" in limits


def test_a_limit_of_the_plan_is_told(tmp_path: Path) -> None:
    changed = {"dataset": "spec.yaml", "sources": ["sd", "mj"], "limit": 2}
    _, text, _ = released(tmp_path, plan=changed)
    assert "at most 2 generations of each source" in text


def test_no_place_of_the_machine_is_told(small: tuple[Path, str]) -> None:
    folder, text = small
    for told in (text, (folder / CROISSANT).read_text()):
        assert str(folder.parents[1]) not in told
        assert folder.parents[1].name not in told


@pytest.mark.parametrize("sources", [["mj"], ["sd"]])
def test_a_release_of_one_kind_of_source(tmp_path: Path, sources: list[str]) -> None:
    """Imports alone have no prompts table; generated ones alone no import."""
    workflow, store = made(tmp_path, plan={"dataset": "spec.yaml", "sources": sources})
    for shard in list(store.shards("plan")):
        if not shard.startswith(sources[0]):
            for table in ("plan", "images"):
                store.remove(table, f"{shard}.parquet")
    for table in ("plan", "images"):
        record_table(store, table)
    if sources == ["mj"]:
        store.remove("prompts")
        store.remove("rejects")
        workflow = workflow.model_copy(update={"prompts": None})
    finish(workflow, store)
    text = (tmp_path / "run" / "release" / CARD).read_text()
    found = tables(text)
    assert [line[0] for line in found["Configs and splits"][0][1:]] == [*sources, "all"]
    assert len(found["Prompts"]) == (1 if sources == ["mj"] else 4)


def test_a_release_without_a_single_image(tmp_path: Path) -> None:
    workflow, store = made(tmp_path)
    for shard in store.shards("images"):
        rows = store.read("images", shard).to_pylist()
        failed = [{"image_id": row["image_id"], "error": "black"} for row in rows]
        store.write("images", shard, pa.Table.from_pylist(failed, schema=IMAGES), IMAGES)
    record_table(store, "images")
    finish(workflow, store)
    text = (tmp_path / "run" / "release" / CARD).read_text()
    assert "0 images of 0 prompts, 0.0 MB in 0 parquet files." in text
    assert "`sd` `test`: 0 of 4 wanted." in text
    assert compare(*open_release(str(tmp_path / "run" / "release"))) == []


def test_many_sizes_are_one_line(tmp_path: Path) -> None:
    counts = some_counts("x")
    base = next(iter(counts.kinds))
    for width in range(card_rows.SHOWN_SIZES + 7):
        counts.kinds[base._replace(width=1000 + width, height=5)] += 1
    lines = card_rows._resolutions(counts, ["sd"])
    assert len(lines) == 4 + card_rows.SHOWN_SIZES + 1
    assert lines[-1] == "| `sd` | `train` | 8 others | 8 |"


def test_rules_say_what_was_asked_for_and_what_was_not_looked_at() -> None:
    asked = check(
        Workflow,
        {
            "run": "r",
            "embeddings": {"folder": "/x/clip", "sha256": "0" * 64},
            "quality": {"safety_checker": {}},
            "duplicates": {},
            "selection": {
                "max_black": None, "max_blank": 0.9, "min_entropy": 1, "max_blockiness": 2,
                "max_nsfw": 0, "min_clip_score": 0.2, "min_similarity": 0.95,
                "exact_duplicates": False, "planned_size": False,
            },
        },
        "flow.yaml",
    )  # fmt: skip
    assert words.rule_words(asked.rules, asked.scored) == {
        "failed": "no picture was made",
        "review": "nobody was asked",
        "size": "not asked for",
        "blank": "share of the commonest colour above 0.9 or entropy in bits below 1",
        "compressed": "blockiness above 2",
        "nsfw": "score of the safety checker above 0",
        "concept": "not asked for",
        "clip_score": "cosine of image and prompt below 0.2",
        "duplicate": "cosine of two images at least 0.95",
        "surplus": "good, but more than were wanted",
    }
    nothing = words.rule_words(rules.Selection(), rules.Scored())
    assert nothing["blank"] == nothing["nsfw"] == nothing["clip_score"] == "not measured"
    assert nothing["duplicate"] == "not looked for"
    assert asked.embeddings is not None
    assert words.embedder_words(asked.embeddings).startswith(
        "clip (a local open_clip model, sha256 0"
    )


# --- What it quotes -----------------------------------------------------------------------------


def some_counts(text: str) -> Counts:
    """Counts with the text wherever rows, rejects or file names could bring one in."""
    kind = Kind(
        "sd", "train", text, text, 2, 7.5, text, text, text, 64, 64, f"visible:text={text}",
        text, text, False,
    )  # fmt: skip
    return Counts(
        kinds=Counter({kind: 3}),
        prompts={"sd": 2, "": 2},
        origins={
            Origin(f"a{text}", f"b{text}"): PromptCount(4, 3, 3, 1),
            Origin(f"a{text}", "x"): PromptCount(4, 3, 3, 1),
        },
        planned=Counter({"sd": 4}),
        dropped=Counter({("sd", "failed"): 1}),
        refused=Counter({(f"a{text}", f"c{text}"): 2}),
        unplanned=Counter({("mj", f"d{text}"): 2}),
        failed=Counter({("sd", f"e{text}"): 1}),
        samples={},
        formats=("WebP",),
    )


def some_card(text: str) -> str:
    """A card with the text in every place that is not ours."""
    sources: Any = SPECIFICATION["sources"]
    fit_for_a_path = text.replace("\0", "").encode("utf-8", "replace").decode()
    dataset = dataset_with(
        title=text,
        licence=text,
        description=re.sub(r"\n\s*\n", "\n", text),  # paragraphs may be several
        citation=text,
        sources={"sd": sources["sd"] | {"title": text, "licence": text}},
    )
    workflow = check(
        Workflow,
        {
            "run": "r",
            "plan": {"dataset": str(ROOT / "manifests" / "demo.yaml"), "sources": ["sd"]},
            "prompts": {
                "sources": [{"kind": "text", "path": "x", "name": f"a{text}", "licence": text}],
                "filters": {"person": text, "blocklist": f"/x{fit_for_a_path}"},
            },
            "quality": {},
            "embeddings": {"model": f"m{text}", "pretrained": text},
            "selection": {"max_concepts": {text: 0.5}},
        },
        "flow.yaml",
    )
    files = some_files(("sd", "train", 3))
    return card.readme(workflow, dataset, files, some_counts(text), [Shown("sd", "train", text)])


def skeleton(text: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Block tokens, inline tokens other than text, and keys of the front matter."""
    tokens = body(text)
    inline = [
        [child.type for child in token.children or [] if child.type != "text"]
        for token in tokens
        if token.type == "inline"
    ]
    return [token.type for token in tokens], inline, list(yaml.safe_load(text.split("---\n")[1]))


@settings(max_examples=60, deadline=None)
@given(st.one_of(texts, st.sampled_from(HOSTILE)).filter(lambda text: plain(text) != ""))
def test_nothing_quoted_changes_the_card(text: str) -> None:
    from huggingface_hub import DatasetCard

    whole = some_card(text)
    assert skeleton(whole) == skeleton(some_card("x"))
    assert whole.encode().decode() == whole
    again: Any = DatasetCard(whole)
    assert again.data.pretty_name == plain(text)
    assert again.data["configs"][0]["config_name"] == "sd"
    heading = next(token for token in body(whole) if token.type == "inline")
    assert shown(heading) == plain(text)
    cells = tables(whole)
    assert cells["Pictures"][0][1] == ["sd", "train", plain(card_rows._cut(text))]
    assert [line[2:4] for line in cells["Prompts"][0][1:]] == [
        [plain(f"b{text}"), "not stated"],
        ["x", plain(text)],
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts(text: str) -> None:
    whole = some_card(f"{text} x")
    assert skeleton(whole) == skeleton(some_card("x"))
    assert yaml.safe_load(whole.split("---\n")[1])["pretty_name"] == plain(f"{text} x")


def test_the_picture_is_shown_with_its_prompts_beside(small: tuple[Path, str]) -> None:
    folder, text = small
    (captions,) = tables(text)["Pictures"]
    assert f"]({SHEET})" in text
    prompts_of = {
        (path.parent.name, path.name.split("-")[0], plain(item))
        for path in folder.glob("*/*.parquet")
        for item in pq.read_table(path, columns=["text"])["text"].to_pylist()
    }
    assert {tuple(line) for line in captions[1:]} <= prompts_of
    assert [line[0] for line in captions[1:]] == ["sd"] * 6 + ["mj"] * 2
    assert ["sd", "train", plain(NAUGHTY)] in captions
    assert "<script>" not in text


def test_a_description_keeps_its_paragraphs(small: tuple[Path, str]) -> None:
    first = [shown(token) for token in body(small[1]) if token.type == "inline"][:3]
    assert first == ["Small | set", "One paragraph.", "- not a list"]


def test_long_prompts_are_cut() -> None:
    assert card_rows._cut("word " * 100) == ("word " * 40).rstrip() + "…"
    assert card_rows._cut("short\nprompt") == "short prompt"
