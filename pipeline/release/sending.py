"""Files of a release in; additions to a commit on the Hub, whose large files are there, out.

Files of this machine are sent from where they are, with the commit. Those of an object store come
through a folder that has a few of them at a time: they are compared with the manifest on the way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.files import scratch
from pipeline.outside import reached
from pipeline.release.changes import RETRY, Change, Parcel, Say
from pipeline.threads import ahead, workers

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

ONE_COMMIT = 500
"""Most parquet files of one commit: for thousands, the Hub may take longer than it answers."""
ONE_COMMIT_BYTES = 16 << 30
"""The same of files that are not on this machine. What a killed process has sent is not sent again,
but those of its last commit are fetched again to be compared."""
_IN_MEMORY = 8 << 20
"""Smaller files of an object store are held in memory, as some are part of the commit itself."""
_AHEAD = 2  # files that are fetched while one is sent


def first_commit(parcel: Parcel, moved: Sequence[Change]) -> list[Change]:
    """The changes that the next commit has: some parquet files, or all that is left.

    Documents come with the last files, and removals too, so that a manifest never lists a file that
    is not there.
    """
    shards = [one for one in moved if one.what != "removed" and one.path.endswith(".parquet")]
    size = 0
    for number, change in enumerate(shards):
        size += 0 if parcel.store(change.path).local else change.bytes
        if number == ONE_COMMIT or (number and size > ONE_COMMIT_BYTES):
            return shards[:number]
    return list(moved)


class Sending:
    """Makes additions of files, each once.

    Args:
        revision: branch or pull request that they are for; None: of a new pull request.
        say: is called with a line for each file that is fetched.
    """

    def __init__(self, api: HfApi, repo: str, parcel: Parcel, say: Say) -> None:
        self.api, self.repo, self.parcel, self.say = api, repo, parcel, say
        self._ready: dict[str, CommitOperationAdd] = {}

    def additions(
        self, paths: Sequence[str], revision: str | None, left: int
    ) -> list[CommitOperationAdd]:
        """Additions for a commit, in order.

        Args:
            left: files that are to be sent after these.

        Raises:
            AigiError: a file is not what the manifest states, or cannot be read.
            OSError: as the client of the Hub.
        """
        from huggingface_hub import CommitOperationAdd

        far = [path for path in paths if not self.parcel.store(path).local]
        self._fetch([path for path in far if path not in self._ready], revision, left)
        return [
            self._ready[path]
            if path in self._ready
            else CommitOperationAdd(path, self.parcel.store(path).path(path))
            for path in paths
        ]

    def committed(self) -> None:
        """Forget what a commit now has."""
        self._ready.clear()

    def _fetch(self, paths: Sequence[str], revision: str | None, left: int) -> None:
        """Send files of an object store, all but those that are part of a commit."""
        from huggingface_hub import CommitOperationAdd

        if not paths:
            return
        files = self.parcel.files()
        with scratch("upload") as folder, workers(_AHEAD, "fetch") as pool:

            def fetched(path: str) -> str | bytes:
                file = files[path]
                return _fetched(self.parcel, path, file.bytes, file.sha256, folder)

            for number, (path, got) in enumerate(
                zip(paths, ahead(paths, fetched, pool, _AHEAD), strict=True), start=1
            ):
                self.say(f"{number}/{len(paths) + left} {path}: {files[path].bytes / 1e6:,.1f} MB")
                one = CommitOperationAdd(path, got)
                self.api.preupload_lfs_files(
                    self.repo,
                    [one],
                    repo_type="dataset",
                    revision=revision,
                    create_pr=revision is None,
                )
                if isinstance(got, str):
                    os.remove(got)
                    if one.path_or_fileobj == got:  # it is not let go of, so it was not sent
                        raise AigiError(
                            f"{path}: the dataset's .gitattributes or .gitignore keeps the Hub "
                            "from storing it as a large file. Add the line `*.parquet filter=lfs "
                            "diff=lfs merge=lfs -text` to .gitattributes there."
                        )
                self._ready[path] = one


def _fetched(parcel: Parcel, path: str, size: int, sha256: str | None, folder: str) -> str | bytes:
    """A file of an object store: its bytes if it is small, else where it is on this machine now.

    Raises:
        AigiError: it is missing, cannot be read, or is not what the manifest states.
    """
    store = parcel.store(path)
    place = store.path(path)
    to = os.path.join(folder, hashlib.sha256(path.encode()).hexdigest())
    digest, got = hashlib.sha256(), 0
    small = bytearray()
    with reached(place), store.fs.open(place, "rb") as file, open(to, "wb") as copy:
        while got <= size and (block := file.read(1 << 22)):
            digest.update(block)
            got += len(block)
            if size <= _IN_MEMORY:
                small += block
            else:
                copy.write(block)
    if got != size or digest.hexdigest() != sha256:
        raise AigiError(
            f"{place}: not what the manifest states, so it was not published. "
            f"{store.remedy} {RETRY}"
        )
    if size > _IN_MEMORY:
        return to
    os.remove(to)
    return bytes(small)
