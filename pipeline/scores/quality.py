"""Images in, the `quality` table out: scores of content and pixels. It judges nothing.

Thresholds belong to the selection, so that a new one costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline import AigiError
from pipeline.files import folder_sha256
from pipeline.models.clip import Clip, Embeddings, Vectors, check_weights
from pipeline.pixels import PNG_MAGIC, RGB, decode_threads, png_bytes
from pipeline.scores.embeddings import (
    Row,
    column_vectors,
    images_and_plan,
    names,
    prepared_batches,
    stored_picture,
)
from pipeline.scores.measures import measures, perceptual_hash
from pipeline.scores.safety import (
    CHECKER_WEIGHTS,
    Pixels,
    SafetyChecker,
    SafetyScorer,
    check_checker,
    find_checker,
)
from pipeline.settings import Count, Settings
from pipeline.stage import Compute, Map
from pipeline.store import Store
from pipeline.tables import QUALITY


class Concept(Settings):
    """Something that an image may show: sentences about it, and sentences for images without it."""

    texts: tuple[str, ...] = Field(min_length=1, description="sentences that describe the concept")
    neutral: tuple[str, ...] = Field(
        min_length=1, description="sentences that describe an image without it"
    )


class Quality(Settings):
    """The `images` table in, the `quality` table out: scores; the selection has thresholds."""

    safety_checker: SafetyChecker | None = None
    concepts: dict[str, Concept] = Field(
        default_factory=dict, description="by name; they need the embeddings section"
    )
    batch_size: Count = Field(16, description="images scored at once")
    decode_threads: Count | None = Field(None, description="null: all cores, up to 8")


VERSION = 1


def concept_scores(images: Vectors, texts: Vectors, neutral: Vectors, scale: float) -> Vectors:
    """Probability that an image is one of `texts` and not one of `neutral`, 0 to 1, for each.

    CLIP's zero-shot classification: a softmax over the cosines with all sentences, times the
    model's own scale; the shares of `texts` are summed. NaN stays NaN.

    Args:
        images: float32, N x D, length 1.
        texts, neutral: vectors of the sentences: float32, any number x D, length 1.
        scale: `Clip.logit_scale`.

    Returns: float32, N, 0 to 1.
    """
    logits = scale * (images @ np.concatenate([texts, neutral]).T)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Vectors = shares[:, : len(texts)].sum(axis=1) / shares.sum(axis=1)
    return found


@dataclass(frozen=True)
class _Looked:
    measures: Mapping[str, float]
    perceptual_hash: int
    png_bpp: float
    pixels: Pixels | None  # for the safety checker, where there is one


class Inspector:
    """A worker: rows with an image in, `quality` rows out.

    Args:
        settings: which scores.
        embeddings: the model that made the vectors; needed for concepts only.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device, or concepts without embeddings.
    """

    def __init__(
        self, settings: Quality, embeddings: Embeddings | None = None, device: str = "auto"
    ) -> None:
        self.settings = settings
        self.threads = decode_threads(settings.decode_threads)
        self.concepts: dict[str, tuple[Vectors, Vectors]] = {}
        self.scale = 1.0
        self.loaded: dict[str, str] = {}
        if settings.concepts:
            # Of this model only the sentences are needed: it is gone before the next one comes.
            clip = Clip(_needed(embeddings), device)
            self.loaded["embeddings"] = clip.loaded
            self.scale = clip.logit_scale
            self.concepts = {
                name: (clip.text_vectors(concept.texts), clip.text_vectors(concept.neutral))
                for name, concept in sorted(settings.concepts.items())
            }
            del clip
        self.checker = (
            None
            if settings.safety_checker is None
            else SafetyScorer(settings.safety_checker, device)
        )
        if self.checker is not None:
            self.loaded["safety_checker"] = self.checker.loaded

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield scores in row order, one chunk per batch.

        Args:
            rows: image_id, image, width, height, planned_width and planned_height, and with
                concepts image_vector; the image is null where it failed.

        Raises:
            AigiError: a stored image is damaged, or the device has too little memory.
        """
        probabilities: dict[str, Vectors] = {}
        if self.concepts:
            vectors = column_vectors(rows["image_vector"])
            rows = rows.drop_columns(["image_vector"])
            probabilities = {
                name: concept_scores(vectors, texts, neutral, self.scale)
                for name, (texts, neutral) in self.concepts.items()
            }
        at = 0
        for part, looked in prepared_batches(
            rows, self.settings.batch_size, self.threads, self._look
        ):
            nsfw: Iterator[float | None] = iter(self._nsfw(looked))
            found: list[Row] = []
            for number, (row, look) in enumerate(zip(part, looked, strict=True), start=at):
                found.append({"image_id": row["image_id"]})
                if look is None:
                    continue
                found[-1] |= {
                    "nsfw": next(nsfw),
                    "concepts": [(name, p[number]) for name, p in probabilities.items()],
                    "width_ok": _as_planned(row),
                    **look.measures,
                    "perceptual_hash": look.perceptual_hash,
                    "png_bpp": look.png_bpp,
                }
            at += len(part)
            yield pa.Table.from_pylist(found, schema=QUALITY)

    def _look(self, row: Row) -> _Looked:
        rgb = stored_picture(row)
        pixels = self.checker.prepare(rgb) if self.checker else None
        return _Looked(measures(rgb), perceptual_hash(rgb), _png_bpp(row, rgb), pixels)

    def _nsfw(self, looked: list[_Looked | None]) -> list[float] | list[None]:
        good = [look for look in looked if look is not None]
        if self.checker is None:
            return [None] * len(good)
        return self.checker.scores([look.pixels for look in good if look.pixels is not None])


