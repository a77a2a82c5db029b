"""Coded tiles of an image in, tiles that cost less out, or the same: the search by its true cost.

`annealing` finds latents by the network's own estimates. Here they are coded for good, and kept
where bits of the file + slope * squared error of the decoded 8-bit pixels became less. So a search
never makes it worse.

Networks do not store what an error is worth (their lambda). It is the slope of rate over error of
this very image: the image is coded half a quality below and above, both for good. A network of one
quality has none beside it; its latents are coded a fifth smaller and a quarter larger instead. At
the quality of a trained network both are lambda, but for the image's own part.

Large tiles are searched in patches of 512x512 pixels, one after the other, so that gradients need
1 to 2 GB at most. On a CPU the result is a function of the image, the settings and the thread
count; gradients on a GPU may differ in their last digits from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.learned.annealing import Annealer, Latents
from pipeline.learned.bitstream import STRIDE, Area
from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.tiles import Y_STRIDE, around, cut, eight_bits, within
from pipeline.pixels import decibels, squared_error

EFFORTS = {0: 0, 1: 15, 2: 60}
"""Steps of the gradient at each effort."""
PATCH, WHOLE = 512, 768 * 768
"""Side of a patch in pixels; and how many pixels a tile has at most that is searched at once."""
MARGIN, JUDGED = 64, 32
"""Pixels around a patch that its search sees, and in which errors count; more than g_s reaches,
but for some of the last."""
BESIDE = 0.5
"""Qualities to the neighbours whose rate and error give the slope."""
SMALLER, LARGER = 0.8, 1.25
"""Factors of the latents that stand in for the neighbours of a network of one quality."""
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Gain:
    """What a search came to.

    Attributes:
        steps: of the gradient, for each latent.
        kept: whether it made something better.
        bytes_before, bytes_after: of the whole file.
        psnr_before, psnr_after: of the decoded image, in dB.
        slope: bits that a squared error of 1 (of 255) was worth; None: the image has none.
    """

    steps: int
    kept: bool
    psnr_before: float
    psnr_after: float
    slope: float | None
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True, eq=False)
class _Image:
    """What is coded, and with what.

    Attributes:
        pixels: uint8, H x W x 3.
        places: its tiles.
    """

    network: Network
    text: Text | None
    quality: float
    pixels: npt.NDArray[np.uint8]
    places: list[Area]

    @property
    def bounds(self) -> Area:
        return Area(0, self.places[-1].bottom, 0, self.places[-1].right)

    def clipped(self, area: Area) -> npt.NDArray[np.uint8]:
        return self.pixels[area.top : area.bottom, area.left : area.right]

    def error(self, y_bar: Tensor, area: Area, quality: float | None = None) -> int:
        """Squared error of the decoded pixels in an area, exact."""
        outer = around(area, self.bounds, self.network.halo)
        part = cut(y_bar, outer, Y_STRIDE).contiguous()
        x_hat = self.network.synthesise(part, self.text, quality or self.quality)
        found = eight_bits(cut(x_hat, within(area, outer), 1)).cpu().numpy()
        wanted = self.clipped(area)
        return squared_error(found[: wanted.shape[0], : wanted.shape[1]], wanted)

    def errors(self, y_bar: Tensor, quality: float | None = None) -> int:
        return sum(self.error(y_bar, place, quality) for place in self.places)


def _coded_at(
    image: _Image, latents: list[Tensor], quality: float, factor: float
) -> tuple[int, int]:
    """Bits and squared error of the image at another quality, or with other latents."""
    gains, bits = image.network.gains, 0
    y_bar: Tensor | None = None
    for place, y in zip(image.places, latents, strict=True):
        if gains is not None:
            ones = torch.ones_like(y[:, :, :1, :1])
            now, then = (
                gains.scale(ones, torch.tensor([q], device=y.device))
                for q in (image.quality, quality)
            )
            y = y * (then / now)
        data, part = image.network.write(y * factor, image.text)
        bits += 8 * len(data)
        if y_bar is None:
            shape = (image.bounds.bottom // Y_STRIDE, image.bounds.right // Y_STRIDE)
            y_bar = part.new_empty((1, part.shape[1], *shape))
        cut(y_bar, place, Y_STRIDE).copy_(part / factor)
    assert y_bar is not None
    return bits, image.errors(y_bar, quality)


def slope_of(image: _Image, latents: list[Tensor]) -> float | None:
    """Bits that a squared error of 1 is worth; None where more bits bring no smaller error."""
    quality, most = image.quality, image.network.sizes.qualities
    if most > 1:
        beside = [
            (max(quality - width, 1), min(quality + width, most), 1.0, 1.0)
            for width in (BESIDE, most)
        ]
    else:
        beside = [(quality, quality, SMALLER**power, LARGER**power) for power in (1, 2)]
    for low, high, smaller, larger in beside:
        less, worse = _coded_at(image, latents, low, smaller)
        more, better = _coded_at(image, latents, high, larger)
        if more > less and worse > better:
            return (more - less) / (worse - better)
    return None


def _patches(tile: Area) -> Iterator[Area]:
    """The parts of a tile that are searched one after the other."""
    height, width = tile.bottom - tile.top, tile.right - tile.left
    side = max(height, width) if height * width <= WHOLE else PATCH
    for top in range(tile.top, tile.bottom, side):
        for left in range(tile.left, tile.right, side):
            yield Area(top, min(top + side, tile.bottom), left, min(left + side, tile.right))


def _searched(
    image: _Image,
    annealer: Annealer,
    tile: Area,
    y: Tensor,
    y_bar: Tensor,
    told: Callable[[], None],
) -> Latents:
    """Latents of a tile after the search; y_bar of the whole image is brought along with them."""
    found = Latents(y.clone(), image.network.hyper(y, image.text))
    for patch in _patches(tile):
        coded = around(patch, tile, MARGIN)
        seen = around(patch, image.bounds, MARGIN)
        judged = around(patch, image.bounds, JUDGED)
        if patch == tile:
            coded = patch
        x = torch.from_numpy(image.clipped(judged).copy()).to(y.device)
        inside = within(coded, tile)
        passed = annealer(
            x.permute(2, 0, 1)[None].float(),
            within(judged, seen),
            cut(y_bar, seen, Y_STRIDE),
            within(coded, seen),
            Latents(cut(found.y, inside, Y_STRIDE), cut(found.z, inside, STRIDE)),
            within(patch, coded),
            told,
        )
        here, there = within(patch, tile), within(patch, coded)
        for whole, part, stride in zip(found, passed.latents, (Y_STRIDE, STRIDE), strict=True):
            cut(whole, here, stride).copy_(cut(part, there, stride))
        cut(y_bar, patch, Y_STRIDE).copy_(cut(passed.y_bar, within(patch, seen), Y_STRIDE))
    return found


@torch.no_grad()
def refined(
    network: Network,
    text: Text | None,
    quality: float,
    pixels: npt.NDArray[np.uint8],
    places: list[Area],
    latents: list[Tensor],
    tiles: list[bytes],
    y_bar: Tensor,
    effort: int,
    told: Told | None,
) -> tuple[list[bytes], Tensor, Gain]:
    """Search for tiles that cost less.

    Args:
        network: frozen.
        text: features of the prompt, for networks with text.
        quality: that the image was coded at.
        pixels: the image, uint8, H x W x 3.
        places: of the tiles, row by row.
        latents: float32, 1 x M x h x w of each tile, any finite values: what was rounded.
        tiles: as they were coded.
        y_bar: float32, 1 x M x H/16 x W/16 of the whole image, any finite values.
        effort: of `EFFORTS`, above 0.
        told: hears how many steps are done, and of how many.

    Returns:
        The tiles, their y_bar (shape and dtype as given), and what was gained, but for the bytes.
    """
    image = _Image(network, text, quality, pixels, places)
    steps, count = EFFORTS[effort], sum(1 for place in places for _ in _patches(place))
    before = now = image.errors(y_bar)
    slope, done = slope_of(image, latents), 0

    def one() -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(done, steps * count)

    tiles, kept = list(tiles), False
    if slope is not None:
        annealer = Annealer(network, text, quality, slope, steps)
        for index, (place, y) in enumerate(zip(places, latents, strict=True)):
            trial = y_bar.clone()
            found = _searched(image, annealer, place, y, trial, one)
            data, part = network.write(found.y, text, found.z)
            trial = y_bar.clone()
            cut(trial, place, Y_STRIDE).copy_(part)
            affected = around(place, image.bounds, network.halo)
            change = image.error(trial, affected) - image.error(y_bar, affected)
            if 8 * (len(data) - len(tiles[index])) + slope * change < 0:
                tiles[index], y_bar, kept = data, trial, True
                now += change
    peak = 255**2 * pixels.size
    return tiles, y_bar, Gain(steps, kept, decibels(peak, before), decibels(peak, now), slope)
