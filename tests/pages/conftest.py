"""A finished run of pictures with hostile captions, and a real browser."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import workflow as workflows
from pipeline.build import make
from pipeline.progress import Progress
from pipeline.store import Store

HOSTILE = [
    "<script>document.title = 'run'; console.error('run')</script> a boat",
    "<img src=x onerror=\"console.error('run')\"> a house </script><!-- on a hill",
    "a tree \u202e}}dlrow{{ {% raw %} under & over",
    "a \u2066bird\u2069 \u200f&lt;b&gt;bold&lt;/b&gt; `in` $the$ \u0000sky\u0007",
]
PICTURES = 40

SPECIFICATION = """
name: pages
title: Pages
licence: Apache-2.0
sources:
  drawn:
    {title: Drawn, licence: Apache-2.0, kind: import, model: drawn, splits: {train: {}, test: {}}}
  painted:
    {title: Painted, licence: Apache-2.0, kind: import, model: painted, splits: {train: {}}}
"""


def write_pictures(folder: Path, name: str, captions: list[str], seed: int) -> None:
    """Noise of 64x48, but for a black one and two equal ones at the end."""
    (folder / name).mkdir(parents=True)
    noise = np.random.default_rng(seed)
    pixels = noise.integers(0, 256, (len(captions), 12, 16, 3), dtype=np.uint8)
    pixels = pixels.repeat(4, axis=1).repeat(4, axis=2)
    pixels[-1], pixels[-2] = pixels[-3], 0
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "text", "split"])
        for number, caption in enumerate(captions):
            Image.fromarray(pixels[number]).save(folder / name / f"{number:03d}.png")
            rows.writerow([f"{number:03d}.png", caption, "train"])


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[Path, Path]:
    """Workflow file and run directory: not to be changed."""
    folder = tmp_path_factory.mktemp("hostile")
    captions = [f"{caption} number {n}" for n in range(PICTURES // 4) for caption in HOSTILE]
    write_pictures(folder, "drawn", captions, 1)
    write_pictures(folder, "painted", captions[:8], 2)
    (folder / "dataset.yaml").write_text(SPECIFICATION)
    names = ("drawn", "painted")
    workflow: dict[str, Any] = {
        "run": str(folder / "run"),
        "plan": {"dataset": "dataset.yaml"},
        "sources": {
            name: {
                "kind": "import", "path": name, "captions": f"{name}.csv", "split_column": "split",
                "fit": "keep",
            }
            for name in names
        },
        "images": {},
        "embeddings": {"folder": str(models / "clip")},
        "quality": {
            "concepts": {"<b>rain</b>": {"texts": ["rain at night"], "neutral": ["a clear day"]}}
        },
        "duplicates": {"min_similarity": 0.999},
        "selection": {"max_concepts": {"<b>rain</b>": 0.12}, "min_clip_score": -0.9},
        "release": {},
    }  # fmt: skip
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(workflow))
    make(workflows.load(path), Store(str(folder / "run")), Progress(quiet=True))
    return path, folder / "run"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Headless Chromium of the system, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("AIGI_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium, or name one in AIGI_CHROMIUM")
    with api.sync_playwright() as driver:
        # Without its sandbox, which a container does not allow; the pages are our own.
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """An open page, and all that its console said."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def strangers(self) -> list[str]:
        """Addresses that it asked for beside itself and what it carries."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
