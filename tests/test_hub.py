"""The loopback Hub under the real clients: what arrives, and what each fault makes them do."""

from __future__ import annotations

import array
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub import FOREIGN, Hub, serve

# The client's own way of sending small bodies.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/pictures"
CARD = """---
license: apache-2.0
configs:
- config_name: sd
  data_files:
  - {split: train, path: "data/sd-train-*.parquet"}
  - {split: test, path: "data/sd-test-*.parquet"}
- config_name: mj
  data_files:
  - {split: test, path: "data/mj-test-*.parquet"}
---
# Pictures
"""
PARTS: dict[str, Any] = {"multipart_from": 100_000, "part_size": 60_000}
SHARDS = {"sd-train-0": 16, "sd-train-1": 16, "sd-test-0": 8, "mj-test-0": 4}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card, a small text file, an empty one, and 550 KB of pictures in four shards."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value
    from PIL import Image as Picture

    folder = tmp_path_factory.mktemp("release")
    (folder / "README.md").write_text(CARD)
    (folder / "manifest.json").write_text('{"rows": 44}')
    (folder / "empty.txt").touch()
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    schema = Features({"image": Image(), "text": Value("string")}).arrow_schema
    for name, rows in SHARDS.items():
        images = []
        for row in range(rows):
            png = io.BytesIO()
            Picture.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(png, "PNG")
            images.append({"bytes": png.getvalue(), "path": f"{name}-{row}.png"})
        texts = [f"{name} {row}" for row in range(rows)]
        table = pa.table({"image": images, "text": texts}, schema=schema)
        pq.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=4)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Turn this process's huggingface_hub online, in LFS mode; the seconds it would have waited."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import _http
    from huggingface_hub.utils.tqdm import disable_progress_bars

    waits: list[float] = []
    clock = types.SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", {"127.0.0.1"})  # as HF_ENDPOINT would have it
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    disable_progress_bars()
    close_session()
    return waits


def client(hub: Hub, token: str | bool | None = None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token if token is None else token)


def publish(api: Any, folder: Path, **more: Any) -> Any:
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    return api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=folder, **more)


def local(folder: Path) -> dict[str, tuple[int, str]]:
    """{path: (bytes, sha256)}, as `hub.files` has them."""
    paths = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
    return {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}


def remote(hub: Hub, revision: str = "main") -> dict[str, tuple[int, str]]:
    files = hub.files(REPO, revision)
    del files[".gitattributes"]
    return files


def script(hub: Hub, code: str, *arguments: object, **more: str) -> Any:
    """Run a client script in a process of its own; what it prints last is JSON."""
    code = "import json, sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=hub.environment(**more), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("multipart", [False, True], ids=["basic", "multipart"])
def test_a_folder_arrives_whole_and_is_sent_once(
    release: Path, tmp_path: Path, waits: list[float], multipart: bool
) -> None:
    with serve(tmp_path / "hub", **(PARTS if multipart else {})) as hub:
        first = publish(client(hub), release)
        assert remote(hub) == local(release)
        shards = {sha for path, (_, sha) in local(release).items() if path.endswith(".parquet")}
        assert hub.uploads == dict.fromkeys(shards, 1)
        parts = [r for r in hub.requests if r.path.startswith("/parts/")]
        assert (len(parts) > len(SHARDS)) == multipart
        stored = [r for r in hub.requests if r.method == "PUT"]
        assert stored and not any(r.authorized for r in stored)  # no token leaves the Hub

        hub.requests.clear()
        assert publish(client(hub), release).oid == first.oid
        assert not [r for r in hub.requests if r.method == "PUT" or "/commit/" in r.path]
        assert [c.title for c in hub.commits(REPO)] == [
            "Upload folder using huggingface_hub", "initial commit",
        ]  # fmt: skip

        got = client(hub).snapshot_download(
            REPO, repo_type="dataset", local_dir=tmp_path / "got", ignore_patterns=".git*"
        )
        assert local(Path(got)) == local(release)


