"""CompressAI's networks with random weights: their strings become bytes, and pictures again."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.command import CodecFailed, Missing
from pipeline.codecs.table import opened, row_of
from pipeline.codecs.zoo import ZooCodec
from tests.codecs.test_contract import picture

NETWORKS = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean"]


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_hold_all_that_decoding_needs(name: str) -> None:
    zoo = pytest.importorskip("compressai.zoo", reason="wants an environment of its own")
    import torch

    torch.manual_seed(0)
    network = zoo.image_models[name](quality=1, pretrained=False).eval()
    network.update(force=True)
    codec = ZooCodec(network, "cpu")
    for height, width in ((1, 1), (33, 70)):
        image = picture(height, width)
        data = codec.encode(image)
        more = ((0, -height % 64), (0, -width % 64), (0, 0))
        x = torch.from_numpy(np.pad(image, more, mode="edge")).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            made = network.compress(x)
            x_hat = network.decompress(made["strings"], made["shape"])["x_hat"][0]
        expected = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert (codec.decode(data) == expected[:height, :width]).all()
        with pytest.raises(CodecFailed, match="damaged"):
            codec.decode(data + b"x")


def test_bytes_that_are_cut_short_are_damaged() -> None:
    head = b"\x08\0\x08\0\x01\0\x01\0\x02"  # 8x8 pixels, two strings
    for data in (b"", head[:-1], head, head + b"\x01\0\0\0x", head + b"\xff" * 4):
        with pytest.raises(CodecFailed, match="compressai: damaged file"):
            ZooCodec(None, "cpu").decode(data)


def test_without_compressai_it_is_missing() -> None:
    if importlib.util.find_spec("compressai") is not None:
        pytest.skip("compressai is installed")
    given = CodecSettings(codec="compressai", models=("mbt2018-mean",))
    with pytest.raises(Missing, match=r"pip install 'aigi\[compressai\]'"):
        row_of(given).version(given, Here())
    with pytest.raises(Missing, match="compressai is not installed"):
        opened(given, 3, Here())
