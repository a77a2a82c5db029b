"""A trainer and data in, weights, logs and checkpoints out: the loop of one training."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline import AigiError
from pipeline.collection import Collection, pictures_of
from pipeline.files import replaced
from pipeline.learned.card import RatePoint
from pipeline.learned.network import CONFIG, WEIGHTS
from pipeline.learned.sizes import Sizes
from pipeline.pixels import RGB, decibels
from pipeline.progress import Progress, duration
from pipeline.shown import public
from pipeline.training import checkpoint
from pipeline.training.apart import NEIGHBOUR
from pipeline.training.distortion import LEAST_SIDE
from pipeline.training.images import to_validate_with
from pipeline.training.settings import Train
from pipeline.training.trainer import PATIENCE, Trainer, init_of
from pipeline.training.validation import Found


def codecs_of(settings: Train, sizes: Sizes) -> dict[str, tuple[float, ...]]:
    """Names of the codecs to train, and λ of each of their qualities.

    Raises:
        AigiError: the network codes at several qualities, but not as many as there are λ; two λ are
            equal; or a setting is for several codecs or for several qualities, and there is one.
    """
    name, lambdas = f"{sizes.name}-{settings.distortion}", settings.lambdas
    codecs = len(lambdas) if sizes.qualities == 1 else 1
    for key, value in (
        ("parallel", settings.parallel == "codecs"),
        ("neighbour", settings.neighbour),
    ):
        if value and codecs == 1:
            raise AigiError(
                f"train.{key}: for several codecs, and this trains one. Give several λ without "
                "train.together, or leave it out."
            )
    if sizes.qualities == 1:
        for key in ("continuous", "loss_scale"):
            if key in settings.model_fields_set and getattr(settings, key) not in (False, "none"):
                raise AigiError(
                    f"train.{key}: for networks of several qualities, and {sizes.name} has one. "
                    "Set train.together and several λ, or leave it out."
                )
        found: dict[str, tuple[float, ...]] = {f"{name}-{w:g}": (w,) for w in lambdas}
        if len(found) < len(lambdas):
            raise AigiError(
                f"train.lambdas: {', '.join(map(str, lambdas))}: two would train the "
                "same codec, which is named by six digits. Give each λ once."
            )
        return found
    if len(lambdas) != sizes.qualities or list(lambdas) != sorted(set(lambdas)):
        raise AigiError(
            f"train.lambdas: {', '.join(f'{weight:g}' for weight in lambdas)}: {sizes.name} codes "
            f"at {sizes.qualities} qualities. Give a λ for each, from low to high."
        )
    return {name: lambdas}


def check_init(place: str | None, folder: Path) -> None:
    """Check that the codec to start from exists, unless it is no longer needed.

    Raises:
        AigiError: it does not exist.
    """
    if place is None or checkpoint.found(folder):
        return
    init = init_of(place, folder.name)
    for name in (CONFIG, WEIGHTS):
        if "://" not in init and not (Path(init) / name).is_file():
            raise AigiError(f"train.init: {init} has no {name}. Give the folder of a model.")


class _Log:
    """A CSV file that a resumed run continues: lines beyond the checkpoint are dropped.

    If the checkpoint is between two lines, the next line is the mean of the steps since then.
    """

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        lines: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                lines = [r for r in csv.reader(file) if r and r[0].isdigit() and int(r[0]) <= step]
        with replaced(path) as name, open(name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
        self.file = path.open("a", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def write(self, *values: object) -> None:
        self.writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
        self.file.flush()


CURVE = ["step", "loss", "bpp", "psnr", "learning_rate", "seconds"]


RATES = [
    *("step", "quality", "lambda", "crops", "loss", "y_bpp", "z_bpp", "psnr", "calibration"),
    "gradient_norm",
]


VALIDATION = [
    *("step", "quality", "loss", "bpp", "bpp_without_prompt", "psnr", "ms_ssim", "pictures")
]


def fit(trainer: Trainer, progress: Progress) -> None:
    """Train from the last checkpoint to the last step, and write models that can code.

    Raises:
        AigiError: more than `max_skipped` steps had no finite gradient.
    """
    settings, state, folder = trainer.settings, trainer.state, trainer.folder
    main = trainer.accelerator.is_main_process
    name = folder.name
    if state.step >= settings.steps and (folder / "last").is_dir():
        progress.say(f"train: {name}: {state.step:,} steps, already made")
        return
    curve = _Log(folder / "curve.csv", CURVE, state.step) if main else None
    rates = _Log(folder / "rates.csv", RATES, state.step) if main else None
    table = _Log(folder / "validation.csv", VALIDATION, state.step) if main else None
    progress.say(f"train: {name}: steps of {trainer.crops_of_a_step()}")
    if state.step:
        progress.say(f"train: {name}: resumes from step {state.step:,}")
    for change in trainer.changed:
        progress.say(f"train: {name}: {change}")
    crops = trainer.crops()
    window: list[tuple[float, float, float]] = []
    began, first = time.monotonic(), state.step
    before = state.seconds
    while state.step < settings.steps:
        values = trainer.step(crops)
        if values is None:
            progress.say(
                f"train: {name}: step {state.step:,} had no finite gradient and was skipped "
                f"({state.skipped} so far)"
            )
            if state.skipped > settings.max_skipped:
                files = checkpoint.found(folder)
                raise AigiError(
                    f"train: {name}: {state.skipped} steps had no finite gradient "
                    "(train.max_skipped). Lower train.learning_rate or train.clip in a new run"
                    + (f"; {files[-1]} is the last checkpoint." if files else ".")
                )
        else:
            window.append(values)
        state.seconds = before + time.monotonic() - began
        done = state.step == settings.steps
        if window and (done or state.step % settings.log_every == 0):
            loss, bpp, mse = (math.fsum(v) / len(window) for v in zip(*window, strict=True))
            window.clear()
            quality = decibels(1, mse)
            rate = settings.learning_rate_at(state.step - 1)
            if curve is not None:
                curve.write(state.step, loss, bpp, quality, rate, state.seconds)
            seen = trainer.seen()
            for row in seen:
                if rates is not None:
                    rates.write(state.step, *(row[column] for column in RATES[1:]))
            trainer.accelerator.log(
                {
                    "loss": loss,
                    "bpp": bpp,
                    "psnr": quality,
                    "learning_rate": rate,
                    "gradient_norm": seen[0]["gradient_norm"],
                    **{
                        f"{column}/{row['quality']}": row[column]
                        for row in seen
                        for column in ("loss", "y_bpp", "z_bpp", "calibration")
                    },
                },
                state.step,
            )
            pace = (time.monotonic() - began) / (state.step - first)
            progress.say(
                f"train: {name}: step {state.step:,} of {settings.steps:,}, loss {loss:.4f}, "
                f"{bpp:.4f} bpp, {quality:.2f} dB, {1 / pace:.2f} steps/s, "
                f"{duration(pace * (settings.steps - state.step))} left"
            )
        if settings.validation_pictures and (done or state.step % settings.validate_every == 0):
            if main:
                _validated(trainer, table, progress)
            trainer.accelerator.wait_for_everyone()
        if state.step == settings.neighbour and main:
            _keep(trainer, folder / NEIGHBOUR)
        if done or state.step % settings.save_every == 0:
            trainer.save()
    if main:
        _keep(trainer, folder / "last")


def _validated(trainer: Trainer, table: _Log | None, progress: Progress) -> None:
    settings, state = trainer.settings, trainer.state
    found = trainer.validate()
    losses = []
    for quality, (one, weight) in enumerate(zip(found, trainer.weights, strict=True), 1):
        loss = one.loss(weight, settings.distortion)
        losses.append(loss * float(trainer.scale_of(weight)))
        if table is not None:
            table.write(
                state.step, quality, loss, one.bpp, one.bpp_without_prompt, one.psnr,
                "" if one.ms_ssim is None else one.ms_ssim, one.pictures,
            )  # fmt: skip
        values = {"loss": loss, "bpp": one.bpp, "psnr": one.psnr}
        which = "" if len(found) == 1 else f"/{quality}"
        trainer.accelerator.log(
            {f"validation{which}/{k}": v for k, v in values.items()}, state.step
        )
    loss = math.fsum(losses) / len(losses)
    better = state.best_loss is None or loss < state.best_loss
    points = ", ".join(f"{one.psnr:.2f} dB at {one.bpp:.4f} bpp" for one in found)
    progress.say(
        f"train: {trainer.folder.name}: step {state.step:,}: {found[0].pictures} whole images, "
        f"{points} in files, loss {loss:.4f}" + (", the best so far" if better else "")
    )
    if better:
        state.best_step, state.best_loss = state.step, loss
        _keep(trainer, trainer.folder / "best", found)


def _keep(trainer: Trainer, target: Path, found: Sequence[Found] = ()) -> None:
    """Write a model's folder whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    network = trainer.model_now()
    settings, state = trainer.settings, trainer.state
    several = len(trainer.weights) > 1
    points = [
        RatePoint(
            f"this model, quality {quality}" if several else "this model",
            *("validation", one.pictures, one.bpp, one.bpp_without_prompt, one.psnr, one.ms_ssim),
        )
        for quality, one in enumerate(found, 1)
    ]
    lambdas = ", ".join(f"{weight:g}" for weight in trainer.weights)
    how = (
        f"{state.step:,} steps of {trainer.crops_of_a_step()}{_more(settings)}, λ = {lambdas}, "
        f"{settings.distortion}, seed {settings.seed}, on {trainer.accelerator.num_processes} "
        f"{trainer.accelerator.device.type} process(es)."
        + "".join(f" {change[0].upper()}{change[1:]}." for change in state.changes)
    )
    network.save_pretrained(
        part, model_card_kwargs={"points": points, "training": how, "model": str(target.name)}
    )
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _more(settings: Train) -> str:
    """What else a card reports of the crops and rates."""
    told = ""
    if settings.augment:
        told += ", turned, mirrored and scaled"
    if settings.continuous:
        told += ", at all rates between the qualities"
    if settings.loss_scale == "sqrt":
        told += ", loss over √λ"
    return told


