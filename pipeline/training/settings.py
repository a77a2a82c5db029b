"""The `train` section of a workflow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline import AigiError
from pipeline.codecs.table import CODECS, no_codec
from pipeline.collection import Pictures
from pipeline.settings import Count, Location, Settings, Share


class _Batches(Settings):
    """Crops are counted by process (`batch`) or over all of them (`global_batch`), not by both."""

    if TYPE_CHECKING:  # fields of the classes below, each in its place
        batch: int
        global_batch: int | None

    @model_validator(mode="after")
    def _counted_once(self) -> Self:
        if self.global_batch is not None and "batch" in self.model_fields_set:
            raise ValueError(
                "batch: leave it out beside global_batch, which says how many crops a step has"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        if dumped.get("global_batch") is not None:
            dumped.pop("batch", None)
        return dumped


class LateCrops(_Batches):
    """Other crops for the last steps: larger ones show a network how far its context reaches."""

    crop: Annotated[int, Field(ge=64, multiple_of=64)] = Field(
        256, description="pixels a side of a crop"
    )
    batch: Count = Field(2, description="crops of a process in a batch")
    global_batch: Count | None = Field(
        None, description="in place of `batch`: crops of a step over all processes"
    )
    after: Share = Field(0.9, description="share of `steps` that are taken before")


class Train(_Batches):
    """Images with prompts in, a trained codec for each λ out, below RUN/train."""

    data: Pictures | None = Field(
        None,
        description="train split of a release, or all images of a folder; null: the release of "
        "this run",
    )
    validation_data: Pictures | None = Field(
        None,
        description="validation split of a release, or all images of a folder; null: the "
        "validation split of `data`",
    )
    network: str | dict[str, Any] = Field(
        "catc-small",
        description="name of a network in pipeline/learned/sizes.py, or all of its sizes",
    )
    lambdas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.013,), min_length=1, description="weight of the distortion; one codec for each"
    )
    together: bool = Field(
        False, description="train one network for the rates of all λ, instead of one for each"
    )
    continuous: bool = Field(
        False,
        description="train the rates between the qualities of a network too: each crop draws a "
        "quality between the first and the last, with the λ and gains between those of its "
        "neighbours",
    )
    loss_scale: Literal["none", "sqrt"] = Field(
        "none",
        description="sqrt: divide the loss of a crop by √λ, so that the highest of several "
        "qualities does not decide most of the gradient",
    )
    distortion: Literal["mse", "ms-ssim"] = Field(
        "mse", description="λ·255²·MSE + bpp, or λ·(1 - MS-SSIM) + bpp"
    )
    init: Location | None = Field(
        None,
        description="trained codec to start from: its folder, hf://ORG/NAME[@REVISION], or the "
        "`train` folder of a run, for the best one of the same name and λ",
    )
    parallel: Literal["crops", "codecs"] = Field(
        "crops",
        description="what processes share: the crops of each step, or the codecs, each of which "
        "one process trains alone",
    )
    neighbour: Count | None = Field(
        None,
        description="begin the codec of each λ but the first with the weights that the codec "
        "before has after this many steps; null: all begin as the first",
    )
    initial: Literal["transform", "random"] = Field(
        "transform",
        description="weights to start from without init: those of a transform coder, or random "
        "ones",
    )
    text_folder: Location | None = Field(None, description="local copy of the text encoder")
    text_dropout: Share = Field(0.1, description="share of crops whose prompt is left empty")
    foreign_prompts: Location | None = Field(
        None,
        description="text file with a prompt on each line; some replace the prompts of crops, so "
        "that the codec also works with prompts unlike those of the data",
    )
    foreign_share: Share = Field(0.25, description="share of crops with a foreign prompt")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="how often an epoch uses a source's images; default 1"
    )
    steps: Count = Field(1_000_000, description="steps of the optimiser; may be raised later")
    batch: Count = Field(
        8,
        description="crops of a process in a batch; a step has `accumulate` batches of every "
        "process",
    )
    global_batch: Count | None = Field(
        None,
        description="in place of `batch`: crops of a step over all processes and `accumulate`, "
        "which share them evenly",
    )
    accumulate: Count = Field(1, description="batches whose gradients are summed in a step")
    crop: Annotated[int, Field(ge=64, multiple_of=64)] = Field(
        256, description="pixels a side of a crop"
    )
    late_crops: LateCrops | None = Field(None, description="other crops for the last steps")
    augment: bool = Field(
        False,
        description="turn and mirror crops, and scale half of them down, by at most 2",
    )
    crops_per_picture: Count = Field(8, description="crops of an image each time it is decoded")
    shuffle_buffer: Count = Field(1024, description="crops in the shuffle buffer")
    interleave: Count | None = Field(
        None,
        description="parts of the images, of up to 100 each, that crops are drawn from at once; "
        "null: as the training began, a new one with 4",
    )
    threads: Count = Field(2, description="threads of each process that decode images")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam, before the milestones")
    schedule: Literal["steps", "cosine"] = Field(
        "steps",
        description="steps: the learning rate falls at the milestones; cosine: it falls along a "
        "cosine, to 0 after `steps`",
    )
    milestones: tuple[Count | Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="steps at which the learning rate is multiplied, or shares of `steps` below "
        "1; later ones may still change",
    )
    milestone_factor: float = Field(
        0.5, gt=0, le=1, description="the learning rate is multiplied by it at each milestone"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(
        0, description="steps with a rising learning rate at the beginning"
    )
    aux_learning_rate: float = Field(5e-4, gt=0, description="learning rate of the medians of z")
    clip: float = Field(1.0, gt=0, description="greatest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    max_skipped: Annotated[int, Field(ge=0)] = Field(
        50, description="steps without a finite gradient that are skipped before training stops"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the networks; loss, weights and sums stay float32"
    )
    compile: bool = Field(False, description="use torch.compile")
    seed: int = Field(0, description="of weights, crops, noise and dropped prompts")
    log_every: Count = Field(100, description="steps between rows of curve.csv")
    save_every: Count = Field(1000, description="steps between checkpoints")
    validate_every: Count = Field(
        5000, description="steps between validations on whole images with real files"
    )
    validation_pictures: Annotated[int, Field(ge=0)] = Field(
        16, description="images from the validation split of each source; 0: no validation"
    )
    anchors: tuple[str, ...] = Field(
        (),
        description="codecs of the benchmark that the validation images are coded with too, once "
        "training ends: rate-distortion curves, and BD-rates against the first",
    )
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = Field(
        None,
        description="tracker of accelerate; tensorboard: pip install 'aigi[train]', else pip "
        "install with its name",
    )

    @model_validator(mode="after")
    def _own_splits(self) -> Train:
        for name in ("data", "validation_data"):
            asked: Pictures | None = getattr(self, name)
            if asked is not None and asked.splits is not None:
                raise ValueError(
                    f"{name}.splits: leave it out; training uses train, validation uses validation"
                )
        if self.late_crops is not None and (
            (self.global_batch is None) != (self.late_crops.global_batch is None)
        ):
            raise ValueError("late_crops: give it a global_batch if and only if there is one")
        late = self.crop if self.late_crops is None else self.late_crops.crop
        if self.distortion == "ms-ssim" and min(self.crop, late) < 192:
            raise ValueError("distortion ms-ssim needs crops of at least 192")
        if self.neighbour is not None and self.neighbour > self.steps:
            raise ValueError(f"neighbour: {self.neighbour} is more than steps ({self.steps})")
        for name in self.anchors:
            if name not in CODECS:
                raise ValueError(f"anchors: {no_codec(name)}")
        if self.anchors and not self.validation_pictures:
            raise ValueError(
                "anchors: leave them out; they code validation images, and there are none"
            )
        if self.schedule == "cosine" and self.milestones:
            raise ValueError("milestones: leave them out; schedule cosine has none")
        if self.foreign_prompts is not None and self.text_dropout + self.foreign_share > 1:
            raise ValueError("text_dropout + foreign_share must not be more than 1")
        return self

    @property
    def by_share(self) -> bool:
        """Whether `steps` decides what single steps do, and not only how many there are."""
        shares = any(isinstance(milestone, float) for milestone in self.milestones)
        return self.schedule == "cosine" or self.late_crops is not None or shares

    def crops_at(self, step: int, processes: int = 1) -> tuple[int, int]:
        """Pixels a side and number of the crops of a process's batch, after `step` steps.

        Raises:
            AigiError: processes cannot share the crops of a step evenly.
        """
        late = self.late_crops
        now: Train | LateCrops = self
        if late is not None and step >= at_step(late.after, self.steps):
            now = late
        if now.global_batch is None:
            return now.crop, now.batch
        parts = processes * self.accumulate
        each, rest = divmod(now.global_batch, parts)
        if rest:
            key = "train.global_batch" if now is self else "train.late_crops.global_batch"
            raise AigiError(
                f"{key}: {now.global_batch} crops cannot be shared evenly by {processes} "
                f"process(es) with {self.accumulate} batch(es) a step (train.accumulate). Give a "
                f"multiple of {parts}."
            )
        return now.crop, each

    def learning_rate_at(self, step: int) -> float:
        """Learning rate after `step` steps: it rises over `warmup` and falls by the schedule."""
        if self.schedule == "cosine":
            fallen = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        else:
            fallen = self.milestone_factor ** sum(
                step >= at_step(milestone, self.steps) for milestone in self.milestones
            )
        return self.learning_rate * fallen * min(1.0, (step + 1) / (self.warmup + 1))

    def recorded(self) -> dict[str, Any]:
        """The settings as a record of a training contains them.

        Settings that came after the first records are left out where they have the value that
        those trainings had: so they change no record of before.
        """
        dumped = self.model_dump(mode="json")
        return {
            name: value
            for name, value in dumped.items()
            if name not in LATER or value not in (LATER[name], None)
        }


LATER: dict[str, Any] = {
    "validation_data": None, "continuous": False, "loss_scale": "none", "late_crops": None,
    "augment": False, "schedule": "steps", "global_batch": None, "parallel": "crops",
    "neighbour": None, "anchors": [], "interleave": 1,
}  # fmt: skip
"""What settings that came after the first records were before they came."""


def at_step(moment: float, steps: int) -> int:
    """The step that a number of steps, or a share of all steps (a float to 1), means."""
    return round(moment * steps) if isinstance(moment, float) else moment
