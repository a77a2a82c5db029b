"""The `train` section in, the stage that trains its codecs out.

No torch here, so that the state of a run is known without it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline import AigiError
from pipeline.collection import Collection
from pipeline.progress import Progress
from pipeline.shown import public
from pipeline.stage import Compute, Files
from pipeline.store import Store
from pipeline.training.images import to_train_on
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
    return {
        "train": public(settings.recorded()),
        "threads": compute.threads,
        "data": Collection(to_train_on(settings, run)).state,
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
