"""A Hub on this machine: calls of the real Hugging Face clients in, repositories in a folder out.

    with serve(folder) as hub:
        HfApi(hub.endpoint, hub.token).create_repo("org/name", repo_type="dataset")
        subprocess.run([...], env=hub.environment())

or, to try things by hand, `python -m tests.hub FOLDER --port 8970`.

It speaks what huggingface_hub 2.x, hf_xet and datasets ask of datasets and models: repositories,
commits, branches, tags, pull requests, listings, LFS (basic and multipart) and Xet uploads, ranged
downloads, private repositories, two roles. Faults are planted with `hub.faults.add`. Where the
public Hub's answer is not known, a comment says "our choice".
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.message import Message
from fnmatch import fnmatchcase
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlencode

ROOT = Path(__file__).resolve().parents[1]
USER = "tester"  # whom both tokens belong to
FOREIGN = "elsewhere"  # the one namespace where this user may not write
TOKENS = {"hf_write_token_of_the_test_hub": "write", "hf_read_token_of_the_test_hub": "read"}
BLOCK = 1 << 20

# Every new repository starts with one commit that holds this file, as on the public Hub.
LARGE = """
7z arrow bin ckpt gz h5 npy npz onnx parquet pt safetensors tar zip mp4 wav bmp gif jpeg jpg png
tiff webp
"""
ATTRIBUTES = "".join(f"*.{x} filter=lfs diff=lfs merge=lfs -text\n" for x in LARGE.split()).encode()


# --- what is stored -------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One path of a commit. `oid` is the git blob's sha1 (of the pointer, for a large file)."""

    oid: str
    size: int
    sha256: str
    lfs: bool
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree."""

    id: str
    parents: list[str]
    title: str
    message: str
    date: str
    files: dict[str, File]


@dataclass
class Repository:
    """What can change in a repository; the rest is in its commits."""

    kind: str  # "models" or "datasets"
    id: str
    private: bool
    created: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    """An error answer; `code` is what clients read from X-Error-Code to choose their exception."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


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


# --- the Xet store --------------------------------------------------------------------------------
# Files are made of terms, terms are chunks in a row of a xorb, and shards tell which. The formats
# and calls are those of https://huggingface.co/docs/xet.


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `stop` of a xorb, `size` bytes once unpacked."""

    xorb: str
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class XetFile:
    hash: str
    sha256: str
    terms: list[Term]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Shard:
    """The files a shard tells of, by hash and by sha256, and its xorbs: (record, chunk hashes)."""

    files: dict[str, XetFile]
    xorbs: list[tuple[bytes, set[str]]]


@lru_cache(maxsize=4096)
def read_shard(path: Path) -> Shard:
    """Both sections of a shard are records of 48 bytes and end with one that starts with 32 FF."""
    data, at = path.read_bytes(), 48
    shard, end = Shard({}, []), b"\xff" * 32

    def number(at: int) -> int:
        return int.from_bytes(data[at : at + 4], "little")

    def more() -> bool:
        if at + 48 > len(data):
            raise Refused(400, "the shard ends too early")
        return data[at : at + 32] != end

    while more():
        flags, count = number(at + 32), number(at + 36)
        terms = [
            Term(hash_digits(data, t), number(t + 40), number(t + 44), number(t + 36))
            for t in range(at + 48, at + 48 * (count + 1), 48)
        ]
        hash, at = hash_digits(data, at), at + 48 * (1 + count * (2 if flags >> 31 else 1))
        sha256 = ""
        if flags >> 30 & 1:
            sha256, at = hash_digits(data, at), at + 48
        shard.files[hash] = shard.files[sha256] = XetFile(hash, sha256, terms)
    at += 48
    while more():
        stop = at + 48 * (1 + number(at + 36))
        chunks = {hash_digits(data, c) for c in range(at + 48, stop, 48)}
        shard.xorbs.append((data[at:stop], chunks))
        at = stop
    return shard


def hash_digits(data: bytes, at: int) -> str:
    """A hash is four little-endian u64, sha256 too."""
    return "".join(data[i : i + 8][::-1].hex() for i in range(at, at + 32, 8))


@dataclass(frozen=True)
class Xorb:
    """A file of packed chunks; `offsets` has the start of each and the end of the last."""

    path: Path
    offsets: list[int]

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Unpack chunks: 8 bytes of header each, then plain, LZ4, or LZ4 of regrouped bytes."""
        import pyarrow as pa

        with self.path.open("rb") as file:
            file.seek(self.offsets[start])
            for _ in range(start, stop):
                header = file.read(8)
                packed, size = (int.from_bytes(header[i : i + 3], "little") for i in (1, 5))
                chunk = file.read(packed)
                if header[4]:
                    chunk = pa.decompress(chunk, size, codec="lz4", asbytes=True)
                if header[4] == 2:  # all first bytes of four, all second ones, ...
                    whole, at = bytearray(size), 0
                    for n in range(4):
                        count = len(whole[n::4])
                        whole[n::4], at = chunk[at : at + count], at + count
                    chunk = bytes(whole)
                yield chunk


@lru_cache(maxsize=4096)
def read_xorb(path: Path) -> Xorb:
    size, offsets = path.stat().st_size, [0]
    with path.open("rb") as file:
        # After the chunks, whose version is 0, there may be a footer, which starts with letters.
        while (header := file.read(8)) and header[0] == 0 and offsets[-1] < size:
            offsets.append(offsets[-1] + 8 + int.from_bytes(header[1:4], "little"))
            file.seek(offsets[-1])
    return Xorb(path, offsets)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def flipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes but one, which lies behind what a format's own header has room for."""
    for index, chunk in enumerate(chunks):
        at = min(100, len(chunk) - 1)
        yield chunk if index else chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]


def blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = (path.stat().st_size if stop is None else stop) - start
        file.seek(start)
        while left > 0:
            block = file.read(min(BLOCK, left))
            left -= len(block)
            yield block


# --- faults ---------------------------------------------------------------------------------------


@dataclass
class Fault:
    """What goes wrong for the next `times` calls that match, after `skip` that go well.

    method, path: expressions; the first must match the method, the second be found in the path or
    query. status: answer this, with `headers`, and do nothing. cut_after: close the connection
    after so many bytes of the request's body (nothing is done; the default side of a PUT or POST)
    or of the answer's (all is done; 0 sends nothing at all). delay: seconds before anything else.
    corrupt: an upload stores other bytes under the name it was given; a commit stores other bytes
    of its large files and names them; a listing tells wrong hashes; a download sends one wrong
    byte.
    """

    method: str = ".*"
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    side: Literal["request", "answer"] | None = None
    delay: float = 0
    corrupt: bool = False
    used: int = 0

    def cut(self, side: str, method: str) -> int | None:
        """After how many bytes of this side the connection ends, if it does."""
        usual = "request" if method in ("PUT", "POST") else "answer"
        return self.cut_after if side == (self.side or usual) else None


class Faults:
    """The planted faults of a hub; a call gets the first that fits, in the order of planting."""

    def __init__(self) -> None:
        self.planted: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str = ".*", path: str = "", **wrong: Any) -> Fault:
        """Plant a `Fault` and return it; its `used` counts."""
        self.planted.append(Fault(method, path, **wrong))
        return self.planted[-1]

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.planted:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif fault.used < fault.times:
                        fault.used += 1
                        return fault
        return None

    def clear(self) -> None:
        self.planted.clear()


class Cut(Exception):
    """The connection ends here."""


# --- the hub --------------------------------------------------------------------------------------


@dataclass
class Request:
    """One call that came in; `authorized` tells whether it carried a token."""

    method: str
    path: str
    authorized: bool
    received: int = 0  # bytes of the body
    status: int | None = None  # None while it runs, and where the connection was cut


class Hub:
    """A running server: where it is, what it was asked, and what it holds."""

    def __init__(
        self,
        folder: Path,
        xet: bool = False,
        multipart_from: int = 5_000_000_000,
        part_size: int = 100_000_000,
        page_size: int = 1000,
        lfs_from: int = 10_000_000,
    ) -> None:
        """See `serve`."""
        self.store = Store(folder.resolve())
        self.xet, self.lfs_from, self.page_size = xet, lfs_from, page_size
        self.multipart_from, self.part_size = multipart_from, part_size
        self.token, self.read_token = TOKENS
        self.endpoint = self.storage = ""  # set once the port is known
        self.requests: list[Request] = []
        self.faults = Faults()
        self.errors: list[str] = []  # tracebacks of the server's own mistakes
        self.connections: set[socket.socket] = set()

    def settings(self) -> dict[str, str]:
        settings = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token}
        return settings if self.xet else settings | {"HF_HUB_DISABLE_XET": "1"}

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a client process: this one's, turned to this hub, with an empty cache."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        switches = {
            "HF_HOME": tempfile.mkdtemp(dir=self.store.folder / "clients"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return kept | self.settings() | switches | more

    def repository(self, repo_id: str, repo_type: str = "dataset") -> Repository:
        repo = self.store.find(f"{repo_type}s", repo_id)
        assert repo is not None, f"no {repo_type} {repo_id} here"
        return repo

    def repos(self) -> list[str]:
        """Like `datasets/org/name`."""
        root = self.store.folder / "repos"
        return sorted(str(p.parent.relative_to(root)) for p in root.glob("*/*/*/repository.json"))

    def commits(
        self, repo_id: str, revision: str = "main", repo_type: str = "dataset"
    ) -> list[Commit]:
        """Newest first."""
        repo = self.repository(repo_id, repo_type)
        return list(self.store.history(repo, self.store.resolve(repo, revision)))

    def files(
        self, repo_id: str, revision: str = "main", repo_type: str = "dataset"
    ) -> dict[str, tuple[int, str]]:
        """{path: (bytes, sha256)}."""
        files = self.commits(repo_id, revision, repo_type)[0].files
        return {path: (file.size, file.sha256) for path, file in sorted(files.items())}

    def read(
        self, repo_id: str, path: str, revision: str = "main", repo_type: str = "dataset"
    ) -> bytes:
        file = self.commits(repo_id, revision, repo_type)[0].files[path]
        return self.store.content(file.sha256).read_bytes()

    def tags(self, repo_id: str, repo_type: str = "dataset") -> dict[str, str]:
        """{tag: commit id}."""
        return self.repository(repo_id, repo_type).tags

    @property
    def uploads(self) -> Counter[str]:
        """{sha256, or hash of a xorb: how many times its bytes came in whole}."""
        log = self.store.folder / "uploads.txt"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    def signed(self, path: str) -> str:
        """A URL of the storage that needs no token, as those of S3 and of a CDN."""
        return f"{self.storage}{path}?signature={self.signature(path)}"

    def signature(self, path: str) -> str:
        return hmac.new(self.token.encode(), path.encode(), "sha256").hexdigest()


@contextmanager
def serve(folder: Path, xet: bool = False, port: int = 0, **sizes: int) -> Iterator[Hub]:
    """Run a hub over `folder`, which may hold one already; `xet` gives it a Xet store.

    sizes: `multipart_from` bytes (5 GB) LFS uploads come in parts of `part_size` (100 MB); a page
    of a listing has `page_size` entries (1000); from `lfs_from` bytes (10 MB) any file is a large
    one. Raises at the end if the server itself made a mistake.
    """
    hub = Hub(folder, xet, **sizes)
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler, bind_and_activate=False)
    server.request_queue_size, server.allow_reuse_address, server.daemon_threads = 128, True, True
    server.block_on_close = False
    server.server_bind()
    server.server_activate()
    # Clients follow a redirect within one origin as if it were the Hub: storage has another name.
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in list(hub.connections):
            hang_up(connection)
        shutil.rmtree(hub.store.folder / "clients", ignore_errors=True)
    if hub.errors:
        raise AssertionError("the test hub failed:\n" + "\n".join(hub.errors))


def hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was quicker
        connection.shutdown(socket.SHUT_RDWR)


# --- one call -------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What goes back: JSON, text or bytes, or a file that can be read in ranges."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """What a route needs to know of a call."""

    hub: Hub
    names: dict[str, str]
    query: dict[str, list[str]]
    headers: Message
    chunks: Iterator[bytes]
    role: str | None
    corrupt: bool

    @property
    def store(self) -> Store:
        return self.hub.store

    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def must_write(self) -> None:
        if self.role is None:
            raise Refused(401, "Invalid username or password.")
        if self.role != "write":
            raise Refused(403, "Forbidden: this token may only read, pass one with write access")

    def repo(self, write: bool = False) -> Repository:
        """The repository that the path names, if this caller may know of it."""
        kind = self.names["kind"] or "models"
        repo = self.store.find(kind, self.names["repo"])
        if repo is None or (repo.private and self.role is None):
            # The public Hub says 401 to strangers, so that they cannot tell private from missing.
            # Its clients know that by the https of the URL; on http only the code tells them.
            status = 401 if self.role is None else 404
            raise Refused(status, "Repository not found", "RepoNotFound")
        if write:
            self.must_write()
            if repo.id.startswith(f"{FOREIGN}/"):
                raise Refused(403, f"You have no write access to {repo.id}")
        return repo

    def commit(self, repo: Repository) -> Commit:
        return self.store.resolve(
            repo, unquote(self.names["rev"]) if self.names.get("rev") else "main"
        )

    def url(self, repo: Repository) -> str:
        prefix = "" if repo.kind == "models" else f"{repo.kind}/"
        return f"{self.hub.endpoint}/{prefix}{repo.id}"

    def page(self, entries: list[Any]) -> Answer:
        """One page of a listing, with a Link to the next."""
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        if stop >= len(entries):
            return Answer(entries[start:])
        query = {**{k: v[0] for k, v in self.query.items()}, "cursor": str(stop)}
        link = f"{self.hub.endpoint}{self.names['url']}?{urlencode(query)}"
        return Answer(entries[start:stop], headers={"Link": f'<{link}>; rel="next"'})


class Handler(BaseHTTPRequestHandler):
    """Reads a request, finds its fault and its route, writes the answer."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass  # `hub.requests` has it

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (Cut, ConnectionError):
            self.close_connection = True
            hang_up(self.connection)

    def respond(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        request = Request(self.command, self.path, authorized=bool(token))
        self.hub.requests.append(request)
        fault = self.hub.faults.take(self.command, self.path)
        chunks = self.body(request, fault)
        try:
            if fault:
                time.sleep(fault.delay)
            if fault and fault.status:
                # A gateway that has no server behind it answers with a page, the Hub with JSON.
                page = b"<html>planted fault</html>" if fault.status >= 500 else None
                answer = Answer(page or {"error": "planted fault"}, fault.status, fault.headers)
            else:
                answer = self.route(token, chunks, fault is not None and fault.corrupt)
            for _ in chunks:  # what the route left unread
                pass
            self.send(answer, fault, request)
        except (Cut, ConnectionError):
            raise
        except Exception:
            self.hub.errors.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            raise Cut from None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def route(self, token: str, chunks: Iterator[bytes], corrupt: bool) -> Answer:
        path, _, query = self.path.partition("?")
        method, role = "GET" if self.command == "HEAD" else self.command, TOKENS.get(token)
        try:
            if token and role is None:
                raise Refused(401, "Invalid credentials in Authorization header")
            for wanted, pattern, function in ROUTES:
                if wanted == method and (match := re.fullmatch(pattern, path)):
                    names = match.groupdict() | {"url": path}
                    asked = parse_qs(query)
                    return function(
                        Call(self.hub, names, asked, self.headers, chunks, role, corrupt)
                    )
            raise Refused(404, f"no such page: {self.command} {path}")
        except Refused as refusal:
            message = str(refusal).encode("ascii", "replace").decode()
            headers = {"X-Error-Message": message, "X-Error-Code": refusal.code}
            if not refusal.code:
                del headers["X-Error-Code"]
            return Answer({"error": str(refusal)}, refusal.status, headers)

    def body(self, request: Request, fault: Fault | None) -> Iterator[bytes]:
        """The request's body as it comes, of known length or chunked."""
        cut = fault.cut("request", self.command) if fault else None
        for size in self.sizes():
            if cut is not None and request.received + size > cut:
                self.rfile.read(cut - request.received)
                request.received = cut
                raise Cut
            block = self.rfile.read(size)
            request.received += len(block)
            if len(block) < size:
                raise Cut  # the client went away
            yield block
        if cut is not None:
            raise Cut

    def sizes(self) -> Iterator[int]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield size
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left > 0:
                yield min(BLOCK, left)
                left -= BLOCK

    def send(self, answer: Answer, fault: Fault | None, request: Request) -> None:
        cut = fault.cut("answer", self.command) if fault else None
        if cut == 0:
            raise Cut
        status, headers = answer.status, dict(answer.headers)
        chunks: Iterable[bytes]
        if isinstance(answer.body, Path):
            size = answer.body.stat().st_size
            start, stop = 0, size
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if wanted and any(wanted.groups()):
                first, last = wanted.groups()
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
                status = 206 if start < stop else 416
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
                if status == 416:
                    headers["Content-Range"], stop = f"bytes */{size}", start
            headers["Accept-Ranges"] = "bytes"
            length, chunks = stop - start, blocks(answer.body, start, stop)
        else:
            data = answer.body
            if not isinstance(data, bytes):
                data = b"" if data is None else json.dumps(data, default=str).encode()
                headers.setdefault("Content-Type", "application/json")
            length, chunks = len(data), [data]
        if fault and fault.corrupt and isinstance(answer.body, Path):
            chunks = flipped(chunks)
        request.status = status
        self.send_response(status)
        self.send_header("X-Request-Id", uuid.uuid4().hex)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for chunk in chunks:
            if cut is not None and sent + len(chunk) >= cut:
                self.wfile.write(chunk[: cut - sent])
                raise Cut
            self.wfile.write(chunk)
            sent += len(chunk)


