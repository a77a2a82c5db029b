"""A made-up caption file of CC12M's layout and size in, rows/s and peak memory of `prompts` out.

The peer only reads the same file and splits its lines. Each side runs in a process of its own,
whose peak resident memory the kernel counts (VmHWM); the time includes the loading of libraries
inside the stage, not the start of Python.

    python -m tests.perf.captions write FILE ROWS     makes the file alone
    python -m tests.perf.captions stage FILE RUN COUNT [WORKERS]
    python -m tests.perf.captions read FILE
"""

from __future__ import annotations

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
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tests.perf.report import GIB, Measurement, peak_gib

ROOT = Path(__file__).resolve().parents[2]
ROWS, QUICK_ROWS = 12_000_000, 300_000
PROMPTS = 112_000
FEW, WORKERS = 2_000_000, (1, 2, 4)
"""Rows, and processes that score them, for the figures of several workers."""
MEMORY_GIB = 2.0
# Measured: 210 bytes a row in the file, 180 in the buckets of the stage, 30 in its rejects.
DISK_BYTES_A_ROW = 600

_CHUNK = 250_000
_PHRASES = 400_000
# Words lead by rank: the head as in captions of the web, the tail made of syllables.
_HEAD = (
    "the of a in and with on for at to by from is white black beautiful background vector red "
    "view photo blue illustration home old green house design young city two new woman day water "
    "wedding man tree stock front over room one art wooden up beach flowers pink summer wall "
    "night style game little light people set sitting girl modern kitchen table image street "
    "during how team under flower top garden hand wood yellow cake party world dress car gold as "
    "best between winter make river near out road family made building window snow morning sunset "
    "portrait bedroom silver hotel christmas small first close sky this mountain birthday school "
    "happy dog cat living large holding ideas paper standing park decorated fashion down vintage "
    "floor walking lake glass her his are an it you your that into after before has three four"
)
_SYLLABLES = (
    "ba be bo bra ca chi co da del do ed el en er fa fer ga gra ha hel in is ja ka kin la len li "
    "lo ma mar men mi mo na ner ni no or pa per pi po ra ren ri ro sa sen shi so ster ta ter ti "
    "to ton tra un va ven vi wa wil yo za"
)
_TAIL = 20_000

Numbers = npt.NDArray[np.uint64]


def _mixed(numbers: Numbers, salt: int) -> Numbers:
    """An even 64-bit hash of each number (the finaliser of splitmix64); the same everywhere."""
    mixed = numbers + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _phrases() -> pa.Array:
    """Phrases of three to seven words, each led by a space; number 0 is empty."""
    random = np.random.default_rng(0)
    syllables = _SYLLABLES.split()
    tail = [
        "".join(syllables[i] for i in random.integers(0, len(syllables), 2 + n % 2))
        for n in range(_TAIL)
    ]
    # Every third is a name.
    tail = [word.capitalize() if n % 3 == 0 else word for n, word in enumerate(tail)]
    words = np.array([*_HEAD.split(), *tail], object)
    weights = 1 / (np.arange(len(words)) + 2.7)
    sizes = random.integers(3, 8, _PHRASES)
    ends = np.cumsum(sizes)
    drawn = words[
        np.searchsorted(np.cumsum(weights / weights.sum()), random.random(int(ends[-1])))
    ].tolist()
    return pa.array(
        ["", *(" " + " ".join(drawn[end - n : end]) for n, end in zip(sizes, ends, strict=True))]
    )


def _odd_phrases() -> dict[str, pa.Array]:
    """Endings of the captions that are not plain English, by what they try."""
    foreign = (
        "красивый закат над морем в горах летом",  # noqa: RUF001
        "夕焼けの海と山 美しい風景の 写真素材",
        "منظر جميل للغروب فوق البحر",
        "όμορφο ηλιοβασίλεμα πάνω από τη θάλασσα",
    )
    endings = {
        "foreign": [f"{text} {n}" for text in foreign for n in range(50)],
        "noise": [f"www.shop{n}.com #sale{n} @store{n} {n}% IMG_{n:04d}.jpg" for n in range(999)],
        "entity": [f"caf&eacute; &amp; “bar” no. {n} - façade" for n in range(500)],
        "blocked": [f"topless nude model {n}" for n in range(50)],
        "near": [str(n) for n in range(2, 99)],
    }
    return {kind: pa.array([f" {text}" for text in texts]) for kind, texts in endings.items()}


