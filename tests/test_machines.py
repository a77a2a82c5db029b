"""Files for machines of others: the job for Slurm, the container, and what a package says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SLURM = ROOT / "workflows" / "slurm.sh"
STUBS = {
    # The commands of Slurm on one machine: a step runs here.
    "srun": """
echo "srun $*" >> "$LOG"
while [ "${1:0:2}" = -- ]; do shift; done
setsid "$@" & step=$!
trap 'kill -- -$step' TERM
wait $step; wait $step
""",
    "scontrol": """
echo "scontrol $*" >> "$LOG"
[ "$1" != show ] || printf 'one\\ntwo\\nthree\\n'
""",
    "ray": """
echo "ray $*" >> "$LOG"
case "$1" in
  start) trap 'echo "ray ends" >> "$LOG"; exit 0' TERM; while :; do sleep 0.05; done;;
  status) [ -e "$LOG.up" ] || { touch "$LOG.up"; exit 1; };;
esac
""",
    "aigi": """
echo "aigi $*" >> "$LOG"
trap 'sleep 0.3; echo "aigi put in order" >> "$LOG"; exit 143' TERM
[ -z "$FOREVER" ] || while :; do sleep 0.05; done
exit "$CODE"
""",
}


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """Start the script as Slurm would, with commands that only write down how they are called."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in STUBS.items():
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (bin_folder / name).chmod(0o755)
    log = tmp_path / "log"

    def start(*arguments: str, **more: str) -> tuple[subprocess.Popen[str], Path]:
        environment = {
            **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG": str(log),
            "AIGI_WAIT": "0.05", "CODE": "0", "FOREVER": "", "SLURM_JOB_ID": "61234",
            "SLURM_JOB_NODELIST": "one,two,three", "SLURM_JOB_NUM_NODES": "3",
            "SLURM_GPUS_ON_NODE": "8", **more,
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(SLURM), *arguments], env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return process, log

    return start


def test_a_slurm_job_starts_ray_everywhere_and_runs(job: Any) -> None:
    process, log = job("regenerate", "--set", "plan.limit=8")
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    text = log.read_text()
    address = "one:21234"  # a port of its own for each job
    assert "srun --nodes=1 --ntasks=1 --nodelist=one --overlap ray start --head" in text
    assert "--port=21234 --num-gpus=8 --block" in text
    assert "srun --nodes=2 --ntasks=2 --exclude=one --overlap bash -c until ray start" in text
    assert f"ray start --address={address} --num-gpus=8 --block" in text
    assert text.count("ray status") == 2, "the run begins when the head answers"
    wanted = f"aigi run regenerate --set compute.ray={address} --set compute.workers=24"
    assert f"{wanted} --set plan.limit=8\n" in text
    assert "requeue" not in text and text.count("ray ends") >= 1, "nothing is left behind"


@pytest.mark.parametrize("code", [1, 3])
def test_the_exit_code_of_a_slurm_job_is_that_of_the_run(job: Any, code: int) -> None:
    process, log = job("mine.yaml", CODE=str(code), SLURM_JOB_NUM_NODES="1", SLURM_GPUS_ON_NODE="")
    process.communicate(timeout=60)
    assert process.returncode == code
    text = log.read_text()
    assert "requeue" not in text and "compute.workers=1\n" in text
    assert "--exclude" not in text, "one machine has no others"


def test_a_slurm_job_that_is_stopped_puts_things_in_order_and_is_requeued(job: Any) -> None:
    process, log = job("mine.yaml", FOREVER="yes")
    until = time.monotonic() + 60
    while not (log.exists() and "aigi run" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # Slurm sends it to the script alone
    _, errors = process.communicate(timeout=60)
    text = log.read_text()
    assert process.returncode == 143, errors
    assert text.index("aigi put in order") < text.index("scontrol requeue 61234")
    assert "requeued to go on" in errors


def test_a_slurm_job_without_a_workflow_or_slurm(job: Any) -> None:
    process, _ = job()
    assert "usage: sbatch" in process.communicate(timeout=60)[1] and process.returncode == 2
    process, _ = job("mine.yaml", SLURM_JOB_ID="")
    assert "start it with sbatch" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


# --- The container -------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.partition(" ")[::2] for line in lines if line.strip()]
    return [(name, rest.strip()) for name, rest in found]


def test_the_container_copies_what_is_there_and_installs_extras_that_exist() -> None:
    steps = instructions()
    assert steps[0][0] == "ARG" and steps[1] == ("FROM", "${BASE}"), "the base is an argument"
    for name, rest in steps:
        assert name in ("ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD")
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extras,) = re.findall(r"'\.\[(.+?)\]'", (ROOT / "Dockerfile").read_text())
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    users = [rest for name, rest in steps if name == "USER"]
    assert users and not users[-1].startswith(("0", "root"))
    copied = {source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]}
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].keys()
    assert {"pyproject.toml", "constraints.txt", "pipeline", *built} <= copied


@pytest.mark.slow
def test_the_container_builds(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no Docker here")
    tag = ["--tag", "aigi:test"]
    subprocess.run([docker, "build", *tag, str(ROOT)], check=True)
    done = subprocess.run([docker, "run", "--rm", "aigi:test", "workflows"], capture_output=True)
    assert b"regenerate" in done.stdout


# --- The package ---------------------------------------------------------------------------------


def test_the_package_says_who_made_it_and_that_it_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["authors"] and {"Dataset", "Paper"} <= project["urls"].keys()
    assert (ROOT / "pipeline" / "py.typed").is_file()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from pipeline import __version__

    assert cited["version"] == __version__ and cited["license"] == project["license"]
    paper = cited["preferred-citation"]
    known = (ROOT / "manifests" / "pku-aigi-500k.yaml").read_text()
    assert paper["doi"] in known and paper["doi"] in project["urls"]["Paper"]
    assert all(one["family-names"] in known for one in paper["authors"])
    assert "privately" in (ROOT / "SECURITY.md").read_text()
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())