def accelerator_of(settings: Train, device: str, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if device not in ("auto", "cpu", "cuda"):
        raise AigiError(f"compute.device: {device}: training needs auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise AigiError("compute.device: cuda: torch finds no GPU on this machine")
    if settings.tracker is not None and find_spec(settings.tracker) is None:
        package = "'aigi[train]'" if settings.tracker == "tensorboard" else settings.tracker
        raise AigiError(
            f"train.tracker: {settings.tracker} is not installed. Run pip install {package}"
        )
    return Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[settings.precision],
        # Told so, accelerate starts a group of processes on CPUs too.
        cpu=device == "cpu" or not torch.cuda.is_available(),
        log_with=settings.tracker,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def start_tracker(accelerator: Any, settings: Train, name: str) -> None:
    """Begin to track a codec: in its folder, or under its name in the project `aigi`."""
    if settings.tracker == "tensorboard":
        accelerator.init_trackers(f"{name}/tensorboard")
    elif settings.tracker is not None:
        accelerator.init_trackers(
            "aigi",
            config=public(settings.recorded()),
            init_kwargs={settings.tracker: {"name": name}},
        )


def validation_of(settings: Train, run: str) -> list[tuple[RGB, str]]:
    """The images to validate with (uint8, H x W x 3) and their prompts; none if none are wanted.

    Raises:
        AigiError: there are none, or all are too small for MS-SSIM where it is the distortion.
    """
    if not settings.validation_pictures:
        return []
    data = to_validate_with(settings, run)
    try:
        pictures = list(pictures_of(Collection(data)))
        if settings.distortion == "ms-ssim" and not any(
            min(picture.shape[:2]) >= LEAST_SIDE for picture, _ in pictures
        ):
            raise AigiError(
                f"train.data: {data.place}: no validation image has sides of {LEAST_SIDE} "
                "pixels, which MS-SSIM needs"
            )
    except AigiError as error:
        raise AigiError(
            f"{error}\nThere are no images to validate with; name some in train.validation_data, "
            "or set train.validation_pictures=0"
        ) from error
    return pictures
