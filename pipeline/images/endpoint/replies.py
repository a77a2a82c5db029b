"""An endpoint's HTTP answer in, the image in it and its facts out; or whose fault it is.

Endpoints agree on what a success looks like, and on little else: each has its own status and words
for a refused prompt, an unknown model and an empty account.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from pipeline.images.endpoint.address import Stopped, Way
from pipeline.shown import one_line

LATER = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
_REFUSED = re.compile(
    r"content[ _-]?(policy|filter|violation)|moderation|safety|responsible[ _-]?ai|nsfw"
    r"|inappropriate|prohibited|image_generation_user_error",
    re.IGNORECASE,
)
"""What endpoints call a refusal of content."""
_NO_MODEL = re.compile(r"model.?not.?found|invalid.?model|unknown.?model", re.IGNORECASE)
_MODEL_SAID = re.compile(r"not (found|exist|available)|unknown|no such|invalid model", re.I)
_NO_MONEY = re.compile(r"insufficient.?(quota|funds|balance|credit)|billing", re.IGNORECASE)
_MOST_FACTS, _MOST_TEXT = 40, 4096


class Unusable(Exception):
    """An answer that is no image for its row; the text is the reason.

    Attributes:
        refused: the content was refused, which says nothing about other rows.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Again(Exception):
    """This attempt failed, another one may not.

    Attributes:
        wait: seconds that the endpoint asks to wait; None: it does not.
        broken: it answered, with an error of its own (status 500).
    """

    def __init__(self, reason: str, wait: float | None = None, broken: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.broken = wait, broken


@dataclass
class Reply:
    """A whole HTTP answer; names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def wait(self) -> float | None:
        """Seconds of `Retry-After`, a number or a date; None: there is none."""
        text = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time())
        except (ValueError, TypeError, OverflowError):
            return None


def _number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def parsed(body: bytes) -> Any:
    """JSON; ValueError: it is none."""
    try:
        return json.loads(body, parse_constant=_number)
    except RecursionError:
        raise ValueError("too deep") from None


def kind_of(body: bytes) -> str:
    """What an answer is that is no JSON."""
    start = body[:200].lstrip()
    return "empty" if not start else "an HTML page" if start.startswith(b"<") else "no JSON"


def _error_of(reply: Reply) -> tuple[str, str]:
    """The name of an error and its text, of the forms that endpoints have."""
    try:
        found = parsed(reply.body)
    except ValueError:
        return "", kind_of(reply.body)
    inner = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict):
        return "", str(inner)
    names = [inner.get("code"), inner.get("type")]
    text = inner.get("message") or inner.get("detail") or ""
    text = text if isinstance(text, str) else json.dumps(text)
    return " ".join(one for one in names if isinstance(one, str) and one), text


def fault(reply: Reply, path: str, way: Way, clean: Callable[[object], str]) -> Exception:
    """The error of an answer that is not what was asked for: `Unusable`, `Stopped` or `Again`.

    Args:
        path: what was asked for, below the base address.
        clean: takes the key out of a text.
    """
    name, text = (one_line(clean(one))[:300] for one in _error_of(reply))
    said = f"HTTP {reply.status}" + (f" {name}" if name else "") + (f": {text}" if text else "")
    status, where = reply.status, f"{way.where}: {way.url}/{path}"
    # A text may quote the prompt, so what it says counts only where the status agrees.
    if status == 402 or (status < 500 and _NO_MONEY.search(name)):
        return Stopped(
            f"{where}: {said}. The account may make no more images: raise its limit, then run the "
            "same command again."
        )
    if status < 400:
        place = one_line(clean(reply.headers.get("location", "")))[:300]
        return Stopped(
            f"{where}: {said}, it leads to {place or 'nothing'}. Redirects are not followed: "
            f"correct {way.where}.url."
        )
    if _REFUSED.search(name) and status < 500 and status not in (401, 404, 429):
        return Unusable(f"refused: {said}", refused=True)
    if status in (401, 403):
        remedy = (
            f"Set the environment variable {way.key_env} to a key that may use this model."
            if way.key_env
            else f"It needs a key: {way.where}.key_env names the environment variable that has it."
        )
        return Stopped(f"{where}: {said}. {remedy}")
    unknown = _NO_MODEL.search(name) or (way.model in text and _MODEL_SAID.search(text))
    if status in (404, 405, 410) or (status in (400, 422) and unknown):
        return Stopped(
            f"{where}: {said}. Correct {way.where}.url (the base of the API, for example "
            "https://HOST/v1) or the model in the dataset specification."
        )
    if status in LATER or status >= 500:
        return Again(said, reply.wait(), broken=status == 500)
    refused = _REFUSED.search(text) is not None
    return Unusable(f"{'refused' if refused else 'not taken'}: {said}", refused)


@dataclass(frozen=True)
class Found:
    """What an answer has of an image: the file, or the address of the file.

    Attributes:
        facts: what it says beside the image: simple values, and the counts of `usage`.
    """

    data: bytes | None
    address: str
    facts: dict[str, Any]


def found_in(reply: Reply, way: Way, clean: Callable[[object], str]) -> Found:
    """The image of a successful answer.

    Raises:
        Unusable: it has none.
        Again: it is no answer of an images API at all.
    """
    try:
        whole = parsed(reply.body)
    except ValueError:
        raise Again(
            f"the answer is {kind_of(reply.body)}; is {way.where}.url the base of an images API?"
        ) from None
    listed = whole.get("data") if isinstance(whole, dict) else None
    image = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(image, dict):
        raise Unusable("no image: the answer has no data")
    text, address = image.get("b64_json"), image.get("url")
    data = None
    if isinstance(text, str) and text:
        try:
            data = b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Unusable("no image: b64_json is no base64") from None
    elif not (isinstance(address, str) and address):
        raise Unusable("no image: the answer has neither b64_json nor url")
    facts = _facts([*whole.items(), *image.items()], clean)
    if header := reply.headers.get("x-request-id"):
        facts["request_id"] = clean(header)[:_MOST_TEXT]
    return Found(data, "" if data is not None else str(address), facts)


def _facts(entries: list[tuple[str, Any]], clean: Callable[[object], str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries:
        name = clean(key)[:80]
        if key in ("b64_json", "url", "data") or len(found) == _MOST_FACTS:
            continue
        if key == "usage" and isinstance(value, dict):
            counts = [(clean(of)[:80], count) for of, count in value.items() if _count(count)]
            found[name] = dict(counts[:_MOST_FACTS])
        elif isinstance(value, str):
            found[name] = clean(value)[:_MOST_TEXT]
        elif value is None or isinstance(value, bool) or _count(value):
            found[name] = value
    return found


def _count(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15
