"""Folders or Hub ids of our trained networks in, codecs of the benchmark out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.pixels import RGB

if TYPE_CHECKING:
    from pipeline.learned.codec import LearnedCodec


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained network, with the prompt of every picture or without.

    Attributes:
        codec: of `pipeline.learned`.
        prompts: false codes every picture with an empty prompt.
    """

    codec: LearnedCodec
    prompts: bool

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The whole file, prompt included."""
        return self.codec.encode(image, prompt if self.prompts else "")

    def decode(self, data: bytes) -> RGB:
        """The uint8 picture of a file."""
        return self.codec.decode(data)


def learned(model: str, device: str, text: str | None, prompts: bool) -> Learned:
    """Load a network.

    Raises:
        AigiError: there is none, or it is damaged.
    """
    from pipeline.learned.codec import load

    return Learned(load(model, device=device, text_folder=text), prompts)


def prompt_bytes(data: bytes) -> int:
    """How many bytes of a file hold the prompt."""
    from pipeline.learned.bitstream import pack_prompt, unpack

    return len(pack_prompt(unpack(data)[0].prompt))
