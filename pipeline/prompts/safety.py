"""Prompts in; how unsafe each one is for a public dataset, by several scorers, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import AigiError
from pipeline.files import resource, signature
from pipeline.models.device import pick_device
from pipeline.models.hub import Place, loading
from pipeline.models.weights import Part, check_transformers, digest
from pipeline.prompts.lexicon import NOTHING, Hit, Lexicon
from pipeline.prompts.parts import Split, Vocabulary
from pipeline.settings import Count, Location, Settings

SHIPPED = "prompts/unsafe.yaml"
_FILES = ("config.json", "*.safetensors")
_BESIDE = ("*.json", "*.txt", "*.model")


class LexiconScorer(Settings):
    """Words and their combinations; offline, a few microseconds a prompt."""

    kind: Literal["lexicon"] = "lexicon"
    name: str = Field("lexicon", description="how its scores are called")
    path: Location | None = Field(None, description="a lexicon file; null: prompts/unsafe.yaml")


class ClassifierScorer(Settings):
    """Any text classifier of transformers; its score is the probability of the unsafe labels."""

    kind: Literal["classifier"]
    name: str = Field("classifier", description="how its scores are called")
    model: str = Field(description="ORG/NAME on the Hub")
    revision: str | None = None
    folder: Location | None = Field(None, description="a local copy of the model")
    labels: tuple[str, ...] = Field(
        min_length=1, description="labels that are unsafe; their probabilities are added"
    )
    batch_size: Count = Field(64, description="prompts scored at once")
    max_tokens: Count = Field(128, description="of a prompt that are read")


SafetyScorer = Annotated[LexiconScorer | ClassifierScorer, Field(discriminator="kind")]

Score = Callable[[Split], list[Hit]]


def recorded(scorer: LexiconScorer | ClassifierScorer) -> dict[str, Any]:
    """What decides the scores, as JSON values, without where files are."""
    if isinstance(scorer, LexiconScorer):
        return {"kind": scorer.kind, "name": scorer.name, "content": signature(_path(scorer))}
    return scorer.model_dump(mode="json", exclude={"folder"})


def _path(scorer: LexiconScorer) -> str:
    return scorer.path or str(resource(SHIPPED))


def opened(
    scorer: LexiconScorer | ClassifierScorer, device: str, vocabulary: Vocabulary
) -> tuple[Score, str | None]:
    """A scorer ready to work, and the digest of its weights, if it has some.

    Args:
        device: of a model.
        vocabulary: of the parts of prompts.

    Raises:
        AigiError: its file or model is missing, damaged, or has no such labels.
    """
    if isinstance(scorer, LexiconScorer):
        return Lexicon(_path(scorer), vocabulary).scores, None
    found = Classifier(scorer, device)
    return lambda split: found(split.texts), found.loaded


def check_names(scorers: Sequence[LexiconScorer | ClassifierScorer]) -> None:
    """Raises AigiError: two scorers have one name, under which their scores are stored."""
    names = [scorer.name for scorer in scorers]
    if twice := {name for name in names if names.count(name) > 1}:
        raise AigiError(
            f"prompts.safety: two scorers have the name {min(twice)}. Give each its own `name`."
        )


def check(scorers: Sequence[LexiconScorer | ClassifierScorer]) -> None:
    """Check that files and models are there and complete, before any work. Raises as `opened`."""
    check_names(scorers)
    for scorer in scorers:
        if isinstance(scorer, LexiconScorer):
            Lexicon(_path(scorer))
        else:
            _checked(scorer)


def _checked(scorer: ClassifierScorer) -> tuple[Part, str, list[int]]:
    """How errors name the model, its folder on this machine, and the places of the labels."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    place = Place.of("prompts.safety", scorer.folder, scorer.model, scorer.revision)
    folder = place.fetch(*_FILES, beside=_BESIDE)
    part = Part(place.where, place)
    with loading(part.where, part.model):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    there = {str(label): int(number) for number, label in config.id2label.items()}
    for label in scorer.labels:
        if label not in there:
            raise AigiError(
                f"prompts.safety: {place}: no label {label}. It has {', '.join(there)}."
            )
    check_transformers(part, AutoModelForSequenceClassification, folder)
    return part, folder, [there[label] for label in scorer.labels]


class Classifier:
    """Prompts in, the probability of the unsafe labels out.

    Args:
        scorer: the model, and which of its labels are unsafe.
        device: auto, cpu, cuda, cuda:N or mps.

    Attributes:
        loaded: digest of the weights of the model.

    Raises:
        AigiError: the model is missing, incomplete, or has no such label.
    """

    def __init__(self, scorer: ClassifierScorer, device: str = "auto") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        part, folder, self._places = _checked(scorer)
        self._scorer, self._device = scorer, pick_device(device)
        with loading(part.where, part.model):
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        self.loaded = digest(part, model)
        self._several = model.config.problem_type == "multi_label_classification"
        self._model = model.eval().to(self._device)

    def __call__(self, texts: Sequence[str]) -> list[Hit]:
        """The scores of some prompts; a batch has prompts of like length, whatever their order."""
        found = [NOTHING] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        size = self._scorer.batch_size
        for start in range(0, len(order), size):
            some = order[start : start + size]
            for place, score in zip(some, self._scores([texts[n] for n in some]), strict=True):
                found[place] = Hit(score, "+".join(self._scorer.labels))
        return found

    def _scores(self, texts: list[str]) -> list[float]:
        import torch

        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._scorer.max_tokens,
            return_tensors="pt",
        ).to(self._device)  # fmt: skip
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()
        # Of labels that exclude one another probabilities add up; of others the highest counts.
        shares = logits.sigmoid() if self._several else logits.softmax(-1)
        chosen = shares[:, self._places]
        scores = chosen.amax(-1) if self._several else chosen.sum(-1)
        values = [float(score) for score in scores.cpu()]
        if not all(map(math.isfinite, values)):
            raise AigiError(f"prompts.safety: {self._scorer.model}: its scores are no numbers")
        return [min(1.0, value) for value in values]
