"""The command line: light start, errors without a traceback, demo, and an installed wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, aigi


def python(*arguments: str, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **more},
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipeline.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'datasets', 'pyarrow', 'numpy',"
        " 'pydantic', 'fsspec', 'yaml'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = python("-c", code)
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
    for command in ("run", "demo", "status", "verify", "schema"):
        assert command in done.stdout


def test_errors_have_no_traceback(tmp_path: Path) -> None:
    done = python("-m", "pipeline.cli", "run", str(tmp_path / "absent.yaml"))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/absent.yaml: no such file\n"
    done = python("-m", "pipeline.cli", "status", str(tmp_path))
    assert done.returncode == 1
    assert "no run here" in done.stderr


def test_a_dry_run_says_what_readers_would_read(tmp_path: Path) -> None:
    drawn = {"place": str(ROOT / "pipeline/tiny/pictures/mj52"), "name": "[drawn]", "limit": 3}
    readers: dict[str, Any] = {
        "characteristics": {"pictures": [drawn], "lossless": ["png"]},
        "alignments": {"pictures": [drawn], "models": {"clip": {"kind": "open_clip"}}},
        "train": {"data": {"place": str(tmp_path / "run")}, "steps": 5000, "lambdas": [0.01, 0.02]},
        "benchmark": {"pictures": drawn, "codecs": ["jpeg"], "anchor": "jpeg"},
    }
    workflow = tmp_path / "w.yaml"
    sections = {name: readers[name] for name in readers if name != "train"}
    workflow.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), **sections}))
    done = python("-m", "pipeline.cli", "run", str(workflow), "--dry-run")
    assert done.returncode == 0, done.stderr
    for name, work in (("characteristics", "4 GLCM, colours, png"), ("alignments", "scores: clip")):
        line = rf"{name} +\| .*mj52 +\| \[drawn\] +\| +3 \| {work}"
        assert re.search(line, done.stdout), done.stdout
    assert "Benchmark in" in done.stdout
    assert not (tmp_path / "run").exists(), "nothing is made"
    # What the run has yet to make is no error; what lies nowhere is one.
    plan = {"dataset": str(ROOT / "manifests/demo.yaml"), "sources": ["sdxl"]}
    whole = {"run": str(tmp_path / "run"), "plan": plan, "train": readers["train"]}
    workflow.write_text(yaml.safe_dump(whole))
    done = python("-m", "pipeline.cli", "run", str(workflow), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "(its own release)" in done.stdout and "5,000 steps of 8 crops" in done.stdout
    assert "Plan of" in done.stdout
    del whole["plan"]
    workflow.write_text(yaml.safe_dump(whole))
    done = python("-m", "pipeline.cli", "run", str(workflow), "--dry-run")
    assert done.returncode == 1 and "nor a folder of images" in done.stderr


def test_schema_describes_the_workflow() -> None:
    done = python("-m", "pipeline.cli", "schema")
    described = json.loads(done.stdout)
    assert {"run", "prompts", "plan", "images", "release"} <= set(described["properties"])


def test_a_second_run_in_one_directory_is_refused(tmp_path: Path) -> None:
    from pipeline.running import alone

    path = tmp_path / "only.yaml"
    path.write_text(f"run: {tmp_path / 'run'}\n")
    with alone(str(tmp_path / "run")):
        done = aigi("run", str(path))
        assert done.returncode == 1
        assert f"{tmp_path / 'run'}: another run is using it" in done.stderr
    with alone(str(tmp_path / "run")), alone(str(tmp_path / "another")), alone("memory://run"):
        pass
    assert "another run" not in aigi("run", str(path)).stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("decode missing.aigi", "missing.aigi: no such file"),
        ("decode README.md", "README.md: bitstream: not an aigi file"),
        ("encode missing.png", "missing.png: no such file"),
        ("encode README.md", "README.md: not a picture"),
        ("encode --recipe nowhere#x -o x.aigi", "nowhere: no manifest.json"),
        ("run missing.yaml", "missing.yaml: no such file"),
        ("preview missing.yaml", "missing.yaml: no such file"),
        ("probe missing.yaml", "missing.yaml: no such file"),
        ("sweep missing.yaml", "missing.yaml: no such file"),
        ("verify nowhere", "nowhere: no manifest.json"),
        ("publish nowhere --to elsewhere", "nowhere: no manifest.json"),
        ("diff nowhere elsewhere", "nowhere: no manifest.json"),
        ("status nowhere", "nowhere: no run here"),
        ("report nowhere", "nowhere: no run here"),
        ("merge-reviews a.csv b.csv", "a.csv: no such file"),
        ("generate --model sdxl --prompts missing.txt", "missing.txt: no such file"),
        ("generate --model missing --prompts README.md", "README.md: expected .txt"),
    ],
)
def test_files_and_arguments_are_looked_at_before_heavy_libraries(command: str, said: str) -> None:
    code = (
        "import sys\nfrom pipeline.cli import app\n"
        f"try:\n    app({command.split()!r})\n"
        "except SystemExit as stop:\n    assert stop.code == 1, stop.code\n"
        "assert not {'torch', 'diffusers', 'ray', 'transformers'} & set(sys.modules)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_missing_file_is_said_with_the_nearest(tmp_path: Path) -> None:
    from pipeline.cli.show import hinted

    (tmp_path / "captions").mkdir()
    for name in ("train.csv", "test.csv", "zebra.yaml"):
        (tmp_path / "captions" / name).touch()
    there = f"{tmp_path}/captions"
    for missing, meant in (
        ("captions/trian.csv", f"{there}/train.csv"),
        ("capitons/train.csv", f"{there}/train.csv"),
        ("captoins", there),
        ("captions/other.csv", None),
        ("captions/nothing.yaml", None),
    ):
        for said in (f"{tmp_path}/{missing}: no such file", f"x.y: {tmp_path}/{missing}: no such "
                     "file or folder. Correct the path."):  # fmt: skip
            hint = "" if meant is None else f'. Did you mean "{meant}"?'
            assert hinted(said) == said.rstrip(".") + hint or (not hint and hinted(said) == said)
    two = f"a: {there}/trian.csv: no such file\nb: {there}/tets.csv: no such file"
    assert hinted(two).count("Did you mean") == 2
    assert hinted("s3://bucket/x: no such file") == "s3://bucket/x: no such file"
    done = python("-m", "pipeline.cli", "verify", f"{there}/zebro.yaml")
    assert "Traceback" not in done.stderr
    done = python("-m", "pipeline.cli", "run", f"{there}/zebar.yaml")
    assert f'zebar.yaml: no such file. Did you mean "{there}/zebra.yaml"?' in done.stderr
