"""A release in, trained codecs out: one for each λ, below RUN/train.

    aigi run workflows/train.yaml
    accelerate launch -m pipeline.cli run workflows/train.yaml    # several GPUs
    aigi run workflows/train.yaml --set compute.ray=auto --set compute.workers=8    # a cluster

A step is a function of the state before it and its number: batch, noise and dropped prompts are
drawn from seed and number, so a run that was killed and resumed from its last checkpoint equals one
that was never stopped (on a CPU, bit by bit).

    RUN/train/NAME/state-STEP.safetensors   the newest two checkpoints
    RUN/train/NAME/curve.csv                means of training, every log_every steps
    RUN/train/NAME/rates.csv                the same for each λ, and what makes it up
    RUN/train/NAME/validation.csv           whole images, real files
    RUN/train/NAME/best, last               models to code with
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from pipeline import AigiError
from pipeline.collection import Collection, report
from pipeline.progress import Progress
from pipeline.running import first_process
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.training.apart import Alone, begun_from, finished, wait
from pipeline.training.fit import (
    accelerator_of,
    check_init,
    codecs_of,
    fit,
    start_tracker,
    validation_of,
)
from pipeline.training.images import to_train_on
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer, sizes_of


def train(
    settings: Train,
    run: str,
    compute: Compute,
    progress: Progress,
    only: Sequence[str] | None = None,
) -> list[Path]:
    """Train a codec for each λ, by Ray if `compute.ray` is set.

    One comes after the other, or each process takes one at a time (`parallel`).

    Args:
        settings: the `train` section.
        run: the run directory, which is a folder on this machine.
        only: names of the codecs to train; None: all.

    Returns:
        The folders of the codecs.

    Raises:
        AigiError: there are no images to train on, the settings differ from those of the training
            that was begun, or gradients were not finite.
    """
    if "://" in run:
        raise AigiError(f"run: {run}: training needs a folder on this machine")
    sizes = sizes_of(settings)
    root = Path(run) / "train"
    codecs = {root / name: weights for name, weights in codecs_of(settings, sizes).items()}
    if compute.ray is not None:
        from pipeline.training.cluster import codecs_with_ray, train_with_ray

        by_ray = train_with_ray if settings.parallel == "crops" else codecs_with_ray
        by_ray(train, settings, run, compute, progress)
        return list(codecs)
    before: dict[Path, Path] = {}
    if settings.neighbour is not None:
        before = dict(zip(list(codecs)[1:], codecs, strict=False))
    for folder in codecs:
        if folder not in before:
            check_init(settings.init, folder)
    torch.set_num_threads(compute.threads)
    collection = Collection(to_train_on(settings, run))
    if first_process():
        report(collection, Store(run), "train", progress)
    # One for all codecs: its end is that of the group of processes.
    accelerator = accelerator_of(settings, compute.device, root)
    several = accelerator.num_processes > 1
    mine = [folder for folder in codecs if only is None or folder.name in only]
    if settings.parallel == "codecs" and several:
        if settings.tracker is not None:
            raise AigiError(
                f"train.tracker: {settings.tracker}: accelerate tracks the first process alone, "
                "and with train.parallel=codecs each trains its own codecs. Leave it out, or train "
                "by Ray."
            )
        mine = mine[accelerator.process_index :: accelerator.num_processes]
        accelerator = Alone(accelerator)
    if not accelerator.is_main_process:
        progress = Progress(quiet=True)
    pictures = validation_of(settings, run) if accelerator.is_main_process else []
    for folder in mine:
        folder.mkdir(parents=True, exist_ok=True)
        init = None
        if folder in before:
            alone = not isinstance(accelerator, Alone)
            init = begun_from(before[folder], folder, alone, progress)
        trainer = Trainer(
            settings, codecs[folder], folder, compute.threads, accelerator, collection, pictures,
            init,
        )  # fmt: skip
        if settings.tracker is not None:
            start_tracker(accelerator, settings, folder.name)
        fit(trainer, progress)
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()
    if isinstance(accelerator, Alone):
        for folder in codecs:
            done = partial(finished, folder, settings.steps)
            wait(done, f"train: waits for {folder.name}, which another process trains", progress)
    accelerator.end_training()
    return list(codecs)
