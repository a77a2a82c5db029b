"""Models that score how well an image shows its prompt: pairs in, one number a pair out.

Each is a loaded model with `__call__(pictures, texts) -> scores`; `SCORERS` names them by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from pipeline.models import clip
from pipeline.models.clip import Clip, Embeddings
from pipeline.models.device import pick_device
from pipeline.models.hub import Place, loading
from pipeline.models.weights import Part, check_transformers, digest
from pipeline.pixels import RGB
from pipeline.settings import Location, Settings


class ClipScorer(Settings):
    """Cosine of image and prompt by an open_clip model: CLIPScore, or HPS with its weights."""

    kind: Literal["open_clip"]
    model: str = Field("ViT-B-32", description="as in the section embeddings")
    pretrained: str = "laion2b_s34b_b79k"
    folder: Location | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class BlipScorer(Settings):
    """Probability that image and prompt belong together, by BLIP's matching head."""

    kind: Literal["blip_itm"]
    model: str = "Salesforce/blip-itm-large-coco"
    revision: str | None = None
    folder: Location | None = Field(None, description="a local copy of model and processor")


class PickScorer(Settings):
    """PickScore: the scaled cosine of a CLIP model of transformers, trained on preferences."""

    kind: Literal["pick_score"]
    model: str = "yuvalkirstain/PickScore_v1"
    revision: str | None = None
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    folder: Location | None = Field(None, description="a local copy of model and processor")


Scorer = Annotated[ClipScorer | BlipScorer | PickScorer, Field(discriminator="kind")]

Scores = npt.NDArray[np.float64]


class Score(Protocol):
    """A loaded model; `loaded` is the digest of its weights."""

    loaded: str

    def __call__(self, pictures: Sequence[RGB], texts: Sequence[str]) -> Scores: ...


class ClipScore:
    """Cosines of images and prompts, -1 to 1 (Hessel 2021, without its factor of 2.5)."""

    def __init__(self, settings: ClipScorer, batch_size: int, device: str, where: str) -> None:
        self.clip = Clip(_embeddings(settings, batch_size), device, where)
        self.loaded = self.clip.loaded

    @staticmethod
    def check(settings: ClipScorer, where: str) -> None:
        """Check that the model is there and complete. Raises AigiError."""
        clip.check_weights(_embeddings(settings), where)

    def __call__(self, pictures: Sequence[RGB], texts: Sequence[str]) -> Scores:
        """One cosine (float64) for each pair; images are uint8, H x W x 3."""
        return _cosines(self.clip.image_vectors(pictures), self.clip.text_vectors(texts))


def _embeddings(settings: ClipScorer, batch_size: int = 1) -> Embeddings:
    return Embeddings(**settings.model_dump(exclude={"kind"}), batch_size=batch_size)


