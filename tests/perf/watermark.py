"""A 1024x1024 picture in, pictures/s of embedding and reading a message on one core out.

The peer is the invisible-watermark package, with the same message; its pictures and bits are
compared with ours. The clock counts seconds of the processor, whatever else the machine does.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pipeline.marks.dwt_dct import BITS, READ, message_bits
from pipeline.marks.names import EMBED
from pipeline.pixels import RGB
from tests.perf.report import Measurement

TARGET = 5.0
SIDE, QUICK_SIDE = 1024, 512
ROUNDS, QUICK_ROUNDS = 7, 3
METHODS = {"dwt-dct": "dwtDct", "dwt-dct-svd": "dwtDctSvd"}


def photo_like(side: int) -> RGB:
    """Smooth colours under a little noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int64)
    noisy: RGB = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _package(rgb: RGB, method: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Embedding and reading by the package, on the picture in its own layout."""
    import cv2
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    cv2.setNumThreads(1)
    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bits", BITS)
    encoder.set_watermark("bits", message_bits().tolist())
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    marked = encoder.encode(bgr, method)
    return lambda: encoder.encode(bgr, method), lambda: decoder.decode(marked, method)


def run(quick: bool = False) -> list[Measurement]:
    """Let both sides take turns.

    Raises:
        RuntimeError: the two sides made different pictures or read different bits.
    """
    side, rounds = (QUICK_SIDE, QUICK_ROUNDS) if quick else (SIDE, ROUNDS)
    rgb = photo_like(side)
    installed = importlib.util.find_spec("imwatermark") is not None
    if not installed:
        print("watermark: no peer: pip install invisible-watermark", flush=True)
    found = []
    for name, method in METHODS.items():
        marked = EMBED[name](rgb)
        peers = _package(rgb, method) if installed else (None, None)
        works: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {
            "embed": (partial(EMBED[name], rgb), peers[0]),
            "read": (partial(READ[name], marked), peers[1]),
        }
        if peers[0] and not np.array_equal(marked, peers[0]()[..., ::-1]):
            raise RuntimeError(f"watermark: {name}: our pixels differ from the package's")
        if peers[1] and not np.array_equal(READ[name](marked) * 255 > 127, peers[1]()):
            raise RuntimeError(f"watermark: {name}: our bits differ from the package's")
        for what, (ours, peer) in works.items():
            ours()
            seconds: dict[str, list[float]] = {"ours": [], "package": []}
            for _ in range(rounds):
                seconds["ours"].append(_seconds(ours))
                if peer:
                    seconds["package"].append(_seconds(peer))
            rate = 1 / statistics.median(seconds["ours"])
            peer_rate = 1 / statistics.median(seconds["package"]) if peer else None
            found.append(
                Measurement(
                    what=f"{what} {name}, {side}x{side}, over the invisible-watermark package",
                    unit="pictures/s",
                    ours=rate,
                    peer=peer_rate,
                    target=f"ratio of at least {TARGET:g}" if what == "embed" else "",
                    met=rate / peer_rate >= TARGET if peer_rate and what == "embed" else None,
                    detail={"rounds": rounds, "seconds": seconds},
                )
            )
    return found
