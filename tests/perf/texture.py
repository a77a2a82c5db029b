"""A 1024x1024 picture in, its texture on one core beside scikit-image's out.

Both make the matrices of four angles at 256 levels and seven properties; what they find is
compared. The clock counts seconds of the processor, whatever else the machine does.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from pipeline.analysis.texture import PROPERTIES, cooccurrences, properties
from tests.perf.report import Measurement
from tests.perf.watermark import photo_like

TARGET = 3.0
SIDE, QUICK_SIDE = 1024, 512
ROUNDS, QUICK_ROUNDS = 15, 5
ANGLES = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def run(quick: bool = False) -> list[Measurement]:
    """Let both sides take turns.

    Raises:
        RuntimeError: the two sides found different textures.
    """
    side, rounds = (QUICK_SIDE, QUICK_ROUNDS) if quick else (SIDE, ROUNDS)
    grey = np.array(Image.fromarray(photo_like(side)).convert("L"))
    installed = importlib.util.find_spec("skimage") is not None
    if not installed:
        print("texture: no peer: pip install scikit-image", flush=True)

    def ours() -> list[Any]:
        found = properties(cooccurrences(grey, [1], ANGLES))
        return [found[name] for name in PROPERTIES]

    def peer() -> list[Any]:
        from skimage.feature import graycomatrix, graycoprops

        shares = graycomatrix(grey, [1], ANGLES, 256, symmetric=True, normed=True)
        return [graycoprops(shares, "ASM" if n == "asm" else n) for n in PROPERTIES]

    ours()
    seconds: dict[str, list[float]] = {"ours": [], "scikit-image": []}
    if installed:
        peer()
    for _ in range(rounds):
        took, mine = _seconds(ours)
        seconds["ours"].append(took)
        if installed:
            took, theirs = _seconds(peer)
            seconds["scikit-image"].append(took)
            theirs[-1] = theirs[-1] / math.log(2)  # nats
            if not all(np.allclose(a, b) for a, b in zip(mine, theirs, strict=True)):
                raise RuntimeError("texture: our properties differ from scikit-image's")
    rate = 1 / statistics.median(seconds["ours"])
    peer_rate = 1 / statistics.median(seconds["scikit-image"]) if installed else None
    return [
        Measurement(
            what=f"GLCM of four angles and seven properties, {side}x{side}, over scikit-image",
            unit="pictures/s",
            ours=rate,
            peer=peer_rate,
            target=f"ratio of at least {TARGET:g}",
            met=rate / peer_rate >= TARGET if peer_rate else None,
            detail={"rounds": rounds, "seconds": seconds},
        )
    ]
