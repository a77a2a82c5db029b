"""A release in, the same files on the Hub, in a folder or at an fsspec URL out (`aigi publish`).

A dataset on the Hub gets all files, then is compared with the manifest, then tagged `vVERSION`: a
tag always holds a whole release, whatever was cut off before. The upload itself (streams, batches,
retries, skipping what is there) is done by huggingface_hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import AigiError
from pipeline.files import scratch
from pipeline.manifest import ENTRIES, open_release
from pipeline.release.changes import (
    Change,
    How,
    Parcel,
    Published,
    Say,
    There,
    changes,
    objections,
    removals,
)
from pipeline.release.hub import HubTarget
from pipeline.release.joined import Side, joined, sides
from pipeline.release.read_back import check_here
from pipeline.release.to_folder import FolderTarget
from pipeline.store import Store
from pipeline.versions import order, partials
from pipeline.versions import partial as partial_version


@dataclass(frozen=True)
class Asked:
    """Which part of a release, and as which version."""

    sources: Sequence[str] | None = None
    version: str | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.partial and (self.sources is None or self.version is not None):
            raise AigiError("--partial numbers its versions itself: leave out --version")
        if self.version is not None:
            if self.sources is None:
                raise AigiError(
                    "--version is for --source alone: the version of a whole release is the "
                    "workflow's release.version"
                )
            if order(self.version) is None:
                raise AigiError(f"--version {self.version}: expected a version, such as 1.1.0")


def _target(to: str, how: How) -> HubTarget | FolderTarget:
    """Where to publish.

    Raises:
        AigiError: it may be meant for the Hub, or options do not fit it.
    """
    if to.startswith("hf://"):
        return HubTarget(to, how)
    named = re.fullmatch(r"[\w.-]+/[\w.-]+/?", to) is not None and not to.startswith(".")
    if named and not os.path.isdir(os.path.dirname(to.rstrip("/"))):
        name = to.rstrip("/")
        raise AigiError(
            f"{to}: no such folder. Is hf://datasets/{name} meant? Then give that; for a new "
            f"folder on this machine, ./{name}"
        )
    return FolderTarget(to, how)


def _parcel(
    store: Store, manifest: Mapping[str, Any], asked: Asked, there: There, how: How, folder: str
) -> Parcel:
    """What is to be published.

    Args:
        folder: an empty one, for documents that are derived.
    """
    names, version = asked.sources, asked.version or manifest["version"]
    if names is None:
        return Parcel.of(store, manifest)
    found = sides(store, manifest, names, there)
    if asked.partial:
        return joined(found, _partial(version, found, there), there, how, folder)
    if (
        version == manifest["version"]
        and set(found[-1].sources) == set(manifest["specification"]["sources"])
        and not any(side.sources for side in found[:-1])
    ):
        return Parcel.of(store, manifest)  # all that there will be is this release
    return joined(found, version, there, how, folder)


def _partial(version: str, found: Sequence[Side], there: There) -> str:
    """The partial version of a version: the one that has these files already, or the next."""
    if "-" in version:
        raise AigiError(
            f"release.version: {version} is a pre-release, and --partial makes its own of a "
            "version: give it one without a dash"
        )
    before = there.before or {}
    last = str(before.get("version", ""))
    numbers = partials(version, [*there.tagged, last])
    mine = {file["path"]: file["sha256"] for side in found for file in side.files}
    if partials(version, [last]) and mine == {f["path"]: f["sha256"] for f in before["files"]}:
        return last
    return partial_version(version, (numbers or [0])[-1] + 1)


def publish(
    run: str,
    to: str,
    *,
    dry_run: bool = False,
    public: bool = False,
    pull_request: bool = False,
    revision: str | None = None,
    replace: bool = False,
    sources: Sequence[str] | None = None,
    version: str | None = None,
    partial: bool = False,
    say: Say = lambda text: None,
) -> tuple[list[Change], Published | None]:
    """Publish a release.

    Args:
        run: run directory or release folder.
        to: `hf://datasets/ORG/NAME`, a folder, or an fsspec URL.
        dry_run: only list what would change.
        public: create a public repository where there is none; default: a private one.
        pull_request: on the Hub, open a pull request instead of committing.
        revision: on the Hub, an existing branch or `refs/pr/N` to commit to; default: main. Only
            main is tagged.
        replace: also over another dataset, over a version that is as high or higher, and where
            configs vanish. A tag is never changed.
        sources: add or replace these alone, beside what is published; None: the release is all
            that will be there.
        version: of what is published then; None: that of the release. Only with `sources`.
        partial: these sources are complete, and others are still being made: the version is a
            pre-release of that of the release, `1.1.0-partial.1`, which it supersedes later.
        say: is called with a line for each step, and for each file that is removed.

    Returns:
        What is done to each file, and where the release is now (None for a dry run).

    Raises:
        AigiError: no token, no right to write, the version is already published with other
            content, what is there would be lost without `replace`, files here or there that
            differ from the manifest, somebody else published at the same time, or a lost
            connection. Each message says what to do.
    """
    how = How(dry_run, public, pull_request, revision, replace, say)
    target = _target(to, how)
    asked = Asked(sources, version, partial)
    store, manifest = open_release(run, ENTRIES)
    with target.alone(), scratch("publish") as folder:
        there = target.look(None if partial else asked.version or manifest["version"])
        parcel = _parcel(store, manifest, asked, there, how, folder)
        there = target.compared(parcel, there)
        found = changes(parcel, there)
        target.refuse_another_tag(parcel.manifest["version"], found, there)
        wrong = [] if replace else objections(parcel.manifest, there)
        removals(found, how, asked=not (dry_run or wrong))
        if wrong:
            raise AigiError(
                f"{there.url}: nothing was sent: {'; '.join(wrong)}. To do it all the same: "
                "--replace."
            )
        if dry_run:
            return found, None
        _check_here(parcel, store, manifest)
        return found, target.send(parcel, there)


def _check_here(parcel: Parcel, store: Store, manifest: Mapping[str, Any]) -> None:
    """Refuse to send a file that is not what its manifest states."""
    if parcel.documents is store:
        check_here(store, manifest)
        return
    mine = [file for file in parcel.manifest["files"] if file["path"] not in parcel.kept]
    check_here(store, {**manifest, "files": mine}, others=True)
