"""Two pictures in, their perceptual distance out: LPIPS by AlexNet (Zhang 2018, version 0.1).

The network and the weights of its layers come with the torchmetrics package, which would download
AlexNet itself as pickled data; here its weights are a file of this machine, and nothing in it runs.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from pipeline import AigiError
from pipeline.clip import file_sha256
from pipeline.device import pick_device
from pipeline.pixels import RGB

SECTION = "benchmark.lpips"
LEAST_SIDE = 31
"""Pixels a side below which AlexNet's layers have nothing left to look at."""


def identity(file: str) -> str:
    """sha256 of the weight file.

    Raises:
        AigiError: there is none.
    """
    if not os.path.isfile(file):
        raise AigiError(
            f"{SECTION}: {file}: no such file on this machine. Give torchvision's weights of "
            "AlexNet (alexnet-owt-7be5be79.pth, or the same as safetensors)."
        )
    return file_sha256(file)


def check() -> None:
    """Refuse early.

    Raises:
        AigiError: the package is not installed.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise AigiError(f"{SECTION}: pip install 'aigi[metrics]'")


class Lpips:
    """A loaded network.

    Args:
        file: torchvision's state of AlexNet: `.safetensors`, or tensors that torch has saved.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: the package is not installed; no such file, or it holds something else.
    """

    def __init__(self, file: str, device: str = "auto") -> None:
        check()
        identity(file)
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from torchmetrics.functional.image.lpips import _LPIPS

        self.device = pick_device(device)
        network = _LPIPS(net="alex", pnet_rand=True)
        try:
            state = (
                load_file(file)
                if file.endswith(".safetensors")
                else torch.load(file, map_location="cpu", weights_only=True)
            )
            # slice2.3.weight there is features.3.weight here.
            found = {
                name: state[f"features.{name.split('.', 1)[1]}"]
                for name in network.net.state_dict()
            }
            network.net.load_state_dict(found)
        except Exception as error:  # a file from anywhere may break its reader in any way
            kind = "safetensors" if isinstance(error, SafetensorError) else type(error).__name__
            raise AigiError(
                f"{SECTION}: {file}: not torchvision's weights of AlexNet as plain tensors "
                f"({kind}: {str(error).strip().splitlines()[0]}). Get alexnet-owt-7be5be79.pth."
            ) from error
        self.network = network.eval().requires_grad_(False).to(self.device)

    def __call__(self, one: RGB, other: RGB) -> float | None:
        """0 for equal pictures, rarely above 1; None below `LEAST_SIDE` pixels a side.

        Args:
            one, other: uint8, H x W x 3, of one size.
        """
        import torch

        if min(one.shape[:2]) < LEAST_SIDE:
            return None
        with torch.inference_mode():
            x, y = (
                torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
                .to(self.device)
                .float()
                / 127.5
                - 1
                for picture in (one, other)
            )
            return float(self.network(x, y))
