"""Made-up image embeddings in, time and memory of the near-duplicate join beside its peers out.

The peers are faiss' flat range search, where faiss-cpu is installed, and blocks of X @ X.T over
the upper triangle. Each side runs in a process of its own over the same file and must find the
same pairs; the clock starts when the libraries are loaded, and stops when all pairs are known.
The sides take turns, and of each the best turn counts: by seconds of the processor on one core,
whatever else the machine does, and by the clock on all cores, where it shows.

    python -m tests.perf.pairs write FILE.npy ROWS
    OMP_NUM_THREADS=1 python -m tests.perf.pairs ours|faiss|blocked FILE.npy PAIRS.npy
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.perf.report import Measurement, peak_gib

ROOT = Path(__file__).resolve().parents[2]
SIZES, QUICK_SIZES = (66_000, 132_000, 264_000, 528_000), (12_000, 24_000)
DIMENSIONS = 512
TAU = 0.95
MEMORY_GIB = 3.0
TURNS, QUICK_TURNS = 3, 1
FAISS_RATIO, BLOCKED_RATIO = 8.0, 5.0
# The peers compute in float32: nearer than this to tau they may differ from the exact pairs.
PEER_ERROR = 1e-5

_CHUNK = 4096
_THEMES = 2000


def clip_like(rows: int, dimensions: int = DIMENSIONS, start: int = 0) -> NDArray[np.float16]:
    """Vectors like those of CLIP for photos; row i is a function of `start + i` and no other.

    They share a mean, so that two of them have a cosine of 0.55 on the average; what is left has
    a spectrum that falls as 1/i, half of it within 2,000 themes. 3 % are copies of another row,
    moved to a cosine of 0.9 to 1.

    Args:
        rows: how many.
        dimensions: of each.
        start: number of the first row; a multiple of 4,096.

    Returns: float16 rows x dimensions, norm 1.
    """
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0]
    spread = 1 / (np.arange(dimensions) + 3)
    axes = (np.sqrt(0.45 * spread / spread.sum())[:, None] * axes).astype(np.float32)
    mean = random.standard_normal(dimensions)
    mean *= np.sqrt(0.55) / np.linalg.norm(mean)
    themes = random.standard_normal((_THEMES, dimensions), np.float32)
    result = np.empty((rows, dimensions), np.float16)
    for first in range(0, rows, _CHUNK):
        random = np.random.default_rng((1, start + first))
        x = np.sqrt(0.5) * random.standard_normal((_CHUNK, dimensions), np.float32)
        x += np.sqrt(0.5) * themes[random.integers(0, _THEMES, _CHUNK)]
        x = x @ axes + mean
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        copies = _CHUNK * 3 // 100
        # Copies in the second half, of rows in the first: none is a copy of a copy.
        to = _CHUNK // 2 + random.permutation(_CHUNK // 2)[:copies]
        of = x[random.integers(0, _CHUNK // 2, copies)]
        side = random.standard_normal((copies, dimensions))
        side -= np.einsum("ij,ij->i", side, of)[:, None] * of
        side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
        cosine = random.uniform(0.9, 1, copies)[:, None]
        x[to] = cosine * of + np.sqrt(1 - cosine**2) * side
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        result[first : first + _CHUNK] = x[: rows - first]
    return result


def write_vectors(path: Path, rows: int) -> None:
    """Write `clip_like` rows to an .npy file, some at a time."""
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, DIMENSIONS))
    for first in range(0, rows, 8 * _CHUNK):
        count = min(8 * _CHUNK, rows - first)
        out[first : first + count] = clip_like(count, DIMENSIONS, first)
    out.flush()


class Clock:
    """Seconds since it was made: by the clock, and of the processor on all threads."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self.started[0], time.process_time() - self.started[1]


Found = tuple[NDArray[np.int64], tuple[float, float]]


def _join(vectors: NDArray[np.float16]) -> Found:
    import torch  # noqa: F401

    from pipeline.duplicates.pairs import gathered, near_pairs

    clock = Clock()
    found = gathered(near_pairs(vectors, TAU))
    return np.stack([found.first, found.second], 1), clock.seconds()


def _faiss(vectors: NDArray[np.float16]) -> Found:
    import faiss  # type: ignore[import-not-found, unused-ignore]

    rows = np.asarray(vectors, np.float32)
    clock = Clock()
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    # It keeps what is above the threshold, and tells each pair twice.
    limits, _, labels = index.range_search(rows, float(np.nextafter(np.float32(TAU), 0)))
    first = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
    use = first < labels
    return np.stack([first[use], labels[use]], 1), clock.seconds()


def _blocked(vectors: NDArray[np.float16], block: int = 2048) -> Found:
    rows = np.asarray(vectors, np.float32)
    clock = Clock()
    found = [np.empty((0, 2), np.int64)]
    for a in range(0, len(rows), block):
        for b in range(a, len(rows), block):
            i, j = np.nonzero(rows[a : a + block] @ rows[b : b + block].T >= TAU)
            i, j = i + a, j + b
            found.append(np.stack([i, j], 1)[i < j])
    return np.concatenate(found), clock.seconds()


