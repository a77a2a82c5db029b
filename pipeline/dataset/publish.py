"""A release in, the same files on the Hub, in a folder or at an fsspec URL out (`aigi publish`).

A dataset on the Hub gets all files in one or more commits, then is compared with the manifest,
then tagged `vVERSION`: what stands at a tag is a whole release, whatever was cut off before. The
upload itself (streams, batches, retries, what is there already) is huggingface_hub's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.dataset.manifest import MANIFEST, compare, open_release
from pipeline.dataset.pictures import escapes
from pipeline.tables import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Say = Callable[[str], None]
RETRY = "Nothing that has arrived is lost: run the same command again, it sends the rest."


@dataclass(frozen=True)
class File:
    """A file of a release, or a remote one. Small files on the Hub have no sha256 but a blob id."""

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
    """Where a release stands now.

    Attributes:
        url: what `aigi verify` and `load` take.
        revision: tag, branch or pull request; None for a folder.
        page: of the pull request, where one was asked for.
        rows: rows of each `(config, split)`, read back.
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


def _equal(store: Store, path: str, here: File, there: File) -> bool:
    if here.bytes != there.bytes:
        return False
    if there.sha256 is not None:
        return here.sha256 == there.sha256
    return there.blob is not None and _blob(store, path) == there.blob


def _owned(before: Mapping[str, Any] | None) -> set[str]:
    """Files that a manifest lists; names that lead out of its folder are nobody's."""
    records = [] if before is None else [*before["files"], *before["documents"]]
    return {record["path"] for record in records if not escapes(record["path"])}


def changes(
    store: Store,
    manifest: Mapping[str, Any],
    there: Mapping[str, File],
    before: Mapping[str, Any] | None,
) -> list[Change]:
    """What publishing would do to each file.

    Args:
        there: the remote files.
        before: the remote manifest; its files go where this release does not have them, and so do
            files that the card's patterns would take for shards. Other remote files stay.
    """
    files = release_files(store, manifest)
    found = []
    for path, file in files.items():
        if path not in there:
            what = "new"
        else:
            what = "same" if _equal(store, path, file, there[path]) else "changed"
        found.append(Change(what, path, file.bytes))
    owned = _owned(before)
    shards = {(r["config"], r["split"]) for r in manifest["files"]}
    for path, other in there.items():
        matched = re.fullmatch(r"([^/]+)/([a-z]+)-[^/]*\.parquet", path)
        stale = matched is not None and (matched[1], matched[2]) in shards
        if path not in files and (path in owned or stale):
            found.append(Change("removed", path, other.bytes))
    return found


def read_back(
    name: str, manifest: Mapping[str, Any], revision: str | None = None
) -> dict[tuple[str, str], int]:
    """Load every config and split with `datasets` and count; the first picture is compared, too.

    Only the column of ids is read, so a dataset of any size takes minutes and little memory.

    Raises:
        AigiError: rows are missing or too many, or a picture is not the one of its hash.
    """
    import numpy as np
    from datasets import get_dataset_config_names, load_dataset

    from pipeline.pixels import pixels_sha256

    expected: dict[tuple[str, str], int] = {}
    for record in manifest["files"]:
        key = (record["config"], record["split"])
        expected[key] = expected.get(key, 0) + record["rows"]
    found: dict[tuple[str, str], int] = {}
    for config in get_dataset_config_names(name, revision=revision):
        whole = load_dataset(name, config, revision=revision, streaming=True)
        ids = load_dataset(name, config, revision=revision, streaming=True, columns=["image_id"])
        for split in whole:
            found[config, str(split)] = sum(1 for _ in ids[split])
            first = next(iter(whole[split]))
            rgb = np.asarray(first["image"].convert("RGB"))
            if pixels_sha256(rgb) != first["pixels_sha256"]:
                raise AigiError(f"{name}: {config}/{split}: {first['image_id']}: other pixels")
    for key in sorted(expected | found):
        if expected.get(key, 0) != found.get(key, 0):
            raise AigiError(
                f"{name}: {'/'.join(key)}: {found.get(key, 0):,} rows load, the manifest says "
                f"{expected.get(key, 0):,}"
            )
    return found


