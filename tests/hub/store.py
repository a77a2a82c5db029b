"""Repositories and bytes in a folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from tests.hub.records import Commit, File, Refused, Repository, git_oid, now
from tests.hub.xet import XetFile, Xorb, read_shard, read_xorb

BLOCK = 1 << 20

# Every new repository starts with one commit that holds this file, as on the public Hub.
LARGE = """
7z arrow bin ckpt gz h5 npy npz onnx parquet pt safetensors tar zip mp4 wav bmp gif jpeg jpg png
tiff webp
"""
ATTRIBUTES = "".join(f"*.{x} filter=lfs diff=lfs merge=lfs -text\n" for x in LARGE.split()).encode()


class Store:
    """Repositories and bytes under one folder. Each write is a rename: a kill leaves no halves.

    objects/SHA256    bytes of a file        repos/KIND/NAMESPACE/NAME/repository.json
    parts/SHA256/N    of a large upload      repos/KIND/NAMESPACE/NAME/commits/ID.json
    xorbs/HASH        chunks of files        shards/SHA256     which chunks make which files
    clients/          caches of client processes, until the hub closes
    uploads.txt       one sha256 or xorb hash for each time its bytes came in whole
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        for name in ("clients", "objects", "parts", "repos", "shards", "tmp", "xorbs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def object(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise Refused(400, f"not a sha256: {sha256!r}")
        return self.folder / "objects" / sha256

    def write(self, path: Path, chunks: Iterable[bytes], expected: str | None = None) -> str:
        """Write all chunks or nothing; returns their sha256, which must be `expected` if given."""
        temporary = self.folder / "tmp" / uuid.uuid4().hex
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if expected and digest.hexdigest() != expected:
                raise Refused(400, f"bytes of sha256 {digest.hexdigest()} came for {expected}")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def add(self, data: bytes) -> File:
        """Keep a small file that came inside a commit."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.object(sha256).exists():
            self.write(self.object(sha256), [data])
        return File(git_oid(data), len(data), sha256, lfs=False)

    def add_large(self, sha256: str) -> File:
        """The entry of a large file whose bytes were sent before the commit names them."""
        path, xet = self.object(sha256), self.xet_file(sha256)
        if not path.exists() and xet is None:
            raise Refused(400, f"LFS pointer names {sha256}, which was never uploaded")
        size = path.stat().st_size if xet is None else xet.size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(
            git_oid(pointer.encode()), size, sha256, lfs=True, xet=xet.hash if xet else None
        )

    def content(self, sha256: str) -> Path:
        """Where a file's bytes lie; one in the Xet store is put together when first asked for."""
        path = self.object(sha256)
        if not path.exists():
            xet = self.xet_file(sha256)
            if xet is None:
                raise Refused(404, f"{sha256} is not here")
            chunks = (self.xorb(t.xorb).chunks(t.start, t.stop) for t in xet.terms)
            self.write(path, (chunk for term in chunks for chunk in term), expected=sha256)
        return path

    def xet_file(self, digits: str) -> XetFile | None:
        """Find a file in the shards by its Xet hash or its sha256."""
        for path in (self.folder / "shards").iterdir():
            if file := read_shard(path).files.get(digits):
                return file
        return None

    def xorb(self, hash: str) -> Xorb:
        return read_xorb(self.folder / "xorbs" / hash)

    def count_upload(self, sha256: str) -> None:
        with (self.folder / "uploads.txt").open("a") as log:
            log.write(sha256 + "\n")

    def home(self, kind: str, id: str) -> Path:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", id):
            raise Refused(400, f"not a repository name: {id!r}")
        return self.folder / "repos" / kind / id

    def find(self, kind: str, id: str) -> Repository | None:
        path = self.home(kind, id) / "repository.json"
        return Repository(**json.loads(path.read_text())) if path.exists() else None

    def save(self, repo: Repository) -> None:
        path = self.home(repo.kind, repo.id) / "repository.json"
        self.write(path, [json.dumps(asdict(repo), indent=1).encode()])

    def create(self, kind: str, id: str, private: bool) -> Repository:
        repo = Repository(kind, id, private, created=now())
        first = self.commit(
            repo, None, "initial commit", "", {".gitattributes": self.add(ATTRIBUTES)}
        )
        repo.branches["main"] = first.id
        self.save(repo)
        return repo

    def delete(self, repo: Repository) -> None:
        gone = self.folder / "tmp" / uuid.uuid4().hex
        self.home(repo.kind, repo.id).rename(gone)
        shutil.rmtree(gone)

    def commit(
        self, repo: Repository, parent: str | None, title: str, text: str, files: dict[str, File]
    ) -> Commit:
        """Write a commit; the caller moves a branch to it and saves the repository."""
        parents, date = [parent] if parent else [], now()
        about = json.dumps([uuid.uuid4().hex, parents, title, text, date])
        commit = Commit(hashlib.sha1(about.encode()).hexdigest(), parents, title, text, date, files)
        path = self.home(repo.kind, repo.id) / "commits" / f"{commit.id}.json"
        self.write(path, [json.dumps(asdict(commit)).encode()])
        return commit

    def read_commit(self, repo: Repository, id: str) -> Commit:
        return read_commit(self.home(repo.kind, repo.id) / "commits" / f"{id}.json")

    def resolve(self, repo: Repository, revision: str) -> Commit:
        """The commit of a branch, tag, pull request, ref name or commit id (7 digits or more)."""
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        heads = {f"refs/pr/{p['num']}": p["head"] for p in repo.pulls} if pull else {}
        for name, id in [*repo.branches.items(), *repo.tags.items()]:
            heads[name] = heads[f"refs/heads/{name}"] = heads[f"refs/tags/{name}"] = id
        if revision in heads:
            return self.read_commit(repo, heads[revision])
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for path in (self.home(repo.kind, repo.id) / "commits").glob(f"{revision}*.json"):
                return read_commit(path)
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, repo: Repository, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit.parents:
            commit = self.read_commit(repo, commit.parents[0])
            yield commit


@lru_cache(maxsize=64)
def read_commit(path: Path) -> Commit:
    record = json.loads(path.read_text())
    record["files"] = {name: File(**file) for name, file in record["files"].items()}
    return Commit(**record)


def blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = (path.stat().st_size if stop is None else stop) - start
        file.seek(start)
        while left > 0:
            block = file.read(min(BLOCK, left))
            left -= len(block)
            yield block
