"""Files of a release in, a commit on the Hub out; its errors come without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.gate import parse
from pipeline.manifest import MANIFEST
from pipeline.models.hub import hub_api
from pipeline.release.changes import (
    BEFORE,
    RETRY,
    Change,
    File,
    Published,
    Say,
    changes,
    equal_there,
    published_before,
    release_files,
)
from pipeline.release.claims import digest
from pipeline.release.read_back import check_here, read_back
from pipeline.shown import redacted
from pipeline.store import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def _without_secrets(text: str, token: str | None) -> str:
    """A message without the token, which may come from a file, and without other secrets."""
    return redacted(text.replace(token, "hf_***") if token else text)


@contextmanager
def _explained(to: str, token: str | None) -> Iterator[None]:
    """Raise errors of the client as errors with a remedy, without the token."""
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
    path = api.hf_hub_download(repo, MANIFEST, revision=revision, repo_type="dataset")
    where = f"hf://datasets/{repo}@{revision}/{MANIFEST}"
    return published_before(parse(Path(path).read_bytes(), where, BEFORE), where)


def _differences(store: Store, manifest: Mapping[str, Any], there: Mapping[str, File]) -> list[str]:
    """Files that did not arrive as they are here."""
    return [
        f"{path}: {'missing' if path not in there else 'other content'}"
        for path, file in release_files(store, manifest).items()
        if path not in there or not equal_there(store, path, file, there[path])
    ]


def to_hub(
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
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    matched = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)/?", to)
    if matched is None:
        raise AigiError(f"{to}: expected hf://datasets/ORG/NAME; the revision is the version's tag")
    if not store.local:
        raise AigiError(
            f"{store.url}: the Hub's client uploads from local folders only. Copy the release "
            f"first (aigi publish {store.url} --to FOLDER), then publish FOLDER."
        )
    if pull_request and revision is not None:
        raise AigiError(
            "--pull-request opens a new pull request. To continue one, give --revision refs/pr/N "
            "alone."
        )
    repo, token = matched[1], get_token()
    to = f"hf://datasets/{repo}"
    api = hub_api(token)
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
                f"{to}: {tag} is already published and differs in {len(moved)} files, the first is "
                f"{moved[0].path}. A tag never changes: raise release.version, run the workflow "
                "again, and publish the new version."
            )
        if dry_run:
            return found, None
    check_here(store, manifest)
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
                    f"{to}: {len(arrived)} files differ after the upload, the first is "
                    f"{arrived[0]}. Run the same command again. If they still differ, delete the "
                    "file there first."
                )
        if branch == "main":
            with _explained(to, token):
                # Whoever has the files can compute it again, and needs to believe no one.
                message = f"aigi verify: digest {digest(store, manifest)}"
                api.create_tag(
                    repo, tag=tag, tag_message=message, repo_type="dataset", exist_ok=True
                )
                if wrong := _differences(store, manifest, _listing(api, repo, tag)):
                    raise AigiError(
                        f"{to}: the tag {tag} was created by someone else in the meantime: "
                        f"{wrong[0]}"
                    )
                say(f"{to}: tagged {tag}")
        else:
            return found, Published(to, branch, getattr(info, "pr_url", None), {})
    with _explained(to, token):
        rows = read_back(repo, manifest, tag)
    return found, Published(f"{to}@{tag}", tag, None, rows)
