"""`aigi publish` against a Hub on loopback, by the real client: what arrives, what is refused,
and what a bad network or a kill costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline.manifest import MANIFEST, open_release
from pipeline.release.changes import Parcel, There, changes, release_files
from pipeline.release.hub import _without_secrets
from pipeline.release.publish import publish
from pipeline.store import Store
from pipeline.tables import RELEASE
from tests.conftest import ROOT, aigi
from tests.hub import Hub, serve

REPO = "tester/set"
TO = f"hf://datasets/{REPO}"
WRITES = {"POST", "PUT", "DELETE", "PATCH"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    # Shards of this test are small, and so are parts of a multipart upload.
    with serve(tmp_path / "hub", multipart_from=60_000, part_size=20_000) as hub:
        yield hub


@pytest.fixture
def release(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A release of one's own to change."""
    shutil.copytree(finished[1] / "release", tmp_path / "release")
    return tmp_path / "release"


def client(hub: Hub, code: str) -> None:
    """Run lines of Python with an `HfApi` named api, in a process that knows this Hub."""
    lines = f"from huggingface_hub import HfApi\napi = HfApi()\n{code}"
    subprocess.run([sys.executable, "-c", lines], env=hub.environment(), check=True)


def shards(release: Path) -> dict[str, str]:
    _, manifest = open_release(str(release))
    return {r["path"]: r["sha256"] for r in manifest["files"]}


def whole(hub: Hub, release: Path, revision: str = "main") -> bool:
    """Everything arrived: each file with its sha256, and nothing else."""
    store, manifest = open_release(str(release))
    expected = {path: (f.bytes, f.sha256) for path, f in release_files(store, manifest).items()}
    found = hub.files(REPO, revision)
    found.pop(".gitattributes")
    return found == expected


def once(hub: Hub, release: Path) -> bool:
    """No shard was received twice."""
    return all(hub.uploads[sha] == 1 for sha in shards(release).values())


def version(release: Path, number: str) -> None:
    manifest = json.loads((release / MANIFEST).read_text())
    (release / MANIFEST).write_text(json.dumps({**manifest, "version": number}))