SIDES = {"ours": _join, "faiss": _faiss, "blocked": _blocked}


def _alone(side: str, vectors: Path, threads: int) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Run one side in a process of its own: its figures and its pairs."""
    found = vectors.with_name(f"{side}.npy")
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-m", "tests.perf.pairs", side, str(vectors), str(found)],
        cwd=ROOT,
        env={**os.environ, **dict.fromkeys(libraries, str(threads))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    pairs: NDArray[np.int64] = np.load(found)
    print(f"pairs: {side}, {threads} threads: {result}", flush=True)
    return result, pairs


def _same_pairs(vectors: Path, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> bool:
    """Whether the pairs are the same but for those that float32 cannot decide."""
    rows = np.load(vectors, mmap_mode="r")
    mine, other = set(map(tuple, ours.tolist())), set(map(tuple, theirs.tolist()))
    return all(
        abs(float(rows[i].astype(np.float64) @ rows[j].astype(np.float64)) - TAU) < PEER_ERROR
        for i, j in mine ^ other
    )


def _beside_peers(
    vectors: Path, rows: int, threads: int, turns: int, peers: dict[str, float]
) -> list[Measurement]:
    """All sides in turn on the same vectors.

    Raises:
        RuntimeError: a peer found other pairs.
    """
    figures: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", *peers)}
    kind = "processor_seconds" if threads == 1 else "seconds"
    for _ in range(turns):
        found = {}
        for side, figure in figures.items():
            result, found[side] = _alone(side, vectors, threads)
            figure.append(result)
        for side in peers:
            if not _same_pairs(vectors, found["ours"], found[side]):
                raise RuntimeError(f"pairs: {side} found other pairs: {len(found[side])}")
    millions = rows * (rows - 1) / 2e6
    best = {side: min(turn[kind] for turn in figure) for side, figure in figures.items()}
    cores = "one core" if threads == 1 else f"{threads} threads"
    return [
        Measurement(
            what=f"pairs of {rows:,} x {DIMENSIONS}, tau {TAU}, {cores}; {_NAMES[peer]}",
            unit="million pairs/s",
            ours=millions / best["ours"],
            peer=millions / best[peer],
            target=f"ratio of at least {ratio:g}",
            met=best[peer] >= ratio * best["ours"],
            detail={"ours": figures["ours"], "peer": figures[peer], "by": kind},
        )
        for peer, ratio in peers.items()
    ]


def run(quick: bool = False) -> list[Measurement]:
    """Make the vectors, run all sides on the smallest size and ours on all sizes.

    Raises:
        RuntimeError: a peer found other pairs.
    """
    sizes, turns = (QUICK_SIZES, QUICK_TURNS) if quick else (SIZES, TURNS)
    threads = os.cpu_count() or 1
    peers = {"faiss": FAISS_RATIO, "blocked": BLOCKED_RATIO}
    if importlib.util.find_spec("faiss") is None:
        print("pairs: faiss is not installed (pip install faiss-cpu): left out", flush=True)
        del peers["faiss"]
    measurements = []
    growth = []
    with tempfile.TemporaryDirectory(prefix="aigi-bench-") as folder:
        file = Path(folder) / "vectors.npy"
        for rows in sizes:
            write_vectors(file, rows)
            if rows == sizes[0]:
                for count in dict.fromkeys([1, threads]):
                    measurements += _beside_peers(file, rows, count, turns, peers)
            ours, _ = _alone("ours", file, threads)
            growth.append({"rows": rows, **ours})
    for size in growth[1:]:
        times = size["rows"] / sizes[0]
        measurements.append(
            Measurement(
                what=f"{size['rows']:,} rows ({times:g}² = {times**2:g} times the pairs); the time "
                f"of {sizes[0]:,}",
                unit="s of the processor",
                ours=size["processor_seconds"],
                peer=growth[0]["processor_seconds"],
                detail=size,
            )
        )
    measurements.append(
        Measurement(
            what=f"peak memory, {sizes[-1]:,} rows",
            unit="GiB",
            ours=growth[-1]["peak_gib"],
            target=f"at most {MEMORY_GIB:g} GiB",
            met=growth[-1]["peak_gib"] <= MEMORY_GIB,
        )
    )
    return measurements


_NAMES = {"faiss": "faiss' flat range search", "blocked": "X @ X.T in blocks"}


def _main(action: str, file: str, argument: str) -> None:
    if action == "write":
        write_vectors(Path(file), int(argument))
        print(json.dumps({"bytes": os.path.getsize(file)}))
    elif action in SIDES:
        pairs, (seconds, busy) = SIDES[action](np.load(file, mmap_mode="r"))
        np.save(argument, pairs)
        figures = {"seconds": seconds, "processor_seconds": busy, "pairs": len(pairs)}
        print(json.dumps({**figures, "peak_gib": peak_gib()}))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
