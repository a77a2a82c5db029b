"""Manifests that somebody else made: what they may ask for, and what has to be confirmed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.manifest import MANIFEST, PLAN_FILE
from pipeline.models.hub import Place
from pipeline.pixels import png_bytes
from pipeline.release.regenerate import places_of
from pipeline.release.trust import asked, confirm
from pipeline.store import RUN_WORKFLOW
from pipeline.workflow import Workflow
from tests.conftest import ROOT, aigi_here
from tests.learned.conftest import pictures

RECORD = ROOT / "manifests" / "releases" / "aigi-demo-0.1.0.json"
Change = Callable[[dict[str, Any]], object]


def loaded(tmp_path: Path, change: Change, *more: str) -> Workflow:
    """The workflow of the demo's manifest after a change, every place of it given."""
    manifest = json.loads(RECORD.read_text())
    change(manifest)
    folder = tmp_path / "given"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "mine.yaml").write_text(f"run: {tmp_path / 'run'}\n")
    weights = ROOT / "pipeline" / "tiny" / "weights"
    places = {
        "plan.manifest": folder / MANIFEST,
        "prompts.sources.0.path": ROOT / "prompts" / "grammar.yaml",
        "prompts.filters.blocklist": ROOT / "prompts" / "blocklist.txt",
        "embeddings.folder": weights / "clip",
        "sources.mj52.path": tmp_path,
        "sources.mj52.captions": tmp_path / "a.csv",
        "sources.mod.path": tmp_path,
        "sources.mod.captions": tmp_path / "a.csv",
        "sources.sd21.folder": weights / "sd",
        "sources.sd21-base.folder": weights / "sd",
        "sources.sdxl.folder": weights / "sdxl",
    }
    overrides = [f"{key}={value}" for key, value in places.items()]
    return workflows.load(tmp_path / "mine.yaml", [*overrides, *more])


def test_where_all_is_given_nothing_is_asked(tmp_path: Path) -> None:
    assert asked(loaded(tmp_path, lambda m: None)) == []
    confirm(loaded(tmp_path, lambda m: None), trusted=False)


