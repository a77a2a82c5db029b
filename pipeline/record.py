"""What a stage has made and from what: one record a table, `RUN/_stages/<table>.json`."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.files import alive
from pipeline.gate import Checked, Number


class Written(Checked):
    """One file as it was written. Records of earlier versions do not have all of it.

    Attributes:
        bytes: its size; None: not recorded.
        sha256: of its content, in hex; empty: not recorded.
        footer: sha256 of the parquet footer, which is checked where only some columns are read.
        rows: of a table.
        stamp: what the file system tells of its last change; while it and the size are the same,
            the content is not hashed again.
        made_from: digest of what it was made from; None: not recorded.
        text: a copy of a small file that cannot be made again.
        moved: of a shard of images: the shard of the release that has those which this one lacks.
        made_as: sha256 of the shard with all its images, which is its identity; empty: it has them.
        until_bytes, until_sha256: what the file may still be, until it is replaced by what it is.
    """

    bytes: Number | None = None
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    footer: str = ""
    rows: Number = 0
    stamp: str = ""
    made_from: str | None = None
    text: str | None = None
    moved: str = ""
    made_as: str = Field("", pattern="^([0-9a-f]{64})?$")
    until_bytes: Number | None = None
    until_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")

    def of_size(self, size: int | None) -> Written:
        """The one of the two states that a file of this size may be in."""
        if size is None or size != self.until_bytes or size == self.bytes:
            return self
        was = {"bytes": size, "sha256": self.until_sha256, "footer": "", "stamp": ""}
        return self.model_copy(update=was)


class Driver(Checked):
    """The process that runs a stage.

    Attributes:
        host: name of its machine.
        started: seconds since 1970; another process may have its number later.
    """

    host: str
    pid: Number
    started: float = Field(ge=0)

    @classmethod
    def here(cls) -> Driver:
        """This process."""
        import psutil

        me = psutil.Process()
        return cls(host=socket.gethostname(), pid=me.pid, started=round(me.create_time(), 2))

    def gone(self) -> bool | None:
        """Whether it has ended; None: it is on another machine, which cannot be asked."""
        import psutil

        if self.host != socket.gethostname():
            return None
        if not alive(self.pid):
            return True
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK)
        except psutil.Error:
            return True


_CLOCK = 5.0  # seconds by which a machine's clock may be set while a process runs


class Record(Checked):
    """The record of a stage.

    Attributes:
        inputs: fingerprints of the tables that it reads.
        expected: shards or files that it makes in all.
        failed: error texts of shards that could not be made.
        shards: its shards, by name.
        files: of a stage that makes files, these, by their paths below the run.
        beside: files that a stage wrote besides its table.
        identity: what `made_from` was computed with: the fingerprint that the table was begun with,
            though inputs, or settings for what is still missing, changed since; empty: its own.
        made_from: digest of all that a table that is built as a whole was made from.
        driver: the process that runs it; None: none does, or an earlier version of aigi.
        seen: the same in records of earlier versions: names of input shards and the state.
    """

    table: str
    version: int
    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    fingerprint: str
    status: Literal["running", "stopped", "failed", "done"] = "running"
    expected: Number | None = None
    failed: dict[str, str] = Field(default_factory=dict)
    seconds: float = Field(0.0, ge=0)
    shards: dict[str, Written] = Field(default_factory=dict)
    files: dict[str, Written] = Field(default_factory=dict)
    beside: dict[str, Written] = Field(default_factory=dict)
    identity: str = ""
    made_from: str | None = None
    driver: Driver | None = None
    seen: str | None = None

    @property
    def made_as(self) -> str:
        """What `made_from` of the table and its shards is computed with."""
        return self.identity or self.fingerprint

    @property
    def empty(self) -> bool:
        """Whether it describes a try that made nothing."""
        return not self.shards and not self.files

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, data: Any) -> Any:
        """Take up a record of a version that kept hashes of some shards, and sizes of others."""
        if not isinstance(data, dict):
            return data
        found = dict(data)
        hashes, sizes = found.pop("sha256", None), found.pop("sizes", None)
        if "shards" not in found and isinstance(hashes or sizes, dict):
            found["shards"] = (
                {name: {"sha256": sha256} for name, sha256 in hashes.items()}
                if hashes
                else {name: {"bytes": size} for name, size in sizes.items()}
            )
        files = found.get("files")
        if isinstance(files, dict):
            found["files"] = {
                path: {"bytes": file} if isinstance(file, int) else file
                for path, file in files.items()
            }
        return found


def digest(parts: Iterable[tuple[str, str, str]], state: Any = None, fingerprint: str = "") -> str:
    """sha256, in hex, of what a shard or a table is made from.

    Args:
        parts: table, name and sha256 of every shard that is read.
        state: what else decides it, as JSON values.
        fingerprint: of the stage that makes it.
    """
    text = json.dumps([fingerprint, *sorted(parts), state], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
