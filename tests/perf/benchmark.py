"""Pictures in; seconds of the benchmark beside CompressAI's, and what measuring costs out.

    AIGI_KODAK=FOLDER AIGI_COMPRESSAI=/path/to/venv/bin/python python -m tests.perf benchmark

The peer is `python -m compressai.utils.bench` for the codecs that both have (JPEG and WebP), in an
environment of its own, with two workers as ours. Without AIGI_KODAK the pictures are made up.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.benchmark import measurements
from pipeline.benchmark.settings import Benchmark
from pipeline.codecs.codec import CodecSettings
from pipeline.collection import Collection, Pictures
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.store import Store
from tests.perf.report import Measurement

SHARED: dict[str, tuple[float, ...]] = {
    "jpeg": (5, 20, 35, 50, 65, 80, 95),
    "webp": (5, 20, 35, 50, 65, 80, 95),
}
WHOLE = ("jpeg", "webp", "avif", "vvc")
TARGET_RATIO, TARGET_SHARE = 2.0, 0.2


def _pictures(folder: Path, quick: bool) -> Path:
    given = os.environ.get("AIGI_KODAK")
    if given is not None and not quick:
        return Path(given)
    from tests.learned.conftest import pictures

    for i, image in enumerate(pictures(2 if quick else 24, *((96, 128) if quick else (512, 768)))):
        (folder / f"{i:02}.png").write_bytes(png_bytes(image))
    return folder


def _measured(
    place: Path, codecs: list[CodecSettings], compute: Compute, run: Path
) -> tuple[float, Store]:
    """Wall seconds of the measurements stage, and the run that it made."""
    benchmark = Benchmark(pictures=Pictures(place=str(place)), codecs=tuple(codecs), strips=None)
    store = Store(str(run))
    started = time.perf_counter()
    stage = measurements.stage(benchmark, compute, Collection(benchmark.measured))
    run_stages([stage], store, compute, Progress(quiet=True))
    return time.perf_counter() - started, store


def _peer(python: str, place: Path) -> float:
    """Wall seconds of CompressAI's benchmark over the same codecs and qualities."""
    started = time.perf_counter()
    for codec, qualities in SHARED.items():
        command = [python, "-m", "compressai.utils.bench", codec, str(place), "-j", "2", "-q"]
        numbers = ",".join(f"{quality:g}" for quality in qualities)
        subprocess.run([*command, numbers], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def run(quick: bool = False) -> list[Measurement]:
    """Measure both; the peer where AIGI_COMPRESSAI names its Python."""
    python = os.environ.get("AIGI_COMPRESSAI")
    with tempfile.TemporaryDirectory(prefix="aigi-") as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        place = _pictures(folder / "pictures", quick)
        shared = [CodecSettings(codec=codec, qualities=q) for codec, q in SHARED.items()]
        compute = Compute() if quick else Compute(ray="local", workers=2)
        ours, _ = _measured(place, shared, compute, folder / "shared")
        peer = None if python is None or quick else _peer(python, place)
        whole = [CodecSettings(codec=codec) for codec in (WHOLE[:2] if quick else WHOLE)]
        seconds, store = _measured(place, whole, Compute(), folder / "whole")
        rows: list[dict[str, Any]] = store.read_all("measurements").to_pylist()
    spent = sum(row["encode_ms"] + row["decode_ms"] for row in rows) / 1000
    ratio = None if peer is None else peer / ours
    share = 1 - spent / seconds
    names = ", ".join(sorted({row["codec"] for row in rows}))
    return [
        Measurement(
            what="JPEG and WebP, 7 qualities each, 2 workers, start included; CompressAI's bench",
            unit="s",
            ours=ours,
            peer=peer,
            target=f"ratio of at most {1 / TARGET_RATIO:g}",
            met=None if ratio is None else ratio >= TARGET_RATIO,
            detail={"pictures": len(rows)},
        ),
        Measurement(
            what=f"{names}, one worker: share of the time that is not the codecs' own",
            unit="",
            ours=share,
            target=f"at most {TARGET_SHARE:g}",
            met=None if quick else share <= TARGET_SHARE,
            detail={"seconds": seconds, "codecs": spent, "rows": len(rows)},
        ),
    ]