def test_published_private_tagged_and_loaded_back(
    hub: Hub, finished: tuple[Path, Path], release: Path, tmp_path: Path
) -> None:
    dry = aigi("publish", str(release), "--to", TO, "--dry-run", **hub.environment())
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"new +\| +\d+ ", dry.stdout) and "nothing was sent" in dry.stderr
    assert not [request for request in hub.requests if request.method in WRITES]
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert hub.repository(REPO).private
    assert hub.tags(REPO) == {"v1.2.3": hub.commits(REPO)[0].id}
    verified = aigi("verify", f"{TO}@v1.2.3", **hub.environment())
    assert verified.returncode == 0, verified.stderr
    (digest,) = re.findall(r"^digest: ([0-9a-f]{64})$", verified.stdout, re.MULTILINE)
    assert hub.repository(REPO).tag_messages == {"v1.2.3": f"aigi verify: digest {digest}"}
    assert whole(hub, release) and once(hub, release)
    for line in ("sd/train: 24", "sd/test: 2", "sdxl/train: 4", "sdxl/test: 6"):
        assert f"{line} rows loaded" in done.stdout
    assert f"next: aigi verify {TO}@v1.2.3" in done.stderr
    # Again: nothing to do, nothing sent, the same answer.
    commits, asked = len(hub.commits(REPO)), len(hub.requests)
    again = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == f"{TO}@v1.2.3"
    assert len(hub.commits(REPO)) == commits and once(hub, release)
    sent = [r for r in hub.requests[asked:] if r.method in WRITES and "paths-info" not in r.path]
    assert sent == []
    # What a user does next: verify there, compare, load.
    pixels = ["--pixels", "2", "--workflow", str(finished[0])]
    audited = aigi("verify", f"{TO}@v1.2.3", *pixels, **hub.environment())
    assert audited.returncode == 0, audited.stderr
    assert audited.stdout.count("equal bytes") == 2
    same = aigi("diff", str(release), f"{TO}@v1.2.3", **hub.environment())
    assert same.returncode == 0, same.stdout + same.stderr
    code = f"""
import pipeline
from pipeline.pixels import pixels_sha256
import numpy as np
for name in ("{REPO}", "{TO}@v1.2.3"):
    rows = pipeline.load(name, "sdxl", "test", None if "@" in name else "v1.2.3")
    assert len(rows) == 6
    for row in rows:
        assert pixels_sha256(np.asarray(row["image"])) == row["pixels_sha256"]
stream = pipeline.load("{REPO}", "sd", "train", revision="v1.2.3", streaming=True)
assert sum(1 for row in stream if row["text"]) == 24
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(PYTHONPATH=str(ROOT)), cwd=tmp_path
    )
    assert loaded.returncode == 0


def test_a_bad_network_costs_time_and_nothing_else(hub: Hub, release: Path) -> None:
    """Rate limits, server errors and cut connections, all in one upload."""
    add = hub.faults.add
    add("POST", "preupload", status=429, headers={"Retry-After": "1"})
    add("POST", "objects/batch", times=2, status=503)
    add("PUT", "", times=3, status=500)
    add("PUT", "", times=2, cut_after=5_000)
    add("GET", "tree", status=502)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert all(fault.used == fault.times for fault in hub.faults.planted), hub.faults.planted
    assert whole(hub, release) and once(hub, release)
    assert hub.tags(REPO).keys() == {"v1.2.3"}


def test_what_stays_broken_is_an_error_and_the_same_command_finishes(
    hub: Hub, release: Path
) -> None:
    """Finished files are not sent again, and nothing is tagged before all is there."""
    hub.faults.add("POST", "/commit/", times=99, status=500)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1
    assert "Run the same command again" in done.stderr and "Traceback" not in done.stderr
    assert hub.tags(REPO) == {} and once(hub, release)
    hub.faults.clear()
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert whole(hub, release) and once(hub, release)


def test_a_fault_while_reading_back_leaves_only_that_to_do(hub: Hub, release: Path) -> None:
    hub.faults.add("HEAD|GET", "resolve", times=99, status=503)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1 and "Run the same command again" in done.stderr
    assert whole(hub, release) and hub.tags(REPO).keys() == {"v1.2.3"}
    hub.faults.clear()
    asked = len(hub.requests)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0 and "sdxl/test: 6 rows loaded" in done.stdout
    assert not [r for r in hub.requests[asked:] if r.method == "PUT" or "/commit/" in r.path]


def test_other_bytes_stored_are_noticed(hub: Hub, release: Path) -> None:
    """A Hub that keeps one shard wrong: no tag, and the file is named."""
    hub.faults.add("POST", "/commit/", corrupt=True)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1
    assert re.search(r"files differ after the upload, the first is \S+: other content", done.stderr)
    assert hub.tags(REPO) == {}
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert whole(hub, release)


@pytest.mark.parametrize("xet", [False, True])
def test_killed_in_mid_upload_then_the_same_command(
    tmp_path: Path, release: Path, xet: bool
) -> None:
    with serve(tmp_path / "hub", xet=xet) as hub:
        hub.faults.add("PUT|POST", r"objects/|xorb", times=99, skip=0 if xet else 2, delay=60)
        command = [sys.executable, "-m", "pipeline.cli", "publish", str(release), "--to", TO]
        process = subprocess.Popen(
            command, cwd=ROOT, env=hub.environment(), stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not any(fault.used for fault in hub.faults.planted):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        hub.faults.clear()
        before = dict(hub.uploads)
        assert hub.tags(REPO) == {}
        done = aigi("publish", str(release), "--to", TO, **hub.environment())
        assert done.returncode == 0, done.stderr
        assert whole(hub, release) and hub.tags(REPO).keys() == {"v1.2.3"}
        assert all(hub.uploads[name] == 1 for name in before)
        if not xet:
            assert once(hub, release)


def test_a_version_is_published_once_and_a_new_one_replaces_its_files(
    hub: Hub, release: Path
) -> None:
    assert aigi("publish", str(release), "--to", TO, **hub.environment()).returncode == 0
    first = shards(release)
    # The same version with one shard fewer.
    store = Store(str(release))
    manifest = json.loads((release / MANIFEST).read_text())
    gone = next(r for r in manifest["files"] if r["config"] == "sd" and r["split"] == "train")
    manifest["files"].remove(gone)
    (release / gone["path"]).unlink()
    store.write_json(manifest, MANIFEST)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1
    assert "v1.2.3 is already published and differs in" in done.stderr
    assert "raise release.version" in done.stderr
    version(release, "1.3.0")
    dry = aigi("publish", str(release), "--to", TO, "--dry-run", **hub.environment())
    assert re.search(rf"removed +\| +1 .*{re.escape(gone['path'])}", dry.stdout), dry.stdout
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert whole(hub, release) and whole(hub, release, "v1.3.0")
    assert gone["path"] in hub.files(REPO, "v1.2.3")
    assert all(hub.uploads[sha] == 1 for sha in first.values())


def test_files_of_others_stay(hub: Hub, release: Path) -> None:
    client(
        hub,
        f"""
