"""The dataset card says what is there, cannot be broken by what it quotes, and loads."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from pipeline import AigiError
from pipeline.manifest import CARD, MANIFEST, PLAN_FILE, FileRecord, open_release
from pipeline.markdown import plain
from pipeline.plan import plan, specification
from pipeline.progress import Progress
from pipeline.prompts import prompts
from pipeline.release import card, front_matter, release, sheet, words
from pipeline.release.counts import Counts, Kind, Origin, PromptCount
from pipeline.release.croissant import CROISSANT, croissant
from pipeline.release.recipe import Release
from pipeline.release.sheet import SHEET, Sample, Shown
from pipeline.release.verify import compare
from pipeline.run import run_stages
from pipeline.selection import rules, selection
from pipeline.settings import SPLITS, check
from pipeline.stage import Compute, Stage, fingerprint
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, PROMPTS, REJECTS, RELEASE, RELEASE_MEANING
from pipeline.workflow import Workflow
from tests.conftest import ROOT
from tests.test_markdown import HOSTILE, texts

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NAUGHTY = (
    "a | b `c` <script>alert(1)</script> [l](x) ![i](y)\n\n---\n# no "
    "\u202e\U0001f469\u200d\U0001f680"
)

SPECIFICATION = {
    "name": "small",
    "title": "Small | set",
    "licence": "see the sources",
    "licence_url": "https://example.org/licence",
    "language": ["en"],
    "description": "One\nparagraph.\n\n- not a list\n",
    "citation": "@misc{small,\n  title = {Small ``` set}\n}\n",
    "sources": {
        "sd": {
            "title": "Stable",
            "licence": "CreativeML OpenRAIL++-M",
            "licence_url": "https://example.org/rail",
            "kind": "diffusers",
            "pipeline": "sd",
            "model": "test/sd",
            "revision": "main",
            "scheduler": "ddim",
            "steps": 2,
            "guidance_scale": 7.5,
            "splits": {
                "train": {"count": 4, "width": 64, "height": 64},
                "test": {
                    "count": 2, "width": 96, "height": 64, "watermarks": ["none", "dwt-dct"],
                },
            },
        },
        "mj": {
            "title": "Elsewhere",
            "licence": "terms of others",
            "kind": "import",
            "model": "closed",
            "splits": {"train": {"count": 5}, "test": {}},
        },
        "left-out": {
            "title": "Not here",
            "licence": "none",
            "kind": "import",
            "model": "closed",
            "splits": {"train": {}},
        },
    },
}  # fmt: skip


def picture(seed: int, width: int, height: int) -> tuple[bytes, str]:
    """PNG bytes of one colour with noise, and the sha256 of its pixels."""
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3), np.uint8)
    rgb = noise + np.array([seed * 37 % 200, seed * 91 % 200, seed * 53 % 200], np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue(), hashlib.sha256(rgb.tobytes()).hexdigest()


def identity(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def made(folder: Path, **changes: Any) -> tuple[Workflow, Store]:
    """A run up to its selection: two revisions, variants, imports, failures, rejects."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION, sort_keys=False))
    (folder / "captions.tsv").write_text("u\ta b c\n")
    (folder / "pictures").mkdir(exist_ok=True)
    data = {
        "run": str(folder / "run"),
        "plan": {"dataset": "spec.yaml", "sources": ["sd", "mj"]},
        "prompts": {
            "sources": [
                {"kind": "cc12m", "path": "captions.tsv", "licence": "any | use"},
                {"kind": "text", "path": "captions.tsv", "name": "own"},
            ]
        },
        "sources": {"mj": {"kind": "import", "path": "pictures"}},
        "selection": {"max_concepts": {"a|b": 0.5}},
        "quality": {"concepts": {"a|b": {"texts": ["x"], "neutral": ["y"]}}},
        "images": {},
        "release": {"version": "1.2.3"},
        **changes,
    }
    workflow = check(Workflow, data, str(folder / "flow.yaml"))
    store = Store(workflow.run)
    said = [
        {
            "prompt_id": f"p{n}",
            "text": f"prompt {n}" if n else NAUGHTY,
            "source": "cc12m" if n < 6 else "own",
            "source_ref": f"captions.tsv:{n}",
            "split": "test" if n >= 6 else "train",
            "tokens": 80 if n in (1, 8) else 5,
            "truncated": n in (1, 8),
        }
        for n in range(9)
    ]
    store.write("prompts", "part-00000", pa.Table.from_pylist(said, schema=PROMPTS), PROMPTS)
    shards: dict[str, list[dict[str, Any]]] = {
        "sd-train-00000": [row(said[n], "sd", revision="a" * 40) for n in range(3)],
        "sd-train-00001": [row(said[n], "sd", revision="next|main") for n in range(3, 6)],
        "sd-test-00000": [
            row(said[n], "sd", watermark=mark) for n in (6, 7) for mark in ("none", "dwt-dct")
        ],
        "mj-train-00000": [
            row({"prompt_id": f"m{n}", "text": f"mine {n}", "split": "train"}, "mj", n)
            for n in range(3)
        ],
        "mj-test-00000": [
            row({"prompt_id": "p8", "text": "mine 9", "split": "test"}, "mj", 9)
        ],
    }  # fmt: skip
    for shard, rows in shards.items():
        images = [drawn(item, failed=item["prompt_id"] == "p5") for item in rows]
        store.write("plan", shard, pa.Table.from_pylist(rows, schema=PLAN), PLAN)
        store.write("images", shard, pa.Table.from_pylist(images, schema=IMAGES), IMAGES)
    refused = [("cc12m", "too few words: 2 < 3")] * 3 + [("own", "duplicate"), ("own", "a|b\nc")]
    for table, reasons in (("prompts", refused), ("plan", [("mj", "no caption")])):
        found = [
            {"source": source, "file": "f", "line": 1, "reason": why, "text": "t"}
            for source, why in reasons
        ]
        store.write("rejects", table, pa.Table.from_pylist(found, schema=REJECTS), REJECTS)
    for table in ("plan", "images"):
        record = {"table": table, "fingerprint": table, "status": "done"}
        store.write_json(record, "_stages", f"{table}.json")
    return workflow, store


