"""Families of text-to-image models: what the signature of their class in diffusers does not tell.

Names of arguments, components, tokenizers, sizes of latents: all that is read from the class and
from the model's own files, see `pipeline.images.diffusion.pipelines`. A class without a row here
runs by `auto` as `OTHER` assumes, and the run reports that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AUTO = "auto"
"""In place of a family: the class that the model's own `model_index.json` names."""


@dataclass(frozen=True)
class Family:
    """One family; these fields are all that `plan` and `images` know about it.

    Attributes:
        pipeline: the class of diffusers.
        options: arguments of `from_pretrained`, besides weights and revision.
        denoiser: the component that runs in every step.
        multiple: width and height are multiples of this many pixels.
        negative_prompt: whether a call takes one.
        guidance: the argument that takes the guidance_scale of a specification.
        guided_above: the guidance_scale above which every step evaluates the denoiser twice, with
            and without the prompt; None: never, because it has learnt what guidance does
            (distilled), or takes none.
        clip: whether its models read of a prompt what CLIP reads.
        templated: whether the prompt is a message to a chat model, whose template counts among
            the tokens.
    """

    pipeline: str
    options: Mapping[str, Any] = field(default_factory=dict)
    denoiser: str = "unet"
    multiple: int = 8
    negative_prompt: bool = True
    guidance: str = "guidance_scale"
    guided_above: float | None = 1.0
    clip: bool = False
    templated: bool = False

    def evaluations(self, steps: int, guidance_scale: float, true_cfg_scale: float = 1.0) -> int:
        """How often the denoiser runs for one image.

        Args:
            true_cfg_scale: of a distilled model that is guided on top of that.
        """
        above = self.guided_above
        guided = true_cfg_scale > 1 if above is None else guidance_scale > above
        return steps * (2 if guided else 1)


FAMILIES = {
    # Blank images are the selection's business, and watermarks those of `marks`.
    "sd": Family(
        "StableDiffusionPipeline",
        {"safety_checker": None, "requires_safety_checker": False},
        clip=True,
    ),
    "sdxl": Family("StableDiffusionXLPipeline", {"add_watermarker": False}, clip=True),
    "sd3": Family("StableDiffusion3Pipeline", denoiser="transformer", multiple=16),
    "flux": Family("FluxPipeline", denoiser="transformer", multiple=16, guided_above=None),
    "pixart-sigma": Family("PixArtSigmaPipeline", denoiser="transformer", multiple=16),
    "sana": Family("SanaPipeline", denoiser="transformer", multiple=32),
    "qwen-image": Family(
        "QwenImagePipeline", denoiser="transformer", multiple=16, guidance="true_cfg_scale"
    ),
    "z-image": Family(
        "ZImagePipeline", denoiser="transformer", multiple=16, guided_above=0.0, templated=True
    ),
}
"""Families by the name that a specification gives as `pipeline`."""
OTHER = Family("", denoiser="transformer")
"""What is assumed of a class that has no row, where the class and the model do not tell."""
