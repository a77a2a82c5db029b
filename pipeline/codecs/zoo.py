"""Names of CompressAI's pretrained networks in, codecs of the benchmark out.

CompressAI wants numpy < 2, so an environment of its own (`pip install 'aigi[compressai]'`). It has
no file format: the strings of its entropy coder and the size of the image are packed here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.codecs.command import CodecFailed, Missing
from pipeline.pixels import RGB

HINT = "Install it in an environment of its own: pip install 'aigi[compressai]'."
STRIDE = 64
_HEAD = struct.Struct("<HHHHB")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class ZooCodec:
    """A pretrained network of CompressAI, ready to code.

    Attributes:
        loaded: digest of its weights.
    """

    network: Any
    device: Any
    loaded: Mapping[str, str] = field(default_factory=dict)

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """Sizes of a uint8 H x W x 3 image and its latents, then each string behind its length."""
        import torch

        height, width = image.shape[:2]
        more = (-height % STRIDE, -width % STRIDE)
        whole = np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        x = torch.from_numpy(whole).permute(2, 0, 1)[None].float().div(255).to(self.device)
        with torch.inference_mode():
            made = self.network.compress(x)
        strings = [part[0] for part in made["strings"]]
        packed = [_HEAD.pack(width, height, *made["shape"], len(strings))]
        for string in strings:
            packed += [_LENGTH.pack(len(string)), string]
        return b"".join(packed)

    def decode(self, data: bytes) -> RGB:
        """The image (uint8, H x W x 3); values are rounded.

        Raises:
            CodecFailed: the bytes are cut short, or more than a file.
        """
        import torch

        try:
            width, height, *shape, count = _HEAD.unpack_from(data)
            at, strings = _HEAD.size, []
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                strings.append([data[at : at + length]])
                at += length
        except struct.error:
            raise CodecFailed("compressai: damaged file") from None
        if at != len(data) or not width or not height:
            raise CodecFailed("compressai: damaged file")
        with torch.inference_mode():
            x_hat = self.network.decompress(strings, shape)["x_hat"][0].permute(1, 2, 0)
        pixels = torch.round(x_hat.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
        return np.ascontiguousarray(pixels[:height, :width])


def zoo(model: str, quality: float, device: str) -> ZooCodec:
    """Load a network; its weights are downloaded by CompressAI on first use.

    Raises:
        Missing: CompressAI is not installed.
        CodecFailed: it has no such network or quality, or cannot load the weights.
    """
    try:
        from compressai.zoo import image_models
    except ImportError:
        raise Missing(f"compressai is not installed. {HINT}") from None
    from pipeline.models.device import pick_device
    from pipeline.models.weights import Part, digest

    if model not in image_models:
        raise CodecFailed(f"compressai: no network {model!r}; there are {', '.join(image_models)}")
    place = pick_device(device)
    try:
        network = image_models[model](quality=round(quality), pretrained=True).eval()
        network.update()
        weights = digest(Part("codec", f"compressai {model}"), network)
        network = network.to(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise CodecFailed(f"compressai: {model} at quality {quality:g}: {error}") from error
    return ZooCodec(network, place, {"network": weights})


def version() -> str:
    """CompressAI and its version.

    Raises:
        Missing: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return f"compressai {of('compressai')}"
    except PackageNotFoundError:
        raise Missing(f"compressai is not installed. {HINT}") from None
