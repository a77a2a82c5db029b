"""What each planted fault makes the clients do, in LFS mode."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub, serve
from tests.hub.conftest import REPO, client, local, publish, remote

# The client's own way of sending small bodies.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

GONE = "Server disconnected"
RETRIED = [  # what is asked, what goes wrong, what the client waits
    ("PUT", "/objects/SHARD", {"status": 503, "times": 2}, [1, 2]),
    ("PUT", "/objects/", {"status": 429, "headers": {"Retry-After": "3"}}, [4]),
    ("PUT", "/objects/", {"cut_after": 5000}, [1]),
    ("PUT", "/objects/", {"cut_after": 0, "side": "answer"}, [1]),
    ("POST", "/preupload/", {"status": 500}, [1]),
    ("POST", "/objects/batch", {"status": 500}, [1]),
    ("POST", "/objects/verify", {"status": 502}, [1]),
    ("GET", "/tree/", {"status": 503}, [1]),
    ("GET", "/objects/", {"status": 429, "headers": {"Retry-After": "1"}}, [2]),
    ("GET", "/objects/", {"cut_after": 5000}, []),  # goes on where it was, after its own second
]
RAISED = [  # what is asked, what goes wrong, what the exception says
    ("PUT", "/objects/", {"status": 403}, "Error while uploading"),
    ("PUT", "/objects/", {"status": 503, "times": 99}, "Error while uploading"),
    ("POST", "/commit/", {"status": 503}, "503"),
    ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "1"}}, "429"),
    ("POST", "/commit/", {"cut_after": 100}, GONE),
    ("POST", "/commit/", {"cut_after": 0, "side": "answer"}, GONE),
    ("POST", "/repos/create", {"status": 500}, "500"),
    ("POST", "/validate-yaml", {"status": 429}, "429"),
    ("POST", "/validate-yaml", {"status": 503}, "Expecting value"),  # reads a page as JSON
    ("POST", "/tag/", {"status": 503}, "503"),
    ("POST", "/tag/", {"cut_after": 0, "side": "answer"}, GONE),
    ("GET", "/objects/", {"status": 503}, "503"),
]


def everything(hub: Hub, release: Path) -> None:
    """Publish, tag, list and get the first shard again."""
    api = client(hub)
    publish(api, release)
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    list(api.list_repo_tree(REPO, repo_type="dataset"))
    api.hf_hub_download(REPO, "data/sd-train-0.parquet", repo_type="dataset", revision="v1")


@pytest.mark.parametrize(("method", "path", "fault", "waited"), RETRIED)
def test_a_fault_the_client_retries_by_itself(
    release: Path,
    tmp_path: Path,
    waits: list[float],
    method: str,
    path: str,
    fault: Any,
    waited: Any,
) -> None:
    with serve(tmp_path / "hub") as hub:
        [_, sha256] = local(release)["data/sd-train-0.parquet"]
        planted = hub.faults.add(method, path.replace("SHARD", sha256), **fault)
        everything(hub, release)
        assert planted.used == planted.times
        assert waits == waited
        assert remote(hub, "v1") == local(release)
        assert len(hub.commits(REPO)) == 2
        [got] = (tmp_path / "cache").rglob("sd-train-0.parquet")
        assert got.read_bytes() == (release / "data/sd-train-0.parquet").read_bytes()


@pytest.mark.parametrize(("method", "path", "fault", "said"), RAISED)
def test_a_fault_the_client_raises_and_the_same_call_again(
    release: Path, tmp_path: Path, waits: list[float], method: str, path: str, fault: Any, said: str
) -> None:
    with serve(tmp_path / "hub") as hub:
        planted = hub.faults.add(method, path, **fault)
        with pytest.raises(Exception, match=said) as error:
            everything(hub, release)
        # Six tries for each file that is under way.
        assert planted.used in (range(6, 25) if planted.times > 1 else [1])
        assert set(waits) <= {1, 2, 4, 8} and (planted.times > 1) == bool(waits)
        assert hub.token not in f"{error.value!r} {error.value.__cause__!r}"
        hub.faults.clear()
        if hub.repos() and "v1" in hub.tags(REPO):
            assert remote(hub, "v1") == local(release)
        else:
            everything(hub, release)
        assert remote(hub, "v1") == local(release)
        assert set(hub.uploads.values()) == {1}
        assert len(hub.commits(REPO)) == 2


def test_wrong_bytes_are_not_noticed_by_the_client(
    release: Path, tmp_path: Path, waits: list[float]
) -> None:
    """Size is all it compares: who publishes must compare the sha256 himself."""
    path = "data/mj-test-0.parquet"
    with serve(tmp_path / "hub") as hub:
        api = client(hub)

        def downloaded() -> bytes:
            got = api.hf_hub_download(REPO, path, repo_type="dataset", force_download=True)
            return Path(got).read_bytes()

        def listed() -> str:
            [file] = api.get_paths_info(REPO, path, repo_type="dataset")
            return str(file.lfs.sha256)

        good = (release / path).read_bytes()
        sha256 = hashlib.sha256(good).hexdigest()
        hub.faults.add("PUT", f"/objects/{sha256}", corrupt=True)
        publish(api, release)
        assert listed() == sha256
        assert len(downloaded()) == len(good) and downloaded() != good

        api.delete_repo(REPO, repo_type="dataset")
        (tmp_path / "hub/objects" / sha256).unlink()
        hub.faults.add("POST", "/commit/", corrupt=True)
        publish(api, release)
        assert listed() != sha256 and hashlib.sha256(downloaded()).hexdigest() == listed()

        api.delete_repo(REPO, repo_type="dataset")
        publish(api, release)
        hub.faults.add("POST", "/paths-info/", corrupt=True)
        assert [listed() == sha256, listed() == sha256] == [False, True]
        hub.faults.add("GET", "/objects/", corrupt=True)
        assert [downloaded() == good, downloaded() == good] == [False, True]


def test_a_late_answer_and_a_fault_that_comes_later(tmp_path: Path, waits: list[float]) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    with serve(tmp_path) as hub:
        hub.faults.add("GET", "whoami", delay=0.3)
        hub.faults.add("GET", "whoami", status=500, skip=1)
        start = time.monotonic()
        client(hub).whoami()
        assert time.monotonic() - start >= 0.3
        client(hub).whoami()
        with pytest.raises(HfHubHTTPError, match="500"):
            client(hub).whoami()


def test_a_mistake_of_the_hub_itself_fails_the_test(tmp_path: Path, waits: list[float]) -> None:
    import httpx2

    with pytest.raises(AssertionError, match="JSONDecodeError"), serve(tmp_path) as hub:
        api = client(hub)
        api.create_repo(REPO, repo_type="dataset")
        (tmp_path / "repos/datasets" / REPO / "repository.json").write_text("{")
        with pytest.raises(httpx2.RemoteProtocolError):
            api.dataset_info(REPO)