def test_repositories_are_created_once_hidden_and_deleted(
    tmp_path: Path, waits: list[float]
) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    with serve(tmp_path) as hub:
        api = client(hub)
        url = api.create_repo(REPO, repo_type="dataset", private=True)
        assert (str(url), url.repo_id) == (f"{hub.endpoint}/datasets/{REPO}", REPO)
        with pytest.raises(HfHubHTTPError, match="409"):
            api.create_repo(REPO, repo_type="dataset")
        again = api.create_repo(REPO, repo_type="dataset", private=False, exist_ok=True)
        assert str(again) == str(url)
        assert hub.repository(REPO).private  # exist_ok changes nothing
        assert api.create_repo("alone").repo_id == "tester/alone"
        assert hub.repos() == ["datasets/org/pictures", "models/tester/alone"]
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo(f"{FOREIGN}/name", exist_ok=True)

        assert api.dataset_info(REPO).private
        assert not client(hub, token=False).repo_exists(REPO, repo_type="dataset")
        api.update_repo_settings(REPO, repo_type="dataset", private=False)
        assert client(hub, token=False).repo_exists(REPO, repo_type="dataset")
        api.delete_repo(REPO, repo_type="dataset")
        api.delete_repo(REPO, repo_type="dataset", missing_ok=True)
        with pytest.raises(RepositoryNotFoundError):
            api.delete_repo(REPO, repo_type="dataset")


def test_tags_and_branches_stay_where_they_were_put(tmp_path: Path, waits: list[float]) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    with serve(tmp_path / "hub") as hub:
        api = client(hub)
        (tmp_path / "a").mkdir()
        (tmp_path / "a/one.txt").write_text("1")
        first = publish(api, tmp_path / "a").oid
        api.create_tag(REPO, tag="v1.0", tag_message="first", repo_type="dataset")
        (tmp_path / "a/one.txt").write_text("2")
        second = publish(api, tmp_path / "a").oid
        with pytest.raises(HfHubHTTPError, match="409"):
            api.create_tag(REPO, tag="v1.0", repo_type="dataset")
        api.create_tag(REPO, tag="v1.0", repo_type="dataset", exist_ok=True)  # and does not move it
        api.create_branch(REPO, branch="old", revision=first, repo_type="dataset")
        with pytest.raises(HfHubHTTPError, match="409"):
            api.create_branch(REPO, branch="old", repo_type="dataset")
        assert hub.tags(REPO) == {"v1.0": first}
        assert [hub.read(REPO, "one.txt", r) for r in ("v1.0", "old", "main")] == [b"1", b"1", b"2"]

        refs = api.list_repo_refs(REPO, repo_type="dataset", include_pull_requests=True)
        heads = {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags]}
        assert heads == {
            "refs/heads/main": second, "refs/heads/old": first, "refs/tags/v1.0": first,
        }  # fmt: skip
        assert refs.pull_requests == []
        for revision in ("v1.0", "refs/heads/old", first, first[:8]):
            assert api.dataset_info(REPO, revision=revision).sha == first
        api.delete_tag(REPO, tag="v1.0", repo_type="dataset")
        api.delete_branch(REPO, branch="old", repo_type="dataset")
        assert hub.tags(REPO) == {} and list(hub.repository(REPO).branches) == ["main"]
        calls: list[Callable[[], Any]] = [
            lambda: api.dataset_info(REPO, revision="v1.0"),
            lambda: api.delete_tag(REPO, tag="v1.0", repo_type="dataset"),
            lambda: api.create_tag(REPO, tag="x", revision="v1.0", repo_type="dataset"),
            lambda: api.hf_hub_download(REPO, "one.txt", repo_type="dataset", revision="v1.0"),
        ]
        for call in calls:
            with pytest.raises(RevisionNotFoundError):
                call()


def test_a_pull_request_is_apart_until_it_is_merged(
    release: Path, tmp_path: Path, waits: list[float]
) -> None:
    with serve(tmp_path) as hub:
        api = client(hub)
        made = publish(api, release, create_pr=True)
        assert made.pr_url == f"{hub.endpoint}/datasets/{REPO}/discussions/1"
        assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
        assert remote(hub) == {}
        assert remote(hub, "refs/pr/1") == local(release)
        # The same again opens another one; naming the revision goes on with the first.
        assert publish(api, release, create_pr=True).pr_revision == "refs/pr/2"
        assert publish(api, release, revision="refs/pr/1").oid == made.oid
        api.create_tag(REPO, tag="v1", revision="refs/pr/1", repo_type="dataset")
        refs = api.list_repo_refs(REPO, repo_type="dataset", include_pull_requests=True)
        assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
        api.merge_pull_request(REPO, 1, repo_type="dataset")
        api.change_discussion_status(REPO, 2, "closed", repo_type="dataset")
        assert remote(hub) == local(release)
        found = {d.num: d.status for d in api.get_repo_discussions(REPO, repo_type="dataset")}
        assert found == {1: "merged", 2: "closed"}


