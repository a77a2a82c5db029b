"""Families of text-to-image models: what differs between them as diffusers runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family; these fields are all that `plan` and `images` know about it.

    Attributes:
        pipeline: the class of diffusers.
        options: arguments of `from_pretrained`, besides weights and revision.
        denoiser: the component that runs in every step.
        multiple: width and height are multiples of this many pixels.
        negative_prompt: whether a call takes one.
        guided_above: the guidance_scale above which every step evaluates the denoiser twice, with
            and without the prompt; None: never.
    """

    pipeline: str
    options: Mapping[str, Any] = field(default_factory=dict)
    denoiser: str = "unet"
    multiple: int = 8
    negative_prompt: bool = True
    guided_above: float | None = 1.0

    def evaluations(self, steps: int, guidance_scale: float) -> int:
        """How often the denoiser runs for one image."""
        guided = self.guided_above is not None and guidance_scale > self.guided_above
        return steps * (2 if guided else 1)


FAMILIES = {
    # Blank images are the selection's business, and watermarks those of `marks`.
    "sd": Family(
        "StableDiffusionPipeline",
        {"safety_checker": None, "requires_safety_checker": False},
    ),
    "sdxl": Family("StableDiffusionXLPipeline", {"add_watermarker": False}),
}
"""Families by the name that a specification gives as `pipeline`."""
