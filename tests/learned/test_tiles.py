"""Large pictures: tiles leave no seams and bound the memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.learned.bitstream import Area, Header, areas, unpack
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import PARTS, Network
from pipeline.learned.sizes import NETWORKS
from pipeline.learned.tiles import around, cut, within
from tests.conftest import ROOT
from tests.learned.conftest import SMALL, fill, pictures, ready, small, tensor, text_of


def tiled(name: str, tile: int) -> LearnedCodec:
    made = LearnedCodec(ready(name).network, "cpu", tile=tile)
    made.text = ready(name).text
    return made


def _header(width: int, height: int, tile: int) -> Header:
    return Header("any", bytes(4), 1, width, height, tile, "")


def _reach(network: Network) -> int:
    """Pixels beyond the edges of two tiles that the transforms are seen to look at."""
    around = network.halo + 64
    left, right = around, around + 128
    text = text_of(network, ["a boat"])
    text = None if text is None else text.to("cpu", torch.float32)
    x = torch.rand(1, 3, 64, right + around, requires_grad=True)
    y_bar = torch.randn(1, network.sizes.m, 4, x.shape[3] // 16, requires_grad=True)
    network.g_a(x, text)[..., left // 16 : right // 16].square().sum().backward()
    network.g_s(y_bar, text)[..., left:right].square().sum().backward()
    found = 0
    for given, stride in ((x, 1), (y_bar, 16)):
        assert given.grad is not None
        seen = stride * given.grad.abs().amax((0, 1, 2)).nonzero()[:, 0]
        found = max(found, left - int(seen[0]), int(seen[-1]) + stride - right)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_the_halo_is_as_wide_as_the_transforms_reach(name: str) -> None:
    network = small(name).eval()
    reach = _reach(network)
    assert reach <= network.halo
    if hasattr(PARTS[network.sizes.kind], "reach"):
        # What is told is what is found, but that a latent is 16 pixels wide.
        told = PARTS[network.sizes.kind].reach(network.sizes)
        assert reach - 16 < told <= reach


@pytest.mark.parametrize(
    ("name", "change", "least"),
    [("tcm", {"depth": 4}, 192), ("catc-light-no-text", {"blocks": [2, 4, 6]}, 64)],
)
def test_deeper_networks_have_a_wider_halo(
    name: str, change: dict[str, object], least: int
) -> None:
    sizes = NETWORKS[name].model_dump() | SMALL[name] | change
    deep = fill(Network(**sizes), 0).eval()
    assert deep.halo > small(name).halo >= least
    assert _reach(deep) <= deep.halo


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("tcm", "elic")])
def test_transforms_of_tiles_are_those_of_the_whole(name: str) -> None:
    """With the halo a tile sees all that it would see in the whole picture."""
    whole = ready(name)
    x = tensor(pictures(1, 384, 512, seed=2)[0])
    text = whole._features("a boat")
    y = whole.network.analyse(x, text)
    for place in areas(512, 384, 128):
        outer = around(place, Area(0, 384, 0, 512), whole.network.halo)
        part = whole.network.analyse(cut(x, outer, 1).contiguous(), text)
        inside = cut(part, within(place, outer), 16)
        torch.testing.assert_close(inside, cut(y, place, 16), rtol=1e-3, atol=1e-3)
    y_bar = torch.round(y)
    first, second = (whole._synthesise(y_bar, text, _header(512, 384, t)) for t in (0, 128))
    assert np.abs(first.astype(int) - second).max() <= 1


@pytest.mark.parametrize("name", ["mean-scale", "catc"])
def test_without_the_halo_there_would_be_seams(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ready(name)
    text = whole._features("a boat")
    y_bar = torch.round(whole.network.analyse(tensor(pictures(1, 256, 256)[0]), text))
    expected = whole._synthesise(y_bar, text, _header(256, 256, 0)).astype(int)
    monkeypatch.setattr(Network, "halo", 0)
    seams = np.abs(whole._synthesise(y_bar, text, _header(256, 256, 128)) - expected)
    assert seams[:, 120:136].max() > 3


@pytest.mark.parametrize(("name", "height"), [("tcm", 64), ("elic", 128)])
def test_tiles_that_see_far_leave_no_seams(name: str, height: int) -> None:
    whole = ready(name)
    x = tensor(pictures(1, height, 640, seed=2)[0])
    y = whole.network.analyse(x, None)
    for place in areas(640, height, 64):
        outer = around(place, Area(0, height, 0, 640), whole.network.halo)
        part = whole.network.analyse(cut(x, outer, 1).contiguous(), None)
        inside = cut(part, within(place, outer), 16)
        torch.testing.assert_close(inside, cut(y, place, 16), rtol=1e-3, atol=1e-3)
    y_bar = torch.round(y)
    first, second = (whole._synthesise(y_bar, None, _header(640, height, t)) for t in (0, 64))
    assert np.abs(first.astype(int) - second).max() <= 1


@pytest.mark.parametrize("name", ["hyperprior", "catc-small", "elic"])
def test_a_tiled_picture_comes_back(name: str) -> None:
    (picture,) = pictures(1, 200, 333)
    encoded = tiled(name, 128).encode_and_reconstruct(picture, "a boat")
    header, tiles = unpack(encoded.data)
    assert (header.tile, len(tiles)) == (128, 6)
    # The side stands in the file: a codec with another one reads it.
    assert np.array_equal(ready(name).decode(encoded.data), encoded.reconstruction)
    one = ready(name).encode_and_reconstruct(picture, "a boat")
    assert len(encoded.data) < 1.2 * len(one.data)
    if name == "hyperprior":
        # Only the entropy model sees the borders, and here it moves no mean: the latents are equal.
        assert np.abs(encoded.reconstruction.astype(int) - one.reconstruction).max() <= 1


def test_pictures_of_the_published_sets_are_one_tile() -> None:
    choose = ready("mean-scale")._tile
    for size in ((512, 512), (1280, 1280), (2048, 1024), (2112, 960), (1536, 1536)):
        assert choose(*size) == 0
    for size in ((1537, 1536), (4096, 4096), (100_000, 64)):
        assert choose(*size) == 1024
        assert all(p.bottom - p.top <= 1024 for p in areas(*size, 1024))


def test_the_halo_stays_inside_the_picture() -> None:
    outer = around(Area(0, 64, 64, 128), Area(0, 64, 0, 256), 128)
    assert outer == Area(0, 64, 0, 256)
    assert within(Area(0, 64, 64, 128), outer) == Area(0, 64, 64, 128)


LARGE = """
import resource, sys
import numpy as np
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import PARTS, Network
from pipeline.learned.sizes import NETWORKS
from pipeline.learned.sizes import NETWORKS
from tests.learned.conftest import TEXT, fill, pictures
sizes = NETWORKS[sys.argv[1]].model_dump() | {"text": TEXT}
codec = LearnedCodec(fill(Network(**sizes), 0), "cpu")
side = int(sys.argv[2])
coarse = pictures(1, 64, 64)[0]
picture = np.tile(coarse, (side // 64, side // 64, 1))
data = codec.encode(picture, "a boat")
print("encoded", len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)
assert codec.decode(data).shape == picture.shape
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_4096_by_4096_takes_less_than_6_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE, "catc-small", "4096"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split("PEAK")[1]) < 6, done.stdout
