"""A release that is made again from its manifest is the first one; order is data on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.demo import TINY
from pipeline.manifest import CARD, MANIFEST, ordered, read_manifest
from pipeline.markdown import plain
from pipeline.plan import specification
from pipeline.release.again import commands
from pipeline.release.counts import Counts, Origin, PromptCount, Reading
from pipeline.release.croissant import CROISSANT
from pipeline.release.first import First, first_of
from pipeline.release.release import _make_manifest, manifest_stage
from pipeline.settings import check
from pipeline.store import Store
from tests.conftest import ROOT, aigi, aigi_here, cmp
from tests.hub import serve
from tests.release import rich
from tests.release.conftest import body, shown, tables

ORDER = ["sdxl", "mj52", "art"]
"""Of the specification; neither sorted, nor as `plan.sources` has it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    done = aigi("run", str(rich.workflow(folder)), "--quiet")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """An empty folder but for what the recipe needs beside the release."""
    folder = tmp_path / "user"
    folder.mkdir()
    for name, place in (
        ("sdxl", "weights/sdxl"), ("sd", "weights/sd"), ("clip", "weights/clip"),
        ("mj52", "pictures/mj52"),
    ):  # fmt: skip
        (folder / name).symlink_to(TINY / place)
    return folder


def recipe(card: str) -> str:
    """What a card prints for a shell to make its release again."""
    fences = [t.content for t in body(card) if t.type == "fence" and t.info == "sh"]
    return str(next(text for text in fences if text.startswith("RELEASE=")))


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("org/tiny-sd")
print(HfApi().upload_folder(repo_id="org/tiny-sd", folder_path=sys.argv[1]).oid)
"""


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines as a user types them, who has `aigi`."""
    programs = folder.parent / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "aigi").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline.cli "$@"\n')
    (programs / "aigi").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment, "PATH": path},
    )


# --- every file ----------------------------------------------------------------------------------


def test_the_recipe_on_the_card_makes_every_file_again(run: Path, places: Path) -> None:
    """Generated and imported, pairs, rounds, a limit, dropped rows and hostile prompts."""
    release = run / "release"
    printed = recipe((release / CARD).read_text())
    assert printed.count("FOLDER") == 1
    done = shell(printed.replace("FOLDER", f"'{release}'", 1), places)
    assert done.returncode == 0, done.stderr
    assert "27 rows, all equal to the manifest" in done.stdout
    assert cmp(release, places / "again" / "release") == []
    rounds = json.loads((release / MANIFEST).read_text())["plan"]["rounds"]
    rows = tables((release / CARD).read_text())
    lost = {line[0]: sum(map(int, line[2:])) for line in rows["Selection"][0][1:]}
    assert rounds and min(lost["blank"], lost["concept"], lost["surplus"]) > 0
    assert not (places / "owned").exists()
    # Made again from what was made again: still the same.
    second = printed.replace("FOLDER", f"'{places / 'again' / 'release'}'", 1)
    (places / "twice").mkdir()
    for name in ("sdxl", "sd", "clip", "mj52"):
        (places / "twice" / name).symlink_to(places / name)
    done = shell(second, places / "twice")
    assert done.returncode == 0, done.stderr
    assert cmp(release, places / "twice" / "again" / "release") == []


