"""A parcel of files in, the same files in a folder or at an fsspec URL out.

The manifest is written last: until then, the one that was there states what is published. On this
machine's disks a second publisher waits for the first; elsewhere the manifest is compared right
before it is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pipeline import AigiError
from pipeline.manifest import MANIFEST
from pipeline.outside import reached
from pipeline.release.changes import (
    BEFORE,
    RETRY,
    Change,
    File,
    How,
    Parcel,
    Published,
    There,
    changes,
    owned_by,
    published_before,
)
from pipeline.release.read_back import read_back
from pipeline.store import Store


class FolderTarget:
    """A folder, local or at an fsspec URL.

    Raises:
        AigiError: an option needs the Hub.
    """

    def __init__(self, to: str, how: How) -> None:
        if how.pull_request or how.revision is not None or how.public:
            raise AigiError(
                f"{to}: --pull-request, --revision and --public need a dataset on the Hub"
            )
        self.url, self.how = to, how
        self.target = Store(to)

    def takes(self, store: Store) -> None:
        """Files may be anywhere."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process publishes to this folder, and keep others waiting."""
        if not self.target.local or self.how.dry_run:
            yield
            return
        import fcntl

        folder = self.target.path()
        with reached(folder):
            os.makedirs(folder, exist_ok=True)
            at = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network disks cannot lock a folder
                try:
                    fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.how.say(f"{self.url}: another process publishes there; waiting for it")
                    fcntl.flock(at, fcntl.LOCK_EX)
            yield
        finally:
            os.close(at)

    def look(self, version: str | None) -> There:
        """What is published there: files that are, or could be taken for, a release's."""
        target = self.target
        before = self._manifest()
        owned = owned_by(before)
        paths = [f"{name}.parquet" for name in target.shards("")]
        paths += [*sorted(path for path in owned if not path.endswith(".parquet")), MANIFEST]
        files = {}
        for path in dict.fromkeys(paths):
            if (size := target.size(path)) is not None:
                files[path] = File(size, None)
        return There(self.url, files, before, target, exists=bool(files))

    def _manifest(self) -> dict[str, Any] | None:
        found = self.target.read_json(MANIFEST, remedy=BEFORE)
        if found is not None:
            published_before(found, self.target.path(MANIFEST))
            for record in found["files"]:
                self.target.expect(record["path"], record.get("bytes"), record["sha256"])
        return found

    def refuse_another_tag(self, version: str, found: list[Change], there: There) -> None:
        """A folder has no tags."""

    def compared(self, parcel: Parcel, there: There) -> There:
        """The same with the hashes of files that have the size of one of the parcel's."""
        files = parcel.files()
        found = dict(there.files)
        for path in files:
            if path not in found and (size := self.target.size(path)) is not None:
                found[path] = File(size, None)
        for path, other in found.items():
            # Elsewhere than on a disk, hashing means fetching: what stays there is not fetched.
            if path in parcel.kept and not self.target.local:
                continue
            if path in files and files[path].bytes == other.bytes:
                found[path] = File(other.bytes, self.target.sha256(path))
        return replace(there, files=found)

    def send(self, parcel: Parcel, there: There) -> Published:
        """Copy what is missing, the manifest last, and remove what goes.

        Raises:
            AigiError: a file differs after it was written, or somebody else published there.
        """
        found = changes(parcel, there)
        files = parcel.files()
        for number, change in enumerate(found, start=1):
            if change.what not in ("new", "changed"):
                continue
            if change.path == MANIFEST and self._manifest() != there.before:
                raise AigiError(
                    f"{self.url}: another release was published there in the meantime. {RETRY} "
                    "It is then compared with what is there."
                )
            self.how.say(f"{number}/{len(found)} {change.path}: {change.bytes / 1e6:,.1f} MB")
            store = parcel.store(change.path)
            with store.fs.open(store.path(change.path), "rb") as file:
                self.target.copy(file, change.path)
            if self.target.sha256(change.path) != files[change.path].sha256:
                raise AigiError(
                    f"{self.target.path(change.path)}: differs from what was written. Check the "
                    f"disk. {RETRY}"
                )
        for change in found:
            if change.what == "removed":
                self.target.remove(change.path)
        rows = read_back(self.target.path(), parcel.manifest) if self.target.local else {}
        return Published(self.url, None, None, rows)
