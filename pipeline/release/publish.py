"""A release in, the same files on the Hub, in a folder or at an fsspec URL out (`aigi publish`).

A dataset on the Hub gets all files in one or more commits, then is compared with the manifest,
then tagged `vVERSION`: a tag always holds a whole release, whatever was cut off before. The upload
itself (streams, batches, retries, skipping what is there) is done by huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import AigiError
from pipeline.manifest import ENTRIES, MANIFEST, open_release
from pipeline.release.changes import (
    BEFORE,
    RETRY,
    Change,
    File,
    Published,
    Say,
    changes,
    owned_by,
    published_before,
    release_files,
)
from pipeline.release.hub import to_hub
from pipeline.release.read_back import check_here, read_back
from pipeline.store import Store

# --- a folder or an fsspec URL -----------------------------------------------------------------


def _to_folder(
    store: Store, manifest: Mapping[str, Any], url: str, dry_run: bool, say: Say
) -> tuple[list[Change], Published | None]:
    target = Store(url)
    before = target.read_json(MANIFEST, remedy=BEFORE)
    if before is not None:
        published_before(before, target.path(MANIFEST))
    files = release_files(store, manifest)
    paths = [f"{name}.parquet" for name in target.shards("")]
    paths += [path for path in files if not path.endswith(".parquet")]
    paths += sorted(owned_by(before))
    there = {}
    for path in dict.fromkeys(paths):
        if target.fs.exists(target.path(path)):
            size = int(target.fs.info(target.path(path))["size"])
            same = path in files and files[path].bytes == size
            there[path] = File(size, target.sha256(path) if same else "")
    found = changes(store, manifest, there, before)
    if dry_run:
        return found, None
    for number, change in enumerate(found, start=1):
        if change.what in ("new", "changed"):
            say(f"{number}/{len(found)} {change.path}: {change.bytes / 1e6:,.1f} MB")
            with store.fs.open(store.path(change.path), "rb") as file:
                target.copy(file, change.path)
            if target.sha256(change.path) != files[change.path].sha256:
                raise AigiError(
                    f"{target.path(change.path)}: differs from what was written. Check the disk. "
                    + RETRY
                )
    for change in found:
        if change.what == "removed":
            target.remove(change.path)
    rows = read_back(target.path(), manifest) if target.local else {}
    return found, Published(url, None, None, rows)


# --- the Hub -----------------------------------------------------------------------------------


def publish(
    run: str,
    to: str,
    *,
    dry_run: bool = False,
    public: bool = False,
    pull_request: bool = False,
    revision: str | None = None,
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
        say: is called with a line for each step.

    Returns:
        What is done to each file, and where the release is now (None for a dry run).

    Raises:
        AigiError: no token, no right to write, the version is already published with other
            content, files here or there that differ from the manifest, or a lost connection.
            Each message says what to do.
    """
    store, manifest = open_release(run, ENTRIES)
    if to.startswith("hf://"):
        return to_hub(store, manifest, to, dry_run, public, pull_request, revision, say)
    if pull_request or revision is not None or public:
        raise AigiError(f"{to}: --pull-request, --revision and --public need a dataset on the Hub")
    if not dry_run:
        check_here(store, manifest)
    return _to_folder(store, manifest, to, dry_run, say)
