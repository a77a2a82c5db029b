"""Shard names or function calls in, results from Ray's workers out; lost workers are replaced."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pipeline import AigiError
from pipeline.stage import Compute, Map, make_shard
from pipeline.store import Store

R = TypeVar("R")


RAY_ROUNDS = 3


class _ShardMaker:
    """The same for a Ray actor: one worker, made once, fed with shard names."""

    def __init__(self, stage: Map, store: Store) -> None:
        self.stage, self.store, self.worker = stage, store, stage.make_worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return make_shard(self.stage, self.store, self.worker, row["name"], row["made_from"])


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+):(?P<port>\d+)", address)
    if found is None:  # `local`, `auto`
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=10).close()
    except OSError as error:
        raise AigiError(
            f"compute.ray: {address}: no cluster answers there ({error}). Give `local`, `auto` "
            "on a machine of the cluster, or the address that `ray start --head` printed."
        ) from error


def connect(compute: Compute) -> float:
    """Start Ray or join its cluster; returns the GPUs of each worker.

    Raises:
        AigiError: there is no such cluster.
    """
    import ray

    _check_address(str(compute.ray))
    if not ray.is_initialized():
        local = compute.ray == "local"
        stop = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=compute.ray,  # `local` starts a cluster of its own, whatever runs here
                # An actor asks for one CPU: more workers than cores must still be placed.
                num_cpus=max(os.cpu_count() or 1, compute.workers) if local else None,
                include_dashboard=False if local else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            raise AigiError(f"compute.ray: {compute.ray}: {error}") from error
        finally:
            # Ray's own handler would end this process without a word.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, stop)
    gpus = compute.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") and compute.device != "cpu" else 0.0
    return gpus


def disconnect() -> None:
    """End what this process has of Ray: its workers, and a cluster that it started."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()


def with_ray(
    function: Callable[..., R], arguments: Iterable[tuple[Any, ...]], compute: Compute
) -> Iterator[R]:
    """Results of a function in Ray tasks, in order; two per worker are in progress.

    A task whose worker or machine dies is run again elsewhere.
    """
    import ray

    gpus = connect(compute)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(function)
    waiting: deque[Any] = deque()
    for given in arguments:
        waiting.append(task.remote(*given))
        if len(waiting) > 2 * compute.workers:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def shards_with_ray(
    stage: Map, store: Store, missing: Mapping[str, str], compute: Compute
) -> Iterator[dict[str, Any]]:
    """Ray Data moves shard names; the actors read and write the shards themselves.

    Args:
        missing: names of shards, and digests of what they are made from.
    """
    import ray

    gpus = connect(compute)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that kills its worker is named below, others go on
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left = dict(missing)
    # A worker or a machine that dies takes the shards with it that wait there: those without an
    # answer are asked for again, on new workers.
    for _ in range(RAY_ROUNDS):
        asked = [{"name": name, "made_from": source} for name, source in left.items()]
        rows = ray.data.from_items(asked, override_num_blocks=len(left))
        with warnings.catch_warnings():
            # Retries have no other name yet, and Ray Data's own default tries for ever.
            warnings.filterwarnings("ignore", message=".*ray_remote_args")
            made = rows.map(
                _ShardMaker,
                fn_constructor_args=(stage, store),
                concurrency=min(compute.workers, len(left)),
                num_cpus=1,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=1,
            )
        for result in made.iter_rows():
            left.pop(result["name"], None)
            yield result
        if not left:
            return
