"""The commands of every README run as written; links lead somewhere; no room is left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hub import serve

FRONT = ROOT / "README.md"
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


def test_marked_commands_run(tmp_path: Path) -> None:
    """One after the other in one folder, the front door's first: it makes the demo."""
    blocks = [block for path in READMES for block in BLOCK.findall(path.read_text())]
    assert len(BLOCK.findall(FRONT.read_text())) >= 3
    assert len(blocks) >= 12
    for name in ("workflows", "manifests", "prompts"):
        shutil.copytree(ROOT / name, tmp_path / name)  # paths in a workflow start at its file
    (tmp_path / "bin").mkdir()
    aigi = tmp_path / "bin" / "aigi"
    aigi.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline.cli "$@"\n')
    aigi.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with serve(tmp_path / "hub") as hub:
        environment = hub.environment(PATH=path, PYTHONPATH=str(ROOT))
        for kind, text in blocks:
            command = {"sh": ["sh", "-e", "-c", text], "python": [sys.executable, "-c", text]}
            done = subprocess.run(
                command[kind], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(readme: Path) -> None:
    text = readme.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert "://" in link or (readme.parent / link).exists(), link
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
    from pipeline.workflow import Workflow

    for name in Workflow.model_fields:
        assert f"| `{name}` |" in (ROOT / "workflows" / "README.md").read_text()
