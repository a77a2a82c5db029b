"""A release in, trained codecs out: one for each λ, below RUN/train.

    aigi run workflows/train.yaml
    accelerate launch -m pipeline.cli run workflows/train.yaml    # several GPUs
    aigi run workflows/train.yaml --set compute.ray=auto --set compute.workers=8    # a cluster

A step is a function of the state before it and its number: batch, noise and dropped prompts are
drawn from seed and number, so a run that was killed and resumed from its last checkpoint equals one
that was never stopped (on a CPU, bit by bit).

    RUN/train/NAME/state-STEP.safetensors   the newest two checkpoints
    RUN/train/NAME/curve.csv                means of training, every log_every steps
    RUN/train/NAME/validation.csv           whole images, real files
    RUN/train/NAME/best, last               models to code with
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline import AigiError
from pipeline.collection import Collection
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.training.fit import accelerator_of, check_init, codecs_of, fit, validation_of
from pipeline.training.images import to_train_on
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer, sizes_of


def train(settings: Train, run: str, compute: Compute, progress: Progress) -> list[Path]:
    """Train a codec for each λ, one after the other, by Ray Train if `compute.ray` is set.

    Args:
        settings: the `train` section.
        run: the run directory, which is a folder on this machine.

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
        from pipeline.training.cluster import train_with_ray

        train_with_ray(train, settings, run, compute, progress)
        return list(codecs)
    for folder in codecs:
        check_init(settings.init, folder)
    torch.set_num_threads(compute.threads)
    collection = Collection(to_train_on(settings, run))
    # One for all codecs: its end is that of the group of processes.
    accelerator = accelerator_of(settings, compute.device, root)
    if not accelerator.is_main_process:
        progress = Progress(quiet=True)
    pictures = validation_of(settings, run) if accelerator.is_main_process else []
    for folder, weights in codecs.items():
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(
            settings, weights, folder, compute.threads, accelerator, collection, pictures
        )
        if settings.tracker is not None:
            accelerator.init_trackers(f"{folder.name}/{settings.tracker}")
        fit(trainer, progress)
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()
    accelerator.end_training()
    return list(codecs)
