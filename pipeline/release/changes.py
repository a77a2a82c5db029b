"""A release here and what is published in, the changes between them out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.manifest import MANIFEST, checked
from pipeline.store import Store

Say = Callable[[str], None]


RETRY = "Run the same command again: it keeps what has arrived and sends the rest."


BEFORE = "Delete this file there, and publish again; the other files of that version stay there."


@dataclass(frozen=True)
class File:
    """A file of a release, here or published; small files on the Hub have a blob id, no sha256."""

    bytes: int
    sha256: str | None
    blob: str | None = None


@dataclass(frozen=True)
class Change:
    """What publishing does to one file: `new`, `changed`, `same` or `removed`."""

    what: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Published:
    """Where a release is now.

    Attributes:
        url: what `aigi verify` and `load` take.
        revision: tag, branch or pull request; None for a folder.
        page: address of the pull request, if one was opened.
        rows: number of rows read back, by `(config, split)`.
    """

    url: str
    revision: str | None
    page: str | None
    rows: dict[tuple[str, str], int]


def release_files(store: Store, manifest: Mapping[str, Any]) -> dict[str, File]:
    """Every file of a release by its path, the manifest last."""
    files = {r["path"]: File(r["bytes"], r["sha256"]) for r in manifest["files"]}
    for record in [*manifest["documents"], {"path": MANIFEST}]:
        path = record["path"]
        size = record.get("bytes") or int(store.fs.info(store.path(path))["size"])
        files[path] = File(size, record.get("sha256") or store.sha256(path))
    return files


def _blob(store: Store, path: str) -> str:
    """The name that git gives to a file's content."""
    data = store.fs.cat_file(store.path(path))
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def equal_there(store: Store, path: str, here: File, there: File) -> bool:
    if here.bytes != there.bytes:
        return False
    if there.sha256 is not None:
        return here.sha256 == there.sha256
    return there.blob is not None and _blob(store, path) == there.blob


def published_before(found: dict[str, Any], where: str) -> dict[str, Any]:
    """The manifest that is there already.

    Raises:
        AigiError: it is damaged, so that nobody knows which files are the release's.
    """
    return checked(found, where, ("files", "documents"), BEFORE)


def owned_by(before: Mapping[str, Any] | None) -> set[str]:
    """Files that a manifest lists."""
    records = [] if before is None else [*before["files"], *before["documents"]]
    return {record["path"] for record in records}


def changes(
    store: Store,
    manifest: Mapping[str, Any],
    there: Mapping[str, File],
    before: Mapping[str, Any] | None,
) -> list[Change]:
    """What publishing would do to each file.

    Args:
        there: the remote files.
        before: the remote manifest. Files of it that this release lacks are removed, and so are
            files that the card's patterns would take for shards. Other remote files stay.
    """
    files = release_files(store, manifest)
    found = []
    for path, file in files.items():
        if path not in there:
            what = "new"
        else:
            what = "same" if equal_there(store, path, file, there[path]) else "changed"
        found.append(Change(what, path, file.bytes))
    owned = owned_by(before)
    shards = {(r["config"], r["split"]) for r in manifest["files"]}
    for path, other in there.items():
        matched = re.fullmatch(r"([^/]+)/([a-z]+)-[^/]*\.parquet", path)
        stale = matched is not None and (matched[1], matched[2]) in shards
        if path not in files and (path in owned or stale):
            found.append(Change("removed", path, other.bytes))
    return found
