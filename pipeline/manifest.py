"""What a manifest and its plan are: a location in, a release opened for reading out."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from pydantic import Field, model_validator

from pipeline import AigiError, records
from pipeline.records import Number, Record, Sha256
from pipeline.settings import Split, read_yaml
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


# --- What a manifest contains --------------------------------------------------------------------

REMEDY = "Fetch the release again, or make it again."
_Config = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
_Beside = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Cell = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/(train|validation|test)$")]
"""A source and a split."""


class _File(Record):
    path: Annotated[str, Field(max_length=240)]
    config: _Config
    split: Split
    rows: Number = 0
    bytes: Number = 0
    sha256: Sha256

    @model_validator(mode="after")
    def _is_named_for_its_rows(self) -> _File:
        head = f"{self.config}/{self.split}-"
        name = self.path.removeprefix(head).removesuffix(".parquet")
        safe = name and name.replace("-", "").replace(".", "").replace("_", "").isalnum()
        if self.path != f"{head}{name}.parquet" or not safe or not name.isascii():
            raise ValueError(f"{self.path!r} is not the name of a release file, {head}….parquet")
        return self


class _Document(Record):
    path: _Beside
    bytes: Number
    sha256: Sha256


class _Content(Record):
    """As `pipeline.files.signature` returns it."""

    bytes: Number | None = None
    files: Number | None = None
    sha256: Sha256


class _Captions(Record):
    file: str
    content: _Content | None


class _Plan(Record):
    shards: Number
    rows: Number
    sha256: Sha256
    rounds: list[dict[Cell, Number]]


class _Maker(Record):
    version: str
    commit: str | None


class Manifest(Record):
    """The entries of a manifest, for those who read images; who makes a release again needs all.

    What `specification` and `workflow` contain is checked where they are used, by the models of a
    specification and of the sections.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)] = ""
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$", max_length=40)] = ""
    files: list[_File]
    documents: list[_Document] = []
    columns: Annotated[list[str], Field(alias="schema")] = []
    specification: dict[str, Any] = {}
    plan: _Plan | None = None
    workflow: dict[str, Any] = {}
    captions: list[_Captions] = []
    wanted: dict[Cell, Number] = {}
    tables: dict[str, Annotated[str, Field(pattern="^[0-9a-z]{1,64}$")]] = {}
    aigi: _Maker | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _lists_each_file_once(self) -> Manifest:
        seen: set[str] = set()
        for record in [*self.files, *self.documents]:
            if record.path in seen or record.path == MANIFEST:
                raise ValueError(f"{record.path} is listed twice, or is this file")
            seen.add(record.path)
        return self


ENTRIES = tuple(field.alias or name for name, field in Manifest.model_fields.items())
"""All entries of a whole manifest; `files` suffices to read images."""


def checked(data: dict[str, Any], where: str, entries: tuple[str, ...] = ENTRIES) -> dict[str, Any]:
    """The manifest itself, once it is known that it is one.

    Args:
        where: its location, for messages.
        entries: those that it must have.

    Raises:
        AigiError: in one line, with the entry that is wrong.
    """
    manifest = records.check(Manifest, data, where, REMEDY)
    for entry in entries:
        if data.get(entry) is None:
            raise records.refused(where, entry, "needed, but not given", REMEDY)
    if entries == ENTRIES:
        for number, file in enumerate(manifest.files):
            for entry in {"rows", "bytes"} - file.model_fields_set:
                raise records.refused(where, f"files.{number}.{entry}", "needed", REMEDY)
    return data


def find_release(
    target: str, entries: tuple[str, ...] = ("files",)
) -> tuple[Store, dict[str, Any]] | None:
    """The files and the manifest of a release; None where there is no manifest.

    Args:
        target: a release folder, the run directory above it, or an fsspec URL of one; a Hub
            dataset is `hf://datasets/ORG/NAME@REVISION`.
        entries: those that the manifest must have.

    Raises:
        AigiError: it cannot be read, or the manifest is damaged.
    """
    for url in (target, target.rstrip("/") + "/release"):
        store = Store(url)
        try:
            manifest = store.read_json(MANIFEST, remedy=REMEDY)
        except OSError as error:
            raise AigiError(f"{target}: cannot be read: {error}") from error
        if manifest is not None:
            return store, checked(manifest, store.path(MANIFEST), entries)
    return None


def open_release(
    target: str, entries: tuple[str, ...] = ("files",)
) -> tuple[Store, dict[str, Any]]:
    """The files and the manifest of a release, as `find_release`.

    Raises:
        AigiError: there is no manifest.
    """
    if (found := find_release(target, entries)) is not None:
        return found
    raise AigiError(
        f"{target}: no {MANIFEST}: not a release. Give a release folder, a run, or "
        "hf://datasets/ORG/NAME@REVISION"
    )


def read_manifest(location: str) -> dict[str, Any]:
    """Read a whole manifest.

    Raises:
        AigiError: no such file, or not a manifest of this version of aigi.
    """
    data = dict(read_yaml(location))
    if "specification" not in data and "files" not in data:
        raise AigiError(f"{location}: specification: missing; this is not a manifest of a release")
    return checked(data, location)


def plan_beside(location: str, manifest: Mapping[str, Any]) -> tuple[Store, str] | None:
    """The store and the name of the plan that belongs to a manifest; None: there is none."""
    store = Store(posixpath.dirname(location))
    listed = any(document["path"] == PLAN_FILE for document in manifest["documents"])
    return (store, PLAN_FILE) if listed and store.fs.exists(store.path(PLAN_FILE)) else None
