"""A workflow whose release has something of everything that a manifest must be able to repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.demo import TINY
from pipeline.files import resource

HOSTILE = "too short\n" + "".join(
    line.format(thing) + "\n"
    for thing in ("boats", "houses", "trees", "clouds")
    for line in (
        "red {0} | with `ticks` and <script>alert('{0}')</script> on a calm lake",
        "two {0} [l](http://x) ![i](y) beside *stars* _and_ ~~more~~ &amp;lt; \\{0}\\ | \u202e",
        "$(touch owned) green {0} 'quoted' \"twice\" --- under a cloud; rm -rf {0} # no",
    )
)
TERMS = {"licence": "Apache-2.0", "licence_url": "https://example.org/licence"}
DRAWN = {"kind": "diffusers", "steps": 2, "guidance_scale": 4.0, **TERMS}

# No order of names is the order of the alphabet: sources, splits, concepts.
SPECIFICATION: dict[str, Any] = {
    "name": "rich-set",
    "title": "Rich | set `with` <b>marks</b>",
    "licence": "see the sources",
    "language": ["en"],
    "description": "One paragraph | of [words](x).\n\nAnd another.\n",
    "citation": "@misc{rich,\n  title = {Rich set}\n}\n",
    "sources": {
        "sdxl": {
            "title": "Drawn | twice", "pipeline": "sdxl", "model": "test/tiny-sdxl",
            "captions": ["own"],
            "revision": "seed-1", "scheduler": "euler", **DRAWN,
            "splits": {
                "test": {
                    "count": 2, "width": 64, "height": 96, "watermarks": ["none", "dwt-dct"],
                },
                "train": {"count": 4, "width": 64, "height": 64},
            },
        },
        "unasked": {
            "title": "Not asked for", "kind": "import", "model": "closed", **TERMS,
            "splits": {"train": {}},
        },
        "mj52": {
            "title": "Imported", "kind": "import", "model": "closed", **TERMS,
            "splits": {
                "train": {"count": 4, "width": 256, "height": 256},
                "test": {"count": 1, "width": 512, "height": 256},
            },
        },
        "art": {
            "title": "Drawn", "pipeline": "sd", "model": "test/tiny-sd", "revision": "seed-0",
            "scheduler": {"name": "ddim", "timestep_spacing": "trailing"}, **DRAWN,
            "images_per_prompt": 2, "options": {"eta": 0.0},
            "splits": {
                "train": {"count": 30, "width": 64, "height": 64},
                "test": {"count": 2, "width": 96, "height": 64},
            },
        },
    },
}  # fmt: skip


def workflow(folder: Path, **sections: Any) -> Path:
    """Write the workflow and its specification.

    Args:
        sections: replace those of the workflow.
    """
    (folder / "hostile.txt").write_text(HOSTILE)
    (folder / "rich.yaml").write_text(yaml.safe_dump(SPECIFICATION, sort_keys=False))
    weights, pictures = TINY / "weights", TINY / "pictures"
    data: dict[str, Any] = {
        "run": str(folder / "run"),
        "split": {"validation": 0.0, "test": 0.3},
        "prompts": {
            "sources": [
                {"kind": "text", "path": "hostile.txt", "name": "own", "licence": "any | use"},
                {
                    "kind": "grammar", "path": str(resource("prompts/grammar.yaml")),
                    "start": "core", "count": 40, "seed": 1,
                },
            ],
            "filters": {
                "max_noise": 1.0, "min_ascii_letters": 0.0, "min_words": 5, "max_repeated": None,
                "languages": None, "personal": [], "max_unsafe": None,
            },
            "near_duplicates": None,
        },
        "plan": {
            "dataset": "rich.yaml", "sources": ["art", "mj52", "sdxl"], "shard_mb": 0.05,
            "margin": 0.2, "limit": 12,
        },
        "sources": {
            "sdxl": {"folder": str(weights / "sdxl"), "batch_size": 2},
            "art": {"folder": str(weights / "sd"), "batch_size": 3},
            "mj52": {
                "kind": "import", "path": str(pictures / "mj52"),
                "captions": str(pictures / "mj52" / "captions.csv"), "split_column": "split",
            },
        },
        "images": {},
        "embeddings": {"folder": str(weights / "clip")},
        "quality": {
            "concepts": {
                "night rain": {"texts": ["a rainy night"], "neutral": ["a clear day"]},
                "a | cloud": {"texts": ["a cloud"], "neutral": ["a clear sky"]},
            }
        },
        "duplicates": {"min_similarity": 0.9},
        "selection": {
            "max_concepts": {"night rain": 0.9, "a | cloud": 0.99}, "min_clip_score": 0.0,
            "min_similarity": 0.99, "rounds": 2,
        },
        "release": {"version": "2.3.4"},
        **sections,
    }  # fmt: skip
    path = folder / "workflow.yaml"
    present = {name: section for name, section in data.items() if section is not None}
    path.write_text(yaml.safe_dump(present, sort_keys=False))
    return path
