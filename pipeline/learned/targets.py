"""An image and a target in bits a pixel or dB in, the file that meets it out.

The quality is searched for in steps of 1/200, by real files. Rate and PSNR rise with it, all but
for a few bytes from step to step: a file of 0.5 bits a pixel has at most that, and the next step
has more; one of 36 dB has at least that, and the step before has less. Above some quality files may
be lossless: larger than those of lower qualities, and all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline import AigiError
from pipeline.learned.bitstream import QUALITY_STEPS, in_steps, is_lossless
from pipeline.learned.codec import RGB, LearnedCodec
from pipeline.learned.refine import Gain, Told
from pipeline.pixels import decibels, squared_error

Unit = Literal["bpp", "psnr"]
_NAMES = {"bpp": "bits a pixel", "psnr": "dB"}


@dataclass(frozen=True)
class Met:
    """A file that meets a target.

    Attributes:
        data: the file.
        quality: it was coded at.
        bpp: its bits a pixel, prompt included.
        psnr: of the decoded image, in dB.
        gain: of the search for better latents; None where there was none.
    """

    data: bytes
    quality: float
    bpp: float
    psnr: float
    gain: Gain | None = None

    def meets(self, unit: Unit, target: float) -> bool:
        """Whether it has at most so many bits a pixel, or at least so many dB."""
        return self.bpp <= target if unit == "bpp" else self.psnr >= target


def coded(
    codec: LearnedCodec,
    image: RGB,
    prompt: str,
    quality: float | None,
    effort: int = 0,
    told: Told | None = None,
) -> Met:
    """The file of one quality, with what it comes to.

    Args:
        image: uint8, H x W x 3.

    Raises:
        AigiError: as `LearnedCodec.encode`.
    """
    found = codec.encode_and_reconstruct(image, prompt, quality, effort, told)
    bpp = 8 * len(found.data) / (image.shape[0] * image.shape[1])
    exact = codec.qualities if quality is None else quality
    psnr = decibels(255**2 * image.size, squared_error(image, found.reconstruction))
    return Met(found.data, exact, bpp, psnr, found.gain)


def meet(
    codec: LearnedCodec,
    image: RGB,
    prompt: str,
    unit: Unit,
    target: float,
    effort: int = 0,
    tried: Callable[[Met], None] = lambda met: None,
    told: Told | None = None,
) -> Met:
    """The largest file of at most so many bits a pixel, or the smallest of at least so many dB.

    Args:
        image: uint8, H x W x 3.
        unit: of the target.
        target: above 0.
        effort: of every file.
        tried: called after each file, some eight times.
        told: hears of the steps of each search, see `LearnedCodec`.

    Raises:
        AigiError: the target is none, or out of the codec's reach for this image.
    """
    if not (math.isfinite(target) and target > 0):
        raise AigiError(f"{unit}: {target:g}: expected {_NAMES[unit]}, a number above 0")
    if codec.qualities == 1:
        raise AigiError(
            f"{unit}: {codec.name} codes at one rate, so no target can be met. Leave --{unit} out, "
            "or name a codec of several qualities as --model."
        )
    known: dict[int, Met] = {}

    def at(steps: int) -> Met:
        if steps not in known:
            known[steps] = coded(codec, image, prompt, in_steps(steps), effort, told)
            tried(known[steps])
        return known[steps]

    low, high = QUALITY_STEPS, QUALITY_STEPS * codec.qualities
    for end in (low, high) if unit == "bpp" else (low,):
        # Nothing larger is better than a lossless file, and nothing is smaller than the first one.
        if is_lossless(at(end).data) and at(end).meets(unit, target):
            return at(end)
    least, most = sorted(getattr(at(end), unit) for end in (low, high))
    if not least <= target <= most:
        end = low if target < least else high
        raise AigiError(
            f"{unit}: {target:g}: out of reach: {codec.name} codes this image at {least:.4f} to "
            f"{most:.4f} {_NAMES[unit]}. The nearest is --quality {end // QUALITY_STEPS}."
        )
    _bracket(lambda steps: float(getattr(at(steps), unit)), low, high, unit, target)
    if unit == "bpp":
        return max((met for met in known.values() if met.meets(unit, target)), key=_size)
    return min((met for met in known.values() if met.meets(unit, target)), key=_size)


def _size(met: Met) -> int:
    return len(met.data)


def _bracket(value: Callable[[int], float], low: int, high: int, unit: Unit, target: float) -> None:
    """Try steps until two neighbours have the target between them.

    The logarithm of the rate and PSNR are nearly straight lines over the quality, so the target is
    looked for where a line from end to end has it, or a little beyond, so that both ends come near;
    every third time in the middle, so that it ends.
    """
    scale = math.log if unit == "bpp" else float
    goal, tries, rising = scale(target), 0, True
    while high - low > 1:
        width, ends = high - low, (scale(value(low)), scale(value(high)))
        guess = low + width // 2
        if tries % 3 < 2 and ends[0] < ends[1]:
            share = (goal - ends[0]) / (ends[1] - ends[0])
            push = 0 if not tries else width // 16 + 1
            guess = low + round(share * width) + (push if rising else -push)
        guess = min(max(guess, low + 1), high - 1)
        # A rate on the target is still small enough, a PSNR on it already large enough.
        rising = value(guess) <= target if unit == "bpp" else value(guess) < target
        low, high = (guess, high) if rising else (low, guess)
        tries += 1
