"""The record of a probe in; what images of a plan cost by it, and which figures do not hold, out.

What was measured holds for one device, one model and its settings, which are recorded beside it.
Figures of others are never used, and `Costs` reports why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import AigiError, gate
from pipeline.gate import Checked, Number
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.images.images import Images, LocalSource, local_diffusers
from pipeline.plan import specification
from pipeline.plan.quotas import Plan, quotas, shard_rows
from pipeline.plan.specification import DiffusersSpec
from pipeline.shown import public
from pipeline.software import versions_of
from pipeline.stage import Compute, differences
from pipeline.store import Store

PROBE = "_probe.json"
"""In a run: what `aigi probe` measured last."""
REMEDY = "Delete it, and run aigi probe again."
NEARLY = 0.97
"""Of batches that are about as fast as the fastest, the smallest is the best: it needs less."""
_LIBRARIES = ("diffusers", "torch", "transformers")
_TITLES = {"title", "licence", "licence_url", "captions", "splits", "images_per_prompt", "sha256"}
"""Settings of a specification that change no second."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Least = Annotated[int, Field(ge=1, le=2**31 - 1)]
Stopped = Literal["memory", "no gain", "time", "limit", "shard"]
WHY = {
    "memory": "memory ends there",
    "no gain": "larger ones are no faster",
    "time": "time ends there",
    "limit": "--most ends there",
    "shard": "no shard has more images",
}
"""Why no larger batch was tried, in words."""


class Trial(Checked):
    """Two batches of one size.

    Attributes:
        size: images in each of the two.
        steps: of each. Where all steps took too long there are fewer, two different numbers.
        seconds: of each, PNG and copy to the CPU included, without any warm-up.
        peak: bytes of memory at most; None where it cannot be told.
        file: mean bytes of an image's file; None where not all steps were made.
    """

    size: Least
    steps: list[Least] = Field(min_length=2, max_length=2)
    seconds: list[Seconds] = Field(min_length=2, max_length=2)
    peak: Number | None
    file: Number | None

    def image(self, steps: int) -> float:
        """Seconds of one image of a batch of this size with that many steps.

        Of batches with two numbers of steps, the line through both: what a step takes, and what
        the rest does.
        """
        (few, more), (short, long) = self.steps, self.seconds
        if more == few:
            return (short + long) / 2 / self.size * steps / few
        each = (long - short) / (more - few)
        rest = short - few * each
        if each <= 0 or rest < 0:  # too short to tell the two apart
            return long * steps / more / self.size
        return (rest + steps * each) / self.size


class Measured(Checked):
    """One source at one size on one device.

    Attributes:
        steps: of an image of the plan.
        conditions: what the figures hold for: device, model, settings, versions.
        held: bytes that the loaded model takes before the first batch; None: not known.
        memory: what `held` and `peak` are about: the `device`, or this `process`; empty: neither.
        trials: by growing size.
        stopped: why no larger batch was tried.
        error: why there are no figures.
    """

    source: str
    width: Least
    height: Least
    steps: Least
    conditions: dict[str, Any]
    held: Number | None
    memory: Literal["device", "process", ""]
    trials: list[Trial]
    stopped: Stopped | None = None
    error: str = ""

    def best(self) -> Trial | None:
        """The smallest batch that is about as fast as the fastest."""
        if not self.trials:
            return None
        fastest = min(trial.image(self.steps) for trial in self.trials)
        return next(trial for trial in self.trials if trial.image(self.steps) <= fastest / NEARLY)

    def at(self, size: int) -> Trial | None:
        """The batch of this size, or the next smaller one that was measured; None: none was."""
        fit = [trial for trial in self.trials if trial.size <= size]
        return max(fit, key=lambda trial: trial.size, default=None)


class Probe(Checked):
    """All that was measured at one time: `RUN/_probe.json`."""

    version: Literal[1] = 1
    made: str
    sources: list[Measured]


def read_probe(store: Store) -> Probe | None:
    """What was measured; None: nothing.

    Raises:
        AigiError: the record is damaged; names file and field.
    """
    found = store.read_json(PROBE, remedy=REMEDY)
    if found is None:
        return None
    return gate.check(Probe, found, store.path(PROBE), REMEDY)


# --- what figures hold for -----------------------------------------------------------------------


