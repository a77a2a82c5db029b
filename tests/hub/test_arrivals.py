"""What arrives at the hub, and what its clients are told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub import serve
from tests.hub.conftest import PARTS, REPO, SHARDS, client, local, publish, remote
from tests.hub.state import FOREIGN

# The client's own way of sending small bodies.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


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
