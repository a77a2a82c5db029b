"""The `release` section, and all sections of a workflow that decide the bytes of a release."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline import AigiError
from pipeline.duplicates.duplicates import Duplicates
from pipeline.gate import matching
from pipeline.images.images import Images, LocalSource
from pipeline.models.clip import Embeddings
from pipeline.plan.quotas import Plan
from pipeline.prompts.prompts import Prompts
from pipeline.prompts.text import SplitShares
from pipeline.scores.quality import Quality
from pipeline.selection.rules import Scored, Selection
from pipeline.settings import Location, Settings
from pipeline.stage import Compute
from pipeline.versions import PATTERN


class Release(Settings):
    """All tables in, parquet files, card and manifest out."""

    version: Annotated[str, matching(PATTERN, "a version, such as 1.0.0")] = Field(
        "1.0.0",
        description="of the release; publishing makes it a tag; 1.0.0-rc.1 is lower than 1.0.0",
    )
    record: Location | None = Field(None, description="folder that gets a copy of the manifest")
    pixels: Literal["moved", "copied"] | None = Field(
        None,
        description="moved: a run has one copy of each image, that of its release; copied: images "
        "that are released stay in the run's images, too; null: as the run began, a new one moves",
    )


class Recipe(Settings):
    """The sections that make a release, and where. The others of a workflow only read one."""

    run: Location = Field(
        description="run directory: a folder, or an fsspec URL such as s3://BUCKET/NAME"
    )
    compute: Compute = Compute()
    split: SplitShares = SplitShares()
    prompts: Prompts | None = None
    sources: dict[str, LocalSource] = Field(default_factory=dict)
    plan: Plan | None = None
    images: Images | None = None
    embeddings: Embeddings | None = None
    quality: Quality | None = None
    duplicates: Duplicates | None = None
    selection: Selection | None = None
    release: Release | None = None

    @property
    def scored(self) -> Scored:
        """The sections that make what the selection compares with."""
        return Scored(self.embeddings, self.quality, self.duplicates)

    @property
    def rules(self) -> Selection:
        """The rules of the selection; images are selected without a section of that name, too."""
        return self.selection or Selection()

    def planned(self, section: str) -> Plan:
        """The plan.

        Args:
            section: which one needs it, for the message.

        Raises:
            AigiError: there is no plan section.
        """
        if self.plan is None:
            raise AigiError(f"{section}: this section needs a plan section in the workflow")
        return self.plan