def test_listings_come_in_pages(release: Path, tmp_path: Path, waits: list[float]) -> None:
    from huggingface_hub import RepoFile, RepoFolder
    from huggingface_hub.errors import EntryNotFoundError

    with serve(tmp_path / "hub", page_size=2) as hub:
        api = client(hub)
        publish(api, release)
        api.delete_file("empty.txt", REPO, repo_type="dataset")
        whole = list(api.list_repo_tree(REPO, repo_type="dataset", recursive=True, expand=True))
        assert len([r for r in hub.requests if "/tree/" in r.path]) == 4
        files = {f.path: f for f in whole if isinstance(f, RepoFile)}
        told = {path: (f.size, f.lfs.sha256) for path, f in files.items() if f.lfs}
        assert told == {k: v for k, v in local(release).items() if k.endswith(".parquet")}
        card = (release / "README.md").read_bytes()
        assert (
            files["README.md"].blob_id == hashlib.sha1(b"blob %d\0" % len(card) + card).hexdigest()
        )
        last = {path: f.last_commit.oid for path, f in files.items() if f.last_commit}
        assert [last[path] for path in ("README.md", ".gitattributes")] == [
            commit.id for commit in hub.commits(REPO)[1:]
        ]
        assert [f.path for f in whole if isinstance(f, RepoFolder)] == ["data"]

        inside = list(api.list_repo_tree(REPO, "data", repo_type="dataset"))
        assert [f.path for f in inside] == sorted(f"data/{name}.parquet" for name in SHARDS)
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree(REPO, "date", repo_type="dataset"))
        some = api.get_paths_info(REPO, ["data", "README.md", "none"], repo_type="dataset")
        assert [entry.path for entry in some] == ["data", "README.md"]
        titles = [c.title for c in api.list_repo_commits(REPO, repo_type="dataset")]
        assert titles == [c.title for c in hub.commits(REPO)] and len(titles) == 3
        info = api.dataset_info(REPO, files_metadata=True)
        assert {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs} == {
            path: sha for path, (_, sha) in told.items()
        }
        assert [c["config_name"] for c in info.card_data["configs"]] == ["sd", "mj"]


def test_commits_delete_ignore_and_refuse_to_overtake(tmp_path: Path, waits: list[float]) -> None:
    from huggingface_hub import CommitOperationAdd as Add
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    folder = tmp_path / "a"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "notes.txt").write_text("text")
    (folder / "long.txt").write_text("line\n" * 300)
    (folder / "deep/er/x.unknown").write_bytes(b"\0\1\2")
    (folder / "deep/skipped.log").write_text("log")
    (folder / ".gitignore").write_text("# no logs\n*.log\n")
    with serve(tmp_path / "hub", lfs_from=1000) as hub:
        api = client(hub)
        before = publish(api, folder).oid
        files = hub.commits(REPO)[0].files
        assert {path for path, file in files.items() if file.lfs} == {
            "long.txt",
            "deep/er/x.unknown",
        }
        assert "deep/skipped.log" not in files
        api.delete_folder("deep", REPO, repo_type="dataset")
        assert "deep/er/x.unknown" not in hub.files(REPO)
        with pytest.raises(EntryNotFoundError, match="doesn't exist"):
            api.delete_file("none.txt", REPO, repo_type="dataset")
        add = Add("notes.txt", b"newer")
        with pytest.raises(HfHubHTTPError, match="412"):
            api.create_commit(
                REPO, [add], commit_message="late", repo_type="dataset", parent_commit=before
            )
        publish(api, folder, allow_patterns="notes.txt", delete_patterns="*")
        assert set(hub.files(REPO)) == {".gitattributes", "notes.txt"}
        with pytest.raises(ValueError, match="Invalid metadata in README"):
            bad = Add("README.md", b"---\nconfigs: {a: b\n---\n")
            api.create_commit(REPO, [bad], commit_message="bad card", repo_type="dataset")