def row(
    prompt: dict[str, Any],
    source: str,
    path: int | None = None,
    revision: str = "a" * 40,
    watermark: str = "none",
) -> dict[str, Any]:
    imported = path is not None
    test = prompt["split"] == "test"
    key = (source, prompt["prompt_id"])
    return {
        "image_id": identity(*key, watermark),
        "prompt_id": prompt["prompt_id"],
        "text": prompt["text"],
        "split": prompt["split"],
        "source": source,
        "model": "closed" if imported else "test/sd",
        "revision": "" if imported else revision,
        "watermark": watermark,
        "pair_id": identity(*key, "none") if test and not imported else None,
        "path": f"{path}.png" if imported else None,
        **(
            {}
            if imported
            else {
                "seed": 1,
                "steps": 2,
                "guidance_scale": 7.5,
                "negative_prompt": "",
                "scheduler": "ddim",
                "dtype": "float32",
                "width": 32 if test else 64,
                "height": 64,
            }
        ),
    }


def drawn(planned: dict[str, Any], failed: bool) -> dict[str, Any]:
    if failed:
        return {"image_id": planned["image_id"], "error": "black"}
    imported = planned["path"] is not None
    size = (80, 20 + int(planned["path"][0])) if imported else (planned["width"], 64)
    data, pixels = picture(int(planned["image_id"][:4], 16), *size)
    return {
        "image_id": planned["image_id"],
        "image": {"bytes": data, "path": f"{planned['image_id']}.png"},
        "width": size[0],
        "height": size[1],
        "pixels_sha256": pixels,
        "device": "cpu",
        "versions": json.dumps({"pillow": "1"} if imported else {"torch": "2"}),
        "note": "was grey" if planned["path"] == "1.png" else None,
    }


def released(folder: Path, **changes: Any) -> tuple[Path, str, str]:
    """The release folder of `made`, its card, and what was said."""
    workflow, store = made(folder, **changes)
    said = finish(workflow, store)
    return folder / "run" / "release", (folder / "run" / "release" / CARD).read_text(), said


def finish(workflow: Workflow, store: Store) -> str:
    """Selection and release of a run, without the stages that score."""
    said = io.StringIO()
    without = workflow.model_copy(update={"quality": None, "selection": None})
    stages: list[Stage] = [
        selection.stage(without.rules, without.planned("selection"), without.scored),
        release.stage(),
        release.manifest_stage(workflow, workflow.release or Release()),
    ]
    run_stages(stages, store, Compute(), Progress(said))
    return said.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder, text, _ = released(tmp_path_factory.mktemp("card"))
    return folder, text


