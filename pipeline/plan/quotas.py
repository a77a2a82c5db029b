"""A specification and the `plan` section in, the counts of every source and split out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from pipeline import AigiError
from pipeline.complaints import hint
from pipeline.pixels import Format
from pipeline.plan.specification import (
    Dataset,
    PromptedSpec,
    SourceSpec,
    SplitSpec,
    ZooSpec,
    place_of,
)
from pipeline.settings import SPLITS, Count, Location, Settings

Specified = Annotated[
    Annotated[Location, Tag("str")] | Annotated[Dataset, Tag("Dataset")],
    Discriminator(lambda given: "str" if isinstance(given, str) else "Dataset"),
]
"""A file with a dataset specification, or the specification itself."""


class Plan(Settings):
    """Dataset specification and prompts in, the `plan` table out: one row per image."""

    dataset: Specified = Field(
        description="dataset specification (manifests/): a file, a manifest, or the specification "
        "itself, in place"
    )
    manifest: Location | None = Field(
        None,
        description="manifest of a release, to make the same plan again; then only the locations "
        "in this workflow (folders and files on this machine) are used",
    )
    sources: tuple[str, ...] | None = Field(None, description="null: all of the specification")
    limit: Count | None = Field(None, description="at most this many images per source and split")
    margin: float = Field(0.0, ge=0, le=1, description="share of extra images, for the filters")
    seed: int = Field(0, description="one of the values from which every image's seed is hashed")
    shard_mb: float = Field(
        200,
        gt=0,
        le=200,
        description="megabytes of images in a shard, estimated as 1.5 bytes a pixel",
    )
    reuse: tuple[Location, ...] = Field(
        (),
        description="runs and releases from which images are taken by their ids, instead of making "
        "them again: folders, s3://BUCKET/RUN or hf://datasets/ORG/NAME@REVISION",
    )


# The published release is about 455 GB of PNG for 3.0e11 pixels. WebP without loss has some 23 %
# fewer bytes (tests/perf/README.md), here a little less.
BYTES_PER_PIXEL: dict[Format, float] = {"png": 1.5, "webp": 1.2}
PLANNED_BYTES_PER_PIXEL = 1.5
"""For the size of shards, whatever images are stored in: so plans of before stay as they are."""


@dataclass(frozen=True)
class Quota:
    """How many images one source and split need, and how many are planned."""

    source: str
    split: str
    spec: SplitSpec
    generations: int
    planned: int
    prompts: int
    shards: int

    @property
    def images(self) -> int:
        """Images needed in the release."""
        return self.generations * len(self.spec.watermarks)


def generations_of(spec: SplitSpec, plan: Plan, found: int = 0) -> int:
    """Generations needed; `found` where the count is open."""
    count = found if spec.count is None else spec.count
    return count if plan.limit is None else min(count, plan.limit)


def shard_rows(width: int, height: int, variants: int, shard_mb: float) -> int:
    """Generations per shard: about `shard_mb`, in multiples of 16 where that many fit."""
    fit = int(shard_mb * 1e6 / (PLANNED_BYTES_PER_PIXEL * width * height * variants))
    return max(1, fit - fit % 16 if fit >= 16 else fit)


def chosen(dataset: Dataset, plan: Plan) -> list[str]:
    """Names of the sources to plan.

    Raises:
        AigiError: a name that the specification does not have.
    """
    for name in plan.sources or ():
        if name not in dataset.sources:
            raise AigiError(
                f"plan.sources: {name!r} is not in {place_of(plan.dataset)}, which has "
                + ", ".join(dataset.sources)
                + hint(name, dataset.sources)
            )
    return [name for name in dataset.sources if plan.sources is None or name in plan.sources]


def shares(source: SourceSpec, split: str, planned: int) -> list[int]:
    """How many of the generations of a source and split each of its models makes."""
    if not isinstance(source, ZooSpec):
        return [planned]
    turns = source.turns(split)
    laps, rest = divmod(planned, max(1, len(turns)))
    whole, more = Counter(turns), Counter(turns[:rest])
    return [laps * whole[model] + more[model] for model in range(len(source.members))]


def quotas(dataset: Dataset, plan: Plan) -> list[Quota]:
    """Counts of every source and split, from the specification alone (for `--dry-run`)."""
    found = []
    for name in chosen(dataset, plan):
        source = dataset.sources[name]
        for split in SPLITS:
            spec = source.splits.get(split)
            if spec is None:
                continue
            wanted = generations_of(spec, plan)
            planned = math.ceil(wanted * (1 + plan.margin))
            each = source.images_per_prompt if isinstance(source, PromptedSpec) else 1
            rows = shard_rows(
                spec.width or 1024, spec.height or 1024, len(spec.watermarks), plan.shard_mb
            )
            found.append(
                Quota(
                    source=name,
                    split=split,
                    spec=spec,
                    generations=wanted,
                    planned=planned,
                    prompts=math.ceil(planned / each),
                    shards=sum(math.ceil(count / rows) for count in shares(source, split, planned)),
                )
            )
    return found