def test_ranges_and_the_way_to_large_files(
    release: Path, tmp_path: Path, waits: list[float]
) -> None:
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    path = "data/sd-test-0.parquet"
    data = (release / path).read_bytes()
    with serve(tmp_path / "hub") as hub:
        api = client(hub)
        publish(api, release)
        where = {"repo_type": "dataset", "endpoint": hub.endpoint}
        about = get_hf_file_metadata(hf_hub_url(REPO, path, **where), token=hub.token)
        assert (about.size, about.etag) == (len(data), hashlib.sha256(data).hexdigest())
        assert about.commit_hash == hub.commits(REPO)[0].id
        # Another origin: a client that follows it would look for the commit there, and fail.
        assert about.location.startswith("http://localhost:")

        def get(wanted: str, url: str = about.location) -> tuple[int, bytes, str]:
            got = get_session().get(url, headers={"Range": wanted})
            return got.status_code, got.content, got.headers.get("Content-Range", "")

        size = len(data)
        assert get("bytes=0-3") == (206, b"PAR1", f"bytes 0-3/{size}")
        assert get(f"bytes={size - 4}-") == (206, b"PAR1", f"bytes {size - 4}-{size - 1}/{size}")
        assert get("bytes=-4") == (206, b"PAR1", f"bytes {size - 4}-{size - 1}/{size}")
        assert get(f"bytes=10-{2 * size}")[1] == data[10:]
        assert get(f"bytes={size}-")[::2] == (416, f"bytes */{size}")
        assert get("", about.location)[:2] == (200, data)
        assert get("", about.location.split("?")[0])[0] == 403
        card = hf_hub_url(REPO, "README.md", **where)
        assert get("bytes=0-2", card)[:2] == (206, b"---")
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download(REPO, "none.parquet", repo_type="dataset")


def test_who_may_not_is_told_so(release: Path, tmp_path: Path, waits: list[float]) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    with serve(tmp_path) as hub:
        writer, reader = client(hub), client(hub, hub.read_token)
        stranger, forger = client(hub, False), client(hub, "hf_forged")
        writer.create_repo(REPO, repo_type="dataset", private=True)
        publish(writer, release)
        roles = [c.whoami()["auth"]["accessToken"]["role"] for c in (writer, reader)]
        assert roles == ["write", "read"]
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            forger.whoami()
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            forger.dataset_info(REPO)

        reader.hf_hub_download(REPO, "README.md", repo_type="dataset")
        calls: list[Callable[[], Any]] = [
            lambda: reader.create_repo("org/new"),
            lambda: reader.create_tag(REPO, tag="v1", repo_type="dataset"),
            lambda: publish(reader, release),
        ]
        for call in calls:
            with pytest.raises(HfHubHTTPError, match="403"):
                call()
        # exist_ok asks whether the repository is there, and is content if it is.
        reader.create_repo(REPO, repo_type="dataset", exist_ok=True)

        for who, status in ((stranger, 401), (reader, 404)):
            with pytest.raises(RepositoryNotFoundError) as error:
                who.dataset_info("org/missing" if who is reader else REPO)
            assert error.value.response.status_code == status
        stranger.hf_hub_download(REPO, "README.md", repo_type="dataset")  # it is in the cache
        with pytest.raises(RepositoryNotFoundError):
            stranger.hf_hub_download(REPO, "manifest.json", repo_type="dataset")
        with pytest.raises(HfHubHTTPError, match="401"):
            stranger.create_repo("org/new", exist_ok=True)
        writer.update_repo_settings(REPO, repo_type="dataset", private=False)
        assert stranger.dataset_info(REPO).id == REPO
        with pytest.raises(HfHubHTTPError, match="401"):
            publish(stranger, release)


# --- faults, in LFS mode --------------------------------------------------------------------------

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


# --- killed --------------------------------------------------------------------------------------

UPLOAD = """
api.create_repo("org/pictures", repo_type="dataset", exist_ok=True)
made = api.upload_folder(repo_id="org/pictures", repo_type="dataset", folder_path=sys.argv[1])
print(json.dumps(made.oid))
"""


def start_upload(hub: Hub, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    code = "import json, sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n" + UPLOAD
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stderr=subprocess.DEVNULL
    )


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)


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


# --- Xet ------------------------------------------------------------------------------------------

