"""The name of a device in (auto, cpu, cuda, cuda:N, mps), a checked `torch.device` out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline import AigiError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` is the first CUDA device, else the CPU.

    Raises:
        AigiError: another name, or a device that this machine does not have.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise AigiError(f"device: {name}: expected auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise AigiError(
                f"device: {name}: torch sees {count} CUDA devices here. Set device: auto or cpu, "
                "or install a torch built for this machine's driver."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise AigiError("device: mps: not available here. Set device: auto or cpu.")
    return device


def device_name(device: torch.device) -> str:
    """What to write down about a device: the model of a CUDA device, else its type."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
