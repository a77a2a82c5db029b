"""The sections that look at images in, their stages out."""

from __future__ import annotations

from pipeline.analysis import alignments, characteristics, effects
from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.stage import Compute, Stage


def stages(
    looks: Characteristics | None, scores: Alignments | None, run: str, compute: Compute
) -> list[Stage]:
    """The stages of the given sections, in the order in which they run."""
    found: list[Stage] = []
    if looks is not None:
        found += [characteristics.stage(looks, run), effects.stage(looks)]
    if scores is not None:
        found.append(alignments.stage(scores, run, compute))
    return found
