"""What a manifest and its plan are: a location in, a release opened for reading out.

The order of what a manifest lists is data: its sources are in the order of the specification, and
the first one with files is the config that `datasets` loads by default. Manifests of before have
all keys sorted, and their sources, too.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from pydantic import Field, model_validator

from pipeline import AigiError, gate
from pipeline.complaints import shown
from pipeline.folder import Folder, as_json
from pipeline.gate import Checked, Number, Sha256, matching
from pipeline.settings import Split, read_yaml
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.versions import PATTERN

MANIFEST = "manifest.json"
CARD = "README.md"
"""The page of a release: its front matter, for the Hub, and what it contains, for people."""
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
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_Config = Annotated[str, matching(_NAME, "the name of a source")]
_Beside = Annotated[str, matching(_NAME, "the name of a file in the release's folder")]
Cell = Annotated[str, matching(f"{_NAME}/(train|validation|test)", "SOURCE/SPLIT")]
"""A source and a split."""


class _File(Checked):
    path: str
    config: _Config
    split: Split
    rows: Number = 0
    bytes: Number = 0
    sha256: Sha256

    @model_validator(mode="after")
    def _is_named_for_its_rows(self) -> _File:
        name = rf"{re.escape(self.config)}/{self.split}-[A-Za-z0-9._-]{{1,100}}\.parquet"
        if re.fullmatch(name, self.path) is None:
            expected = f"{self.config}/{self.split}-….parquet"
            raise ValueError(f"path: expected {expected}, found {shown(self.path)}")
        return self


class _Document(Checked):
    path: _Beside
    bytes: Number
    sha256: Sha256


class _Content(Checked):
    """As `pipeline.files.signature` returns it."""

    bytes: Number | None = None
    files: Number | None = None
    sha256: Sha256


class _Captions(Checked):
    file: str
    content: _Content | None


class _Plan(Checked):
    shards: Number
    rows: Number
    sha256: Sha256
    rounds: list[dict[Cell, Number]]


class _Maker(Checked):
    version: str
    commit: str | None


class Origin(Checked):
    """Prompts of one place: see `pipeline.release.counts.PromptCount`."""

    source: str
    place: str
    kept: Number
    used: Number
    images: Number
    truncated: Number


class Why(Checked):
    """How many captions, or imported images, of a source were refused for a reason."""

    source: str
    reason: str
    count: Number


class Read(Checked):
    """How a model reads the prompts: see `pipeline.release.counts.Reading`."""

    most: Number
    cut: Number


class Counted(Checked):
    """What a card states and a release made again cannot count: its plan is copied.

    Attributes:
        rows: sha256 of the ids of all images, of which the rest holds.
        origins: of its prompts.
        refused: captions that did not become prompts.
        unplanned: images of imports that could not be planned.
        readings: by source.
        unasked: sources of the specification that `plan.sources` left out.
    """

    rows: Sha256
    origins: list[Origin]
    refused: list[Why]
    unplanned: list[Why]
    readings: dict[_Config, Read]
    unasked: list[_Config]


_Version = Annotated[str, matching(PATTERN, "a version, 1.0.0")]
_Fingerprint = Annotated[str, matching("[0-9a-z]{1,64}", "a fingerprint")]


class Maker(Checked):
    """A run that made some sources of a release: what holds of these alone.

    Attributes:
        sources: their names.
        version: of the release with which they came.
        counted: of all that the run had made by then, which may be more than what is here.
    """

    sources: Annotated[list[_Config], Field(min_length=1)]
    version: _Version
    workflow: dict[str, Any]
    captions: list[_Captions]
    tables: dict[str, _Fingerprint]
    aigi: _Maker
    versions: dict[str, str]
    counted: Counted | None = None


class Manifest(Checked):
    """The entries of a manifest, for those who read images; who makes a release again needs all.

    What `specification` and `workflow` contain is checked where they are used, by the models of a
    specification and of the sections.

    A release that several runs made together has `makers`, see `pipeline.makers`. Then `workflow`
    and `tables` are empty, `captions` are those of all, `versions` those that all have in common,
    and `aigi` is what put it together. `schemas` are those of the configs whose files have other
    columns than `schema` lists.
    """

    name: Annotated[str, matching("[a-z0-9][a-z0-9-]{0,99}", "the name of a dataset")] = ""
    version: _Version = ""
    files: list[_File]
    documents: list[_Document] = Field(default_factory=list)
    columns: list[str] = Field(default_factory=list, alias="schema")
    specification: dict[str, Any] = Field(default_factory=dict)
    plan: _Plan | None = None
    workflow: dict[str, Any] = Field(default_factory=dict)
    captions: list[_Captions] = Field(default_factory=list)
    wanted: dict[Cell, Number] = Field(default_factory=dict)
    counted: Counted | None = None
    tables: dict[str, _Fingerprint] = Field(default_factory=dict)
    aigi: _Maker | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    makers: Annotated[list[Maker], Field(min_length=2)] | None = None
    schemas: dict[_Config, list[str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _lists_each_file_once(self) -> Manifest:
        seen: set[str] = set()
        for path in [*(f.path for f in self.files), *(d.path for d in self.documents)]:
            if path in seen or path == MANIFEST:
                raise ValueError(f"{path}: listed twice, or this file itself")
            seen.add(path)
        return self

    @model_validator(mode="after")
    def _has_one_maker_of_each_source(self) -> Manifest:
        if self.makers is not None:
            made = [source for maker in self.makers for source in maker.sources]
            if sorted(made) != sorted(self.specification.get("sources") or ()):
                raise ValueError("makers: each source of the specification has one maker")
        return self


_LATER = ("counted", "makers", "schemas")
"""Entries that manifests of before, or most of them, do not have."""
ENTRIES = tuple(
    entry
    for name, field in Manifest.model_fields.items()
    if (entry := field.alias or name) not in _LATER
)
"""All entries of a whole manifest; `files` suffices to read images."""


def ordered(manifest: Mapping[str, Any]) -> bool:
    """Whether the order of its sources is that of their specification; before, all were sorted."""
    return list(manifest) != sorted(manifest)


def write_manifest(store: Folder, manifest: Mapping[str, Any], *parts: str) -> None:
    """Write a manifest whole or not at all; the order of its entries and sources is kept."""
    store.write_bytes(as_json(manifest, ordered=True), *parts)


def checked(
    data: dict[str, Any],
    where: str,
    entries: tuple[str, ...] = ENTRIES,
    remedy: str = REMEDY,
) -> dict[str, Any]:
    """The manifest itself, once it is known that it is one.

    Args:
        where: its location, for messages.
        entries: those that it must have.
        remedy: what to do if it is not one: a sentence.

    Raises:
        AigiError: in one line, with the entry that is wrong.
    """
    manifest = gate.check(Manifest, data, where, remedy)
    for entry in entries:
        if data.get(entry) is None:
            raise gate.refused(where, entry, "needed, but not given", remedy)
    if entries == ENTRIES:
        for number, file in enumerate(manifest.files):
            for entry in {"rows", "bytes"} - file.model_fields_set:
                raise gate.refused(where, f"files.{number}.{entry}", "needed", remedy)
    return data


def columns_of(manifest: Mapping[str, Any], config: str) -> list[str]:
    """Columns of the files of a config, as `schema` lists them."""
    found: list[str] = (manifest.get("schemas") or {}).get(config, manifest["schema"])
    return found


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
            checked(manifest, store.path(MANIFEST), entries)
            for record in manifest["files"]:
                store.expect(record["path"], record.get("bytes"), record["sha256"])
            return store, manifest
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
    raise AigiError(f"{target}: {_why_none(target)}")


def _why_none(target: str) -> str:
    """Why there is no release at a location, and what to do."""
    made_by = Store(target).read_json(RUN_WORKFLOW)
    if made_by is None:
        return (
            f"no {MANIFEST}: not a release. Give a release folder, a run, or "
            "hf://datasets/ORG/NAME@REVISION"
        )
    if made_by.get("release") is None:
        return (
            "the workflow of this run has no `release` section, so it has no release. Add "
            "`release: {}` to the workflow, and run it again: what is made stays."
        )
    return (
        "this run has no release yet: it is not finished. `aigi status` shows how far it is; the "
        "same `aigi run` goes on. Sources that are complete: aigi publish --partial."
    )


def is_manifest(data: Mapping[str, Any]) -> bool:
    """Whether what a file contains is meant to be a manifest, and no workflow."""
    return "specification" in data and "files" in data


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
