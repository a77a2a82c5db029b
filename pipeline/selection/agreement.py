"""Decisions of several people in, merged ones, disagreements and Cohen's kappa out."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pipeline.decisions import DECISIONS, Subject


@dataclass(frozen=True)
class Agreement:
    """How well two people agree on the images that both decided on.

    Attributes:
        one, other: their names.
        both: images that both decided on.
        same: images on which both decided the same.
        kappa: Cohen's kappa (1960): agreement beyond chance, 1 for full agreement, 0 for chance;
            None if chance alone would agree fully (one decision for all), or they share no image.
    """

    one: str
    other: str
    both: int
    same: int
    kappa: float | None


def cohens_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """(p_o - p_e) / (1 - p_e) over decisions of equal length; None where p_e is 1, or for none."""
    number = len(one)
    if number == 0:
        return None
    observed = sum(a == b for a, b in zip(one, other, strict=True)) * number
    left, right = Counter(one), Counter(other)
    expected = sum(left[decision] * right[decision] for decision in DECISIONS)
    # Counts, not shares: whether chance alone agrees fully is no matter of rounding.
    return None if expected == number**2 else (observed - expected) / (number**2 - expected)


@dataclass(frozen=True)
class Merged:
    """Decisions of all, and where they differ.

    Attributes:
        decisions: by image; `unsure` where people disagree, so that the scores decide.
        disagreements: by image, the decision of each person (None: no decision).
        pairs: agreement of every two people.
    """

    decisions: dict[str, str]
    disagreements: dict[str, dict[str, str | None]]
    pairs: list[Agreement]


def merge(reviews: Mapping[str, Mapping[str, str]]) -> Merged:
    """Merge the decisions of people, given by name; a decision of one person alone counts."""
    decisions: dict[str, str] = {}
    disagreements: dict[str, dict[str, str | None]] = {}
    for image in dict.fromkeys(image for review in reviews.values() for image in review):
        said = {name: review.get(image) for name, review in reviews.items()}
        distinct = {decision for decision in said.values() if decision is not None}
        if len(distinct) > 1:
            disagreements[image] = said
        decisions[image] = distinct.pop() if len(distinct) == 1 else "unsure"
    pairs = []
    for one, other in combinations(reviews, 2):
        shared = [image for image in reviews[one] if image in reviews[other]]
        left = [reviews[one][image] for image in shared]
        right = [reviews[other][image] for image in shared]
        same = sum(a == b for a, b in zip(left, right, strict=True))
        pairs.append(Agreement(one, other, len(shared), same, cohens_kappa(left, right)))
    return Merged(decisions, disagreements, pairs)


def as_csv(decisions: Mapping[str, str], subject: Subject = "image_id") -> str:
    """The file that `selection.review` or `prompts.review` takes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([subject, "decision"])
    writer.writerows(decisions.items())
    return out.getvalue()
