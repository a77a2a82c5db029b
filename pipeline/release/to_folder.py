"""A parcel of files in, the same files in a folder or at an fsspec URL out.

Documents arrive beside those that are there, in a folder of their own. Once its manifest is there,
all of it is: then they are put in their place, by the next publisher if this one is killed. On this
machine's disks a second publisher waits for the first; elsewhere the manifest that is there is
compared right before that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from pipeline import AigiError
from pipeline.manifest import MANIFEST, checked
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

NEXT = ".aigi-next"
"""Folder of documents that have arrived, and are not yet in their place."""
REMOVED = "removed.json"


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
        self._finish()
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
        moved = [change for change in found if change.what in ("new", "changed")]
        documents = [change.path for change in moved if not change.path.endswith(".parquet")]
        for number, change in enumerate(moved, start=1):
            if change.path in documents[:1] and self._manifest() != there.before:
                raise AigiError(
                    f"{self.url}: another release was published there in the meantime. {RETRY} "
                    "It is then compared with what is there."
                )
            self.how.say(f"{number}/{len(moved)} {change.path}: {change.bytes / 1e6:,.1f} MB")
            store = parcel.store(change.path)
            place = (NEXT, change.path) if change.path in documents else (change.path,)
            if change.path == MANIFEST:
                gone = [one.path for one in found if one.what == "removed"]
                self.target.write_json({"removed": gone}, NEXT, REMOVED)
            with store.fs.open(store.path(change.path), "rb") as file:
                self._copied(file, parcel.files()[change.path].sha256, *place)
        if documents:
            self._put_forward()
        for change in found if not documents else ():
            if change.what == "removed":
                self.target.remove(change.path)
        rows = read_back(self.target.path(), parcel.manifest) if self.target.local else {}
        return Published(self.url, None, None, rows)

    def _copied(self, file: IO[bytes], sha256: str | None, *place: str) -> None:
        self.target.copy(file, *place)
        if self.target.sha256(*place) != sha256:
            raise AigiError(
                f"{self.target.path(*place)}: differs from what was written. Check the disk. "
                f"{RETRY}"
            )

    def _put_forward(self) -> None:
        """Put the documents that are complete below NEXT in their place: again, if it was cut."""
        manifest = self.target.read_json(NEXT, MANIFEST, remedy=BEFORE)
        if manifest is None:
            return
        checked(manifest, self.target.path(NEXT, MANIFEST), ("files", "documents"), BEFORE)
        for path in [*(record["path"] for record in manifest["documents"]), MANIFEST]:
            if self.target.size(NEXT, path) is None:
                continue  # it was there already, as it is
            sha256 = self.target.sha256(NEXT, path)
            with self.target.fs.open(self.target.path(NEXT, path), "rb") as file:
                self._copied(file, sha256, path)
        owned = {record["path"] for record in (*manifest["files"], *manifest["documents"])}
        gone = self.target.read_json(NEXT, REMOVED, remedy=BEFORE) or {}
        for path in gone.get("removed", ()):
            if path not in owned and path != MANIFEST:
                self.target.remove(path)
        self.target.remove(NEXT)

    def _finish(self) -> None:
        """Finish what was cut off after all of it had arrived."""
        if self.target.size(NEXT, MANIFEST) is None:
            return
        if self.how.dry_run:
            raise AigiError(
                f"{self.url}: a publication was cut off there, and this is only a dry run. Any "
                "other aigi publish finishes that one first."
            )
        self.how.say(f"{self.url}: finishes a publication that was cut off there")
        self._put_forward()
