"""Shard names or function calls in, results from Ray's workers out; lost workers are replaced.

A worker first proves that it has the code, the libraries and the run directory of the process that
sends it work: it would make other shards otherwise, or write them where nobody looks.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from pipeline import AigiError, software
from pipeline.alive import Worker, Workers
from pipeline.joining import JOIN_SECONDS, Watch, join
from pipeline.outside import ABANDONED
from pipeline.software import differences, installed
from pipeline.stage import Compute, Map, Told, make_shard, told_nobody
from pipeline.store import Store

R = TypeVar("R")


STARTS = 3
"""Workers that may die while they start, for each wanted one, before the stage fails."""
TOKENS = "_ray"
"""In a run, while workers run: a folder for each process that sends them work, by which they know
the run. A run on S3 can have two such processes: nothing there is a lock."""


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs of one worker."""

    cpus: float
    gpus: float

    def needs(self) -> dict[str, float]:
        """The same, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def connect(compute: Compute) -> tuple[Share, Watch]:
    """Start Ray or join its cluster.

    On this machine alone, as many workers as wished for share the CPUs that Ray finds.

    Raises:
        AigiError: there is no such cluster, or this machine is too small for a worker.
    """
    address = str(compute.ray)
    join(address)
    import ray

    cpus, total = 1.0, ray.cluster_resources()
    if address == "local":
        cpus = min(1.0, math.floor(1000 * total["CPU"] / compute.workers) / 1000)
    gpus = compute.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total.get("GPU") and compute.device != "cpu" else 0.0
    share = Share(cpus, gpus)
    watch = Watch(compute, share.needs())
    if address == "local" and not watch.capable():
        raise AigiError(
            f"compute.gpus_per_worker: {gpus:g}: Ray finds {total.get('GPU', 0.0):g} GPUs on this "
            "machine, so no worker could start"
        )
    return share, watch


def _here() -> str:
    """The machine of this worker, for people."""
    import socket

    import ray

    node = ray.get_runtime_context().get_node_id()
    return f"node {ray.util.get_node_ip_address()} ({socket.gethostname()}, {node[:12]})"


class Proof:
    """What this process has, and workers must have too; work that only runs where they do.

    It travels to workers as it is, since they may have another aigi, or none: nothing here is
    imported there before the machine has proven itself.

    Args:
        work: what to do with the arguments of a call.
        fs: file system of a token file, if workers need the run directory.
        path: of that file.
        text: what is in it.
        run: the run directory, as the user wrote it.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        fs: Any = None,
        path: str = "",
        text: str = "",
        run: str = "",
    ) -> None:
        import ray

        for module in (software, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)
        self.installed = installed()
        self.work = ray.cloudpickle.dumps(work)
        self.fs, self.path, self.text = ray.cloudpickle.dumps(fs), path, text
        self.run = run

    def _unseen(self) -> str:
        """Why the run directory of this machine is not the one of whoever sends the work."""
        import os
        import posixpath

        import ray

        folder = posixpath.dirname(self.path)  # of this process, below TOKENS, below the run
        folder = posixpath.dirname(posixpath.dirname(folder))
        try:
            fs = ray.cloudpickle.loads(self.fs)
            if fs.cat_file(self.path).decode() != self.text:
                return "another run is there"
            local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
            return "" if not local or os.access(folder, os.W_OK) else "it cannot be written there"
        except FileNotFoundError:
            try:
                there = fs.exists(folder)
            except Exception:
                there = False
            return "another folder of that name is there" if there else "no such folder there"
        except Exception as error:  # of any storage: no library, no credentials, no network
            return f"{type(error).__name__}: {error}".partition("\n")[0]

    def refusal(self) -> str:
        """Why this machine must not do the work, with the remedy; nothing where it may."""
        found = differences(self.installed, installed())
        if found:
            return (
                f"compute.ray: {_here()} has other software than this process: {found}. Install "
                "the same there, or send the code along (ray job submit --working-dir)."
            )
        unseen = self._unseen() if self.path else ""
        if unseen:
            return (
                f"compute.ray: {_here()}: {self.run}: not visible there ({unseen}). All machines "
                "must see the run directory: S3, GCS or a network disk (--set run=…)."
            )
        return ""

    def begun(self) -> list[str]:
        """Note that a worker starts here; all that have begun since the last one had started.

        Ray starts a worker again for ever whose process dies meanwhile.
        """
        import posixpath
        import uuid

        import ray

        fs, folder = ray.cloudpickle.loads(self.fs), posixpath.dirname(self.path)
        fs.pipe_file(posixpath.join(folder, f"{uuid.uuid4().hex}.begun"), b"-")
        return [path for path in fs.find(folder) if path.endswith(".begun")]

    def started(self, begun: list[str]) -> None:
        """Note that a worker has started, so that starting is possible."""
        from contextlib import suppress

        import ray

        fs = ray.cloudpickle.loads(self.fs)
        for path in begun:
            with suppress(FileNotFoundError):
                fs.rm_file(path)

    def do(self, *given: Any) -> Any:
        """Do the work, on a machine that has proven itself."""
        import ray

        return ray.cloudpickle.loads(self.work)(*given)

    def __call__(self, *given: Any) -> Any:
        """Do the work.

        Raises:
            AigiError: this machine must not.
            RuntimeError: the same, where there is no aigi.
        """
        refused = self.refusal()
        if refused:
            try:
                from pipeline import AigiError
            except ImportError:
                raise RuntimeError(refused) from None
            raise AigiError(refused)
        return self.do(*given)


