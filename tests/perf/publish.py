"""A made-up run of noisy pictures in; speed and memory of release and publishing beside peers out.

Writing a release is compared with pyarrow writing the same rows and a sha256 of the same bytes;
publishing it to the Hub of the tests, on this machine, with `push_to_hub` of `datasets`. Each side
runs in a process of its own; the clock starts when its libraries are loaded.

    python -m tests.perf.publish release|plain RUN
    python -m tests.perf.publish publish|push RELEASE REPOSITORY     (with HF_ENDPOINT, HF_TOKEN)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.conftest import record_table
from tests.perf.report import Measurement, peak_gib

ROOT = Path(__file__).resolve().parents[2]
SIZE = 512  # pixels a side: 0.8 MB as noise
SHARD_ROWS = 128  # 100 MB
SHARDS, QUICK_SHARDS = 20, 2
GROWTH = 10  # the memory of so many times fewer shards is compared
TARGET = 1.25  # most growth of peak memory over GROWTH times the data

SPECIFICATION = """
name: noise
title: Noise
licence: Apache-2.0
sources:
  noise: {title: Noise, licence: Apache-2.0, kind: import, model: noise, splits: {train: {}}}
"""


def _picture(number: int) -> bytes:
    from PIL import Image

    rgb = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", compress_level=0)
    return out.getvalue()


def write_run(folder: Path, shards: int) -> int:
    """Plan and images of `shards` shards, as if they had been made; returns bytes of pictures."""
    from pipeline.store import Store
    from pipeline.tables import IMAGES, PLAN

    (folder / "noise.yaml").write_text(SPECIFICATION)
    store = Store(str(folder / "run"))
    total = 0
    for shard in range(shards):
        plan, images = [], []
        for row in range(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS):
            data = _picture(row)
            total += len(data)
            image_id = hashlib.sha256(b"%d" % row).hexdigest()[:32]
            shown = {"image_id": image_id, "width": SIZE, "height": SIZE}
            prompt = {"prompt_id": image_id, "text": f"noise {row}", "model": "noise"}
            kind = {"split": "train", "source": "noise", "watermark": "none", "rank": row}
            plan.append({**shown, **prompt, **kind, "path": f"{row}.png", "index": 0, "round": 0})
            # The rows of `read_back` are compared by the hash of their pixels.
            pixels = np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()
            image = {"bytes": data, "path": f"{image_id}.png"}
            images.append({**shown, "image": image, "pixels_sha256": digest, "device": "cpu"})
        name = f"noise-train-{shard:05d}"
        store.write("plan", name, pa.Table.from_pylist(plan, schema=PLAN), PLAN)
        store.write("images", name, pa.Table.from_pylist(images, schema=IMAGES), IMAGES)
    for table in ("plan", "images"):
        record_table(store, table)
    return total


def release(run: Path) -> dict[str, Any]:
    """Selection, release and manifest, as a workflow makes them; the last two are timed."""
    from pipeline.progress import Progress
    from pipeline.release import release as releases
    from pipeline.release.recipe import Release
    from pipeline.running import run_stages
    from pipeline.selection import selection
    from pipeline.settings import check
    from pipeline.stage import Stage
    from pipeline.store import Store
    from pipeline.workflow import Workflow

    data = {
        "run": str(run),
        "plan": {"dataset": str(run.parent / "noise.yaml")},
        "images": {},
        "sources": {"noise": {"kind": "import", "path": str(run.parent)}},
        "release": {},
    }
    workflow = check(Workflow, data, str(run / "bench.yaml"))
    store, progress = Store(workflow.run), Progress(quiet=True)
    selecting = selection.stage(workflow.rules, workflow.planned("selection"), workflow.scored)
    run_stages([selecting], store, workflow.compute, progress)
    stages: list[Stage] = [
        releases.stage(),
        releases.manifest_stage(workflow, workflow.release or Release()),
    ]
    started = time.perf_counter()
    run_stages(stages, store, workflow.compute, progress)
    return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}


def plain(run: Path) -> dict[str, Any]:
    """The peer: read the same tables, write them by pyarrow, read them once more for a sha256."""
    import pyarrow.parquet as pq

    out = run.parent / "plain"
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    for path in sorted((run / "images").glob("*.parquet")):
        table = pq.read_table(path)
        plan = pq.read_table(run / "plan" / path.name)
        for name in ("text", "prompt_id", "source", "model", "watermark", "path"):
            table = table.append_column(name, plan[name])
        pq.write_table(table, out / path.name, compression="none", row_group_size=100)
        with open(out / path.name, "rb") as file:
            os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256").hexdigest()
    return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}


def publish(folder: str, repository: str) -> dict[str, Any]:
    """`aigi publish`: checked, sent, compared, tagged and loaded back."""
    import datasets  # noqa: F401
    import huggingface_hub  # noqa: F401

    from pipeline.release.publish import publish as send

    started = time.perf_counter()
    send(folder, f"hf://datasets/{repository}")
    return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}


def push(folder: str, repository: str) -> dict[str, Any]:
    """The peer: `push_to_hub` of the same rows, loaded before the clock starts."""
    from datasets import load_dataset

    cache = str(Path(folder).parent / "cache")
    rows = load_dataset(folder, "noise", split="train", cache_dir=cache)
    started = time.perf_counter()
    rows.push_to_hub(repository, "noise", split="train", private=True)
    return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}


def _alone(action: str, *arguments: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.perf.publish", action, *arguments],
        cwd=ROOT,
        env=environment or None,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(quick: bool = False) -> list[Measurement]:
    """Make a run, release it and publish it, each beside its peer."""
    from tests.hub import serve

    shards = QUICK_SHARDS if quick else SHARDS
    with tempfile.TemporaryDirectory(prefix="aigi-bench-") as name:
        folder = Path(name)
        size = write_run(folder, shards) / 1e6
        print(f"publish: {shards * SHARD_ROWS:,} pictures, {size:,.0f} MB", flush=True)
        whole = folder / "run"
        written = _alone("release", str(whole))
        peer = _alone("plain", str(whole))
        shutil.rmtree(folder / "plain")
        small = folder / "small"
        small.mkdir()
        write_run(small, max(1, shards // GROWTH))
        _alone("release", str(small / "run"))
        with serve(folder / "hub") as hub:
            few = _alone(
                "publish", str(small / "run" / "release"), "tester/few", **hub.environment()
            )
            sent = _alone("publish", str(whole / "release"), "tester/ours", **hub.environment())
            shutil.rmtree(folder / "hub" / "objects")
            (folder / "hub" / "objects").mkdir()
            pushed = _alone("push", str(whole / "release"), "tester/theirs", **hub.environment())
    growth = sent["peak_gib"] / few["peak_gib"]
    return [
        Measurement(
            what="release and manifest over pyarrow and sha256 of the same rows",
            unit="MB/s",
            ours=size / written["seconds"],
            peer=size / peer["seconds"],
            detail={"ours": written, "peer": peer, "mb": size},
        ),
        Measurement(
            what="aigi publish over push_to_hub, loopback",
            unit="MB/s",
            ours=size / sent["seconds"],
            peer=size / pushed["seconds"],
            detail={"ours": sent, "peer": pushed, "mb": size},
        ),
        Measurement(
            what="the same, peak memory",
            unit="GiB",
            ours=sent["peak_gib"],
            peer=pushed["peak_gib"],
        ),
        Measurement(
            what=f"peak memory of publishing {size:,.0f} MB over {size / GROWTH:,.0f} MB",
            unit="GiB",
            ours=sent["peak_gib"],
            peer=few["peak_gib"],
            target=f"at most {TARGET:g} times",
            met=growth <= TARGET,
        ),
    ]


def _main(action: str, *arguments: str) -> None:
    match action, arguments:
        case "release", (folder,):
            print(json.dumps(release(Path(folder))))
        case "plain", (folder,):
            print(json.dumps(plain(Path(folder))))
        case "publish", (folder, repository):
            print(json.dumps(publish(folder, repository)))
        case "push", (folder, repository):
            print(json.dumps(push(folder, repository)))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
