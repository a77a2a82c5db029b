"""Entropy models and the range coder: exact tables, exact symbols, honest estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.learned import coding
from pipeline.learned.coding import _snapped
from pipeline.learned.entropy import Conditional, Factorized, gaussian_likelihood
from pipeline.learned.range_coder import RangeReader, RangeWriter, read_scaled, write_scaled
from pipeline.learned.tables import (
    BORDERS,
    MOST,
    PRECISION,
    SCALES,
    Code,
    _normal_cdf,
    gaussian_codes,
    integer_table,
    mixture_codes,
    range_model,
)

WHOLE = 1 << PRECISION


def test_the_normal_distribution_is_right() -> None:
    x = np.linspace(-9, 0, 2001)
    expected = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    assert np.allclose(_normal_cdf(x), expected, rtol=0, atol=1e-14)
    assert _normal_cdf(np.array([-50.0]))[0] == pytest.approx(0, abs=1e-14)


def test_gaussian_tables_are_integers_of_the_right_size() -> None:
    assert SCALES[0] == 0.11 and SCALES[-1] == pytest.approx(256, rel=1e-11)
    for scale, code in zip(SCALES, gaussian_codes(), strict=True):
        table, reach = code.table, code.reach
        assert table.sum() == WHOLE and table.min() >= 1 and len(table) == 2 * reach + 2
        inside = table[: 2 * reach + 1]
        assert (inside != inside[::-1]).sum() <= 2, "symmetric, but for what is left over"
        assert reach >= 5.5 * scale
        symbols = np.arange(-reach, reach + 1)
        exact = [
            0.5 * (math.erf((s + 0.5) / scale / 2**0.5) - math.erf((s - 0.5) / scale / 2**0.5))
            for s in symbols
        ]
        # Each rounds down and has at least 1; the commonest takes the rest.
        assert np.abs(table[:-1] / WHOLE - exact).max() < (2 * reach + 3) / WHOLE


@cache
def fitted() -> Conditional:
    """Tables of symbols that are twice as near to 0 as their scales have it."""
    random = np.random.default_rng(5)
    scales = np.repeat(SCALES, 20_000)
    symbols = torch.from_numpy(np.round(random.normal(0, scales / 2)))
    conditional = Conditional(tail=True)
    conditional.fit(conditional.count(symbols, torch.from_numpy(scales)))
    return conditional


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=300).filter(lambda p: sum(p) > 0),
    st.floats(0, 0.1),
)
def test_integer_tables_add_up(weights: list[float], escape: float) -> None:
    probabilities = np.array(weights) / sum(weights) * (1 - escape)
    table = integer_table(probabilities, escape)
    assert len(table) == len(weights) + 1
    assert table.sum() == WHOLE and table.min() >= 1


def test_the_coder_takes_the_tables_as_they_are() -> None:
    # The state of a stack coder shows frequency f and start c of a symbol:
    # it goes from s to (s // f) * 2^24 + c + s % f.
    random = np.random.default_rng(0)
    for table in (gaussian_codes()[20].table, integer_table(random.dirichlet(np.ones(40)), 1e-4)):
        model, starts = range_model(table), np.concatenate([[0], np.cumsum(table)])
        for symbol in range(len(table)):
            state = (1 << 33) + 12345
            coder: Any = constriction.stream.stack.AnsCoder(
                np.array([state & 0xFFFFFFFF, state >> 32], np.uint32)
            )
            coder.encode_reverse(np.array([symbol], np.int32), model)
            found = sum(int(word) << 32 * i for i, word in enumerate(coder.get_compressed()))
            frequency, rest = int(table[symbol]), state
            if rest >> 40 >= frequency:  # the coder first moves a word out
                continue
            expected = (rest // frequency << PRECISION) + int(starts[symbol]) + rest % frequency
            assert found == expected


CODES: dict[str, Callable[[], list[Code]]] = {
    "gaussian": gaussian_codes,
    "mixture": mixture_codes,
    "fitted": lambda: fitted().codes(),
}


@pytest.mark.parametrize("kind", CODES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_symbols_come_back(kind: str, data: st.DataObject) -> None:
    codes = CODES[kind]()
    count = data.draw(st.integers(0, 200))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    indices = random.integers(0, len(SCALES), count).astype(np.uint8)
    spread = data.draw(st.sampled_from([0.5, 1.0, 10.0, 1e6]))
    symbols = np.clip(np.round(random.normal(0, 1, count) * SCALES[indices] * spread), -MOST, MOST)
    writer = RangeWriter()
    write_scaled(writer, symbols.astype(np.int64), indices, codes)
    reader = RangeReader(writer.bytes())
    assert np.array_equal(read_scaled(reader, indices, codes), symbols)


def test_golden_words() -> None:
    # A change here makes every file that was ever written unreadable.
    random = np.random.default_rng(7)
    indices = random.integers(0, len(SCALES), 64).astype(np.uint8)
    symbols = random.integers(-9, 10, 64)
    writer = RangeWriter()
    write_scaled(writer, symbols, indices, gaussian_codes())
    assert writer.bytes().hex() == GOLDEN


GOLDEN = (
    "ffffff00027ffc80ffffff8002bffc5ffd7fe0012ffe7fffff7ff0014ffb0fd138e0cd9d5f06f9b5592bfff4"
    "da8b24fffa6d8b24ff26ae58a7f9c844c38e7498a49009f56aff8eaca37f54fee0f66cca22b43bc85298a69d"
    "47f6192389f2a64586a83e73"
)


def test_real_bits_are_the_estimated_ones() -> None:
    random = np.random.default_rng(1)
    scales = np.exp(random.uniform(np.log(0.11), np.log(60), 100_000))
    y = random.normal(0, scales)
    likelihoods = gaussian_likelihood(torch.from_numpy(np.round(y)), torch.from_numpy(scales))
    writer = RangeWriter()
    indices = np.searchsorted(BORDERS, scales).astype(np.uint8)
    write_scaled(writer, np.round(y).astype(np.int64), indices, gaussian_codes())
    estimated = float(-likelihoods.log2().sum())
    assert 8 * len(writer.bytes()) == pytest.approx(estimated, rel=0.003)


def test_gaussian_likelihoods_add_up_to_one() -> None:
    y = torch.arange(-400, 401, dtype=torch.float64)
    for scale in (0.11, 0.7, 5.0, 40.0):
        found = gaussian_likelihood(y - 0.3, torch.full_like(y, scale))
        assert float(found.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_tail_has_a_cost_and_a_gradient_wherever_a_symbol_lies(kind: torch.dtype) -> None:
    distance = torch.tensor([3.0, 30.0, 300.0, 32767.0, 1e15], dtype=kind, requires_grad=True)
    for least in (1e-6, 1.0, 20.0):
        scale = torch.full_like(distance, least, requires_grad=True)
        bits = -gaussian_likelihood(distance, scale, tail=True).log2()
        assert bits.isfinite().all() and float(bits[2].detach()) < 30
        bits.sum().backward()  # type: ignore[no-untyped-call]
        assert distance.grad is not None and scale.grad is not None
        assert (distance.grad > 0).all(), "towards the mean"
        assert (scale.grad[2:] < 0).all(), "towards a larger scale"
        distance.grad = None


def test_likelihoods_with_a_tail_add_up_to_one_and_cost_little_where_there_is_none() -> None:
    y = torch.arange(-40_000, 40_001, dtype=torch.float64)
    for scale in (0.11, 0.7, 5.0, 40.0):
        for mean in (0.0, 0.3):
            plain, found = (
                gaussian_likelihood(y - mean, torch.full_like(y, scale), tail)
                for tail in (False, True)
            )
            assert float(found.sum()) == pytest.approx(1, abs=3e-4)
            near = plain > 1e-8  # else it is the least likelihood
            assert float((plain * (plain / found).log2())[near].sum()) < 0.0015, "bits a symbol"


def test_snapping() -> None:
    mean = torch.tensor([0.1, -0.1, 1e9, 0.0019], dtype=torch.float64)
    scale = torch.tensor([-5.0, 0.11, 1e9, float(SCALES[10]) * 1.01], dtype=torch.float64)
    steps, indices = _snapped(mean, scale)
    assert steps.tolist() == [26, -26, MOST * 256, 0]
    assert indices.tolist() == [0, 0, 63, 10]
    with pytest.raises(ValueError, match="float64"):
        _snapped(mean.float(), scale.float())
    with pytest.raises(Exception, match="damaged"):
        _snapped(mean / 0, scale)


def factorized(seed: int = 0, tail: bool = False) -> Factorized:
    torch.manual_seed(seed)
    prior = Factorized(5, tail)
    with torch.no_grad():
        for name, value in prior.named_parameters():
            if name == "median":
                value.copy_(torch.randn(5))
            else:
                value.add_(torch.randn_like(value) * 0.3)
    return prior


@pytest.mark.parametrize("tail", [False, True])
def test_the_factorized_prior_is_a_distribution(tail: bool) -> None:
    prior = factorized(tail=tail).double()
    z = torch.arange(-3000, 3001, dtype=torch.float64).expand(1, 5, 1, -1)
    sums = prior.likelihood(z).sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


def test_the_factorized_prior_has_a_tail_with_a_gradient() -> None:
    z = torch.full((1, 5, 1, 1), 3e4, requires_grad=True)
    bits = -factorized(tail=True).likelihood(z).log2().sum()
    bits.backward()  # type: ignore[no-untyped-call]
    assert float(bits.detach()) / 5 < 42 and z.grad is not None and (z.grad > 0).all()


def test_the_median_is_learned_alone() -> None:
    prior = factorized()
    prior.aux_loss().backward()  # type: ignore[no-untyped-call]
    grads = {name: value.grad for name, value in prior.named_parameters()}
    assert grads.pop("median") is not None and set(grads.values()) == {None}
    optimiser = torch.optim.Adam([prior.median], 0.1)
    for _ in range(400):
        optimiser.zero_grad()
        prior.aux_loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    half = torch.sigmoid(prior._logits(prior.median[:, None, None]))
    torch.testing.assert_close(half, torch.full_like(half, 0.5), atol=0.03, rtol=0)


@pytest.mark.parametrize("tail", [False, True])
def test_z_comes_back_and_costs_what_was_estimated(tail: bool) -> None:
    prior = factorized(tail=tail).eval()
    prior.update()
    assert prior.ready()
    z = torch.randn(1, 5, 40, 50) * 6
    z[0, 0, 0, 0] = 500.0  # far outside the table
    if tail:
        z[0, 1, :20, 0] = torch.linspace(-32_000, 32_000, 20)
    z_hat, likelihoods = prior(z)
    write = coding.Write(torch.zeros(1, 1, 1, 1))
    written = write.z(z, prior)
    torch.testing.assert_close(written.float(), z_hat)
    read = coding.Read(write.bytes())
    assert torch.equal(read.z(40, 50, prior), written)
    bits = float(-likelihoods.detach().log2().sum())
    assert 8 * len(write.writer.bytes()) == pytest.approx(bits, rel=0.01)


def test_training_sees_noise_and_a_gradient() -> None:
    y = torch.full((1, 1, 1, 20_000), 0.3, requires_grad=True)
    mean, scale = torch.tensor(0.1), torch.tensor(1.0)
    step = coding.Estimate(y, training=True)
    y_hat = step(slice(None), mean.expand_as(y), scale.expand_as(y))
    assert torch.allclose(y_hat, torch.tensor(0.1)), "rounded around the mean"
    y_hat.sum().backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None and (y.grad == 1).all(), "straight through"
    noisy = step.likelihoods[0]
    assert float(noisy.std().detach()) > 0.01
    step = coding.Estimate(y, training=False)
    step(slice(None), mean.expand_as(y), scale.expand_as(y))
    assert float(step.likelihoods[0].std().detach()) < 1e-6