# --- routes: who is asking, repositories ----------------------------------------------------------


def whoami(call: Call) -> Answer:
    if call.role is None:
        raise Refused(401, "Invalid username or password.")
    access = {"displayName": "test", "role": call.role}
    auth = {"type": "access_token", "accessToken": access}
    return Answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth})


def create_repo(call: Call) -> Answer:
    wish = call.json()
    call.must_write()
    namespace = wish.get("organization") or USER
    if namespace == FOREIGN:
        raise Refused(403, f"You have no right to create a repository under {FOREIGN!r}")
    private = wish.get("visibility") == "private" or bool(wish.get("private"))
    kind, id = f"{wish.get('type') or 'model'}s", f"{namespace}/{wish['name']}"
    if kind not in ("models", "datasets"):
        raise Refused(400, f"this hub has no {kind}")
    with call.store.lock:
        known = call.store.find(kind, id)
        repo = known or call.store.create(kind, id, private)
    said = {"url": call.url(repo), "name": repo.id, "id": repo.id, "private": repo.private}
    if known:
        # exist_ok makes the client read the url of this answer too.
        return Answer(said | {"error": "You already created this repository"}, 409)
    return Answer(said)


def delete_repo(call: Call) -> Answer:
    wish = call.json()
    namespace = wish.get("organization") or USER
    call.names |= {
        "kind": f"{wish.get('type') or 'model'}s", "repo": f"{namespace}/{wish['name']}"
    }  # fmt: skip
    with call.store.lock:
        call.store.delete(call.repo(write=True))
    return Answer({})


def settings(call: Call) -> Answer:
    wish = call.json()
    with call.store.lock:
        repo = call.repo(write=True)
        repo.private = wish.get("visibility", "private" if repo.private else "public") == "private"
        call.store.save(repo)
    return Answer({"private": repo.private})


