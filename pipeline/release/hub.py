"""A parcel of files in, a commit and a tag on the Hub out; its errors come without secrets.

What is sent arrives in one commit, or in some with parquet files before it, each on top of the one
that was looked at: if somebody else published in the meantime, the Hub refuses it, and what is
there now is looked at again. The tag is put on the last one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import AigiError
from pipeline.gate import parse
from pipeline.hub_said import cause_of, status_of
from pipeline.manifest import MANIFEST
from pipeline.models.hub import hub_api
from pipeline.outside import in_short
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
    equal_there,
    published_before,
)
from pipeline.release.claims import digest
from pipeline.release.read_back import read_back
from pipeline.release.sending import Sending, first_commit
from pipeline.shown import redacted
from pipeline.store import Store
from pipeline.versions import tag_of, tagged

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ATTEMPTS = 8
"""Of a commit, while others commit something else."""


def _without_secrets(text: str, token: str | None) -> str:
    """A message without the token, which may come from a file, and without other secrets."""
    return redacted(text.replace(token, "hf_***") if token else text)


@contextmanager
def _explained(to: str, token: str | None) -> Iterator[None]:
    """Raise errors of the client as errors with a remedy, without the token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        text = in_short(error)
        if error.__cause__ is not None:  # of a failed upload, it tells what failed
            text += f": {in_short(error.__cause__)}"
        text = _without_secrets(text, token)
        cause = cause_of(error, writing=True)
        # The cause may hold headers; it goes no further.
        if cause is None:
            raise AigiError(f"{to}: {text}. {RETRY}") from None
        raise AigiError(f"{to}: {cause.what} ({text}). {cause.remedy}") from None


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


def _differences(parcel: Parcel, there: Mapping[str, File]) -> list[str]:
    """Files that did not arrive as they are here."""
    return [
        f"{path}: {'missing' if path not in there else 'other content'}"
        for path, file in parcel.files().items()
        if path not in there or not equal_there(parcel, path, file, there[path])
    ]


class _Arrived(NamedTuple):
    """Where a parcel is: its commit, the branch or pull request, and that one's page."""

    commit: str
    branch: str
    page: str | None