def _content(place: str) -> str:
    """Digest of names, sizes and times of change of the files of a model; no file is read."""
    root = Path(place)
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    seen = [(str(path.relative_to(root)), *_stamp(path)) for path in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def conditions(
    spec: DiffusersSpec, local: DiffusersSource, settings: Images, compute: Compute, device: str
) -> dict[str, Any]:
    """What figures of a source hold for, as JSON values.

    Args:
        device: the name of the device that makes, or would make, its images.
    """
    # The batch is what is measured; places are only where content is.
    mine = local.model_dump(mode="json", exclude={"batch_size"}, exclude_defaults=True)
    places = {key: value for key, value in mine.items() if os.path.isabs(str(value))}
    return {
        "device": device,
        "specification": spec.model_dump(mode="json", exclude=_TITLES, exclude_defaults=True),
        "sources": public({key: value for key, value in mine.items() if key not in places}),
        "content": {key: _content(place) for key, place in places.items() if os.path.exists(place)},
        "images": settings.model_dump(mode="json", exclude_defaults=True),
        "threads": compute.threads if device == "cpu" else None,
        "versions": versions_of(_LIBRARIES),
    }


def device_of(compute: Compute) -> str:
    """The name of the device that the workflow uses on this machine.

    Raises:
        AigiError: this machine has no such device.
    """
    from pipeline.models.device import device_name, pick_device

    return device_name(pick_device(compute.device))


# --- figures for a plan --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What an image of a source and size takes in a batch.

    Attributes:
        asked: images in a batch of the run, at most as many as a shard has.
        size: those of the batch that was measured: the same, or the next smaller one.
        seconds: of one image.
        best: images in the batch that is the fastest, or nearly.
        best_seconds: of one of its images.
        file: bytes of its file; None where it is not known.
    """

    asked: int
    size: int
    seconds: float
    best: int
    best_seconds: float
    file: int | None


@dataclass(frozen=True)
class Costs:
    """Figures of a probe that hold for a plan, and why others are not used.

    Attributes:
        found: by source, width and height.
        made: when they were measured.
        device: where.
        unused: one line each.
    """

    found: Mapping[tuple[str, int, int], Cost] = field(default_factory=dict)
    made: str = ""
    device: str = ""
    unused: Sequence[str] = ()


def costs(
    plan: Plan,
    sources: Mapping[str, LocalSource],
    settings: Images,
    compute: Compute,
    store: Store,
) -> Costs:
    """The figures of the run's probe that hold for its plan as it is now.

    Raises:
        AigiError: the record of the probe is damaged.
    """
    probe = read_probe(store)
    if probe is None:
        return Costs()
    try:
        device = device_of(compute)
    except AigiError:
        device = f"no {compute.device} here"
    dataset = specification.load(plan.dataset)
    measured = {(one.source, one.width, one.height): one for one in probe.sources}
    found, unused = {}, []
    for name, width, height, fullest in sizes_of(plan):
        spec = dataset.sources[name]
        one = measured.get((name, width, height))
        what = f"{name} {width}x{height}"
        if one is None or not isinstance(spec, DiffusersSpec):
            unused.append(f"{what}: not measured")
            continue
        local = local_diffusers(sources, name)
        now = conditions(spec, local, settings, compute, device)
        if changes := differences(one.conditions, now):
            more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
            unused.append(f"{what}: measured with {'; '.join(changes[:3])}{more}")
            continue
        asked = min(local.batch_size, fullest)
        trial, best = one.at(asked), one.best()
        if trial is None or best is None:
            unused.append(f"{what}: {one.error or f'no batch of {asked} images or fewer'}")
            continue
        found[name, width, height] = Cost(
            asked=asked,
            size=trial.size,
            seconds=trial.image(spec.steps),
            best=best.size,
            best_seconds=best.image(spec.steps),
            file=trial.file,
        )
    return Costs(found, probe.made, device, unused)


def sizes_of(plan: Plan) -> Iterator[tuple[str, int, int, int]]:
    """Generated sources and their sizes: name, width, height, images in the fullest shard."""
    dataset = specification.load(plan.dataset)
    fullest: dict[tuple[str, int, int], int] = {}
    for quota in quotas(dataset, plan):
        width, height = quota.spec.width, quota.spec.height
        source = dataset.sources[quota.source]
        if not isinstance(source, DiffusersSpec) or width is None or height is None:
            continue
        rows = shard_rows(width, height, len(quota.spec.watermarks), plan.shard_mb)
        if quota.planned:
            key = (quota.source, width, height)
            fullest[key] = max(fullest.get(key, 0), min(rows, quota.planned))
    for (name, width, height), rows in fullest.items():
        yield name, width, height, rows
