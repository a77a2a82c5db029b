"""`compute.ray` in, a Ray cluster joined and watched out; or one line that says why not.

Ray itself retries for minutes, logs, and ends the process where it loses its cluster. So a process
of its own joins first, and the cluster is looked at while results are waited for.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from pipeline import AigiError
from pipeline.stage import Compute

R = TypeVar("R")

JOIN_SECONDS = 90.0
POLL_SECONDS = 2.0
HEAD_SECONDS = 45.0
"""How long the head may be silent: Ray ends this process without a word after 60 seconds."""
RAYLET_SECONDS = 2.0
NODE_SECONDS = 600.0
"""How long no machine may be large enough for a worker: an autoscaler may be starting one."""

_JOIN = """
import logging, sys
import ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
except BaseException as error:
    while error is not None:
        print(f"{type(error).__name__}: {error}".replace(chr(10), " "), file=sys.stderr, flush=True)
        error = error.__cause__
    sys.exit(1)
"""
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of gRPC begins: the preface of HTTP/2, and empty settings (RFC 9113, 3.4)."""


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None for `local`, `auto` and other names."""
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+|\[[^]/]+\]):(?P<port>\d+)", address)
    return None if found is None else (found["host"].strip("[]"), int(found["port"]))


def _answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=10).close()
    except OSError:
        return False
    return True


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens, or something else than Ray."""
    place = _place(address)
    if place is None:
        return
    remedy = (
        "Give `local`, `auto` on a machine of the cluster, or the address that "
        "`ray start --head` printed."
    )
    try:
        connection = socket.create_connection(place, timeout=10)
    except (OSError, OverflowError) as error:
        raise AigiError(
            f"compute.ray: {address}: no cluster answers there ({error}). {remedy}"
        ) from error
    said = b""
    with connection, suppress(OSError):
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(_HTTP2)
        # A server of HTTP/2 begins with its own settings, which are a frame of type 4.
        said = connection.makefile("rb").read(4)
    if len(said) < 4 or said[3] != 4:
        raise AigiError(f"compute.ray: {address}: what answers there is not Ray. {remedy}")