api.create_repo("{REPO}", repo_type="dataset", private=False)
for path in ("NOTES.md", "sd/train-old.parquet", "other/train-0.parquet"):
    api.upload_file(
        path_or_fileobj=b"theirs", path_in_repo=path, repo_id="{REPO}", repo_type="dataset"
    )
""",
    )
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    left = set(hub.files(REPO))
    assert {"NOTES.md", "other/train-0.parquet"} <= left
    assert "sd/train-old.parquet" not in left, "the card's pattern would load it"
    assert not hub.repository(REPO).private, "a repository that exists keeps its visibility"


def test_a_pull_request_then_the_tag(hub: Hub, release: Path) -> None:
    done = aigi("publish", str(release), "--to", TO, "--pull-request", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"/datasets/{REPO}/discussions/1")
    assert "next: merge it" in done.stderr
    assert hub.tags(REPO) == {} and whole(hub, release, "refs/pr/1")
    assert set(hub.files(REPO)) == {".gitattributes"}
    client(hub, f'api.merge_pull_request("{REPO}", 1, repo_type="dataset")')
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert whole(hub, release) and hub.tags(REPO).keys() == {"v1.2.3"} and once(hub, release)


def test_no_token_no_right_no_work(hub: Hub, release: Path) -> None:
    for token, said in (
        ("", "no token. Set HF_TOKEN"),
        ("hf_somebody_elses_secret", "Give a token that may write there"),
        (hub.read_token, "this token may only read"),
    ):
        environment = hub.environment(HF_TOKEN=token)
        done = aigi("publish", str(release), "--to", TO, **environment)
        assert done.returncode == 1
        assert said in done.stderr, done.stderr
        assert not token or token not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert hub.repos() == []
    assert {r.path for r in hub.requests} <= {"/api/whoami-v2", "/api/agent-harnesses"}
    foreign = TO.replace("tester", "elsewhere")
    done = aigi("publish", str(release), "--to", foreign, **hub.environment())
    assert done.returncode == 1 and "Give a token that may write there" in done.stderr


def test_the_token_is_never_shown(hub: Hub, release: Path) -> None:
    # Links to the storage are as good as a token.
    hub.faults.add("PUT", "", times=99, status=400)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1 and "signature=" not in done.stdout + done.stderr, done.stderr
    assert "planted fault" in done.stderr, "it says what failed"
    text = "PUT 'https://cas/a?X-Amz-Signature=f00&b=1': Bearer hf_x9"
    assert _without_secrets(text, "hf_x9") == "PUT 'https://cas/a?...': Bearer hf_***"
    said = [done.stdout, done.stderr]
    for method, path in (("GET", "whoami"), ("POST", "commit"), ("POST", "objects/batch")):
        hub.faults.clear()
        hub.faults.add(method, path, times=99, status=400)
        done = aigi("publish", str(release), "--to", TO, HF_DEBUG="1", **hub.environment())
        assert done.returncode == 1
        said += [done.stdout, done.stderr]
    hub.faults.clear()
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    said += [done.stdout, done.stderr]
    assert not [text for text in said if hub.token in text]
    for path in hub.files(REPO):
        assert hub.token.encode() not in hub.read(REPO, path)


def test_damage_here_is_noticed_before_anything_is_sent(hub: Hub, release: Path) -> None:
    path = next(iter(shards(release)))
    data = bytearray((release / path).read_bytes())
    data[len(data) // 2] ^= 1
    (release / path).write_bytes(data)
    done = aigi("publish", str(release), "--to", TO, **hub.environment())
    assert done.returncode == 1
    assert f"{path}: sha256" in done.stderr and "Nothing was sent" in done.stderr
    assert hub.repos() == []


def test_published_to_a_folder_and_on(release: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    found, published = publish(str(release), str(target), dry_run=True)
    assert published is None and not target.exists()
    assert {change.what for change in found} == {"new"}
    found, published = publish(str(release), str(target))
    assert published is not None and published.rows["sd", "train"] == 24
    assert {p.name for p in target.rglob("*") if p.is_file()} == {
        p.name for p in release.rglob("*") if p.is_file()
    }
    # A file cut short and one too many are mended; the others are left alone.
    cut = target / next(iter(shards(release)))
    cut.write_bytes(cut.read_bytes()[:-10])
    shutil.copy(cut, cut.with_name("train-99999-of-00001.parquet"))
    kept = {p: p.stat().st_mtime_ns for p in target.rglob("*.parquet") if p != cut}
    found, _ = publish(str(release), str(target))
    assert {c.path for c in found if c.what == "changed"} == {str(cut.relative_to(target))}
    assert [c.what for c in found].count("removed") == 1
    assert all(p.stat().st_mtime_ns == at for p, at in kept.items() if p.exists())
    store, manifest = open_release(str(target))
    there = There(str(target), release_files(store, manifest), manifest)
    assert {c.what for c in changes(Parcel.of(store, manifest), there)} == {"same"}
    import pipeline

    assert len(pipeline.load(str(target), "sd", "test")) == 2
    with pytest.raises(AigiError, match="has no revision"):
        pipeline.load(str(target), "sd", "test", revision="v1")


def test_a_manifest_cannot_reach_out_of_its_folder(release: Path, tmp_path: Path) -> None:
    """Neither the one that is published nor the one that lies at the target."""
    target, outside = tmp_path / "a" / "there", tmp_path / "a" / "mine.txt"
    publish(str(release), str(target))
    outside.write_text("mine")
    there = json.loads((target / MANIFEST).read_text())
    outside_it = {"path": "../mine.txt", "bytes": 4, "sha256": "0" * 64}
    there["documents"].append(outside_it)
    (target / MANIFEST).write_text(json.dumps(there))
    with pytest.raises(
        AigiError, match=r"documents\.4\.path.*\.\./mine\.txt.*Delete this file there"
    ):
        publish(str(release), str(target))
    (target / MANIFEST).unlink()
    publish(str(release), str(target))
    assert outside.read_text() == "mine"
    here = json.loads((release / MANIFEST).read_text())
    here["documents"].append(outside_it)
    (release / MANIFEST).write_text(json.dumps(here))
    (tmp_path / "mine.txt").write_text("other")
    with pytest.raises(AigiError, match=r"documents\.4\.path: expected the name of a file"):
        publish(str(release), str(target))
    assert outside.read_text() == "mine"


def test_published_to_a_url(release: Path) -> None:
    url = f"memory://{release.parent.name}/there"
    _, published = publish(str(release), url)
    assert published is not None
    store, manifest = open_release(url)
    from pipeline.release.verify import compare

    assert compare(store, manifest) == []
    found, _ = publish(str(release), url)
    assert {change.what for change in found} == {"same"}


def test_what_cannot_be_published_says_why(release: Path, tmp_path: Path) -> None:
    for to in ("hf://datasets/name", "hf://models/org/name", "hf://datasets/org/name@v1"):
        with pytest.raises(AigiError, match="expected hf://datasets/ORG/NAME"):
            publish(str(release), to)
    with pytest.raises(AigiError, match="need a dataset on the Hub"):
        publish(str(release), str(tmp_path / "x"), pull_request=True)
    with pytest.raises(AigiError, match="refs/pr/N alone"):
        publish(str(release), TO, pull_request=True, revision="refs/pr/1")
    with pytest.raises(AigiError, match="not a release"):
        publish(str(tmp_path / "nothing"), TO)


def test_columns_that_differ_are_named(tmp_path: Path, release: Path) -> None:
    """`aigi verify` reads the schema of each file, not only its hash."""
    store, manifest = open_release(str(release))
    path = manifest["files"][0]["path"].removesuffix(".parquet")
    table = store.read("", path)
    fields = [field for field in RELEASE if field.name != "seed"]
    schema = pa.schema([*fields, pa.field("mine", pa.int64())])
    columns = table.drop_columns(["seed"]).append_column("mine", pa.nulls(len(table), pa.int64()))
    store.write("", path, columns, schema)
    from pipeline.release.verify import compare

    found = "\n".join(compare(store, manifest))
    assert f"{path}.parquet: column seed: int64: missing" in found
    assert f"{path}.parquet: column mine: int64: not expected" in found


def test_columns_that_are_listed_otherwise_are_named(release: Path) -> None:
    from pipeline.release.verify import compare

    store, manifest = open_release(str(release))
    path, listed = manifest["files"][0]["path"], manifest["schema"]
    place = listed.index("seed: int64")
    twice = compare(
        store, {**manifest, "schema": [*listed[:place], listed[place], *listed[place:]]}
    )
    assert f"{path}: column seed: int64: more than once" in twice
    turned = [*listed[:place], listed[place + 1], listed[place], *listed[place + 2 :]]
    assert f"{path}: its columns are in another order than the manifest lists them" in compare(
        store, {**manifest, "schema": turned}
    )
    assert not compare(store, manifest)