TWICE = """
import array, hashlib, pathlib
from huggingface_hub import snapshot_download
folder = sys.argv[1]
api.create_repo("org/pictures", repo_type="dataset")
made = api.upload_folder(repo_id="org/pictures", repo_type="dataset", folder_path=folder)
again = api.upload_folder(repo_id="org/pictures", repo_type="dataset", folder_path=folder)
assert again.oid == made.oid, (again, made)
pull = api.upload_file(
    path_or_fileobj=b"new" * 1000, path_in_repo="new.bin", repo_id="org/pictures",
    repo_type="dataset", create_pr=True)
assert pull.pr_revision == "refs/pr/1", pull
numbers = array.array("f", range(99_999)).tobytes() + b"tail"
api.upload_file(
    path_or_fileobj=numbers[:-1], path_in_repo="numbers.bin", repo_id="org/pictures",
    repo_type="dataset", revision="refs/pr/1")
pathlib.Path(folder, "more.txt").write_text("more")
drafted = api.upload_folder(
    repo_id="org/pictures", repo_type="dataset", folder_path=folder, create_pr=True)
assert drafted.pr_revision == "refs/pr/2", drafted
pathlib.Path(folder, "more.txt").unlink()
got = snapshot_download("org/pictures", repo_type="dataset", revision=made.oid)
files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in pathlib.Path(got).rglob("*.*")}
print(json.dumps(files))
"""


def test_xet_stores_each_chunk_once(release: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "hub", xet=True) as hub:
        files = script(hub, TWICE, release)
        assert remote(hub) == local(release)
        for path, (_, sha256) in local(release).items():
            assert files[Path(path).name] == sha256
        assert [pull["status"] for pull in hub.repository(REPO).pulls] == ["open", "draft"]
        assert set(hub.files(REPO, "refs/pr/2")) - set(hub.files(REPO)) == {"more.txt"}
        assert not [r for r in hub.requests if "/info/lfs/" in r.path or "/objects/" in r.path]
        assert set(hub.uploads.values()) == {1}
        sent = [r for r in hub.requests if "/v1/xorbs/" in r.path]
        shards = sum(size for path, (size, _) in local(release).items() if "parquet" in path)
        assert sum(r.received for r in sent) < 1.1 * shards
        # A stranger with the same bytes and an empty cache: the store knows them already.
        hub.requests.clear()
        script(hub, UPLOAD.replace("pictures", "copy"), release)
        assert not [r for r in hub.requests if "/v1/xorbs/" in r.path]
        assert hub.files("org/copy") == hub.files(REPO)
        # What is put together for those who do not speak Xet: plain, LZ4 and regrouped chunks.
        path = "data/sd-train-1.parquet"
        assert hub.read("org/copy", path) == (release / path).read_bytes()
        assert hub.read(REPO, "new.bin", "refs/pr/1") == b"new" * 1000
        numbers = array.array("f", range(99_999)).tobytes() + b"tai"
        assert hub.read(REPO, "numbers.bin", "refs/pr/1") == numbers


STORM = """
import hashlib
api.create_repo("org/pictures", repo_type="dataset")
made = api.upload_folder(repo_id="org/pictures", repo_type="dataset", folder_path=sys.argv[1])
path = api.hf_hub_download("org/pictures", "data/sd-train-0.parquet", repo_type="dataset")
print(json.dumps(hashlib.sha256(open(path, "rb").read()).hexdigest()))
"""
MIXED = """
import hashlib, os
api.create_repo("org/pictures", repo_type="dataset")
old, fresh = os.urandom(1_500_000), os.urandom(1_400_000)
made = {"old.bin": old, "mixed.bin": fresh[:700_000] + old + fresh[700_000:]}
for name, data in made.items():
    api.upload_file(
        path_or_fileobj=data, path_in_repo=name, repo_id="org/pictures", repo_type="dataset")
path = api.hf_hub_download("org/pictures", "mixed.bin", repo_type="dataset")
assert open(path, "rb").read() == made["mixed.bin"]
print(json.dumps(hashlib.sha256(made["mixed.bin"]).hexdigest()))
"""
# Small steps: a download asks for ranges of the file, most of which start within a term.
STEPS = {f"HF_XET_RECONSTRUCTION_{end}_RECONSTRUCTION_FETCH_SIZE": "40kb" for end in ("MIN", "MAX")}
QUICK = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}  # three seconds else, and doubled each time


