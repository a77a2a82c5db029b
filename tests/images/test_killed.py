"""Images whose process is killed in mid-shard: finished batches are not made again, same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline.images.diffusion.diffuser import _begins, _cut
from pipeline.retry import MISSING
from tests.conftest import ROOT, WorkflowMaker

SCRIPT = """
import json, os, signal, sys
import torch, diffusers, transformers
from pipeline import parts
from pipeline.cli import app
from pipeline.images import images
from pipeline.images.diffusion import diffuser
parts.EVERY = parts._SHARE = 0.0
infer, short = diffuser.Diffuser._infer, diffuser.short_of_memory
diffuser.short_of_memory = lambda error: isinstance(error, MemoryError) or short(error)

def once(workflow, log, fatal, most):
    # In a process of its own, which kills itself when it begins a batch.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    begun = 0
    def counted(self, rows):
        nonlocal begun
        if len(rows) > most:
            raise MemoryError("out of memory")
        with open(log, "a") as file:
            file.write(" ".join(row["image_id"] for row in rows) + "\\n")
        begun += 1
        if begun == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return infer(self, rows)
    diffuser.Diffuser._infer = counted
    sys.argv = ["aigi", "run", workflow]
    code = 1
    try:
        app()
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code)

print(json.dumps([once(*given) for given in json.loads(sys.argv[1])]))
"""
"""Runs a workflow several times. Each of them: its file, a log of the batches that are begun, the
one at which it is killed (0: none), and the most images that fit into memory."""


def run(*asked: tuple[Path, Path, int, int]) -> list[int]:
    """The exit codes."""
    given = [[str(workflow), str(log), *more] for workflow, log, *more in asked]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines()


def images(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "images").glob("*.parquet"))}


def test_finished_batches_of_a_killed_shard_are_kept(
    make_workflow: WorkflowMaker, models: Path, tmp_path: Path
) -> None:
    """Killed in the first batch and in later ones; also between pairs of variants."""
    more: dict[str, Any] = {"release": None, "plan": {"dataset": "dataset.yaml", "shard_mb": 0.2}}
    folders = {name: {"folder": str(models / name)} for name in ("sd", "sdxl")}
    more["sources"] = {
        "sd": folders["sd"] | {"batch_size": 4},
        "sdxl": folders["sdxl"] | {"batch_size": 1},
    }
    paths = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (make_workflow(path.name, run=str(path), **more) for path in paths)
    logs = [tmp_path / f"{path.name}.log" for path in paths]
    moments = [1, 4, 5]
    codes = run(
        (whole, logs[0], 0, 99), *((killed, logs[1], fatal, 99) for fatal in moments),
        (killed, logs[1], 0, 99),
    )  # fmt: skip
    assert codes == [0, *[-signal.SIGKILL] * len(moments), 0]
    assert len(images(paths[0])) >= 4
    assert images(paths[0]) == images(paths[1])
    once, made = calls(logs[0]), calls(logs[1])
    assert set(made) == set(once), "batches are cut in the same way"
    # A killed process loses the batch that it makes, and the one before it, which is encoded
    # meanwhile: no other batch is made again.
    assert len(made) - len(once) <= 2 * len(moments)
    assert sum(moments) - len(moments) > 2 * len(moments), "else this proves nothing"
    assert not (paths[1] / "_parts").exists()


@pytest.mark.slow
def test_batches_that_were_halved_stay_halved_and_say_so(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    """Out of memory before it was killed, and not after: each row has the size of its batch."""
    root, log = tmp_path / "run", tmp_path / "log"
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.2, "sources": ["sd"]}
    mine = make_workflow(run=str(root), release=None, plan=plan, images={"fill_batches": False})
    # After the two images for testing, each batch of three is made as one and two; it is killed in
    # the fourth of these batches.
    assert run((mine, log, 8, 2), (mine, log, 0, 99)) == [-signal.SIGKILL, 0]
    before, after = calls(log)[1:8], calls(log)[8:]
    assert [len(ids.split()) for ids in before[:4]] == [1, 2, 1, 2]
    shards = [pq.read_table(path).to_pylist() for path in (root / "images").glob("*.parquet")]
    (rows,) = (rows for rows in shards if rows[0]["image_id"] == before[0])
    kept = [row["image_id"] for row in rows].index(after[0].split()[0])
    assert kept == 6, "the third batch was still being encoded"
    assert [row["batch_size"] for row in rows[:9]] == [1, 2, 2, 1, 2, 2, 3, 3, 3]


def test_a_batch_begins_where_one_ended() -> None:
    """Variants of one generation are not cut apart, and rows in mid-batch are refused."""
    groups: list[list[dict[str, Any]]] = [[{}], [{}, {}], [{}], [{}, {}], [{}]]
    batches = _cut(groups, 2)
    assert [_begins(batches, start) for start in (0, 3, 6)] == [0, 1, 2]
    for start in (1, 2, 4, 5, 7):
        with pytest.raises(AigiError, match=f"no batch begins at row {start + 1}"):
            _begins(batches, start)


def test_missing_rows_are_made_in_the_batches_of_the_shard_unless_that_is_much_more() -> None:
    def cut(missing: str, size: int) -> list[str]:
        groups = [[{"n": str(n), MISSING: m == "x"}] for n, m in enumerate(missing)]
        batches = _cut(groups, size)
        return ["".join(group[0]["n"] for group in batch) for batch in batches]

    assert cut("..xxxxxx", 3) == ["012", "345", "67"]
    assert cut("......x.", 3) == ["67"]
    assert cut("xxx...xx", 3) == ["012", "67"]
    assert cut("x.x.x.x.", 2) == ["02", "46"]
    assert cut("x..x..x..x", 3) == ["036", "9"]
