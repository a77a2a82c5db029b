"""Pixels in, NSFW scores out, by the safety checker that Stable Diffusion was published with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline import AigiError
from pipeline.models.clip import Vectors
from pipeline.models.device import pick_device
from pipeline.models.hub import Place, loading
from pipeline.models.weights import Part, check_transformers, digest
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
        AigiError: no such model or device, or the model is incomplete.

    Attributes:
        loaded: digest of its weights, in float32.
    """

    def __init__(self, settings: SafetyChecker, device: str = "auto") -> None:
        self.device = pick_device(device)
        part, folder = check_checker(settings)
        import torch
        import transformers
        from diffusers.pipelines.stable_diffusion.safety_checker import (
            StableDiffusionSafetyChecker,
        )

        transformers.utils.logging.disable_progress_bar()
        # Pillow's resize, as the checker was published with; torchvision's gives other pixels.
        # Releases without this name have Pillow's under the plain one.
        plain = transformers.CLIPImageProcessor
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", plain)
        with loading(part.where, part.model):
            model = StableDiffusionSafetyChecker.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
            )
            self.processor = processor.from_pretrained(folder, local_files_only=True)
        self.loaded = digest(part, model)
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
            pictures: float32, 3 x S x S each, normalised, as `prepare` returns them.

        Returns:
            A cosine less its threshold for each, rounded to three decimals: about -1 to 1.

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


def place_of(settings: SafetyChecker) -> Place:
    """Where the safety checker is."""
    return Place.of("quality.safety_checker", settings.folder, settings.model, settings.revision)


def find_checker(settings: SafetyChecker) -> str:
    """The folder of the safety checker on this machine; downloaded if need be.

    Raises:
        AigiError: there is none, or it lacks a file.
    """
    return place_of(settings).fetch(*CHECKER_FILES)


def check_checker(settings: SafetyChecker) -> tuple[Part, str]:
    """Check that the safety checker is there and complete, before any work.

    Returns: how errors name it, and its folder on this machine.

    Raises:
        AigiError: there is none, or its file does not have its tensors.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    place, folder = place_of(settings), find_checker(settings)
    part = Part(place.where, place)
    check_transformers(part, StableDiffusionSafetyChecker, folder)
    return part, folder


class SafetyChecker(Settings):
    """The safety checker that Stable Diffusion was published with, for its scores alone."""

    model: str = Field(
        "CompVis/stable-diffusion-safety-checker", description="Hub id of the safety checker"
    )
    revision: str = Field("main", description="commit of the model repository")
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
