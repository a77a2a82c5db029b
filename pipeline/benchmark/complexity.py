"""Codecs and sizes in, the `complexity` table out: operations, time and memory of each.

A recipe is drawn at each size from what made the first image of which that is known. Every row is
measured in a process of its own, so that its peak of memory is its own:

    python -m pipeline.benchmark.complexity < request.json > found.json
"""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.benchmark.measurements import pixels_of
from pipeline.benchmark.settings import Benchmark, Complexity
from pipeline.benchmark.versions import Shards, agreed, at_hand, here_of
from pipeline.codecs.codec import CodecSettings, Here, OfRows
from pipeline.codecs.command import CodecFailed, finished, peak_mib
from pipeline.codecs.recipe import OneRecipe, known_of
from pipeline.codecs.table import digest, opened, qualities, row_of
from pipeline.collection import Collection
from pipeline.faults import MachineFault, in_short, killed_by, of_machine
from pipeline.pixels import RGB, decode, png_bytes
from pipeline.release.making import Known, making
from pipeline.stage import Compute, Map
from pipeline.store import Store

COMPLEXITY = pa.schema(
    # What comes after `quality`, but for the version, is null where `error` says why.
    [
        ("codec", pa.string()),
        ("side", pa.int32()),  # pixels of the square picture
        ("quality", pa.float64()),
        ("parameters", pa.int64()),  # of networks, their text encoder included; else null
        ("encode_kmac_per_pixel", pa.float64()),  # as torch counts: products and convolutions
        ("decode_kmac_per_pixel", pa.float64()),
        ("encode_s_per_mp", pa.float64()),  # median of some rounds
        ("decode_s_per_mp", pa.float64()),
        ("peak_mib", pa.float64()),  # of the program; of a codec in ours: what it adds
        ("device_peak_mib", pa.float64()),  # on a CUDA device; else null
        ("device", pa.string()),
        ("codec_version", pa.string()),
        ("error", pa.string()),
    ]
)

VERSION = 2
SECONDS = 7200
MACHINE = os.EX_TEMPFAIL
"""Exit code of the process that measures one row, where not the row but the machine failed."""


def square(image: RGB, side: int) -> RGB:
    """A square (uint8, side x side x 3): cut out, or mirrored at the edges to fit."""
    more = [(0, max(0, side - length)) for length in image.shape[:2]]
    return np.ascontiguousarray(np.pad(image, (*more, (0, 0)), mode="symmetric")[:side, :side])


def _memory_mib(field: str) -> float:
    """A field of what the kernel says about this process, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) / 1024 if found else float("nan")


def _parameters(codec: Any) -> int:
    """Weights of a network and its text encoder."""
    import torch

    if isinstance(codec, OneRecipe):
        return codec.codec.remaker.parameters
    inner = getattr(codec, "codec", codec)
    modules = [inner.network, getattr(getattr(inner, "text", None), "model", None)]
    return sum(
        parameter.numel()
        for module in modules
        if isinstance(module, torch.nn.Module)
        for parameter in module.parameters()
    )


def measure(
    given: CodecSettings,
    quality: float,
    here: Here,
    image: RGB,
    rounds: int,
    known: str | None = None,
) -> dict[str, Any]:
    """The columns of COMPLEXITY for one image (uint8, H x W x 3), measured in this process.

    Args:
        known: JSON of what made an image, for a codec of rows: what it makes here is coded.
    """
    row = row_of(given)
    if row.network:
        import torch
        from torch.utils.flop_counter import FlopCounterMode
    before = _memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    codec = opened(given, quality, here)
    if isinstance(codec, OfRows):
        codec = codec.of(known or "{}")
        assert isinstance(codec, OneRecipe)
        image = codec.image()
    pixels = image.shape[0] * image.shape[1]
    found: dict[str, Any] = {}
    if row.network:
        for name in ("encode", "decode"):
            with FlopCounterMode(display=False) as counter:
                if name == "encode":
                    data = codec.encode(image, "")
                else:
                    codec.decode(data)
            # A product and its sum are two operations.
            found[f"{name}_kmac_per_pixel"] = counter.get_total_flops() / 2 / 1000 / pixels
        found["parameters"] = _parameters(codec)
        if torch.cuda.is_available() and here.device != "cpu":
            found["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    elif row.external:
        found["peak_mib"] = peak_mib(lambda: codec.decode(codec.encode(image, "")))
    else:
        codec.decode(codec.encode(image, ""))
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(rounds):
        started = time.perf_counter()
        data = codec.encode(image, "")
        between = time.perf_counter()
        codec.decode(data)
        times["encode"].append(between - started)
        times["decode"].append(time.perf_counter() - between)
    if not row.external:
        found["peak_mib"] = max(_memory_mib("VmHWM") - before, 0.0)
    return found | {
        "encode_s_per_mp": statistics.median(times["encode"]) / (pixels / 1e6),
        "decode_s_per_mp": statistics.median(times["decode"]) / (pixels / 1e6),
    }


class Weigher:
    """Rows with an image and a codec in, rows of what it costs out."""

    def __init__(self, here: Here, threads: int, rounds: int, versions: Mapping[str, str]) -> None:
        self.here, self.threads, self.rounds, self.versions = here, threads, rounds, versions

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield one row at a time."""
        for row in rows.to_pylist():
            given = CodecSettings.model_validate_json(row["settings"])
            version = agreed(given.label, row_of(given).version(given, self.here), self.versions)
            facts = {
                "codec": given.label,
                "side": row["side"],
                "quality": row["quality"],
                "codec_version": version,
            }
            yield pa.Table.from_pylist([facts | self._apart(row)], COMPLEXITY)

    def _apart(self, row: dict[str, Any]) -> dict[str, Any]:
        request = {
            "settings": row["settings"],
            "quality": row["quality"],
            "programs": dict(self.here.programs),
            "device": self.here.device,
            "threads": self.threads,
            "rounds": self.rounds,
            "image": base64.b64encode(row["image"]).decode(),
            "known": row["known"],
        }
        # Where the package lies, also in a worker of Ray that runs elsewhere.
        root = str(Path(__file__).resolve().parents[2])
        try:
            done = finished(
                [sys.executable, "-m", "pipeline.benchmark.complexity"],
                json.dumps(request).encode(),
                SECONDS,
                root,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"ended after {SECONDS} s"}
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            signal = killed_by(done.returncode)
            if signal or done.returncode == MACHINE:
                what = f"its process was ended by {signal} (out of memory?)" if signal else said[-1]
                label = CodecSettings.model_validate_json(row["settings"]).label
                raise MachineFault(f"{label} at {row['side']} pixels a side: {what}")
            return {"error": said[-1] if said else f"exit code {done.returncode}"}
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _known(collection: Collection, side: int) -> str:
    """What made the first image of which that is known, as if it had this many pixels a side."""
    text = Known(reason="no recipe: no image of this collection has one").model_dump_json()
    for part in collection.parts:
        for text in known_of(collection, part.name):
            found = Known.model_validate_json(text)
            if (made_by := found.making) is not None:
                size = {"width": side, "height": side}
                drawn = making({**made_by.model_dump(), **size}, f"complexity.sides: {side}")
                return found.model_copy(
                    update={"making": drawn, "batch": None, "weights": None}
                ).model_dump_json()
    return text


