"""Several runs build one dataset: what each adds is derived over all, and nothing is invented."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import get_dataset_config_names

import pipeline
from pipeline import AigiError
from pipeline.makers import OWN, made_by_one, makers_of, only
from pipeline.manifest import CARD, ENTRIES, MANIFEST, PLAN_FILE, checked, open_release
from pipeline.progress import Progress
from pipeline.release.claims import digest, wrong_claims
from pipeline.release.croissant import CROISSANT
from pipeline.release.diff import diff
from pipeline.release.publish import publish
from pipeline.release.verify import compare
from tests.conftest import ROOT, SPECIFICATION, aigi, aigi_here, listed, make_workflow
from tests.release.test_again import recipe, shell
from tests.release.test_onto import files

Maker = Callable[..., Path]


def run_of(
    folder: Path, models: Path, sources: list[str], version: str, spec: Any = None, **sections: Any
) -> Path:
    """A finished run of some sources; `spec` changes the specification before."""
    folder.mkdir()
    maker: Maker = make_workflow.__wrapped__(folder, models)  # type: ignore[attr-defined]
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05, "sources": sources}
    workflow = maker(**{"plan": plan, "release": {"version": version}, **sections})
    if spec is not None:
        found = yaml.safe_load(SPECIFICATION)
        spec(found)
        (folder / "dataset.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    done = aigi_here("run", str(workflow))
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def teams(tmp_path_factory: pytest.TempPathFactory, models: Path) -> dict[str, Path]:
    """Runs of two teams: one has sd, the other sdxl with another margin; not to be changed."""
    folder = tmp_path_factory.mktemp("teams")
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05, "sources": ["sdxl"], "margin": 0.5}
    return {
        "sd": run_of(folder / "a", models, ["sd"], "1.0.0"),
        "sdxl": run_of(folder / "b", models, ["sdxl"], "1.1.0", plan=plan),
    }


@pytest.fixture
def target(teams: dict[str, Path], tmp_path: Path) -> Path:
    """A folder in which sd is published."""
    publish(str(teams["sd"]), str(tmp_path / "set"))
    return tmp_path / "set"


def wrong(folder: Path) -> list[str]:
    """What `aigi verify --deep` would find."""
    store, manifest = open_release(str(folder), ENTRIES)
    return compare(store, manifest) + wrong_claims(store, manifest, Progress(io.StringIO()), True)


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def shards(run: Path, source: str) -> dict[str, bytes]:
    return {p: data for p, data in files(run / "release").items() if p.startswith(f"{source}/")}


def test_two_teams_build_one_dataset_that_verifies_loads_and_differs_by_what_was_added(
    teams: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    shutil.copytree(target, tmp_path / "before")
    found, published = publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    assert published is not None and published.rows["sdxl", "test"] == 6
    assert not [one for one in found if one.what == "removed"]
    assert wrong(target) == []
    own = {**shards(teams["sd"], "sd"), **shards(teams["sdxl"], "sdxl")}
    assert {p: data for p, data in files(target).items() if p.endswith(".parquet")} == own
    assert get_dataset_config_names(str(target)) == ["sd", "sdxl"]
    assert len(pipeline.load(str(target), "sd", "train")) == 24
    assert len(pipeline.load(str(target), "sdxl", "train")) == 4
    changes = list(diff(str(tmp_path / "before"), str(target)))
    assert len(changes) == 10
    assert {(one.what, one.config) for one in changes} == {("added", "sdxl")}


def test_what_holds_of_one_run_alone_is_stated_of_it_and_of_nothing_else(
    teams: dict[str, Path], target: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    whole = manifest_of(target)
    mine = {name: manifest_of(run / "release") for name, run in teams.items()}
    assert [maker["sources"] for maker in whole["makers"]] == [["sd"], ["sdxl"]]
    for maker in whole["makers"]:
        (name,) = maker["sources"]
        assert maker["version"] == mine[name]["version"]
        assert {entry: maker[entry] for entry in OWN} == {e: mine[name][e] for e in OWN}
    assert whole["workflow"] == {} and whole["tables"] == {}
    assert whole["captions"] == mine["sd"]["captions"], "both had the same file"
    assert list(whole["specification"]["sources"]) == ["sd", "sdxl"]
    assert whole["wanted"] == {**mine["sd"]["wanted"], **mine["sdxl"]["wanted"]}
    assert whole["plan"]["rows"] == sum(one["plan"]["rows"] for one in mine.values())
    card = (target / CARD).read_text()
    assert "2 runs made this dataset" in card and "`sdxl` | 1.1.0 |" in card
    planned = mine["sdxl"]["plan"]["rows"]
    assert planned > 10, "with the margin of its run"
    assert f"| `sdxl` | {planned} | 10 |" in card
    assert json.loads((target / CROISSANT).read_text())["version"] == "1.1.0"


def test_the_same_command_again_writes_the_same_bytes(teams: dict[str, Path], target: Path) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    before = files(target)
    found, _ = publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    assert {one.what for one in found} == {"same"} and files(target) == before


def test_killed_at_any_write_the_same_command_ends_with_the_same_bytes(
    teams: dict[str, Path], target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 does: what was written stays, and nothing after it happens."""
    from pipeline.folder import Folder

    shutil.copytree(target, tmp_path / "first")
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    whole = files(target)

    class Killed(BaseException):
        """Nothing of ours catches it."""

    left = 0
    real = {name: getattr(Folder, name) for name in ("copy", "write_bytes", "remove")}

    def killing(name: str) -> Any:
        def method(self: Folder, *given: Any) -> Any:
            nonlocal left
            if self.url == str(target):
                left -= 1
                if left < 0:
                    raise Killed
            return real[name](self, *given)

        return method

    steps, last = 0, b""
    for steps in range(99):
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "first", target)
        left = steps
        with monkeypatch.context() as context:
            for name in real:
                context.setattr(Folder, name, killing(name))
            try:
                publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
                break
            except Killed:
                last = (target / MANIFEST).read_bytes()
        said: list[str] = []
        publish(str(teams["sdxl"]), str(target), sources=["sdxl"], say=said.append)
        assert files(target) == whole, (steps, said)
    assert steps > 12 and last == whole[MANIFEST], "killed after the manifest was in its place, too"


