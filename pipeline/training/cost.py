"""The `train` section in, the operations that its training takes out: its hours.

The network goes forwards and backwards once, with the smallest crop, and torch counts the products
and sums of its convolutions and matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.training.settings import Train, at_step

TOKENS = 16
"""Of a prompt, for the cross-attention; it takes a few per cent."""


@dataclass(frozen=True)
class Cost:
    """What the training of all codecs of a section takes.

    Attributes:
        codecs: how many.
        crops: of all steps of one codec.
        flops: operations of all codecs: a product and its sum are two. Those of the frozen text
            encoder, the optimiser and validation are not in it; they are few.
    """

    codecs: int
    crops: int
    flops: float

    def hours(self, tflops: float) -> float:
        """Hours of one processor that sustains so many TFLOP/s."""
        return self.flops / (tflops * 1e12) / 3600


def cost(settings: Train, processes: int = 1) -> Cost:
    """Count the operations of a training.

    Args:
        processes: that share each step.

    Raises:
        AigiError: there is no such network, its λ do not fit, or processes cannot share a step.
    """
    from pipeline.training.fit import codecs_of
    from pipeline.training.trainer import sizes_of

    codecs = len(codecs_of(settings, sizes_of(settings)))
    late = settings.late_crops
    switch = settings.steps if late is None else at_step(late.after, settings.steps)
    crops, flops = 0, 0.0
    for first, steps in ((0, switch), (switch, settings.steps - switch)):
        if steps > 0:
            size, count = settings.crops_at(first, processes)
            many = steps * count * settings.accumulate * processes
            crops += many
            flops += many * flops_of_crop(settings, size)
    return Cost(codecs, crops, codecs * flops)


def flops_of_crop(settings: Train, size: int) -> float:
    """Operations of a crop of size x size pixels, forwards and backwards."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.learned.bitstream import STRIDE
    from pipeline.learned.network import Network
    from pipeline.learned.networks.layers import Text
    from pipeline.training.trainer import sizes_of

    sizes = sizes_of(settings)
    network = Network(**sizes.model_dump()).train()
    text = None
    if sizes.text is not None:
        there = torch.ones(1, TOKENS, dtype=torch.bool)
        text = Text(torch.zeros(1, TOKENS, sizes.text.width), there)
    with FlopCounterMode(display=False) as counter:
        output = network(torch.zeros(1, 3, STRIDE, STRIDE), text)
        (output.x_hat.sum() + output.bits()).backward()
    # Convolutions and windows take the same for every part of a crop.
    return float(counter.get_total_flops()) * (size / STRIDE) ** 2
