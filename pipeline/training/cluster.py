"""A training in; the same training by Ray, on the workers of a cluster.

By Ray Train, each worker is one process of one job, as with a launcher, and reads the release and
the checkpoints itself. If a worker is lost, all stop and resume from the last checkpoint. Codecs
that are trained apart are tasks, which share nothing.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.cluster import Proof, connect, known, prove
from pipeline.joining import Watch
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.training.settings import Train

Job = Callable[[Train, str, Compute, Progress, Sequence[str] | None], list[Path]]
"""Settings, run directory, `compute`, progress and codecs in; the folders of codecs out."""
RETRIES = 3


class _Lines(io.StringIO):
    """A stream of the first worker whose lines arrive in this process."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def write(self, text: str) -> int:
        self.queue.put(text)
        return len(text)


def _work(config: dict[str, Any], *only: str) -> None:
    settings, compute = Train.model_validate(config["train"]), Compute(**config["compute"])
    progress = Progress(_Lines(config["lines"]))
    config["job"](settings, config["run"], compute, progress, only or None)


@contextmanager
def _told(
    job: Job, settings: Train, run: str, compute: Compute, progress: Progress, watch: Watch
) -> Iterator[Proof]:
    """A proof of the job, whose lines are shown here."""
    from ray.util.queue import Queue

    lines = Queue(actor_options={"num_cpus": 0})

    def show() -> None:
        while (text := lines.get()) is not None:
            if text.strip():
                progress.say(text.rstrip("\n"))

    config = {
        "job": job,
        "lines": lines,
        "train": settings.model_dump(mode="json"),
        "run": run,
        "compute": compute.model_dump(mode="json") | {"ray": None},
    }
    shown = threading.Thread(target=show, daemon=True)
    shown.start()
    try:
        with known(Store(run), partial(_work, config)) as proof:
            prove(proof, watch)
            yield proof
    finally:
        if not watch.lost:  # or this would wait for it
            lines.put(None)
            shown.join()


def train_with_ray(
    job: Job, settings: Train, run: str, compute: Compute, progress: Progress
) -> None:
    """Run a training job with `compute.workers` workers.

    Raises:
        AigiError: there is no such cluster, or it is lost; a machine has other software or does not
            see the run directory; `train` raised an error in a worker.
    """
    share, watch = connect(compute)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    from pipeline.training.trainer import PATIENCE

    try:
        with _told(job, settings, run, compute, progress, watch) as proof:
            trainer = TorchTrainer(
                lambda: proof(),
                torch_config=TorchConfig(timeout_s=round(PATIENCE.total_seconds())),
                scaling_config=ScalingConfig(
                    num_workers=compute.workers,
                    use_gpu=share.gpus > 0,
                    resources_per_worker=share.needs(),
                ),
                run_config=RunConfig(
                    name="ray",
                    storage_path=str((Path(run) / "train").absolute()),
                    failure_config=FailureConfig(max_failures=RETRIES),
                ),
            )
            for _ in watch.over(trainer.fit() for _ in range(1)):
                pass
    except WorkerGroupError as error:
        causes = [getattr(e, "cause", e) for e in error.worker_failures.values()]
        said = [str(cause) for cause in causes if isinstance(cause, AigiError)]
        raise AigiError(said[0] if said else f"train: {error}") from error
    except TrainingFailedError as error:
        raise AigiError(f"train: {error}") from error


def codecs_with_ray(
    job: Job, settings: Train, run: str, compute: Compute, progress: Progress
) -> None:
    """Run a training job for each codec, as many at a time as there are `compute.workers`.

    A codec whose worker is lost resumes elsewhere from its last checkpoint.

    Raises:
        AigiError: as `train_with_ray`.
    """
    share, watch = connect(compute)
    import ray

    from pipeline.training.apart import SECONDS, may_begin
    from pipeline.training.fit import codecs_of
    from pipeline.training.trainer import sizes_of

    folders = [Path(run) / "train" / name for name in codecs_of(settings, sizes_of(settings))]
    before = dict(zip(folders[1:], folders, strict=False)) if settings.neighbour else {}
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES)(
        lambda proof, name: proof(name)  # by value: a machine may have no aigi
    )

    def results(proof: Proof) -> Iterator[None]:
        waiting, running, sent = list(folders), list[Any](), ray.put(proof)
        while waiting or running:
            for folder in list(waiting):
                ready = folder not in before or may_begin(before[folder], folder)
                if ready and len(running) < compute.workers:
                    waiting.remove(folder)
                    running.append(task.remote(sent, folder.name))
            if not running:
                raise AigiError(
                    f"train.neighbour: {waiting[0].name} has nothing to begin with, though "
                    f"{before[waiting[0]].name} is trained. Train that one anew, or leave "
                    "train.neighbour out."
                )
            done, running = ray.wait(running, timeout=SECONDS)
            yield from (ray.get(answer) for answer in done)

    try:
        with _told(job, settings, run, compute, progress, watch) as proof:
            for _ in watch.over(results(proof)):
                pass
    except ray.exceptions.RayTaskError as error:
        raise AigiError(
            str(error.cause) if isinstance(error.cause, AigiError) else f"train: {error}"
        ) from error
