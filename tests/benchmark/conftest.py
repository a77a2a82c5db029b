"""A folder of small pictures with a damaged one in it, and a run of the benchmark over it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from pipeline.benchmark.settings import Benchmark
from pipeline.benchmark.stages import make
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.workflow import load
from tests.benchmark.test_metrics import pair
from tests.codecs.conftest import stand_ins

PROMPT = "a [red](http://x) boat | <b>bold</b> & $x$"
SIZES = {"a.png": (64, 96), "b.png": (176, 161), "c.png": (50, 33)}
CODECS: list[Any] = [
    {"codec": "jpeg", "qualities": [20, 60, 90]},
    {"codec": "webp", "qualities": [10, 60, 90]},
    {"codec": "vtm", "qualities": [37], "name": "vtm-stand-in"},
    "bpg",
]


def write_pictures(folder: Path) -> Path:
    """Three pictures of several sizes, a damaged one, and captions."""
    folder.mkdir()
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        (folder / name).write_bytes(png_bytes(pair(i, height, width)[1]))
    whole = (folder / "a.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    with (folder / "captions.csv").open("w", newline="") as file:
        names = [*SIZES, "broken.png"]
        csv.writer(file).writerows([["file", "text"], *([name, PROMPT] for name in names)])
    return folder


def write_workflow(path: Path, pictures: Path, programs: Mapping[str, str], /, **more: Any) -> Path:
    """A workflow file that measures a few codecs over the folder; the first one is the anchor."""
    first = more.get("codecs", CODECS)[0]
    section = {
        "pictures": {
            "place": str(pictures),
            "name": "boats",
            "captions": str(pictures / "captions.csv"),
        },
        "codecs": CODECS,
        "anchor": first if isinstance(first, str) else first.get("name", first["codec"]),
        "strips": {"count": 1, "bpp": 1.5, "crop": 24},
        "programs": dict(programs),
    }
    text = yaml.safe_dump({"run": str(path.parent / "run"), "benchmark": section | more})
    path.write_text(text)
    return path


def execute(workflow: Path, **compute: Any) -> tuple[Store, str]:
    """Run the benchmark of a workflow in this process: the run, and what it said."""
    found = load(workflow)
    assert isinstance(found.benchmark, Benchmark)
    store, said = Store(found.run), io.StringIO()
    make(found.benchmark, Compute(**compute), store, Progress(said))
    return store, said.getvalue()


def page_of(store: Store) -> str:
    """The page as HTML."""
    text = Path(store.path("benchmark", "README.md")).read_text()
    return unescape(MarkdownIt().enable("table").render(text))


def cells_of(html: str, heading: str) -> list[list[str]]:
    """Rows of the first table after a heading, the first one its column names."""
    table = html.split(f">{heading}</h")[1].split("</table>")[0]
    return [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in table.split("</tr>")[:-1]]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "boats")


@pytest.fixture(scope="session")
def without_bpg(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stand-ins for VTM; BPG is not on this machine."""
    found = stand_ins(tmp_path_factory.mktemp("programs"))
    return found | {"bpgenc": "/nowhere/bpgenc"}


@pytest.fixture(scope="session")
def measured(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, without_bpg: dict[str, str]
) -> tuple[Path, Store, str]:
    """A workflow, the run that was made of it, and what it said; not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    workflow = write_workflow(folder / "benchmark.yaml", pictures, without_bpg)
    return workflow, *execute(workflow)
