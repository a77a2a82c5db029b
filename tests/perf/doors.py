"""Images and captions in archives and tables in; seconds of reading all, beside a bare read, out.

Ours lists every image with its caption, as an import does, and reads the images in the order of
its plan. The peer reads the bytes of images and captions as they lie, with the library that reads
such a place, and parses the headers of the images. Each is a process of its own.

    python -m tests.perf.doors make FOLDER zip|tar|parquet IMAGES SIDE
    python -m tests.perf.doors aigi|bare FOLDER zip|tar|parquet
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.perf.report import Measurement, peak_gib
from tests.perf.scale import ROOT, texts

SIZES = ((128, 100_000), (344, 20_000))
"""Side of the images and their number: files of noise of 49 kB, and of 355 kB as generated images
of 512x512 have."""
QUICK = 10  # times fewer
SHARDS, ROW_GROUP = 10, 100
KINDS = ("zip", "tar", "parquet")
TARGET = 1.3
_ROWS = pa.schema([
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string()),
])  # fmt: skip


def _image(random: np.random.Generator, side: int) -> bytes:
    from pipeline.pixels import png_bytes

    return png_bytes(random.integers(0, 256, (side, side, 3), np.uint8))


def make(folder: Path, kind: str, images: int, side: int) -> None:
    """Write images and captions; of noise, because archives would pack anything else."""
    random = np.random.default_rng(0)
    captions = texts(random, images).to_pylist()
    pool = [_image(random, side) for _ in range(100)]
    place, per = _place(kind, folder), -(-images // SHARDS)
    if kind == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for n, text in enumerate(captions):
                archive.writestr(f"{n:09d}.png", pool[n % 100])
                archive.writestr(f"{n:09d}.txt", text)
        return
    place.mkdir()
    for shard in range(SHARDS):
        numbers = range(shard * per, min(images, (shard + 1) * per))
        if kind == "parquet":
            with pq.ParquetWriter(place / f"{shard:05d}.parquet", _ROWS) as writer:
                for start in range(numbers.start, numbers.stop, ROW_GROUP):
                    group = range(start, min(start + ROW_GROUP, numbers.stop))
                    files = [{"bytes": pool[n % 100], "path": f"{n:09d}.png"} for n in group]
                    columns = {"image": files, "text": [captions[n] for n in group]}
                    writer.write_table(pa.table(columns, schema=_ROWS))
            continue
        with tarfile.open(place / f"{shard:05d}.tar", "w") as tar:
            for n in numbers:
                for ending, content in (("png", pool[n % 100]), ("txt", captions[n].encode())):
                    info = tarfile.TarInfo(f"{n:09d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _place(kind: str, folder: Path) -> Path:
    return folder / ("all.zip" if kind == "zip" else kind)


def aigi(kind: str, folder: Path) -> int:
    """Read all as an import does; returns the number of images."""
    from pipeline.pictures.lists import open_import
    from pipeline.pictures.sources import ImportSource
    from pipeline.pixels import image_size
    from pipeline.plan.imports import listed_imports, read_order
    from pipeline.prompts.text import SplitShares

    source = ImportSource(kind="import", path=str(_place(kind, folder)))
    rows = listed_imports("door", source, SplitShares(), [], [])
    with open_import(source) as pictures:
        for rank in read_order(source, rows, [0] * len(rows)):
            assert image_size(pictures.read(rows[rank].path)) is not None
    return len(rows)


def _bare_files(kind: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    if kind == "zip":
        with zipfile.ZipFile(_place(kind, folder)) as archive:
            for info in archive.infolist():
                yield info.filename, archive.read(info)
        return
    for path in sorted(_place(kind, folder).iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def bare(kind: str, folder: Path) -> int:
    """Read all bytes as they lie, and parse headers; returns the number of images."""
    from pipeline.pixels import image_size

    count = 0
    if kind == "parquet":
        for path in sorted(_place(kind, folder).iterdir()):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                table["text"].to_pylist()
                for row in table["image"].to_pylist():
                    assert image_size(row["bytes"]) is not None
                    count += 1
        return count
    for name, data in _bare_files(kind, folder):
        if name.endswith(".png"):
            assert image_size(data) is not None
            count += 1
        else:
            data.decode()
    return count


def measured(who: str, kind: str, folder: Path) -> dict[str, float]:
    """Images, seconds of the processor, and GiB at the peak above what Python takes."""
    import pipeline.plan.imports  # noqa: F401 (loaded before anything is measured)

    before, started = peak_gib(), time.process_time()
    count = (aigi if who == "aigi" else bare)(kind, folder)
    seconds = time.process_time() - started
    return {"images": count, "seconds": seconds, "gib": peak_gib() - before}


def _child(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.perf.doors", *arguments],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1])) if done.stdout.strip() else {}


def run(quick: bool = False) -> list[Measurement]:
    """Read each place in turns, three times each, and compare the medians."""
    result = []
    for side, count in SIZES:
        images = count // QUICK if quick else count
        for kind in KINDS:
            taken: dict[str, list[dict[str, float]]] = {"aigi": [], "bare": []}
            with tempfile.TemporaryDirectory() as place:
                _child("make", place, kind, str(images), str(side))
                for _ in range(3):
                    for who, found in taken.items():
                        found.append(_child(who, place, kind))
                        assert found[-1]["images"] == images
            ours, peer = (sorted(one["seconds"] for one in taken[who])[1] for who in taken)
            what = f"{images:,} images of {side}x{side} with captions from {kind}"
            memory = [max(one["gib"] for one in taken[who]) for who in taken]
            result += [
                Measurement(
                    what, "µs/image", 1e6 * ours / images, 1e6 * peer / images,
                    f"at most {TARGET}", ours / peer <= TARGET, taken,
                ),
                Measurement(f"{what}: memory", "GiB", memory[0], memory[1]),
            ]  # fmt: skip
    return result


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        print(json.dumps(measured(sys.argv[1], sys.argv[3], Path(sys.argv[2]))))