@pytest.mark.slow
def test_a_release_whose_models_are_on_the_hub_needs_nothing_else(tmp_path: Path) -> None:
    """From an empty folder, and from the published release; commits are pinned on the way."""
    (tmp_path / "prompts.txt").write_text(rich.HOSTILE)
    sd = {**rich.SPECIFICATION["sources"]["art"], "model": "org/tiny-sd", "revision": "main"}
    sd["splits"] = {"train": {"count": 3, "width": 64, "height": 64}}
    (tmp_path / "set.yaml").write_text(
        yaml.safe_dump({"name": "on-hub", "title": "t", "licence": "MIT", "sources": {"art": sd}})
    )
    flow = {
        "run": "run", "plan": {"dataset": "set.yaml"}, "images": {}, "release": {},
        "prompts": {
            "sources": [{"kind": "text", "path": "prompts.txt"}],
            "filters": {"max_noise": 1.0}, "near_duplicates": None,
        },
    }  # fmt: skip
    (tmp_path / "flow.yaml").write_text(yaml.safe_dump(flow))
    with serve(tmp_path / "hub") as hub:
        there = hub.environment()
        upload = subprocess.run(
            [sys.executable, "-c", UPLOAD, TINY / "weights/sd"],
            capture_output=True, text=True, env=there, check=True,
        )  # fmt: skip
        commit = upload.stdout.strip()
        for command in (
            ["run", "flow.yaml", "-q"],
            ["publish", "run", "--to", "hf://datasets/org/on-hub", "--public"],
        ):
            done = shell(f"aigi {' '.join(command)}", tmp_path, **there)
            assert done.returncode == 0, done.stderr
        card = (tmp_path / "run" / "release" / CARD).read_text()
        assert commit in card
        printed = recipe(card)
        assert "--dry-run  # lists" in printed and printed.endswith("--trust\n")
        (tmp_path / "empty").mkdir()
        done = shell(
            printed.replace("FOLDER", "hf://datasets/org/on-hub@v1.0.0", 1),
            tmp_path / "empty",
            **hub.environment(),
        )
    assert done.returncode == 0, done.stderr
    assert f"--trust would be needed for: model org/tiny-sd@{commit}" in done.stdout
    assert cmp(tmp_path / "run" / "release", tmp_path / "empty" / "again" / "release") == []


