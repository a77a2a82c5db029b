"""The commands of every README run as written; links lead somewhere; no room is left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from pipeline.cli.reference import FIRST, LAST, filled, reference
from pipeline.models.clip import Embeddings
from pipeline.workflow import Workflow
from tests.conftest import ROOT
from tests.hub import Hub, serve

FRONT = ROOT / "README.md"
WORKFLOWS = ROOT / "workflows" / "README.md"
READMES = [
    FRONT,
    ROOT / "CONTRIBUTING.md",
    *sorted(
        path
        for top in ("workflows", "manifests", "prompts", "pipeline", "tests")
        for path in (ROOT / top).rglob("README.md")
    ),
]
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.S)
WITH_BLOCKS = [path for path in READMES if path != FRONT and BLOCK.search(path.read_text())]


def run_blocks(readme: Path, folder: Path, hub: Hub) -> None:
    """Execute the marked blocks of a README, one after the other, in a folder."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = hub.environment(PATH=path)
    for kind, text in BLOCK.findall(readme.read_text()):
        command = {"sh": ["sh", "-e", "-c", text], "python": ["python", "-c", text]}
        done = subprocess.run(
            command[kind], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with aigi as its wheel installs it."""
    root = tmp_path_factory.mktemp("wheel")

    def pip(command: str, *arguments: str) -> None:
        quiet = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps"]
        subprocess.run([*quiet, *arguments], check=True)

    pip("wheel", "--no-build-isolation", "--wheel-dir", str(root / "wheels"), str(ROOT))
    (wheel,) = (root / "wheels").glob("aigi-*.whl")
    pip("install", "--target", str(root / "site"), str(wheel))
    return root / "site"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, site: Path, hub: Hub) -> Path:
    """A folder like the root of a checkout, after the front door's commands: they make the demo.

    The commands are those of the installed wheel: Python looks for no module in the folder.
    """
    folder = tmp_path_factory.mktemp("front")
    for name in ("workflows", "manifests", "prompts"):
        shutil.copytree(ROOT / name, folder / name)  # paths in a workflow start at its file
    (folder / "pipeline").symlink_to(ROOT / "pipeline")
    (folder / "bin").mkdir()
    for name, arguments in (("aigi", "-m pipeline.cli"), ("python", "")):
        file = folder / "bin" / name
        lines = [
            "#!/bin/sh",
            f"export PYTHONPATH={site} PYTHONSAFEPATH=1",
            f'exec {sys.executable} {arguments} "$@"',
        ]
        file.write_text("\n".join([*lines, ""]))
        file.chmod(0o755)
    where = [str(folder / "bin" / "python"), "-c", "import pipeline; print(pipeline.__file__)"]
    said = subprocess.run(where, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(site)), "the wheel runs, not the checkout"
    run_blocks(FRONT, folder, hub)
    return folder


def test_the_commands_of_the_front_door_make_the_demo(front: Path) -> None:
    release = front / "runs" / "demo" / "release"
    assert {path.name for path in release.iterdir()} >= {"sd21-base", "sd21", "sdxl", "mj52", "mod"}
    manifest = json.loads((release / "manifest.json").read_text())
    counts = dict.fromkeys(manifest["wanted"], 0)
    for file in manifest["files"]:
        counts[f"{file['config']}/{file['split']}"] += file["rows"]
    assert counts == manifest["wanted"], "every quota is met exactly"
    assert sum(counts.values()) >= 100
    assert (front / "report.html").exists()
    assert len(BLOCK.findall(FRONT.read_text())) >= 3
    assert len(WITH_BLOCKS) >= 12


@pytest.mark.slow
def test_the_demo_again_makes_nothing_anew(front: Path) -> None:
    images = front / "runs" / "demo" / "images"
    before = {path: path.stat().st_mtime_ns for path in images.glob("*.parquet")}
    command = [str(front / "bin" / "aigi"), "demo"]
    done = subprocess.run(command, cwd=front, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.count("as generated") == 15, "five sources, three splits"
    assert "runs/demo/release" in done.stdout, "says where to look"
    assert "already made" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in images.glob("*.parquet")} == before


@pytest.mark.parametrize("readme", WITH_BLOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_marked_commands_need_the_demo_and_nothing_else(
    readme: Path, front: Path, hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "root"
    shutil.copytree(front, folder, symlinks=True)
    run_blocks(readme, folder, hub)
    shutil.rmtree(folder)


def headings(readme: Path) -> set[str]:
    """What a link to a heading of a README ends in, as GitHub makes it."""
    found = re.findall(r"^#+ (.+)$", readme.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_and_headings_exist(readme: Path) -> None:
    text = readme.read_text()
    for link, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = readme.parent / link if link else readme
        assert "://" in link or target.exists(), link
        assert not heading or heading in headings(target), f"{link}#{heading}"
    names = re.findall(
        r"(?<![\w/.])(?:pipeline|workflows|manifests|prompts|tests)/[\w./-]+\.\w+", text
    )
    for name in names:
        assert (ROOT / name).exists() or (readme.parent / name).exists(), name


def test_every_room_is_in_the_front_door() -> None:
    text = FRONT.read_text()
    for folder in {module.parent for module in (ROOT / "pipeline").rglob("*.py")}:
        assert f"({folder.relative_to(ROOT)}/README.md)" in text


def test_every_module_is_in_the_readme_of_its_folder() -> None:
    for module in (ROOT / "pipeline").rglob("*.py"):
        if not module.name.startswith("__"):
            assert f"| `{module.name}` |" in (module.parent / "README.md").read_text(), module


def test_every_section_of_a_workflow_is_explained() -> None:
    for name in Workflow.model_fields:
        assert f"| `{name}` |" in WORKFLOWS.read_text()


def test_a_wheel_has_types_and_templates_and_no_pictures_of_readmes(site: Path) -> None:
    package = site / "pipeline"
    assert (package / "py.typed").is_file() and (package / "data" / "workflows").is_dir()
    kinds = {file.stem for file in (package / "starts" / "templates").glob("*.yaml")}
    assert kinds == {"generate", "import", "train", "benchmark"}
    shown = [file.name for readme in READMES for file in readme.parent.glob("*.*")
             if file.suffix in (".jpg", ".png", ".webp")]  # fmt: skip
    assert "sheet-sdxl.jpg" in shown
    assert not [file for file in package.rglob("*") if file.name in shown]


def test_the_settings_reference_is_that_of_the_schema() -> None:
    text = WORKFLOWS.read_text()
    assert text == filled(text, reference(Workflow.model_json_schema())), (
        "make it again: python -m pipeline.cli.reference workflows/README.md"
    )


def keys(section: str, kind: object) -> Iterator[str]:
    """`SECTION.KEY` for every key of every class that is somewhere in a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield f"{section}.{name}"
            yield from keys(section, field.annotation)
    for inner in get_args(kind):
        yield from keys(section, inner)


def test_every_key_of_every_section_is_in_the_settings_reference() -> None:
    settings = WORKFLOWS.read_text().partition(FIRST)[2].partition(LAST)[0]
    found = set(re.findall(r"^\| `(\w+)(?:\.[\w.]+)*(\.\w+)` \|", settings, re.M))
    asked = {
        key for name, field in Workflow.model_fields.items() for key in keys(name, field.annotation)
    }
    elsewhere = {f"benchmark.{key}" for key in Embeddings.model_fields}  # benchmark.clip
    assert len(asked) > 200
    assert {"".join(key) for key in found} == asked - elsewhere
    assert "| `run` |" in settings


def test_code_in_the_settings_reference_stays_code_and_a_cell_one_cell() -> None:
    schema = Workflow.model_json_schema()
    schema["properties"]["run"]["description"] = "a `<b>|` of <b>|"
    assert r"| `run` | text; required | a `<b>\|` of \<b>\| |" in reference(schema)
