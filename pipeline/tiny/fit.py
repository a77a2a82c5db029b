"""A model and its loss in, trained weights out: steps, checkpoints, the average, the loss curve.

Each step draws its batch and its noise from seed and step number alone, so a run that was killed
and resumed from its last checkpoint equals one that was never stopped.
"""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What decides the weights, beside the number of scenes.

    steps: steps of the optimizer. batch: samples in a step. rate: the highest learning rate, which
    rises over `warmup` steps and falls to zero by a half cosine. save_every: steps between
    checkpoints.
    """

    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 100
    save_every: int = 200
    average: float = 0.0  # decay of the exponential moving average of the weights; 0 is none


def fit(
    folder: Path,
    model: Any,
    loss: Callable[[Any, Any, int], Any],
    settings: Settings,
) -> Any:
    """Train `model` from its last checkpoint to the last step, and return it on the CPU.

    Args:
        folder: gets checkpoints (`state-STEP`, of which the newest is kept) and `curve.csv`.
        model: a module; all its parameters are trained.
        loss: from the prepared model, a `torch.Generator` seeded by seed and step, and the step
            number, to a scalar tensor.
    """
    import torch
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16")
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / settings.warmup)
        return warm * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    average = EMAModel(model.parameters(), decay=settings.average) if settings.average else None
    if average:
        average.to(accelerator.device)
        accelerator.register_for_checkpointing(average)

    states = sorted(folder.glob("state-*[0-9]"))
    start = 0
    curve: list[list[str]] = []
    if states:
        accelerator.load_state(str(states[-1]))
        start = int(states[-1].name.removeprefix("state-"))
        with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
            curve = [line for line in csv.reader(file) if line[0].isdigit()]
            curve = [line for line in curve if int(line[0]) <= start]
    with (folder / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "loss", "seconds"])
        log.writerows(curve)
        before = float(curve[-1][2]) if curve else 0.0
        started = time.perf_counter()
        losses: list[float] = []
        model.train()
        for step in range(start, settings.steps):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            # On CPUs the fused attention's backward pass takes twice the time of the plain one.
            plain = (
                sdpa_kernel(SDPBackend.MATH) if accelerator.device.type == "cpu" else nullcontext()
            )
            with accelerator.autocast(), plain:
                value = loss(model, generator, step)
            accelerator.backward(value)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average:
                average.step(model.parameters())
            losses.append(value.item())
            done = step + 1
            if done % 50 == 0 or done == settings.steps:
                spent = before + time.perf_counter() - started
                mean = sum(losses) / len(losses)
                losses.clear()
                log.writerow([done, f"{mean:.6f}", f"{spent:.1f}"])
                file.flush()
                left = (spent - before) / (done - start) * (settings.steps - done)
                print(
                    f"{folder.name}: step {done} of {settings.steps}, loss {mean:.5f}, "
                    f"{spent:.0f} s, {left:.0f} s left",
                    flush=True,
                )
            if done % settings.save_every == 0 or done == settings.steps:
                partial = folder / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                accelerator.save_state(str(partial))
                partial.rename(folder / f"state-{done:07d}")
                for old in sorted(folder.glob("state-*[0-9]"))[:-1]:
                    shutil.rmtree(old)
    if average:
        average.copy_to(model.parameters())
    return accelerator.unwrap_model(model).float().cpu().eval()
