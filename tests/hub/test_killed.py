"""Clients and hubs that are killed half-way."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hub import serve
from tests.hub.conftest import (
    PARTS,
    REPO,
    UPLOAD,
    client,
    local,
    publish,
    remote,
    script,
    start_upload,
    until,
)

# The client's own way of sending small bodies.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize("multipart", [False, True], ids=["basic", "multipart"])
def test_a_killed_client_sends_no_finished_file_again(
    release: Path, tmp_path: Path, multipart: bool
) -> None:
    with serve(tmp_path / "hub", **(PARTS if multipart else {})) as hub:
        [_, sent] = local(release)["data/sd-test-0.parquet"]
        hub.faults.add("PUT", f"(objects|parts)/(?!{sent})", times=99, delay=1)
        process = start_upload(hub, release, hub.environment())
        until(lambda: hub.uploads[sent] == 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert remote(hub) == {}
        hub.faults.clear()
        script(hub, UPLOAD, release)
        assert remote(hub) == local(release)
        assert hub.uploads[sent] == 1


def test_a_killed_server_keeps_what_it_answered(
    release: Path, tmp_path: Path, waits: list[float]
) -> None:
    folder = tmp_path / "hub"
    with serve(folder) as hub:
        publish(client(hub), release)
        port = int(hub.endpoint.rsplit(":", 1)[1])
        whole = hub.files(REPO)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub", str(folder), "--port", str(port)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0] == f"export HF_ENDPOINT={hub.endpoint}\n"
    assert lines[1:] == [f"export HF_TOKEN={hub.token}\n", "export HF_HUB_DISABLE_XET=1\n"]
    api = client(hub)
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    answered = api.upload_file(
        path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=REPO, repo_type="dataset"
    ).oid
    # A large file is under way when the server dies.
    import http.client

    sha256 = hashlib.sha256(bytes(10**6)).hexdigest()
    half = http.client.HTTPConnection("127.0.0.1", port)
    half.putrequest("PUT", hub.signed(f"/objects/{sha256}").removeprefix(hub.storage))
    half.putheader("Content-Length", str(10**6))
    half.endheaders(bytes(5 * 10**5))
    until(lambda: any((folder / "tmp").iterdir()))
    process.kill()
    process.wait()
    half.close()
    with serve(folder, port=port) as hub:
        assert hub.tags(REPO)["v1"] == hub.commits(REPO, "v1")[0].id
        assert hub.files(REPO, "v1") == whole
        assert hub.commits(REPO)[0].id == answered and hub.read(REPO, "new.txt") == b"new"
        assert not (folder / "objects" / sha256).exists()
        assert not any((folder / "tmp").iterdir())
