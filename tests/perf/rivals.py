"""Names of networks in; their weights, work and seconds beside published ones out, as Markdown.

OMP_NUM_THREADS=1 python -m tests.perf.rivals [NAME …] [--width 768 --height 512]

The weights are random and one thread works; the clock counts seconds of the processor, whatever
else the machine does. Work is counted by torch's FlopCounterMode: of both transforms, both
hyper-transforms and the entropy model once, so of the encoder and the decoder together.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.sizes import NETWORKS
from pipeline.markdown import Safe, table
from tests.learned.conftest import TEXT, pictures

PUBLISHED: dict[str, tuple[float, float | None]] = {
    "tcm-small": (44.97, None),
    "tcm": (75.89, 701 / 0.393216),
    "elic": (33.79, 332 / 0.393216),
}
"""Millions of weights, and thousands of multiplications a pixel.

Weights of TCM: Liu 2023; of ELIC: CompressAI's elic2022-chandelier. Work: the table of LALIC
(Feng 2025), in GFLOPs for 768x512, which count a multiplication and its addition once.
"""


def work(name: str, height: int = 512, width: int = 768) -> tuple[int, float]:
    """Weights of a network, and multiplications a pixel; nothing is computed."""
    sizes = NETWORKS[name]
    with torch.device("meta"):
        network = Network(**sizes.model_dump()).eval()
        x = torch.empty(1, 3, height, width)
        text = None
        if sizes.text is not None:
            text = Text(torch.empty(1, 16, sizes.text.width), torch.ones(1, 16, dtype=torch.bool))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        y = network.g_a(x, text)
        z = network.h_a(y, text)

        def step(part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None) -> Tensor:
            return mean

        network.g_s(network.entropy(z, text, step), text)
    count = sum(value.numel() for value in network.parameters())
    return count, counter.get_total_flops() / 2 / (height * width)


def seconds(name: str, height: int, width: int) -> tuple[float, float]:
    """Seconds of the processor to code and to decode an image, at random weights."""
    torch.manual_seed(0)
    sizes = NETWORKS[name].model_dump()
    if sizes["text"] is not None:
        sizes["text"] = TEXT
    network = Network(**sizes)
    network.update()
    codec = LearnedCodec(network, "cpu")
    codec.decode(codec.encode(pictures(1, 64, 64)[0], "a boat"))  # both warm
    (picture,) = pictures(1, height, width)
    started = time.process_time()
    data = codec.encode(picture, "a boat")
    coded = time.process_time()
    codec.decode(data)
    return coded - started, time.process_time() - coded


def main() -> None:
    """Measure some networks, one after the other, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["tcm-small", "tcm-medium", "tcm", "elic"])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.names:
        weights, kilo = PUBLISHED.get(name, (None, None))
        count, each = work(name)
        encode, decode = seconds(name, given.height, given.width)
        cells = (
            f"`{name}`",
            f"{count / 1e6:.2f}",
            "" if weights is None else f"{weights:.2f}",
            f"{each / 1000:,.0f}",
            "" if kilo is None else f"{kilo:,.0f}",
            f"{encode:.1f}",
            f"{decode:.1f}",
        )
        rows.append([Safe(cell) for cell in cells])
        print(" ".join(cells), flush=True)
    headings = ("network", "M weights", "published", "kMAC a pixel", "published", "encode, s")
    print("\n".join(table([*map(Safe, headings), Safe("decode, s")], rows, right=6)))


if __name__ == "__main__":
    main()
