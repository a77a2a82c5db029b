"""Fixtures: the embedded models, a small specification, and runs of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.record import Record
from pipeline.store import Store

# Tests assert no timings, and a machine with other work may take seconds for an example.
hypothesis.settings.register_profile(
    "steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray's workers are polite by default: beside the other test process they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

ROOT = Path(__file__).resolve().parents[1]

PROMPTS = [
    f"{count} {color} {thing} {place}"
    for count, plural in (("one", ""), ("two", "s"))
    for color in ("red", "blue", "green", "yellow")
    for thing in (f"boat{plural}", f"house{plural}", f"tree{plural}")
    for place in ("on a calm lake at dawn", "under heavy clouds", "beside an old stone wall")
]

SPECIFICATION = """
name: test-set
title: Test set
licence: Apache-2.0
sources:
  sd:
    title: Tiny SD
    licence: Apache-2.0
    kind: diffusers
    pipeline: sd
    model: test/tiny-sd
    revision: seed-0
    scheduler: ddim
    steps: 2
    guidance_scale: 5.0
    images_per_prompt: 2
    splits:
      train: {count: 24, width: 64, height: 64}
      test: {count: 2, width: 96, height: 64}
  sdxl:
    title: Tiny SDXL
    licence: Apache-2.0
    kind: diffusers
    pipeline: sdxl
    model: test/tiny-sdxl
    revision: seed-1
    scheduler: euler
    steps: 2
    guidance_scale: 5.0
    splits:
      train: {count: 4, width: 64, height: 64}
      test: {count: 3, width: 64, height: 96, watermarks: [none, dwt-dct]}
"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Say where S3 is, until the test ends: s3fs keeps what it made for an address."""
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def at(address: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        s3fs.S3FileSystem.clear_instance_cache()

    yield at
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Host and port of an S3."""
    module = pytest.importorskip("moto.server")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield f"127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def fresh_accelerate() -> None:
    """One process can have one precision only; a test that trains begins without any."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def models() -> Path:
    """Folder with the embedded models `sd`, `sdxl` and `clip`."""
    from pipeline.demo import MODELS

    return MODELS


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random pipeline of a family (`tests.families`), made when it is needed."""
    from tests.families import MAKERS, save

    folder = tmp_path_factory.mktemp("families")

    def made(name: str) -> Path:
        place = folder / name
        return place if place.is_dir() else save(place, MAKERS[name])

    return made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real input beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real input is not here: {folder}")
    return folder


PLANNING = ("lines", "texts", "prompts", "plan")
"""Tables that are made before any image is."""

WorkflowMaker = Callable[..., Path]


@pytest.fixture
def make_workflow(tmp_path: Path, models: Path) -> WorkflowMaker:
    """Write a workflow over the tiny models; keyword arguments replace sections."""

    def make(name: str = "workflow", **sections: object) -> Path:
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        (tmp_path / "dataset.yaml").write_text(textwrap.dedent(SPECIFICATION))
        data: dict[str, object] = {
            "run": str(tmp_path / "run"),
            "split": {"validation": 0.0, "test": 0.3},
            "prompts": {
                "sources": [{"kind": "text", "path": "prompts.txt"}],
                "near_duplicates": None,
            },
            # 64x64 pixels at 1.5 bytes: eight generations a shard.
            "plan": {"dataset": "dataset.yaml", "shard_mb": 0.05},
            "sources": {
                "sd": {"folder": str(models / "sd"), "batch_size": 3},
                "sdxl": {"folder": str(models / "sdxl"), "batch_size": 2},
            },
            "images": {},
            "release": {"version": "1.2.3"},
        }
        data |= sections
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
        return path

    return make


def record_table(store: Store, table: str, settings: dict[str, Any] | None = None) -> None:
    """Record that a stage wrote the shards of a table, which a test wrote itself."""
    shards = {}
    for name in store.shards(table):
        found = store.look(table, f"{name}.parquet")
        assert found is not None
        shards[name] = found
    store.write_record(
        Record(
            table=table,
            version=1,
            settings=settings or {},
            fingerprint=table,
            status="done",
            expected=len(shards),
            shards=shards,
            seconds=1,
        )
    )


def record_as_written(store: Store, table: str, shard: str) -> None:
    """Make the record say that the stage itself wrote what a shard now is."""
    record, now = store.record(table), store.look(table, f"{shard}.parquet")
    assert record is not None and now is not None
    now = now.model_copy(update={"made_from": record.shards[shard].made_from})
    store.write_record(record.model_copy(update={"shards": {**record.shards, shard: now}}))


def listed(release: Path, path: str) -> None:
    """Make the manifest state what a file now is, as a forger would."""
    manifest = json.loads((release / "manifest.json").read_text())
    data = (release / path).read_bytes()
    for record in (*manifest["files"], *manifest.get("documents", ())):
        if record["path"] == path:
            record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if path.endswith(".parquet"):
                record["rows"] = pq.read_metadata(release / path).num_rows
    (release / "manifest.json").write_text(json.dumps(manifest))


def aigi(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def aigi_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, where the process is not the point: it has imported all already."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    with contextlib.chdir(ROOT):
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def cmp(one: Path, other: Path) -> list[str]:
    """Files of two folders that `cmp` finds different, or that only one of them has."""
    first, second = (
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    )
    different = [
        name
        for name in first & second
        if subprocess.run(["cmp", "-s", one / name, other / name]).returncode != 0
    ]
    return sorted([*different, *(first ^ second)])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[Path, Path]:
    """A workflow, and the run directory of an undisturbed serial run of it: not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    make: WorkflowMaker = make_workflow.__wrapped__(folder, models)  # type: ignore[attr-defined]
    path = make()
    done = aigi("run", str(path))
    assert done.returncode == 0, done.stderr
    return path, folder / "run"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report in one line what was skipped for want of what."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    told = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
    terminalreporter.line(f"skipped: {told or 'nothing'}")
