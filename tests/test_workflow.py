"""Workflow files: paths, overrides, and errors that name file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import AigiError, build
from pipeline import workflow as workflows
from pipeline.plan import specification
from pipeline.settings import read_yaml
from tests.conftest import ROOT, aigi_here


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


def test_a_specification_may_be_in_the_workflow(
    make_workflow: Callable[..., Path], tmp_path: Path
) -> None:
    """The same plan as from a file, and paths in it start at the workflow."""
    path = make_workflow()
    loaded = workflows.load(path)
    assert loaded.plan is not None
    inside = read_yaml(str(tmp_path / "dataset.yaml"))
    inline = make_workflow("inline", plan={"dataset": inside, "shard_mb": 0.05})
    found = workflows.load(inline).plan
    assert found is not None
    assert specification.load(found.dataset) == specification.load(loaded.plan.dataset)
    with pytest.raises(AigiError, match=r"inline.yaml: plan.dataset.sources.sd.steps: .*found 0"):
        workflows.load(inline, ["plan.dataset.sources.sd.steps=0"])
    with pytest.raises(AigiError, match=r'plan.dataset.sourcs: no such setting.*"sources"'):
        workflows.load(inline, ["plan.dataset.sourcs={}"])
    with pytest.raises(AigiError, match=r"sources.sdx: no source of plan.dataset; .*sdxl"):
        build.stages(workflows.load(inline, ["sources.sdx.batch_size=1"]))
    for wrong in ("3", "[]"):
        with pytest.raises(AigiError, match=r"plan.dataset: expected a mapping"):
            workflows.load(path, [f"plan.dataset={wrong}"])


def test_lists_of_a_specification_in_a_workflow_start_at_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "zoo.csv").write_text("model,steps\nORG/A,4\nORG/B,5\n")
    size = {"train": {"width": 64, "height": 64}}
    zoo = {"kind": "zoo", "title": "Zoo", "licence": "MIT", "models": "zoo.csv", "splits": size,
           "each": {"pipeline": "sd", "guidance_scale": 1.0},
           "images_per_model": {"train": 3}}  # fmt: skip
    dataset = {"name": "mine", "title": "Mine", "licence": "MIT", "sources": {"zoo": zoo}}
    path = write(tmp_path, json.dumps({"run": "x", "plan": {"dataset": dataset}}))
    plan = workflows.load(path).plan
    assert plan is not None
    assert specification.load(plan.dataset).sources["zoo"].splits["train"].count == 6


def test_workflows_run_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came with aigi is found there, all else is of the current folder."""
    monkeypatch.chdir(tmp_path)
    loaded = workflows.load("regenerate")
    assert loaded.run == str(tmp_path / "runs" / "pku-aigi-500k")
    assert loaded.prompts is not None and loaded.plan is not None and loaded.release is not None
    assert loaded.prompts.sources[0].path == str(tmp_path / "data" / "cc12m.tsv")  # type: ignore[union-attr]
    assert loaded.plan.dataset == str(ROOT / "manifests" / "pku-aigi-500k.yaml")
    assert loaded.prompts.filters.blocklist == str(ROOT / "prompts" / "blocklist.txt")
    assert loaded.release.record == str(tmp_path / "manifests" / "releases")
    assert workflows.load("regenerate", ["run=here"]).run == str(tmp_path / "here")
    by_path = workflows.load(ROOT / "workflows" / "regenerate.yaml")
    assert by_path.run == str(ROOT / "runs" / "pku-aigi-500k")


@pytest.mark.parametrize("name", workflows.shipped())
def test_every_listed_workflow_loads_and_says_what_it_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert workflows.load(name).run.startswith(str(tmp_path))
    assert len(workflows.shipped()[name]) > 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("regenrate", r'came with aigi; did you mean "regenerate"\?.*regenrate.yaml'),
        ("demo", "`aigi demo` runs it"),
        ("workflows/regenerate.yaml", "no such file. One of this name .*`aigi run regenerate`"),
        ("mine.yml", "mine.yml: no such file$"),
        ("other.yaml", "other.yaml: no such file$"),
        ("folder", "no such file, and no workflow"),
        ("./folder", "a folder, and no workflow file"),
    ],
)
def test_a_workflow_that_is_not_there_is_said_with_the_nearest(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mien.yml").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(AigiError, match=said):
        workflows.load(given)


def test_listed_workflows_are_for_programs_too() -> None:
    done = aigi_here("workflows", "--json")
    assert done.returncode == 0
    assert {"name": "regenerate", "does": "Regenerate PKU-AIGI-500K."} in json.loads(done.stdout)
    assert "quickstart" in aigi_here("workflows").stdout