def _cosines(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Scores:
    found: Scores = np.einsum("nd,nd->n", one.astype(np.float64), other.astype(np.float64))
    return found


CONFIGURATIONS = ("*.json", "*.txt")


def _checked(place: Place, model: Any) -> str:
    """The folder of a model on this machine, whose files have the tensors of its class."""
    folder = place.fetch("config.json", "*.safetensors", beside=CONFIGURATIONS)
    check_transformers(Part(place.where, place), model, folder)
    return folder


def _loaded(place: Place, model: Any, beside: Place, processor: Any) -> tuple[Any, Any, str]:
    """A model; its processor, which may be in another repository; digest of the weights."""
    folder = _checked(place, model)
    other = beside.fetch(CONFIGURATIONS[0], beside=CONFIGURATIONS[1:])
    with loading(place.where, place):
        weights = model.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        reads = processor.from_pretrained(other, local_files_only=True)
    sha256 = digest(Part(place.where, place), weights)
    return weights.eval().requires_grad_(False), reads, sha256


class BlipMatch:
    """Probability, 0 to 1, that image and prompt match, by BLIP's matching head (Li 2022)."""

    def __init__(self, settings: BlipScorer, batch_size: int, device: str, where: str) -> None:
        from transformers import BlipForImageTextRetrieval, BlipProcessor

        place = Place.of(where, settings.folder, settings.model, settings.revision)
        model, self.processor, self.loaded = _loaded(
            place, BlipForImageTextRetrieval, place, BlipProcessor
        )
        self.device, self.batch_size = pick_device(device), batch_size
        self.model = model.to(self.device)

    @staticmethod
    def check(settings: BlipScorer, where: str) -> None:
        """Check that the model is there and complete. Raises AigiError."""
        from transformers import BlipForImageTextRetrieval

        place = Place.of(where, settings.folder, settings.model, settings.revision)
        _checked(place, BlipForImageTextRetrieval)

    def __call__(self, pictures: Sequence[RGB], texts: Sequence[str]) -> Scores:
        """One probability (float64) for each pair; images are uint8, H x W x 3."""

        def score(inputs: Any) -> Any:
            return self.model(**inputs, use_itm_head=True).itm_score.softmax(dim=1)[:, 1]

        return _in_batches(self, score, pictures, texts)


class PickScore:
    """Scaled cosine of a CLIP model that was trained on people's choices (Kirstain 2023)."""

    def __init__(self, settings: PickScorer, batch_size: int, device: str, where: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        place = Place.of(where, settings.folder, settings.model, settings.revision)
        beside = place
        if settings.folder is None:
            beside = Place(f"{where}.processor", place.instead, repository=settings.processor)
        model, self.processor, self.loaded = _loaded(place, CLIPModel, beside, CLIPProcessor)
        self.device, self.batch_size = pick_device(device), batch_size
        self.model = model.to(self.device)

    @staticmethod
    def check(settings: PickScorer, where: str) -> None:
        """Check that the model is there and complete. Raises AigiError."""
        from transformers import CLIPModel

        _checked(Place.of(where, settings.folder, settings.model, settings.revision), CLIPModel)

    def __call__(self, pictures: Sequence[RGB], texts: Sequence[str]) -> Scores:
        """One score (float64) for each pair; images are uint8, H x W x 3.

        Published weights give scores around 20; higher is better.
        """

        def score(inputs: Any) -> Any:
            found = self.model(**inputs)
            cosines = (found.image_embeds * found.text_embeds).sum(dim=1)
            return self.model.logit_scale.exp() * cosines

        return _in_batches(self, score, pictures, texts)


def _in_batches(
    scorer: BlipMatch | PickScore,
    score: Callable[[Any], Any],
    pictures: Sequence[RGB],
    texts: Sequence[str],
) -> Scores:
    import torch

    limit = getattr(scorer.model.config.text_config, "max_position_embeddings", 77)
    found = np.empty(len(texts))
    for start in range(0, len(texts), scorer.batch_size):
        part = slice(start, start + scorer.batch_size)
        inputs = scorer.processor(
            images=[Image.fromarray(rgb) for rgb in pictures[part]],
            text=list(texts[part]),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=limit,
        ).to(scorer.device)
        with torch.inference_mode():
            found[part] = score(inputs).float().cpu().numpy()
    return found


SCORERS: Mapping[str, type[ClipScore] | type[BlipMatch] | type[PickScore]] = {
    "open_clip": ClipScore,
    "blip_itm": BlipMatch,
    "pick_score": PickScore,
}
"""The class of each kind of settings."""


def _where(name: str) -> str:
    return f"alignments.models.{name}"


def check(scorers: Mapping[str, Scorer]) -> None:
    """Check that the models of the settings are there and complete, before any work.

    Raises:
        AigiError: one is missing, or its file does not have its tensors; names it.
    """
    for name, settings in scorers.items():
        kind: Any = SCORERS[settings.kind]
        kind.check(settings, _where(name))


def load(scorers: Mapping[str, Scorer], batch_size: int, device: str) -> dict[str, Score]:
    """Load the models of the settings, by their names there.

    Raises:
        AigiError: a model cannot be loaded; names it.
    """
    found: dict[str, Score] = {}
    for name, settings in scorers.items():
        kind: Any = SCORERS[settings.kind]
        found[name] = kind(settings, batch_size, device, _where(name))
    return found
