"""Items in, what threads make of them out: in order, a few ahead; and how many CPUs there are."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that the control groups of this process allow, one for each level with a limit."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:  # version 2: one tree
            base, files = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, files = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the path may be that of the host, and the root of the tree its own group.
        group = base / path.lstrip("/")
        for level in (group, *group.parents):
            if not level.is_relative_to(base):
                break
            try:
                quota, period = " ".join((level / name).read_text() for name in files).split()
                cpus = int(quota) / int(period)
            except (OSError, ValueError):  # no such level; or `max`
                continue
            if cpus > 0:
                yield cpus


def cores(root: Path = Path("/")) -> int:
    """CPUs that this process may use, 1 or more: of its affinity, and of its container's quota.

    Args:
        root: where `proc` and `sys` are.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


@contextmanager
def workers(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads for the time of a block; however it ends, what they have not begun is dropped."""
    pool = ThreadPoolExecutor(threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[T], work: Callable[[T], R], pool: Executor, most: int) -> Iterator[R]:
    """Results in the order of the items, which are taken in the caller's thread.

    Args:
        most: results that are under way or wait while the caller has the one before them.

    Raises:
        Exception: whatever the work on an item raises, in that item's place.
    """
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
