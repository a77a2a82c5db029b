"""Machines of a Ray cluster that must not work, and clusters that cannot: one line each."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import AigiError
from pipeline.software import differences, installed
from pipeline.stage import Compute
from tests import toy
from tests.conftest import ROOT

pytest.importorskip("ray")


RUN = "from pipeline import joining; joining.HEAD_SECONDS = 3.0\nfrom tests import toy\ntoy.main()"


def start(root: Path, address: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The toy run; its own folder is none that workers could import from."""
    folder = root.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(root), "--ray", address, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """The one error line of a run that fails."""
    _, text = process.communicate(timeout=180)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert text.rstrip().endswith(lines[0]), text
    return lines[0]


def shards(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "squares").glob("*.parquet"))


def wait_for(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(shards(root)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where another aigi and another torch are installed."""
    folder = tmp_path_factory.mktemp("other")
    kept = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=kept)
    with open(folder / "pipeline" / "pixels.py", "a") as file:
        file.write("# of yesterday\n")
    information = folder / "torch-1.2.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    return folder


def cluster(**arguments: Any) -> Any:
    from ray.cluster_utils import Cluster

    here = {"PYTHONPATH": str(ROOT)}
    return Cluster(initialize_head=True, head_node_args={"env_vars": here, **arguments})


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A cluster of one machine with this code."""
    found = cluster(num_cpus=1)
    yield found
    found.shutdown()


def join(head: Any, folder: Path) -> Any:
    return head.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(folder)})


def test_a_machine_with_other_software_gets_no_work(tmp_path: Path, head: Any, other: Path) -> None:
    node = join(head, other)
    try:
        said = line(start(tmp_path / "run", head.address, "--workers", "2"))
    finally:
        head.remove_node(node)
    assert f"node {head.address.split(':')[0]} " in said
    assert f"{node.node_id[:12]}) has other software" in said
    assert "pipeline/pixels.py differs; torch" in said
    assert "1.2.3 there. Install the same there" in said
    assert not shards(tmp_path / "run")
    assert not (tmp_path / "run" / "_ray").exists()


