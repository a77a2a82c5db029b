"""Runs of millions of rows without pixels in; time and memory a row of plan, selection, … out.

The peer reads the same columns and writes the same tables with pyarrow, a shard at a time. Each
measurement is a process of its own: seconds are those of the processor, and memory is the peak of
what the kernel counts (VmHWM) above what is there before the stage begins.

    python -m tests.perf.scale make FOLDER ROWS [run]    tables of a run, and (without run) releases
    python -m tests.perf.scale plan|selection|duplicates|diff|read-… FOLDER
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.perf.report import GIB, Measurement

ROOT = Path(__file__).resolve().parents[2]
ROWS, QUICK_ROWS = (1_000_000, 10_000_000), (100_000, 1_000_000)
SHARD = 10_000
BYTES_A_ROW = 60
DISK_BYTES_A_ROW = 1_400
STAGES = ("plan", "selection", "duplicates", "diff")
SPEC = {
    "name": "scale", "title": "Scale", "description": "d", "licence": "x", "licence_url": "https://a.b",
    "citation": "c", "language": ["en"],
    "sources": {"sd": {
        "kind": "diffusers", "title": "SD", "licence": "x", "licence_url": "https://a.b",
        "model": "org/sd", "revision": "0" * 40, "pipeline": "sd", "scheduler": "euler",
        "steps": 20, "guidance_scale": 7.5,
        "splits": {"train": {"count": 1, "width": 128, "height": 96}},
    }},
}  # fmt: skip


# --- tables --------------------------------------------------------------------------------------


def ids(random: np.random.Generator, n: int, size: int = 32) -> pa.Array:
    """Strings of hex digits."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    data = digits[random.integers(0, 16, n * size, np.uint8)]
    ends = np.arange(n + 1, dtype=np.int32) * size
    return pa.StringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(data))


def texts(random: np.random.Generator, n: int) -> pa.Array:
    """Sentences of eight words of a thousand."""
    words = np.array([f"word{number}" for number in range(1000)], object)
    drawn = words[random.integers(0, 1000, (n, 8))]
    return pa.array([" ".join(row) for row in drawn.tolist()], pa.string())


def filled(schema: pa.Schema, n: int, **columns: Any) -> pa.Table:
    """A table with these columns, or values that are the same in each row; the others are null."""
    made = []
    for field in schema:
        value = columns.get(field.name)
        if value is None:
            made.append(pa.nulls(n, field.type))
        elif isinstance(value, pa.Array):
            made.append(value.cast(field.type))
        else:
            made.append(pa.repeat(pa.scalar(value, field.type), n))
    return pa.table(made, schema=schema)


def shard_sizes(rows: int) -> Iterator[tuple[int, int]]:
    """Number and rows of each shard."""
    for number, start in enumerate(range(0, rows, SHARD)):
        yield number, min(SHARD, rows - start)


def make(folder: Path, rows: int, releases: bool = True) -> None:
    """Write the tables that the stages read; diff alone reads releases."""
    from pipeline.store import Store
    from pipeline.tables import IMAGES, PLAN, PROMPTS, QUALITY, RELEASE

    random = np.random.default_rng(0)
    spec = json.loads(json.dumps(SPEC))
    spec["sources"]["sd"]["splits"]["train"]["count"] = rows
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    prompts, run = Store(str(folder / "prompts")), Store(str(folder / "run"))
    sides = [Store(str(folder / name)) for name in ("old", "new")]
    records: list[list[dict[str, Any]]] = [[], []]
    versions = json.dumps({f"library{number}": f"1.{number}.0" for number in range(12)})
    for number, n in shard_sizes(rows):
        shard, own = f"sd-train-{number:05d}", ids(random, n)
        prompt, text = ids(random, n), texts(random, n)
        prompts.write("prompts", f"part-{number:05d}", filled(
            PROMPTS, n, prompt_id=prompt, text=text, source="cc12m", source_ref="a:1",
            split="train", tokens=12, truncated=False), PROMPTS)  # fmt: skip
        pixels = ids(random, n, 64)
        run.write("plan", shard, filled(
            PLAN, n, image_id=own, prompt_id=prompt, text=text, split="train", source="sd",
            watermark="none", width=128, height=96), PLAN)  # fmt: skip
        run.write("images", shard, filled(IMAGES, n, image_id=own, pixels_sha256=pixels), IMAGES)
        score = pa.array(random.random(n), pa.float32())
        run.write("quality", shard, filled(
            QUALITY, n, image_id=own, width_ok=True, black=score, nsfw=score), QUALITY)  # fmt: skip
        if not releases:
            continue
        release = filled(
            RELEASE, n, image_id=own, prompt_id=prompt, text=text, source="sd", model="org/sd",
            revision="0" * 40, width=128, height=96, steps=20, guidance_scale=7.5,
            scheduler="euler", watermark="none", pixels_sha256=pixels, device="cpu",
            versions=versions, seed=pa.array(random.integers(0, 2**62, n)))  # fmt: skip
        at = release.schema.get_field_index("note")
        changed = pa.array(["other" if row % 100 == 0 else None for row in range(n)], pa.string())
        tables = (release, release.set_column(at, release.schema.field(at), changed))
        for side, table, listed in zip(sides, tables, records, strict=True):
            made = side.write("sd", f"train-{number:05d}", table, RELEASE)
            listed.append({
                "path": f"sd/train-{number:05d}.parquet", "config": "sd", "split": "train",
                "rows": n, "bytes": made.bytes, "sha256": made.sha256})  # fmt: skip
    for name, listed in zip(("old", "new"), records, strict=True) if releases else ():
        (folder / name / "manifest.json").write_text(json.dumps({"files": listed}))