def test_xet_arrives_through_a_storm_of_faults(release: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "hub", xet=True) as hub:
        add = hub.faults.add
        planted = [
            add("GET", "/xet-write-token/", status=503),
            add("POST", "/v1/xorbs/", status=503, times=2),
            add("POST", "/v1/xorbs/", status=429, headers={"Retry-After": "1"}),
            add("POST", "/v1/xorbs/", cut_after=50_000),
            add("POST", "/shards", status=500),
            add("POST", "/shards", cut_after=0, side="answer"),
            add("POST", "/commit/", status=503),
            add("GET", "/xet-read-token/", status=503),
            add("GET", "/reconstructions/", status=503),
            add("GET", "/xorbs/", cut_after=50_000),
            add("GET", "/xorbs/", status=503),
        ]
        got = script(hub, STORM, release, **QUICK, **STEPS)
        assert [fault.used for fault in planted] == [fault.times for fault in planted]
        assert got == local(release)["data/sd-train-0.parquet"][1]
        assert remote(hub) == local(release)
        assert set(hub.uploads.values()) == {1}
        assert len(hub.commits(REPO)) == 2


def test_xet_puts_a_file_together_from_old_and_new(tmp_path: Path) -> None:
    with serve(tmp_path / "hub", xet=True) as hub:
        sha256 = script(hub, MIXED, **STEPS)
        mixed = hub.store.xet_file(sha256)
        assert mixed and mixed.size == 2_900_000
        assert len(mixed.terms) >= 3 and len({term.xorb for term in mixed.terms}) == 2
        sent = sum(r.received for r in hub.requests if "/v1/xorbs/" in r.path)
        assert sent < 3_300_000  # of 4,400,000
        assert hashlib.sha256(hub.read(REPO, "mixed.bin")).hexdigest() == sha256


RAISES = """
from huggingface_hub.errors import HfHubHTTPError
said = []
api.create_repo("org/pictures", repo_type="dataset")
for _ in range(4):
    try:
        made = api.upload_folder(
            repo_id="org/pictures", repo_type="dataset", folder_path=sys.argv[1])
    except Exception as error:
        said.append([type(error).__name__, str(error)])
print(json.dumps(said))
"""


def test_xet_raises_what_it_cannot_mend(release: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "hub", xet=True) as hub:
        no_token = hub.faults.add("GET", "/xet-write-token/", status=403)
        no_xorb = hub.faults.add("POST", "/v1/xorbs/", status=503, times=6)
        lost = hub.faults.add("POST", "/commit/", cut_after=0, side="answer")
        said = script(hub, RAISES, release, **QUICK)
        assert [name for name, _ in said] == ["ConnectionError", "ConnectionError"]
        assert "403" in said[0][1] and "503" in said[1][1]
        assert hub.token not in json.dumps(said)
        assert (no_token.used, no_xorb.used, lost.used) == (1, 6, 1)
        # The commit whose answer was lost is made again by itself: one of the two is empty.
        assert len(hub.commits(REPO)) == 3
        assert remote(hub) == local(release)


def test_xet_goes_on_with_what_its_cache_remembers(tmp_path: Path) -> None:
    """Killed before its files were registered, it sends only what it had not noted as sent."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.parquet").write_bytes(os.urandom(70_000_000))
    noted = {"HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT": "1"}
    with serve(tmp_path / "hub", xet=True) as hub:
        environment = hub.environment(**noted)
        hub.faults.add("POST", "/v1/xorbs/", times=99, skip=1, delay=3)
        process = start_upload(hub, folder, environment)
        until(lambda: len(hub.uploads) == 1)
        until(lambda: any(Path(environment["HF_HOME"]).rglob("xorb_metadata/*.mdb")))
        process.kill()
        process.wait()
        time.sleep(0.2)
        [first] = hub.uploads
        hub.faults.clear()
        hub.requests.clear()
        again = start_upload(hub, folder, environment)
        assert again.wait() == 0
        sent = sum(r.received for r in hub.requests if "/v1/xorbs/" in r.path)
        assert sent < 90_000_000
        assert hub.uploads[first] == 1
        assert remote(hub) == local(folder)


# --- datasets, fsspec and the model mixin ---------------------------------------------------------

LOAD = """
import hashlib, pathlib
import fsspec
from datasets import load_dataset
from huggingface_hub import HfFileSystem