def _png_bpp(row: Row, rgb: RGB) -> float:
    """Bits a pixel of an image as PNG: of its own file, or of what it would be.

    A measure of the pixels must not depend on what they are stored in.
    """
    data: bytes = row["image"]["bytes"]
    png = data if data.startswith(PNG_MAGIC) else png_bytes(rgb)
    return 8 * len(png) / rgb[..., 0].size


def _as_planned(row: Row) -> bool:
    # An imported image may keep its own size; then the plan has none.
    return all(row[f"planned_{side}"] in (None, row[side]) for side in ("width", "height"))


def _needed(embeddings: Embeddings | None) -> Embeddings:
    if embeddings is None:
        raise AigiError(
            "quality.concepts: they are compared with the vectors of the embeddings table, and "
            "there is no embeddings section. Add it to the workflow, or remove concepts."
        )
    return embeddings


def _make_worker(
    settings: Quality, embeddings: Embeddings | None, device: str, threads: int
) -> Inspector:
    import torch

    torch.set_num_threads(threads)
    return Inspector(settings, embeddings, device)


def _read(concepts: bool, store: Store, shard: str) -> pa.Table:
    rows = images_and_plan(store, shard, {"width": "planned_width", "height": "planned_height"})
    if not concepts:
        return rows
    found = store.aligned(shard, {"embeddings": ["image_vector"]}, rows["image_id"])
    return rows.append_column("image_vector", found["embeddings"]["image_vector"])


def _check(settings: Quality, embeddings: Embeddings | None) -> None:
    if settings.safety_checker is not None:
        check_checker(settings.safety_checker)
    if embeddings is not None:
        check_weights(embeddings)


def stage(settings: Quality, embeddings: Embeddings | None, compute: Compute) -> Map:
    """The quality stage; concepts are compared by the model of the embeddings section.

    Raises:
        AigiError: concepts without an embeddings section, or no safety checker in its folder.
    """
    concepts = bool(settings.concepts)
    needed = _needed(embeddings) if concepts else None
    checker: dict[str, Any] | None = None
    if settings.safety_checker is not None:
        folder = settings.safety_checker.folder
        if folder is None:
            checker = settings.safety_checker.model_dump(mode="json", exclude={"folder"})
        else:
            find_checker(settings.safety_checker)
            checker = {"folder": folder_sha256(folder, CHECKER_WEIGHTS)}
    return Map(
        table="quality",
        version=VERSION,
        schema=QUALITY,
        settings={
            "safety_checker": checker,
            **settings.model_dump(mode="json", include={"concepts", "batch_size"}),
            "threads": compute.threads,
        },
        inputs=("plan", "images", *(("embeddings",) if concepts else ())),
        names=names,
        read=partial(_read, concepts),
        make_worker=partial(
            _make_worker,
            settings,
            needed,
            compute.device,
            compute.threads,
        ),
        check=partial(_check, settings, needed),
    )