# --- what is measured ----------------------------------------------------------------------------


def plan(folder: Path) -> None:
    """Make the plan of all prompts."""
    from pipeline.plan.plan import _build
    from pipeline.plan.quotas import Plan
    from pipeline.progress import Progress
    from pipeline.prompts.text import SplitShares
    from pipeline.stage import Compute
    from pipeline.store import Store

    given = Plan(dataset=str(folder / "dataset.yaml"))
    store = Store(str(folder / "prompts"))
    _build(given, {}, SplitShares(), Compute(), store, Progress(quiet=True))


def selection(folder: Path) -> None:
    """Select by two scores."""
    from pipeline.plan.quotas import Plan
    from pipeline.progress import Progress
    from pipeline.selection.rules import Selection
    from pipeline.selection.selection import _build
    from pipeline.store import Store

    rules = Selection.model_validate({"max_black": 0.9, "max_nsfw": 0.95})
    given = Plan(dataset=str(folder / "dataset.yaml"))
    _build(rules, given, Store(str(folder / "run")), Progress(quiet=True))


def duplicates(folder: Path) -> None:
    """Find equal pixels."""
    from pipeline.duplicates.duplicates import Duplicates, _build
    from pipeline.progress import Progress
    from pipeline.stage import Compute
    from pipeline.store import Store

    asked = Duplicates.model_validate({"min_similarity": None})
    _build(asked, Compute(device="cpu"), Store(str(folder / "run")), Progress(quiet=True))


def diff(folder: Path) -> None:
    """Compare two releases of which one row in a hundred differs, in every file."""
    from pipeline.release.diff import diff as compared

    found = sum(1 for one in compared(str(folder / "old"), str(folder / "new")))
    assert found, "rows differ"


def _peer(*read: tuple[str, list[str] | None], write: str = "") -> Callable[[Path], None]:
    """What reads columns of tables, and writes another table again."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for table, columns in read:
                for file in sorted((folder / table).rglob("*.parquet")):
                    pq.ParquetFile(file).read(columns, use_threads=False)
            for file in sorted((folder / write).glob("*.parquet")) if write else ():
                pq.write_table(pq.ParquetFile(file).read(use_threads=False), f"{place}/one.parquet")

    return run


_NARROW = ["text", "image_id", "prompt_id", "source", "width", "height", "model", "revision",
           "seed", "pixels_sha256", "note", "versions"]  # fmt: skip
MEASURED: dict[str, Callable[[Path], None]] = {
    "plan": plan,
    "selection": selection,
    "duplicates": duplicates,
    "diff": diff,
    "read-plan": _peer(("prompts/prompts", ["prompt_id", "text"]), write="prompts/plan"),
    "read-selection": _peer(
        ("run/plan", ["image_id", "source", "split", "pair_id"]), ("run/images", ["error"]),
        ("run/quality", ["image_id", "black", "nsfw"]), write="run/selection",
    ),
    "read-duplicates": _peer(
        ("run/plan", ["image_id", "source", "split", "pair_id"]),
        ("run/images", ["image_id", "pixels_sha256"]),
    ),
    "read-diff": _peer(("old", _NARROW), ("new", _NARROW)),
}  # fmt: skip


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(name: str, folder: Path) -> dict[str, float]:
    """Seconds of the processor, and bytes at the peak."""
    import pipeline.duplicates.duplicates
    import pipeline.plan.plan
    import pipeline.release.diff
    import pipeline.selection.selection  # noqa: F401 (loaded before anything is measured)

    before, started = _memory("VmRSS"), time.process_time()
    MEASURED[name](folder)
    return {"seconds": time.process_time() - started, "bytes": _memory("VmHWM") - before}


def _child(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.perf.scale", *arguments],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1])) if done.stdout.strip() else {}


def run(quick: bool = False) -> list[Measurement]:
    """Make both sizes, measure every stage beside its peer, and compare the growth of the peaks.

    Raises:
        OSError: too little space in the folder for temporary files (TMPDIR).
    """
    sizes = QUICK_ROWS if quick else ROWS
    need, free = sizes[1] * DISK_BYTES_A_ROW, shutil.disk_usage(tempfile.gettempdir()).free
    print(f"scale: {sizes[1]:,} rows, {need / GIB:.1f} GiB of disk needed, {free / GIB:.1f} free",
          flush=True)  # fmt: skip
    if free < need:
        raise OSError(f"{need / GIB:.1f} GiB needed in {tempfile.gettempdir()}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as place:
            _child("make", place, str(rows))
            for name in MEASURED:
                found[name].append(_child(name, place))
                print(f"scale: {name} {rows:,}: {found[name][-1]}", flush=True)
    result = []
    for stage in STAGES:
        small, large = found[stage]
        peer = found[f"read-{stage}"][1]["seconds"]
        growth = (large["bytes"] - small["bytes"]) / (sizes[1] - sizes[0])
        detail = {"rows": sizes, "ours": found[stage], "peer": found[f"read-{stage}"]}
        result += [
            Measurement(
                f"`{stage}`, {sizes[1]:,} rows; pyarrow reads and writes them",
                "µs/row", 1e6 * large["seconds"] / sizes[1], 1e6 * peer / sizes[1], detail=detail,
            ),
            Measurement(
                f"`{stage}`: growth of the peak from {sizes[0]:,} rows", "bytes/row", growth,
                target=f"at most {BYTES_A_ROW}", met=growth <= BYTES_A_ROW,
            ),
        ]  # fmt: skip
    return result


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), releases=sys.argv[4:] != ["run"])
    else:
        print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]))))
