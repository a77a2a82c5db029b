"""The notebook runs from its first cell to its last, and holds nothing of whoever wrote it."""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "workflows" / "tour.ipynb"


def cells() -> list[str]:
    """The text of each cell of code."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_the_notebook_has_no_outputs_and_its_code_parses() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4 and len(cells()) >= 6
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for text in cells():
        ast.parse(text)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell as a notebook runs it: the value of its last expression is what it shows."""
    from PIL import Image

    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    with contextlib.chdir(tmp_path):
        for text in cells():
            tree = ast.parse(text)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "tour", "exec"), names)  # noqa: S102
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "tour", "eval"), names))  # noqa: S307
    assert shown[0]["plan"] > 100, "tables with their rows"
    pictures = [one for one in shown if isinstance(one, Image.Image)]
    assert len(pictures) == 3 and all(picture._repr_png_() for picture in pictures)
    assert any(isinstance(one, list) and one and "reason" in one[0] for one in shown)
    said = capsys.readouterr().out
    assert said.count(" bpp, ") == 3 and "bits: " in said
