"""The `train` section in, the stage that trains its codecs out.

No torch here, so that the state of a run is known without it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline import AigiError
from pipeline.collection import Collection, asked_or_own
from pipeline.progress import Progress
from pipeline.shown import public
from pipeline.stage import Compute, Files
from pipeline.store import Store
from pipeline.training.settings import Train

VERSION = 1


def _make(
    settings: Train, run: str, compute: Compute, store: Store, progress: Progress
) -> list[str]:
    from pipeline.learned.network import CONFIG, WEIGHTS
    from pipeline.training.train import train

    folders = train(settings, run, compute, progress)
    return [
        (folder / "last" / name).relative_to(run).as_posix()
        for folder in folders
        for name in (CONFIG, WEIGHTS)
    ]


def _state(settings: Train, run: str, compute: Compute, store: Store) -> dict[str, Any]:
    """All settings of `train`; each codec itself knows which of them must not change."""
    data = asked_or_own(settings.data, run).model_copy(update={"splits": ("train",)})
    return {
        "train": public(settings.model_dump(mode="json")),
        "threads": compute.threads,
        "data": Collection(data).state,
    }


def stage(settings: Train, run: str, compute: Compute) -> Files:
    """The stage of a `train` section, which makes the last model of each codec.

    Raises:
        AigiError: the run is not a folder on this machine.
    """
    if "://" in run:
        raise AigiError(f"run: {run}: training needs a folder on this machine")
    return Files(
        table="train",
        version=VERSION,
        settings={},
        inputs=(),
        make=partial(_make, settings, run, compute),
        state=partial(_state, settings, run, compute),
        together=True,
    )
