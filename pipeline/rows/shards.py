"""A file, a folder or a pattern of files in; its files out, each with its short name."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Collection
from typing import Any

from pipeline import AigiError
from pipeline.files import fixed_part, signature
from pipeline.outside import file_system, protocol_of, reached
from pipeline.rows.lines import Held
from pipeline.rows.rows import ending_of
from pipeline.shown import public_url


def short_name(path: str) -> str:
    """The last part of a place, without what signs it."""
    place = public_url(path)
    return posixpath.basename(place.rstrip("/")) or place


def files_of(path: str, endings: Collection[str]) -> list[tuple[str, str]]:
    """Files of a place, each with the name by which rows of it are told, in the order of names.

    Args:
        path: a file; a folder, of which all files with one of the endings are taken; or a
            pattern (`part-*.csv`, `**/*.parquet`). Local, or an fsspec URL.
        endings: of files in a folder, without those of compressions.

    Raises:
        AigiError: a folder or pattern without such a file.
    """
    if isinstance(path, Held):
        return [(path, short_name(path))]
    start = fixed_part(path)
    if protocol_of(path) in ("http", "https"):
        return [(path, short_name(path))]
    fs, root = file_system(path)
    with reached(path):
        if fs.exists(root):
            if not fs.isdir(root):
                return [(path, short_name(path))]
            inside = [
                name
                for name in sorted(fs.find(root))
                if ending_of(name) in endings and not _hidden(name[len(root) :])
            ]
            if not inside:
                raise AigiError(
                    f"{path}: a folder without a file that ends in {' or '.join(sorted(endings))}"
                )
        elif start is not None:
            inside = [name for name in sorted(fs.glob(root)) if not fs.isdir(name)]
            root = root[: len(root) - len(path) + len(start)]
            if not inside:
                raise AigiError(f"{path}: no file fits this pattern")
        else:
            return [(path, short_name(path))]  # whoever opens it explains
    return [(fs.unstrip_protocol(name) if "://" in path else name,
             name[len(root) :].lstrip("/")) for name in inside]  # fmt: skip


def content_of(path: str, endings: Collection[str]) -> dict[str, Any]:
    """What stands for the content of the files of a place. Raises as `files_of` does."""
    files = files_of(path, endings)
    if [place for place, _ in files] == [path]:
        return signature(path)
    each = [(name, signature(place)) for place, name in files]
    return {"files": len(each), "sha256": hashlib.sha256(json.dumps(each).encode()).hexdigest()}


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))