def body(text: str) -> list[Token]:
    return PARSER.parse(text.split("---\n", 2)[2])


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def tables(text: str) -> dict[str, list[list[list[str]]]]:
    """Cells of every table (heading row first), by the section that it stands in."""
    found: dict[str, list[list[list[str]]]] = {}
    section, tokens = "", iter(body(text))
    for token in tokens:
        if token.type == "heading_open":
            section = shown(next(tokens))
        elif token.type == "table_open":
            found.setdefault(section, []).append([])
        elif token.type == "tr_open":
            found[section][-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[section][-1][-1].append(shown(next(tokens)))
    return found


# --- What it says ------------------------------------------------------------------------------


def test_every_column_is_explained(finished: tuple[Path, str]) -> None:
    assert list(RELEASE_MEANING) == RELEASE.names
    (fields,) = tables(finished[1])["Fields"]
    assert [line[0] for line in fields[1:]] == RELEASE.names
    assert all(len(line[2]) > 3 for line in fields)


def test_counts_are_those_of_the_rows(finished: tuple[Path, str]) -> None:
    folder, text = finished
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


def test_sources_have_the_revisions_of_the_rows_and_a_licence(finished: tuple[Path, str]) -> None:
    models, settings = tables(finished[1])["Sources"]
    rail = "CreativeML OpenRAIL++-M"
    assert models[1:] == [
        ["sd", "test/sd", "a" * 40, rail, "7"],
        ["sd", "test/sd", "next|main", rail, "1"],
        ["mj", "closed", "not stated", "terms of others", "4"],
    ]
    assert settings[1:] == [["sd", "ddim", "2", "7.5", "", "float32"]]
    assert "[CreativeML OpenRAIL++-M](<https://example.org/rail>)" in finished[1]


def test_prompts_have_an_origin_and_a_licence_or_say_that_none_is_stated(
    finished: tuple[Path, str],
) -> None:
    origins, filters, refused, unplanned = tables(finished[1])["Prompts"]
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


def test_watermarks_are_told_and_how_to_read_them(finished: tuple[Path, str]) -> None:
    (marks,) = tables(finished[1])["Watermarks"]
    assert marks[1:] == [["sd", "test", "dwt-dct", "2"]]
    assert "aigi watermark detect FOLDER" in finished[1]
    assert "none after JPEG 90" in finished[1]


def test_dropped_images_are_counted_by_reason_and_source(finished: tuple[Path, str]) -> None:
    reasons, failed = tables(finished[1])["Selection"]
    assert failed == [["reason", "sd"], ["black", "1"]]
    assert reasons[0] == ["reason", "rule", "sd", "mj"]
    by_reason = {line[0]: line[1:] for line in reasons[1:]}
    assert list(by_reason) == [*rules.REASONS, "kept"]
    assert by_reason["failed"] == ["no picture was made", "1", "0"]
    assert by_reason["surplus"][1:] == ["1", "0"]
    assert by_reason["concept"][0] == "probability of “a|b” above 0.5"
    assert by_reason["nsfw"][0] == "not measured"
    assert by_reason["kept"][1:] == ["8", "4"]
    assert "14 images were planned" in finished[1]


def test_limits_name_what_is_short_imported_and_left_out(finished: tuple[Path, str]) -> None:
    limits = finished[1].split("## Known limits")[1].split("##")[0]
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


def test_no_place_of_the_machine_is_told(finished: tuple[Path, str]) -> None:
    folder, text = finished
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
    finish(workflow, store)
    text = (tmp_path / "run" / "release" / CARD).read_text()
    assert "0 images of 0 prompts, 0.0 MB in 0 parquet files." in text
    assert "`sd` `test`: 0 of 4 wanted." in text
    assert compare(*open_release(str(tmp_path / "run" / "release"))) == []


def test_many_sizes_are_one_line(tmp_path: Path) -> None:
    counts = some_counts("x")
    base = next(iter(counts.kinds))
    for width in range(card.SHOWN_SIZES + 7):
        counts.kinds[base._replace(width=1000 + width, height=5)] += 1
    lines = card._resolutions(counts, ["sd"])
    assert len(lines) == 4 + card.SHOWN_SIZES + 1
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


# --- Front matter ------------------------------------------------------------------------------


def some_files(*rows: tuple[str, str, int]) -> list[FileRecord]:
    return [
        {
            "path": f"{config}/{split}-{number:05d}-of-00009.parquet",
            "config": config,
            "split": split,
            "rows": many,
            "bytes": 10_000,
            "sha256": "0" * 64,
        }
        for number, (config, split, many) in enumerate(rows)
    ]


def dataset_with(**changes: Any) -> specification.Dataset:
    return check(specification.Dataset, {**SPECIFICATION, **changes}, "spec.yaml")


def test_the_hub_client_takes_the_card_as_it_is(finished: tuple[Path, str]) -> None:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, metadata_load

    folder, text = finished
    loaded: Any = DatasetCard(text)
    assert str(loaded) == text
    data = loaded.data.to_dict()
    assert metadata_load(folder / CARD) == data
    configs = MetadataConfigs.from_dataset_card_data(loaded.data)
    assert list(configs) == ["sd", "mj"]
    assert configs.get_default_config_name() == "sd"
    assert configs["sd"]["data_files"] == [
        {"split": "train", "path": "sd/train-*.parquet"},
        {"split": "test", "path": "sd/test-*.parquet"},
    ]
    del data["configs"]
    assert data == {
        "pretty_name": "Small | set",
        "license": "other",
        "license_name": "see-the-sources",
        "license_link": "https://example.org/licence",
        "language": ["en"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-to-image"],
        "tags": ["image-compression", "ai-generated-images", "synthetic"],
    }


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (528_000, "100K<n<1M"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_category(rows: int, category: str) -> None:
    meta = yaml.safe_load(
        front_matter.front_matter(dataset_with(), some_files(("sd", "train", rows)))
    )
    assert meta["size_categories"] == [category]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CreativeML OpenRAIL++-M", {"license": "openrail++"}),
        (
            "Terms: of\nmine!",
            {"license": "other", "license_name": "terms-of-mine", "license_link": "https://e.org"},
        ),
        (
            "许可",
            {"license": "other", "license_name": "see-the-card", "license_link": "https://e.org"},
        ),
    ],
)
def test_licence_fields(licence: str, expected: dict[str, str]) -> None:
    dataset = dataset_with(licence=licence, licence_url="https://e.org")
    meta = yaml.safe_load(front_matter.front_matter(dataset, some_files(("sd", "train", 1))))
    assert {key: value for key, value in meta.items() if key.startswith("license")} == expected


def test_a_config_called_default_is_the_only_default() -> None:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    sources: Any = SPECIFICATION["sources"]
    dataset = dataset_with(sources={"sd": sources["sd"], "default": sources["mj"]})
    files = some_files(("sd", "train", 1), ("default", "train", 1))
    data = DatasetCardData(**yaml.safe_load(front_matter.front_matter(dataset, files)))
    assert MetadataConfigs.from_dataset_card_data(data).get_default_config_name() == "default"


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("javascript:alert(1)", "https://e.org/a b", "https://e.org/>", "https://e.org/|"):
        with pytest.raises(AigiError, match="licence_url"):
            dataset_with(licence_url=url)


# --- What it quotes ----------------------------------------------------------------------------


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
    assert cells["Pictures"][0][1] == ["sd", "train", plain(card._cut(text))]
    assert [line[2:4] for line in cells["Prompts"][0][1:]] == [
        [plain(f"b{text}"), "not stated"],
        ["x", plain(text)],
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts(text: str) -> None:
    whole = some_card(f"{text} x")
    assert skeleton(whole) == skeleton(some_card("x"))
    assert yaml.safe_load(whole.split("---\n")[1])["pretty_name"] == plain(f"{text} x")


def test_the_picture_is_shown_with_its_prompts_beside(finished: tuple[Path, str]) -> None:
    folder, text = finished
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


def test_a_description_keeps_its_paragraphs(finished: tuple[Path, str]) -> None:
    first = [shown(token) for token in body(finished[1]) if token.type == "inline"][:3]
    assert first == ["Small | set", "One paragraph.", "- not a list"]


def test_long_prompts_are_cut() -> None:
    assert card._cut("word " * 100) == ("word " * 40).rstrip() + "…"
    assert card._cut("short\nprompt") == "short prompt"


# --- The sheet ---------------------------------------------------------------------------------


def test_the_sheet_shows_each_picture_once_in_its_row(finished: tuple[Path, str]) -> None:
    image = Image.open(finished[0] / SHEET)
    assert image.format == "WEBP"
    assert image.width == 1200
    rgb = np.asarray(image.convert("RGB")).astype(int)
    # Four of 64 x 64 and two of 32 x 64; of the imports two wide ones, the others find no room.
    for number, widths in enumerate(([160] * 4 + [80] * 2, [441, 480])):
        line = rgb[number * 192 + 24 + 10 : number * 192 + 24 + 40].mean(axis=0)
        coloured = np.flatnonzero((line < 250).any(axis=1))
        runs = np.split(coloured, np.flatnonzero(np.diff(coloured) > 4) + 1)
        found = sorted(len(run) for run in runs)
        assert len(found) == len(widths)
        assert all(abs(a - b) <= 4 for a, b in zip(found, sorted(widths), strict=True))


def test_the_sheet_reads_one_row_group_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    rows = []
    for n in range(250):
        data, _ = picture(n, 16, 16)
        rows.append({"image": {"bytes": data, "path": "x"}, "text": f"t{n}", "image_id": f"{n}"})
    store.write("release", "sd/train-0", pa.Table.from_pylist(rows, schema=RELEASE), RELEASE)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counting(self: Any, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    samples = [Sample(f"{n}", f"{n}", "train", "sd/train-0", n, 16, 16) for n in (0, 99, 100, 249)]
    _, shown_there = sheet.draw(store, {"sd": samples})
    assert [one.text for one in shown_there] == ["t0", "t99", "t100", "t249"]
    assert read == [0, 0, 1, 2]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [{"image": {"bytes": b"\x89PNG\r\n\x1a\n", "path": "x"}, "text": "t", "image_id": "i"}]
    store.write("release", "sd/train-0", pa.Table.from_pylist(rows, schema=RELEASE), RELEASE)
    sample = Sample("i", "i", "train", "sd/train-0", 0, 16, 16)
    with pytest.raises(AigiError, match=r"sd/train-0\.parquet: row 1 \(i\): .*make it anew"):
        sheet.draw(store, {"sd": [sample]})


def test_thumbnails_keep_their_shape_and_their_row() -> None:
    for width, height in ((1, 10_000), (10_000, 1), (2048, 1024), (64, 64)):
        wide, high = sheet._thumbnail_size(Sample("", "", "", "", 0, width, height))
        assert 1 <= wide <= 480
        assert 1 <= high <= 160
    many = [Sample(str(n), str(n), "train", "s", n, 2048, 1024) for n in range(8)]
    assert len(sheet._that_fit(many)) == 3


# --- Documents ---------------------------------------------------------------------------------


def test_equal_runs_give_equal_bytes(finished: tuple[Path, str], tmp_path: Path) -> None:
    other, _, _ = released(tmp_path / "elsewhere")
    for name in (CARD, CROISSANT, SHEET):
        assert (other / name).read_bytes() == (finished[0] / name).read_bytes(), name


@pytest.mark.parametrize("name", [CARD, CROISSANT, SHEET, PLAN_FILE])
def test_verify_checks_every_document(
    finished: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "release")
    store, manifest = open_release(str(copy))
    differences = compare(store, manifest)
    assert differences == []
    documents = {record["path"]: record for record in manifest["documents"]}
    assert set(documents) == {CARD, CROISSANT, SHEET, PLAN_FILE}
    assert documents[name]["bytes"] == (copy / name).stat().st_size
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    (line,) = compare(*open_release(str(copy)))
    assert line.startswith(f"{name}: sha256 ")
    (copy / name).unlink()
    assert compare(*open_release(str(copy))) == [f"{name}: missing"]


@pytest.mark.parametrize("path", ["../outside.md", "sd/../../outside.md", "/etc/hosts", "..", ""])
def test_a_document_outside_the_release_is_not_opened(
    finished: tuple[Path, str], tmp_path: Path, path: str
) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "release")
    (tmp_path / "outside.md").write_text("secret")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["documents"] = [{"path": path, "bytes": 1, "sha256": "0"}]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert compare(*open_release(str(copy))) == [f"{path}: not a file beside {MANIFEST}"]


def test_words_make_the_card_anew_and_nothing_else(tmp_path: Path) -> None:
    workflow, store = made(tmp_path)
    finish(workflow, store)
    assert workflow.prompts is not None
    first, *others = workflow.prompts.sources
    licensed = (first.model_copy(update={"licence": "CC0-1.0"}), *others)
    changed = workflow.model_copy(
        update={"prompts": workflow.prompts.model_copy(update={"sources": licensed})}
    )
    assert changed.prompts is not None
    before = [prompts.stage(each, changed.split) for each in (workflow.prompts, changed.prompts)]
    assert fingerprint(before[0], {}) == fingerprint(before[1], {})
    said = finish(changed, store)
    assert "manifest: its settings or inputs have changed, made anew" in said
    assert "release: 5 shards, already made" in said
    text = (tmp_path / "run" / "release" / CARD).read_text()
    assert tables(text)["Prompts"][0][1][3] == "CC0-1.0"

    def planned() -> str:
        stage = plan.stage(changed.planned("plan"), changed.sources, changed.split)
        return fingerprint(stage, {})

    then = planned()
    (tmp_path / "spec.yaml").write_text(
        (tmp_path / "spec.yaml").read_text().replace("example.org/rail", "example.org/other")
    )
    assert planned() == then
    finish(changed, store)
    assert "<https://example.org/other>" in (tmp_path / "run" / "release" / CARD).read_text()


def test_the_card_loads_and_its_example_runs(
    finished: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from datasets import config, get_dataset_default_config_name, load_dataset

    # Not the user's own cache, which may know another release of this name.
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path))
    folder, text = finished
    assert get_dataset_default_config_name(str(folder)) == "sd"
    loaded = load_dataset(str(folder), "sd")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "test": 4}
    (example,) = (t.content for t in body(text) if t.type == "fence" and t.info == "python")
    exec(example.replace('"ORG/NAME"', repr(str(folder))), {})  # noqa: S102 (our own example)
    assert "(32, 64)" in capsys.readouterr().out


