"""For scripts: one JSON document of every verb, a log file, plain tables, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipeline.cli import VERBS, app
from tests.conftest import ROOT, WorkflowMaker, aigi, aigi_here


def document(*command: str) -> tuple[int, Any]:
    done = aigi_here(*command, "--json")
    found = json.loads(done.stdout)
    return done.returncode, found


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_verb_has_the_options_for_scripts(verb: Any) -> None:
    commands: Any = typer.main.get_command(app)
    options = {
        option
        for parameter in commands.commands[verb.__name__.replace("_", "-")].params
        for option in parameter.opts
    }
    assert {"--json", "--log-file", "--verbose"} <= options


def test_a_run_is_one_document(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    path = str(make_workflow())
    code, found = document("run", path, "--set", "plan.limit=2")
    assert code == found["exit_code"] == 0 and found["lacks"] == found["errors"] == []
    assert found["run"] == str(tmp_path / "run") and found["release"] == f"{found['run']}/release"
    code, found = document("verify", found["release"])
    assert code == 0 and found["name"] == "test-set" and re.fullmatch("[0-9a-f]+", found["digest"])
    code, found = document("status", str(tmp_path / "run"))
    assert code == 0 and {"table", "state"} <= found[0].keys()
    code, found = document("run", path, "--dry-run")
    assert code == 0 and {line["images"] for line in found["plan"]} >= {24, 4}
    rows = found["tables"][f"Plan of {tmp_path}/run"]
    assert rows[0]["source"] == "Tiny SD" and rows[0]["images"] == "24"
    to = str(tmp_path / "there")
    code, found = document("publish", str(tmp_path / "run"), "--to", to)
    assert code == 0 and found["url"] == to
    assert {change["what"] for change in found["changes"]} == {"new"}
    code, found = document("diff", to, to)
    assert code == 0 and found["counts"] == []


def test_what_fails_is_in_the_document_too(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    code, found = document("run", str(tmp_path / "absent.yaml"))
    assert code == found["exit_code"] == 1
    assert found["errors"] == [f"{tmp_path}/absent.yaml: no such file"]
    path = make_workflow(selection={"min_entropy": 7.99}, quality={})
    code, found = document("run", str(path), "--set", "plan.limit=1")
    assert code == found["exit_code"] == 3 and found["lacks"] and found["release"]
    code, found = document("run", str(path), "--dry-run", "--set", "sources.sd.folder=nowhere")
    assert code == 1 and "sources.sd.folder" in found["errors"][0] and found["plan"]


def test_a_log_file_has_all_that_is_said_with_times(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "aigi.log"
    path = make_workflow()
    for more in ((), ("--set", "plan.sources=[none]")):
        aigi_here("run", str(path), "--log-file", str(log), "--set", "plan.limit=1", *more)
    text = log.read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ ", line) for line in
               text.splitlines() if line[:4].isdigit())  # fmt: skip
    assert "release: 5 images" in text and "ends with exit code 0" in text
    assert "INFO pipeline: error: plan.sources: 'none' is not in" in text
    assert text.rstrip().endswith("ends with exit code 1")
    done = aigi_here("run", str(path), "--log-file", "s3://bucket/log")
    assert done.returncode == 1 and "only a path on this machine" in done.stderr


def test_verbose_shows_what_led_to_an_error(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.yaml")
    quiet, loud = (aigi("run", absent, *more) for more in ((), ("--verbose",)))
    assert "Traceback" not in quiet.stderr and "Traceback" in loud.stderr
    assert loud.stderr.endswith(quiet.stderr)


def test_tables_off_a_terminal_are_plain(make_workflow: WorkflowMaker) -> None:
    done = aigi_here("run", str(make_workflow()), "--dry-run")
    assert done.stdout.isascii()
    assert re.search(r"^\| Tiny SD +\| train +\| 64x64", done.stdout, re.MULTILINE)


def test_exit_codes_are_documented() -> None:
    from pipeline.execute import FEWER

    text = (ROOT / "pipeline" / "cli" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `?(\d+)`? \| (.+?) \|$", text, re.MULTILINE))
    assert {"0", "1", "2", str(FEWER), "4", "130", "143"} <= rows.keys()


def completed(folder: Path, words: str) -> list[str]:
    """What bash completes the last of these words to."""
    code = "from pipeline.cli import app; app(prog_name='aigi')"
    environment = {**os.environ, "_AIGI_COMPLETE": "complete_bash", "COMP_WORDS": words,
                   "COMP_CWORD": str(words.count(" ")), "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("aigi gen", ["generate"]),
        ("aigi run rege", ["regenerate"]),
        ("aigi run mi", ["mine.yaml"]),
        ("aigi run sub", ["sub/"]),
        ("aigi status sub/ru", ["sub/run/"]),
        ("aigi preview quick", ["quickstart"]),
        ("aigi generate --model flux", ["flux-schnell"]),
        ("aigi generate --prompts pro", ["prompts.txt"]),
        ("aigi new x --kind tr", ["train"]),
        ("aigi encode --model catc-l", ["catc-light"]),
        ("aigi run x --set plan.li", ["plan.limit="]),
        ("aigi run x --set prompts.filt", ["prompts.filters."]),
        ("aigi run x --set prompts.filters.max_u", ["prompts.filters.max_unsafe="]),
        ("aigi run x --set plan.sources=[sdxl,flux", ["plan.sources=[sdxl,flux-schnell"]),
        ("aigi run x --set benchmark.anchor=vv", ["benchmark.anchor=vvc"]),
        ("aigi run x --set train.network=hyper", ["train.network=hyperprior"]),
        ("aigi run x --set nothing.here", []),
    ],
)
def test_the_shell_completes(words: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "sub" / "run").mkdir(parents=True)
    for name in ("mine.yaml", "prompts.txt", ".hidden"):
        (tmp_path / name).touch()
    assert completed(tmp_path, words) == found


def test_the_shell_completes_sources_of_a_release(finished: tuple[Path, Path]) -> None:
    words = f"aigi publish {finished[1]} --source s"
    assert completed(ROOT, words) == ["sd", "sdxl"]
