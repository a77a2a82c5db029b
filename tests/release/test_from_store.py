"""`aigi publish` of a release in an object store: files come through this machine one by one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline.manifest import MANIFEST, open_release
from pipeline.release.changes import release_files
from pipeline.release.publish import publish
from pipeline.store import Store
from tests.conftest import ROOT, aigi
from tests.hub import Hub, serve

REPO = "tester/set"
TO = f"hf://datasets/{REPO}"
LARGE = """
import sys
from pipeline.release import sending
sending._IN_MEMORY = 0
sending.ONE_COMMIT = int(sys.argv.pop(1))
from pipeline.cli import app
app(sys.argv[1:])
"""
"""The command, for which every file is a large one; the first argument is how many are many."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub", lfs_from=1) as hub:
        yield hub


@pytest.fixture
def stored(
    finished: tuple[Path, Path],
    s3: Callable[[str], None],
    moto: str,
    request: pytest.FixtureRequest,
) -> str:
    """A release on S3."""
    s3(moto)
    boto3 = pytest.importorskip("boto3")
    bucket = f"b{abs(hash(request.node.name)) % 10**12}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    publish(str(finished[1] / "release"), f"s3://{bucket}/release")
    return f"s3://{bucket}/release"


def send(
    hub: Hub, stored: str, temporary: Path, many: int = 500, *more: str
) -> subprocess.Popen[str]:
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", LARGE, str(many), "publish", stored, "--to", TO, *more],
        cwd=ROOT, env=hub.environment(TMPDIR=str(temporary)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def whole(hub: Hub, stored: str) -> bool:
    """Everything arrived: each file with its sha256, and nothing else."""
    store, manifest = open_release(stored)
    expected = {path: (f.bytes, f.sha256) for path, f in release_files(store, manifest).items()}
    found = hub.files(REPO, "main")
    found.pop(".gitattributes")
    return found == expected


def uploads(temporary: Path) -> list[Path]:
    return [file for file in temporary.glob("aigi-upload-*/*") if file.is_file()]


@pytest.mark.parametrize("many", [500, 2])
def test_a_release_on_s3_is_published_with_a_few_files_here_at_a_time(
    hub: Hub, stored: str, tmp_path: Path, many: int
) -> None:
    temporary = tmp_path / "tmp"
    process = send(hub, stored, temporary, many)
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, len(uploads(temporary)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, error = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, error
    assert whole(hub, stored) and hub.tags(REPO).keys() == {"v1.2.3"}
    assert all(count == 1 for count in hub.uploads.values()), "each file was sent once"
    assert 1 <= most <= 4, "one is sent, two are fetched ahead"
    assert not uploads(temporary) and not list(temporary.glob("aigi-upload-*"))
    commits = hub.commits(REPO)
    assert MANIFEST in commits[0].files
    if many == 2:
        assert "files are left" in out + error
        assert MANIFEST not in commits[1].files, "parquet files come before"
    done_again = aigi("publish", stored, "--to", TO, **hub.environment())
    assert done_again.returncode == 0 and len(hub.commits(REPO)) == len(commits)


def test_an_object_that_differs_from_the_manifest_is_not_published(
    hub: Hub, stored: str, tmp_path: Path
) -> None:
    store, manifest = open_release(stored)
    path = manifest["files"][1]["path"]
    data = bytearray(store.fs.cat_file(store.path(path)))
    data[len(data) // 3] ^= 1
    store.fs.pipe_file(store.path(path), bytes(data))
    out, error = send(hub, stored, tmp_path / "tmp").communicate()
    assert f"{path}: not what the manifest states, so it was not published" in error
    assert "Traceback" not in error + out
    assert hub.tags(REPO) == {} and MANIFEST not in hub.files(REPO)
    assert not uploads(tmp_path / "tmp")


@pytest.mark.parametrize("early", [True, False])
def test_an_object_that_vanishes_is_named(
    hub: Hub, stored: str, tmp_path: Path, early: bool
) -> None:
    store, manifest = open_release(stored)
    last = manifest["files"][-1]["path"]
    if early:
        store.fs.rm_file(store.path(last))
        process = send(hub, stored, tmp_path / "tmp")
    else:
        hub.faults.add("PUT", "", delay=2.0)
        process = send(hub, stored, tmp_path / "tmp")
        while not any(fault.used for fault in hub.faults.planted):
            assert process.poll() is None
            time.sleep(0.02)
        store.fs.rm_file(store.path(last))
    out, error = process.communicate()
    assert process.returncode == 1 and last in error, error
    assert "Traceback" not in error + out
    assert not uploads(tmp_path / "tmp")
    assert hub.repos() == [] if early else hub.tags(REPO) == {}


def test_killed_then_the_same_command_sends_only_the_rest(
    hub: Hub, stored: str, tmp_path: Path
) -> None:
    hub.faults.add("PUT", "", times=99, skip=3, delay=60)
    process = send(hub, stored, tmp_path / "tmp")
    while not any(fault.used for fault in hub.faults.planted):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hub.faults.clear()
    before = dict(hub.uploads)
    assert before and hub.tags(REPO) == {}
    again = send(hub, stored, tmp_path / "tmp")
    assert again.wait() == 0, again.communicate()
    assert whole(hub, stored) and all(hub.uploads[name] == 1 for name in before)
    assert not list((tmp_path / "tmp").glob("aigi-upload-*")), "what the killed one left is gone"


def test_a_hub_that_keeps_large_files_as_text_is_explained(stored: str, tmp_path: Path) -> None:
    with serve(tmp_path / "text", lfs_from=1 << 40) as hub:
        out, error = send(hub, stored, tmp_path / "tmp").communicate()
        assert ".gitattributes" in error and "Traceback" not in error + out
        assert not uploads(tmp_path / "tmp")


def test_one_source_of_a_release_on_s3_is_added(
    hub: Hub, stored: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest = open_release(stored)[1]
    names = list(manifest["specification"]["sources"])
    done = aigi("publish", stored, "--to", TO, "--source", names[0], **hub.environment())
    assert done.returncode == 0, done.stderr
    more = ["--source", names[1], "--version", "1.3.0"]
    done = aigi("publish", stored, "--to", TO, *more, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert {f.split("/")[0] for f in hub.files(REPO) if f.endswith(".parquet")} == {*names[:2]}
    assert hub.tags(REPO).keys() == {"v1.2.3", "v1.3.0"}


def test_from_store_to_store_nothing_is_believed(stored: str) -> None:
    store, manifest = open_release(stored)
    path = manifest["files"][0]["path"]
    data = bytearray(store.fs.cat_file(store.path(path)))
    data[len(data) // 3] ^= 1
    store.fs.pipe_file(store.path(path), bytes(data))
    to = f"memory://{stored.removeprefix('s3://').replace('/', '-')}"
    with pytest.raises(AigiError, match=re.escape(path)):
        publish(stored, to)
    assert Store(to).size(MANIFEST) is None