# --- Croissant ---------------------------------------------------------------------------------


def test_croissant_validates_and_reads_back(finished: tuple[Path, str]) -> None:
    import mlcroissant

    folder, _ = finished
    loaded = mlcroissant.Dataset(folder / CROISSANT)
    assert not loaded.metadata.ctx.issues.errors
    assert loaded.metadata.version == "1.2.3"
    assert loaded.metadata.license[:2] == [
        "https://example.org/licence",
        "https://example.org/rail",
    ]
    for config in ("sd", "mj"):
        expected = {
            row["image_id"]: (row, path.name.split("-")[0])
            for path in (folder / config).glob("*.parquet")
            for row in pq.read_table(path).to_pylist()
        }
        records = list(loaded.records(config))
        assert len(records) == len(expected)
        for record in records:
            row, split = expected[record[f"{config}/image_id"].decode()]
            assert record[f"{config}/split"].decode() == split
            assert record[f"{config}/text"].decode() == row["text"]
            assert record[f"{config}/width"] == row["width"]
            assert record[f"{config}/guidance_scale"] == row["guidance_scale"]
            pixels = np.asarray(record[f"{config}/image"])
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["pixels_sha256"]
    test = list(mlcroissant.Dataset(folder / CROISSANT).records("sd", {"sd/split": "test"}))
    assert {record["sd/split"] for record in test} == {b"test"}
    assert len(test) == 4


