"""What one setting of threads, kernels and memory layout writes, every other one decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import Network
from pipeline.learned.range_coder import DamagedStream
from pipeline.learned.sizes import NETWORKS
from pipeline.pixels import RGB
from tests.learned.conftest import TEXT, fill, pictures, small


class Setting(NamedTuple):
    """How the arithmetic is done."""

    threads: int
    mkldnn: bool
    channels_last: bool


WIDE = ("catc-small", "catc-light")
SETTINGS = [Setting(*each) for each in product((1, 2), (True, False), (False, True))]
PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("boat", "tree", "")]


@contextmanager
def set_to(setting: Setting) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with torch.backends.mkldnn.flags(enabled=setting.mkldnn):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def codec(name: str, channels_last: bool) -> LearnedCodec:
    """Two have their published width: long sums are what differs. The others are small."""
    if name in WIDE:
        network = fill(Network(**NETWORKS[name].model_dump() | {"text": TEXT}), 0)
    else:
        network = small(name)
    made = LearnedCodec(network, "cpu")
    if channels_last:
        made.network.to(memory_format=torch.channels_last)
    return made


def write(name: str, setting: Setting, picture: RGB, prompt: str) -> tuple[bytes, RGB]:
    made = codec(name, setting.channels_last)
    with set_to(setting):
        _forget(made)
        encoded = made.encode_and_reconstruct(picture, prompt)
    return encoded.data, encoded.reconstruction


def read(name: str, setting: Setting, data: bytes) -> RGB:
    made = codec(name, setting.channels_last)
    with set_to(setting):
        _forget(made)
        return made.decode(data)


def _forget(made: LearnedCodec) -> None:
    """Let the text encoder say it again, with the setting of the moment."""
    if made.text is not None:
        made.text._cache.clear()


def exchange(name: str, picture: RGB, number: int, readers: int) -> None:
    """One setting writes, `readers` others decode; which ones goes round with the number."""
    count = len(SETTINGS)
    data, expected = write(name, SETTINGS[number % count], picture, PROMPTS[number % len(PROMPTS)])
    for step in range(1, readers + 1):
        other = SETTINGS[(number + step * (1 + number // count % (count - 1))) % count]
        decoded = read(name, other, data)  # DamagedStream if one latent differs
        assert np.abs(decoded.astype(int) - expected).max() <= 1, "more than rounding of float32"


COUNTS = {
    "hyperprior": 12, "mean-scale": 12, "catc": 4, "catc-small": 8, "catc-light": 4, "tcm": 2,
    "elic": 2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_every_setting_decodes_what_another_wrote(name: str, count: int) -> None:
    for number, picture in enumerate(pictures(count, 64, 128, seed=5)):
        exchange(name, picture, number, readers=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_every_setting_decodes_504_pictures(name: str) -> None:
    """504 pictures, 63 of them by each setting; each is decoded by two others."""
    for number, picture in enumerate(pictures(504, 128, 128, seed=6)):
        exchange(name, picture, number, readers=2)


def test_the_settings_do_differ() -> None:
    """In float32 what the entropy model says is not equal, so the tests above compare something."""
    made = codec("catc-small", False)
    (picture,) = pictures(1, 128, 192)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    text = None if made.text is None else made.text(["a boat"])
    found = []
    for setting in (SETTINGS[0], Setting(2, False, False)):
        with set_to(setting):
            found.append(made.network.analyse(x, text))
    assert not torch.equal(*found)


def test_a_latent_that_differs_is_an_error_and_never_a_picture() -> None:
    """A decoder whose arithmetic is another one says so, however little it differs."""
    made = LearnedCodec(small("catc"), "cpu")
    (picture,) = pictures(1, 64, 128)
    data = made.encode(picture, "a boat")
    made.decode(data)
    with torch.no_grad():
        made.network.entropy.e[-1][-1].bias[0] += 1 / 256  # a mean of the last slice: one step
    with pytest.raises(DamagedStream, match="do not match their checksum"):
        made.decode(data)
