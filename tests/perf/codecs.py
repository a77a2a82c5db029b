"""A 768x512 picture in; seconds to code and decode it, the coder's share and memory out.

    AIGI_COMPRESSAI=/path/to/venv/bin/python python -m tests.perf codecs

The peers are CompressAI's mbt2018-mean and cheng2020-anchor, which want an environment of their own
(`pip install .[compressai]` there, numpy < 2); its Python is named by AIGI_COMPRESSAI. Both sides
have random weights and one thread, and a process of their own; the clock counts seconds of the
processor, whatever else the machine does. Our weights are scaled so that latents are some units
wide: there are more bits to code than in use.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.perf.report import GIB, Measurement

ROOT = Path(__file__).resolve().parents[2]
SIZE, QUICK_SIZE = (768, 512), (192, 128)
PEERS = {"mean-scale": "mbt2018-mean", "catc-small": "cheng2020-anchor", "catc": "cheng2020-anchor"}
TARGET_SHARE = 0.15


def _ours(name: str, width: int, height: int, rounds: int) -> dict[str, Any]:
    from pipeline.learned import range_coder
    from pipeline.learned.codec import LearnedCodec
    from pipeline.learned.network import Network
    from pipeline.learned.sizes import NETWORKS
    from tests.learned.conftest import TEXT, fill, pictures

    sizes = NETWORKS[name].model_dump()
    if sizes["text"] is not None:
        sizes["text"] = TEXT
    codec = LearnedCodec(fill(Network(**sizes), 0), "cpu")
    (picture,) = pictures(1, height, width)
    spent = {"coder": 0.0}

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent["coder"] += time.process_time() - started

        return call

    for owner, method in (
        (range_coder.RangeWriter, "write"),
        (range_coder.RangeWriter, "bytes"),
        (range_coder.RangeReader, "read"),
    ):
        setattr(owner, method, timed(getattr(owner, method)))
    data = codec.encode(picture, "a red boat")
    codec.decode(data)  # both warm
    found: dict[str, Any] = {"bytes": len(data), "encode": [], "decode": []}
    for what in ("encode", "decode"):
        spent["coder"] = 0.0
        for _ in range(rounds):
            started = time.process_time()
            codec.encode(picture, "a red boat") if what == "encode" else codec.decode(data)
            found[what].append(time.process_time() - started)
        found[f"{what}_share"] = spent["coder"] / sum(found[what])
    return found


def _peer(name: str, width: int, height: int, rounds: int) -> dict[str, Any]:
    import torch
    from compressai.zoo import image_models

    torch.manual_seed(0)
    model = image_models[name](quality=3, pretrained=False).eval()
    model.update(force=True)
    x = torch.rand(1, 3, height, width)
    found: dict[str, Any] = {"encode": [], "decode": []}
    with torch.no_grad():
        made = model.compress(x)
        for _ in range(rounds):
            started = time.process_time()
            made = model.compress(x)
            found["encode"].append(time.process_time() - started)
            started = time.process_time()
            model.decompress(made["strings"], made["shape"])
            found["decode"].append(time.process_time() - started)
    return found


def _measured(python: str, side: str, name: str, size: tuple[int, int], rounds: int) -> Any:
    command = [python, "-m", "tests.perf.codecs", side, name, *map(str, size), str(rounds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(quick: bool = False) -> list[Measurement]:
    """Measure every codec and its peer, one after the other."""
    size, rounds = (QUICK_SIZE, 1) if quick else (SIZE, 3)
    python = os.environ.get("AIGI_COMPRESSAI")
    if python is None and importlib.util.find_spec("compressai") is not None:
        python = sys.executable
    if python is None:
        print("codecs: no peer: set AIGI_COMPRESSAI to the Python of its environment", flush=True)
    found, peers = [], dict[str, Any]()
    for name, peer_name in PEERS.items():
        ours = _measured(sys.executable, "ours", name, size, rounds)
        if python is not None and peer_name not in peers:
            # One round of the autoregressive one takes a minute.
            peer_rounds = 1 if peer_name.startswith("cheng") else rounds
            peers[peer_name] = _measured(python, "peer", peer_name, size, peer_rounds)
        peer = peers.get(peer_name)
        detail = {"ours": ours, "peer": peer, "size": size}
        for what in ("encode", "decode"):
            found.append(
                Measurement(
                    what=f"{name}: {what} {size[0]}x{size[1]}; {peer_name}",
                    unit="s",
                    ours=statistics.median(ours[what]),
                    peer=statistics.median(peer[what]) if peer else None,
                    detail=detail,
                )
            )
            share = ours[f"{what}_share"]
            found.append(
                Measurement(
                    what=f"{name}: entropy coding's share of {what}",
                    unit="",
                    ours=share,
                    target=f"at most {TARGET_SHARE:g}",
                    met=share <= TARGET_SHARE,
                )
            )
        found.append(
            Measurement(
                what=f"{name}: peak memory",
                unit="GiB",
                ours=ours["peak_gib"],
                peer=peer["peak_gib"] if peer else None,
            )
        )
    return found


def main() -> None:
    """Measure one codec, and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "peer"])
    parser.add_argument("name")
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("rounds", type=int)
    given = parser.parse_args()
    measure = _ours if given.side == "ours" else _peer
    found = measure(given.name, given.width, given.height, given.rounds)
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(json.dumps(found))


if __name__ == "__main__":
    main()
