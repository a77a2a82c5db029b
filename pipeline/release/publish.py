"""A release in, the same files on the Hub, in a folder or at an fsspec URL out (`aigi publish`).

A dataset on the Hub gets all files, then is compared with the manifest, then tagged `vVERSION`: a
tag always holds a whole release, whatever was cut off before. The upload itself (streams, batches,
retries, skipping what is there) is done by huggingface_hub.
"""

from __future__ import annotations

import os
import re

from pipeline import AigiError
from pipeline.manifest import ENTRIES, open_release
from pipeline.release.changes import (
    Change,
    How,
    Parcel,
    Published,
    Say,
    changes,
    objections,
    removals,
)
from pipeline.release.hub import HubTarget
from pipeline.release.read_back import check_here
from pipeline.release.to_folder import FolderTarget


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


def publish(
    run: str,
    to: str,
    *,
    dry_run: bool = False,
    public: bool = False,
    pull_request: bool = False,
    revision: str | None = None,
    replace: bool = False,
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
    store, manifest = open_release(run, ENTRIES)
    target.takes(store)
    with target.alone():
        there = target.look(manifest["version"])
        parcel = Parcel.of(store, manifest)
        there = target.compared(parcel, there)
        found = changes(parcel, there)
        target.refuse_another_tag(manifest["version"], found, there)
        wrong = [] if replace else objections(manifest, there)
        removals(found, how, asked=not (dry_run or wrong))
        if wrong:
            lines = "".join(f"\n  {line}" for line in wrong)
            raise AigiError(
                f"{there.url}: nothing was sent:{lines}\nTo do it all the same: --replace."
            )
        if dry_run:
            return found, None
        check_here(store, manifest)
        return found, target.send(parcel, there)
