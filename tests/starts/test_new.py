"""Files to begin with: they load, say what is in them, and are never written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline import AigiError, build
from pipeline import workflow as workflows
from pipeline.starts.new import KINDS, new
from tests.starts.test_generate import aigi

SECTIONS = {"generate": "prompts", "import": "plan", "train": "train", "benchmark": "benchmark"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_workflow_loads_and_is_commented(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = new("mine", kind)
    assert file == Path("mine.yaml")
    text = file.read_text()
    assert text.count("# ") > 8
    loaded = workflows.load(file)
    assert loaded.run == str(tmp_path / "runs" / "mine")
    assert getattr(loaded, SECTIONS[kind]) is not None
    assert build.stages(loaded) or build.readers(loaded) or loaded.benchmark_here()
    with pytest.raises(AigiError, match=r"mine.yaml: there already, so it stays"):
        new("mine", kind)
    assert file.read_text() == text


def test_a_new_generation_has_a_list_of_prompts_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine-prompts.txt").write_text("my own\n")
    new("mine", "generate")
    assert (tmp_path / "mine-prompts.txt").read_text() == "my own\n"
    new("sub/other.yaml", "generate")
    assert len((tmp_path / "sub" / "other-prompts.txt").read_text().splitlines()) == 8
    done = aigi(tmp_path, "run", "sub/other.yaml", "--dry-run")
    assert done.returncode == 0 and "SDXL1.0B" in done.stdout


def test_a_new_import_makes_a_release_of_a_folder(tmp_path: Path) -> None:
    done = aigi(tmp_path, "new", "mine", "--kind", "import")
    assert done.returncode == 0 and "workflow: mine.yaml" in done.stdout
    (tmp_path / "images").mkdir()
    for n in range(30):
        Image.effect_noise((64, 64), 40 + n).convert("RGB").save(tmp_path / "images" / f"{n}.png")
        (tmp_path / "images" / f"{n}.txt").write_text(f"noise of strength {n}")
    done = aigi(tmp_path, "run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "release: 30 images" in done.stderr


def test_wrong_names_and_kinds(tmp_path: Path) -> None:
    done = aigi(tmp_path, "new", "mine", "--kind", "trian")
    assert done.returncode == 1 and 'no "trian"; did you mean "train"?' in done.stderr
    done = aigi(tmp_path, "new", "s3://bucket/mine", "--kind", "train")
    assert done.returncode == 1 and "expected the name of a workflow file" in done.stderr
    assert not list(tmp_path.iterdir())
