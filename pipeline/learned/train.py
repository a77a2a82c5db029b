"""A release in, trained codecs out: one for each λ, below RUN/train.

    aigi run workflows/train.yaml
    accelerate launch -m pipeline.cli run workflows/train.yaml    # several GPUs
    aigi run workflows/train.yaml --set compute.ray=auto --set compute.workers=8    # a cluster

A step is a function of the state before it and its number: batch, noise and dropped prompts are
drawn from seed and number, so a run that was killed and goes on from its last checkpoint equals one
that was never stopped (on a CPU, bit by bit).

    RUN/train/NAME/state-STEP.safetensors   the newest two checkpoints
    RUN/train/NAME/curve.csv                what training saw, every log_every steps
    RUN/train/NAME/validation.csv           whole pictures, real files
    RUN/train/NAME/best, last               models to code with
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.collection import Collection
from pipeline.learned import checkpoint
from pipeline.learned.card import RatePoint
from pipeline.learned.codec import load_network
from pipeline.learned.crops import Crop, Crops
from pipeline.learned.distortion import LEAST_SIDE, ms_ssim, psnr
from pipeline.learned.initial import begin, step_of
from pipeline.learned.layers import Text
from pipeline.learned.network import CONFIG, WEIGHTS, Network, Output
from pipeline.learned.sizes import NETWORKS, Sizes, parse
from pipeline.learned.text import TextEncoder
from pipeline.learned.validation import Found, pictures_of, validate
from pipeline.pixels import RGB
from pipeline.progress import Progress, duration
from pipeline.run import flat
from pipeline.workflow import Pictures, Train, Workflow

AUX = "prior.median"
LAMBDAS = {"mse": 1.0, "ms-ssim": 1280.0}
"""λ over that of MSE for about the same rate: as CompressAI pairs those of its models."""
PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which alone validates; torch's 10 minutes are few."""
FREE = {
    "steps", "threads", "log_every", "save_every", "validate_every", "validation_pictures",
    "tracker", "text_folder", "max_skipped", "lambdas", "together", "data", "init",
}  # fmt: skip
"""Settings that may change while a codec is trained, or that are recorded in another form."""


def sizes_of(settings: Train) -> Sizes:
    """The network that the settings ask for; trained together, of as many qualities as λ.

    Raises:
        AigiError: there is none of this name, or its sizes are wrong.
    """
    if isinstance(settings.network, dict):
        sizes = parse(settings.network)
    elif settings.network in NETWORKS:
        sizes = NETWORKS[settings.network]
    else:
        raise AigiError(
            f"train.network: no network {settings.network}; there are {', '.join(NETWORKS)}"
        )
    if settings.together:
        return sizes.model_copy(update={"qualities": len(settings.lambdas)})
    return sizes


def codecs_of(settings: Train, sizes: Sizes) -> dict[str, tuple[float, ...]]:
    """Names of the codecs that are trained, and λ of each of their qualities.

    Raises:
        AigiError: the network codes at several qualities, and those are not the λ; or two λ are
            the same.
    """
    name, lambdas = f"{sizes.name}-{settings.distortion}", settings.lambdas
    if sizes.qualities == 1:
        found: dict[str, tuple[float, ...]] = {f"{name}-{w:g}": (w,) for w in lambdas}
        if len(found) < len(lambdas):
            raise AigiError(
                f"train.lambdas: {', '.join(map(str, lambdas))}: two would train one codec, "
                "named by six digits. Give each λ once."
            )
        return found
    if len(lambdas) != sizes.qualities or list(lambdas) != sorted(set(lambdas)):
        raise AigiError(
            f"train.lambdas: {', '.join(f'{weight:g}' for weight in lambdas)}: {sizes.name} codes "
            f"at {sizes.qualities} qualities. Give a λ for each, from low to high."
        )
    return {name: lambdas}


