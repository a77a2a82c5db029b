"""Ray only schedules: the same bytes as a serial run, whatever the workers do or suffer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline.cluster import TOKENS, known
from pipeline.outside import ABANDONED
from pipeline.stage import Compute
from pipeline.status import status
from pipeline.store import Store
from tests import toy
from tests.conftest import ROOT
from tests.test_run import files, start, times, wait_for_shards

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serial")
    toy.make(str(root))
    return root


def test_two_processes_in_one_run_keep_their_tokens() -> None:
    """On S3 no lock keeps the second out; each leaves alone what the workers of the other need."""
    store = Store("memory://two-processes")
    left = store.path(TOKENS, "killed", "token.txt")
    store.write_bytes(b"x", TOKENS, "killed", "token.txt")
    with known(store, print) as first:
        with known(Store(store.url), print) as second:
            assert first.path != second.path
            assert first._unseen() == second._unseen() == ""
            assert len(first.begun()) == 1, "of its own workers"
            assert len(second.begun()) == 1
        assert first._unseen() == "" and store.fs.exists(left), "it may be of a third"
        assert second._unseen() != ""
        for file in store.fs.store.values():
            file.modified -= 2 * ABANDONED
    with known(store, print):
        assert not store.fs.exists(left)
    assert store.fs.find(store.path()) == []


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_same_bytes_as_serial(tmp_path: Path, serial: Path, workers: int) -> None:
    process = start(tmp_path, "--ray", "local", "--workers", str(workers))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert files(tmp_path) == files(serial)


def test_killed_worker_is_replaced_within_the_run(tmp_path: Path, serial: Path) -> None:
    marker = tmp_path / "killed"
    root = tmp_path / "run"
    process = start(
        root, "--ray", "local", "--workers", "2", "--seconds", "0.1", "--kill-once", str(marker)
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert marker.exists(), "the worker did kill itself"
    assert files(root) == files(serial)


def test_killed_driver_resumes_with_other_workers(tmp_path: Path, serial: Path) -> None:
    process = start(tmp_path, "--ray", "local", "--workers", "2", "--seconds", "0.4")
    wait_for_shards(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The orphaned actors may finish the shard that they hold; let them, or they die.
    time.sleep(2)
    kept = times(tmp_path)
    assert 3 <= len(kept) < toy.SHARDS
    done = start(tmp_path)
    assert done.wait() == 0, done.communicate()[0]
    assert files(tmp_path) == files(serial)
    assert {name: when for name, when in times(tmp_path).items() if name in kept} == kept


def scripted(path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script of stages on `ROOT/run`, in a process of its own."""
    path.write_text(
        "import os, sys, signal, time\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from pipeline import AigiError\n"
        "from pipeline.cluster import connect\n"
        "from pipeline.progress import Progress\n"
        "from pipeline.running import run_stages\n"
        "from pipeline.stage import Compute\n"
        "from pipeline.store import Store\n"
        "from tests import toy\n"
        "numbers, squares = toy.stages()\n"
        "def run(root, worker, workers):\n"
        "    run_stages([numbers, replace(squares, make_worker=worker)], Store(root),\n"
        "               Compute(ray='local', workers=workers), Progress(quiet=True))\n" + text
    )
    return subprocess.run(
        [sys.executable, str(path), str(path.parent / "run")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_always_kills_workers_is_named(tmp_path: Path) -> None:
    """A shard, and nothing beside it; and a worker that cannot even start."""
    done = scripted(
        tmp_path / "fatal.py",
        "class Fatal(toy.Squarer):\n"
        "    def __call__(self, rows):\n"
        "        if rows['number'][0].as_py() == 5 * toy.ROWS:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield from super().__call__(rows)\n"
        "def fatal():\n"
        "    return Fatal(0.3, None, None, None)\n"
        "def too_large():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "for name, worker in (('', fatal), ('2', too_large)):\n"
        "    try:\n"
        "        run(sys.argv[1] + name, worker, 1)\n"
        "    except AigiError as error:\n"
        "        print('FAILED', error)\n",
    )
    assert done.returncode == 0, done.stderr
    first, second = (one for one in done.stdout.splitlines() if one.startswith("FAILED"))
    assert first.startswith(
        "FAILED squares: 1 of 12 shards failed, first part-00005: its worker died"
    )
    assert status(Store(str(tmp_path / "run")))[1].done == toy.SHARDS - 1
    assert ": 3 workers died while they started" in second
    assert status(Store(str(tmp_path / "run2")))[1].state == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("quota", [1.0, 0.5])
def test_workers_share_the_cpus_of_a_container(tmp_path: Path, quota: float) -> None:
    done = scripted(
        tmp_path / "shared.py",
        "import multiprocessing\n"
        "import ray._private.utils as counts\n"
        "os.cpu_count = multiprocessing.cpu_count = lambda: 64\n"
        f"counts._get_docker_cpus = lambda *_, **__: {quota}\n"
        "def worker():\n"
        "    started = Path(PIDS)\n"
        "    (started / str(os.getpid())).touch()\n"
        "    while len(list(started.iterdir())) < 3:\n"
        "        time.sleep(0.1)\n"
        "    return toy.Squarer(0.0, None, None, None)\n"
        "PIDS = sys.argv[1] + '-pids'\n"
        "Path(PIDS).mkdir()\n"
        "run(sys.argv[1], worker, 3)\n"
        "import ray\n"
        "print('CPUs:', ray.cluster_resources()['CPU'])\n",
    )
    assert done.returncode == 0, done.stderr
    assert "CPUs: 1.0" in done.stdout
    assert len(list((tmp_path / "run-pids").iterdir())) == 3


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_an_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(AigiError, match=rf"compute\.ray: {address}: no cluster answers"):
        toy.make(str(tmp_path), Compute(ray=address))


@pytest.mark.slow
def test_a_lost_machine_of_a_cluster(tmp_path: Path, serial: Path) -> None:
    """Two nodes by address; one is killed in mid-stage, the other does its work."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1)
        process = start(tmp_path, "--ray", cluster.address, "--workers", "2", "--seconds", "0.4")
        wait_for_shards(tmp_path, 4, process)
        cluster.remove_node(lost, allow_graceful=False)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    finally:
        cluster.shutdown()
    assert files(tmp_path) == files(serial)


def test_clusters_of_vectors_are_joined_in_tasks(tmp_path: Path) -> None:
    script = tmp_path / "join.py"
    script.write_text(
        "import os\n"
        "from pipeline.duplicates.clusters import clustered_pairs, divide, part_pairs\n"
        "from pipeline.duplicates.pairs import gathered, near_pairs\n"
        "from pipeline.cluster import with_ray\n"
        "from pipeline.stage import Compute\n"
        "from tests.perf.pairs import clip_like\n"
        "pids = set()\n"
        "def noted(*given):\n"
        "    return os.getpid(), part_pairs(*given)\n"
        "def tasks(given):\n"
        "    for pid, found in with_ray(noted, given, Compute(ray='local', workers=2)):\n"
        "        pids.add(pid)\n"
        "        yield found\n"
        "x = clip_like(4096, 32)\n"
        "clusters = divide(x, 0.97, 8)\n"
        "found = gathered(clustered_pairs(x, 0.97, clusters, join=tasks))\n"
        "whole = gathered(near_pairs(x, 0.97))\n"
        "assert len(whole) > 20\n"
        "assert found.first.tolist() == whole.first.tolist()\n"
        "assert found.second.tolist() == whole.second.tolist()\n"
        "assert os.getpid() not in pids\n"
        "print('as many:', len(found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "as many:" in done.stdout


def test_the_selection_is_read_and_written_in_tasks(tmp_path: Path) -> None:
    """The same bytes as without Ray, though the driver reads and writes no shard."""
    script = tmp_path / "chosen.py"
    script.write_text(
        "import sys, pathlib, shutil\n"
        "from pipeline.plan.quotas import Plan\n"
        "from pipeline.progress import Progress\n"
        "from pipeline.selection import candidates, selection\n"
        "from pipeline.selection.rules import Selection\n"
        "from pipeline.stage import Compute\n"
        "from pipeline.store import Store\n"
        "from tests.release.test_release import SPEC\n"
        "from tests.selection.test_columns import written\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "row = dict(pair=None, long=True, error=None, width_ok=True, clip_score=0.5, rain=0.1,\n"
        "           path=None)\n"
        "rows = [{**row, 'id': n, 'nsfw': (n % 7) / 7} for n in range(36)]\n"
        "shards = [('train', rows[n : n + 4], n % 3 > 0, True) for n in range(0, 36, 4)]\n"
        "near = [(f'{1:032x}', f'{9:032x}', 'pixels', 1.0)]\n"
        "(folder / 'spec.yaml').write_text(SPEC)\n"
        "store = written(folder, shards, near)\n"
        "rules, plan = Selection(max_nsfw=0.7), Plan(dataset=str(folder / 'spec.yaml'))\n"
        "quiet = Progress(quiet=True)\n"
        "one = selection._build(rules, plan, store, quiet)\n"
        "files = {p.name: p.read_bytes() for p in (folder / 'run/selection').iterdir()}\n"
        "shutil.rmtree(folder / 'run/selection')\n"
        "candidates._A_TASK = 2\n"
        "other = selection._build(rules, plan, store, quiet, Compute(ray='local', workers=2))\n"
        "assert [s.sha256 for s in one] == [s.sha256 for s in other]\n"
        "again = {p.name: p.read_bytes() for p in (folder / 'run/selection').iterdir()}\n"
        "assert again == files and len(files) == 10\n"
        "store.read_all('selection', ['keep'])\n"
        "print('kept:', len(files))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kept:" in done.stdout