def info(call: Call) -> Answer:
    repo = call.repo()
    commit = call.commit(repo)
    siblings = []
    for path, file in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if call.flag("blobs"):
            entry = described(call, path, file)
            sibling |= {"size": file.size, "blobId": entry["oid"]}
            if file.lfs:
                sibling["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
        siblings.append(sibling)
    card = commit.files.get("README.md")
    metadata, _ = (
        front_matter(call.store.content(card.sha256).read_text(errors="replace"))
        if card
        else ({}, "")
    )
    return Answer(
        {
            "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.id,
            "createdAt": repo.created,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            # Our choice: the Hub derives more tags than those the card names.
            "tags": list(metadata.get("tags") or []),
            "cardData": metadata,
            "siblings": siblings,
        }
    )


def no_such_repo(call: Call) -> Answer:
    raise Refused(404 if call.role else 401, "Repository not found", "RepoNotFound")


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML mapping on top of a card, and what is wrong with it."""
    import yaml

    match = re.match(r"---\r?\n(.*?\n)?---\s*(\n|$)", text, re.DOTALL)
    if not match:
        return {}, ""
    try:
        data = yaml.safe_load(match[1] or "")
    except yaml.YAMLError as error:
        return {}, str(error)
    if data is not None and not isinstance(data, dict):
        return {}, "the metadata is not a mapping"
    return data or {}, ""


def validate_yaml(call: Call) -> Answer:
    """Our choice of checks: it parses, and what `datasets` reads of it has the right form."""
    metadata, error = front_matter(call.json()["content"])
    errors = [error] if error else []
    configs = metadata.get("configs", [])
    if not isinstance(configs, list) or not all(isinstance(c, dict) for c in configs):
        errors.append('"configs" must be an array of objects')
    elif not all(isinstance(c.get("config_name"), str) for c in configs):
        errors.append('"configs[].config_name" must be a string')
    for key, kinds in {"license": (str, list), "pretty_name": str, "tags": list}.items():
        if key in metadata and not isinstance(metadata[key], kinds):  # type: ignore[arg-type]
            errors.append(f'"{key}" has the wrong type')
    warnings = [] if metadata or errors else ["empty or missing yaml metadata in repo card"]
    said = {"errors": errors, "warnings": warnings}
    listed = {name: [{"message": m} for m in messages] for name, messages in said.items()}
    return Answer(listed, 400 if errors else 200)


# --- routes: branches, tags, pull requests --------------------------------------------------------


def refs(call: Call) -> Answer:
    repo = call.repo()

    def named(prefix: str, heads: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": prefix + n, "targetCommit": id} for n, id in heads.items()]

    said: dict[str, Any] = {
        "branches": named("refs/heads/", repo.branches),
        "converts": [],
        "tags": named("refs/tags/", repo.tags),
    }
    if call.flag("include_prs"):
        pulls = {str(pull["num"]): pull["head"] for pull in repo.pulls}
        said["pullRequests"] = named("refs/pr/", pulls)
    return Answer(said)


def create_ref(call: Call) -> Answer:
    wish = call.json() or {}
    with call.store.lock:
        repo = call.repo(write=True)
        if call.names["what"] == "tag":
            heads, name, start = repo.tags, wish["tag"], unquote(call.names["rev"])
        else:
            heads, name = repo.branches, unquote(call.names["rev"])
            start = wish.get("startingPoint") or "main"
        if name in heads:
            raise Refused(409, f"{call.names['what']} {name!r} exists already")
        heads[name] = call.store.resolve(repo, start).id
        call.store.save(repo)
    return Answer({})


def delete_ref(call: Call) -> Answer:
    with call.store.lock:
        repo = call.repo(write=True)
        heads = repo.tags if call.names["what"] == "tag" else repo.branches
        name = unquote(call.names["rev"])
        if name not in heads:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if heads is repo.branches and name == "main":
            raise Refused(403, "the default branch cannot be deleted")
        del heads[name]
        call.store.save(repo)
    return Answer({})


def open_pull(repo: Repository, title: str, base: str, head: str) -> dict[str, Any]:
    """Add a pull request: a draft as long as nothing was committed to it."""
    pull = {
        "num": len(repo.pulls) + 1, "title": title, "status": "draft" if base == head else "open",
        "created": now(), "base": base, "head": head, "merged": None,
    }  # fmt: skip
    repo.pulls.append(pull)
    return pull


def create_discussion(call: Call) -> Answer:
    wish = call.json()
    if not wish.get("pullRequest"):
        raise Refused(400, "this hub has pull requests, but no other discussions")
    with call.store.lock:
        repo = call.repo(write=True)
        main = repo.branches["main"]
        pull = open_pull(repo, wish["title"], main, main)
        call.store.save(repo)
    return Answer({"num": pull["num"], "url": f"{call.url(repo)}/discussions/{pull['num']}"})


def described_pull(call: Call, repo: Repository, pull: dict[str, Any]) -> dict[str, Any]:
    return {
        "num": pull["num"],
        "title": pull["title"],
        "status": pull["status"],
        "author": {"name": USER},
        "createdAt": pull["created"],
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.kind[:-1]},
        "events": [],  # our choice: the opening comment and the pushes are not told again
        "filesWithConflicts": [],
        "changes": {"base": "refs/heads/main", "mergeCommitId": pull["merged"]},
        "diff": "",
    }


def find_pull(call: Call, repo: Repository) -> dict[str, Any]:
    for pull in repo.pulls:
        if str(pull["num"]) == call.names["num"]:
            return pull
    raise Refused(404, "no such discussion")


def discussions(call: Call) -> Answer:
    repo = call.repo()
    listed = [described_pull(call, repo, pull) for pull in reversed(repo.pulls)]
    return Answer({"discussions": listed, "count": len(listed), "start": 0})


def discussion(call: Call) -> Answer:
    repo = call.repo()
    return Answer(described_pull(call, repo, find_pull(call, repo)))


def change_discussion(call: Call) -> Answer:
    wish = json.loads(b"".join(call.chunks) or b"{}") or {}
    with call.store.lock:
        repo = call.repo(write=True)
        pull = find_pull(call, repo)
        if call.names["what"] == "merge":
            base, head = (call.store.read_commit(repo, pull[k]).files for k in ("base", "head"))
            files = dict(call.store.resolve(repo, "main").files)
            for path in base.keys() | head.keys():
                if base.get(path) != head.get(path):
                    files.pop(path, None)
                    files |= {path: head[path]} if path in head else {}
            title = f"{pull['title']} (#{pull['num']})"
            made = call.store.commit(repo, repo.branches["main"], title, "", files)
            repo.branches["main"] = pull["merged"] = made.id
            wish = {"status": "merged"}
        pull["status"] = wish["status"]
        call.store.save(repo)
    event: dict[str, Any] = {"id": uuid.uuid4().hex, "createdAt": now(), "type": "status-change"}
    event |= {"author": {"name": USER}, "data": {"status": pull["status"]}}
    return Answer({"newStatus": event})


# --- routes: uploads and commits ------------------------------------------------------------------


def patterns(call: Call, commit: Commit, name: str) -> str:
    file = commit.files.get(name)
    return call.store.content(file.sha256).read_text() if file else ""


def fits(path: str, pattern: str) -> bool:
    """A line of .gitattributes or .gitignore, without the rarer forms of its language."""
    pattern = pattern.strip("/")
    if "/" in pattern:
        return fnmatchcase(path, pattern)
    return any(fnmatchcase(part, pattern) for part in path.split("/"))


def preupload(call: Call) -> Answer:
    wish = call.json()
    repo = call.repo(write=True)
    commit = call.commit(repo)
    attributes = patterns(call, commit, ".gitattributes").splitlines()
    large = [line.split()[0] for line in attributes if "filter=lfs" in line]
    ignore = wish.get("gitIgnore", patterns(call, commit, ".gitignore")).splitlines()
    ignore = [line for line in ignore if line.strip() and not line.startswith("#")]
    said = []
    for file in wish["files"]:
        path, old = file["path"], commit.files.get(file["path"])
        lfs = (
            file["size"] >= call.hub.lfs_from
            or any(fits(path, pattern) for pattern in large)
            or b"\0" in base64.b64decode(file.get("sample", ""))  # our choice of what is binary
        )
        entry = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
        entry["shouldIgnore"] = any(fits(path, pattern) for pattern in ignore)
        if old:
            entry["oid"] = old.sha256 if old.lfs else old.oid
        said.append(entry)
    return Answer({"files": said, "commitOid": commit.id})


def lfs_batch(call: Call) -> Answer:
    wish = call.json()
    repo = call.repo(write=True)
    objects, transfer = [], "basic"
    for asked in wish["objects"]:
        sha256, size = asked["oid"], asked["size"]
        said: dict[str, Any] = {"oid": sha256, "size": size}
        path = call.store.object(sha256)
        if not path.exists():
            upload: dict[str, Any] = {"href": call.hub.signed(f"/objects/{sha256}")}
            if "multipart" in wish["transfers"] and size >= call.hub.multipart_from:
                transfer = "multipart"
                count = -(-size // call.hub.part_size)
                parts = {
                    str(n): call.hub.signed(f"/parts/{sha256}/{n}") for n in range(1, count + 1)
                }
                complete = f"/complete/{sha256}"
                upload["href"] = call.hub.signed(complete).replace(
                    call.hub.storage, call.hub.endpoint
                )
                upload["header"] = {"chunk_size": str(call.hub.part_size), **parts}
            verify = {"href": f"{call.url(repo)}.git/info/lfs/objects/verify"}
            said |= {"authenticated": True, "actions": {"upload": upload, "verify": verify}}
        objects.append(said)
    return Answer({"transfer": transfer, "objects": objects})


def must_be_signed(call: Call) -> None:
    given = call.query.get("signature", [""])[0]
    if not hmac.compare_digest(given, call.hub.signature(call.names["url"])):
        raise Refused(403, "SignatureDoesNotMatch")


def put_object(call: Call) -> Answer:
    must_be_signed(call)
    sha256 = call.names["sha"]
    if call.corrupt:
        call.store.write(call.store.object(sha256), flipped(call.chunks))
    else:
        call.store.write(call.store.object(sha256), call.chunks, expected=sha256)
    call.store.count_upload(sha256)
    return Answer(headers={"ETag": f'"{sha256}"'})


def put_part(call: Call) -> Answer:
    must_be_signed(call)
    call.store.object(call.names["sha"])  # checks the name
    path = call.store.folder / "parts" / call.names["sha"] / call.names["num"]
    chunks = flipped(call.chunks) if call.corrupt else call.chunks
    return Answer(headers={"ETag": f'"{call.store.write(path, chunks)}"'})


def complete(call: Call) -> Answer:
    must_be_signed(call)
    wish, sha256 = call.json(), call.names["sha"]
    folder = call.store.folder / "parts" / sha256
    parts = [folder / str(part["partNumber"]) for part in wish["parts"]]
    for path, part in zip(parts, wish["parts"], strict=True):
        if not path.exists() or f'"{digest(path)}"' != part["etag"]:
            raise Refused(400, f"part {path.name} is not the one that was sent")
    chunks = (block for path in parts for block in blocks(path))
    call.store.write(call.store.object(sha256), chunks, expected=sha256)
    call.store.count_upload(sha256)
    shutil.rmtree(folder)
    return Answer({})


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lfs_verify(call: Call) -> Answer:
    wish = call.json()
    call.repo(write=True)
    path = call.store.object(wish["oid"])
    if not path.exists() or path.stat().st_size != wish["size"]:
        raise Refused(404, f"{wish['oid']} is not here with {wish['size']} bytes")
    return Answer({})


def xet_token(call: Call) -> Answer:
    write = call.names["what"] == "write"
    call.repo(write=write)
    if not call.hub.xet:
        raise Refused(404, "this hub has no Xet store")
    token = call.hub.token if write else call.hub.read_token
    url, expires = call.hub.storage, int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token}
    headers["X-Xet-Token-Expiration"] = str(expires)
    return Answer({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


def put_xorb(call: Call) -> Answer:
    call.must_write()
    path = call.store.folder / "xorbs" / call.names["sha"]
    known = path.exists()
    place = call.store.folder / "tmp" / uuid.uuid4().hex if known else path
    call.store.write(place, flipped(call.chunks) if call.corrupt else call.chunks)
    call.store.count_upload(path.name)
    return Answer({"was_inserted": not known})


def put_shard(call: Call) -> Answer:
    call.must_write()
    data = b"".join(call.chunks)
    temporary = call.store.folder / "tmp" / uuid.uuid4().hex
    name = call.store.write(temporary, [data])
    for file in read_shard(temporary).files.values():
        for term in file.terms:
            if not (call.store.folder / "xorbs" / term.xorb).exists():
                raise Refused(400, f"xorb {term.xorb} was never uploaded")
    temporary.replace(call.store.folder / "shards" / name)
    if call.names["url"].startswith("/v2"):
        return Answer(b'{"type": "result"}\n', headers={"Content-Type": "application/x-ndjson"})
    return Answer({"result": 1})


def known_chunk(call: Call) -> Answer:
    """A shard of the xorbs that hold this chunk, so that the client need not send them again."""
    for path in (call.store.folder / "shards").iterdir():
        found = [raw for raw, chunks in read_shard(path).xorbs if call.names["sha"] in chunks]
        if found:
            end = b"\xff" * 32 + bytes(16)
            header = path.read_bytes()[:40] + (200).to_bytes(8, "little")
            body = header + end + b"".join(found) + end
            # Version, the two sections, three empty lookup tables behind them (the client counts
            # chunks by where they start), a key of zeros, two times, 72 bytes unused, this place.
            footer = [1, 48, 96, *[len(body), 0] * 3, *[0] * 4, int(time.time())]
            footer += [int(time.time()) + 3600, *[0] * 9, len(body)]
            return Answer(body + b"".join(n.to_bytes(8, "little") for n in footer))
    raise Refused(404, "no such chunk")


def reconstruction(call: Call) -> Answer:
    """How to put a file, or the terms that a range of it touches, together."""
    file = call.store.xet_file(call.names["sha"])
    if call.role is None or file is None:
        raise Refused(401 if call.role is None else 404, "no such file")
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("Range", ""))
    start, stop = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, file.size)
    if start >= file.size:
        raise Refused(416, "past the end of the file")
    terms: list[dict[str, Any]] = []
    fetch: dict[str, list[dict[str, Any]]] = {}
    at = skipped = 0
    for term in file.terms:
        if at < stop and at + term.size > start:
            skipped = start - at if not terms else skipped
            chunks = {"start": term.start, "end": term.stop}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            offsets = call.store.xorb(term.xorb).offsets
            span = {"start": offsets[term.start], "end": offsets[term.stop] - 1}
            url = call.hub.signed(f"/xorbs/{term.xorb}")
            fetch.setdefault(term.xorb, []).append({"range": chunks, "url": url, "url_range": span})
        at += term.size
    return Answer({"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch})


def get_xorb(call: Call) -> Answer:
    must_be_signed(call)
    return Answer(call.store.folder / "xorbs" / call.names["sha"])


def make_commit(call: Call) -> Answer:
    lines = [json.loads(line) for line in b"".join(call.chunks).splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with call.store.lock:
        repo = call.repo(write=True)
        parent = call.commit(repo)
        revision = unquote(call.names["rev"]).removeprefix("refs/heads/")
        if "parentCommit" in header and not parent.id.startswith(header["parentCommit"]):
            if not call.flag("create_pr"):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            parent = call.store.resolve(repo, header["parentCommit"])
        files = dict(parent.files)
        for line in lines:
            apply(call, files, line["key"], line["value"])
        made = call.store.commit(repo, parent.id, header["summary"], header["description"], files)
        pull = next((p for p in repo.pulls if f"refs/pr/{p['num']}" == revision), None)
        if call.flag("create_pr"):
            pull = open_pull(repo, header["summary"], parent.id, made.id)
        elif pull:
            pull["head"] = made.id
        elif revision in repo.branches:
            repo.branches[revision] = made.id
        else:
            raise Refused(404, f"{revision} is no branch", "RevisionNotFound")
        call.store.save(repo)
    said = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{call.url(repo)}/commit/{made.id}",
    }
    if pull and call.flag("create_pr"):
        said["pullRequestUrl"] = f"{call.url(repo)}/discussions/{pull['num']}"
    return Answer(said)


def apply(call: Call, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One line of a commit, done to its tree."""
    path = value.get("path", "")
    if key != "header" and (not path or {"", "..", "."} & set(path.rstrip("/").split("/"))):
        raise Refused(400, f"not a path of a repository: {path!r}")
    if key == "file":
        files[path] = call.store.add(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = call.store.add_large(value["oid"])
        if call.corrupt:
            other = call.store.folder / "tmp" / uuid.uuid4().hex
            sha256 = call.store.write(other, flipped(blocks(call.store.content(value["oid"]))))
            other.replace(call.store.object(sha256))
            files[path] = call.store.add_large(sha256)
    elif key == "deletedFile":
        if path not in files:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        del files[path]
    elif key == "deletedFolder":
        gone = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    elif key != "header":
        raise Refused(400, f"this hub knows no {key!r} in a commit")


# --- routes: listings and downloads ---------------------------------------------------------------


def described(call: Call, path: str, file: File) -> dict[str, Any]:
    """A file in a listing."""

    def wrong(digits: str) -> str:
        return ("0" if digits[0] != "0" else "1") + digits[1:] if call.corrupt else digits

    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": file.size,
        "oid": wrong(file.oid),
    }
    if file.lfs:
        entry["lfs"] = {"oid": wrong(file.sha256), "size": file.size, "pointerSize": 134}
    if file.xet and call.hub.xet:
        entry["xetHash"] = file.xet
    return entry


def described_folder(files: dict[str, File], path: str) -> dict[str, Any]:
    inside = [f"{p}{f.oid}" for p, f in sorted(files.items()) if p.startswith(path + "/")]
    oid = hashlib.sha1("".join(inside).encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def folders(files: Iterable[str]) -> set[str]:
    return {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"}


def with_last_commits(
    call: Call, repo: Repository, commit: Commit, entries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Add to each file, if the caller wants it, the commit that last changed it."""
    history = list(call.store.history(repo, commit)) if call.flag("expand") else []
    for entry in entries if history else []:
        path, last = entry["path"], history[0]
        for older in history:
            if older.files.get(path) != commit.files.get(path):
                break
            last = older
        entry["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return entries


def tree(call: Call) -> Answer:
    repo = call.repo()
    commit = call.commit(repo)
    top = unquote(call.names["path"] or "").strip("/")
    prefix = f"{top}/" if top else ""
    known = folders(commit.files)
    if top and top not in known:
        raise Refused(
            404, f"{top} does not exist on {unquote(call.names['rev'])!r}", "EntryNotFound"
        )
    entries = [described(call, path, file) for path, file in commit.files.items()]
    entries += [described_folder(commit.files, path) for path in known]
    entries = [e for e in entries if e["path"].startswith(prefix)]
    if not call.flag("recursive"):
        entries = [e for e in entries if "/" not in e["path"].removeprefix(prefix)]
    entries.sort(key=lambda entry: entry["path"])
    return call.page(with_last_commits(call, repo, commit, entries))


def paths_info(call: Call) -> Answer:
    wish = parse_qs(b"".join(call.chunks).decode())
    call.query |= {"expand": wish.get("expand", [""])}
    repo = call.repo()
    commit = call.commit(repo)
    known, entries = folders(commit.files), []
    for path in wish.get("paths", []):
        if path in commit.files:
            entries.append(described(call, path, commit.files[path]))
        elif path in known:
            entries.append(described_folder(commit.files, path))
    return Answer(with_last_commits(call, repo, commit, entries))


def commits(call: Call) -> Answer:
    repo = call.repo()
    said = [
        {
            "id": c.id, "title": c.title, "message": c.message, "date": c.date,
            "authors": [{"user": USER}],
        }
        for c in call.store.history(repo, call.commit(repo))
    ]  # fmt: skip
    return call.page(said)


def resolve(call: Call) -> Answer:
    """A file: small ones at once, large ones by a redirect to the storage."""
    repo = call.repo()
    commit = call.commit(repo)
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(unquote(call.names["path"]))
    if file is None:
        missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Answer({"error": "Entry not found"}, 404, headers | missing)
    headers["ETag"] = f'"{file.oid}"'
    if not file.lfs:
        return Answer(call.store.content(file.sha256), headers=headers)
    headers |= {
        "X-Linked-Size": str(file.size),
        "X-Linked-ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Location": call.hub.signed(f"/objects/{file.sha256}"),
    }
    if file.xet and call.hub.xet:
        route = f"{call.hub.endpoint}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": file.xet, "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(b"Found. Redirecting", 302, headers)


def get_object(call: Call) -> Answer:
    must_be_signed(call)
    path = call.store.content(call.names["sha"])
    return Answer(
        path, headers={"ETag": f'"{path.name}"', "Content-Type": "application/octet-stream"}
    )


API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+)"
SHA = r"(?P<sha>[0-9a-f]+)"

Route = tuple[str, str, Callable[[Call], Answer]]
ROUTES: list[Route] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/repos/create", create_repo),
    ("DELETE", "/api/repos/delete", delete_repo),
    ("GET", API, info),
    ("GET", f"{API}/revision/{REV}", info),
    ("PUT", f"{API}/settings", settings),
    ("GET", f"{API}/refs", refs),
    ("POST", f"{API}/(?P<what>tag|branch)/{REV}", create_ref),
    ("DELETE", f"{API}/(?P<what>tag|branch)/{REV}", delete_ref),
    ("POST", f"{API}/discussions", create_discussion),
    ("GET", f"{API}/discussions", discussions),
    ("GET", rf"{API}/discussions/(?P<num>\d+)", discussion),
    ("POST", rf"{API}/discussions/(?P<num>\d+)/(?P<what>merge|status)", change_discussion),
    ("POST", f"{API}/preupload/{REV}", preupload),
    ("POST", f"{API}/commit/{REV}", make_commit),
    ("GET", f"{API}/xet-(?P<what>read|write)-token/{REV}", xet_token),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.*))?", tree),
    ("POST", f"{API}/paths-info/{REV}", paths_info),
    ("GET", f"{API}/commits/{REV}", commits),
    ("GET", "/api/(models|datasets)/[^/]+(/revision/[^/]+)?", no_such_repo),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/verify", lfs_verify),
    ("GET", f"{PAGE}/resolve/{REV}/(?P<path>.+)", resolve),
    ("GET", f"/objects/{SHA}", get_object),
    ("PUT", f"/objects/{SHA}", put_object),
    ("PUT", rf"/parts/{SHA}/(?P<num>\d+)", put_part),
    ("POST", f"/complete/{SHA}", complete),
    ("POST", f"/v1/xorbs/default/{SHA}", put_xorb),
    ("POST", "/v[12]/shards", put_shard),
    ("GET", f"/v1/chunks/[^/]+/{SHA}", known_chunk),
    ("GET", f"/v1/reconstructions/{SHA}", reconstruction),
    ("GET", f"/xorbs/{SHA}", get_xorb),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub", description="A Hub on this machine"
    )
    parser.add_argument("folder", type=Path, help="where its repositories are kept")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="take uploads by Xet, not by LFS")
    given = parser.parse_args()
    with serve(given.folder, given.xet, port=given.port) as hub:
        for name, value in hub.settings().items():
            print(f"export {name}={value}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
