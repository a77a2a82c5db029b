"""A small release with something of everything, and its card taken apart."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from pipeline.manifest import CARD, FileRecord
from pipeline.plan import specification
from pipeline.progress import Progress
from pipeline.release import release
from pipeline.release.recipe import Release
from pipeline.running import run_stages
from pipeline.selection import selection
from pipeline.settings import check
from pipeline.stage import Compute, Stage
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN, PROMPTS, REJECTS
from pipeline.workflow import Workflow
from tests.conftest import record_table

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
        record_table(store, table)
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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of `released` and its card: not to be changed."""
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
