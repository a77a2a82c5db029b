"""Images in, bytes and speed of the containers that a run may store them in, beside PNG's, out.

Real images where the folder of real input is beside the checkout: crops that never were a JPEG. And
images of the embedded model. One thread, processor time, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.pixels import RGB, Container, contained, decode, named, pixels_sha256, stored
from tests.perf.report import Measurement

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "aigi"
KINDS = {
    "PNG": Container("png"),
    "WebP of generated images": Container("webp", method=1),
    "WebP of imports": Container("webp", method=0),
}
# 50 steps with guidance and the VAE are 83 TFLOP for the 512 x 512 pixels of SD 2.1-base
# (manifests/pku-aigi-500k.yaml), more a pixel for the other sources.
PEAK_TFLOPS = 989
"""bfloat16 of an H100, without sparsity: what no device of that kind exceeds."""
DEVICE = 512 * 512 / 1e6 / ((2 * 50 * 0.804 + 2.515) / PEAK_TFLOPS)
"""The most megapixels a second that such a device could make of the five published sources."""


def _real(count: int) -> list[RGB]:
    found = [file.read_bytes() for file in sorted(REAL.glob("*_n.webp"))]
    # Others beside them are JPEGs of before.
    lossless = [data for data in found if data[12:16] == b"VP8L"]
    return [decode(data, 1 << 24).rgb for data in lossless[:: max(1, len(lossless) // count)]]


def _generated(count: int) -> list[RGB]:
    from pipeline.demo import MODELS
    from pipeline.images.diffusion.diffuser import Diffuser
    from pipeline.images.diffusion.source import DiffusersSource
    from pipeline.plan.specification import DiffusersSpec, SplitSpec
    from tests.perf import bare

    spec = DiffusersSpec(
        title="t", licence="l", kind="diffusers", pipeline="sd", model="aigi/tiny-sd",
        revision="v1", scheduler="ddim", steps=10, guidance_scale=3.0,
        splits={"train": SplitSpec(count=1, width=128, height=128)},
    )  # fmt: skip
    source = DiffusersSource(folder=str(MODELS / "sd"), batch_size=4)
    rows = [
        {"text": text, "seed": seed, "steps": 10, "guidance_scale": 3.0, "negative_prompt": "",
         "width": 128, "height": 128}
        for seed, text in enumerate(bare.sentences(count))
    ]  # fmt: skip
    made = Diffuser("bench", spec, source, "cpu").generate(rows)
    return [one.rgb for one in made if one.rgb is not None]


def _sets(quick: bool) -> Iterator[tuple[str, list[RGB]]]:
    if REAL.is_dir():
        yield "real", _real(4 if quick else 31)
    yield "the embedded model's", _generated(2 if quick else 16)


def run(quick: bool = False) -> list[Measurement]:
    """Encode and decode each set in each container, and compare.

    Raises:
        RuntimeError: a container lost a pixel.
    """
    found = []
    for title, images in _sets(quick):
        megapixels = sum(image[..., 0].size for image in images) / 1e6
        bits: dict[str, float] = {}
        encode: dict[str, list[float]] = {kind: [] for kind in KINDS}
        read: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(1 if quick else 5):
            for kind, container in KINDS.items():
                started = time.thread_time()
                files = [contained(image, container) for image in images]
                middle = time.thread_time()
                again = [stored(named("a", file), 1 << 24) for file in files]
                encode[kind].append(megapixels / (middle - started))
                read[kind].append(megapixels / (time.thread_time() - middle))
                bits[kind] = 8 * sum(map(len, files)) / megapixels / 1e6
                if list(map(pixels_sha256, again)) != list(map(pixels_sha256, images)):
                    raise RuntimeError(f"{kind}: other pixels")
        rates = {"encode": encode, "decode": read}
        for kind in list(KINDS)[1:] if title == "real" else ["WebP of generated images"]:
            what = f"{kind}, {title} ({len(images)} of {megapixels:.1f} Mpixel); PNG (fast)"
            found.append(
                Measurement(
                    what=what,
                    unit="bits/pixel",
                    ours=bits[kind],
                    peer=bits["PNG"],
                    target="ratio below 1",
                    met=bits[kind] < bits["PNG"],
                )
            )
            for step, of in rates.items():
                ours, peer = (statistics.median(of[name]) for name in (kind, "PNG"))
                ahead = step == "encode" and kind == "WebP of generated images"
                found.append(
                    Measurement(
                        what=f"{step}: {what}",
                        unit="Mpixel/s",
                        ours=ours,
                        peer=peer,
                        target=f"at least {DEVICE:.2g}, the peak of an H100" if ahead else "",
                        met=ours >= DEVICE if ahead else None,
                        detail={"rounds": {name: of[name] for name in (kind, "PNG")}},
                    )
                )
    return found
