"""More prompts in than are wanted; those to keep, and how far they spread, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline import AigiError
from pipeline.models.clip import Embeddings
from pipeline.progress import Progress
from pipeline.prompts import vectors
from pipeline.prompts.coverage import most_covering
from pipeline.prompts.diversity import most_diverse
from pipeline.prompts.spread import SPREADS, spreads
from pipeline.prompts.vectors import vectors_of
from pipeline.settings import Count, Settings
from pipeline.store import Store

SPREAD = "_spread.arrow"
"""Beside prompts that were chosen among more: how far they spread, and as many at random."""


def spread_of(store: Store) -> pa.Table | None:
    """How far the prompts of a run spread; None: they were not chosen among more.

    Raises:
        Damaged: the file that says it is cut or none.
    """
    record = store.record("prompts")
    if record is None or f"prompts/{SPREAD}" not in record.beside:
        return None
    return store.read_arrow("prompts", SPREAD)


class PromptSelection(Settings):
    """How many prompts to keep, and which."""

    count: Count | None = Field(None, description="null: all that pass")
    method: Literal["random", "diverse", "facility_location"] = Field(
        "random",
        description="diverse: those that differ most in their words; facility_location: those "
        "whose vectors stand best for the vectors of all",
    )
    seed: int = Field(0, description="of the random choice")
    pool: float = Field(
        4.0, ge=1, description="not random: candidates to choose from, as a multiple of count"
    )
    embedder: Literal["wordllama", "clip"] = Field(
        "wordllama",
        description="facility_location: what makes vectors of prompts; clip: the text model of the "
        "embeddings section",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only a choice that uses vectors has an embedder: the others are recorded as ever."""
        found: dict[str, Any] = dump(self)
        if self.method != "facility_location":
            del found["embedder"]
        return found

    @property
    def spread(self) -> int | None:
        """How many prompts are chosen among more; None: none."""
        return None if self.method == "random" else self.count


class Chooser:
    """Chooses prompts among more.

    Args:
        select: how.
        embeddings: section of the workflow whose text model may make vectors.
        device: for it.

    Raises:
        AigiError: a CLIP model is asked for, and there is none.
    """

    def __init__(
        self, select: PromptSelection, embeddings: Embeddings | None = None, device: str = "auto"
    ) -> None:
        by_clip = select.method == "facility_location" and select.embedder == "clip"
        if by_clip and embeddings is None:
            raise AigiError(
                "prompts.select.embedder: clip is the text model of the embeddings section, and "
                "this workflow has none. Add the section, or set wordllama."
            )
        self._select, self._device = select, device
        self._clip = embeddings if by_clip else None

    def recorded(self) -> dict[str, Any]:
        """What decides the choice, as JSON values.

        Raises:
            AigiError: files of the model are missing.
        """
        found = self._select.model_dump(mode="json")
        if "embedder" in found:
            found["embedder"] = vectors.recorded(self._clip)
        return found

    def choose(
        self, texts: Sequence[str], count: int, first: int, progress: Progress
    ) -> tuple[list[int], pa.Table]:
        """Indices of `count` prompts, and how far they spread beside as many at random.

        Args:
            texts: all that may be chosen, in random order.
            first: those at the beginning that are chosen already.
        """
        method = self._select.method
        progress.say(f"prompts: choosing {count:,} of {len(texts):,} by {method}")
        embedded = vectors_of(texts, self._clip, self._device)
        if method == "diverse":
            chosen = most_diverse(texts, count, first)
        else:
            chosen = most_covering(embedded, count, first)
        found = spreads(texts, embedded, {method: chosen, "random": range(count)})
        rows = [{"choice": name, **spread._asdict()} for name, spread in found.items()]
        return chosen, pa.Table.from_pylist(rows, schema=SPREADS)