def write_captions(path: Path, rows: int) -> None:
    """Write `rows` lines `url<TAB>caption`, a function of the row number alone.

    About 20 words a caption. 5 % repeat an earlier caption exactly and 2 % nearly; 8 % name a
    <PERSON>; 5 % hold entities and accents, 3 % noise, 2 % are not English, 0.5 % are on the
    blocklist, 1 % too short, 0.1 % have no tab.
    """
    phrases, odd = _phrases(), _odd_phrases()
    hosts = pa.array(
        [f"https://media{n:03d}.example.com/wp-content/uploads/{1990 + n % 30}/{n % 12 + 1:02d}/"
         f"{'photograph-of-the-day-'[: n % 22]}" for n in range(1000)]
    )  # fmt: skip

    def taken(
        pool: pa.Array, where: npt.NDArray[np.bool_], numbers: Numbers, salt: int
    ) -> pa.Array:
        index = pa.array(_mixed(numbers, salt) % np.uint64(len(pool)))
        return pc.if_else(pa.array(where), pool.take(index), "")

    with path.open("wb") as file:
        for start in range(0, rows, _CHUNK):
            ids = np.arange(start, min(rows, start + _CHUNK), dtype=np.uint64)
            roll = _mixed(ids, 0) % np.uint64(1000)
            near = (roll >= 50) & (roll < 70)
            earlier = _mixed(ids, 1) % np.maximum(ids, np.uint64(1))
            numbers = np.where(roll < 70, earlier, ids)
            kind = _mixed(numbers, 2) % np.uint64(1000)
            short, foreign, noise = (
                kind < 10,
                (kind >= 10) & (kind < 30),
                (kind >= 30) & (kind < 60),
            )
            plain = kind >= 30
            count = 3 + _mixed(numbers, 3) % np.uint64(3)
            parts = [pc.if_else(pa.array((kind >= 300) & (kind < 380)), " <PERSON>", "")]
            for slot in range(5):
                index = np.uint64(1) + _mixed(numbers, 10 + slot) % np.uint64(len(phrases) - 1)
                used = plain & (slot < count) & ~(noise & (slot > 0))
                parts.append(phrases.take(pa.array(np.where(used, index, np.uint64(0)))))
            parts += [
                pc.if_else(pa.array(short), " a cat", ""),
                taken(odd["foreign"], foreign, numbers, 20),
                taken(odd["noise"], noise, numbers, 21),
                taken(odd["entity"], (kind >= 100) & (kind < 150), numbers, 22),
                taken(odd["blocked"], (kind >= 200) & (kind < 205), numbers, 23),
                taken(odd["near"], near, ids, 24),
            ]
            host = hosts.take(pa.array(_mixed(ids, 30) % np.uint64(len(hosts))))
            name = pa.array(_mixed(ids, 31)).cast(pa.string())
            tab = pc.if_else(pa.array(roll == 999), ".jpg ", ".jpg\t")
            caption = pc.ascii_ltrim_whitespace(pc.binary_join_element_wise(*parts, ""))
            lines = pc.binary_join_element_wise(host, name, tab, caption, "\n", "")
            # The lines stand one after the other in the buffer of the array: no loop over rows.
            ends = np.frombuffer(lines.buffers()[1], np.int32, len(lines) + 1)
            file.write(memoryview(lines.buffers()[2])[: ends[-1]])


def run_stage(captions: Path, run: Path, count: int, workers: int = 0) -> dict[str, Any]:
    """Run the stages of prompts as a workflow would; seconds of each, and of all.

    Args:
        workers: processes of Ray that score; 0: this process does.
    """
    from pipeline.progress import Progress
    from pipeline.prompts import prompts
    from pipeline.running import run_stages
    from pipeline.settings import check
    from pipeline.store import Store
    from pipeline.workflow import Workflow

    settings = {
        "sources": [{"kind": "cc12m", "path": str(captions)}],
        "filters": {"blocklist": str(ROOT / "prompts" / "blocklist.txt")},
        "near_duplicates": True,
        "select": {"count": count, "method": "random"},
    }
    compute = {"ray": "local", "workers": workers} if workers else {}
    workflow = check(
        Workflow,
        {"run": str(run), "prompts": settings, "compute": compute},
        str(run / "bench.yaml"),
    )
    store = Store(workflow.run)
    before, started = peak_gib(), time.perf_counter()
    assert workflow.prompts is not None
    stages = prompts.stages(workflow.prompts, workflow.split, workflow.compute)
    seconds, tables = 0.0, {}
    for number, stage in enumerate(stages, 1):
        run_stages(stages[:number], store, workflow.compute, Progress())
        seconds, before_it = time.perf_counter() - started, seconds
        tables[stage.table] = seconds - before_it
    return {
        "seconds": seconds,
        "tables": tables,
        "peak_gib": peak_gib(),
        "peak_before_gib": before,
        "kept": sum(store.rows("prompts", shard) or 0 for shard in store.shards("prompts")),
        "rejected": store.rows("rejects", "prompts"),
    }


