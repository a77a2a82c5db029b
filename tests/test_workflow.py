"""Workflow files: paths, overrides, and errors that name file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline import workflow as workflows
from tests.conftest import ROOT


def write(folder: Path, text: str) -> Path:
    path = folder / "flow.yaml"
    path.write_text(text)
    return path


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "run: ../runs/x\nprompts: {sources: [{kind: text, path: a.txt}]}\n")
    loaded = workflows.load(path)
    assert loaded.run == str((tmp_path / "../runs/x").resolve())
    assert loaded.prompts is not None
    assert loaded.prompts.sources[0].path == str(tmp_path / "a.txt")  # type: ignore[union-attr]


def test_urls_are_kept(tmp_path: Path) -> None:
    assert workflows.load(write(tmp_path, "run: s3://bucket/runs/a\n")).run == "s3://bucket/runs/a"


def test_set_paths_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    loaded = workflows.load(write(tmp_path, "run: x\n"), ["run=out", "compute.workers=3"])
    assert loaded.run == str(tmp_path / "here" / "out")
    assert loaded.compute.workers == 3


def test_set_makes_sections_and_reaches_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "run: x\nprompts: {sources: [{kind: text, path: a.txt}]}\n")
    loaded = workflows.load(
        path, ["prompts.sources.0.path=b.txt", "plan.dataset=d.yaml", "sources.sd.batch_size=2"]
    )
    assert loaded.plan is not None
    assert loaded.prompts is not None
    assert loaded.prompts.sources[0].path == str(Path("b.txt").resolve())  # type: ignore[union-attr]
    assert loaded.sources["sd"].batch_size == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("run: x\nplanet: 1\n", ["flow.yaml", 'planet: no such setting; did you mean "plan"?']),
        ("run: x\nplan: {dataset: d, margn: 1}\n", ["flow.yaml", "plan.margn"]),
        ("run: x\nplan: {dataset: d, margin: 3}\n", ["plan.margin", "expected 1 or less, found 3"]),
        ("run: x\nrun: y\n", ["flow.yaml", "'run' is given twice", "line 2"]),
        ("run: [\n", ["flow.yaml", "not readable as YAML"]),
        ("- a\n", ["flow.yaml", "expected a mapping", "list"]),
        ("plan: {dataset: d}\n", ["flow.yaml: run", "needed, but not given"]),
        ("run: x\nsplit: {validation: 0.5, test: 0.5}\n", ["split", "leave a share for train"]),
        ("run: x\nprompts: {sources: [{kind: cc12mm, path: a}]}\n", ["prompts.sources.0", "cc12m"]),
        ("run: x\nsources: {a: {kind: import, pth: y}}\n", ["sources.a", "pth"]),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(AigiError) as error:
        workflows.load(write(tmp_path, text))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("plan.limit", "expected KEY=VALUE"),
        ("run.below=1", "below a plain value"),
        ("prompts.sources.7.path=x", "not an index below 1"),
        ("plan.limit=many", "plan.limit"),
        ("run=[", "not YAML"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, part: str) -> None:
    path = write(
        tmp_path,
        "run: x\nplan: {dataset: d}\nprompts: {sources: [{kind: text, path: a.txt}]}\n",
    )
    with pytest.raises(AigiError, match=part):
        workflows.load(path, [override])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"absent\.yaml: no such file"):
        workflows.load(tmp_path / "absent.yaml")


def test_a_workflow_cannot_be_changed(tmp_path: Path) -> None:
    loaded = workflows.load(write(tmp_path, "run: x\n"))
    with pytest.raises(ValueError, match="frozen"):
        loaded.run = "y"  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.yaml")), ids=lambda p: p.name)
def test_every_workflow_file_is_right(path: Path) -> None:
    if path.name.startswith("ray-"):
        pytest.skip("a file for Ray, not a workflow")
    from pipeline.plan import specification

    loaded = workflows.load(path)
    if loaded.benchmark is not None:
        from pipeline.codecs.table import row_of

        assert all(row_of(given).title for given in loaded.benchmark.codecs)
    if loaded.plan is None:  # nothing to make: it reads what is made
        assert any(getattr(loaded, reader) is not None for reader in workflows.READERS)
        return
    dataset = specification.load(loaded.plan.dataset)
    assert set(loaded.sources) <= set(dataset.sources)


def test_paths_in_lists_and_mappings_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "flow.yaml").write_text("run: run\n")
    monkeypatch.chdir(tmp_path / "here")
    loaded = workflows.load(
        tmp_path / "flow.yaml",
        ["prompts={sources: [{kind: text, path: a.txt}], filters: {blocklist: b.txt}}"],
    )
    assert loaded.prompts is not None
    (source,) = loaded.prompts.sources
    assert source.path == str(tmp_path / "here" / "a.txt")  # type: ignore[union-attr]
    assert loaded.prompts.filters.blocklist == str(tmp_path / "here" / "b.txt")
    assert loaded.run == str(tmp_path / "run"), "that of the file starts where the file is"