@pytest.mark.slow
def test_a_machine_with_other_software_that_comes_later_gets_no_work(
    tmp_path: Path, head: Any, other: Path
) -> None:
    root = tmp_path / "run"
    process = start(root, head.address, "--workers", "2", "--seconds", "2")
    wait_for(root, 1, process)
    node = join(head, other)
    try:
        said = line(process)
    finally:
        head.remove_node(node)
    assert f"{node.node_id[:12]}) has other software" in said
    made = shards(root)
    assert 1 <= len(made) < toy.SHARDS
    # What the first machine made is kept, and the second one made nothing.
    again = start(root, head.address)
    assert again.wait() == 0, again.communicate()


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_run_gets_no_work(tmp_path: Path, head: Any) -> None:
    """Over the folder of the run, that machine has a disk of its own."""
    alone = (
        ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    )
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("no mount namespaces here")
    root = tmp_path / "disk" / "run"
    root.mkdir(parents=True)
    ray = Path(sys.executable).parent / "ray"
    joining = f"mount -t tmpfs none {root.parent} && exec {ray} start --address={head.address}"
    with subprocess.Popen(
        [*alone, "sh", "-c", f"{joining} --num-cpus=1 --block"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as node:
        try:
            _wait_for_nodes(head, 2)
            said = line(start(root, head.address, "--workers", "2"))
        finally:
            node.send_signal(signal.SIGTERM)
    assert f"{root}: not visible there (no such folder there)" in said
    assert "All machines must see the run directory" in said
    assert not shards(root)


def _wait_for_nodes(head: Any, count: int) -> None:
    for _ in range(600):
        alive = [one for one in head.global_state.node_table() if one["Alive"]]
        if len(alive) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{len(alive)} of {count} machines have joined")


@pytest.mark.slow
def test_tasks_are_not_run_by_other_software(tmp_path: Path, head: Any, other: Path) -> None:
    script = tmp_path / "tasks.py"
    script.write_text(
        "import sys\n"
        "from pipeline import AigiError\n"
        "from pipeline.cluster import with_ray\n"
        "from pipeline.stage import Compute\n"
        "try:\n"
        "    print(list(with_ray(divmod, [(7, 2)], Compute(ray=sys.argv[1]))))\n"
        "except AigiError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )

    def tasks() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), head.address],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    node = join(head, other)
    try:
        assert "pipeline/pixels.py differs" in line(tasks())
    finally:
        head.remove_node(node)
    alone = tasks()
    assert alone.communicate()[0] == "[(3, 1)]\n"


@pytest.mark.slow
def test_a_machine_without_gpus_for_a_worker(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "local", "--gpus", "2")
    assert line(process).startswith("error: compute.gpus_per_worker: 2: Ray finds 0 GPUs on this")


def test_differences_are_named() -> None:
    here = installed()
    assert {"Python", "ray", "torch", "pipeline/pixels.py"} <= here.keys()
    assert any(name.endswith(".safetensors") for name in here)
    assert differences(here, dict(here)) == ""
    there = {**here, "torch": "1.2.3", "pipeline/old.py": "", "pipeline/store.py": "x"}
    del there["pipeline/pixels.py"], there["numpy"]
    assert differences(here, there) == (
        "pipeline/old.py is there only; pipeline/pixels.py is missing there; "
        "pipeline/store.py differs; and 2 more"
    )
    nothing = {name: text for name, text in here.items() if "/" not in name}
    assert differences(here, nothing) == "aigi is not installed there"


class _Web(BaseHTTPRequestHandler):
    pass


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_is_not_rays(tmp_path: Path, web: str, scheme: str) -> None:
    address = scheme + web
    with pytest.raises(
        AigiError, match=rf"^compute\.ray: {address}: what answers there is not Ray"
    ):
        toy.make(str(tmp_path), Compute(ray=address))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def start_head(tmp_path: Path) -> Iterator[Any]:
    """Start a head as `ray start` does, with changes to it before; returns its address."""
    started = []

    def begin(changes: str = "", **environment: str) -> str:
        port = free_port()
        options = f"--head --block --port={port} --num-cpus=1 --include-dashboard=false"
        text = (
            f"import ray\n{changes}\nfrom ray.scripts.scripts import cli\n"
            f"cli({['start', *options.split()]})\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", text],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return f"127.0.0.1:{port}"
            except OSError:
                time.sleep(0.1)

    yield begin
    for process in started:
        process.terminate()
        process.wait()


def test_a_cluster_that_wants_its_token(tmp_path: Path, start_head: Any) -> None:
    address = start_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 40)
    home = str(tmp_path)  # without a token of the user's
    for environment in (
        {},
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 40},
    ):
        said = line(start(tmp_path / "run", address, HOME=home, **environment))
        assert said.startswith(f"error: compute.ray: {address}: the cluster wants its token, and")
        assert "RAY_AUTH_TOKEN_PATH" in said
        assert "aaa" not in said and "bbb" not in said


@pytest.mark.slow
def test_a_cluster_of_another_version(tmp_path: Path, start_head: Any) -> None:
    address = start_head("ray.__version__ = '2.51.0'", RAY_AUTH_MODE="disabled")
    said = line(start(tmp_path / "run", address))
    assert f"compute.ray: {address}: the cluster has Ray 2.51.0 on Python" in said
    assert "pip install 'ray[data]==2.51.0' here" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("raylet", "(raylet) has ended"), ("gcs_server", "head of the cluster")]
)
def test_a_cluster_that_is_lost(tmp_path: Path, name: str, words: str) -> None:
    root, found = tmp_path / "run", cluster(num_cpus=1)
    try:
        process = start(root, found.address, "--seconds", "1")
        wait_for(root, 2, process)
        found.head_node.all_processes[name][0].process.kill()
        assert words in line(process)
    finally:
        found.shutdown()
    assert 2 <= len(shards(root)) < toy.SHARDS