class HubTarget:
    """A dataset on the Hub.

    Args:
        to: `hf://datasets/ORG/NAME`.

    Raises:
        AigiError: it is something else, or two options contradict each other.
    """

    def __init__(self, to: str, how: How) -> None:
        # Xet keeps a note of what it has sent, by default every 20 seconds: killed, it would send
        # so much again. Read when an upload begins.
        os.environ.setdefault("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
        from huggingface_hub import get_token

        matched = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)/?", to)
        if matched is None:
            raise AigiError(
                f"{to}: expected hf://datasets/ORG/NAME; the revision is the version's tag"
            )
        if how.pull_request and how.revision is not None:
            raise AigiError(
                "--pull-request opens a new pull request. To continue one, give --revision "
                "refs/pr/N alone."
            )
        self.how, self.repo, self.token = how, matched[1], get_token()
        self.url = f"hf://datasets/{self.repo}"
        self.branch = how.revision or "main"
        self.api = hub_api(self.token)
        self._may_write = how.dry_run  # that is not asked of who only looks

    # --- what is there ---------------------------------------------------------------------------

    def look(self, version: str | None) -> There:
        """What is published: at the tag of a version, where there is one, or on the branch.

        Raises:
            AigiError: no such branch, no right to see it, or the Hub cannot be reached.
        """
        with _explained(self.url, self.token):
            if not self._may_write:
                _check_token(self.api, self.url, self.token)
                self._may_write = True
            return self._looked(version)

    def _looked(self, version: str | None) -> There:
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            refs = self.api.list_repo_refs(self.repo, repo_type="dataset")
            tags = [ref.name for ref in refs.tags]
            tag = tag_of(version) if version is not None else None
            at = tag if tag in tags else self.branch
            head = self.api.repo_info(self.repo, revision=at, repo_type="dataset").sha or at
            files = _listing(self.api, self.repo, head)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return There(self.url, exists=False)
        except RevisionNotFoundError as error:
            raise AigiError(
                f"{self.url}: no branch or pull request {self.branch}: {in_short(error)}"
            ) from None
        before = self._manifest(head) if MANIFEST in files else None
        store = Store(f"{self.url}@{head}")
        return There(self.url, files, before, store, tuple(tagged(tags)), True, head)

    def _manifest(self, commit: str) -> dict[str, Any]:
        path = self.api.hf_hub_download(self.repo, MANIFEST, revision=commit, repo_type="dataset")
        where = f"{self.url}@{commit}/{MANIFEST}"
        return published_before(parse(Path(path).read_bytes(), where, BEFORE), where)

    def compared(self, parcel: Parcel, there: There) -> There:
        """The same: the Hub tells hashes by itself."""
        return there

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody waits: a commit on top of another state than the one looked at is refused."""
        yield

    def refuse_another_tag(self, version: str, found: list[Change], there: There) -> None:
        """Refuse to change what a tag names."""
        moved = [change for change in found if change.what != "same"]
        if version in there.tagged and moved:
            raise AigiError(
                f"{self.url}: {tag_of(version)} is already published and differs in {len(moved)} "
                f"files, the first is {moved[0].path}. A tag never changes: raise release.version, "
                "run the workflow again, and publish the new version."
            )

    # --- what is sent ----------------------------------------------------------------------------

    def send(self, parcel: Parcel, there: There) -> Published:
        """Send what is missing, compare what arrived, tag it, and load it back.

        Raises:
            AigiError: as `publish`; what has arrived stays, and nothing is tagged.
        """
        version = parcel.manifest["version"]
        if version in there.tagged:
            if self.how.pull_request or self.how.revision is not None:
                what = "pull request was opened" if self.how.pull_request else "commit was made"
                self.how.say(
                    f"{self.url}: {tag_of(version)} is already published with this content: "
                    f"no {what}"
                )
            return self._read_back(parcel)
        arrived = self._sent(parcel, there)
        if arrived.branch != "main" or self.how.pull_request:
            return Published(self.url, arrived.branch, arrived.page, {})
        self._tag(parcel, arrived.commit)
        return self._read_back(parcel)

    def _sent(self, parcel: Parcel, there: There) -> _Arrived:
        with _explained(self.url, self.token):
            if not there.exists:
                visible = "public" if self.how.public else "private"
                self.api.create_repo(
                    self.repo, repo_type="dataset", private=not self.how.public, exist_ok=True
                )
                self.how.say(f"{self.url}: created, {visible}")
            arrived = self._committed(parcel, there)
            differences = _differences(parcel, _listing(self.api, self.repo, arrived.commit))
        if differences:
            raise AigiError(
                f"{self.url}: {len(differences)} files differ after the upload, the first is "
                f"{differences[0]}. Run the same command again. If they still differ, delete the "
                "file there first."
            )
        return arrived

    def _committed(self, parcel: Parcel, there: There) -> _Arrived:
        """Commit what is missing on top of what was looked at, and of nothing else."""
        version, first = parcel.manifest["version"], there
        pull, page, branch = self.how.pull_request, None, self.branch
        if not there.exists:
            there = self._looked(version)
        sending = Sending(self.api, self.repo, parcel, self.how.say)
        disturbed, left = 0, None
        while disturbed < _ATTEMPTS:
            self._refuse_overtaken(parcel, first, there)
            found = changes(parcel, there)
            moved = [change for change in found if change.what != "same"]
            if not moved:
                if pull:
                    self.how.say(f"{self.url}: main has all of it: no pull request was opened")
                return _Arrived(there.head, branch, page)
            disturbed += left is not None and len(moved) >= left
            some = first_commit(parcel, moved)
            try:
                info = self._commit(sending, some, len(moved) - len(some), there, branch, pull)
            except OSError as error:
                if status_of(error) not in (409, 412):
                    raise
                disturbed += 1
                there = self._looked(version)  # somebody else has committed something
                continue
            sending.committed()
            if pull:
                pull, branch, page = False, info.pr_revision, info.pr_url
                self.branch = branch
            if len(some) == len(moved):
                return _Arrived(info.oid, branch, page)
            left = len(moved)
            self.how.say(f"{self.url}: {left - len(some):,} of {len(found):,} files are left")
            there = self._looked(version)
        raise AigiError(f"{self.url}: others commit there all the time. {RETRY}")

    def _refuse_overtaken(self, parcel: Parcel, first: There, now: There) -> None:
        if now.before == first.before or now.before == parcel.manifest:
            return
        found = "nothing" if now.before is None else f"version {now.before.get('version')}"
        raise AigiError(
            f"{self.url}: {found} was published by someone else in the meantime, so nothing of "
            f"this release was. {RETRY} It is then compared with what is there."
        )

    def _title(self, parcel: Parcel) -> str:
        images = sum(record["rows"] for record in parcel.manifest["files"])
        return f"{parcel.manifest['name']} {parcel.manifest['version']}: {images:,} images"

    def _commit(
        self,
        sending: Sending,
        some: list[Change],
        left: int,
        there: There,
        branch: str,
        pull: bool,
    ) -> Any:
        """Commit some changes on top of what was looked at.

        Args:
            left: changes that come after these.
        """
        from huggingface_hub import CommitOperationDelete

        gone = [CommitOperationDelete(one.path) for one in some if one.what == "removed"]
        sent = [one.path for one in some if one.what != "removed"]
        revision = None if pull else branch
        return self.api.create_commit(
            self.repo,
            [*gone, *sending.additions(sent, revision, left)],
            repo_type="dataset",
            commit_message=self._title(sending.parcel),
            revision=revision,
            create_pr=pull,
            parent_commit=there.head,
        )

    def _tag(self, parcel: Parcel, commit: str) -> None:
        tag = tag_of(parcel.manifest["version"])
        with _explained(self.url, self.token):
            # Whoever has the files can compute it again, and needs to believe no one.
            message = f"aigi verify: digest {digest(parcel.documents, parcel.manifest)}"
            self.api.create_tag(
                self.repo,
                tag=tag,
                tag_message=message,
                revision=commit,
                repo_type="dataset",
                exist_ok=True,
            )
            if wrong := _differences(parcel, _listing(self.api, self.repo, tag)):
                raise AigiError(
                    f"{self.url}: the tag {tag} was created by someone else in the meantime: "
                    f"{wrong[0]}. Raise release.version, and publish that."
                )
        self.how.say(f"{self.url}: tagged {tag}")

    def _read_back(self, parcel: Parcel) -> Published:
        tag = tag_of(parcel.manifest["version"])
        with _explained(self.url, self.token):
            rows = read_back(self.repo, parcel.manifest, tag)
        return Published(f"{self.url}@{tag}", tag, None, rows)
