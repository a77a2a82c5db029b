"""A release's files and bytes in, the limits of the Hub that they would hit out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FOLDER, REPOSITORY, FILE, PRIVATE = "folder", "repository", "file", "private"


@dataclass(frozen=True)
class Limit:
    """A limit of the Hub.

    Attributes:
        most: files or bytes; what is above is too much.
        what: which it counts, for a message.
        remedy: a sentence.
    """

    most: float
    what: str
    remedy: str


# As the Hub's documentation has them in 2026, on its pages "Repository limitations and
# recommendations" (entries of a folder, files of a repository; a file of more than 50 GB is not
# taken, 20 GB are recommended) and "Storage limits" (private storage of a free user or
# organisation; public storage is "best-effort").
LIMITS = {
    FOLDER: Limit(
        10_000,
        "files in a folder",
        "Raise plan.shard_mb (at most 200), or divide the source in two.",
    ),
    REPOSITORY: Limit(
        100_000,
        "files in a repository",
        "Raise plan.shard_mb (at most 200), or publish the sources as several datasets.",
    ),
    FILE: Limit(50e9, "bytes of a file", "Lower plan.shard_mb."),
    PRIVATE: Limit(
        100e9,
        "bytes of private storage on a free account",
        "Publish with --public, or from an account with more.",
    ),
}
"""What the Hub recommends (files), takes (a file) and gives (storage)."""


def limits_hit(
    folders: Mapping[str, int], documents: int, size: float, largest: float
) -> Iterator[str]:
    """Limits that a release would hit, a line each.

    Args:
        folders: files of each folder.
        documents: files beside the folders.
        size: bytes of all.
        largest: bytes of the largest file.
    """

    def over(name: str, found: float, where: str = "") -> Iterator[str]:
        limit = LIMITS[name]
        if found > limit.most:
            most, much = (
                (f"{limit.most / 1e9:,.0f} GB", f"{found / 1e9:,.1f} GB")
                if limit.what.startswith("bytes")
                else (f"{limit.most:,.0f}", f"{found:,.0f}")
            )
            what = limit.what.removeprefix("bytes of ")
            yield f"the Hub: {what}: {most}; {where}{much} are planned. {limit.remedy}"

    for folder, files in folders.items():
        yield from over(FOLDER, files, f"{folder}: ")
    yield from over(REPOSITORY, sum(folders.values()) + documents)
    yield from over(FILE, largest)
    yield from over(PRIVATE, size)
