"""A workflow in, the stages of its analysis sections out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.analysis import alignments, characteristics, effects
from pipeline.stage import Stage

if TYPE_CHECKING:
    from pipeline.workflow import Workflow


def stages(workflow: Workflow) -> list[Stage]:
    """The stages whose sections the workflow has."""
    found: list[Stage] = []
    if workflow.characteristics is not None:
        found += [characteristics.stage(workflow), effects.stage(workflow)]
    if workflow.alignments is not None:
        found.append(alignments.stage(workflow))
    return found
