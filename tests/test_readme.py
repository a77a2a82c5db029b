"""The README's own commands run as written, and its tree names every file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.hub import serve

README = (ROOT / "README.md").read_text()


def test_marked_commands_run(tmp_path: Path) -> None:
    blocks = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, re.S)
    assert len(blocks) >= 3
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


def test_named_files_exist() -> None:
    for name in re.findall(r"(?:workflows|manifests|prompts|tests)/[\w./-]+\.\w+", README):
        assert (ROOT / name).exists(), name


def test_the_tree_is_whole() -> None:
    tree = README.split("## The tree")[1]
    for path in (ROOT / "pipeline").glob("**/*.py"):
        relative = path.relative_to(ROOT / "pipeline")
        if path.name != "__init__.py" and relative.parts[0] in (
            "analysis",
            "benchmark",
            "codecs",
            "dataset",
            "learned",
            "pages",
            path.name,
        ):
            assert f" {path.name} " in tree, f"{relative} is not in the README's tree"


def test_every_section_of_a_workflow_is_in_the_readme() -> None:
    from pipeline.workflow import Workflow

    for name in Workflow.model_fields:
        assert f"| `{name}` |" in README
