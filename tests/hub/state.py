"""A running hub as its test sees it: where it is, what it was asked, what it holds."""

from __future__ import annotations

import hmac
import os
import socket
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.hub.faults import Faults
from tests.hub.records import Commit, Repository
from tests.hub.store import Store

USER = "tester"  # whom both tokens belong to
FOREIGN = "elsewhere"  # the one namespace where this user may not write
TOKENS = {"hf_write_token_of_the_test_hub": "write", "hf_read_token_of_the_test_hub": "read"}


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
