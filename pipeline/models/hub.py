"""Where a model is in, its files on this machine out; or what to do without them.

A model is in a folder, or in a repository of the Hub at a revision. Its weights are safetensors:
pickle files can run code, and are not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.faults import of_machine
from pipeline.files import file_sha256
from pipeline.hub_said import Cause, cause_of
from pipeline.outside import Unreachable, hub_with_limits, in_short, on_this_machine

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises: for refusals, silence, no network, and names that are none."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError, httpx2.HTTPError, OSError, ValueError


_OF_A_MODEL = (
    "RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError",
    "GatedRepoError", "DisabledRepoError",
)  # fmt: skip
"""What the Hub's client raises where there is no such model, or none for this user."""


def of_model(error: BaseException) -> bool:
    """Whether a model itself is at fault that cannot be loaded, not the way to it or a device."""
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in _OF_A_MODEL for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__
    return not of_machine(error)


def hub_api(token: str | None = None) -> HfApi:
    """The Hub's client, which does not wait for ever for an answer."""
    from huggingface_hub import HfApi

    hub_with_limits()
    return HfApi(token=token, library_name="aigi")


def why_not(error: Exception, dataset: str, revision: str | None) -> Cause | None:
    """Why a dataset of the Hub cannot be read; None: the Hub has it, or nobody knows.

    Args:
        error: of a library that does not always tell; then the Hub itself is asked.
        dataset: ORG/NAME.
    """
    if (cause := cause_of(error)) is not None:
        return cause
    try:
        hub_api().dataset_info(dataset, revision=revision)
    except hub_errors() as answer:
        return cause_of(answer)
    return None


@dataclass(frozen=True)
class Place:
    """A folder, or a Hub repository at a revision; `folder` goes first.

    Attributes:
        where: section and key that name it, for messages.
        instead: section and key, or option of a command, that takes a folder.
    """

    where: str
    instead: str
    folder: str | None = None
    repository: str = ""
    revision: str | None = None

    @classmethod
    def of(
        cls, section: str, folder: str | None, repository: str, revision: str | None = None
    ) -> Place:
        """The place that `folder`, or `model` and `revision`, of a section name."""
        key = "model" if folder is None else "folder"
        return cls(f"{section}.{key}", f"{section}.folder", folder, repository, revision)

    def __str__(self) -> str:
        return self.folder or f"{self.repository}@{self.revision or 'main'}"

    def fetch(self, *files: str, beside: Sequence[str] = ()) -> str:
        """The folder on this machine; what its cache does not have is downloaded.

        Args:
            files: names or patterns; there is a file for each.
            beside: patterns of what else a repository may have for the model.

        Raises:
            Unreachable: no such folder, repository, revision or file, or no way to get it.
        """
        found = (
            self._downloaded([*files, *beside])
            if self.folder is None
            else on_this_machine(self.folder)
        )
        if not os.path.isdir(found):
            raise Unreachable(
                f"{self.where}: {found}: no such folder. Copy the model there, or correct the path."
            )
        for file in files:
            if not any(path.is_file() for path in Path(found).glob(file)):
                raise self.lacking(file)
        return found

    def held(self) -> bool:
        """Whether it is on this machine: a folder, or a commit in the cache of the Hub."""
        if self.folder is not None:
            return True
        if re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is None:
            return False  # where a name points to, only the Hub knows
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(self.repository, revision=self.revision, local_files_only=True)
        except (OSError, ValueError):
            return False
        return True

    def lacking(self, file: str) -> Unreachable:
        """The error that a file is not there."""
        pickled = "; weights in pickle files are not read" if "safetensors" in file else ""
        return Unreachable(
            f"{self.where}: {self} has no {file}{pickled}. Get the model anew, or give a copy of "
            f"it, its weights saved as safetensors, as {self.instead}."
        )

    def file(self, name: str) -> str:
        """Path of one file.

        Raises:
            Unreachable: as `fetch`.
        """
        return os.path.join(self.fetch(name), name)

    def _downloaded(self, patterns: list[str]) -> str:
        from huggingface_hub import snapshot_download

        hub_with_limits()
        try:
            return str(
                snapshot_download(self.repository, revision=self.revision, allow_patterns=patterns)
            )
        except hub_errors() as error:
            raise Unreachable(
                f"{self.where}: cannot get {self}, and it is not in the cache: "
                f"{in_short(error)}. Correct the name, or download the model elsewhere and give "
                f"its folder as {self.instead}."
            ) from error

    def names(self) -> list[str] | None:
        """Files of a repository, as the Hub lists them; None: a folder, or the Hub is silent."""
        if self.folder is not None:
            return None
        try:
            return list(hub_api().list_repo_files(self.repository, revision=self.revision))
        except hub_errors():
            return None

    def sha256(self, *files: str) -> dict[str, str | None]:
        """sha256 of those of the files that there are, without a download; None: not known.

        Of a repository, they are what the Hub says; without the Hub, those of the cached files.

        Raises:
            Unreachable: the Hub does not answer, and the first of the files is not in the cache.
        """
        if self.folder is not None:
            paths = {file: os.path.join(self.folder, file) for file in files}
            return {file: file_sha256(path) for file, path in paths.items() if os.path.isfile(path)}
        from huggingface_hub import try_to_load_from_cache

        try:
            infos = hub_api().get_paths_info(self.repository, list(files), revision=self.revision)
        except hub_errors() as error:
            cached = {
                file: try_to_load_from_cache(self.repository, file, revision=self.revision)
                for file in files
            }
            if not isinstance(cached[files[0]], str):
                raise Unreachable(
                    f"{self.where}: cannot look up {self}, and it is not in the cache: "
                    f"{in_short(error)}. Correct the name, or download the model elsewhere and "
                    f"give its folder as {self.instead}."
                ) from error
            return {file: file_sha256(p) for file, p in cached.items() if isinstance(p, str)}
        lfs = {info.path: getattr(info, "lfs", None) for info in infos}
        return {path: None if blob is None else str(blob.sha256) for path, blob in lfs.items()}


def check_sha256(where: str, file: str, found: str | None, expected: str) -> None:
    """Compare a file of weights with what is expected of it.

    Raises:
        AigiError: it is another one.
    """
    if found != expected:
        raise AigiError(
            f"{where}: {file} has sha256 {found}, expected is {expected}. Get the right weights "
            "or revision, or correct the expected sha256."
        )


@contextmanager
def loading(where: str, model: object) -> Iterator[None]:
    """Around a library that loads a model: say what to do about files that it cannot read.

    Raises:
        AigiError: the library raised an error of its own.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise AigiError(
            f"{where}: {model}: the model cannot be loaded: {type(error).__name__}: "
            f"{in_short(error)}. Copy or download it anew, or set another one."
        ) from error
