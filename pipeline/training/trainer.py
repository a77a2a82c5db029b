"""A batch of crops in, one step of the optimiser out; its state goes into checkpoints and back."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.collection import Collection
from pipeline.learned.codec import load_network
from pipeline.learned.network import Network, Output
from pipeline.learned.networks.layers import Text
from pipeline.learned.sizes import NETWORKS, Sizes, parse
from pipeline.learned.text import TextEncoder
from pipeline.outside import opened
from pipeline.pixels import RGB, decibels
from pipeline.shown import public
from pipeline.stage import flat
from pipeline.training import checkpoint
from pipeline.training.crops import Crop, Crops
from pipeline.training.distortion import ms_ssim
from pipeline.training.initial import begin, step_of
from pipeline.training.settings import LATER, Train, at_step
from pipeline.training.validation import Found, validate

AUX = "prior.median"


LAMBDAS = {"mse": 1.0, "ms-ssim": 1280.0}
"""λ of MS-SSIM over λ of MSE at about the same rate, as CompressAI pairs its models."""


PATIENCE = timedelta(hours=6)
"""How long processes wait for the first, which alone validates; torch's 10 minutes are few."""


FREE = {
    "steps", "threads", "log_every", "save_every", "validate_every", "validation_pictures",
    "tracker", "text_folder", "max_skipped", "lambdas", "together", "data", "init",
    "validation_data", "parallel", "anchors",
}  # fmt: skip
"""Settings that may change while a codec is trained, or that are recorded in another form."""
INTERLEAVE = 4
"""Parts of the images that crops of a new training are drawn from at once."""


