"""A network in training and whole images in, rates of real files and distortions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import AigiError
from pipeline.learned.bitstream import rates
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.network import Network
from pipeline.learned.text import TextEncoder
from pipeline.pixels import RGB, decibels
from pipeline.training.distortion import LEAST_SIDE, ms_ssim


@dataclass(frozen=True)
class Found:
    """Means over images.

    Attributes:
        pictures: how many.
        bpp: bits a pixel of whole files.
        bpp_without_prompt: the same without the prompt's bytes.
        mse: over RGB from 0 to 1, decoded images rounded to 8 bits.
        psnr: mean of the images' PSNR, in dB.
        ms_ssim: 0 to 1, over images whose shorter side has 161 pixels; None: there is none.
    """

    pictures: int
    bpp: float
    bpp_without_prompt: float
    mse: float
    psnr: float
    ms_ssim: float | None

    def loss(self, weight: float, distortion: str) -> float:
        """The loss that training minimises, from these means.

        Raises:
            AigiError: no image is large enough for MS-SSIM.
        """
        if distortion == "mse":
            return weight * 255**2 * self.mse + self.bpp
        if self.ms_ssim is None:
            raise AigiError(
                f"validation: no image has sides of {LEAST_SIDE} pixels, which MS-SSIM needs"
            )
        return weight * (1 - self.ms_ssim) + self.bpp


def validate(
    network: Network, pictures: Sequence[tuple[RGB, str]], text: TextEncoder | None, device: str
) -> list[Found]:
    """Code images to real files at each quality, and measure the decoded images.

    Args:
        network: a network with tables; it is frozen in place.
        pictures: uint8, H x W x 3, each with its prompt.

    Raises:
        AigiError: a file decodes to other pixels than the encoder predicted, a defect.
    """
    codec = LearnedCodec(network, device, text=text)
    qualities = range(1, network.sizes.qualities + 1)
    return [_validated(codec, pictures, quality) for quality in qualities]


def _validated(codec: LearnedCodec, pictures: Sequence[tuple[RGB, str]], quality: int) -> Found:
    bpp, plain, errors, structure = [], [], [], []
    for number, (picture, prompt) in enumerate(pictures):
        coded = codec.encode_and_reconstruct(picture, prompt, quality)
        if number == 0 and not np.array_equal(codec.decode(coded.data), coded.reconstruction):
            raise AigiError("validation: a file decodes to other pixels than the encoder predicted")
        rate = rates(coded.data)
        bpp.append(rate.bpp)
        plain.append(rate.bpp_without_prompt)
        before, after = (
            torch.tensor(p).permute(2, 0, 1)[None].double() / 255
            for p in (picture, coded.reconstruction)
        )
        errors.append(float(((before - after) ** 2).mean()))
        if min(picture.shape[:2]) >= LEAST_SIDE:
            structure.append(float(ms_ssim(before.float(), after.float())))
    return Found(
        pictures=len(bpp),
        bpp=float(np.mean(bpp)),
        bpp_without_prompt=float(np.mean(plain)),
        mse=float(np.mean(errors)),
        psnr=float(np.mean([decibels(1, error) for error in errors])),
        ms_ssim=float(np.mean(structure)) if structure else None,
    )
