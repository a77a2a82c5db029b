"""Pixels in, NSFW scores out, by the safety checker that Stable Diffusion was published with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline import AigiError
from pipeline.models.clip import Vectors
from pipeline.models.device import pick_device
from pipeline.models.hub import hub_file
from pipeline.pixels import RGB
from pipeline.settings import Location, Settings

CHECKER_WEIGHTS = "model.safetensors"


CHECKER_FILES = ("config.json", "preprocessor_config.json", CHECKER_WEIGHTS)


Pixels = npt.NDArray[np.float32]
"""An image as the safety checker takes it: float32, 3 x S x S, normalised."""


class SafetyScorer:
    """The safety checker of Stable Diffusion, for its scores alone: no image is blackened.

    Args:
        settings: where its weights come from.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device, or the weights do not fit.
    """

    def __init__(self, settings: SafetyChecker, device: str = "auto") -> None:
        self.device = pick_device(device)
        find_checker(settings)
        import torch
        import transformers
        from diffusers.pipelines.stable_diffusion.safety_checker import (
            StableDiffusionSafetyChecker,
        )
        from safetensors import SafetensorError

        transformers.utils.logging.disable_progress_bar()
        where: dict[str, Any] = {"pretrained_model_name_or_path": settings.folder or settings.model}
        if settings.folder is None:
            where["revision"] = settings.revision
        # Pillow's resize, as the checker was published with; torchvision's gives other pixels.
        # Releases without this name have Pillow's under the plain one.
        plain = transformers.CLIPImageProcessor
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", plain)
        try:
            model, info = StableDiffusionSafetyChecker.from_pretrained(
                **where, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            self.processor = processor.from_pretrained(**where)
        except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
            raise AigiError(
                f"quality.safety_checker: {settings.folder or settings.model}: cannot be loaded: "
                f"{error}\nCopy or download it again."
            ) from error
        if info["missing_keys"]:
            # They would be random, and so would be the scores.
            raise AigiError(
                f"quality.safety_checker: {settings.folder or settings.model}: the weights lack "
                f"{', '.join(sorted(info['missing_keys'])[:3])}, …: not a safety checker"
            )
        self.model: Any = model.to(self.device).eval()

    def prepare(self, rgb: RGB) -> Pixels:
        """uint8, H x W x 3, as the model takes it: float32, 3 x S x S. Safe in threads."""
        pixels: Pixels = self.processor(
            images=rgb, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"][0]
        return pixels

    def scores(self, pictures: Sequence[Pixels]) -> list[float]:
        """The highest score of a concept over its threshold, for each of a batch of images.

        It is the score of diffusers, up to rounding (three decimals): above 0 exactly where
        diffusers flags the image. An image near one of the three special concepts has 0.01
        added, as there.

        Args:
            pictures: float32, 3 x S x S each, as `prepare` returns them.

        Raises:
            AigiError: the device has too little memory for the batch.
        """
        import torch

        if not pictures:
            return []
        model = self.model
        try:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.stack(pictures)).to(self.device)
                vectors = model.visual_projection(model.vision_model(pixels)[1])
                special = self._above(vectors, "special_care_embeds")
                concepts = self._above(vectors, "concept_embeds")
        except torch.OutOfMemoryError as error:
            raise AigiError(
                f"quality: {self.device} ran out of memory with batch_size {len(pictures)}; "
                "set a smaller one"
            ) from error
        careful = (special.round(3) > 0).any(axis=1, keepdims=True)
        found = (concepts + np.where(careful, np.float32(0.01), np.float32(0))).round(3)
        return [float(score) for score in found.max(axis=1)]

    def _above(self, vectors: Any, name: str) -> Vectors:
        """Cosine of each vector with each concept, less the threshold of the concept."""
        from torch.nn.functional import normalize

        concepts = getattr(self.model, name)
        cosines = normalize(vectors) @ normalize(concepts).T
        weights = getattr(self.model, f"{name}_weights")
        above: Vectors = cosines.float().cpu().numpy() - weights.float().cpu().numpy()
        return above


def find_checker(settings: SafetyChecker) -> None:
    """Check that the files of the safety checker are there; download them if needed.

    Raises:
        AigiError: one is not.
    """
    for file in CHECKER_FILES:
        if settings.folder is None:
            hub_file("quality.safety_checker", settings.model, file, settings.revision)
        elif not os.path.isfile(os.path.join(settings.folder, file)):
            raise AigiError(
                f"quality.safety_checker.folder: {settings.folder} has no {file} (weights in "
                "pickle files are not read). Copy the folder again, or convert it with "
                "save_pretrained."
            )


class SafetyChecker(Settings):
    """The safety checker that Stable Diffusion was published with, for its scores alone."""

    model: str = "CompVis/stable-diffusion-safety-checker"
    revision: str = Field("main", description="commit of the model repository")
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
