"""A folder, local or at a URL: files in and out, each written whole or not at all.

No name leads out of it. Local files are written to a temporary name, flushed to disk and renamed;
on object stores the one upload call makes a file visible at its end.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.files import replaced, scratch, sweep
from pipeline.gate import parse
from pipeline.outside import created, file_system, reached
from pipeline.shown import redacted

R = TypeVar("R")


class DiskFull(MachineFault):
    """No space left where a shard was being written; the finished shards are kept."""


@contextmanager
def _space(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{where}: no space left on the device. Finished shards are kept; "
                "free some space and run the same command again."
            ) from error
        raise


def stamp_of(info: Mapping[str, Any]) -> str:
    """What a file system tells of a file's last change; empty: nothing."""
    for name in ("ETag", "mtime", "LastModified", "last_modified", "created"):
        if info.get(name):
            return str(info[name])
    return ""


def as_json(value: object, ordered: bool = False) -> bytes:
    """JSON as it is written: keys sorted, UTF-8, a line break at the end, no known secret.

    Args:
        ordered: keys stay in their own order, which is data.
    """
    text = json.dumps(value, indent=1, sort_keys=not ordered, ensure_ascii=False)
    return redacted(text, queries=False).encode() + b"\n"


_DRIVE = re.compile(r"[A-Za-z]:")
_NAME_BYTES = 255 - len(".parquet")  # of a file's name, with the ending that a shard's may get


def _stays_below(name: str) -> bool:
    """Whether a name, with `/` between folders, can only mean a file below the folder it is in."""
    try:
        short = all(0 < len(part.encode()) <= _NAME_BYTES for part in name.split("/"))
    except UnicodeEncodeError:
        return False
    return (
        short
        and not _DRIVE.match(name)
        and "\\" not in name
        and all(part not in (".", "..") for part in name.split("/"))
        and all(ord(character) >= 32 for character in name)
    )


class Folder:
    """A folder on local disk or at any fsspec URL, for example `s3://bucket/runs/a`.

    Args:
        url: local path or fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.fs, self.root = file_system(url)
        self.url = url
        self.local = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def path(self, *parts: str) -> str:
        """Path of a file or folder below the root, for `self.fs`; "" as the first part is the root.

        Raises:
            AigiError: a part leads out of the root, or is no name that every store can have.
        """
        if parts[:1] == ("",):
            parts = parts[1:]
        for part in parts:
            if not _stays_below(part):
                raise AigiError(
                    f"{self.url}: {part!r} is not the name of a file in this folder. Names have "
                    "no empty part, no .., no backslash and no control character. If it is from "
                    "a file that you were given, get that file again; else choose another name."
                )
        return posixpath.join(self.root, *parts)

    def _inside(self, path: str) -> None:
        """Refuse to change a file behind a link to a folder elsewhere.

        Files may be links, as in the cache of the Hub: they are replaced, never written through.
        """
        if not self.local:
            return
        root, folder = os.path.realpath(self.root), os.path.realpath(os.path.dirname(path))
        if path != self.root and os.path.commonpath([root, folder]) != root:
            raise AigiError(
                f"{path}: a link leads out of {self.root} to {folder}, where nothing is written or "
                "removed. Put a folder in the place of the link, or use a run directory there."
            )

    def _changes(self, path: str) -> None:
        """A file is about to be written or removed."""

    def size(self, *parts: str) -> int | None:
        """Bytes of a file; None without it."""
        try:
            return int(self.fs.info(self.path(*parts))["size"])
        except FileNotFoundError:
            return None

    def stat(self, *parts: str) -> tuple[int, str] | None:
        """Bytes of a file, and when it changed; None without it."""
        try:
            info = self.fs.info(self.path(*parts))
        except FileNotFoundError:
            return None
        return int(info["size"]), stamp_of(info)

    def sha256(self, *parts: str) -> str:
        """sha256 of a file, in hex; for large files on the Hub, as the Hub states it."""
        digest = hashlib.sha256()
        stated = getattr(self.fs.info(self.path(*parts)).get("lfs"), "sha256", None)
        if stated is not None:
            return str(stated)
        with self.fs.open(self.path(*parts), "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def read_json(
        self, *parts: str, remedy: str = "Delete it, and run the workflow again."
    ) -> dict[str, Any] | None:
        """Read a JSON object; None where the file does not exist.

        Args:
            remedy: what to do where it is damaged: a sentence.

        Raises:
            AigiError: it is damaged, or no object.
        """
        try:
            data = self.fs.cat_file(self.path(*parts))
        except FileNotFoundError:
            return None
        return parse(data, self.path(*parts), remedy)

    def read_csv(self, *parts: str) -> list[dict[str, str]]:
        """Read the rows of a CSV file with a header; none where it does not exist.

        A last line that is still being written, without its line break, is left out.
        """
        try:
            text = self.fs.cat_file(self.path(*parts)).decode()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline="")))

    def write_bytes(self, data: bytes | memoryview, *parts: str) -> None:
        """Write a small file whole or not at all."""
        self._replace(self.path(*parts), lambda file: file.write(data))

    def write_json(self, value: object, *parts: str) -> None:
        """Write a JSON object, keys sorted, whole or not at all, and without known secrets.

        Who records a location gives its `public_url`; this is the net below.
        """
        self.write_bytes(as_json(value), *parts)

    def copy(self, source: IO[bytes], *parts: str) -> None:
        """Write all that is left of an open file, block by block, whole or not at all."""

        def fill(file: IO[bytes]) -> None:
            while block := source.read(1 << 22):
                file.write(block)

        self._replace(self.path(*parts), fill)

    def remove(self, *parts: str) -> None:
        """Remove a file or folder; one that does not exist is no error."""
        path = self.path(*parts)
        self._inside(path)
        self._changes(path)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def _replace(self, path: str, fill: Any) -> Any:
        """Let `fill` write a temporary file, then make it visible as `path` in one step."""
        self._inside(path)
        self._changes(path)
        with _space(path):
            if not self.local:
                with scratch("shard") as folder:
                    name = os.path.join(folder, "shard")
                    with open(name, "w+b") as file:
                        result = fill(file)
                    with reached(self.url):
                        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
                        self.fs.put_file(name, path)
                return result
            with reached(path):
                os.makedirs(posixpath.dirname(path), exist_ok=True)
            with replaced(path) as name, created(name) as file:
                result = fill(file)
            return result

    def sweep(self, table: str = "") -> None:
        """Remove what killed processes left in a table, or in the whole run.

        These are temporary files on this machine's disks, and unfinished uploads on S3.
        """
        if self.local:
            sweep(self.path(table))
        else:
            self.fs.sweep_uploads(self.path(table))
