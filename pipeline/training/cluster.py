"""A training in; the same training by Ray Train, on the workers of a cluster.

Each worker is one process of one job, as with a launcher, and reads the release and the checkpoints
itself. If a worker is lost, all stop and resume from the last checkpoint.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.cluster import connect, known, prove
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.training.settings import Train

Job = Callable[[Train, str, Compute, Progress], list[Path]]
"""Settings, run directory, `compute` and progress in; the folders of codecs out."""
RETRIES = 3


class _Lines(io.StringIO):
    """A stream of the first worker whose lines arrive in this process."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def write(self, text: str) -> int:
        self.queue.put(text)
        return len(text)


def _work(config: dict[str, Any]) -> None:
    settings, compute = Train.model_validate(config["train"]), Compute(**config["compute"])
    config["job"](settings, config["run"], compute, Progress(_Lines(config["lines"])))


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
    from ray.util.queue import Queue

    from pipeline.training.trainer import PATIENCE

    lines = Queue(actor_options={"num_cpus": 0})

    def show() -> None:
        while (text := lines.get()) is not None:
            if text.strip():
                progress.say(text.rstrip("\n"))

    here = {
        "train": settings.model_dump(mode="json"),
        "run": run,
        "compute": compute.model_dump(mode="json") | {"ray": None},
    }
    shown = threading.Thread(target=show, daemon=True)
    shown.start()
    try:
        with known(Store(run), partial(_work, {"job": job, "lines": lines, **here})) as proof:
            prove(proof, watch)
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
    finally:
        if not watch.lost:  # or this would wait for it
            lines.put(None)
            shown.join()
