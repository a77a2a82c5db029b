"""Names of files in; which are images, which have their captions, and which lead out, out.

Names come from outside and are distrusted: they must stay inside their folder or archive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pipeline import AigiError
from pipeline.pictures.stated import Made
from pipeline.pixels import BadPicture, kind_of

EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"]
)
MAX_FILE_BYTES = 512 << 20  # 64 million pixels of 16-bit RGBA, uncompressed
MAX_TEXT_BYTES = 1 << 20  # of a caption file


class Escapes(AigiError):
    """A name or a link that leads out of the folder or archive."""


class Absent(BadPicture):
    """A name that is not in its folder or archive, which itself is there."""

    def __init__(self) -> None:
        super().__init__("no such picture")


class Caption(NamedTuple):
    """What a list states about an image: a text, or the problem that keeps it out.

    Attributes:
        split: the one that the list states; null: a hash of the text decides.
        line: of the list, where it has lines.
        variants: name of the image by watermark, where it comes in several.
        made: what the image states of how it was made.
    """

    name: str
    text: str | None
    problem: str | None
    split: str | None = None
    line: int | None = None
    variants: Mapping[str, str] | None = None
    made: Made = Made()


def escapes(name: str) -> bool:
    """True where a name is absolute, has a drive letter, or goes up with `..`."""
    if not name.startswith("/") and not any(sign in name for sign in ("..", "\\", ":", "\0")):
        return False  # nearly all names; the rest is slower
    plain = name.replace("\\", "/")
    return (
        plain.startswith("/")
        or re.match(r"[A-Za-z]:", plain) is not None
        or ".." in plain.split("/")
        or "\0" in plain
    )


def wanted(name: str, extensions: frozenset[str]) -> bool:
    """True where a name has one of the extensions, and no part of it is hidden."""
    return ending_of(name) in extensions and seen(name)


def ending_of(name: str) -> str:
    """The ending of a name in lower case, with its dot; empty where there is none."""
    start = name.rfind("/") + 1
    dot = name.rfind(".")
    return name[dot:].lower() if dot > start else ""


def check_utf8(location: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AigiError(f"{location}: the name {name!r} is not UTF-8; rename the file") from None
    return name


SIDECARS = (".txt", ".TXT", ".caption", ".json", ".JSON")
"""Of files beside an image that may have its caption; of JSON, it is what `caption` has."""


def sidecars(name: str) -> tuple[str, ...]:
    """Names that the file with the caption of an image may have, the first ones first."""
    base = os.path.splitext(name)[0]
    return (base + SIDECARS[0], name + SIDECARS[0], *(base + ending for ending in SIDECARS[1:]))


class Beside:
    """Tells which files may have the caption of one of some images, as `sidecars` names them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._bases = {os.path.splitext(name)[0] for name in self._names}

    def __contains__(self, name: str) -> bool:
        base, ending = os.path.splitext(name)
        if ending not in SIDECARS:
            return False
        return base in self._bases or (ending == SIDECARS[0] and base in self._names)


OTHERS = frozenset(
    [*SIDECARS, ".csv", ".tsv", ".jsonl", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".py",
     ".parquet", ".arrow", ".zip", ".tar", ".gz", ".npy", ".npz", ".safetensors", ".mp4", ".ini"]
)  # fmt: skip
"""Endings of files that nobody takes to be images, whatever is in them."""
NOT_AN_IMAGE = "not an image"
"""Why a file is left out whose name says that it is something else."""
HEAD = 64
"""Bytes that tell what a file is."""


def of_image(name: str, head: Callable[[str, int], bytes]) -> str | None:
    """Why a file is no image to read; None: it is one, by its ending or else by its content.

    Args:
        head: reads the first bytes of a file.
    """
    ending = ending_of(name)
    if ending in EXTENSIONS:
        return None
    if ending in OTHERS:
        return NOT_AN_IMAGE
    try:
        kind_of(head(name, HEAD))
    except Escapes:
        return "a link that leads out of the folder"
    except BadPicture as error:
        return str(error).replace("not a picture", NOT_AN_IMAGE)
    return None


def may_be_image(name: str) -> bool:
    """Whether a file could be an image, by its name alone."""
    return seen(name) and ending_of(name) not in OTHERS


def seen(name: str) -> bool:
    """Whether no part of a name is hidden."""
    if "/." not in name and name[:1] != "." and "__MACOSX" not in name:
        return True
    parts = name.split("/")
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadPicture(f"too large: {size} bytes > {MAX_FILE_BYTES}")