_PROVEN: set[tuple[str, str]] = set()
"""Nodes of which it is known, each with the run."""


def _refusal(proof: Proof) -> str:
    return proof.refusal()


def prove(proof: Proof, watch: Watch) -> None:
    """Let all machines that may run a worker now prove themselves.

    Raises:
        AigiError: one has other software, or does not see the run directory.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    task = ray.remote(num_cpus=0, max_retries=0)(_refusal)
    sent = ray.put(proof)
    waiting = {}
    for node in watch.capable():
        if (node["NodeID"], proof.run) not in _PROVEN:
            there = On(node["NodeID"], soft=False)
            waiting[task.options(scheduling_strategy=there).remote(sent)] = node
    refused, until = [], time.monotonic() + JOIN_SECONDS
    while waiting and time.monotonic() < until:
        ready, _ = ray.wait(list(waiting), timeout=1.0)
        watch.check()
        for answer in ready:
            node = waiting.pop(answer)
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError as error:
                if not any(node["NodeID"] == one["NodeID"] for one in watch.capable()):
                    continue  # it has gone meanwhile
                line = str(error).strip().splitlines()[-1]
                said = f"compute.ray: node {node['NodeManagerAddress']}: no worker starts: {line}"
            if said:
                refused.append(said)
            else:
                _PROVEN.add((node["NodeID"], proof.run))
    # A machine without an answer may yet come to itself: its workers prove themselves too.
    if refused:
        more = f" The same holds for {len(refused) - 1} more." if len(refused) > 1 else ""
        raise AigiError(sorted(refused)[0] + more)


@contextmanager
def known(store: Store, work: Callable[..., Any]) -> Iterator[Proof]:
    """A proof for work on a run directory, which has a token file meanwhile."""
    _without_abandoned(store)
    # A new name each time: a network disk may remember for a while what is not there.
    mine, text = (TOKENS, uuid.uuid4().hex), uuid.uuid4().hex
    store.write_bytes(text.encode(), *mine, "token.txt")
    try:
        yield Proof(work, store.fs, store.path(*mine, "token.txt"), text, store.url)
    finally:
        with suppress(OSError, AigiError):  # the storage may be what failed
            store.remove(*((TOKENS,) if store.local else mine))


def _without_abandoned(store: Store) -> None:
    """Remove tokens of killed processes; of an object store, only those that nobody can use."""
    if store.local:  # no other process is here: `run.alone` sees to that
        store.remove(TOKENS)
        return
    with suppress(FileNotFoundError):
        for path in store.fs.find(store.path(TOKENS)):
            if datetime.now(UTC) - store.fs.modified(path) > ABANDONED:
                store.fs.rm_file(path)


def _call(proof: Proof, proven: frozenset[str], given: tuple[Any, ...]) -> Any:
    import ray

    # A machine that came later is asked in every call; there are few.
    proven_here = ray.get_runtime_context().get_node_id() in proven
    return proof.do(*given) if proven_here else proof(*given)


def disconnect() -> None:
    """End what this process has of Ray: its workers, and a cluster that it started."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()