def read_only(captions: Path) -> dict[str, Any]:
    """The peer: read the file and split its lines, nothing else."""
    started = time.perf_counter()
    rows = letters = 0
    with captions.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            _, _, caption = line.partition("\t")
            rows += 1
            letters += len(caption)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": rows, "letters": letters, "peak_gib": peak_gib()}


def _alone(*arguments: str) -> dict[str, Any]:
    """Run one side in a process of its own; its last line of output is its result."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.perf.captions", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(quick: bool = False, rows: int | None = None) -> list[Measurement]:
    """Make the file, run both sides, and compare.

    Raises:
        OSError: too little space in the folder for temporary files (TMPDIR).
    """
    rows, workers = rows or (QUICK_ROWS if quick else ROWS), () if quick else WORKERS
    # Below full size, a quarter is asked for at most, so that enough captions pass.
    count = min(PROMPTS, rows // 4)
    need, free = rows * DISK_BYTES_A_ROW, shutil.disk_usage(tempfile.gettempdir()).free
    print(f"captions: {rows:,} rows, {need / GIB:.1f} GiB of disk needed in "
          f"{tempfile.gettempdir()}, {free / GIB:.1f} GiB free", flush=True)  # fmt: skip
    if free < need:
        raise OSError("captions: too little disk; set TMPDIR to a folder with more, or --rows")
    with tempfile.TemporaryDirectory(prefix="aigi-bench-") as folder:
        file = Path(folder) / "cc12m.tsv"
        started = time.perf_counter()
        write_captions(file, rows)
        made = {"bytes": os.path.getsize(file), "seconds": time.perf_counter() - started}
        print(f"captions: {made['bytes'] / 1e9:.2f} GB made in {made['seconds']:.0f} s", flush=True)
        # Before and after, so that neither side alone gets a warm cache or a quiet machine.
        peers = [_alone("read", str(file))]
        ours = _alone("stage", str(file), str(Path(folder) / "run"), str(count))
        peers.append(_alone("read", str(file)))
        few = min(rows, FEW)
        write_captions(file, few)
        side = [
            _alone("stage", str(file), str(Path(folder) / f"run{n}"), str(few // 4), str(n))
            for n in workers
        ]
    peer = min(peers, key=lambda side: float(side["seconds"]))
    detail = {"rows": rows, "wanted": count, "file": made, "ours": ours, "peers": peers}
    scoring = [one["tables"]["texts"] for one in side]
    return [
        *(
            Measurement(
                what=f"scoring {few:,} captions with {n} workers of Ray over one",
                unit="rows/s",
                ours=few / seconds,
                peer=few / scoring[0],
                detail={"seconds": seconds},
            )
            for n, seconds in zip(workers, scoring, strict=True)
        ),
        Measurement(
            what="prompts stage over a bare loop that reads and splits",
            unit="rows/s",
            ours=rows / ours["seconds"],
            peer=rows / peer["seconds"],
            detail=detail,
        ),
        Measurement(
            what=f"peak memory, {rows:,} rows",
            unit="GiB",
            ours=ours["peak_gib"],
            peer=peer["peak_gib"],
            target=f"at most {MEMORY_GIB:g} GiB",
            met=ours["peak_gib"] <= MEMORY_GIB,
        ),
    ]


def _main(action: str, *arguments: str) -> None:
    match action, arguments:
        case "write", (file, rows):
            write_captions(Path(file), int(rows))
            print(json.dumps({"bytes": os.path.getsize(file)}))
        case "stage", (file, folder, count, *workers):
            print(json.dumps(run_stage(Path(file), Path(folder), int(count), *map(int, workers))))
        case "read", (file,):
            print(json.dumps(read_only(Path(file))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