def sources(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["specification"]["sources"]
    return found


REFUSED: dict[str, tuple[Change, str]] = {
    "a section that codes": (
        lambda m: m["workflow"].update(benchmark={"codecs": ["jpeg"]}),
        "workflow.benchmark: no such section of a manifest",
    ),
    "a section that trains": (
        lambda m: m["workflow"].update(train={"init": "/home/me"}),
        "workflow.train: no such section",
    ),
    "a place to write": (
        lambda m: m["workflow"].update(release={"record": "/home/me"}),
        "workflow.release: no such section",
    ),
    "another run": (lambda m: m["workflow"].update(run="/home/me"), "workflow.run: no such"),
    "a cluster": (
        lambda m: m["workflow"]["compute"].update(ray="ray://there:10001"),
        "workflow.compute.ray: no such entry; there are threads",
    ),
    "many threads": (
        lambda m: m["workflow"]["compute"].update(threads=10**6),
        "workflow.compute.threads: expected 1024 or less",
    ),
    "an unknown setting": (
        lambda m: m["workflow"]["images"].update(command="rm"),
        "workflow.images.command: no such entry",
    ),
    "a wrong setting": (
        lambda m: m["workflow"]["plan"].update(margin="much"),
        "workflow.plan.margin: expected a number",
    ),
    "no sources": (
        lambda m: m["workflow"]["plan"].update(sources=None),
        "workflow.plan.sources: needed",
    ),
    "strange sources": (
        lambda m: m["workflow"]["plan"].update(sources=["../x"]),
        r"workflow.plan.sources: '\.\./x' is no source",
    ),
    "a home": (
        lambda m: m["workflow"]["prompts"]["filters"].update(blocklist="~nobody-here/x"),
        "workflow.prompts.filters.blocklist: ~nobody-here/x: no such place",
    ),
    "a file of weights elsewhere": (
        lambda m: sources(m)["sd21"].update(sha256={"../../../etc/passwd": "0" * 64}),
        r"specification.sources.sd21.*: expected a file in the model's folder",
    ),
    "a revision that is a path": (
        lambda m: sources(m)["sd21"].update(revision="../../../../tmp/x"),
        r"specification.sources.sd21.revision: expected a commit, tag or branch",
    ),
    "a huge image": (
        lambda m: sources(m)["sd21"]["splits"]["test"].update(width=8 * 10**9),
        r"splits.test.width: expected 32768 or less",
    ),
    "endless guidance": (
        lambda m: sources(m)["sd21"].update(guidance_scale=10**400),
        r"specification.sources.sd21.guidance_scale",
    ),
    "a local logo": (
        lambda m: sources(m)["sd21"]["splits"]["test"].update(
            watermarks=["visible:logo=/home/me/photo.png,sha256=" + "0" * 64]
        ),
        "only the name of a file in the same folder, with its sha256",
    ),
    "a logo above": (
        lambda m: sources(m)["sd21"]["splits"]["test"].update(
            watermarks=["visible:logo=../photo.png,sha256=" + "0" * 64]
        ),
        "only the name of a file in the same folder",
    ),
    "a logo of any content": (
        lambda m: sources(m)["sd21"]["splits"]["test"].update(
            watermarks=["visible:logo=photo.png"]
        ),
        "only the name of a file in the same folder, with its sha256",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_manifest_names_no_file_and_no_machine(tmp_path: Path, what: str) -> None:
    change, said = REFUSED[what]
    with pytest.raises(AigiError, match=said) as caught:
        loaded(tmp_path, change)
    assert str(caught.value).startswith(str(tmp_path / "given" / MANIFEST))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vae", "dataset"])
def test_a_folder_that_was_used_there_must_be_given_here(tmp_path: Path, key: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if key == "vae":
            manifest["workflow"]["sources"]["sd21"]["vae"] = "secret/folder"
        else:
            manifest["workflow"]["prompts"]["sources"] = [
                {"kind": "hub", "dataset": "/home/me/photos", "column": "text"}
            ]

    with pytest.raises(AigiError, match=rf"--set \S+\.{key}=\.\.\.   \(originally: "):
        loaded(tmp_path, change)


ASKED: dict[str, tuple[Change, str]] = {
    "a model": (
        lambda m: m["workflow"]["quality"].update(
            safety_checker={"model": "evil/checker", "revision": "main"}
        ),
        "model evil/checker@main (quality.safety_checker.model)",
    ),
    "a dataset": (
        lambda m: m["workflow"]["prompts"].update(
            sources=[{"kind": "hub", "dataset": "evil/captions", "column": "text"}]
        ),
        "dataset evil/captions@main (prompts.sources.0.dataset)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_what_the_hub_would_send_is_listed_and_confirmed(tmp_path: Path, what: str) -> None:
    change, line = ASKED[what]
    workflow = loaded(tmp_path, change)
    assert asked(workflow) == [line]
    with pytest.raises(AigiError, match="this manifest would have this machine load") as caught:
        confirm(workflow, trusted=False)
    assert f"\n  {line}\n" in str(caught.value) and "--trust" in str(caught.value)
    confirm(workflow, trusted=True)


def test_a_logo_beside_the_manifest_is_listed(tmp_path: Path) -> None:
    data = png_bytes(pictures(1)[0])
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "logo.png").write_bytes(data)
    mark = f"visible:logo=logo.png,sha256={hashlib.sha256(data).hexdigest()}"
    split = "test"
    workflow = loaded(
        tmp_path, lambda m: sources(m)["sd21"]["splits"][split].update(watermarks=[mark])
    )
    (line,) = asked(workflow)
    assert line.startswith("logo logo.png, the file beside manifest.json")


def test_models_are_ids_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, said in (("/home/me/model", "expected ORG/NAME"), ("a/b", "here, this is a folder")):
        settings = {"model": model, "revision": "main"}

        def change(manifest: dict[str, Any], settings: dict[str, str] = settings) -> None:
            manifest["workflow"]["quality"]["safety_checker"] = settings

        workflow = loaded(tmp_path, change)
        (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AigiError, match=said):
            asked(workflow)


def test_a_commit_in_the_cache_was_chosen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of one's own run is not asked for again; a branch may point elsewhere by now."""
    from huggingface_hub import constants

    commit = "0123456789" * 4
    held = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    held.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert Place("sources.a", "", None, "org/name", commit).held()
    assert not Place("sources.a", "", None, "org/name", "1" * 40).held()
    assert not Place("sources.a", "", None, "org/name", "main").held()
    assert Place("sources.a", "", "/any", "org/name", "main").held()


def test_the_commands_stop_before_any_work_and_go_on_when_told(
    finished: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    for name in (MANIFEST, PLAN_FILE):
        shutil.copy(finished[1] / "release" / name, tmp_path / name)
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'again'}\n")
    command = [
        "run", str(bare), f"--set=plan.manifest={tmp_path / MANIFEST}", "--set=plan.sources=[sd]",
    ]  # fmt: skip
    dry = aigi_here(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "--trust would be needed for: model test/tiny-sd@seed-0 (sources.sd.model)" in dry.stdout
    done = aigi_here(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "\n  model test/tiny-sd@seed-0 (sources.sd.model)\n" in done.stderr
    assert not (tmp_path / "again").exists()
    # Confirmed, it is looked for on the Hub, which no test has.
    told = aigi_here(*command, "--trust")
    assert told.returncode == 1 and "would have this machine load" not in told.stderr
    assert "cannot look up test/tiny-sd@seed-0" in told.stderr and "Traceback" not in told.stderr


def test_places_of_a_published_release_are_nobodys(tmp_path: Path) -> None:
    """Whoever publishes a release could put a workflow beside it."""
    (tmp_path / "run" / "release").mkdir(parents=True)
    (tmp_path / "run" / RUN_WORKFLOW).write_text('{"run": "x"}')
    assert places_of(str(tmp_path / "run" / "release")) == {"run": "x"}
    assert places_of(f"file://{tmp_path}/run/release") == {"run": "x"}
    assert places_of("hf://datasets/org/name@v1.0.0") == {}
