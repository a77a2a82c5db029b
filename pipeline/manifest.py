"""What a manifest and its plan are: a location in, a release opened for reading out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import pyarrow as pa

from pipeline import AigiError
from pipeline.settings import read_yaml
from pipeline.store import Store

MANIFEST = "manifest.json"


CARD = "README.md"
"""In a run directory: the workflow of its last run, locations included. It is not published."""


PLAN_FILE = "plan.arrow"
"""Every planned image, kept or not, with its shard: with it, batches can be made again."""


class FileRecord(TypedDict):
    """One parquet file of a release."""

    path: str
    config: str
    split: str
    rows: int
    bytes: int
    sha256: str


class DocumentRecord(TypedDict):
    """One file of a release that is not a table: card, metadata, image."""

    path: str
    bytes: int
    sha256: str


def find_release(target: str) -> tuple[Store, dict[str, Any]] | None:
    """The files and the manifest of a release; None where there is no manifest.

    Args:
        target: a release folder, the run directory above it, or an fsspec URL of one; a Hub
            dataset is `hf://datasets/ORG/NAME@REVISION`.

    Raises:
        AigiError: it cannot be read.
    """
    for url in (target, target.rstrip("/") + "/release"):
        store = Store(url)
        try:
            manifest = store.read_json(MANIFEST)
        except OSError as error:
            raise AigiError(f"{target}: cannot be read: {error}") from error
        if manifest is not None:
            for record in manifest.get("files", ()):
                store.expect(record["path"], record["bytes"], record["sha256"])
            return store, manifest
    return None


def open_release(target: str) -> tuple[Store, dict[str, Any]]:
    """The files and the manifest of a release, as `find_release`.

    Raises:
        AigiError: there is no manifest.
    """
    if (found := find_release(target)) is not None:
        return found
    raise AigiError(
        f"{target}: no {MANIFEST}: not a release. Give a release folder, a run, or "
        "hf://datasets/ORG/NAME@REVISION"
    )


def read_manifest(location: str) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        AigiError: no such file, or not a manifest of this version of aigi.
    """
    data = dict(read_yaml(location))
    for key in ("workflow", "specification", "plan"):
        if not isinstance(data.get(key), dict):
            raise AigiError(f"{location}: {key}: missing; this is not a manifest of a release")
    return data


def plan_beside(location: str, manifest: Mapping[str, Any]) -> tuple[Store, str] | None:
    """The store and the name of the plan that belongs to a manifest; None: there is none."""
    store = Store(posixpath.dirname(location))
    listed = any(document["path"] == PLAN_FILE for document in manifest["documents"])
    return (store, PLAN_FILE) if listed and store.fs.exists(store.path(PLAN_FILE)) else None


def read_plan(location: str, manifest: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The plan beside a manifest, one table per shard: PLAN and the name of the `shard`.

    Raises:
        AigiError: it is missing, or not the plan of the manifest.
    """
    beside = plan_beside(location, manifest)
    if beside is None:
        raise AigiError(f"{location}: no {PLAN_FILE} beside it")
    store, name = beside
    expected = next(d["sha256"] for d in manifest["documents"] if d["path"] == PLAN_FILE)
    if store.sha256(name) != expected:
        raise AigiError(f"{store.path(name)}: changed since the release; fetch it again")
    with store.fs.open(store.path(name), "rb") as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])