def test_a_publication_that_was_cut_off_is_finished_by_whoever_publishes_next(
    teams: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    whole = manifest_of(target)
    next_to = target / ".aigi-next"
    next_to.mkdir()
    for name in (CARD, MANIFEST, PLAN_FILE):
        shutil.copy(target / name, next_to / name)
    (target / CARD).write_text("cut")
    (target / "sd" / "old.txt").write_text("old")
    (next_to / "removed.json").write_text('{"removed": ["sd/old.txt", "README.md"]}')
    with pytest.raises(AigiError, match="a publication was cut off there"):
        publish(str(teams["sdxl"]), str(target), sources=["sdxl"], dry_run=True)
    said: list[str] = []
    publish(str(teams["sd"]), str(target), sources=["sd"], version="2.0.0", say=said.append)
    assert "finishes a publication that was cut off" in said[0]
    assert wrong(target) == [] and not next_to.exists() and not (target / "sd/old.txt").exists()
    assert [maker["sources"] for maker in manifest_of(target)["makers"]] == [["sd"], ["sdxl"]]
    assert manifest_of(target)["makers"][1] == whole["makers"][1]


def test_sources_published_one_by_one_are_the_release_that_was_made_at_once(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    run, target = finished[1], tmp_path / "set"
    for number, name in enumerate(("sd", "sdxl")):
        publish(str(run), str(target), sources=[name], version=f"0.{number}.0")
        assert wrong(target) == []
    whole, mine = manifest_of(run / "release"), manifest_of(target)
    assert "makers" not in mine, "one run made all of it"
    for entry in ("name", "schema", "plan", "captions", "wanted", "tables", "versions", "files"):
        assert mine[entry] == whole[entry], entry
    assert mine["workflow"]["sources"] == whole["workflow"]["sources"]
    assert sorted(mine["workflow"]["plan"]["sources"]) == ["sd", "sdxl"]
    assert (target / PLAN_FILE).read_bytes() == (run / "release" / PLAN_FILE).read_bytes()
    # All that there would be is the release itself: its own documents are published.
    publish(str(run), str(target), sources=["sdxl", "sd"], replace=True)
    assert files(target) == files(run / "release")


def test_a_source_is_replaced_alone_and_what_goes_is_named(
    teams: dict[str, Path], target: Path, tmp_path: Path, models: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])

    def fewer(spec: Any) -> None:
        spec["sources"]["sdxl"]["splits"]["test"]["count"] = 1

    other = run_of(tmp_path / "other", models, ["sdxl"], "1.1.0", fewer)
    with pytest.raises(AigiError, match=r"version 1\.1\.0 is published, and 1\.1\.0 is not higher"):
        publish(str(other), str(target), sources=["sdxl"])
    said: list[str] = []
    publish(str(other), str(target), sources=["sdxl"], version="1.2.0", say=said.append)
    gone = [line for line in said if line.startswith("removes ")]
    assert len(gone) == 1 and "removes sdxl/test-00001" in gone[0]
    assert wrong(target) == [] and manifest_of(target)["version"] == "1.2.0"
    assert shards(other, "sdxl") == {p: d for p, d in files(target).items() if p[:5] == "sdxl/"}
    makers = manifest_of(target)["makers"]
    assert [maker["sources"] for maker in makers] == [["sd"], ["sdxl"]]


def test_a_prompt_in_two_splits_is_refused_and_named(
    target: Path, tmp_path: Path, models: Path
) -> None:
    before = files(target)
    shares = {"validation": 0.0, "test": 0.6}
    other = run_of(tmp_path / "other", models, ["sdxl"], "1.1.0", split=shares)
    with pytest.raises(AigiError, match=r"prompt [0-9a-f]{32} is in (train|test) of sd") as error:
        publish(str(other), str(target), sources=["sdxl"])
    assert "of sdxl" in str(error.value) and "`split` shares" in str(error.value)
    assert files(target) == before


def test_what_both_state_differently_of_the_whole_is_refused_unless_asked_for(
    target: Path, tmp_path: Path, models: Path
) -> None:
    before = files(target)

    def words(spec: Any) -> None:
        spec.update(licence="MIT", citation="@misc{us}")

    other = run_of(tmp_path / "other", models, ["sdxl"], "1.1.0", words)
    with pytest.raises(AigiError) as error:
        publish(str(other), str(target), sources=["sdxl"])
    assert 'licence: published "Apache-2.0", here "MIT"' in str(error.value)
    assert 'citation: published "", here "@misc{us}"' in str(error.value)
    assert files(target) == before
    publish(str(other), str(target), sources=["sdxl"], replace=True)
    assert wrong(target) == [] and manifest_of(target)["specification"]["licence"] == "MIT"


def test_what_cannot_be_put_together_says_why(
    teams: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    run = str(teams["sdxl"])
    options: dict[str, Any]
    for options, said in (
        ({"sources": ["mod"]}, r"has no source of this name; it has sdxl"),
        ({"version": "2.0.0"}, "--version is for --source alone"),
        ({"sources": ["sdxl"], "version": "2"}, "--version 2: expected a version"),
    ):
        with pytest.raises(AigiError, match=said):
            publish(run, str(target), **options)
    other = tmp_path / "other"
    shutil.copytree(teams["sdxl"] / "release", other)
    (other / MANIFEST).write_text(
        json.dumps({**manifest_of(other), "version": "1.1.0", "name": "x"})
    )
    renamed = manifest_of(other)
    renamed["specification"]["name"] = "x"
    (other / MANIFEST).write_text(json.dumps(renamed))
    with pytest.raises(AigiError, match='it is the dataset "test-set", and this is "x"'):
        publish(str(other), str(target), sources=["sdxl"], replace=True)
    plan = target / PLAN_FILE
    data = plan.read_bytes()
    plan.write_bytes(data[:-1] + b"x")
    with pytest.raises(AigiError, match=r"plan\.arrow: not what its manifest lists"):
        publish(run, str(target), sources=["sdxl"])
    plan.write_bytes(data)
    old = manifest_of(target)
    old["documents"] = [one for one in old["documents"] if one["path"] != PLAN_FILE]
    (target / MANIFEST).write_text(json.dumps(old))
    with pytest.raises(AigiError, match=r"it has no plan\.arrow, as releases of earlier versions"):
        publish(run, str(target), sources=["sdxl"])


def test_a_shard_that_is_damaged_here_is_never_added(
    teams: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    before = files(target)
    other = tmp_path / "other"
    shutil.copytree(teams["sdxl"] / "release", other)
    path = min(other.glob("sdxl/*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AigiError, match=r"sdxl/.*(damaged|differs|sha256|not what)"):
        publish(str(other), str(target), sources=["sdxl"])
    assert files(target) == before


def test_each_source_is_made_again_by_the_settings_of_its_own_run(
    teams: dict[str, Path], target: Path, tmp_path: Path, models: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    again = [
        "run", "workflows/regenerate.yaml", "--set", f"plan.manifest={target}/{MANIFEST}",
        "--set", f"sources.sd.folder={models}/sd", "--set", f"sources.sdxl.folder={models}/sdxl",
        "--set", "release.record=null", "--set", f"run={tmp_path}/again",
    ]  # fmt: skip
    done = aigi_here(*again)
    assert done.returncode == 1
    assert "each with settings of its own: sd (1.0.0); sdxl (1.1.0)" in done.stderr
    done = aigi_here(*again, "--set", "plan.sources=[sdxl]", "--trust")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "again"
    assert shards(made, "sdxl") == shards(teams["sdxl"], "sdxl")
    mine, first = manifest_of(made / "release"), manifest_of(teams["sdxl"] / "release")
    assert mine["workflow"]["plan"]["margin"] == 0.5
    assert mine["captions"] == first["captions"]


@pytest.mark.slow
def test_the_recipe_on_the_card_makes_the_sources_of_each_run_again(
    teams: dict[str, Path], target: Path, tmp_path: Path, models: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    printed = recipe((target / CARD).read_text())
    places = tmp_path / "user"
    places.mkdir()
    for name in ("sd", "sdxl"):
        (places / name).symlink_to(models / name)
    done = shell(printed.replace("FOLDER", f"'{target}'", 1), places)
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(("sd", "sdxl"), start=1):
        assert f"plan.sources=[{name}]" in printed
        assert shards(places / f"again-{number}", name) == shards(teams[name], name)
        again = manifest_of(places / f"again-{number}" / "release")
        assert (
            again["counted"]["origins"]
            == manifest_of(teams[name] / "release")["counted"]["origins"]
        )


def test_what_each_run_counted_of_its_captions_is_on_the_card(
    teams: dict[str, Path], target: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    assert wrong(target) == []
    card, makers = (target / CARD).read_text(), manifest_of(target)["makers"]
    for maker in makers:
        own = manifest_of(teams[maker["sources"][0]] / "release")["counted"]
        assert maker["counted"] == own
        (origin,) = own["origins"]
        numbers = " | ".join(f"{origin[name]:,}" for name in ("kept", "used", "images"))
        assert f"Captions of `{maker['sources'][0]}`:" in card and numbers in card
    assert "is not known of this part" not in card
    for maker in makers:  # somebody's claim of other images is not repeated
        maker["counted"]["rows"] = "0" * 64
    manifest = {**manifest_of(target), "makers": makers}
    (target / MANIFEST).write_text(json.dumps(manifest))
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"], version="1.2.0")
    card = (target / CARD).read_text()
    assert card.count("is not known of this part of a run") == 1
    assert "Captions of `sd`:" in card


def test_of_a_part_of_a_run_nothing_is_counted(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, target = finished[1], tmp_path / "set"
    publish(str(run), str(target), sources=["sd"], version="0.1.0")
    assert "is not known of this part of a run" in (target / CARD).read_text()
    publish(str(run), str(target), sources=["sdxl"], version="0.2.0")
    whole, mine = manifest_of(run / "release"), manifest_of(target)
    assert mine["counted"] == whole["counted"]
    card = (target / CARD).read_text()
    assert "is not known of this part" not in card
    assert f"| {whole['counted']['origins'][0]['kept']:,} |" in card


def test_rows_of_all_runs_are_made_again_by_verify(
    teams: dict[str, Path], target: Path, models: Path
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    places = [f"sources.{name}.folder={models}/{name}" for name in ("sd", "sdxl")]
    settings = [part for place in places for part in ("--set", place)]
    done = aigi_here("verify", str(target), "--pixels", "8", *settings, "--trust")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal bytes") == 8
    assert " sd " in done.stdout and " sdxl " in done.stdout


def test_a_source_with_options_beside_one_without_keeps_the_columns_of_both(
    target: Path, tmp_path: Path, models: Path
) -> None:
    import mlcroissant

    def options(spec: Any) -> None:
        spec["sources"]["sdxl"]["options"] = {"guidance_rescale": 0.5}

    other = run_of(tmp_path / "other", models, ["sdxl"], "1.1.0", options)
    publish(str(other), str(target), sources=["sdxl"])
    assert wrong(target) == []
    whole = manifest_of(target)
    assert any(line.startswith("options:") for line in whole["schema"])
    assert list(whole["schemas"]) == ["sd"]
    assert "options" not in pipeline.load(str(target), "sd", "test").column_names
    assert pipeline.load(str(target), "sdxl", "test")[0]["options"] == '{"guidance_rescale":0.5}'
    metadata = mlcroissant.Dataset(jsonld=target / CROISSANT)
    assert not metadata.metadata.issues.errors
    described = {
        each["@id"]: [field["name"] for field in each["field"]]
        for each in json.loads((target / CROISSANT).read_text())["recordSet"]
    }
    assert "options" in described["sdxl"] and "options" not in described["sd"]
    # Once more: what is published has a manifest with both kinds of columns.
    publish(str(other), str(target), sources=["sdxl"])
    assert wrong(target) == []


def test_a_folder_of_the_same_name_is_loaded_as_it_is(
    teams: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` would load what a folder of this name had elsewhere, or before."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for parent in ("one", "two"):
        publish(str(teams["sdxl"]), str(tmp_path / parent / "same"))
    assert len(pipeline.load(str(tmp_path / "one/same"), "sdxl", "test")) == 6
    path = tmp_path / "two/same"
    manifest = manifest_of(path)
    gone = next(file for file in manifest["files"] if file["path"] == "sdxl/test-00000.parquet")
    manifest["files"].remove(gone)
    (path / gone["path"]).unlink()
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert len(pipeline.load(str(path), "sdxl", "test")) == 6 - gone["rows"]


def test_a_release_may_be_added_to_at_an_object_store(
    teams: dict[str, Path], tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}/set"
    publish(str(teams["sd"]), url)
    publish(str(teams["sdxl"]), url, sources=["sdxl"])
    store, manifest = open_release(url, ENTRIES)
    assert compare(store, manifest) == []
    assert wrong_claims(store, manifest, Progress(io.StringIO())) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["makers"].pop(),
        lambda m: m["makers"][0]["sources"].append("sdxl"),
        lambda m: m["makers"][0].update(sources=["../x"]),
        lambda m: m["makers"][0].pop("workflow"),
        lambda m: m["makers"][0].update(version="one"),
        lambda m: m["makers"][0].update(more=1),
        lambda m: m.update(schemas={"sd": "image: x"}),
    ],
)
def test_makers_that_contradict_the_specification_are_no_manifest(
    teams: dict[str, Path], target: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    publish(str(teams["sdxl"]), str(target), sources=["sdxl"])
    manifest = manifest_of(target)
    assert checked(manifest, "here") is manifest
    damage(manifest)
    with pytest.raises(AigiError, match=r"here: (makers|schemas)"):
        checked(manifest, "here")


def test_one_maker_is_found_or_several_are_named() -> None:
    own: dict[str, Any] = {name: {} for name in OWN}
    one = {
        "sources": ["a", "b"],
        "version": "1.0.0",
        **own,
        "workflow": {"sources": {"a": 1, "b": 2}},
    }
    two = {"sources": ["c"], "version": "2.0.0", **own}
    manifest = {"makers": [one, two], "workflow": {}, "specification": {"sources": {}}}
    assert made_by_one("m", manifest, ["a"])["workflow"] == one["workflow"]
    with pytest.raises(AigiError, match=r"a, b \(1\.0\.0\); c \(2\.0\.0\).*plan\.sources=\[a, b\]"):
        made_by_one("m", manifest, ["a", "c"])
    with pytest.raises(AigiError, match="has no source x; there are a, b, c"):
        made_by_one("m", manifest, ["x"])
    assert only(one, ["b"])["workflow"] == {"sources": {"b": 2}}
    assert makers_of({**manifest, "makers": None, **own, "version": "1"})[0]["sources"] == []


@pytest.mark.parametrize("stated", [{}, {"sources": None}, {"sources": ["sd"]}, {"sources": "sd"}])
def test_a_specification_without_sources_has_a_maker_of_none(
    finished: tuple[Path, Path], stated: dict[str, Any]
) -> None:
    manifest = {**manifest_of(finished[1] / "release"), "specification": stated}
    (maker,) = makers_of(manifest)
    assert maker["sources"] == []
    assert made_by_one("m.json", manifest, None) == manifest


def test_two_publishers_of_one_folder_wait_for_each_other(
    teams: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "set"
    commands = [
        [sys.executable, "-m", "pipeline.cli", "publish", str(teams[name]), "--to", str(target),
         "--source", name, "--version", version]
        for name, version in (("sd", "1.0.0"), ("sdxl", "1.0.1"))
    ]  # fmt: skip
    running = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate()[1] for process in running]
    ends = [process.returncode for process in running]
    if ends != [0, 0]:  # the higher version came first: the other is refused, and says why
        assert ends == [1, 0] and "version 1.0.1 is published, and 1.0.0 is not higher" in said[0]
        publish(str(teams["sd"]), str(target), sources=["sd"], version="1.0.2")
    assert wrong(target) == []
    assert sorted(manifest_of(target)["specification"]["sources"]) == ["sd", "sdxl"]
    store, manifest = open_release(str(target))
    assert len(digest(store, manifest)) == 64 and not list(target.rglob("*.tmp"))


def test_the_option_reaches_the_command(teams: dict[str, Path], target: Path) -> None:
    done = aigi("publish", str(teams["sdxl"]), "--to", str(target), "--source", "sdxl", "--dry-run")
    assert done.returncode == 0 and "puts together sd, sdxl" in done.stderr
    assert manifest_of(target)["version"] == "1.0.0"
    listed(target, CARD)  # the manifest is still that of its files
    assert wrong(target) == []