def sizes_of(settings: Train) -> Sizes:
    """The network of the settings; with `together`, it has as many qualities as there are λ.

    Raises:
        AigiError: there is no network of this name, or its sizes are wrong.
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


class Terms(NamedTuple):
    """What the losses of B images consist of; each is float32, shape (B,), at least 0.

    Attributes:
        distortion: times λ.
        y_bpp, z_bpp: estimated bits a pixel of y and of z.
        mse: over values from 0 to 1.
    """

    distortion: Tensor
    y_bpp: Tensor
    z_bpp: Tensor
    mse: Tensor


def rate_distortion(
    output: Output,
    x: Tensor,
    weight: float | Tensor,
    distortion: str,
    scale: float | Tensor = 1.0,
) -> tuple[Tensor, Terms]:
    """The loss: λ·255²·MSE + bpp (Ballé 2018), or λ·(1 - MS-SSIM) + bpp; and its terms.

    Args:
        output: of the network for x.
        x: float32 tensor B x 3 x H x W in 0 to 1.
        weight: λ of all images, or a tensor with the λ of each.
        scale: what the loss of each image is multiplied by, above 0; or a float32 tensor (B,).

    Returns:
        The mean of the images' losses, a float32 scalar, and what they consist of.
    """
    pixels = x.shape[2] * x.shape[3]
    x_hat = output.x_hat.float()
    errors = (x_hat - x).square().mean((1, 2, 3))
    if distortion == "mse":
        distortions = weight * 255**2 * errors
    else:
        with torch.autocast(x.device.type, enabled=False):
            # Outside 0 … 1 its terms lose their meaning; the gradient of clamp would be 0 there.
            distortions = weight * (1 - ms_ssim(x_hat, x))
    y, z = (bits / pixels for bits in output.bits_of_each())
    return (scale * (distortions + y + z)).mean(), Terms(distortions, y, z, errors)


def _seed(*parts: object) -> int:
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class _Progress:
    """What a checkpoint contains beside tensors."""

    step: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def _mixed(settings: Train, folder: Path) -> Train:
    """The settings with the parts that crops are drawn from: a training goes on as it began."""
    if settings.interleave is not None:
        return settings
    files = checkpoint.found(folder)
    parts = INTERLEAVE
    if files:
        parts = checkpoint.facts(files[-1])["settings"].get("interleave", LATER["interleave"])
    return settings.model_copy(update={"interleave": parts})


class Trainer:
    """One codec in training.

    Args:
        settings: the whole `train` section.
        weights: λ of each quality of the network, rising.
        folder: folder of this codec.
        threads: threads of torch; sums on a CPU depend on them.
        accelerator: the accelerator of accelerate.
        collection: images of the train split.
        validation: decoded images (uint8, H x W x 3) and prompts.
        init: the model to begin with, in place of that of the settings.

    Raises:
        AigiError: the folder was begun with other settings, or `init` does not fit.
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
        init: Path | None = None,
    ) -> None:
        settings = _mixed(settings, folder)
        self.settings, self.weights, self.folder = settings, weights, folder
        self.accelerator, self.collection, self.validation = accelerator, collection, validation
        sizes = sizes_of(settings)
        self.crops_of_a_step()  # processes must be able to share them
        own = None if settings.init is None else init_of(settings.init, folder.name)
        self.init = own if init is None else str(init)
        self.text = (
            None
            if sizes.text is None
            else TextEncoder(sizes.text, settings.text_folder, accelerator.device)
        )
        self.foreign = _foreign_prompts(settings)
        self.state = _Progress(settings=self._recorded(sizes, threads))
        self.changed: list[str] = []
        self.observed: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.middle = math.exp(math.fsum(map(math.log, weights)) / len(weights))
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
            begin(self.network, step_of(self.middle / LAMBDAS[settings.distortion]))
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
        dumped = settings.recorded()
        return {
            **{k: v for k, v in dumped.items() if k not in {"network", *FREE}},
            **({"steps": settings.steps} if settings.by_share else {}),
            "network": sizes.model_dump(mode="json"),
            "lambda": self.weights[0] if len(self.weights) == 1 else list(self.weights),
            "data": self.collection.state,
            "init": public(settings.init),
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
                f"train.init: {init}: its sizes are {json.dumps(theirs)}, but this network has "
                f"{json.dumps(mine)}. They may differ only in text."
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
        # A network that has more sizes now has their defaults then.
        facts["settings"]["network"] = parse(facts["settings"]["network"]).model_dump(mode="json")
        steps = facts["settings"].get("steps", self.settings.steps)
        before, now = (
            flat(
                {name: value for name, value in (LATER | one).items() if name != "steps"}
                | {"milestones": _passed(one["milestones"], steps, facts["step"])}
            )
            for one in (facts["settings"], settings)
        )
        changed = [
            f"{name}: {before.get(name)} -> {now.get(name)}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise AigiError(
                f"{self.folder}: this training was begun with other settings:\n  "
                + "\n  ".join(changed)
                + "\nSet them back, or train in another run directory."
            )
        self.state = _Progress(**{**facts, "settings": settings})
        if self.settings.by_share and steps != self.settings.steps:
            self.changed = [
                f"from step {self.state.step:,} on, what depends on train.steps goes by "
                f"{self.settings.steps:,} steps, before by {steps:,}"
            ]
            self.state.changes = [*self.state.changes, *self.changed]
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
                f"{self.folder}: processes would resume from different steps ({steps}), because "
                "each reads the checkpoints itself. Put the run directory where all machines see "
                "it."
            )

    def save(self) -> None:
        """Write a checkpoint; the first process writes, the others wait."""
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
        """The crops of this process from the current step on."""
        settings, step = self.settings, self.state.step
        late = settings.late_crops
        switch = None if late is None else at_step(late.after, settings.steps)
        if switch is None or step < switch:
            # Left where the late crops begin; there are no more of them than the steps take.
            size, count = settings.crops_at(step, self.accelerator.num_processes)
            each = count * settings.accumulate
            most = None if switch is None else (switch - step) * each
            yield from itertools.islice(self._stream(size, step * each), most)
            step = switch or step
        if late is not None:
            size, count = settings.crops_at(step, self.accelerator.num_processes)
            yield from self._stream(size, step * count * settings.accumulate)

    def crops_of_a_step(self) -> str:
        """How many crops of all processes a step has, and of what size, in words."""
        settings, processes = self.settings, self.accelerator.num_processes
        late = settings.late_crops
        switch = None if late is None else at_step(late.after, settings.steps)
        told = []
        for step in (0,) if switch is None else (0, switch):
            size, count = settings.crops_at(step, processes)
            crops = count * settings.accumulate * processes
            told.append(f"{crops:,} crops of {size}x{size}")
        more = "" if switch is None else f", from step {switch:,} on {told[1]}"
        return told[0] + more

    def _stream(self, size: int, start: int) -> Iterator[Crop]:
        settings = self.settings
        return iter(
            Crops(
                self.collection,
                size,
                settings.crops_per_picture,
                settings.shuffle_buffer,
                settings.weights,
                settings.seed,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                settings.threads,
                start,
                settings.augment,
                settings.interleave or INTERLEAVE,
            )
        )

    def _batch(self, crops: Iterator[Crop], drawn: random.Random) -> tuple[Tensor, Text | None]:
        _, count = self.settings.crops_at(self.state.step, self.accelerator.num_processes)
        taken = [next(crops) for _ in range(count)]
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
        """The prompt of a crop: its own, none or a foreign one."""
        chance, empty = drawn.random(), self.settings.text_dropout
        if chance < empty:
            return ""
        if self.foreign is not None and chance < empty + self.settings.foreign_share:
            return drawn.choice(self.foreign)
        return crop.text

    def step(self, crops: Iterator[Crop]) -> tuple[float, float, float] | None:
        """One step of the optimisers: loss, bpp and MSE; None if the gradient was not finite."""
        settings, number = self.settings, self.state.step
        rank = self.accelerator.process_index
        drawn = random.Random(f"{settings.seed} text {number} {rank}")
        torch.manual_seed(_seed(settings.seed, "step", number, rank))
        sums = torch.zeros(3, device=self.accelerator.device)
        rows = []
        for micro in range(settings.accumulate):
            x, text = self._batch(crops, drawn)
            quality, weight = self._qualities(drawn, micro, len(x))
            last = micro == settings.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    output = self.forward(x, text, quality)
                scale = self.scale_of(weight)
                loss, terms = rate_distortion(output, x, weight, settings.distortion, scale)
                self.accelerator.backward(loss / settings.accumulate)
            with torch.no_grad():
                found = torch.stack([loss, (terms.y_bpp + terms.z_bpp).mean(), terms.mse.mean()])
                sums += found / settings.accumulate
                rows.append(_observed(quality, weight, terms, output))
        # After all processes have shared their gradients, all see the same norm.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(number)
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
        self.observed.append(torch.cat(rows))
        self.norms.append(norm)
        mean_loss, bpp, mse = sums.tolist()
        return mean_loss, bpp, mse

    def _qualities(
        self, drawn: random.Random, micro: int, crops: int
    ) -> tuple[Tensor | None, float | Tensor]:
        """The quality of every crop of a batch, all as often as can be, and their λ."""
        count, device = len(self.weights), self.accelerator.device
        if count == 1:
            return None, self.weights[0]
        if self.settings.continuous:
            found = self._between(micro, crops)
            places = [quality - 1 for quality in found]
            logs = np.interp(places, range(count), np.log(self.weights))
            weight = torch.tensor(np.exp(logs), dtype=torch.float32, device=device)
            return torch.tensor(found, dtype=torch.float32, device=device), weight
        first = drawn.randrange(count)
        index = (torch.arange(crops, device=device) + first) % count
        return index + 1, torch.tensor(self.weights, device=device)[index]

    def _between(self, micro: int, crops: int) -> list[float]:
        """Qualities of this process's crops, from 1 to the number of λ.

        The range is cut into as many equal parts as all processes have crops, and each crop draws
        from a part of its own.
        """
        process, every = self.accelerator.process_index, crops * self.accelerator.num_processes
        shared = random.Random(f"{self.settings.seed} quality {self.state.step} {micro}")
        places = [(part + shared.random()) / every for part in range(every)]
        shared.shuffle(places)
        mine = places[process * crops : (process + 1) * crops]
        return [1 + (len(self.weights) - 1) * place for place in mine]

    def scale_of(self, weight: float | Tensor) -> float | Tensor:
        """By what the loss of a crop with this λ is multiplied."""
        return 1.0 if self.settings.loss_scale == "none" else (self.middle / weight) ** 0.5

    def seen(self) -> list[dict[str, float | int]]:
        """Means of this process's crops since the last call, a row for each quality seen.

        A quality between two counts to the nearer one.
        """
        if not self.observed:
            return []
        rows = torch.cat(self.observed).double().cpu()
        norm = float(torch.stack(self.norms).double().mean())
        self.observed.clear()
        self.norms.clear()
        found: list[dict[str, float | int]] = []
        for quality in sorted(set(rows[:, 0].round().tolist())):
            here = rows[rows[:, 0].round() == quality]
            _, weight, loss, y_bpp, z_bpp, mse, spread = here.mean(0).tolist()
            found.append(
                {
                    "quality": int(quality), "lambda": weight, "crops": len(here), "loss": loss,
                    "y_bpp": y_bpp, "z_bpp": z_bpp, "psnr": decibels(1, mse),
                    "calibration": spread, "gradient_norm": norm,
                }
            )  # fmt: skip
        return found

    @torch.no_grad()
    def _follow(self) -> None:
        # Early weights are forgotten sooner: the average would else be of the random ones.
        taken = self.state.step + 1 - self.state.skipped
        decay = min(self.settings.ema, taken / (taken + 9))
        for name, parameter in self.network.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def model_now(self) -> Network:
        """The averaged weights as a network that can code."""
        network = Network(**self.network.sizes.model_dump())
        network.load_state_dict(self.average, strict=False)  # tables are made next
        network.update()
        return network.eval()

    def validate(self) -> list[Found]:
        """Measure the averaged weights on the validation images, at each quality."""
        device = self.accelerator.device
        name = "cpu" if device.type == "cpu" else str(device)  # accelerate numbers CPUs, too
        return validate(self.model_now(), self.validation, self.text, name)


