"""Every network: shapes, gradients, sizes, and that the text reaches all that should see it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import AigiError
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import (
    CatBlock,
    CrossAttention,
    Gains,
    Gdn,
    Text,
    WindowAttention,
    lower_bound,
)
from pipeline.learned.sizes import NETWORKS, CatcSizes
from tests.learned.conftest import OTHER_WIDTHS, SMALL, pictures, small, tensor, text_of

WITH_TEXT = [name for name, sizes in NETWORKS.items() if sizes.text is not None]


def test_every_network_is_tested() -> None:
    assert set(SMALL) | set(OTHER_WIDTHS) == set(NETWORKS)
    for name, like in OTHER_WIDTHS.items():
        change = {"name": name, "width": NETWORKS[name].model_dump()["width"]}
        assert NETWORKS[name] == NETWORKS[like].model_copy(update=change)


@pytest.mark.parametrize("name", SMALL)
def test_forward_shapes_and_gradients(name: str) -> None:
    network = small(name).train()
    x = torch.cat([tensor(p) for p in pictures(2, 64, 128)])
    text = text_of(network, ["a red boat on a lake", ""])
    out = network(x, None if text is None else text.to("cpu", torch.float32))
    m, n = network.sizes.m, network.sizes.n
    assert out.x_hat.shape == x.shape
    assert out.y_likelihoods.shape == (2, m, 4, 8)
    assert out.z_likelihoods.shape == (2, n, 1, 2)
    for likelihoods in (out.y_likelihoods, out.z_likelihoods):
        assert bool((likelihoods > 0).all() and (likelihoods <= 1).all())
    (out.bits() / x.numel() + ((out.x_hat - x) ** 2).mean() + network.aux_loss()).backward()
    lost = [
        name
        for name, value in network.named_parameters()
        if value.grad is None or not bool(torch.isfinite(value.grad).all() and value.grad.any())
    ]
    assert not lost


@pytest.mark.parametrize("name", SMALL)
def test_compress_and_decompress_read_alike(name: str) -> None:
    network = small(name).freeze()
    x = tensor(pictures(1, 128, 64)[0])
    text = text_of(network, ["a boat"])
    data = network.compress(x, text)
    x_hat = network.decompress(data, 128, 64, text)
    estimate = network(x, None if text is None else text.to("cpu", torch.float32))
    assert x_hat.shape == x.shape
    # The estimate rounds nothing to a grid, so it is near and not equal.
    assert float((x_hat - estimate.x_hat).abs().mean()) < 0.05
    assert len(data) * 8 == pytest.approx(float(estimate.bits()), rel=0.02, abs=100)


def test_published_sizes() -> None:
    catc, little = NETWORKS["catc"], NETWORKS["catc-small"]
    assert isinstance(catc, CatcSizes) and (catc.n, catc.m, catc.slices) == (128, 320, 5)
    assert catc.text is not None and catc.text.width == 512
    network = Network(**little.model_dump())
    assert sum(value.numel() for value in network.parameters()) <= 5_000_000
    for name in WITH_TEXT:
        assert NETWORKS[f"{name}-no-text"] == NETWORKS[name].model_copy(
            update={"text": None, "name": f"{name}-no-text"}
        )


def test_catc_is_built_as_in_the_figure() -> None:
    with torch.device("meta"):
        network = Network(**NETWORKS["catc"].model_dump())
    for transform in (network.g_a, network.g_s):
        assert isinstance(transform.cat, nn.ModuleList) and len(transform.cat) == 3
        assert all(isinstance(block, CatBlock) and block.has_text for block in transform.cat)
    assert len(network.entropy.e) == len(network.entropy.lrp) == 5
    assert isinstance(network.entropy.text, CrossAttention)
    with torch.device("meta"):
        without = Network(**NETWORKS["catc-no-text"].model_dump())
    assert not any(isinstance(part, CrossAttention) for part in without.modules())


def test_attention_is_the_same_in_training() -> None:
    attention = WindowAttention(8, heads=2)
    torch.nn.init.normal_(attention.bias)
    x = 3 * torch.randn(2, 3, 64, 8)
    with torch.no_grad():
        coding = attention(x)
    torch.testing.assert_close(attention(x), coding)


def test_gains_and_inverses_are_learned_apart() -> None:
    gains = Gains(3, 4)
    for weights in gains.parameters():
        torch.nn.init.normal_(weights)
    y = torch.randn(2, 4, 1, 1)
    quality = torch.tensor([3, 1])
    for how, weights in ((gains.scale, gains.log_gain), (gains.restore, gains.log_inverse)):
        expected = torch.stack([weights[2], weights[0]]).exp()
        torch.testing.assert_close((how(y, quality) / y).flatten(1), expected)


def test_a_quality_between_two_takes_the_geometric_mean_of_their_gains() -> None:
    gains = Gains(3, 4)
    for weights in gains.parameters():
        torch.nn.init.normal_(weights)
    y = torch.rand(3, 4, 2, 2) + 1
    whole = torch.tensor([1, 2, 3])
    for how, weights in ((gains.scale, gains.log_gain), (gains.restore, gains.log_inverse)):
        assert torch.equal(how(y, whole.float()), how(y, whole))
        between = how(y, torch.tensor([1.25, 2.5, 3.0])) / y
        wanted = (
            weights[0] * 0.75 + weights[1] * 0.25,
            (weights[1] + weights[2]) / 2,
            weights[2],
        )
        assert torch.allclose(between[:, :, 0, 0], torch.stack(wanted).exp(), rtol=1e-5)
        # Both neighbours learn.
        (slope,) = torch.autograd.grad(how(y, torch.tensor([1.25] * 3)).sum(), weights)
        assert [bool(row.any()) for row in slope] == [True, True, False]


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_reaches_every_attention(name: str) -> None:
    network = small(name).eval()
    places = [part for part in network.modules() if isinstance(part, CrossAttention)]
    blocks = 1 if network.sizes.kind == "catc-light" else 3
    assert len(places) == 2 * blocks + 1, "blocks of both sides, and the entropy model"
    x = tensor(pictures(1)[0])
    boat, house = (text_of(network, [p]).to("cpu", torch.float32) for p in ("a boat", "a house"))
    with torch.no_grad():
        first, second = network(x, boat), network(x, house)
        assert not torch.equal(first.x_hat, second.x_hat)
        weights = [part.out.weight.clone() for part in places]
        for hearing in places:
            for part, weight in zip(places, weights, strict=True):
                part.out.weight.copy_(weight * (part is hearing))  # the others are deaf
            pairs = zip(network(x, boat), network(x, house), strict=True)
            assert any(not torch.equal(a, b) for a, b in pairs)
            hearing.out.weight.zero_()
            pairs = zip(network(x, boat), network(x, house), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_empty_places_of_a_batch_say_nothing() -> None:
    network = small("catc").eval()
    x = tensor(pictures(1)[0])
    text = text_of(network, ["a boat"]).to("cpu", torch.float32)
    filled = Text(
        torch.cat([text.features, torch.full_like(text.features, 3.0)], 1),
        torch.cat([text.there, torch.zeros_like(text.there)], 1),
    )
    with torch.no_grad():
        for a, b in zip(network(x, text), network(x, filled), strict=True):
            torch.testing.assert_close(a, b)


def test_cat_block_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = CatBlock(8, 6, 2, 2)
    text = Text(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    x = torch.randn(2, 8, 16, 24)
    whole = block(x, text)
    monkeypatch.setattr("pipeline.learned.networks.layers.POSITIONS", 300)
    with torch.no_grad():
        torch.testing.assert_close(block(x, text), whole)
    # A window does not see its neighbours.
    x[:, :, :8, :8] += 1
    moved = (block(x, text) - whole).abs().amax(dim=(0, 1)) > 1e-6
    assert moved[:8, :8].all() and not moved[8:].any() and not moved[:, 8:].any()


def test_gdn_is_its_formula() -> None:
    gdn, inverse = Gdn(3), Gdn(3, inverse=True)
    with torch.no_grad():
        beta, gamma = torch.tensor([1.0, 2.0, 0.5]), torch.rand(3, 3)
        for layer in (gdn, inverse):
            layer.beta.copy_(beta.sqrt())
            layer.gamma.copy_(gamma.sqrt())
        x = torch.randn(1, 3, 2, 2)
        norm = torch.sqrt(beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma, x**2))
        torch.testing.assert_close(gdn(x), x / norm)
        torch.testing.assert_close(inverse(x), x * norm)


def test_lower_bound_leads_back() -> None:
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    bounded = lower_bound(x, 1.0)
    (up,) = torch.autograd.grad(bounded, x, -torch.ones(2), retain_graph=True)
    (down,) = torch.autograd.grad(bounded, x, torch.ones(2))
    assert bounded.tolist() == [1.0, 2.0]
    assert up.tolist() == [-1.0, -1.0], "up is always free"
    assert down.tolist() == [0.0, 1.0], "down is refused below"


@pytest.mark.parametrize("name", ["mean-scale", "catc"])
def test_bfloat16_leaves_likelihoods_in_float32(name: str) -> None:
    network = small(name).train()
    text = text_of(network, ["a boat"])
    text = None if text is None else text.to("cpu", torch.float32)
    x = tensor(pictures(1, 128, 128)[0])
    bits = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(x, text)
        assert out.y_likelihoods.dtype == out.z_likelihoods.dtype == torch.float32
        bits.append(float(out.bits().detach()))
    assert bits[1] == pytest.approx(bits[0], rel=0.03)


def test_it_learns() -> None:
    torch.manual_seed(0)
    network = small("mean-scale").train()
    x = torch.cat([tensor(p) for p in pictures(4)])
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        out = network(x)
        loss = out.bits() / (x.numel() / 3) + 100 * ((out.x_hat - x) ** 2).mean()
        optimiser.zero_grad()
        (loss + network.aux_loss()).backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "vae"}, "kind"),
        ({"n": 10**9}, "n"),
        ({"heads": 7}, "heads"),
        ({"slices": 3}, "slices"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../up"}, "name"),
        ({"text": {"tower": "../up"}}, "tower"),
    ],
)
def test_sizes_are_checked_before_anything_is_built(change: dict[str, object], where: str) -> None:
    with pytest.raises(AigiError, match=where):
        Network(**NETWORKS["catc"].model_dump() | change)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"groups": [16, 16]}, "groups have 32 channels, m is 320"),
        ({"checkered": 6}, "there are 5 groups"),
        ({"widths": [32, 64]}, "widths"),
        ({"widths": [32, 64, 10**9]}, "widths"),
        ({"heads": 3}, "heads"),
        ({"groups": [1] * 320}, "groups"),
    ],
)
def test_sizes_of_a_light_network_are_checked_too(change: dict[str, object], where: str) -> None:
    with pytest.raises(AigiError, match=where):
        Network(**NETWORKS["catc-light"].model_dump() | change)


def test_a_network_without_tables_does_not_code() -> None:
    network = Network(**NETWORKS["mean-scale"].model_dump() | SMALL["mean-scale"])
    with pytest.raises(AigiError, match="update"):
        network.freeze()
    network.update()
    with pytest.raises(ValueError, match="freeze"):
        network.eval().compress(torch.zeros(1, 3, 64, 64))
    network.freeze()
    with pytest.raises(ValueError, match="frozen"):
        network.update()