def _check_here(store: Store, manifest: Mapping[str, Any]) -> None:
    """Before anything is sent: a damaged shard must not get out under a good name."""
    wrong = compare(store, dict(manifest))
    if wrong:
        raise AigiError(f"{store.url}: not as its manifest says: {wrong[0]}. Nothing was sent.")


# --- a folder or an fsspec URL -----------------------------------------------------------------


def _to_folder(
    store: Store, manifest: Mapping[str, Any], url: str, dry_run: bool, say: Say
) -> tuple[list[Change], Published | None]:
    target = Store(url)
    before = target.read_json(MANIFEST)
    files = release_files(store, manifest)
    paths = [f"{name}.parquet" for name in target.shards("")]
    paths += [path for path in files if not path.endswith(".parquet")]
    paths += sorted(_owned(before))
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
                    f"{target.path(change.path)}: not what was written there. Is the disk sound? "
                    + RETRY
                )
    for change in found:
        if change.what == "removed":
            target.remove(change.path)
    rows = read_back(target.path(), manifest) if target.local else {}
    return found, Published(url, None, None, rows)


# --- the Hub -----------------------------------------------------------------------------------


def _without_secrets(text: str, token: str | None) -> str:
    """A message without the token and without signatures of links, which open the door as well."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?...", text)
    return text.replace(token, "hf_***") if token else text


@contextmanager
def _explained(to: str, token: str | None) -> Iterator[None]:
    """Errors of the client as errors with a remedy, without the token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        text = str(error).strip()
        if error.__cause__ is not None:  # of a failed upload, it tells what failed
            text += f"\n{str(error.__cause__).strip()}"
        text = _without_secrets(text, token)
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        remedy = RETRY
        if status in (401, 403):
            remedy = "Give a token that may write there (HF_TOKEN, or `hf auth login`)."
        elif isinstance(error, HFValidationError):
            remedy = "Give hf://datasets/ORG/NAME."
        # The cause may hold headers; it goes no further.
        raise AigiError(f"{to}: {text}\n{remedy}") from None


def _listing(api: HfApi, repo: str, revision: str) -> dict[str, File]:
    from huggingface_hub.hf_api import RepoFile

    return {
        item.path: File(item.size, None if item.lfs is None else item.lfs.sha256, item.blob_id)
        for item in api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
        if isinstance(item, RepoFile)
    }