def rate_distortion(
    output: Output, x: Tensor, weight: float | Tensor, distortion: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss: λ·255²·MSE + bpp (Ballé 2018), or λ·(1 - MS-SSIM) + bpp.

    Args:
        output: of the network for x.
        x: B x 3 x H x W, 0 to 1.
        weight: λ, of all pictures or of each.

    Returns:
        loss, bpp and MSE (over values from 0 to 1), scalars.
    """
    bpp = output.bits() / (x.shape[0] * x.shape[2] * x.shape[3])
    x_hat = output.x_hat.float()
    errors = (x_hat - x).square().mean((1, 2, 3))
    if distortion == "mse":
        return (weight * 255**2 * errors).mean() + bpp, bpp, errors.mean()
    with torch.autocast(x.device.type, enabled=False):
        # Outside 0 … 1 its terms lose their meaning; the gradient of clamp would be 0 there.
        return (weight * (1 - ms_ssim(x_hat, x))).mean() + bpp, bpp, errors.mean()


def learning_rate(settings: Train, step: int) -> float:
    """Of the step after `step` steps: rises over `warmup`, falls at each milestone."""
    rate = settings.learning_rate * settings.milestone_factor ** sum(
        step >= milestone for milestone in settings.milestones
    )
    return rate * min(1.0, (step + 1) / (settings.warmup + 1))


def _seed(*parts: object) -> int:
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class _Progress:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """One codec in training.

    Args:
        settings: all of it.
        weights: λ of each quality of the network, rising.
        folder: of this codec.
        threads: of torch; sums on a CPU depend on them.
        accelerator: of accelerate.
        collection: pictures of the train split.
        validation: decoded pictures and prompts.

    Raises:
        AigiError: the folder was begun with other settings, or what to start from does not fit.
    """

    def __init__(
        self,
        settings: Train,
        weights: tuple[float, ...],
        folder: Path,
        threads: int,
        accelerator: Any,
        collection: Collection,
        validation: list[tuple[RGB, str]],
    ) -> None:
        self.settings, self.weights, self.folder = settings, weights, folder
        self.accelerator, self.collection, self.validation = accelerator, collection, validation
        sizes = sizes_of(settings)
        self.init = None if settings.init is None else _init_of(settings.init, folder.name)
        self.text = (
            None
            if sizes.text is None
            else TextEncoder(sizes.text, settings.text_folder, accelerator.device)
        )
        self.foreign = _foreign_prompts(settings)
        self.state = _Progress(settings=self._recorded(sizes, threads))
        torch.manual_seed(_seed(settings.seed, "weights"))
        self.network = Network(**sizes.model_dump())
        if self.network.gains is not None:
            # Where steps are small, distortion is that of the steps' squares: gains as √λ.
            rise = 0.5 * torch.log(torch.tensor(weights))
            self.network.gains.begin(rise - rise.mean())
        if checkpoint.found(folder):
            pass  # it has all weights; what they started from may be gone
        elif self.init is not None:
            self._start_from(self.init)
        elif settings.initial == "transform":
            mean = math.exp(math.fsum(map(math.log, weights)) / len(weights))
            begin(self.network, step_of(mean / LAMBDAS[settings.distortion]))
        self.network.train().to(accelerator.device)
        parameters = dict(self.network.named_parameters())
        self.aux = parameters.pop(AUX)
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.optimizer = torch.optim.Adam(self.parameters, settings.learning_rate)
        self.aux_optimizer = torch.optim.Adam([self.aux], settings.aux_learning_rate)
        self.average = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._resume()
        self._begin_together()
        # The medians learn from the medians alone, the same on every process: nothing to share.
        self.aux.requires_grad_(False)
        self.model = accelerator.prepare(self.network)
        self.aux.requires_grad_(True)
        # On CPUs torch 2.15 breaks on channels-last gradients, see `_batch`; compiling would make
        # such of its own accord.
        options = {"layout_optimization": accelerator.device.type != "cpu"}
        self.forward = (
            torch.compile(self.model, options=options) if settings.compile else self.model
        )

    def _recorded(self, sizes: Sizes, threads: int) -> dict[str, Any]:
        """Everything that decides the weights after a number of steps."""
        settings = self.settings
        return {
            **settings.model_dump(mode="json", exclude={"network", *FREE}),
            "network": sizes.model_dump(mode="json"),
            "lambda": self.weights[0] if len(self.weights) == 1 else list(self.weights),
            "data": self.collection.state,
            "init": settings.init,
            "foreign_prompts": None if self.foreign is None else _digest(self.foreign),
            "text encoder": None if self.text is None else _digest(_bytes_of(self.text.state())),
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "compute.threads": threads,
        }

    def _start_from(self, init: str) -> None:
        place, _, revision = init.removeprefix("hf://").partition("@")
        other = load_network(place, revision or None)
        mine = self.network.sizes.model_dump(exclude={"name"})
        theirs = other.sizes.model_dump(exclude={"name"})
        blind = theirs["text"] is None and mine["text"] is not None
        if mine | ({"text": None} if blind else {}) != theirs:
            raise AigiError(
                f"train.init: {init}: its sizes are {json.dumps(theirs)}, those of this network "
                f"are {json.dumps(mine)}. Only text may be new."
            )
        self.network.load_state_dict(other.state_dict(), strict=not blind)
        if blind:
            self.network.silence_text()

    def _resume(self) -> None:
        files = checkpoint.found(self.folder)
        if not files:
            return
        tensors, facts = checkpoint.load(files[-1])
        settings = self.state.settings
        before, now = (
            flat({**one, "milestones": [m for m in one["milestones"] if m < facts["step"]]})
            for one in (facts["settings"], settings)
        )
        changed = [
            f"{name}: {before.get(name)} -> {now.get(name)}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise AigiError(
                f"{self.folder}: was begun with other settings:\n  "
                + "\n  ".join(changed)
                + "\nSet them back, or train in another run directory."
            )
        self.state = _Progress(**{**facts, "settings": settings})
        own = {
            k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")
        }
        self.network.load_state_dict(own)
        self.average = {
            name: tensors[f"average.{name}"].to(self.accelerator.device) for name in self.average
        }
        checkpoint.restore(self.optimizer, self.names, "adam", tensors)
        checkpoint.restore(self.aux_optimizer, [AUX], "aux", tensors)

    def _begin_together(self) -> None:
        at = torch.tensor([self.state.step], device=self.accelerator.device)
        steps = self.accelerator.gather(at).tolist()
        if len(set(steps)) > 1:
            raise AigiError(
                f"{self.folder}: processes would go on from different steps ({steps}): each reads "
                "the checkpoints itself. Put the run directory where all machines see it."
            )

    def save(self) -> None:
        """Write a checkpoint; the process that is the first writes, the others wait."""
        if self.accelerator.is_main_process:
            tensors = {f"network.{name}": value for name, value in self._network_state().items()}
            tensors |= {f"average.{name}": value for name, value in self.average.items()}
            tensors |= checkpoint.flatten(self.optimizer, self.names, "adam")
            tensors |= checkpoint.flatten(self.aux_optimizer, [AUX], "aux")
            checkpoint.save(self.folder, self.state.step, tensors, vars(self.state))
        self.accelerator.wait_for_everyone()

    def _network_state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def crops(self) -> Iterator[Crop]:
        """The crops of this process from the present step on."""
        settings = self.settings
        return iter(
            Crops(
                self.collection,
                settings.crop,
                settings.crops_per_picture,
                settings.shuffle_buffer,
                settings.weights,
                settings.seed,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                settings.threads,
                self.state.step * settings.batch * settings.accumulate,
            )
        )

    def _batch(self, crops: Iterator[Crop], drawn: random.Random) -> tuple[Tensor, Text | None]:
        taken = [next(crops) for _ in range(self.settings.batch)]
        device = self.accelerator.device
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in taken])).to(device)
        text = None
        if self.text is not None:
            prompts = [self._prompt(crop, drawn) for crop in taken]
            text = self.text(prompts).to(device, torch.float32)
        # Contiguous: with the pixels' channels last, torch 2.15 on CPUs writes past the end of
        # gradients of convolutions with few channels.
        return pixels.permute(0, 3, 1, 2).contiguous().float() / 255, text

    def _prompt(self, crop: Crop, drawn: random.Random) -> str:
        """Of a crop: its own, none or a foreign one."""
        chance, empty = drawn.random(), self.settings.text_dropout
        if chance < empty:
            return ""
        if self.foreign is not None and chance < empty + self.settings.foreign_share:
            return drawn.choice(self.foreign)
        return crop.text

    def step(self, crops: Iterator[Crop]) -> tuple[float, float, float] | None:
        """One step of the optimisers: loss, bpp and MSE; None where the gradient was not finite."""
        settings, number = self.settings, self.state.step
        rank = self.accelerator.process_index
        drawn = random.Random(f"{settings.seed} text {number} {rank}")
        torch.manual_seed(_seed(settings.seed, "step", number, rank))
        sums = torch.zeros(3, device=self.accelerator.device)
        for micro in range(settings.accumulate):
            x, text = self._batch(crops, drawn)
            quality, weight = self._qualities(drawn)
            last = micro == settings.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    output = self.forward(x, text, quality)
                found = rate_distortion(output, x, weight, settings.distortion)
                self.accelerator.backward(found[0] / settings.accumulate)
            sums += torch.stack(found).detach() / settings.accumulate
        # After all processes have shared their gradients, all see the same norm.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, number)
            self.optimizer.step()
            torch.autograd.backward(self.network.aux_loss())
            self.aux_optimizer.step()
            self._follow()
        else:
            self.state.skipped += 1
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        self.state.step += 1
        if not finite:
            return None
        loss, bpp, mse = sums.tolist()
        return loss, bpp, mse

    def _qualities(self, drawn: random.Random) -> tuple[Tensor | None, float | Tensor]:
        """The quality of every crop of a batch, all as often as can be, and their λ."""
        count, device = len(self.weights), self.accelerator.device
        if count == 1:
            return None, self.weights[0]
        first = drawn.randrange(count)
        index = (torch.arange(self.settings.batch, device=device) + first) % count
        return index + 1, torch.tensor(self.weights, device=device)[index]

    @torch.no_grad()
    def _follow(self) -> None:
        # Early weights are forgotten sooner: the average would else be of the random ones.
        taken = self.state.step + 1 - self.state.skipped
        decay = min(self.settings.ema, taken / (taken + 9))
        for name, parameter in self.network.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def model_now(self) -> Network:
        """The averaged weights as a network that codes."""
        network = Network(**self.network.sizes.model_dump())
        network.load_state_dict(self.average, strict=False)  # tables are made next
        network.update()
        return network.eval()

    def validate(self) -> list[Found]:
        """Measure the averaged weights on the validation pictures, at each quality."""
        device = self.accelerator.device
        name = "cpu" if device.type == "cpu" else str(device)  # accelerate numbers CPUs, too
        return validate(self.model_now(), self.validation, self.text, name)


def _init_of(place: str, name: str) -> str:
    """The folder or Hub id of a model; of a run's `train` folder, its best one of this name."""
    best = Path(place) / name / "best"
    return str(best) if "://" not in place and best.is_dir() else place


def _check_init(place: str | None, folder: Path) -> None:
    """What a codec starts from is there, or no longer needed.

    Raises:
        AigiError: it is not.
    """
    if place is None or checkpoint.found(folder):
        return
    init = _init_of(place, folder.name)
    for name in (CONFIG, WEIGHTS):
        if "://" not in init and not (Path(init) / name).is_file():
            raise AigiError(f"train.init: {init} has no {name}. Give the folder of a model.")


def _foreign_prompts(settings: Train) -> list[str] | None:
    if settings.foreign_prompts is None:
        return None
    path = Path(settings.foreign_prompts)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AigiError(f"train.foreign_prompts: {path}: cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise AigiError(f"train.foreign_prompts: {path}: has no line with a prompt")
    return found


def _bytes_of(tensors: dict[str, Tensor]) -> Iterator[str | bytes]:
    for name, value in sorted(tensors.items()):
        yield from (name, value.cpu().contiguous().numpy().tobytes())


def _digest(parts: Iterable[str | bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


class _Log:
    """A CSV file that a resumed run goes on with: lines beyond the checkpoint are dropped.

    Where the checkpoint lies between two lines, the next one is the mean of the steps since.
    """

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        lines: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                lines = [r for r in csv.reader(file) if r and r[0].isdigit() and int(r[0]) <= step]
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
        part.replace(path)
        self.file = path.open("a", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def write(self, *values: object) -> None:
        self.writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
        self.file.flush()


CURVE = ["step", "loss", "bpp", "psnr", "learning_rate", "seconds"]
VALIDATION = [
    *("step", "quality", "loss", "bpp", "bpp_without_prompt", "psnr", "ms_ssim", "pictures")
]


def fit(trainer: Trainer, progress: Progress) -> None:
    """Train from the last checkpoint to the last step, and leave models to code with.

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
    table = _Log(folder / "validation.csv", VALIDATION, state.step) if main else None
    if state.step:
        progress.say(f"train: {name}: goes on from step {state.step:,}")
    crops = trainer.crops()
    window: list[tuple[float, float, float]] = []
    began, first = time.monotonic(), state.step
    before = state.seconds
    while state.step < settings.steps:
        values = trainer.step(crops)
        if values is None:
            progress.say(
                f"train: {name}: step {state.step:,} had no finite gradient and was passed over "
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
            quality = float(psnr(torch.tensor(mse)))
            rate = learning_rate(settings, state.step - 1)
            if curve is not None:
                curve.write(state.step, loss, bpp, quality, rate, state.seconds)
            trainer.accelerator.log(
                {"loss": loss, "bpp": bpp, "psnr": quality, "learning_rate": rate}, state.step
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
        if done or state.step % settings.save_every == 0:
            trainer.save()
    if main:
        _keep(trainer, folder / "last")


def _validated(trainer: Trainer, table: _Log | None, progress: Progress) -> None:
    settings, state = trainer.settings, trainer.state
    found = trainer.validate()
    losses = []
    for quality, (one, weight) in enumerate(zip(found, trainer.weights, strict=True), 1):
        losses.append(one.loss(weight, settings.distortion))
        if table is not None:
            table.write(
                state.step, quality, losses[-1], one.bpp, one.bpp_without_prompt, one.psnr,
                "" if one.ms_ssim is None else one.ms_ssim, one.pictures,
            )  # fmt: skip
        values = {"loss": losses[-1], "bpp": one.bpp, "psnr": one.psnr}
        which = "" if len(found) == 1 else f"/{quality}"
        trainer.accelerator.log(
            {f"validation{which}/{k}": v for k, v in values.items()}, state.step
        )
    loss = math.fsum(losses) / len(losses)
    better = state.best_loss is None or loss < state.best_loss
    points = ", ".join(f"{one.psnr:.2f} dB at {one.bpp:.4f} bpp" for one in found)
    progress.say(
        f"train: {trainer.folder.name}: step {state.step:,}: {found[0].pictures} whole pictures, "
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
        f"{state.step:,} steps of {settings.batch * settings.accumulate} crops of "
        f"{settings.crop}x{settings.crop}, λ = {lambdas}, {settings.distortion}, seed "
        f"{settings.seed}, on {trainer.accelerator.num_processes} "
        f"{trainer.accelerator.device.type} process(es)."
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


def _accelerator(settings: Train, device: str, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if device not in ("auto", "cpu", "cuda"):
        raise AigiError(f"compute.device: {device}: training takes auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise AigiError("compute.device: cuda: torch sees no GPU here")
    if settings.tracker is not None:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise AigiError(
                "train.tracker: tensorboard is not installed: pip install 'aigi[train]'"
            ) from None
    return Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[settings.precision],
        # Told so, accelerate starts a group of processes on CPUs too.
        cpu=device == "cpu" or not torch.cuda.is_available(),
        log_with=settings.tracker,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def train(workflow: Workflow, progress: Progress) -> list[Path]:
    """Train a codec for each λ of a workflow, one after the other; by Ray Train where it asks so.

    Returns:
        Their folders.

    Raises:
        AigiError: there is nothing to train on, the settings do not fit what was begun, or
            gradients were not finite.
    """
    settings = workflow.train
    if settings is None:
        raise AigiError("train: the workflow has no such section")
    if "://" in workflow.run:
        raise AigiError(f"run: {workflow.run}: training wants a folder on this machine")
    sizes = sizes_of(settings)
    root = Path(workflow.run) / "train"
    codecs = {root / name: weights for name, weights in codecs_of(settings, sizes).items()}
    if workflow.compute.ray is not None:
        from pipeline.learned.cluster import train_with_ray

        train_with_ray(workflow, progress)
        return list(codecs)
    for folder in codecs:
        _check_init(settings.init, folder)
    torch.set_num_threads(workflow.compute.threads)
    data = workflow.pictures(settings.data)
    collection = Collection(data.model_copy(update={"splits": ("train",)}))
    # One for all codecs: its end is that of the group of processes.
    accelerator = _accelerator(settings, workflow.compute.device, root)
    if not accelerator.is_main_process:
        progress = Progress(quiet=True)
    pictures = _validation(settings, data) if accelerator.is_main_process else []
    for folder, weights in codecs.items():
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(
            settings, weights, folder, workflow.compute.threads, accelerator, collection, pictures
        )
        if settings.tracker is not None:
            accelerator.init_trackers(f"{folder.name}/{settings.tracker}")
        fit(trainer, progress)
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()
    accelerator.end_training()
    return list(codecs)


def _validation(settings: Train, data: Pictures) -> list[tuple[RGB, str]]:
    if not settings.validation_pictures:
        return []
    data = data.model_copy(
        update={"splits": ("validation",), "limit": settings.validation_pictures}
    )
    try:
        pictures = list(pictures_of(Collection(data)))
        if settings.distortion == "ms-ssim" and not any(
            min(picture.shape[:2]) >= LEAST_SIDE for picture, _ in pictures
        ):
            raise AigiError(
                f"train.data: {data.place}: no validation picture has sides of {LEAST_SIDE} "
                "pixels, which MS-SSIM wants"
            )
    except AigiError as error:
        raise AigiError(
            f"{error}\nThere is nothing to validate with: set train.validation_pictures=0"
        ) from error
    return pictures