def with_ray(
    function: Callable[..., R],
    arguments: Iterable[tuple[Any, ...]],
    compute: Compute,
    store: Store | None = None,
) -> Iterator[R]:
    """Results of a function in Ray tasks, in order; two per worker are in progress.

    A task whose worker or machine dies is run again elsewhere.

    Args:
        store: the run that the function reads or writes; None: it gets all data as arguments, so
            machines prove their software alone.

    Raises:
        AigiError: there is no such cluster, or it is lost; a machine has other software, or does
            not see the run directory.
    """
    share, watch = connect(compute)
    import ray

    with ExitStack() as stack:
        proof = Proof(function) if store is None else stack.enter_context(known(store, function))
        prove(proof, watch)
        proven = frozenset(node for node, run in _PROVEN if run == proof.run)
        task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(_call)
        sent = ray.put(proof)

        def results() -> Iterator[R]:
            waiting: deque[Any] = deque()
            for given in arguments:
                waiting.append(task.remote(sent, proven, given))
                if len(waiting) > 2 * compute.workers:
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())

        yield from watch.over(results())


def _maker(stage: Map, store: Store, signs: str) -> Callable[[str, str], dict[str, Any]]:
    """What makes a shard in this process, which gives signs of life meanwhile."""
    me = Worker(store.url, signs, stage.table)
    return partial(me.over, partial(make_shard, stage, store, stage.make_worker()))


class _ShardMaker:
    """A Ray actor that makes shards: one worker, made once, fed with shard names."""

    def __init__(self, proof: Proof, workers: int) -> None:
        self.refused = proof.refusal()
        if self.refused:
            return
        where = f"compute.ray: {_here()}"
        try:
            begun = proof.begun()
            if len(begun) > STARTS * workers:
                self.refused = (
                    f"{where}: {len(begun) - 1} workers died while they started, the last ones "
                    "there: out of memory, or killed? Ask for fewer workers (compute.workers)."
                )
                return
            self.make = proof.do()
            proof.started(begun)
        except Exception as error:  # a value here: Ray would print it, and fail all shards
            text = str(error).strip()
            if type(error).__name__ != "AigiError":
                text = f"{type(error).__name__}: {text}"
            self.refused = f"{where}: no worker starts there: {text}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.refused:
            return {"name": row["name"], "refused": self.refused}
        return {**self.make(row["name"], row["made_from"]), "refused": ""}


def _make_one(proof: Proof, workers: int, row: dict[str, Any]) -> dict[str, Any]:
    return _ShardMaker(proof, workers)(row)


def shards_with_ray(
    stage: Map,
    store: Store,
    missing: Mapping[str, str],
    compute: Compute,
    told: Told = told_nobody,
) -> Iterator[dict[str, Any]]:
    """Ray Data moves shard names; the actors read and write the shards themselves.

    Args:
        missing: names of shards, and digests of what they are made from.
        told: hears how far shards are, from time to time.

    Raises:
        AigiError: there is no such cluster, or it is lost; a machine has other software, does not
            see the run directory, or cannot load what a worker needs.
    """
    share, watch = connect(compute)
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that kills its worker is named below, others go on
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left = dict(missing)

    def asked() -> list[dict[str, Any]]:
        return [{"name": name, "made_from": source} for name, source in left.items()]

    def together(proof: Proof) -> Iterator[dict[str, Any]]:
        rows = ray.data.from_items(asked(), override_num_blocks=len(left))
        with warnings.catch_warnings():
            # Retries have no other name yet, and Ray Data's own default tries for ever.
            warnings.filterwarnings("ignore", message=".*ray_remote_args")
            made = rows.map(
                _ShardMaker,
                fn_constructor_args=(proof, compute.workers),
                # No shard waits at a worker that may die of the one before it.
                compute=ray.data.ActorPoolStrategy(
                    size=min(compute.workers, len(left)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                max_restarts=-1,  # Ray Data waits for ever for one that has no more
                max_task_retries=1,
            )
        yield from made.iter_rows()

    def alone(proof: Proof) -> Iterator[dict[str, Any]]:
        task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_calls=1, max_retries=1)(
            _make_one
        )
        sent = ray.put(proof)
        for answer in [task.remote(sent, compute.workers, row) for row in asked()]:
            try:
                yield ray.get(answer)
            except (
                ray.exceptions.WorkerCrashedError,
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.NodeDiedError,
            ):
                continue

    with (
        closing(Workers(store.url, told)) as workers,
        known(store, partial(_maker, stage, store, workers.command)) as proof,
    ):
        prove(proof, watch)
        # A shard without an answer killed its worker, or was sent to a dying one: which of both
        # shows in a worker of its own.
        for way in (together, alone):
            for result in watch.over(way(proof)):
                if result["refused"]:
                    raise AigiError(result["refused"])
                left.pop(result["name"], None)
                workers.result(result)
                yield result
            if not left:
                return