def _check_token(api: HfApi, to: str, token: str | None) -> None:
    if token is None:
        raise AigiError(
            f"{to}: no token. Set HF_TOKEN to one that may write there, or run `hf auth login`; "
            "nothing was done."
        )
    role = ((api.whoami().get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise AigiError(f"{to}: this token may only read. Set HF_TOKEN to one that may write there")


def _remote_manifest(api: HfApi, repo: str, revision: str) -> dict[str, Any]:
    with open(api.hf_hub_download(repo, MANIFEST, revision=revision, repo_type="dataset")) as file:
        found: dict[str, Any] = json.load(file)
    return found


def _differences(store: Store, manifest: Mapping[str, Any], there: Mapping[str, File]) -> list[str]:
    """Files that did not arrive as they are here."""
    return [
        f"{path}: {'missing' if path not in there else 'other content'}"
        for path, file in release_files(store, manifest).items()
        if path not in there or not _equal(store, path, file, there[path])
    ]


def _to_hub(
    store: Store,
    manifest: Mapping[str, Any],
    to: str,
    dry_run: bool,
    public: bool,
    pull_request: bool,
    revision: str | None,
    say: Say,
) -> tuple[list[Change], Published | None]:
    # Xet keeps a note of what it has sent, by default every 20 seconds: killed, it would send so
    # much again. Read when an upload begins.
    os.environ.setdefault("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    matched = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)/?", to)
    if matched is None:
        raise AigiError(f"{to}: expected hf://datasets/ORG/NAME; the revision is the version's tag")
    if not store.local:
        raise AigiError(
            f"{store.url}: the client uploads from a local folder; copy it first, with "
            f"aigi publish {store.url} --to FOLDER, then publish FOLDER"
        )
    if pull_request and revision is not None:
        raise AigiError(
            "--pull-request opens a new one; to go on with one, give --revision refs/pr/N alone"
        )
    repo, token = matched[1], get_token()
    to = f"hf://datasets/{repo}"
    api = HfApi(token=token, library_name="aigi")
    tag = f"v{manifest['version']}"
    branch = revision or "main"
    with _explained(to, token):
        if not dry_run:
            _check_token(api, to, token)
        try:
            tags = {ref.name for ref in api.list_repo_refs(repo, repo_type="dataset").tags}
            there = _listing(api, repo, tag if tag in tags else branch)
            exists = True
        except RepositoryNotFoundError:
            tags, there, exists = set(), {}, False
        except RevisionNotFoundError as error:
            raise AigiError(f"{to}: no branch or pull request {branch}: {error}") from None
        before = None
        if MANIFEST in there:
            before = _remote_manifest(api, repo, tag if tag in tags else branch)
        found = changes(store, manifest, there, before)
        moved = [change for change in found if change.what != "same"]
        if tag in tags and moved:
            raise AigiError(
                f"{to}: {tag} is published and differs in {len(moved)} files, first "
                f"{moved[0].path}. A tag stays what it is: raise release.version, run the "
                "workflow again, and publish that."
            )
        if dry_run:
            return found, None
    _check_here(store, manifest)
    if tag not in tags:
        with _explained(to, token):
            if not exists:
                api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
                say(f"{to}: created, {'public' if public else 'private'}")
            images = sum(record["rows"] for record in manifest["files"])
            patterns = {f"{r['config']}/{r['split']}-*.parquet" for r in manifest["files"]}
            documents = {record["path"] for record in manifest["documents"]}
            info: Any = api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=store.path(),
                revision=revision,
                create_pr=pull_request,
                commit_message=f"{manifest['name']} {manifest['version']}: {images:,} images",
                allow_patterns=sorted(patterns | documents | {MANIFEST}),
                delete_patterns=[c.path for c in found if c.what == "removed"] or None,
            )
            branch = getattr(info, "pr_revision", None) or branch
            arrived = _differences(store, manifest, _listing(api, repo, branch))
            if arrived:
                raise AigiError(
                    f"{to}: {len(arrived)} files did not arrive as they are here, first "
                    f"{arrived[0]}. Run the same command again; if it stays so, delete the file "
                    "there first."
                )
        if branch == "main":
            with _explained(to, token):
                api.create_tag(repo, tag=tag, repo_type="dataset", exist_ok=True)
                if wrong := _differences(store, manifest, _listing(api, repo, tag)):
                    raise AigiError(f"{to}: somebody else made the tag {tag} meanwhile: {wrong[0]}")
                say(f"{to}: tagged {tag}")
        else:
            return found, Published(to, branch, getattr(info, "pr_url", None), {})
    with _explained(to, token):
        rows = read_back(repo, manifest, tag)
    return found, Published(f"{to}@{tag}", tag, None, rows)


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
        dry_run: only look what would change.
        public: a repository that is created now is public; default: private.
        pull_request: on the Hub, open a pull request instead of committing.
        revision: on the Hub, an existing branch or `refs/pr/N` to commit to; default: main. Only
            main is tagged.
        say: told each step.

    Returns:
        What is done to each file, and where the release stands (None for a dry run).

    Raises:
        AigiError: no token, no right to write, the version is published already with other
            content, files that are not as the manifest says here or there, a lost connection.
            Each says what to do.
    """
    store, manifest = open_release(run)
    if to.startswith("hf://"):
        return _to_hub(store, manifest, to, dry_run, public, pull_request, revision, say)
    if pull_request or revision is not None or public:
        raise AigiError(f"{to}: pull requests, revisions and visibility are the Hub's")
    if not dry_run:
        _check_here(store, manifest)
    return _to_folder(store, manifest, to, dry_run, say)
