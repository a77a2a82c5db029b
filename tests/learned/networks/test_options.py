"""Options of CATC: off they change no older codec, on they code, learn and hear the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.network import Network
from pipeline.learned.networks.catc import Asking
from pipeline.learned.sizes import NETWORKS, parse
from pipeline.training.initial import begin, step_of
from tests.learned.conftest import SMALL, fill, pictures, small, tensor, text_of

OPTIONS: list[dict[str, Any]] = [
    {"hyper_text": True},
    {"states": 2},
    {"hyper_text": True, "states": 2},
]
FINGERPRINTS = {
    "hyperprior": "be1c5ca364bf7831",
    "mean-scale": "adf26c555f17766b",
    "catc": "ffcf120fd2549f99",
    "catc-small": "57925e662b91ce50",
    "catc-no-text": "de914ca642105b55",
}
"""Of `small` networks, as they were before there were options: files that they coded are read."""


def _with(change: dict[str, Any], name: str = "catc-small") -> Network:
    return fill(Network(**NETWORKS[name].model_dump() | SMALL[name] | change), 0)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_older_codecs_keep_their_fingerprint(name: str) -> None:
    assert small(name).fingerprint().hex()[:16] == FINGERPRINTS[name]


def test_options_that_are_off_are_not_written() -> None:
    written = NETWORKS["catc"].model_dump(mode="json")
    assert not {"hyper_text", "states"} & set(written)
    assert parse(written | {"hyper_text": False, "states": 1}) == NETWORKS["catc"]
    on = parse(written | OPTIONS[2])
    assert on.model_dump().items() >= OPTIONS[2].items()
    assert parse(json.loads(on.model_dump_json())) == on


def test_options_are_part_of_the_fingerprint() -> None:
    found = {_with(change).fingerprint() for change in [{}, *OPTIONS]}
    assert len(found) == 4


def test_hyper_transforms_hear_text_only_where_there_is_some() -> None:
    with pytest.raises(AigiError, match="hyper_text needs text"):
        parse(NETWORKS["catc-no-text"].model_dump() | {"hyper_text": True})
    with pytest.raises(AigiError, match="states"):
        parse(NETWORKS["catc"].model_dump() | {"states": 3})
    _with({"states": 2}, "catc-small-no-text")


@pytest.mark.parametrize("change", OPTIONS)
def test_a_codec_with_options_comes_back(change: dict[str, Any], tmp_path: Path) -> None:
    network = _with(change)
    network.save_pretrained(tmp_path)
    (picture,) = pictures(1, 64, 100)
    coded = LearnedCodec(network, "cpu").encode_and_reconstruct(picture, "a boat")
    again = load(tmp_path, device="cpu")
    assert again.network.sizes == network.sizes
    assert np.array_equal(again.decode(coded.data), coded.reconstruction)


@pytest.mark.parametrize("change", OPTIONS)
def test_all_of_it_learns_from_a_transform_on(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = NETWORKS["catc-small"].model_dump() | SMALL["catc-small"] | {"n": 16, "m": 30}
    network = Network(**sizes | change)
    begin(network, step_of(0.01))
    network.train()
    x = tensor(pictures(1)[0])
    boat, house = (text_of(network, [p]).to("cpu", torch.float32) for p in ("a boat", "a house"))
    network.eval()
    with torch.no_grad():
        assert all(map(torch.equal, network(x, boat), network(x, house))), "silent at first"
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    still: set[str] = set(dict(network.named_parameters()))
    for _ in range(3):
        output = network(x, boat)
        (output.bits() / 4096 + 650 * (output.x_hat - x).square().mean()).backward()
        optimizer.step()
        still -= {
            name
            for name, value in network.named_parameters()
            if value.grad is not None and value.grad.any()
        }
        optimizer.zero_grad()
    assert still == {"prior.median"}


def test_text_reaches_z_and_its_synthesis() -> None:
    network = _with({"hyper_text": True, "states": 2}).eval()
    assert len([part for part in network.modules() if isinstance(part, Asking)]) == 3
    y = torch.randn(1, network.sizes.m, 4, 4)
    z_hat = torch.randn(1, network.sizes.n, 1, 1)
    boat, house = (text_of(network, [p]).to("cpu", torch.float32) for p in ("a boat", "a house"))
    told: dict[str, list[torch.Tensor]] = {"boat": [], "house": []}
    with torch.no_grad():
        assert not torch.equal(network.h_a(y, boat), network.h_a(y, house))
        network.entropy.text.silence()
        network.entropy.scale_asking.text.silence()
        for name, text in (("boat", boat), ("house", house)):

            def step(part: slice, mean: torch.Tensor, scale: torch.Tensor, **_: Any) -> Any:
                told[name].append(mean)  # noqa: B023
                return y[:, part]

            network.entropy(z_hat, text, step)
    assert not torch.equal(told["boat"][0], told["house"][0])


def test_means_and_scales_have_a_state_of_their_own() -> None:
    network = _with({"states": 2}, "catc-small-no-text").eval()
    y = torch.randn(1, network.sizes.m, 4, 4)
    z_hat = torch.randn(1, network.sizes.n, 1, 1)

    def told() -> tuple[torch.Tensor, torch.Tensor]:
        means, scales = [], []

        def step(part: slice, mean: torch.Tensor, scale: torch.Tensor, **_: Any) -> Any:
            means.append(mean)
            scales.append(scale)
            return y[:, part]

        with torch.no_grad():
            network.entropy(z_hat, None, step)
        return torch.cat(means, 1), torch.cat(scales, 1)

    first_means, first_scales = told()
    depth = network.entropy.depth
    with torch.no_grad():
        network.entropy.scale_gru.candidate.bias += 1
    means, scales = told()
    assert torch.equal(means, first_means)
    assert torch.equal(scales[:, :depth], first_scales[:, :depth]), "the first slice is told by z"
    assert not torch.equal(scales[:, depth:], first_scales[:, depth:])