def test_croissant_lists_every_file_by_a_path_that_starts_beside_it(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    described = json.loads((folder / CROISSANT).read_text())
    files = [part for part in described["distribution"] if part["@type"] == "cr:FileObject"]
    assert sorted(file["contentUrl"] for file in files) == sorted(
        str(path.relative_to(folder)) for path in folder.glob("*/*.parquet")
    )
    for file in files:
        data = (folder / file["contentUrl"]).read_bytes()
        assert file["contentSize"] == f"{len(data)} B"
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    records = {part["@id"]: part for part in described["recordSet"]}
    for config in ("sd", "mj"):
        names = [field["name"] for field in records[config]["field"]]
        assert names == ["split", *RELEASE.names]
    assert described["citeAs"].startswith("@misc{small,")


def test_hostile_texts_stay_in_their_strings() -> None:
    import mlcroissant

    for text in (NAUGHTY, "half a pair \ud83d", '"}], "x": ['):
        described = croissant(
            dataset_with(title=text, description=text, licence=text, licence_url=None),
            "1.0.0",
            some_files(("sd", "train", 1)),
            ["a"],
        )
        again = json.loads(json.dumps(described, ensure_ascii=False).encode())
        loaded = mlcroissant.Dataset(again)
        assert not loaded.metadata.ctx.issues.errors
        assert loaded.metadata.description == plain(text)