def test_a_part_says_what_it_did_not_count(run: Path, places: Path) -> None:
    done = aigi_here(
        "run", str(run / "release" / MANIFEST), "--set", f"run={places / 'part'}",
        "--set", "plan.sources=[art, mj52]", "--set", f"sources.mj52.path={places / 'mj52'}",
        "--set", f"embeddings.folder={places / 'clip'}",
        "--set", f"sources.art.folder={places / 'sd'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    release = places / "part" / "release"
    manifest = read_manifest(str(release / MANIFEST))
    first = read_manifest(str(run / "release" / MANIFEST))
    assert "counted" not in manifest and manifest["tables"] != first["tables"]
    assert manifest["workflow"]["plan"]["sources"] == ORDER[1:]
    assert list(manifest["workflow"]["sources"]) == ORDER[1:]
    assert manifest["workflow"]["selection"] == first["workflow"]["selection"]
    text = (release / CARD).read_text()
    assert "prompts were not counted again" in text
    assert "Not asked for: `sdxl`, `unasked`." in text
    assert cmp(release / "mj52", run / "release" / "mj52") == []


def test_another_version_is_another_version_and_nothing_else(run: Path, places: Path) -> None:
    names = ("sources.sdxl.folder=sdxl", "sources.art.folder=sd", "sources.mj52.path=mj52")
    given = [f"--set {name.replace('=', f'={places}/')}" for name in names]
    command = (
        f"run {run / 'release' / MANIFEST} --set run={places / 'next'} {' '.join(given)} "
        f"--set embeddings.folder={places}/clip --set release.version=3.0.0"
    )
    done = aigi_here(*command.split())
    assert done.returncode == 0, done.stderr
    assert cmp(run / "release", places / "next" / "release") == [CROISSANT, MANIFEST]
    assert read_manifest(str(places / "next" / "release" / MANIFEST))["version"] == "3.0.0"


def test_other_versions_of_libraries_are_stated_and_not_those_of_the_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its documents are made anew by another aigi with other libraries: it is not the first one."""
    from pipeline.progress import Progress
    from pipeline.release import release

    shutil.copytree(run, tmp_path / "run")
    flow = workflows.load(run.parent / "workflow.yaml", [f"run={tmp_path / 'run'}"])
    plan = flow.planned("release").model_copy(update={"manifest": str(run / "release" / MANIFEST)})
    monkeypatch.setattr(release, "library_versions", lambda: {"torch": "0.0.1"})
    for module in (release, sys.modules["pipeline.release.first"]):
        monkeypatch.setattr(module, "git_commit", lambda: "0" * 40)
    assert flow.release is not None
    store = Store(str(tmp_path / "run"))
    _make_manifest(
        flow.model_copy(update={"plan": plan}), flow.release, store, Progress(quiet=True)
    )
    found = read_manifest(str(tmp_path / "run" / "release" / MANIFEST))
    assert found["versions"] == {"torch": "0.0.1"} and found["aigi"]["commit"] == "0" * 40
    own = {name: store.record(name) for name in found["tables"]}
    assert found["tables"] == {name: one.fingerprint for name, one in own.items() if one}


# --- order ---------------------------------------------------------------------------------------


def test_sources_keep_the_order_of_the_specification(run: Path) -> None:
    release = run / "release"
    manifest = json.loads((release / MANIFEST).read_text())
    assert list(manifest["specification"]["sources"]) == ORDER
    assert manifest["workflow"]["plan"]["sources"] == ORDER
    assert list(manifest["workflow"]["sources"]) == ORDER
    assert list(dict.fromkeys(file["config"] for file in manifest["files"])) == ORDER
    assert list(dict.fromkeys(name.split("/")[0] for name in manifest["wanted"])) == ORDER
    splits = [file["split"] for file in manifest["files"] if file["config"] == "sdxl"]
    assert list(dict.fromkeys(splits)) == ["train", "test"]
    assert list(manifest["workflow"]["selection"]["max_concepts"]) == ["night rain", "a | cloud"]
    assert list(specification.load(str(release / MANIFEST)).sources) == ORDER
    card = (release / CARD).read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert [one["config_name"] for one in front["configs"]] == ORDER
    assert [one.get("default") for one in front["configs"]] == [True, None, None]
    found = tables(card)
    assert [line[0] for line in found["Configs and splits"][0][1:-1]] == ORDER
    assert found["Selection"][0][0][2:] == ORDER
    croissant = json.loads((release / CROISSANT).read_text())
    assert [one["@id"] for one in croissant["recordSet"]] == ["splits", *ORDER]
    sets = [one["@id"] for one in croissant["distribution"] if one["@type"] == "cr:FileSet"]
    assert sets == [f"{name}-files" for name in ORDER]


def test_the_first_source_is_what_loads_without_a_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config, get_dataset_config_names, load_dataset

    import pipeline

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path))
    release = str(run / "release")
    assert get_dataset_config_names(release) == ORDER
    assert set(load_dataset(release, split="train")["source"]) == {"sdxl"}
    assert set(pipeline.load(str(run), split="train")["source"]) == {"sdxl"}


def test_another_order_makes_the_documents_anew_and_no_image(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "copy")
    folder = tmp_path / "copy"
    command = ["run", str(folder / "workflow.yaml"), "--set", f"run={folder / 'run'}"]
    done = aigi_here(*command)
    assert done.returncode == 0 and "manifest: 5 files, already made" in done.stderr, done.stderr
    data = yaml.safe_load((folder / "rich.yaml").read_text())
    data["sources"] = {name: data["sources"][name] for name in reversed(data["sources"])}
    (folder / "rich.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    done = aigi_here(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already made") == 10
    assert "manifest: its settings or inputs have changed; it is remade" in done.stderr
    front = yaml.safe_load((folder / "run/release" / CARD).read_text().split("---\n")[1])
    assert [one["config_name"] for one in front["configs"]] == ORDER[::-1]
    assert front["configs"][0]["default"]


def test_documents_of_before_stay_as_they_are(run: Path, tmp_path: Path) -> None:
    """Their record has no order, and so it asks for none."""
    flow = workflows.load(run.parent / "workflow.yaml", [f"run={tmp_path}"])
    assert flow.release is not None
    fresh = manifest_stage(flow, flow.release)
    assert fresh.settings["order"] == ORDER
    record = Store(str(run)).record("manifest")
    assert record is not None
    before = {name: each for name, each in record.settings.items() if name != "order"}
    Store(str(tmp_path)).write_record(record.model_copy(update={"settings": before}))
    assert manifest_stage(flow, flow.release).settings == before


def test_a_manifest_of_before_is_read_with_its_sources_sorted(run: Path, tmp_path: Path) -> None:
    release = shutil.copytree(run / "release", tmp_path / "release")
    manifest = json.loads((release / MANIFEST).read_text())
    assert ordered(manifest)
    del manifest["counted"]
    manifest["workflow"]["plan"]["sources"].sort()
    (release / MANIFEST).write_text(json.dumps(manifest, sort_keys=True, indent=1))
    assert list(specification.load(str(release / MANIFEST)).sources) == sorted(ORDER)
    done = aigi_here("verify", str(release))
    assert done.returncode == 0, done.stdout + done.stderr


def test_verify_finds_a_card_with_another_default_config(run: Path, tmp_path: Path) -> None:
    from tests.conftest import listed

    release = shutil.copytree(run / "release", tmp_path / "release")
    text = (release / CARD).read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    head["configs"].reverse()
    (release / CARD).write_text(
        text.replace(text.split("---\n")[1], yaml.safe_dump(head, sort_keys=False), 1)
    )
    listed(release, CARD)
    done = aigi_here("verify", str(release))
    assert done.returncode == 1
    assert "configs art, mj52, sdxl; by the manifest sdxl, mj52, art" in done.stdout + done.stderr


# --- what the first release states ---------------------------------------------------------------


def some_counts(**changes: Any) -> Counts:
    found: dict[str, Any] = {
        "kinds": Counter(), "prompts": {}, "origins": {}, "planned": Counter(),
        "dropped": Counter(), "refused": Counter(), "unplanned": Counter(), "failed": Counter(),
        "samples": {}, "formats": ("WebP",), "rows": "a" * 64,
    }  # fmt: skip
    return Counts(**{**found, **changes})


names = st.text(min_size=1, max_size=9)
reasons = st.dictionaries(st.tuples(names, names), st.integers(1, 10**9), max_size=4)


@given(
    st.dictionaries(st.tuples(names, names), st.tuples(*[st.integers(0, 10**9)] * 4), max_size=4),
    reasons,
    reasons,
)
def test_counts_come_back_as_they_were_recorded(
    origins: dict[tuple[str, str], tuple[int, int, int, int]],
    refused: dict[tuple[str, str], int],
    unplanned: dict[tuple[str, str], int],
) -> None:
    counts = some_counts(
        origins={Origin(*key): PromptCount(*many) for key, many in origins.items()},
        refused=Counter(refused),
        unplanned=Counter(unplanned),
        readings={"art": Reading(77, 3)},
    )
    recorded = json.loads(json.dumps(counts.recorded()))
    assert some_counts().again(recorded) == counts
    assert some_counts().again(recorded).recorded() == counts.recorded()
    # Of other images, nothing of it is claimed.
    other = some_counts(rows="b" * 64)
    assert other.again(recorded) == some_counts(rows="b" * 64, copied=True)
    assert other.again(None).recorded() is None


def test_a_manifest_that_counts_what_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "release" / MANIFEST).read_text())
    manifest["counted"]["origins"][0]["used"] = -1
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AigiError, match=r"counted\.origins\.0\.used: expected 0 or more"):
        read_manifest(str(tmp_path / MANIFEST))


def test_hostile_counts_of_a_manifest_are_only_shown(run: Path, places: Path) -> None:
    """A manifest may be anybody's: what it counts goes to a card, and stays text there."""
    naughty = "x | <script>alert(1)</script> [l](x)\n# no"
    release = shutil.copytree(run / "release", places / "release")
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["counted"]["origins"][0]["source"] = naughty
    manifest["counted"]["refused"][0]["reason"] = naughty
    (release / MANIFEST).write_text(json.dumps(manifest))
    counted = First(str(release / MANIFEST), manifest, whole=True, all_of_a_run=True).counts(
        some_counts(rows=manifest["counted"]["rows"])
    )
    assert Origin(naughty, manifest["counted"]["origins"][0]["place"]) in counted.origins
    done = shell(
        f"aigi run {release / MANIFEST} --set run=mine --set sources.sdxl.folder=sdxl -q "
        "--set sources.art.folder=sd --set sources.mj52.path=mj52 --set embeddings.folder=clip",
        places,
    )
    assert done.returncode == 0, done.stderr
    text = (places / "mine" / "release" / CARD).read_text()
    assert "<script>" not in text
    prompts = tables(text)["Prompts"]
    assert plain(naughty) in [line[0] for line in prompts[0]]
    title = next(shown(token) for token in body(text) if token.type == "inline")
    assert title == plain(rich.SPECIFICATION["title"])


def test_a_plan_of_ones_own_has_no_first_release(run: Path) -> None:
    plan = workflows.load(run.parent / "workflow.yaml").planned("plan")
    assert first_of(plan, ORDER) is None
    copied = plan.model_copy(update={"manifest": str(run / "release" / MANIFEST)})
    for sources, whole in ((ORDER, True), (ORDER[::-1], True), (["art"], False)):
        found = first_of(copied, sources)
        assert found is not None and found.whole is whole


# --- the recipe ----------------------------------------------------------------------------------


def printed(tmp_path: Path, dataset: dict[str, Any], **sections: Any) -> str:
    """The commands for a specification."""
    data = {"run": "r", "plan": {"dataset": "x.yaml"}, "images": {}, **sections}
    flow = check(workflows.Workflow, data, str(tmp_path / "flow.yaml"))
    found = check(specification.Dataset, {**rich.SPECIFICATION, **dataset}, "x.yaml")
    return "\n".join(commands(found, [flow]))


def test_an_endpoint_is_left_out_of_the_recipe(tmp_path: Path) -> None:
    art = {**rich.SPECIFICATION["sources"]["art"], "revision": "0" * 40}
    api = {
        "title": "t", "licence": "l", "kind": "http", "model": "m",
        "splits": {"test": {"count": 1, "width": 64, "height": 64}},
    }  # fmt: skip
    local = {"art": {"folder": "/models/sd"}}
    both = printed(tmp_path, {"sources": {"api": api, "art": art}}, sources=local)
    # A commit of the Hub needs no folder.
    assert "--set 'plan.sources=[art]' --trust" in " ".join(both.replace("\\\n", "").split())
    assert "folder" not in both
    alone = printed(tmp_path, {"sources": {"api": api}})
    assert "aigi run" not in alone and "cannot be made again" in alone


def test_names_in_the_recipe_are_what_a_shell_and_yaml_read_back(tmp_path: Path) -> None:
    import shlex

    from pipeline.settings import overridden

    mj = rich.SPECIFICATION["sources"]["mj52"]
    for name in ("2024", "a: b", "it's $HOME", 'say "x"', "yes", "- x", "#1", "`id`", "[", "x\ty"):
        text = printed(
            tmp_path,
            {"sources": {"mj52": mj}},
            sources={"mj52": {"kind": "import", "path": f"/data/{name}"}},
        )
        lines = text.split("```")[1].removeprefix("sh\n").replace("\\\n", " ")
        words = shlex.split(lines, comments=True)
        setting = next(word for word in words if word.startswith("sources.mj52.path="))
        found = overridden({}, [setting])["sources"]["mj52"]["path"]
        assert found == name, text
        assert "--trust" not in text


def test_a_manifest_needs_a_folder_for_its_run(run: Path) -> None:
    done = aigi_here("run", str(run / "release" / MANIFEST))
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "the manifest of a release. Name a folder for the run that makes it again: --set run=FOLDER"
    )
    assert len(done.stderr.strip().splitlines()) == 1