name = "org/pictures"
api.create_repo(name, repo_type="dataset", private=True)
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=sys.argv[1])
api.create_tag(name, tag="v1", repo_type="dataset")
api.delete_file("data/mj-test-0.parquet", name, repo_type="dataset")

train = load_dataset(name, "sd", split="train", revision="v1")
assert train.num_rows == 32 and train[20]["text"] == "sd-train-1 4", train[20]
assert train[20]["image"].size == (64, 64)
assert load_dataset(name, "mj", split="test", revision="v1").num_rows == 4
rows = list(load_dataset(name, "sd", split="test", revision="v1", streaming=True))
assert [row["text"] for row in rows] == [f"sd-test-0 {n}" for n in range(8)]
assert rows[3]["image"].size == (64, 64)

files = HfFileSystem()
assert len(files.ls(f"datasets/{name}@v1/data", detail=False)) == 4
assert len(files.ls(f"datasets/{name}/data", detail=False)) == 3
with fsspec.open(f"hf://datasets/{name}@v1/data/mj-test-0.parquet", "rb") as file:
    assert file.read(4) == b"PAR1"
    file.seek(-4, 2)
    assert file.read() == b"PAR1"
with fsspec.open(f"hf://datasets/{name}/notes/new.txt", "w") as file:
    file.write("by fsspec")

rows = train.select(range(6))
rows.push_to_hub("org/pushed", config_name="sd", split="train", private=True)
rows.push_to_hub("org/pushed", config_name="mj", split="test")
back = load_dataset("org/pushed", "sd", split="train")
assert back.num_rows == 6 and back[2]["text"] == rows[2]["text"]
assert back[2]["image"].tobytes() == rows[2]["image"].tobytes()
"""
MODEL = """
import torch
from huggingface_hub import PyTorchModelHubMixin

class Codec(torch.nn.Module, PyTorchModelHubMixin, library_name="aigi", tags=["codec"]):
    def __init__(self, channels=3):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, 2 * channels, 3)

codec = Codec(channels=5)
codec.push_to_hub("org/codec", private=True)
other = Codec.from_pretrained("org/codec")
assert other.layer.weight.shape == (10, 5, 3, 3)
assert torch.equal(other.layer.weight, codec.layer.weight)
api.create_branch("org/codec", branch="next")
codec.push_to_hub("org/codec", branch="next", commit_message="same again")
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_libraries_on_top(release: Path, tmp_path: Path, xet: bool) -> None:
    model = "" if xet else MODEL  # torch takes seconds to load
    with serve(tmp_path / "hub", xet=xet) as hub:
        script(hub, f"{LOAD}{model}\nprint(json.dumps(None))", release, OMP_NUM_THREADS="1")
        assert hub.read(REPO, "notes/new.txt") == b"by fsspec"
        pushed = hub.read("org/pushed", "README.md").decode()
        assert "config_name: mj" in pushed and "config_name: sd" in pushed
        streamed = [r for r in hub.requests if r.status == 206 and "/objects/" in r.path]
        assert streamed and not any(r.authorized for r in streamed)
        assert all(hub.repository(r).private for r in (REPO, "org/pushed"))
        assert bool([r for r in hub.requests if "/v1/reconstructions/" in r.path]) == xet
        if model:
            files = hub.files("org/codec", repo_type="model")
            assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
            assert json.loads(hub.read("org/codec", "config.json", repo_type="model")) == {
                "channels": 5
            }
            assert hub.repository("org/codec", "model").private


def test_the_environment_is_turned_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "of this machine's user")
    with serve(tmp_path) as hub, serve(tmp_path / "other", xet=True) as other:
        one, two = hub.environment(), other.environment(HF_TOKEN="mine")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", one["HF_ENDPOINT"])
        assert (one["HF_HUB_OFFLINE"], one["HF_HUB_DISABLE_XET"]) == ("0", "1")
        assert "HUGGING_FACE_HUB_TOKEN" not in one and "HF_HUB_DISABLE_XET" not in two
        assert (one["HF_TOKEN"], two["HF_TOKEN"]) == (hub.token, "mine")
        assert one["HF_HOME"] != hub.environment()["HF_HOME"] and Path(one["HF_HOME"]).is_dir()
        assert one["PATH"] == os.environ["PATH"]
    assert not Path(one["HF_HOME"]).exists()
