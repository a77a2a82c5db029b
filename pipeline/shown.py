"""Text and locations from outside in; what may be shown and recorded of them out.

A location can hold a secret: a user and a password, or the signature in a query. No record, error
or line of progress has them. `public_url` is for a location, `public` for settings that hold some,
`redacted` for a text that may quote some. `visible` is for any text on its way to a screen.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

_LINK = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^/?#]*)(?P<path>.*)", re.DOTALL
)
_CHAIN = re.compile(r"::(?=/|[A-Za-z][A-Za-z0-9+.-]*::?(?:/|[A-Za-z]))")  # but not [::1]
_STARTS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://|:)")
_WEB = ("http", "https", "ftp", "ftps")  # the schemes with fragments; elsewhere # is part of a name
# Azure writes CONTAINER@ACCOUNT: what is in front of the @ is no user.
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")

_QUOTED = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s<>\"'`]+")
_END = re.compile(r"[.,:;!)\]}]*$")  # of a sentence around a location, not of the location
_TARGET = re.compile(r"(\burl: */[^\s?]*)\?\S+")  # urllib3 quotes the path and the query alone
_PARAMETER = re.compile(
    r"\b(x-(?:amz|goog|ms)-[\w-]+|awsaccesskeyid|googleaccessid|signature|sig|key-pair-id|"
    r"(?:aws_)?secret(?:[_-]access[_-]key)?|(?:access|auth|session|sas|refresh)[_-]?token|token|"
    r"api[_-]?key|password|passwd|client[_-]secret)(=|%3D|['\"]: ?['\"])[^\s&'\"<>,;]+",
    re.IGNORECASE,
)
_TOKENS = re.compile(
    r"\b(hf_|sk-|gh[pousr]_|github_pat_|AKIA|ASIA|AIza|[Bb]earer )[\w+/.~-]{16,}=*"
    r"|\b(eyJ)[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
)
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|PAT|SAS)(_ID)?$", re.IGNORECASE)
_SECRET_LENGTH = 12


def _split(link: re.Match[str]) -> tuple[str, str, str, bool]:
    """User (with its @), host, path, and whether something follows the path."""
    host, path = link["host"], link["path"]
    before, at, after = host.rpartition("@")
    named, colon, port = host.partition(":")
    if not at and colon and not port.isdigit() and "@" in path and not named.startswith("["):
        # A key with a slash, as many of S3's have: the host begins behind the last @.
        path, _, rest = path.rpartition("@")
        before, at = f"{host}{path}", "@"
        found = re.match(r"([^/?#]*)(.*)", rest, re.DOTALL)
        after, path = (found[1], found[2]) if found else (rest, "")
    if at and link["scheme"].lower() in _CONTAINERS and ":" not in before:
        before, at, after = "", "", host
    marks = "?#" if link["scheme"].lower() in _WEB else "?"
    cut = min((path.index(mark) for mark in marks if mark in path), default=len(path))
    return before + at, after, path[:cut], len(path) > cut + 1


def public_url(location: str) -> str:
    """A location without user, password, query and fragment; a local path as it is.

    Of a chain of fsspec (`zip://a.csv::https://…`), each link.
    """
    found = []
    for part in _CHAIN.split(location):
        link = _LINK.fullmatch(part)
        if link is None:
            found.append(part)
        else:
            _, host, path, _ = _split(link)
            found.append(f"{link['scheme']}://{host}{path}")
    return "::".join(found)


def public(value: Any) -> Any:
    """Settings (JSON values) in which every text that is a location is its `public_url`."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    # A text that only quotes a location, such as a citation, is none.
    return public_url(value) if isinstance(value, str) and _STARTS.match(value) else value


def _quoted(found: re.Match[str], queries: bool) -> str:
    whole = found[0]
    tail = _END.search(whole)
    body = whole[: tail.start()] if tail else whole
    parts = []
    for part in _CHAIN.split(body):
        link = _LINK.fullmatch(part)
        if link is None:
            parts.append(part)
            continue
        user, host, path, more = _split(link)
        hidden = f"{link['scheme']}://{'***@' if user else ''}{host}{path}"
        kept = part.removeprefix(f"{link['scheme']}://{user}{host}{path}")
        parts.append(hidden + ("?..." if more and queries else kept))
    return "::".join(parts) + whole[len(body) :]


def redacted(text: str, queries: bool = True) -> str:
    """A text without secrets: users and queries of URLs, signatures, keys, tokens.

    Args:
        queries: whether all queries go (`?...`): a text that is shown does not need them. Without
            it, only those parts of a query go whose names say that they are secret.
    """
    if "://" in text:
        text = _QUOTED.sub(lambda found: _quoted(found, queries), text)
    if queries and "url: " in text:
        text = _TARGET.sub(r"\1?...", text)
    text = _PARAMETER.sub(r"\1\2...", text)
    text = _TOKENS.sub(lambda found: f"{found[1] or found[2]}***", text)
    for name, value in os.environ.items():
        if (
            len(value) >= _SECRET_LENGTH
            and value in text
            and _SECRET_NAME.search(name)
            and re.search(r"\d", value)
            and not value.startswith("/")
        ):
            text = text.replace(value, "***")
    return text


# Joiners are part of how some scripts and emoji are spelled. All other marks without a shape of
# their own could hide or turn the text around them.
_JOINERS = "\u200c\u200d"
_BREAKS = "\n\r\t\u2028\u2029"


def visible(text: object) -> str:
    """The text in one line, each control character and direction mark spelled out: `[U+202E]`.

    Line breaks and tabs become spaces; half surrogates, which no file can hold, a question mark.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    shown = []
    for char in whole.encode("utf-8", "replace").decode():
        if char in _BREAKS:
            shown.append(" ")
        elif char not in _JOINERS and unicodedata.category(char) in ("Cc", "Cf"):
            shown.append(f"[U+{ord(char):04X}]")
        else:
            shown.append(char)
    return "".join(shown)


def one_line(text: object) -> str:
    """What a screen may show of a text, in one line: no secrets, no control characters."""
    return visible(redacted(str(text)))


def lines(text: object) -> str:
    """The same of a text that has line breaks of its own, which stay."""
    return "\n".join(visible(line) for line in redacted(str(text)).split("\n"))
