"""Pictures in, how many of them one device decodes as another wrote them out.

    python -m tests.perf.codec_exchange [--pictures 1000] [--device cuda] [--network catc-small]
        [--model FOLDER] [--images FOLDER] [--out FILE.json]

Each picture is coded on the CPU and decoded on the device, and the other way round. A failure is a
file whose latents differ (`DamagedStream`); decoded pictures may differ by rounding, which is
counted. Without `--model` the network has random weights whose latents are some units wide; without
`--images` the pictures are drawn. On `--device cpu` the other side has another number of threads.
The file is written as it goes, so a run that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.learned.bitstream import MOST_PIXELS
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.network import Network
from pipeline.learned.range_coder import DamagedStream
from pipeline.learned.sizes import NETWORKS
from pipeline.models.device import device_name, pick_device
from pipeline.pixels import RGB, decode
from tests.learned.conftest import TEXT, fill, pictures
from tests.perf.report import machine, machine_line

PROMPTS = ["a red boat on a lake", "two houses under heavy clouds", "", "a tree beside a wall"]


def _codec(given: argparse.Namespace, device: str) -> LearnedCodec:
    if given.model is not None:
        return load(given.model, device=device)
    sizes = NETWORKS[given.network].model_dump()
    if sizes["text"] is not None:
        sizes["text"] = TEXT  # the embedded encoder: no network is needed
    return LearnedCodec(fill(Network(**sizes), 0), device)


def _pictures(given: argparse.Namespace) -> Iterator[RGB]:
    if given.images is None:
        for seed in range(given.pictures):
            yield pictures(1, given.size, given.size, seed)[0]
        return
    for path in sorted(given.images.iterdir())[: given.pictures]:
        yield decode(path.read_bytes(), MOST_PIXELS).rgb


def _pass(writer: LearnedCodec, reader: LearnedCodec, picture: RGB, prompt: str) -> dict[str, Any]:
    encoded = writer.encode_and_reconstruct(picture, prompt)
    try:
        decoded = reader.decode(encoded.data)
    except DamagedStream:
        return {"failed": 1}
    difference = np.abs(decoded.astype(int) - encoded.reconstruction)
    return {
        "failed": 0,
        "bytes": len(encoded.data),
        "pixels_differ": int((difference.max(axis=2) > 0).sum()),
        "pixels": picture.shape[0] * picture.shape[1],
        "most": int(difference.max()),
    }


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Exchange pictures between the CPU and the device, and count."""
    device = pick_device(given.device)
    ours, theirs = _codec(given, "cpu"), _codec(given, str(device))
    threads = torch.get_num_threads()
    other_threads = max(1, threads // 2) if threads > 1 else 2
    totals: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {
        "machine": machine(),
        "device": device_name(device),
        "network": ours.name,
    }
    started = time.perf_counter()
    for number, picture in enumerate(_pictures(given)):
        prompt = PROMPTS[number % len(PROMPTS)]
        for name, writer, reader in (
            ("cpu to device", ours, theirs),
            ("device to cpu", theirs, ours),
        ):
            if device.type == "cpu":
                torch.set_num_threads(other_threads if number % 2 else threads)
            total = totals.setdefault(name, {"pictures": 0, "failed": 0, "most": 0})
            total["pictures"] += 1
            for key, value in _pass(writer, reader, picture, prompt).items():
                total[key] = max(total[key], value) if key == "most" else total.get(key, 0) + value
        found |= {"seconds": time.perf_counter() - started, "exchanges": totals}
        if given.out is not None and number % 20 == 0:
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    torch.set_num_threads(threads)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    """Read the command line, run, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.codec_exchange")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network", choices=list(NETWORKS), default="catc-small")
    parser.add_argument("--model", help="folder of trained weights")
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--size", type=int, default=256, help="of drawn pictures")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    found = run(parser.parse_args())
    print(machine_line(found["machine"]))
    print(f"{found['network']}, CPU and {found['device']}, {found['seconds']:.0f} s")
    for name, total in found["exchanges"].items():
        share = total.get("pixels_differ", 0) / max(1, total.get("pixels", 0))
        print(
            f"{name}: {total['failed']} of {total['pictures']} failed; {share:.2e} of the pixels "
            f"differ, by at most {total['most']}"
        )


if __name__ == "__main__":
    main()
