"""Planned images in, the same images with what each costs out: the worker of a preview.

A preview is a run of its own beside the real one, with the first images of its plan. Ids name what
decides pixels, so the real run takes over what is still the same then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa

from pipeline import gate
from pipeline.gate import Checked, Number
from pipeline.images.images import ImageMaker
from pipeline.images.importer import Importer
from pipeline.images.probe import Memory
from pipeline.models.device import device_name, pick_device
from pipeline.store import Store

COSTS = "_preview.json"
"""In the run of a preview: what its images cost when they were made."""
REMEDY = "Delete it, and run aigi preview again."


def place_of(run: str) -> str:
    """Where the preview of a run is."""
    return run.rstrip("/") + "-preview"


class Cost(Checked):
    """What images of one source and size cost.

    Attributes:
        images: that were made, variants by watermark counted once.
        seconds: of one of them, its steps, decoding and file included; a first batch may also
            prepare the device.
        loading: seconds before the first one; 0: the model was loaded already.
        peak: bytes of memory at most; None: it cannot be told.
        memory: what `peak` is about: the `device`, or this `process`; empty: neither.
    """

    source: str
    width: int
    height: int
    images: int
    batch: int | None
    seconds: float
    loading: float
    peak: Number | None
    memory: Literal["device", "process", ""]
    device: str


class Costs(Checked):
    """All that previews of a run noted: the last figures of each source and size."""

    version: Literal[1] = 1
    sources: list[Cost]


def read_costs(store: Store) -> list[Cost]:
    """What images of a preview cost.

    Raises:
        AigiError: the record is damaged; names file and field.
    """
    found = store.read_json(COSTS, remedy=REMEDY)
    return [] if found is None else gate.check(Costs, found, store.path(COSTS), REMEDY).sources


def note(store: Store, cost: Cost) -> None:
    """Write down what images of a source and size cost."""
    key = (cost.source, cost.width, cost.height)
    others = [one for one in read_costs(store) if (one.source, one.width, one.height) != key]
    costs = Costs(sources=[*others, cost])
    store.write_json(costs.model_dump(mode="json"), COSTS)


class Watched(ImageMaker):
    """Plan rows of one shard in, images out, as ImageMaker; says what they cost.

    Args:
        noted: takes the cost of each shard of generated images.
        given: arguments of ImageMaker.
    """

    def __init__(self, noted: Callable[[Cost], None], *given: Any) -> None:
        super().__init__(*given)
        self.noted = noted
        self.where = pick_device(self.device)
        self.memory = Memory(self.where)
        self.loading = 0.0

    def hold(self, name: str, number: int | None, revision: str) -> None:
        """As ImageMaker, noting the seconds."""
        _, self.loading, _ = self.memory.peak(lambda: ImageMaker.hold(self, name, number, revision))

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """As ImageMaker; all chunks of a shard come at its end: it is small."""
        self.loading = 0.0
        chunks, seconds, peak = self.memory.peak(
            lambda: list(ImageMaker.__call__(self, rows, start))
        )
        first = rows.slice(0, 1).to_pylist()[0]
        units = {row["pair_id"] or row["image_id"] for row in rows.slice(start).to_pylist()}
        if not isinstance(self.maker, Importer) and chunks:
            sizes = [n for chunk in chunks for n in chunk["batch_size"].to_pylist() if n]
            self.noted(
                Cost(
                    source=first["source"],
                    width=first["width"],
                    height=first["height"],
                    images=len(units),
                    batch=max(sizes, default=None),
                    seconds=(seconds - self.loading) / max(1, len(units)),
                    loading=self.loading,
                    peak=peak,
                    memory=self.memory.kind,
                    device=device_name(self.where),
                )
            )
        yield from chunks
