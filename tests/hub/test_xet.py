"""Uploads and downloads by Xet, whole, through faults and after a kill."""

from __future__ import annotations

import array
import hashlib
import json
import os
import time
from pathlib import Path

from tests.hub import serve
from tests.hub.conftest import REPO, UPLOAD, local, remote, script, start_upload, until

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
