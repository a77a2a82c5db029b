"""A trained network and images in, tables of its own out: fitted to the symbols that it codes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.learned.bitstream import padded
from pipeline.learned.entropy import Conditional
from pipeline.learned.network import Network
from pipeline.learned.text import TextEncoder
from pipeline.pixels import RGB

MOST_SIDE = 1024
"""Of an image: what is beyond is left out."""


class Count:
    """y in, y_hat out, as `Step` has it: how often each symbol of each table comes is counted.

    Args:
        y: float32, B x M x H x W, any finite values.
        conditional: the distributions of y.

    Attributes:
        counts: int64, shape (T,), from 0, as `Conditional.fit` takes them.
    """

    def __init__(self, y: Tensor, conditional: Conditional) -> None:
        self.y, self.conditional = y, conditional
        self.counts = conditional.count(torch.zeros(0), torch.zeros(0))

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        symbols = torch.round(self.y[:, part] - mean)
        y_hat = symbols + mean
        if where is None:
            self.counts += self.conditional.count(symbols, scale)
            return y_hat
        self.counts += self.conditional.count(symbols[..., where], scale[..., where])
        return y_hat.where(where, 0)


@torch.no_grad()
def fit(
    network: Network, images: Iterable[tuple[RGB, str]], text: TextEncoder | None = None
) -> int:
    """Give a network tables that are fitted to images, at all of its qualities.

    They are made of its weights as they are: whoever rounds those does so before.

    Args:
        network: trained, with a tail, and not frozen.
        images: uint8, H x W x 3, each with its prompt.
        text: the encoder of the prompts, for networks with text.

    Returns:
        How many symbols were counted.

    Raises:
        AigiError: there are no images, or the network has no tail.
    """
    name, conditional = network.sizes.name, network.conditional
    if not conditional.tail:
        raise AigiError(
            f"tables: {name} has no tail, so there are none to fit. Leave out the images, or train "
            "a network with tail: power."
        )
    total = None
    before = network.training
    network.eval()
    for image, prompt in images:
        x, features = _input(image), None if text is None else text([prompt])
        for quality in range(1, network.sizes.qualities + 1):
            y = network.analyse(x, features, quality if network.sizes.qualities > 1 else None)
            step = Count(y, conditional)
            z_hat, _ = network.prior(network.h_a(y))
            single = None if features is None else features.to("cpu", torch.float32)
            network.entropy(z_hat, single, step)
            total = step.counts if total is None else total + step.counts
    network.train(before)
    if total is None:
        raise AigiError(f"tables: no images to fit those of {name} to")
    conditional.fit(total)
    return int(total.sum())


def _input(image: RGB) -> Tensor:
    """The middle of an image, filled up to multiples of 64: float32, 1 x 3 x H x W, 0 to 1."""
    height, width = image.shape[:2]
    top, left = max(height - MOST_SIDE, 0) // 2, max(width - MOST_SIDE, 0) // 2
    part = image[top : top + MOST_SIDE, left : left + MOST_SIDE]
    rows, columns = (padded(side) - side for side in part.shape[:2])
    whole = np.pad(part, ((0, rows), (0, columns), (0, 0)), mode="edge")
    return torch.from_numpy(whole).permute(2, 0, 1)[None].float() / 255
