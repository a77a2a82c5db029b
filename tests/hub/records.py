"""What a repository holds and what a refusal says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


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
    tag_messages: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    """An error answer; `code` is what clients read from X-Error-Code to choose their exception."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
