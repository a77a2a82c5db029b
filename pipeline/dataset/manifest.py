"""A release folder and its manifest in, a list of every difference out (`aigi verify`)."""

from __future__ import annotations

import posixpath
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from pipeline import AigiError
from pipeline.tables import Store

MANIFEST = "manifest.json"
CARD = "README.md"
LIBRARIES = (
    "accelerate",
    "datasets",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "ray",
    "torch",
    "transformers",
)


class FileRecord(TypedDict):
    """One parquet file of a release."""

    path: str
    config: str
    split: str
    rows: int
    bytes: int
    sha256: str


class DocumentRecord(TypedDict):
    """One file of a release that is no table: card, metadata, picture."""

    path: str
    bytes: int
    sha256: str


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a release."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that runs, `+changes` where it is not clean; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def verify(folder: str) -> tuple[dict[str, Any], list[str]]:
    """Compare a release folder (or URL) with the manifest inside it.

    Returns:
        The manifest, and one line for every file that is missing, extra or different.

    Raises:
        AigiError: there is no manifest.
    """
    store = Store(folder)
    manifest = store.read_json(MANIFEST)
    if manifest is None:
        raise AigiError(
            f"{folder}: no {MANIFEST}: not a release. Give the release folder, RUN/release"
        )
    found = []
    listed = {record["path"]: record for record in manifest["files"]}
    sizes = {f"{name}.parquet": size for name, size in store.shards("").items()}
    for path, record in listed.items():
        # Only files that were found below the folder are opened: a name cannot lead out of it.
        if path not in sizes:
            found.append(f"{path}: missing")
            continue
        if sizes[path] != record["bytes"]:
            found.append(f"{path}: {sizes[path]:,} bytes, expected {record['bytes']:,}")
        digest = store.sha256(path)
        if digest != record["sha256"]:
            found.append(f"{path}: sha256 {digest}, expected {record['sha256']}")
            continue
        rows = store.rows("", path.removesuffix(".parquet"))
        if rows != record["rows"]:
            found.append(f"{path}: {rows} rows, expected {record['rows']}")
    found += [f"{path}: not in the manifest" for path in sizes if path not in listed]
    for record in manifest["documents"]:
        path = record["path"]
        if posixpath.basename(path) != path or path in ("", ".", ".."):
            found.append(f"{path}: not a file beside {MANIFEST}")
        elif not store.fs.exists(store.path(path)):
            found.append(f"{path}: missing")
        elif (digest := store.sha256(path)) != record["sha256"]:
            found.append(f"{path}: sha256 {digest}, expected {record['sha256']}")
    return manifest, found
