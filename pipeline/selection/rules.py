"""The `selection` section: the one table of its rules, their thresholds, and the checks of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import AigiError
from pipeline.columns import BLOCK
from pipeline.duplicates.duplicates import Duplicates
from pipeline.models.clip import Embeddings
from pipeline.scores.quality import Quality
from pipeline.settings import Location, Settings, Share

if TYPE_CHECKING:
    from pipeline.selection.candidates import Candidates


class Rule(NamedTuple):
    """One rule, with everything that is said about it.

    Attributes:
        reason: the reason that the rule gives; several rules may give the same one.
        setting: its setting in the section `selection`; empty: the rule is always on.
        column: what the setting is compared with. It is a column of the table that `needs` begins
            with; for pairs, it is their kind.
        side: the side of the threshold on which images are dropped; empty: code decides.
        needs: the section or setting of the workflow that makes the column.
        words: its text on the dataset card, before side and threshold.
        meaning: of the column, in the report.
    """

    reason: str
    setting: str = ""
    column: str = ""
    side: Literal["", "below", "above", "at least"] = ""
    needs: str = ""
    words: str = ""
    meaning: str = ""


RULES = (
    Rule("failed", words="no picture was made"),
    Rule("review", "review", words="a person said drop"),
    Rule("size", "planned_size", "width_ok", "", "quality", "not of the planned size"),
    Rule("blank", "max_black", "black", "above", "quality",
         "share of black pixels", "share of nearly black pixels"),
    Rule("blank", "max_blank", "blank", "above", "quality",
         "share of the commonest colour", "share of the commonest colour"),
    Rule("blank", "min_luminance_std", "luminance_std", "below", "quality",
         "standard deviation of the luminance", "levels of 255"),
    Rule("blank", "min_entropy", "entropy", "below", "quality",
         "entropy in bits", "bits of the luminance histogram"),
    Rule("compressed", "max_blockiness", "blockiness", "above", "quality",
         "blockiness", "1: no grid of a JPEG"),
    Rule("nsfw", "max_nsfw", "nsfw", "above", "quality.safety_checker",
         "score of the safety checker", "safety checker, above 0: flagged"),
    Rule("concept", "max_concepts", "", "", "quality",
         "probability of “{}” above", "probability of the concept"),
    Rule("clip_score", "min_clip_score", "clip_score", "below", "embeddings",
         "cosine of image and prompt", "cosine of image and prompt"),
    Rule("duplicate", "exact_duplicates", "pixels", "", "duplicates", "equal pixels"),
    Rule("duplicate", "min_similarity", "vector", "at least", "duplicates.min_similarity",
         "cosine of two images", "similarity of near images"),
    Rule("duplicate", "min_hash_similarity", "hash", "at least",
         "duplicates.min_hash_similarity",
         "share of equal bits of two hashes", "similarity of near images"),
    Rule("surplus", words="good, but more than were wanted"),
)  # fmt: skip
"""All rules; an image has the first reason that applies."""
REASONS = tuple(dict.fromkeys(rule.reason for rule in RULES))
THRESHOLDS = tuple(rule for rule in RULES if rule.side in ("below", "above"))
PAIRS = tuple(rule for rule in RULES if rule.side == "at least")


def columns_of(table: str) -> list[str]:
    """Columns of a table of scores that rules are about."""
    found = (rule.column for rule in RULES if rule.needs.partition(".")[0] == table)
    return list(dict.fromkeys(filter(None, found)))


class Scored(NamedTuple):
    """The sections of a workflow that make what rules compare with; None: not in this run."""

    embeddings: Embeddings | None = None
    quality: Quality | None = None
    duplicates: Duplicates | None = None


def made(scored: Scored, needs: str) -> bool:
    """Whether the workflow has this section, or this setting of a section."""
    found: object = scored
    for name in filter(None, needs.split(".")):
        found = None if found is None else getattr(found, name)
    return found is not None


def flags(known: Candidates, rules: Selection) -> dict[str, NDArray[np.bool_]]:
    """The images that each score-based reason would drop, by thresholds alone.

    A missing score drops nothing.

    Returns:
        bool, shape (n,), one value for each image, by reason.
    """
    nothing = np.zeros(len(known.unit), np.bool_)
    scored = [rule for rule in RULES if rule in THRESHOLDS or rule.reason in ("size", "concept")]
    found = {rule.reason: nothing for rule in scored}
    for rule in THRESHOLDS:
        limit, values = getattr(rules, rule.setting), known.scores[rule.column]
        if limit is not None:
            found[rule.reason] = found[rule.reason] | beyond(values, limit, rule.side == "below")
    if rules.planned_size:
        found["size"] = known.scores["width_ok"] == 0
    for name, most in rules.max_concepts.items():
        if name not in known.concepts and len(known.unit):
            raise AigiError(
                f"selection.max_concepts.{name}: no such concept was scored; "
                f"quality.concepts has {', '.join(known.concepts) or 'none'}"
            )
        found["concept"] = found["concept"] | beyond(known.concepts[name], most, False)
    return found


def beyond(values: NDArray[Any], limit: float, low: bool) -> NDArray[np.bool_]:
    """Which values are below a limit, or above it where it is not `low`: bool, shape (n,).

    They are compared as float64, whatever they are: 0.1 of float32 is above 0.1.
    """
    found = np.empty(len(values), np.bool_)
    for start in range(0, len(values), BLOCK):
        some = values[start : start + BLOCK].astype(np.float64)
        found[start : start + BLOCK] = some < limit if low else some > limit
    return found


def check_rules(rules: Selection, scored: Scored) -> None:
    """Refuse thresholds without a score; a default without one is ignored."""
    quality, near = scored.quality, scored.duplicates
    # By value, not by what was written down: a manifest writes the defaults down as well.
    default = Selection()
    special_first = sorted(
        THRESHOLDS + PAIRS, key=lambda rule: (rule.needs == "quality", rule.needs != "embeddings")
    )
    for rule in special_first:
        value = getattr(rules, rule.setting)
        asked = value is not None and value != getattr(default, rule.setting)
        if asked and not made(scored, rule.needs):
            raise AigiError(
                f"selection.{rule.setting}: this rule needs {rule.needs}, which the workflow does "
                f"not have. Set {rule.needs}, or leave {rule.setting} out."
            )
    for name in (rule.setting for rule in PAIRS):
        least, found = getattr(rules, name), near and getattr(near, name)
        if least is not None and found is not None and least < found:
            raise AigiError(
                f"selection.{name}: {least:g} is below duplicates.{name} ({found:g}): pairs "
                "between the two are never found. Raise the former, or lower the latter."
            )
    for name in rules.max_concepts:
        if quality is None or name not in quality.concepts:
            raise AigiError(
                f"selection.max_concepts.{name}: no such concept is scored; quality.concepts has "
                f"{', '.join(quality.concepts) if quality and quality.concepts else 'none'}"
            )


class Selection(Settings):
    """All scores in, the `selection` table out. Null: the rule is off."""

    planned_size: bool = Field(True, description="drop images that do not have the planned size")
    max_black: Share | None = Field(0.98, description="share of nearly black pixels")
    max_blank: Share | None = Field(0.98, description="share of the commonest colour")
    min_luminance_std: float | None = Field(
        None, ge=0, le=128, description="standard deviation of the luminance, in levels of 255"
    )
    min_entropy: float | None = Field(None, ge=0, le=8, description="bits")
    max_blockiness: float | None = Field(None, description="1: no grid")
    max_nsfw: float | None = Field(None, description="0: what the safety checker flags")
    max_concepts: dict[str, Share] = Field(
        default_factory=dict,
        description="highest probability of each concept of `quality.concepts`",
    )
    min_clip_score: float | None = Field(
        None, ge=-1, le=1, description="cosine of image and prompt"
    )
    exact_duplicates: bool = Field(True, description="keep one of several images with equal pixels")
    min_similarity: float | None = Field(None, gt=0, le=1, description="cosine of duplicates")
    min_hash_similarity: float | None = Field(
        None, ge=0.75, le=1, description="share of equal bits of two perceptual hashes"
    )
    review: Location | None = Field(None, description="CSV or parquet: image_id, decision")
    rounds: Annotated[int, Field(ge=0, le=9)] = Field(
        0,
        description="most top-up rounds, which replace dropped images until quotas are met",
    )
