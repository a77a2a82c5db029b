"""Two publishers at once: both are there at the end, or one is told clearly why it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, aigi
from tests.hub import Hub, serve
from tests.hub.faults import Fault
from tests.release.test_joined import teams as teams  # the fixture
from tests.release.test_publish import REPO, TO, client, once, version, whole

FEW = """
import sys
from pipeline.release import sending
sending.ONE_COMMIT = 2
from pipeline.cli import app
app(sys.argv[1:])
"""
"""The command, for which three files are many."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub", lfs_from=10_000) as hub:
        yield hub


@pytest.fixture
def release(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[1] / "release", tmp_path / "release")
    return tmp_path / "release"


def start(hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", "publish", *arguments, "--to", TO]
    return subprocess.Popen(
        command, cwd=ROOT, env=hub.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until_used(fault: Fault, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not fault.used:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def configs(hub: Hub, revision: str = "main") -> set[str]:
    return {path.split("/")[0] for path in hub.files(REPO, revision) if path.endswith(".parquet")}


def test_who_is_overtaken_is_refused_loses_nothing_and_is_then_added(
    hub: Hub, teams: dict[str, Path]
) -> None:
    """Its commit waits while a colleague publishes: it must not undo what is there by then."""
    late = hub.faults.add("POST", "/commit/", delay=120)
    one = start(hub, str(teams["sd"]), "--source", "sd")
    until_used(late, one)
    other = aigi("publish", str(teams["sdxl"]), "--to", TO, "--source", "sdxl", **hub.environment())
    assert other.returncode == 0, other.stderr
    assert one.poll() is None, "it still waits"
    late.end.set()
    said = one.communicate()[1]
    assert one.returncode == 1 and "Traceback" not in said
    assert "version 1.1.0 was published by someone else in the meantime" in said
    assert hub.tags(REPO).keys() == {"v1.1.0"} and configs(hub) == {"sdxl"}
    sent = dict(hub.uploads)
    asked = ["publish", str(teams["sd"]), "--to", TO, "--source", "sd"]
    refused = aigi(*asked, **hub.environment())
    assert refused.returncode == 1 and "version 1.1.0 is published, and 1.0.0" in refused.stderr
    done = aigi(*asked, "--version", "1.2.0", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert configs(hub) == configs(hub, "v1.2.0") == {"sd", "sdxl"}
    assert configs(hub, "v1.1.0") == {"sdxl"}, "a tag never changes"
    assert all(hub.uploads[sha] == 1 for sha in sent), "what had arrived is not sent again"
    for tag in ("v1.1.0", "v1.2.0"):
        verified = aigi("verify", f"{TO}@{tag}", "--deep", **hub.environment())
        assert verified.returncode == 0, verified.stdout + verified.stderr
    difference = aigi("diff", f"{TO}@v1.1.0", f"{TO}@v1.2.0", **hub.environment())
    assert difference.returncode == 1 and "sd/train: 24 added" in difference.stderr
    assert "removed" not in difference.stderr and "changed" not in difference.stderr
    # The same command again finds that all is done.
    commits = len(hub.commits(REPO))
    again = aigi(*asked, "--version", "1.2.0", **hub.environment())
    assert again.returncode == 0 and len(hub.commits(REPO)) == commits


def test_two_processes_that_start_together_leave_a_whole_dataset(
    hub: Hub, teams: dict[str, Path]
) -> None:
    client(hub, f'api.create_repo("{REPO}", repo_type="dataset", private=True)')
    running = {
        name: start(hub, str(run), "--source", name, "--version", f"1.0.{number}")
        for number, (name, run) in enumerate(teams.items())
    }
    said = {name: process.communicate()[1] for name, process in running.items()}
    there = {name for name, process in running.items() if process.returncode == 0}
    assert there, said
    for name in set(said) - there:
        assert "by someone else in the meantime" in said[name] or "is not higher" in said[name]
    assert configs(hub) == there
    for tag in hub.tags(REPO):
        verified = aigi("verify", f"{TO}@{tag}", **hub.environment())
        assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_commit_of_something_else_in_the_meantime_stays_and_stops_nobody(
    hub: Hub, release: Path
) -> None:
    assert aigi("publish", str(release), "--to", TO, **hub.environment()).returncode == 0
    version(release, "1.3.0")
    late = hub.faults.add("POST", "/commit/", delay=120)
    one = start(hub, str(release))
    until_used(late, one)
    note = 'path_or_fileobj=b"theirs", path_in_repo="NOTES.md"'
    client(hub, f'api.upload_file({note}, repo_id="{REPO}", repo_type="dataset")')
    late.end.set()
    said = one.communicate()[1]
    assert one.returncode == 0, said
    assert late.used and hub.read(REPO, "NOTES.md") == b"theirs"
    assert hub.tags(REPO)["v1.3.0"] == hub.commits(REPO)[0].id
    commits = [one.title for one in hub.commits(REPO)]
    assert commits[1].startswith("Upload NOTES.md"), commits


def test_the_tag_is_put_on_its_own_commit_wherever_main_is_by_then(hub: Hub, release: Path) -> None:
    late = hub.faults.add("POST", "/tag/", delay=120)
    one = start(hub, str(release))
    until_used(late, one)
    mine = hub.commits(REPO)[0].id
    note = 'path_or_fileobj=b"theirs", path_in_repo="NOTES.md"'
    client(hub, f'api.upload_file({note}, repo_id="{REPO}", repo_type="dataset")')
    late.end.set()
    assert one.communicate() and one.returncode == 0
    assert hub.tags(REPO) == {"v1.2.3": mine} and hub.commits(REPO)[0].id != mine


@pytest.mark.parametrize("pull_request", [False, True])
def test_many_files_arrive_in_commits_before_the_manifest(
    hub: Hub, release: Path, pull_request: bool
) -> None:
    more = ["--pull-request"] if pull_request else []
    done = subprocess.run(
        [sys.executable, "-c", FEW, "publish", str(release), "--to", TO, *more],
        cwd=ROOT, env=hub.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    at = "refs/pr/1" if pull_request else "main"
    assert whole(hub, release, at) and once(hub, release)
    last, before = hub.commits(REPO, at)[:2]
    assert "manifest.json" in last.files and "manifest.json" not in before.files
    assert any(path.endswith(".parquet") for path in before.files)
    assert len(hub.repository(REPO).pulls) == pull_request
    if pull_request:
        assert set(hub.files(REPO)) == {".gitattributes"} and hub.tags(REPO) == {}
        client(hub, f'api.merge_pull_request("{REPO}", 1, repo_type="dataset")')
        assert aigi("publish", str(release), "--to", TO, **hub.environment()).returncode == 0
    assert hub.tags(REPO).keys() == {"v1.2.3"}


def test_who_is_overtaken_between_two_of_its_commits_changes_nothing_more(
    hub: Hub, release: Path, tmp_path: Path
) -> None:
    shutil.copytree(release, tmp_path / "other")
    version(tmp_path / "other", "1.4.0")
    late = hub.faults.add("POST", "/commit/", skip=1, delay=120)
    one = subprocess.Popen(
        [sys.executable, "-c", FEW, "publish", str(release), "--to", TO],
        cwd=ROOT, env=hub.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until_used(late, one)
    before = len(hub.commits(REPO))
    other = aigi("publish", str(tmp_path / "other"), "--to", TO, **hub.environment())
    assert other.returncode == 0, other.stderr
    late.end.set()
    said = one.communicate()[1]
    assert one.returncode == 1 and "version 1.4.0 was published by someone else" in said, said
    assert len(hub.commits(REPO)) == before + 1, "its second commit was refused"
    assert whole(hub, tmp_path / "other") and hub.tags(REPO).keys() == {"v1.4.0"}


def test_a_source_may_be_proposed_in_a_pull_request(hub: Hub, teams: dict[str, Path]) -> None:
    there = hub.environment()
    assert aigi("publish", str(teams["sd"]), "--to", TO, **there).returncode == 0
    add = ["publish", str(teams["sdxl"]), "--to", TO, "--source", "sdxl"]
    done = aigi(*add, "--pull-request", **there)
    assert done.returncode == 0, done.stderr
    assert configs(hub, "refs/pr/1") == {"sd", "sdxl"} and configs(hub) == {"sd"}
    client(hub, f'api.merge_pull_request("{REPO}", 1, repo_type="dataset")')
    done = aigi(*add, **there)
    assert done.returncode == 0, done.stderr
    assert hub.tags(REPO).keys() == {"v1.0.0", "v1.1.0"} and configs(hub) == {"sd", "sdxl"}
