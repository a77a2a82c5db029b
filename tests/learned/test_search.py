"""The encoder that searches: cheaper by the true cost, in files that are decoded as ever."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.learned import refine
from pipeline.learned.annealing import Annealer, Draws, Latents, Search
from pipeline.learned.bitstream import Area, unpack
from pipeline.learned.codec import Encoded, LearnedCodec
from pipeline.learned.entropy import Conditional
from pipeline.pixels import RGB
from tests.learned.conftest import pictures, ready, small, tensor


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks of random weights show in some steps what others do in many."""
    monkeypatch.setattr(refine, "EFFORTS", {0: 0, 1: 6, 2: 9})


@cache
def several(name: str = "mean-scale", tile: int | None = None) -> LearnedCodec:
    return LearnedCodec(small(name, qualities=3), "cpu", tile=tile)


def cost(codec: LearnedCodec, image: RGB, coded: Encoded, slope: float) -> float:
    """Bits and what the error is worth, of what an ordinary decoder sees."""
    decoded = codec.decode(coded.data).astype(int)
    tiles = unpack(coded.data)[1]
    return 8 * sum(map(len, tiles)) + slope * float(((decoded - image) ** 2).sum())


@pytest.mark.parametrize("name", ["hyperprior", "catc-small", "catc-light"])
def test_a_search_costs_less_and_is_decoded_as_ever(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks with and without text, and a checkerboard, all of one quality."""
    # Finer steps are no better where weights are random.
    monkeypatch.setattr(refine, "slope_of", lambda *_: 0.002)
    codec = ready(name)
    (image,) = pictures(1, 60, 100)
    usual = codec.encode_and_reconstruct(image, "a boat")
    found = codec.encode_and_reconstruct(image, "a boat", effort=1)
    assert usual.gain is None and found.gain is not None
    assert np.array_equal(codec.decode(found.data), found.reconstruction)
    gain = found.gain
    assert gain.kept and gain.slope is not None and gain.slope > 0
    assert (gain.bytes_before, gain.bytes_after) == (len(usual.data), len(found.data))
    before, after = (cost(codec, image, one, gain.slope) for one in (usual, found))
    assert after < before
    for one, said in ((usual, gain.psnr_before), (found, gain.psnr_after)):
        error = np.mean((one.reconstruction.astype(int) - image) ** 2)
        assert 10 * np.log10(255**2 / error) == pytest.approx(said)
    assert codec.encode(image, "a boat", effort=1) == found.data, "the same draws every time"


def test_tiles_and_their_patches_are_searched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "WHOLE", 64 * 64)
    monkeypatch.setattr(refine, "PATCH", 64)
    codec, heard = several(tile=128), []
    (image,) = pictures(1, 190, 250)
    usual = codec.encode_and_reconstruct(image, quality=1.5)
    found = codec.encode_and_reconstruct(
        image, quality=1.5, effort=1, told=lambda done, total: heard.append((done, total))
    )
    # Four tiles; 3 x 4 patches of 64 pixels.
    assert heard == [(step, 72) for step in range(1, 73)]
    assert found.gain is not None and found.gain.kept and found.gain.slope is not None
    assert np.array_equal(codec.decode(found.data), found.reconstruction)
    assert cost(codec, image, found, found.gain.slope) < 0.999 * cost(
        codec, image, usual, found.gain.slope
    )
    changed = [
        one != other
        for one, other in zip(unpack(usual.data)[1], unpack(found.data)[1], strict=True)
    ]
    assert sum(changed) >= 3


def test_what_costs_more_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = several()
    (image,) = pictures(1)

    def worse(self: Annealer, *given: object) -> object:
        found = search(self, *given)  # type: ignore[arg-type]
        return found._replace(latents=Latents(found.latents.y + 3, found.latents.z))

    search = Annealer.__call__
    monkeypatch.setattr(Annealer, "__call__", worse)
    usual = codec.encode_and_reconstruct(image, quality=2)
    found = codec.encode_and_reconstruct(image, quality=2, effort=1)
    assert found.data == usual.data and np.array_equal(found.reconstruction, usual.reconstruction)
    assert found.gain is not None and not found.gain.kept
    assert found.gain.psnr_before == found.gain.psnr_after


def test_an_image_without_a_slope_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "slope_of", lambda *_: None)
    (image,) = pictures(1)
    found = several().encode_and_reconstruct(image, effort=2)
    assert found.data == several().encode(image)
    assert found.gain is not None and not found.gain.kept and found.gain.slope is None


def test_the_slope_is_that_of_rate_over_error_beside_the_quality(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, float]] = []
    errors = {1.0: 900, 1.5: 800, 2.5: 600, 3.0: 700, 0.8: 90, 1.25: 60}

    def coded_at(_: object, __: object, quality: float, factor: float) -> tuple[int, int]:
        asked.append((quality, factor))
        at = quality if factor == 1 else factor
        return round(1000 * at), errors.get(at, 50)

    monkeypatch.setattr(refine, "_coded_at", coded_at)

    def slope(codec: LearnedCodec, quality: float) -> float | None:
        asked.clear()
        image = refine._Image(codec.network, None, quality, pictures(1)[0], [Area(0, 64, 0, 64)])
        return refine.slope_of(image, [])

    assert slope(several(), 2) == 1000 / 200 and asked == [(1.5, 1), (2.5, 1)]
    assert slope(several(), 1) == 500 / 100 and asked == [(1, 1), (1.5, 1)]
    # Beside the highest quality more bits make it worse, from end to end they do not.
    assert slope(several(), 3) == 2000 / 200 and asked[2:] == [(1, 1), (3, 1)]
    assert slope(ready("mean-scale"), 1) == 450 / 30 and asked == [(1, 0.8), (1, 1.25)]
    errors[1.25] = 95
    errors[0.8**2] = 40
    assert slope(ready("mean-scale"), 1) is None and len(asked) == 4


@pytest.mark.parametrize("name", ["mean-scale", "catc-light"])
def test_latents_are_written_as_they_were_chosen(name: str) -> None:
    """Means in float64 on their grid differ from those of the search; the steps do not."""
    codec = ready(name)
    text = codec._features("a boat")
    (image,) = pictures(1)
    y = codec.network.analyse(tensor(image), text)
    annealer = Annealer(codec.network, text, 1, 0.01, 5)
    _, y_bar = codec.network.write(y, text)
    place = Area(0, 64, 0, 64)
    start = Latents(y, codec.network.hyper(y, text))
    found = annealer(255 * tensor(image), place, y_bar, place, start, place)
    data, written = codec.network.write(found.latents.y, text, found.latents.z)
    # A latent on the next step would differ by 1.
    assert float((written - found.y_bar).abs().max()) < 0.05
    assert 8 * len(data) == pytest.approx(float(found.bits), rel=0.02, abs=160)
    assert not torch.equal(torch.round(start.z), torch.round(found.latents.z)) or not torch.equal(
        written, y_bar
    )


def test_draws_are_whole_steps_when_cold_and_leave_others_alone() -> None:
    distance = torch.linspace(-2, 2, 4000).view(1, 1, 40, 100).requires_grad_(True)
    free = torch.zeros(40, 100, dtype=torch.bool)
    free[20:] = True
    draws = Draws(0, distance.device)
    assert torch.equal(draws(distance, free), torch.round(distance))
    draws.temperature = 0.01
    drawn = draws(distance, free)
    assert torch.equal(drawn[..., :20, :], torch.round(distance[..., :20, :]))
    cold = drawn[..., 20:, :].detach()
    assert float((cold - cold.round()).abs().mean()) < 0.01
    assert float((cold - distance[..., 20:, :]).detach().abs().max()) <= 1.01
    draws.temperature = 0.5
    warm = draws(distance, free)
    near = torch.round(distance)
    assert 0.02 < float(((warm - near).abs() > 0.5)[..., 20:, :].float().mean()) < 0.4
    (slope,) = torch.autograd.grad(warm.sum(), distance)
    assert not slope[..., :20, :].any() and float(slope[..., 20:, :].mean()) > 0.1
    assert not torch.equal(draws(distance, free), warm), "fresh draws at every step"


def test_a_part_may_be_coded_in_two_passes() -> None:
    """The steps, bits and latents of two passes over a checkerboard are those of one."""
    y = torch.randn(1, 4, 8, 8) * 3
    mean, scale = torch.randn(1, 4, 8, 8), torch.rand(1, 4, 8, 8) + 0.5
    free = torch.ones(8, 8, dtype=torch.bool)
    first = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    whole, halves = (Search(y, Draws(0, y.device), free, Conditional()) for _ in range(2))
    y_hat = whole(slice(0, 4), mean, scale)
    one, other = (halves(slice(0, 4), mean, scale, where) for where in (first, ~first))
    assert not one[..., ~first].any() and torch.equal(one + other, y_hat)
    assert torch.equal(halves.y_hat, whole.y_hat) and torch.equal(whole.y_hat, y_hat)
    torch.testing.assert_close(halves.bits, whole.bits)


def test_only_known_efforts() -> None:
    for effort in (-1, 3):
        with pytest.raises(AigiError, match=rf"effort: {effort}: expected one of 0, 1, 2"):
            several().encode(pictures(1)[0], effort=effort)
