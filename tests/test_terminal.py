"""Names and texts with control characters and markup in; what a terminal gets, out."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from pipeline.charts import histogram
from pipeline.cli.show import rows_out, show, talk, tell
from pipeline.pages.page import render
from pipeline.pages.section import Section
from pipeline.pages.section import Table as PageTable
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from tests.conftest import WorkflowMaker, aigi
from tests.test_shown import HOSTILE, SIGNED

ACTING = set("\x1b\x07\r\x9b\x00\u202e\u2066\u2028\u2029\ufeff")
NAME = "a\x1b[2J\x07\r\x9b31m\u202e[red]b[bold] :smile:"
"""A name that a folder can hold."""


def harmless(text: str) -> None:
    assert not ACTING & set(text), ascii(text)


def test_a_cell_is_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, "[bold]plain", title=f"Images of {HOSTILE} {SIGNED}")
    table.add_column(":smile:", justify="right")
    table.add_row(HOSTILE, "[/]", "1,234.5")
    show(table)
    said = capsys.readouterr().out
    harmless(said)
    assert said.count("i[red]j[/red]:smile:k[U+0000]l") == 3
    assert "[bold]plain" in said and "[/]" in said and "1,234.5" in said
    assert "0123abcd" not in said and "captions.csv?..." in said


def test_lines_of_commands_and_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"{HOSTILE} {SIGNED}")
    talk(f"{HOSTILE} {SIGNED}")
    printed = capsys.readouterr()
    out = io.StringIO()
    progress = Progress(out)
    progress.say(f"prompts: {HOSTILE} has no captions")
    with progress.stage("images", 2, 0, 0) as bar:
        bar.note(HOSTILE)
        bar.fail(HOSTILE, f"Traceback\nOSError: {HOSTILE} {SIGNED}")
    for text in (printed.out, printed.err, out.getvalue()):
        harmless(text)
        assert "[U+001B][2J" in text and "0123abcd" not in text
    assert (len(printed.out.splitlines()), len(out.getvalue().splitlines())) == (1, 4)


def test_a_chart_and_a_page() -> None:
    chart = histogram(HOSTILE, np.arange(9.0), HOSTILE)
    section = Section(
        "s", "Section", [HOSTILE], [PageTable(HOSTILE, [HOSTILE], [[HOSTILE]])], [chart],
        code=[("code", f"a: {HOSTILE} {SIGNED}\nb: 1\n")],
    )  # fmt: skip
    page = render("report.html", run=HOSTILE, summary=HOSTILE, sections=[section], small={})
    harmless(chart)
    harmless(page)
    assert "0123abcd" not in page and "[red]" in page


def test_rows_for_a_terminal_and_for_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda told=terminal: told)
        csv.writer(rows_out(), lineterminator="\n").writerows([["file"], [NAME]])
    program, shown = capsys.readouterr().out.split("file\n")[1:]
    assert NAME in program  # data, as it is stored
    harmless(shown)


def joined(text: str) -> str:
    """The first cells of a table; or the whole text."""
    cells = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return "".join(cells) or text


def test_names_of_files_in_tables_and_errors(tmp_path: Path) -> None:
    for name in (f"{NAME}.png", f"{NAME}2.png"):
        rgb = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (tmp_path / name).write_bytes(png_bytes(rgb))
    (tmp_path / f"{NAME}3.png").write_bytes(b"none")
    found = aigi("watermark", "detect", str(tmp_path), COLUMNS="1000")
    assert "[red]b[bold]" in joined(found.stdout) and found.returncode == 1
    for review in ("one", "other"):
        what = "keep" if review == "one" else "drop"
        (tmp_path / f"{review}{NAME}.csv").write_text(f'image_id,decision\n"id{NAME}",{what}\n')
    files = [str(tmp_path / f"{review}{NAME}.csv") for review in ("one", "other")]
    merged = aigi("merge-reviews", *files, "--out", str(tmp_path / "merged.csv"))
    missing = aigi("run", str(tmp_path / f"gone{NAME}.yaml"))
    assert missing.returncode == 1 and missing.stderr.startswith("error: ")
    for done in (found, merged, missing):
        harmless(done.stdout + done.stderr)
        assert "[U+001B][2J" in joined(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


def test_a_workflow_with_hostile_names(tmp_path: Path, make_workflow: WorkflowMaker) -> None:
    text = tmp_path / f"{NAME}.txt"
    text.write_text("")
    path = make_workflow(
        run=str(tmp_path / f"run{NAME}"),
        prompts={"sources": [{"kind": "text", "path": str(text), "name": NAME}]},
        sources={},
    )
    planned = aigi("run", str(path), "--dry-run", COLUMNS="300")
    done = aigi("run", str(path))
    state = aigi("status", str(tmp_path / f"run{NAME}"), COLUMNS="300")
    assert planned.returncode == 1 and done.returncode == 1 and state.returncode == 0
    assert "has no captions" in done.stderr
    for one in (planned, done, state):
        harmless(one.stdout + one.stderr)
        assert "Traceback" not in one.stderr
    assert os.path.isdir(tmp_path / f"run{NAME}")  # what is stored has the name as it is
