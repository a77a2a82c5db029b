"""Work in threads: results in order, a few ahead, and nothing that no one waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.threads import ahead, cores, workers


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 5 == 0))  # those behind it are done before
        return item * item

    with workers(4, "test") as pool:
        for most in (0, 1, 7, 100):
            assert list(ahead(range(30), work, pool, most)) == [i * i for i in range(30)]
        assert list(ahead(range(0), work, pool, 3)) == []


def test_an_error_is_raised_in_its_item_s_place() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    found = []
    with workers(2, "test") as pool, pytest.raises(ValueError, match="three"):
        for item in ahead(range(9), work, pool, 6):
            found.append(item)
    assert found == [0, 1, 2]


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_than_wanted_is_asked_for_ahead(most: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            assert threading.current_thread() is threading.main_thread()
            yield item

    found = []
    with workers(8, "test") as pool:
        for number, item in enumerate(ahead(items(), str, pool, most)):
            assert taken == min(20, number + most + 1)
            found.append(item)
    assert found == list(map(str, range(20)))


def test_who_stops_early_leaves_no_work_behind() -> None:
    begun, go = [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go.wait(1)
        return item

    def pool_and_work() -> Generator[int]:
        with workers(2, "left") as pool:
            yield from ahead(range(50), work, pool, 20)

    results = pool_and_work()
    assert next(results) == 0
    threading.Timer(0.2, go.set).start()  # when the pool has been told to stop
    results.close()
    assert len(begun) <= 3  # the first, and one in each thread
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("left")]


def test_a_pool_may_be_used_for_more() -> None:
    """As crops do, whose work waits for rows that the same pool reads."""
    with workers(1, "test") as pool:
        rows = ((item, pool.submit(int, item)) for item in "321")
        assert list(ahead(rows, lambda given: (given[0], given[1].result()), pool, 2)) == [
            *(("3", 3), ("2", 2), ("1", 1))
        ]
    assert isinstance(pool, ThreadPoolExecutor)
    with pytest.raises(RuntimeError):
        pool.submit(int)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        # The narrowest of all levels holds; a host's path is not there in its container.
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/host/path", {"cpu.max": "400000 100000"}, 4),
        ("4:memory:/\n1:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "-1"}, 64),
        ("1:cpu,cpuacct:/x", {"cpu/cpu.cfs_quota_us": "500000"}, 5),
        ("0::/", {"cpu.max": "much"}, 64),
    ],
)
def test_cores_are_those_of_the_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        if name.endswith("cpu.cfs_quota_us"):
            (path.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path) == expected


def test_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores(tmp_path) == cores() == 1
    finally:
        os.sched_setaffinity(0, before)