def _try(address: str) -> None:
    """Join a cluster in a process of its own, to learn why that fails.

    Raises:
        AigiError: it failed.
    """
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", _JOIN, address],
        # In a job of `ray job submit`, this would be a second one.
        env={k: v for k, v in os.environ.items() if k != "RAY_JOB_CONFIG_JSON_ENV_VAR"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        timer = threading.Timer(JOIN_SECONDS, process.kill)
        timer.start()
        try:
            for line in process.stderr or ():
                said.append(line.strip())
                if "Unauthenticated" in line:  # Ray would try this 20 times
                    break
            else:
                if process.wait() == 0:
                    return
        finally:
            timer.cancel()
            process.kill()
    raise AigiError(f"compute.ray: {address}: {_reason(said)}")


def _reason(said: list[str]) -> str:
    """Why a cluster could not be joined, and what to do, in one line."""
    text = " ".join(said)
    if "Unauthenticated" in text or "AuthenticationError" in text:
        return (
            "the cluster wants its token, and this process gives none or another one. Set "
            "RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token, or in the "
            "file that RAY_AUTH_TOKEN_PATH names."
        )
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if len(versions) > 1:
        (ray, python), (our_ray, our_python) = versions[:2]
        return (
            f"the cluster has Ray {ray} on Python {python}, and this process Ray {our_ray} on "
            f"Python {our_python}. Install the same versions: pip install 'ray[data]=={ray}' here, "
            f"or {our_ray} on all machines of the cluster."
        )
    # The last one is the first cause.
    causes = [line for line in said if re.match(r"\w+: \S", line)]
    last = causes[-1].partition(": ")[2] if causes else "no answer in time"
    return f"{last.rstrip('.')}. See what `ray status --address` reports on a machine of it."


def _ended(error: BaseException) -> str:
    return f"{error}".strip().partition("\n")[0].rstrip(".") or type(error).__name__


def join(address: str) -> None:
    """Start Ray (`local`), or join a cluster, unless this process already has one.

    Raises:
        AigiError: there is no such cluster, it refuses this process, or Ray does not start.
    """
    # After a cluster was lost, threads of Ray Data would start another one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    if ray.is_initialized():
        return
    local = address == "local"
    if not local:
        _check_address(address)
        _try(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if local:
        options["include_dashboard"] = False
    try:
        # `local` starts a cluster of its own, whatever runs here. Ray itself counts its CPUs.
        ray.init(address, **options)
        if local and not ray.cluster_resources().get("CPU"):
            # In a container of less than one CPU, Ray finds none, and would start no worker.
            ray.shutdown()
            ray.init(address, num_cpus=1, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise AigiError(f"compute.ray: {address}: {_ended(error)}") from error


class Watch:
    """Whether the cluster can still answer: asked while results are waited for.

    Args:
        compute: where it is.
        needs: `CPU` and `GPU` of a worker.

    Attributes:
        lost: it cannot answer any more; whoever asks Ray now may wait for ever.
    """

    def __init__(self, compute: Compute, needs: Mapping[str, float]) -> None:
        import ray

        self.address, self.needs = str(compute.ray), needs
        self.checked = time.monotonic()
        self.since: dict[str, float] = {}
        self.lost = False
        self.vital: dict[str, tuple[tuple[str, int] | None, float, str]] = {}
        if self.address.startswith("ray://"):  # the machines may be out of reach
            return
        context = ray.get_runtime_context()
        raylet = next(
            (str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))
            for node in ray.nodes()
            if node["NodeID"] == context.get_node_id()
        )
        self.vital = {
            "head": (
                _place(context.gcs_address),
                HEAD_SECONDS,
                "the head of the cluster does not answer any more",
            ),
            "raylet": (
                raylet,
                RAYLET_SECONDS,
                "Ray's own process on this machine (raylet) has ended: out of memory, or stopped?",
            ),
        }

    def capable(self) -> list[dict[str, Any]]:
        """The machines that are alive and large enough for a worker."""
        import ray

        return [
            node
            for node in ray.nodes()
            if node["Alive"]
            and all(node["Resources"].get(name, 0) >= need for name, need in self.needs.items())
        ]

    def _unless(self, fine: bool, what: str, seconds: float, text: str) -> None:
        if fine:
            self.since.pop(what, None)
        elif time.monotonic() - self.since.setdefault(what, time.monotonic()) >= seconds:
            self.lost = True
            raise AigiError(
                f"compute.ray: {self.address}: {text} Finished shards are kept; when Ray runs "
                "again, the same command makes the rest."
            )

    def check(self) -> None:
        """Look, if the last look is some time ago.

        Raises:
            AigiError: the cluster is lost, or has had no machine for a worker for long.
        """
        now = time.monotonic()
        if now - self.checked < POLL_SECONDS:
            return
        for what, (place, seconds, text) in self.vital.items():
            self._unless(place is None or _answers(place), what, seconds, text)
        if "head" not in self.since:
            wanted = " and ".join(f"{need:g} {name}" for name, need in self.needs.items() if need)
            self._unless(
                bool(self.capable()),
                "node",
                0 if self.address == "local" else NODE_SECONDS,
                f"no machine of the cluster can run a worker, which needs {wanted}.",
            )
        self.checked = time.monotonic()

    def over(self, results: Iterator[R]) -> Iterator[R]:
        """The same results, which Ray waits for in a thread; the cluster is watched meanwhile.

        Raises:
            AigiError: as `check`; or Ray lost its workers for good.
        """
        arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        stop = threading.Event()

        def pump() -> None:
            try:
                for result in results:
                    if stop.is_set():
                        return
                    arrived.put(("result", result))
                arrived.put(("end", None))
            except BaseException as error:
                arrived.put(("error", error))

        threading.Thread(target=pump, name="ray", daemon=True).start()
        try:
            while True:
                try:
                    kind, value = arrived.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    self.check()
                    continue
                if kind == "end":
                    return
                if kind == "error":
                    with explained(self.address):
                        raise value
                yield value
                self.check()
        finally:
            stop.set()


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what Ray raises into one line.

    Raises:
        AigiError: what a worker raised as one, or what befell Ray.
    """
    import ray
    from ray.data.exceptions import SystemException

    try:
        yield
    except AigiError as error:
        # Ray derives from the class of the cause, and adds the traceback of the worker.
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, AigiError) else error from None
    except ray.exceptions.RayTaskError as error:
        if str(error.cause).startswith("compute.ray: "):  # where there is no aigi, nor its errors
            raise AigiError(str(error.cause)) from None
        raise  # a defect of the code that ran, with its traceback
    except (ray.exceptions.RayError, SystemException, ConnectionError) as error:
        raise AigiError(
            f"compute.ray: {address}: {_ended(error)}. Finished shards are kept; the same command "
            "makes the rest."
        ) from error
