"""Items in, what threads make of them out: in their order, a few ahead of who takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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
