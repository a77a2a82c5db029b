"""An error of the Hub's clients in, its cause and what to do about it out.

Every verb that reads or writes a dataset on the Hub explains it here. The clients raise one error
from another, and `fsspec` raises its own from theirs, so all of a chain counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

LOG_IN = "HF_TOKEN, or `hf auth login`"
_FULL = re.compile(r"(?i)storage (limit|quota|space|is full)|quota|out of storage|payment required")
_CLIENTS = ("huggingface_hub.", "httpx", "httpcore")
"""Modules, by the beginning of their names, whose errors are the Hub's or of the way to it."""
_NOWHERE = (
    "ConnectError", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "ReadError",
    "WriteError", "RemoteProtocolError", "ProxyError", "ConnectionError", "TimeoutError",
    "ConnectionRefusedError", "ConnectionResetError", "NetworkError",
)  # fmt: skip


class Cause(NamedTuple):
    """Why the Hub did not do it: `what`, without an end, and the sentence that says what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is one for one in seen):
        seen.append(current)
        yield current
        current = current.__cause__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def of_hub(error: BaseException) -> bool:
    """Whether an error is one of the Hub's clients, or was raised from one."""
    return any(type(one).__module__.startswith(_CLIENTS) for one in _chain(error))


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered; None: it did not answer, or it was not asked."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _response(error: BaseException) -> Any:
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return response
    return None


def _of_storage(error: BaseException) -> bool:
    """Whether the storage answered, whose signed links expire: that is no matter of rights."""
    with suppress(Exception):  # some responses have no request
        return "ignature=" in str(_response(error).request.url)
    return False


def no_such(error: BaseException) -> bool:
    """Whether a repository or revision is missing, or kept from this user: not just a file."""
    return any(_missing(one) is not None for one in _chain(error))


def _missing(error: BaseException) -> Cause | None:
    names = _names(error)
    if "GatedRepoError" in names:
        return Cause(
            "gated: its owner has not given this account access",
            f"Ask for access on its page, then use a token of that account ({LOG_IN}).",
        )
    if "DisabledRepoError" in names:
        return Cause("the Hub has disabled this repository", "Ask its owner, or the Hub.")
    if "RevisionNotFoundError" in names:
        return Cause(
            "the repository has no such tag, branch or commit",
            "Correct the part behind the @: tags are listed on its page, under Files and versions.",
        )
    if "RepositoryNotFoundError" in names:
        return Cause(
            "no such repository on the Hub, or a private one that this token may not see",
            f"Correct the name, or give a token of somebody who may see it ({LOG_IN}).",
        )
    return None


def _refused(status: int | None, text: str, writing: bool) -> Cause | None:
    if status in (402, 413, 507) or (status in (400, 403) and _FULL.search(text)):
        return Cause(
            "no storage is left in this account, or the repository is larger than it may be",
            "Free or buy storage in the account's settings, make the repository public, or give "
            "another --to. What has arrived is kept.",
        )
    if status == 401:
        may = "may write there" if writing else "may see it"
        return Cause("the Hub does not know this token", f"Give a token that {may} ({LOG_IN}).")
    if status == 403 and writing:
        return Cause(
            "no right to write there",
            f"Give a token that may write there ({LOG_IN}), or propose the release to its owner "
            "with --pull-request.",
        )
    if status == 403:
        return Cause("no right to see it", f"Give a token that may see it ({LOG_IN}).")
    if status == 429:
        return Cause("too many requests", "Wait some minutes, and run the same command again.")
    return None


def cause_of(error: BaseException, writing: bool = False) -> Cause | None:
    """Why the Hub did not do something; None: this error is not the Hub's, or nobody knows.

    Args:
        error: with the errors that it was raised from.
        writing: it was to be written to; else only read.
    """
    if not of_hub(error):
        return None
    chain = list(_chain(error))
    text = " ".join(str(one) for one in chain)
    if any("OfflineModeIsEnabled" in _names(one) for one in chain):
        return Cause("the Hub may not be asked: HF_HUB_OFFLINE is set", "Unset it, and try again.")
    if any("HFValidationError" in _names(one) for one in chain):
        return Cause("not the name of a repository", "Give hf://datasets/ORG/NAME.")
    refused = _refused(status_of(error), text, writing)
    if refused is not None and not no_such(error) and not _of_storage(error):
        return refused
    for one in chain:
        if (missing := _missing(one)) is not None:
            return missing
    status = status_of(error)
    again = "Run the same command again" + (
        ": it keeps what has arrived and sends the rest." if writing else "."
    )
    if status is not None and status >= 500:
        return Cause(
            f"the Hub itself has a fault (HTTP status {status})", f"Wait a little. {again}"
        )
    if status is None and any(not _names(one).isdisjoint(_NOWHERE) for one in chain):
        return Cause("the Hub cannot be reached", f"Check the network, HF_ENDPOINT too. {again}")
    return None
