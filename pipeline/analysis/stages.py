"""The sections that look at images in, their stages out."""

from __future__ import annotations

from pipeline.analysis import alignments, characteristics, effects
from pipeline.analysis.alignments import Alignments
from pipeline.analysis.characteristics import Characteristics
from pipeline.collection import Collection, report
from pipeline.progress import Progress
from pipeline.stage import Compute, Stage
from pipeline.store import Store


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


def report_places(
    looks: Characteristics | None, scores: Alignments | None, store: Store, progress: Progress
) -> None:
    """Say which files are left out and which rows of captions fit no image; write the rows."""
    for name, section in (("characteristics", looks), ("alignments", scores)):
        for number, pictures in enumerate(section.pictures if section is not None else ()):
            report(Collection(pictures), store, f"{name}-{number:02d}", progress)
