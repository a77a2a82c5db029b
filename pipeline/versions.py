"""Versions of releases in, their order, their tags, and the next partial one out.

A version is one of semantic versioning: three numbers, then perhaps a pre-release, as in
`1.1.0-partial.2`, which is lower than `1.1.0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = "[0-9]{1,9}"
_LABEL = "[0-9A-Za-z-]{1,32}"
PATTERN = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_LABEL}(\.{_LABEL}){{0,7}})?"
"""A whole version."""
_PARTIAL = "partial"

Order = tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]


def order(version: str) -> Order | None:
    """What versions are compared by, as semantic versioning orders them; None: it is none.

    A pre-release is lower than its version; in it, numbers are lower than words.
    """
    if re.fullmatch(PATTERN, version) is None:
        return None
    numbers, dash, label = version.partition("-")
    parts = tuple(
        (False, int(part), "") if part.isdigit() else (True, 0, part)
        for part in (label.split(".") if dash else ())
    )
    return tuple(int(number) for number in numbers.split(".")), not dash, parts


def highest(versions: Iterable[str]) -> str | None:
    """The highest version; None: there is none."""
    known = {one: place for one in versions if (place := order(one)) is not None}
    return max(known, key=lambda one: known[one], default=None)


def higher(version: str, other: str) -> bool:
    """Whether a version is higher than another; than what is no version, each is."""
    one, two = order(version), order(other)
    return two is None or (one is not None and one > two)


def tag_of(version: str) -> str:
    """The tag on the Hub of a version."""
    return f"v{version}"


def tagged(tags: Iterable[str]) -> list[str]:
    """The versions that tags name; other tags are left out."""
    return [tag[1:] for tag in tags if tag.startswith("v") and order(tag[1:]) is not None]


def partials(version: str, known: Iterable[str]) -> list[int]:
    """Numbers of the partial versions of a version, ascending.

    Args:
        known: versions; others are left out.
    """
    numbers = (re.fullmatch(rf"{re.escape(version)}-{_PARTIAL}\.([1-9]\d*)", one) for one in known)
    return sorted(int(found[1]) for found in numbers if found is not None)


def partial(version: str, number: int) -> str:
    """The version of a release that has some of its sources, for example `1.1.0-partial.1`."""
    return f"{version}-{_PARTIAL}.{number}"
