"""Files in, hashes and lines of text out."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from typing import Any

import fsspec

from pipeline import AigiError


def file_sha256(path: str) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: str, weights: str) -> dict[str, str]:
    """Name and sha256 of the weights and of every configuration file beside them."""
    kinds = (".json", ".txt", ".model")
    return {
        name: file_sha256(os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name.endswith(kinds) or name == os.path.basename(weights)
    }


INVALID = "invalid UTF-8"


# "surrogateescape" turns each byte that is not UTF-8 into one of these.
ESCAPED = re.compile("[\udc80-\udcff]")


def decode_lines(block: bytes, first: int = 1) -> tuple[list[str], dict[int, str]]:
    """Lines of a text without their endings, and the problem of each that is not UTF-8.

    Args:
        block: whole lines.
        first: number of the first; where it is 1, a byte order mark is dropped.
    """
    if first == 1:
        block = block.removeprefix(codecs.BOM_UTF8)
    valid = True
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text, valid = block.decode("utf-8", "surrogateescape"), False
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    if not lines[-1]:  # what follows the last line end is no line
        lines.pop()
    if valid:
        return lines, {}
    return lines, {n: INVALID for n, line in enumerate(lines, first) if ESCAPED.search(line)}


def signature(path: str) -> dict[str, Any]:
    """Size and a hash of a file's content: of all of it to 64 MiB, of three samples beyond.

    Raises:
        AigiError: no such file.
    """
    fs, name = fsspec.core.url_to_fs(path)
    try:
        info = fs.info(name)
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file or folder") from None
    if info["type"] == "directory":
        files = fs.find(name, detail=True)
        listing = sorted(
            (file[len(name) :], int(item["size"] or 0)) for file, item in files.items()
        )
        return {"files": len(listing), "sha256": hashlib.sha256(repr(listing).encode()).hexdigest()}
    size, sample = int(info["size"]), 1 << 20
    digest = hashlib.sha256()
    with fs.open(name, "rb") as file:
        if size <= 64 * sample:
            digest.update(file.read())
        else:
            for start in (0, size // 2, size - sample):
                file.seek(start)
                digest.update(file.read(sample))
    return {"bytes": size, "sha256": digest.hexdigest()}
