"""The `release` section of a workflow, and which sections only read a release."""

from __future__ import annotations

from pydantic import Field

from pipeline.settings import Location, Settings


class Release(Settings):
    """All tables in, parquet files, card and manifest out."""

    version: str = Field("1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    record: Location | None = Field(None, description="folder that gets a copy of the manifest")


READERS = frozenset({"characteristics", "alignments", "train", "benchmark"})
"""Sections that read a release: nothing of them decides a byte of one."""
