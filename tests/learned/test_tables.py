"""Tables of mixtures: exact integers, cheap escapes, and fitted ones that lose nowhere."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.learned.coding import Estimate
from pipeline.learned.entropy import Conditional, gaussian_likelihood
from pipeline.learned.range_coder import (
    DamagedStream,
    RangeReader,
    RangeWriter,
    read_scaled,
    write_scaled,
)
from pipeline.learned.tables import (
    BORDERS,
    LEAST_TAIL_WIDTH,
    MOST,
    PRECISION,
    SCALES,
    TAIL_SHARE,
    TAIL_WIDTH,
    Code,
    Ints,
    doublings,
    fitted,
    folded,
    halved,
    kinds,
    mixture_codes,
    octaves,
    sound,
    unfolded,
)

WHOLE = 1 << PRECISION


def beyond(x: float, scale: float) -> float:
    """Probability of the mixture from x > 0 upwards, in closed form."""
    width = TAIL_WIDTH * scale + LEAST_TAIL_WIDTH
    normal, tail = 0.5 * math.erfc(x / scale / 2**0.5), 0.5 * width / (width + x)
    return (1 - TAIL_SHARE) * normal + TAIL_SHARE * tail


def test_tables_of_mixtures_are_integers_of_the_right_size() -> None:
    for scale, code in zip(SCALES, mixture_codes(), strict=True):
        assert sound(code) and code.reach >= 5.5 * scale
        count = octaves(code.reach, code.octave)
        assert len(code.table) == 2 * code.reach + 1 + count
        first = code.reach + code.octave * (2 ** np.arange(count + 1) - 1)
        assert first[-2] < MOST <= first[-1], "the last octave leads to the last symbol"
        borders = np.append(np.arange(code.reach) + 0.5, first[:-1] + 0.5)
        left = np.array([beyond(float(border), float(scale)) for border in borders] + [0.0])
        expected = np.concatenate(
            [[1 - 2 * left[0]], -np.diff(left[: code.reach + 1]), -2 * np.diff(left[code.reach :])]
        )
        off = np.abs(folded(code) / WHOLE - expected)
        # Each rounds down and has at least 1; the commonest takes the rest.
        assert (off[1:] < (1 + len(code.table) * expected[1:]) / WHOLE + 1e-12).all()
        assert off[0] < len(code.table) / WHOLE
        assert (unfolded(folded(code), code.reach, code.octave).table == code.table).all()


def test_golden_tables_and_words() -> None:
    # A change here makes every file of a codec with a tail unreadable.
    codes = mixture_codes()
    whole = np.concatenate([code.table for code in codes]).astype("<i4")
    assert (len(whole), zlib.crc32(whole.tobytes())) == GOLDEN_TABLES
    random = np.random.default_rng(7)
    indices = random.integers(0, len(SCALES), 64).astype(np.uint8)
    symbols = random.integers(-9, 10, 64) * 10 ** random.integers(0, 4, 64)
    writer = RangeWriter()
    write_scaled(writer, symbols, indices, codes)
    assert writer.bytes().hex() == GOLDEN


GOLDEN_TABLES = (25259, 2920172367)
GOLDEN = (
    "ffffe906fdd3ce7d6b2ded5a053c4ed3a044c95a2ac804f643bc823212fc671f1edf39950b916dd23ba86b12"
    "f99823aaded608c5ce2a54f9ddc336c9ff6316b4ffe74ce2bfffc9f6c9529b26f381d8de66f6c5f00d56469e"
    "4fb8686391cbb136e319c1a0ca92bd54c09ba0fc8059260163f25f1deb8c3dc519e6099dfe0b512fba0365b5"
    "5f7b1528f2453022f1d640b929fff8e58fe2133f"
)


@pytest.mark.parametrize("index", [0, 7, 30, 63])
def test_every_symbol_comes_back(index: int) -> None:
    code = mixture_codes()[index]
    symbols = np.arange(-MOST, MOST + 1)
    writer = RangeWriter()
    writer.write(symbols, code)
    assert np.array_equal(RangeReader(writer.bytes()).read(len(symbols), code), symbols)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), count=st.integers(1, 300), seed=st.integers(0, 99))
def test_any_bytes_are_symbols_or_damaged(data: bytes, count: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, len(SCALES), count).astype(np.uint8)
    try:
        symbols = read_scaled(RangeReader(data), indices, mixture_codes())
    except DamagedStream:
        return
    assert symbols.shape == (count,) and np.abs(symbols).max() <= 2 * (MOST + 1) + 1410


def test_doublings_are_those_of_integers() -> None:
    numbers = np.arange(1, 1 << 17)
    assert np.array_equal(doublings(numbers), [int(n).bit_length() - 1 for n in numbers])


def _far_out(random: np.random.Generator, count: int, share: float) -> tuple[Ints, torch.Tensor]:
    """Symbols of any scale, a share of them anywhere, near as likely as far; and the scales."""
    scales = np.exp(random.uniform(np.log(0.11), np.log(60), count))
    symbols = np.round(random.normal(0, scales))
    far = random.random(count) < share
    out = np.exp(random.uniform(0, np.log(MOST), count)) * random.choice([-1, 1], count)
    return np.where(far, np.round(out), symbols).astype(np.int64), torch.from_numpy(scales)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
def test_real_bits_are_the_estimated_ones_however_many_escape(share: float) -> None:
    symbols, scales = _far_out(np.random.default_rng(1), 60_000, share)
    found = gaussian_likelihood(torch.from_numpy(symbols).double(), scales, tail=True)
    indices = np.searchsorted(BORDERS, scales.numpy()).astype(np.uint8)
    writer = RangeWriter()
    write_scaled(writer, symbols, indices, mixture_codes())
    estimated = float(-found.log2().sum())
    assert 8 * len(writer.bytes()) == pytest.approx(estimated, rel=0.005)


@settings(max_examples=50, deadline=None)
@given(left=st.integers(9, WHOLE - 129), reach=st.just(64), octave=st.just(64))
def test_octaves_halve_what_is_left(left: int, reach: int, octave: int) -> None:
    table = np.append(np.ones(2 * reach + 1, np.int64), left)
    code = halved(table, reach, octave)
    outside = code.table[2 * reach + 1 :]
    assert len(outside) == octaves(reach, octave) == 9
    assert outside.sum() == left and outside.min() >= 1
    assert (np.diff(outside) <= 0).all() and outside[0] <= left // 2 + 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_counts_make_a_table_that_codes(data: st.DataObject) -> None:
    prior = mixture_codes()[data.draw(st.integers(0, 40))]
    seen = data.draw(st.dictionaries(st.integers(0, kinds(prior) - 1), st.integers(0, 10**12)))
    counts = np.zeros(kinds(prior), np.int64)
    for place, count in seen.items():
        counts[place] = count
    code = fitted(counts, prior)
    assert sound(code) and len(code.table) == len(prior.table)
    inside = code.table[: 2 * code.reach + 1]
    assert (inside == inside[::-1]).all()


def _bits(counts: Ints, code: Code) -> float:
    return float((counts * (PRECISION - np.log2(folded(code)))).sum())


def test_a_fitted_table_gains_and_rare_symbols_lose_nothing() -> None:
    prior = mixture_codes()[16]
    random = np.random.default_rng(3)
    drawn = [
        np.bincount(
            np.abs(np.round(random.laplace(0, 0.5, count))).astype(np.int64), minlength=kinds(prior)
        )
        for count in (20_000, 20_000)
    ]
    code = fitted(drawn[0], prior)
    assert _bits(drawn[1], code) < 0.985 * _bits(drawn[1], prior), "on symbols that it has not seen"
    rare = drawn[0] < 64
    assert rare.any() and (folded(code)[rare] > 0.97 * folded(prior)[rare] - 1).all()
    nothing = fitted(np.zeros(kinds(prior), np.int64), prior)
    assert np.abs(folded(nothing) - folded(prior)).max() <= len(prior.table), "the mixture's"


def test_counts_are_those_of_the_coded_symbols() -> None:
    symbols, scales = _far_out(np.random.default_rng(2), 20_000, 0.1)
    conditional = Conditional(tail=True)
    counts = conditional.count(torch.from_numpy(symbols).double(), scales)
    assert counts.sum() == len(symbols)
    indices, start = np.searchsorted(BORDERS, scales.numpy()), 0
    for index, code in enumerate(mixture_codes()):
        mine = np.abs(symbols[indices == index])
        for distance in range(code.reach + 1):
            assert counts[start + distance] == (mine == distance).sum()
        first = code.reach
        for number in range(octaves(code.reach, code.octave)):
            last = first + (code.octave << number)
            place = start + code.reach + 1 + number
            assert counts[place] == ((mine > first) & (mine <= last)).sum()
            first = last
        start += kinds(code)


def test_estimates_by_fitted_tables_are_the_real_bits() -> None:
    symbols, scales = _far_out(np.random.default_rng(4), 40_000, 0.01)
    conditional = Conditional(tail=True)
    conditional.fit(conditional.count(torch.zeros(40_000), scales))
    assert conditional.ready()
    y = torch.from_numpy(symbols).double()[None, None, None]
    step = Estimate(y, training=False, conditional=conditional)
    step(slice(None), torch.zeros_like(y), scales.expand_as(y))
    writer = RangeWriter()
    indices = np.searchsorted(BORDERS, scales.numpy()).astype(np.uint8)
    write_scaled(writer, symbols, indices, conditional.codes())
    estimated = float(-step.likelihoods[0].log2().sum())
    assert 8 * len(writer.bytes()) == pytest.approx(estimated, rel=0.001)
    plain = float(-gaussian_likelihood(y, scales.expand_as(y), tail=True).log2().sum())
    assert abs(estimated / plain - 1) > 0.01, "the mixture would not have said so"