def _read(
    collection: Collection, found: dict[str, tuple[CodecSettings, int]], store: Store, name: str
) -> pa.Table:
    given, side = found[name]
    (row,) = collection.read(collection.parts[0].name, ["image"]).slice(0, 1).to_pylist()
    usual = qualities(given)
    return pa.Table.from_pylist(
        [
            {
                "settings": given.model_dump_json(),
                "side": side,
                "quality": float(usual[len(usual) // 2]),
                "image": png_bytes(square(pixels_of(row), side)),
                "known": _known(collection, side) if row_of(given).rows else None,
            }
        ]
    )


def stage(
    benchmark: Benchmark, complexity: Complexity, compute: Compute, collection: Collection
) -> Map:
    """The stage of the complexity table: every codec at its middle quality and each size.

    Raises:
        AigiError: a codec does not exist.
    """
    versions, _ = at_hand(benchmark, compute)
    found = {
        f"{given.label}-{digest(given)}/{side}": (given, side)
        for given in benchmark.codecs
        for side in complexity.sides
    }
    labels = {name: given.label for name, (given, _) in found.items()}
    shards = Shards("complexity", labels, versions)
    return Map(
        table="complexity",
        version=VERSION,
        schema=COMPLEXITY,
        settings={"pictures": benchmark.measured.model_dump(mode="json")},
        inputs=(),
        names=shards.names,
        read=partial(_read, collection, found),
        make_worker=partial(
            Weigher, here_of(benchmark, compute), compute.threads, complexity.rounds, versions
        ),
        outside=lambda store, name: collection.digest(collection.parts[0].name),
        state=lambda store: collection.state,
        remake=True,
        outdated=shards.outdated,
        possible=shards.possible,
        rows=lambda store, name: 1,
    )


def main() -> None:
    """Measure one codec in this process, as the standard input says."""
    request = json.load(sys.stdin)
    given = CodecSettings.model_validate_json(request["settings"])
    image = decode(base64.b64decode(request["image"]), 1 << 27).rgb
    here = Here(request["programs"], request["device"])
    device = "cpu"
    if row_of(given).network:
        import torch

        from pipeline.models.device import device_name, pick_device

        torch.set_num_threads(request["threads"])
        device = device_name(pick_device(request["device"]))
    try:
        found = measure(given, request["quality"], here, image, request["rounds"], request["known"])
    except Exception as error:
        if isinstance(error, CodecFailed):
            raise SystemExit(str(error)) from None
        if not of_machine(error):
            raise
        print(in_short(error), file=sys.stderr)
        raise SystemExit(MACHINE) from None
    json.dump(found | {"device": device}, sys.stdout)


if __name__ == "__main__":
    main()
