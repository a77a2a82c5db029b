"""Generated sources of a plan in, what an image costs on this device, and a record of it, out.

Each source runs as in a run: its `Diffuser` makes batches of growing size of made-up prompts. The
images are dropped.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.images.costs import Measured, Probe, Stopped, Trial, conditions, device_of, sizes_of
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.images import ImageMaker, Images, LocalSource, local_diffusers
from pipeline.plan import specification
from pipeline.plan.ids import plan_table
from pipeline.plan.quotas import Plan, chosen
from pipeline.plan.specification import DiffusersSpec
from pipeline.progress import Progress
from pipeline.stage import Compute

GAIN = 1.05
"""A batch that is not this much faster an image than the best smaller one ends the growth."""
_LONGEST = 5.0
"""A source and size ends after this many times the seconds that it may take: by an exception."""
_ROOM = 0.9  # of the free memory of a machine that a larger batch may be expected to need


class _TimeUp(Exception):
    """A batch takes longer than the whole source may; no error of a row, and none of a machine."""


@contextmanager
def _until(pipe: Any, deadline: float) -> Iterator[None]:
    """Raise `_TimeUp` at the first step after a time: every family of models has a scheduler."""
    step = pipe.scheduler.step

    def counted(*given: Any, **options: Any) -> Any:
        if time.monotonic() > deadline:
            raise _TimeUp
        return step(*given, **options)

    pipe.scheduler.step = counted
    try:
        yield
    finally:
        del pipe.scheduler.step  # what hides the method of its class


class Memory:
    """How much memory the device of a model, or on a CPU this process, needs at most."""

    def __init__(self, device: Any) -> None:
        import psutil

        self.device, self.process = device, psutil.Process()
        kinds: dict[str, Literal["device", "process"]] = {"cuda": "device", "cpu": "process"}
        self.kind: Literal["device", "process", ""] = kinds.get(device.type, "")

    def now(self) -> int | None:
        """Bytes in use."""
        import torch

        if self.kind == "device":
            return int(torch.cuda.memory_allocated(self.device))
        return int(self.process.memory_info().rss) if self.kind == "process" else None

    def room(self) -> int | None:
        """Bytes that can still be had; None: the device itself reports when there are no more."""
        import psutil

        return int(psutil.virtual_memory().available) if self.kind == "process" else None

    def peak(self, work: Callable[[], Any]) -> tuple[Any, float, int | None]:
        """The result of some work, its seconds, and the most bytes in use meanwhile."""
        import torch

        cuda = self.kind == "device"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        most = self.now() or 0
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.01):
                most = max(most, self.now() or 0)

        watcher = threading.Thread(target=watch, daemon=True)
        if self.kind == "process":
            watcher.start()
        started = time.perf_counter()
        try:
            result = work()
            if cuda:
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - started
        finally:
            done.set()
            if watcher.ident is not None:
                watcher.join()
        if cuda:
            most = int(torch.cuda.max_memory_allocated(self.device))
        return result, seconds, max(most, self.now() or 0) if self.kind else None


def _rows(name: str, spec: DiffusersSpec, width: int, height: int, size: int, steps: int) -> Any:
    """Plan rows of one batch: distinct made-up prompts."""
    rows = [
        {
            "image_id": f"{number:032x}",
            "prompt_id": f"{number:032x}",
            "text": f"a small red boat on a calm lake at dawn, under heavy clouds, number {number}",
            "split": "train",
            "source": name,
            "model": spec.model,
            "revision": spec.revision,
            "seed": number,
            "steps": steps,
            "guidance_scale": spec.guidance_scale,
            "negative_prompt": spec.negative_prompt,
            "scheduler": spec.scheduler,
            "dtype": spec.dtype,
            "width": width,
            "height": height,
            "watermark": "none",
            "options": spec.row_options,
        }
        for number in range(size)
    ]
    return plan_table(rows, options=spec.row_options is not None)


class _Failed(Exception):
    """Images of a batch failed, for a reason that is not memory."""


class _Prober:
    """One source at one size: its batches, one after the other, until growth ends."""

    def __init__(
        self,
        name: str,
        spec: DiffusersSpec,
        diffuser: Diffuser,
        size: tuple[int, int],
        seconds: float,
        progress: Progress,
    ) -> None:
        self.name, self.spec, self.diffuser, self.progress = name, spec, diffuser, progress
        self.width, self.height = size
        self.local = diffuser.local
        self.memory = Memory(diffuser.device)
        self.held = self.memory.now()
        self.seconds, self.started = seconds, time.monotonic()
        self.trials: list[Trial] = []
        self.stopped: Stopped | None = None

    @property
    def what(self) -> str:
        return f"probe: {self.name} {self.width}x{self.height}"

    def left(self) -> float:
        """Seconds that remain of those that it may take."""
        return self.seconds - (time.monotonic() - self.started)

    def batch(self, size: int, steps: int) -> tuple[float, int | None, int | None]:
        """Seconds, peak bytes and mean bytes of a file of one batch.

        Raises:
            MemoryError: it does not fit.
            _Failed: an image failed.
        """
        self.diffuser.local = self.local.model_copy(update={"batch_size": size})
        rows = _rows(self.name, self.spec, self.width, self.height, size, steps)
        deadline = self.started + _LONGEST * self.seconds
        try:
            with _until(self.diffuser.pipe, deadline):
                made, seconds, peak = self.memory.peak(
                    lambda: pa.concat_tables(self.diffuser(rows))
                )
        finally:
            self.diffuser.local = self.local
        if errors := [error for error in made["error"].to_pylist() if error]:
            raise _Failed(errors[0])
        if min(made["batch_size"].to_pylist()) < size:
            raise MemoryError
        sizes = [len(image["bytes"]) for image in made["image"].to_pylist()]
        return seconds, peak, sum(sizes) // len(sizes)

    def trial(self, size: int) -> bool:
        """Measure one size; whether it was possible."""
        few = min(2, self.spec.steps)
        warm, _, _ = self.batch(size, few)  # loads and compiles what the size needs; not counted
        if 4 * warm < self.left():
            warm, _, _ = self.batch(size, few)
        steps = self.affordable(warm / few)
        if steps is None:
            self.stopped = "time"
            return False
        found = [self.batch(size, count) for count in steps]
        peaks = [peak for _, peak, _ in found if peak is not None]
        self.trials.append(
            Trial(
                size=size,
                steps=list(steps),
                seconds=[seconds for seconds, _, _ in found],
                peak=max(peaks, default=None),
                file=found[0][2] if steps[0] == self.spec.steps else None,
            )
        )
        return True

    def affordable(self, step: float) -> tuple[int, int] | None:
        """Steps of two batches that take at most half of the time left; None: not even few do.

        Args:
            step: seconds of one, and of a share of all else.
        """
        budget, full = self.left() / 2, self.spec.steps
        if 2 * full * step <= budget:
            return full, full
        few = min(int(budget / 3 / step), full // 2)
        if few >= 2:
            return few, 2 * few
        if self.trials:
            return None
        return (2, 4) if full >= 4 else (full, full)

    def grows(self, size: int) -> bool:
        """Whether memory may suffice for a batch of this size, by that of the last one."""
        room, last = self.memory.room(), self.trials[-1] if self.trials else None
        if room is None or last is None or last.peak is None or self.held is None:
            return True
        more = max(last.peak - self.held, 0) * (size / last.size) + self.held
        return more - (self.memory.now() or 0) <= _ROOM * room

    def run(self, most: int, fullest: int) -> None:
        """Let batches grow by twice, and measure the size of the workflow, too.

        Args:
            most: images in the largest batch.
            fullest: images in the fullest shard.
        """
        size, best, limit = 1, 0.0, min(most, fullest)
        while self.stopped is None:
            if not self.grows(size):
                self.stopped = "memory"
            elif self.tried(size):
                rate = 1 / self.trials[-1].image(self.spec.steps)
                if rate < GAIN * best:
                    self.stopped = "no gain"
                elif size == limit:
                    self.stopped = "limit" if most < fullest else "shard"
                elif self.left() <= 0:
                    self.stopped = "time"
                size, best = min(2 * size, limit), max(best, rate)
        mine = min(self.local.batch_size, fullest)
        if self.stopped != "memory" and all(trial.size != mine for trial in self.trials):
            stopped = self.stopped
            if self.grows(mine) and self.tried(mine):
                self.trials.sort(key=lambda trial: trial.size)
            self.stopped = stopped

    def tried(self, size: int) -> bool:
        """Measure one size and report it; whether it was possible."""
        try:
            if not self.trial(size):
                return False
        except MemoryError:
            self.stopped = "memory"
            return False
        except _TimeUp:
            self.stopped = "time"
            return False
        trial = self.trials[-1]
        fewer = (
            ""
            if trial.steps[0] == self.spec.steps
            else (f" (from {trial.steps[0]} and {trial.steps[1]} of {self.spec.steps} steps)")
        )
        self.progress.say(
            f"{self.what}: batch of {size}: {trial.image(self.spec.steps):.3g} s an image{fewer}"
            + (f", {trial.peak / (1 << 30):.2f} GiB" if trial.peak is not None else "")
        )
        return True


def probe(
    plan: Plan,
    sources: Mapping[str, LocalSource],
    settings: Images,
    compute: Compute,
    progress: Progress,
    seconds: float = 60.0,
    most: int = 64,
) -> Probe:
    """Measure every generated source of a plan at each of its sizes on this device.

    Args:
        seconds: that a source and size may take, beside loading; a batch that has begun may take
            longer, up to five times as long in all.
        most: images in the largest batch that is tried.

    Raises:
        AigiError: the plan has no generated source.
    """
    dataset = specification.load(plan.dataset)
    wanted: dict[str, list[tuple[int, int, int]]] = {}
    for name, width, height, rows in sizes_of(plan):
        wanted.setdefault(name, []).append((width, height, rows))
    if not wanted:
        raise AigiError(
            f"probe: {specification.place_of(plan.dataset)} has no generated source among "
            f"{', '.join(chosen(dataset, plan))}; imports need no device"
        )
    device, found = device_of(compute), []
    maker = ImageMaker(settings, sources, dataset, compute)
    for name, sizes in wanted.items():
        spec, local = dataset.sources[name], local_diffusers(sources, name)
        assert isinstance(spec, DiffusersSpec)
        progress.say(f"probe: {name}: loading {spec.model}")
        error = ""
        try:
            maker.hold(name, None, spec.revision)
        except AigiError as failed:
            error = str(failed)
        for width, height, rows in sizes:
            one = Measured(
                source=name,
                width=width,
                height=height,
                steps=spec.steps,
                conditions=conditions(spec, local, settings, compute, device),
                held=None,
                memory="",
                trials=[],
                error=error,
            )
            found.append(
                one if error else _measured(one, spec, maker, rows, seconds, most, progress)
            )
            if found[-1].error:
                progress.say(f"probe: {name} {width}x{height}: {found[-1].error}")
    return Probe(made=f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", sources=found)


def _measured(
    one: Measured,
    spec: DiffusersSpec,
    maker: ImageMaker,
    fullest: int,
    seconds: float,
    most: int,
    progress: Progress,
) -> Measured:
    import torch

    assert isinstance(maker.maker, Diffuser)
    if maker.maker.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    size = (one.width, one.height)
    prober = _Prober(one.source, spec, maker.maker, size, seconds, progress)
    error = ""
    try:
        prober.run(most, fullest)
    except (_Failed, MachineFault, AigiError) as failed:
        error = str(failed)
    if not prober.trials and not error:
        error = {
            "memory": "not even one image fits into the memory",
            "time": f"one image takes longer than {_LONGEST * seconds:.0f} s; give more --seconds",
        }.get(prober.stopped or "", "nothing was measured")
    return one.model_copy(
        update={
            "held": prober.held,
            "memory": prober.memory.kind,
            "trials": prober.trials,
            "stopped": prober.stopped,
            "error": error,
        }
    )
