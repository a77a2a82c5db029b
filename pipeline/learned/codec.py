"""A trained network in, a codec out: images and prompts to files, and back.

What is promised:

- Where an image costs no more without any loss, a lossless file is written; it needs no network.
- A file decodes to the same latents on every machine, thread count and kernel, or fails with
  `DamagedStream`; never to something else.
- g_s runs in float32. With the settings of the encoder (machine, device, threads, torch) the
  decoded image is equal to the encoder's reconstruction; elsewhere some pixels may differ by 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.learned import bitstream, lossless
from pipeline.learned.bitstream import (
    MOST_PIXELS,
    MOST_TILE_PIXELS,
    STRIDE,
    Area,
    Header,
    areas,
    in_steps,
    quality_steps,
)
from pipeline.learned.network import CONFIG, WEIGHTS, Network
from pipeline.learned.networks.layers import Text
from pipeline.learned.range_coder import DamagedStream
from pipeline.learned.refine import EFFORTS, Gain, Told, refined
from pipeline.learned.shipped import shipped
from pipeline.learned.sizes import read
from pipeline.learned.text import TextEncoder
from pipeline.learned.tiles import TILE, Y_STRIDE, around, cut, eight_bits, joined, within
from pipeline.models.device import pick_device
from pipeline.models.hub import Place
from pipeline.models.weights import Part, digest

RGB = npt.NDArray[np.uint8]
"""An image: uint8, H x W x 3, red green blue, 0 to 255."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A coded image.

    Attributes:
        data: the file.
        reconstruction: what it decodes to here: uint8, H x W x 3.
        gain: of the search; None where there was none.
    """

    data: bytes
    reconstruction: RGB
    gain: Gain | None = None


@dataclass(frozen=True, eq=False)
class _Coded:
    """An image on its way: what is in the file, and what the synthesis is given.

    Attributes:
        lossless: the file in place of all that, where it is no longer.
    """

    header: Header
    tiles: list[bytes]
    y_bar: Tensor
    text: Text | None
    gain: Gain | None
    lossless: bytes | None = None

    def data(self) -> bytes:
        return self.lossless or bitstream.pack(self.header, self.tiles)


class LearnedCodec:
    """A network that is ready to code.

    Args:
        network: trained, with tables; it is frozen in place.
        device: auto, cpu, cuda or cuda:N.
        text_folder: where the text encoder lies, if not where the network says.
        tile: side of a tile in pixels, a multiple of 64; None: one tile up to 1536 x 1536 pixels,
            else tiles of 1024.
        text: the text encoder, where it is loaded already.
        lossless: write a lossless file where it is no longer. Without it, what comes out is what
            the network can do.

    Attributes:
        name: of the model; it stands in the files.
        weights: 4 bytes of its fingerprint.
        loaded: digests of the weights of the network and its text encoder.
        qualities: how many rates it codes at.

    Raises:
        AigiError: the network or its text encoder cannot be used, or there is no such device.
    """

    def __init__(
        self,
        network: Network,
        device: str = "auto",
        text_folder: str | os.PathLike[str] | None = None,
        tile: int | None = None,
        text: TextEncoder | None = None,
        lossless: bool = False,
    ) -> None:
        self.device = pick_device(device)
        if self.device.type == "mps":
            raise AigiError("device: mps has no float64, which decoding wants. Set device: cpu.")
        if tile is not None and (tile <= 0 or tile % STRIDE or tile * tile > MOST_TILE_PIXELS):
            raise AigiError(f"tile: {tile}: expected a multiple of {STRIDE} up to 1536")
        self.tile, self.lossless = tile, lossless
        # As they are stored, before some of them are computed with in float64.
        self.loaded = {"network": digest(Part("codec", network.sizes.name), network.weights())}
        self.network = network.freeze().to(self.device)
        sizes = network.sizes.text
        self.text = None if sizes is None else text or TextEncoder(sizes, text_folder, self.device)
        if self.text is not None:
            self.loaded["text encoder"] = self.text.loaded
        self.name, self.qualities = network.sizes.name, network.sizes.qualities
        text_weights = None if self.text is None else self.text.state()
        self.weights = network.fingerprint(text_weights)[:4]

    def encode(
        self, image: RGB, prompt: str = "", quality: float | None = None, effort: int = 0
    ) -> bytes:
        """Code an image; the bytes alone suffice to decode it.

        Args:
            image: uint8, H x W x 3, of any size from 1 x 1.
            prompt: what it shows; a network without text ignores it and does not store it.
            quality: from 1 to `qualities`, the highest rate, in steps of 0.005; None: that.
            effort: 1 and 2 search for latents that cost less, see `pipeline.learned.refine`.

        Raises:
            AigiError: the image or the prompt is none, or there is no such quality or effort.
        """
        return self._encode(image, prompt, quality, effort).data()

    def encode_and_reconstruct(
        self,
        image: RGB,
        prompt: str = "",
        quality: float | None = None,
        effort: int = 0,
        told: Told | None = None,
    ) -> Encoded:
        """Code an image (uint8, H x W x 3), and decode it without reading it back.

        Args:
            image, prompt, quality, effort: as `encode` takes them.
            told: hears of every step of a search: how many are done, and of how many.

        Raises:
            AigiError: as `encode`.
        """
        coded = self._encode(image, prompt, quality, effort, told)
        if coded.lossless is not None:
            return Encoded(coded.lossless, image.copy())
        seen = self._synthesise(coded.y_bar, coded.text, coded.header)
        return Encoded(coded.data(), seen, coded.gain)

    def decode(self, data: bytes, max_pixels: int = MOST_PIXELS) -> RGB:
        """The image of a file: uint8, H x W x 3.

        Raises:
            DamagedStream: the file is damaged or no such file, or has more than `max_pixels`.
            AigiError: another model made it.
        """
        if bitstream.is_lossless(data):
            return lossless.decode(data, max_pixels)
        header, tiles = bitstream.unpack(data, max_pixels)
        if header.weights != self.weights:
            raise AigiError(
                f"bitstream: made with model {header.model} (weights {header.weights.hex()}), this "
                f"is {self.name} (weights {self.weights.hex()}). Give the right one as --model."
            )
        if header.quality > self.qualities:
            raise DamagedStream(
                f"bitstream: coded at quality {header.quality:g}; {self.name} has {self.qualities}."
            )
        text = self._features(header.prompt)
        places = areas(header.width, header.height, header.tile)
        y_bars = (
            self.network.read(tile, place.bottom - place.top, place.right - place.left, text)
            for tile, place in zip(tiles, places, strict=True)
        )
        y_bar = joined(y_bars, places)
        return self._synthesise(y_bar, text, header)

    def _features(self, prompt: str) -> Text | None:
        return None if self.text is None else self.text([prompt])

    def _quality(self, quality: float | None) -> float:
        if quality is None:
            return self.qualities
        if not 1 <= quality <= self.qualities:
            raise AigiError(f"quality: {quality:g}: {self.name} codes at 1 to {self.qualities}")
        return in_steps(quality_steps(quality))

    def _encode(
        self,
        image: RGB,
        prompt: str,
        quality: float | None,
        effort: int,
        told: Told | None = None,
    ) -> _Coded:
        quality = self._quality(quality)
        if effort not in EFFORTS:
            raise AigiError(f"effort: {effort}: expected one of {', '.join(map(str, EFFORTS))}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise AigiError(
                f"image: {image.dtype} {'x'.join(map(str, image.shape))}; expected uint8, height x "
                "width x 3. Lay transparent images over a background; repeat grey three times."
            )
        stored = prompt if self.text is not None else ""
        bitstream.pack_prompt(stored)  # one that cannot be stored is refused before any work
        height, width = image.shape[:2]
        tile = self._tile(width, height)
        text = self._features(prompt)
        places = areas(width, height, tile)
        bounds = Area(0, places[-1].bottom, 0, places[-1].right)
        whole = np.pad(
            image, ((0, bounds.bottom - height), (0, bounds.right - width), (0, 0)), mode="edge"
        )
        coded, latents = [], []

        def y_bars() -> Iterator[Tensor]:
            for place in places:
                outer = around(place, bounds, self.network.halo)
                part = whole[outer.top : outer.bottom, outer.left : outer.right]
                x = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
                y = self.network.analyse(x.permute(2, 0, 1)[None].float() / 255, text, quality)
                y = cut(y, within(place, outer), Y_STRIDE).contiguous()
                data, y_bar = self.network.write(y, text)
                coded.append(data)
                if effort:
                    latents.append(y)
                yield y_bar

        y_bar = joined(y_bars(), places)
        header = Header(self.name, self.weights, quality, width, height, tile, stored)
        found = _Coded(header, coded, y_bar, text, None)
        if self.lossless and (exact := lossless.encode(image, len(found.data()))) is not None:
            return replace(found, lossless=exact)
        if not effort:
            return found
        tiles, y_bar, gain = refined(
            self.network, text, quality, image, places, latents, coded, y_bar, effort, told
        )
        better = _Coded(header, tiles, y_bar, text, None)
        before, after = (len(one.data()) for one in (found, better))
        return replace(better, gain=replace(gain, bytes_before=before, bytes_after=after))

    def _tile(self, width: int, height: int) -> int:
        pixels = bitstream.padded(width) * bitstream.padded(height)
        if self.tile is None:
            return 0 if pixels <= MOST_TILE_PIXELS else TILE
        return self.tile

    def _synthesise(self, y_bar: Tensor, text: Text | None, header: Header) -> RGB:
        places = areas(header.width, header.height, header.tile)
        bounds = Area(0, places[-1].bottom, 0, places[-1].right)
        out = np.empty((bounds.bottom, bounds.right, 3), np.uint8)
        for place in places:
            outer = around(place, bounds, self.network.halo)
            x_hat = self.network.synthesise(
                cut(y_bar, outer, Y_STRIDE).contiguous(), text, header.quality
            )
            pixels = eight_bits(cut(x_hat, within(place, outer), 1))
            out[place.top : place.bottom, place.left : place.right] = pixels.cpu().numpy()
        return np.ascontiguousarray(out[: header.height, : header.width])


def load(
    model: str | os.PathLike[str],
    revision: str | None = None,
    device: str = "auto",
    text_folder: str | os.PathLike[str] | None = None,
    lossless: bool = True,
) -> LearnedCodec:
    """Load a codec from a folder or the Hub.

    Args:
        model: a folder with `config.json` and `model.safetensors`, the name of a model that comes
            with aigi (`catc-small`), or a Hub id.
        revision: commit, tag or branch on the Hub.
        device: auto, cpu, cuda or cuda:N.
        text_folder: where the text encoder lies, if not where the configuration says.
        lossless: whether it writes a lossless file where that is no longer.

    Raises:
        AigiError: there is no such model, or it is damaged.
    """
    return LearnedCodec(load_network(model, revision), device, text_folder, lossless=lossless)


def load_network(model: str | os.PathLike[str], revision: str | None = None) -> Network:
    """Load the network of a codec, not frozen, from a folder or the Hub.

    Raises:
        AigiError: there is no such model, or it is damaged.
    """
    given = Path(model)
    known = given if given.is_dir() else shipped().get(str(model))
    instead = f"--model FOLDER, or name one of {', '.join(shipped())}"
    place = Place("codec", instead, None if known is None else str(known), str(model), revision)
    folder = Path(place.fetch(CONFIG, WEIGHTS))
    network = Network(**read(folder / CONFIG).model_dump())
    network.load_weights(folder / WEIGHTS)
    return network
