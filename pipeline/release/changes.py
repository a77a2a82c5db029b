"""A release here and what is published in, the changes between them out, or why none may be made.

Nothing that is published goes without a word: another dataset's name, a version that is not higher
and configs that would vanish are refused unless somebody asks for it, and every file that goes is
named.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import AigiError
from pipeline.manifest import MANIFEST, checked
from pipeline.store import Store
from pipeline.versions import higher, highest

Say = Callable[[str], None]
_NAMED = 8
"""Most configs that an error names."""

RETRY = "Run the same command again: it keeps what has arrived and sends the rest."


BEFORE = "Delete this file there, and publish again; the other files of that version stay there."


@dataclass(frozen=True)
class How:
    """How to publish: see `pipeline.release.publish.publish`."""

    dry_run: bool = False
    public: bool = False
    pull_request: bool = False
    revision: str | None = None
    replace: bool = False
    say: Say = lambda text: None


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


@dataclass(frozen=True)
class Parcel:
    """A release that is to be published, and where its files are.

    Attributes:
        manifest: of all of it.
        shards: the store of the parquet files that are here.
        documents: the store of all other files.
        kept: parquet files that are published already, and are not here.
    """

    manifest: Mapping[str, Any]
    shards: Store
    documents: Store
    kept: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: Store, manifest: Mapping[str, Any]) -> Parcel:
        """A release whose files are all in one folder."""
        return cls(manifest, store, store)

    def store(self, path: str) -> Store:
        """Where a file is."""
        return self.shards if path.endswith(".parquet") else self.documents

    def files(self) -> dict[str, File]:
        """Every file by its path, the manifest last."""
        return release_files(self.documents, self.manifest)


@dataclass(frozen=True)
class There:
    """What is published at one place, as it is now.

    Attributes:
        url: of the place, as the user names it.
        files: by path; of a folder, only those that could be a release's.
        before: the manifest; None: there is none.
        store: opens its files as they are now; None: there is nothing.
        tagged: versions that have a tag, which never changes.
        exists: the repository or folder is there.
        head: the commit that this is; empty for a folder.
    """

    url: str
    files: Mapping[str, File] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    store: Store | None = None
    tagged: tuple[str, ...] = ()
    exists: bool = True
    head: str = ""


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


def equal_there(parcel: Parcel, path: str, here: File, there: File) -> bool:
    """Whether a file is published as it is here, or as the manifest of both states it."""
    if here.bytes != there.bytes:
        return False
    if there.sha256 is not None:
        return here.sha256 == there.sha256
    if path in parcel.kept:
        return True  # no hash is known there, and the file is not here
    return there.blob is not None and _blob(parcel.store(path), path) == there.blob


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


def changes(parcel: Parcel, there: There) -> list[Change]:
    """What publishing would do to each file.

    Files of the published manifest that this release lacks are removed, and so are files that the
    card's patterns would take for shards. Other files there stay.

    Raises:
        AigiError: a file that is to stay there is not what its manifest states.
    """
    files = parcel.files()
    found = []
    for path in sorted(parcel.kept):
        other = there.files.get(path)
        if other is None or not equal_there(parcel, path, files[path], other):
            raise AigiError(
                f"{there.url}: {path}: {'missing' if other is None else 'not what was published'}, "
                "so nothing can be added to this release. Publish the release that it is of again, "
                "or replace its source with --source."
            )
    for path, file in files.items():
        if path not in there.files:
            what = "new"
        else:
            what = "same" if equal_there(parcel, path, file, there.files[path]) else "changed"
        found.append(Change(what, path, file.bytes))
    owned = owned_by(there.before)
    shards = {(r["config"], r["split"]) for r in parcel.manifest["files"]}
    for path, other in there.files.items():
        matched = re.fullmatch(r"([^/]+)/([a-z]+)-[^/]*\.parquet", path)
        stale = matched is not None and (matched[1], matched[2]) in shards
        if path not in files and (path in owned or stale):
            found.append(Change("removed", path, other.bytes))
    return found


# --- What must not happen unasked ----------------------------------------------------------------


def configs(manifest: Mapping[str, Any]) -> list[str]:
    """Configs that a manifest has files of, in its order."""
    return list(dict.fromkeys(record["config"] for record in manifest["files"]))


def _vanishing(manifest: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    left = set(configs(before)) - set(configs(manifest))
    files: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for record in before["files"]:
        files[record["config"]] += 1
        rows[record["config"]] += record.get("rows", 0)
    found = [
        f"{name} ({rows[name]:,} images in {files[name]:,} files)"
        for name in configs(before)
        if name in left
    ]
    more = len(found) - _NAMED
    return [*found[:_NAMED], *([f"{more:,} more"] if more > 0 else [])]


def objections(manifest: Mapping[str, Any], there: There) -> list[str]:
    """Why a release must not be published over what is there, unless somebody asks for it."""
    before = there.before
    if before is not None and before == manifest:
        return []  # it is what is being completed
    found = []
    name, version = manifest["name"], manifest["version"]
    known = list(there.tagged)
    if before is not None:
        if (other := before.get("name")) not in (None, name):
            found.append(f"it is the dataset {other}, and this is {name}: give another --to for it")
        known.append(str(before.get("version", "")))
    newest = highest(known)
    if newest is not None and version not in there.tagged and not higher(version, newest):
        same = "another release of version" if version == newest else "version"
        found.append(
            f"{same} {newest} is published, and {version} is not higher: raise release.version, "
            "and run the workflow again (it only writes card and manifest anew)"
        )
    if before is not None and (gone := _vanishing(manifest, before)):
        what = "a config of it" if len(gone) == 1 else "configs of it"
        mine = ", ".join(configs(manifest)[:_NAMED])
        found.append(
            f"{what} would vanish: {', '.join(gone)}: to add or replace single ones, give "
            f"--source NAME (this release has {mine})"
        )
    return found


def removals(found: Iterable[Change], how: How, asked: bool) -> None:
    """Tell every file that goes.

    Args:
        asked: it will be done.
    """
    gone = [change for change in found if change.what == "removed"]
    for change in gone:
        verb = "removes" if asked else "would remove"
        how.say(f"{verb} {change.path} ({change.bytes / 1e6:,.1f} MB)")
