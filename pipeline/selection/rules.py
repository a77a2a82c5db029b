"""The `selection` section: thresholds, the reasons they give, and the checks of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
)

from pipeline import AigiError
from pipeline.selection.candidates import Candidates
from pipeline.settings import Location, Settings, Share

if TYPE_CHECKING:
    from pipeline.workflow import Workflow

REASONS = (
    "failed", "review", "size", "blank", "compressed", "nsfw", "concept", "clip_score",
    "duplicate", "surplus",
)  # fmt: skip


def flags(known: Candidates, rules: Selection) -> dict[str, NDArray[np.bool_]]:
    """Which images each score-based reason speaks against, by thresholds alone.

    A missing score speaks against nothing.
    """
    score = known.scores

    def below(name: str, least: float | None) -> NDArray[np.bool_]:
        return score[name] < (-np.inf if least is None else least)

    def above(name: str, most: float | None) -> NDArray[np.bool_]:
        return score[name] > (np.inf if most is None else most)

    concept = np.zeros(len(known.image_id), np.bool_)
    for name, most in rules.max_concepts.items():
        if name not in known.concepts and len(known.image_id):
            raise AigiError(
                f"selection.max_concepts.{name}: no such concept was scored; "
                f"quality.concepts has {', '.join(known.concepts) or 'none'}"
            )
        concept |= known.concepts[name] > most
    return {
        "size": score["width_ok"] == 0 if rules.planned_size else concept & False,
        "blank": above("black", rules.max_black)
        | above("blank", rules.max_blank)
        | below("luminance_std", rules.min_luminance_std)
        | below("entropy", rules.min_entropy),
        "compressed": above("blockiness", rules.max_blockiness),
        "nsfw": above("nsfw", rules.max_nsfw),
        "concept": concept,
        "clip_score": below("clip_score", rules.min_clip_score),
    }


def check_rules(workflow: Workflow, rules: Selection) -> None:
    """Refuse thresholds that nothing would be compared with; defaults ask for what there is."""
    embeddings, quality, near = workflow.embeddings, workflow.quality, workflow.duplicates
    # By value, not by what was written down: a manifest writes the defaults down as well.
    default = Selection()
    values = {name: getattr(rules, name) for name in Selection.model_fields}
    asked = {
        name
        for name, value in values.items()
        if value is not None and value is not False and value != getattr(default, name)
    }
    scored = {
        "min_clip_score": ("embeddings", embeddings),
        "max_nsfw": ("quality.safety_checker", quality and quality.safety_checker),
        "min_similarity": ("duplicates.min_similarity", near and near.min_similarity),
        "min_hash_similarity": (
            "duplicates.min_hash_similarity",
            near and near.min_hash_similarity,
        ),
        **dict.fromkeys(
            ("max_black", "max_blank", "min_luminance_std", "min_entropy",
             "max_blockiness"),
            ("quality", quality),
        ),
    }  # fmt: skip
    for name, (source, there) in scored.items():
        if name in asked and there is None:
            raise AigiError(
                f"selection.{name}: it needs {source}, which the workflow does not have: set "
                f"that, or leave {name} out"
            )
    for name in ("min_similarity", "min_hash_similarity"):
        least, found = getattr(rules, name), near and getattr(near, name)
        if least is not None and found is not None and least < found:
            raise AigiError(
                f"selection.{name}: {least:g} is below duplicates.{name} ({found:g}): pairs "
                "between the two are not looked for. Raise it, or lower that one."
            )
    for name in rules.max_concepts:
        if quality is None or name not in quality.concepts:
            raise AigiError(
                f"selection.max_concepts.{name}: no such concept is scored; quality.concepts has "
                f"{', '.join(quality.concepts) if quality and quality.concepts else 'none'}"
            )


class Selection(Settings):
    """All scores in, the `selection` table out. Null: this reason is not asked for."""

    planned_size: bool = Field(True, description="drop what is not of the planned size")
    max_black: Share | None = Field(0.98, description="share of nearly black pixels")
    max_blank: Share | None = Field(0.98, description="share of the commonest colour")
    min_luminance_std: float | None = Field(None, ge=0, le=128)
    min_entropy: float | None = Field(None, ge=0, le=8, description="bits")
    max_blockiness: float | None = Field(None, description="1: no grid")
    max_nsfw: float | None = Field(None, description="0: what the safety checker flags")
    max_concepts: dict[str, Share] = Field(default_factory=dict)
    min_clip_score: float | None = Field(None, ge=-1, le=1)
    exact_duplicates: bool = Field(True, description="drop pictures of equal pixels")
    min_similarity: float | None = Field(None, gt=0, le=1, description="cosine of duplicates")
    min_hash_similarity: float | None = Field(None, ge=0.75, le=1)
    review: Location | None = Field(None, description="CSV or parquet: image_id, decision")
    rounds: Annotated[int, Field(ge=0, le=9)] = Field(
        0, description="top-up rounds: new generations for what was dropped, until quotas are met"
    )
