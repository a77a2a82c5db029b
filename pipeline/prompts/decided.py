"""Decisions of people about prompts, and reasons of the filters, in; reasons with both out."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.progress import Progress

DROPPED = "review: dropped"


class Decided:
    """What people decided about prompts.

    Attributes:
        keep: prompts that they keep, in the order of their table.

    Args:
        decisions: by prompt.
    """

    def __init__(self, decisions: Mapping[str, str]) -> None:
        self.keep = [name for name, decision in decisions.items() if decision == "keep"]
        drop = [name for name, decision in decisions.items() if decision == "drop"]
        self._keep, self._drop = (pa.array(some, pa.string()) for some in (self.keep, drop))
        self._asked = pa.array(decisions, pa.string())
        self._unseen = set(decisions)

    def over(self, rows: pa.Table, reasons: pa.Array) -> pa.Array:
        """Why texts become no prompts, with what people decided about them.

        A keep overrules every rule.
        """
        if not len(self._asked):
            return reasons
        ids = rows["prompt_id"].combine_chunks()
        self._unseen.difference_update(ids.filter(pc.is_in(ids, self._asked)).to_pylist())
        # What is no text has no id.
        reasons = pc.if_else(pc.is_in(ids, self._keep), pa.scalar(None, pa.string()), reasons)
        return pc.if_else(pc.is_in(ids, self._drop), DROPPED, reasons)

    def say(self, count: int | None, progress: Progress) -> None:
        """Say which decisions had no effect.

        Args:
            count: how many prompts are wanted.
        """
        if self._unseen:
            progress.say(
                f"prompts: {len(self._unseen):,} reviewed prompts are not among the captions, "
                f"the first is {min(self._unseen)}"
            )
        if count is not None and len(self.keep) > count:
            progress.say(
                f"prompts: people keep {len(self.keep):,}, and prompts.select.count is {count:,}"
            )