def _passed(milestones: Sequence[float], steps: int, step: int) -> list[int]:
    """The milestones of so many steps that are behind a step."""
    return [at for milestone in milestones if (at := at_step(milestone, steps)) < step]


def _observed(
    quality: Tensor | None, weight: float | Tensor, terms: Terms, output: Output
) -> Tensor:
    """A row for each crop: quality, λ, loss, bits a pixel of y and z, MSE and spread."""
    count = len(terms.mse)
    spread = terms.mse.new_full((count,), math.nan) if output.spread is None else output.spread
    columns = (
        terms.mse.new_ones(count) if quality is None else quality,
        torch.as_tensor(weight, device=terms.mse.device).expand(count),
        terms.distortion + terms.y_bpp + terms.z_bpp,
        *(terms.y_bpp, terms.z_bpp, terms.mse, spread),
    )
    return torch.stack([column.detach().float() for column in columns], 1)


def init_of(place: str, name: str) -> str:
    """The folder or Hub id of a model; for a run's `train` folder, its best model of this name."""
    best = Path(place) / name / "best"
    return str(best) if "://" not in place and best.is_dir() else place


def _foreign_prompts(settings: Train) -> list[str] | None:
    if settings.foreign_prompts is None:
        return None
    path = settings.foreign_prompts
    try:
        with opened(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise AigiError(f"train.foreign_prompts: {path}: cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise AigiError(f"train.foreign_prompts: {path}: no line has a prompt")
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
