"""What lies beside the rows: equal for equal runs, verified, made anew, loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline.manifest import CARD, MANIFEST, PLAN_FILE, open_release
from pipeline.plan import plan
from pipeline.prompts import prompts
from pipeline.release.croissant import CROISSANT
from pipeline.release.sheet import SHEET
from pipeline.release.verify import compare
from pipeline.stage import fingerprint
from tests.release.conftest import body, finish, made, released, tables


def test_equal_runs_give_equal_bytes(small: tuple[Path, str], tmp_path: Path) -> None:
    other, _, _ = released(tmp_path / "elsewhere")
    for name in (CARD, CROISSANT, SHEET):
        assert (other / name).read_bytes() == (small[0] / name).read_bytes(), name


@pytest.mark.parametrize("name", [CARD, CROISSANT, SHEET, PLAN_FILE])
def test_verify_checks_every_document(small: tuple[Path, str], tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(small[0], tmp_path / "release")
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
    small: tuple[Path, str], tmp_path: Path, path: str
) -> None:
    copy = shutil.copytree(small[0], tmp_path / "release")
    (tmp_path / "outside.md").write_text("secret")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["documents"] = [{"path": path, "bytes": 1, "sha256": "0" * 64}]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AigiError, match=r"documents\.0\.path: expected the name of a file in the"):
        open_release(str(copy))


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
    assert "manifest: its settings or inputs have changed; it is remade" in said
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
    small: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from datasets import config, get_dataset_default_config_name, load_dataset

    # Not the user's own cache, which may know another release of this name.
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path))
    folder, text = small
    assert get_dataset_default_config_name(str(folder)) == "sd"
    loaded = load_dataset(str(folder), "sd")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "test": 4}
    (example,) = (t.content for t in body(text) if t.type == "fence" and t.info == "python")
    exec(example.replace('"ORG/NAME"', repr(str(folder))), {})  # noqa: S102 (our own example)
    assert "(32, 64)" in capsys.readouterr().out


@pytest.mark.parametrize("name", [CARD, MANIFEST, PLAN_FILE])
def test_a_document_that_was_deleted_is_written_again(tmp_path: Path, name: str) -> None:
    workflow, store = made(tmp_path)
    finish(workflow, store)
    path = tmp_path / "run" / "release" / name
    before = path.read_bytes()
    path.unlink()
    said = finish(workflow, store)
    assert "release: 5 shards, already made" in said
    assert path.read_bytes() == before
    assert "manifest: 5 files, already made" in finish(workflow, store)
