"""Publishing knows what it is adding to: what would be lost is refused, and told file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import AigiError
from pipeline.manifest import CARD, MANIFEST, open_release
from pipeline.release.changes import Parcel, There, objections
from pipeline.release.publish import publish
from tests.conftest import aigi, listed
from tests.hub import serve
from tests.release.test_publish import REPO, TO, client, version


@pytest.fixture
def release(small: tuple[Path, str], tmp_path: Path) -> Path:
    """A release of the configs sd and mj, of one's own to change."""
    shutil.copytree(small[0], tmp_path / "release")
    return tmp_path / "release"


def without(release: Path, config: str, to: Path) -> Path:
    """The same release with one config fewer, as a run of the other sources makes it."""
    shutil.copytree(release, to)
    shutil.rmtree(to / config)
    manifest = json.loads((to / MANIFEST).read_text())
    manifest["files"] = [file for file in manifest["files"] if file["config"] != config]
    (to / MANIFEST).write_text(json.dumps(manifest))
    _, head, body = (to / CARD).read_text().split("---\n", 2)
    data = yaml.safe_load(head)
    data["configs"] = [one for one in data["configs"] if one["config_name"] != config]
    (to / CARD).write_text(f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n{body}")
    listed(to, CARD)
    return to


def change(release: Path, **entries: Any) -> None:
    manifest = json.loads((release / MANIFEST).read_text())
    (release / MANIFEST).write_text(json.dumps({**manifest, **entries}))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dry", [False, True])
def test_a_release_of_one_source_does_not_remove_the_others(
    release: Path, tmp_path: Path, dry: bool
) -> None:
    target = tmp_path / "there"
    publish(str(release), str(target))
    before = files(target)
    fewer = without(release, "mj", tmp_path / "fewer")
    version(fewer, "1.3.0")
    said: list[str] = []
    with pytest.raises(AigiError) as error:
        publish(str(fewer), str(target), dry_run=dry, say=said.append)
    assert "a config of it would vanish: mj (4 images in 2 files)" in str(error.value)
    assert "--source NAME (this release has sd)" in str(error.value)
    gone = sorted(path for path in before if path.startswith("mj/"))
    assert [line.split(" (")[0] for line in said] == [f"would remove {path}" for path in gone]
    assert files(target) == before, "a refusal changes nothing"


def test_asked_to_replace_it_removes_them_and_names_each_file(
    release: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there"
    publish(str(release), str(target))
    fewer = without(release, "mj", tmp_path / "fewer")
    version(fewer, "1.3.0")
    dry: list[str] = []
    publish(str(fewer), str(target), dry_run=True, replace=True, say=dry.append)
    assert len(dry) == 2 and all(line.startswith("would remove mj/") for line in dry)
    said: list[str] = []
    publish(str(fewer), str(target), replace=True, say=said.append)
    assert [line for line in said if line.startswith("removes ")] == [
        line.replace("would remove", "removes") for line in dry
    ]
    assert set(files(target)) == set(files(fewer))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"name": "other-set", "version": "9.0.0"}, "it is the dataset SET, and this is other-set"),
        ({"version": "1.2.2"}, "version 1.2.3 is published, and 1.2.2 is not higher"),
        ({"version": "1.2.3-rc.1"}, "version 1.2.3 is published, and 1.2.3-rc.1 is not higher"),
        ({"wanted": {}}, "another release of version 1.2.3 is published"),
    ],
)  # fmt: skip
def test_another_name_and_a_version_that_is_not_higher_are_refused(
    release: Path, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    target = tmp_path / "there"
    publish(str(release), str(target))
    before = files(target)
    name = json.loads((target / MANIFEST).read_text())["name"]
    change(release, **entries)
    with pytest.raises(AigiError) as error:
        publish(str(release), str(target))
    assert said.replace("SET", name) in str(error.value)
    assert "--replace" in str(error.value) and files(target) == before
    publish(str(release), str(target), replace=True)
    assert files(target) == files(release)


def test_the_same_release_is_completed_and_a_higher_version_goes_on(
    release: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there"
    publish(str(release), str(target))
    next(target.rglob("*.parquet")).unlink()
    publish(str(release), str(target))
    assert files(target) == files(release)
    for number in ("1.2.4-partial.1", "1.2.4-partial.2", "1.2.4", "1.10.0"):
        version(release, number)
        publish(str(release), str(target))
    assert files(target) == files(release)


def test_all_objections_are_told_at_once(release: Path, tmp_path: Path) -> None:
    _, manifest = open_release(str(release))
    _, fewer = open_release(str(without(release, "sd", tmp_path / "fewer")))
    other = {**fewer, "name": "other", "version": "1.0.0"}
    found = objections(other, There("there", before=manifest, tagged=("2.0.0",)))
    assert len(found) == 3
    assert "version 2.0.0 is published" in found[1], "a tag counts as what main has"
    assert objections(manifest, There("there")) == []
    assert objections(manifest, There("there", before={"files": [], "documents": []})) == []


def test_a_published_file_that_stays_must_be_what_it_was(release: Path) -> None:
    from pipeline.release.changes import changes

    store, manifest = open_release(str(release))
    kept = frozenset(file["path"] for file in manifest["files"] if file["config"] == "mj")
    parcel = Parcel(manifest, store, store, kept)
    there = dict(parcel.files())
    assert {one.what for one in changes(parcel, There("there", there))} == {"same"}
    path = min(kept)
    for wrong in ({}, {path: there[path].__class__(1, None)}):
        others = {name: file for name, file in there.items() if name != path}
        with pytest.raises(AigiError, match=f"{path}: .*nothing can be added"):
            changes(parcel, There("there", {**others, **wrong}))


@pytest.mark.parametrize("to", ["org/name", "org/name/", "Org-1/na.me_2"])
def test_a_name_of_the_hub_without_its_scheme_is_asked_about(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = to.rstrip("/")
    with pytest.raises(AigiError, match=rf"Is hf://datasets/{name} meant\?"):
        publish(str(release), to)
    assert not (tmp_path / to).exists()
    publish(str(release), f"./{to}")
    assert files(tmp_path / to) == files(release)
    publish(str(release), to)  # a folder that is there is meant


def test_the_hub_refuses_what_a_folder_refuses_and_tags_count(
    release: Path, tmp_path: Path
) -> None:
    with serve(tmp_path / "hub") as hub:
        there = hub.environment()
        assert aigi("publish", str(release), "--to", TO, **there).returncode == 0
        # A colleague publishes a pull request's content under a version of the future.
        client(hub, f'api.create_tag("{REPO}", tag="v3.0.0", repo_type="dataset")')
        fewer = without(release, "mj", tmp_path / "fewer")
        change(fewer, name="other-set", version="2.0.0")
        commits, before = len(hub.commits(REPO)), hub.files(REPO)
        done = aigi("publish", str(fewer), "--to", TO, **there)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "version 3.0.0 is published, and 2.0.0 is not higher" in done.stderr
        assert "and this is other-set" in done.stderr and "mj (4 images" in done.stderr
        assert done.stderr.count("would remove mj/") == 2
        assert len(hub.commits(REPO)) == commits and hub.files(REPO) == before
        done = aigi("publish", str(fewer), "--to", TO, "--replace", **there)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\nremoves mj/") + done.stderr.startswith("removes mj/") == 2
        assert not [path for path in hub.files(REPO) if path.startswith("mj/")]
        # Not even then does a tag change.
        change(fewer, version="1.2.3")
        done = aigi("publish", str(fewer), "--to", TO, "--replace", **there)
        assert done.returncode == 1 and "A tag never changes" in done.stderr
