"""Several processes and codecs in, one codec at a time for each process out: nothing is shared.

Processes of a launcher take the codecs in turn. A codec that begins with the weights of its
neighbour waits until the neighbour has them, wherever that is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import AigiError
from pipeline.learned.network import WEIGHTS
from pipeline.progress import Progress
from pipeline.training import checkpoint

NEIGHBOUR = "neighbour"
"""In a codec's folder: its model after `train.neighbour` steps."""
SECONDS = 2.0
"""Between two looks at what others have done."""


class Alone:
    """The accelerator of a process that trains a codec alone, though others run beside it.

    All else is asked of the accelerator of all processes.
    """

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def prepare(self, network: Any) -> Any:
        """The network in the precision of training, whose gradients stay here."""
        return self.accelerator.prepare_model(network, evaluation_mode=True)

    def gather(self, values: Tensor) -> Tensor:
        """The values (any shape and dtype) of this process, as they are."""
        return values

    def no_sync(self, network: Any) -> AbstractContextManager[None]:
        """Nothing: there is nothing to put off."""
        return nullcontext()

    def wait_for_everyone(self) -> None:
        """Nothing: nobody else trains this codec."""


def begun_from(before: Path, folder: Path, alone: bool, progress: Progress) -> Path | None:
    """The neighbour's model to begin with; None for a codec that has begun.

    Args:
        before: the neighbour's folder.
        folder: of the codec that begins.
        alone: whether nobody else trains the neighbour now.

    Raises:
        AigiError: it is not there, and nobody makes it.
    """
    model = before / NEIGHBOUR
    if checkpoint.found(folder):
        return None
    if alone and not _there(model):
        raise AigiError(
            f"{model}: not there, though {before.name} has passed that step. Train {before.name} "
            "anew, or leave train.neighbour out."
        )
    wait(lambda: _there(model), f"train: {folder.name}: waits for {model}", progress)
    return model


def may_begin(before: Path, folder: Path) -> bool:
    """Whether a codec has what it begins with."""
    return bool(checkpoint.found(folder)) or _there(before / NEIGHBOUR)


def finished(folder: Path, steps: int) -> bool:
    """Whether a codec has taken all steps, and its last model is written."""
    last = checkpoint.path_of(folder, steps)
    found = checkpoint.found(folder)
    return bool(found) and found[-1] >= last and _there(folder / "last")


def wait(ready: Callable[[], bool], what: str, progress: Progress) -> None:
    """Wait until something is there that another process makes; says so once."""
    said = False
    while not ready():
        if not said:
            progress.say(what)
        said = True
        time.sleep(SECONDS)


def _there(model: Path) -> bool:
    return (model / WEIGHTS).is_file()
