"""Pictures in, the `quality` table out: scores of content and pixels. It judges nothing.

Thresholds belong to the selection, so that a new one costs seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline import AigiError
from pipeline.clip import Clip, Vectors, folder_sha256, hub_file
from pipeline.dataset.embeddings import (
    Row,
    column_vectors,
    images_and_plan,
    names,
    prepared_batches,
    stored_picture,
)
from pipeline.dataset.hashes import perceptual_hash
from pipeline.device import pick_device
from pipeline.pixels import RGB, decode_threads
from pipeline.run import Map
from pipeline.tables import QUALITY, Store
from pipeline.workflow import Embeddings, Quality, Workflow
from pipeline.workflow import SafetyChecker as SafetyCheckerSettings

VERSION = 1
BLACK = 8
"""A pixel is nearly black where none of its channels is above this."""
GRID = 8
GRID_SIDE = 32
"""Below this many pixels a side there are too few grid lines to tell a grid from chance."""
CHECKER_WEIGHTS = "model.safetensors"
CHECKER_FILES = ("config.json", "preprocessor_config.json", CHECKER_WEIGHTS)

Pixels = npt.NDArray[np.float32]
"""A picture as the safety checker takes it: float32, 3 x S x S, normalised."""


def black(rgb: RGB) -> float:
    """Share of nearly black pixels, 0 to 1: no channel is above `BLACK`."""
    brightest = np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])
    return float((brightest <= BLACK).mean())


def blank(rgb: RGB) -> float:
    """Share of the commonest colour, of 16 levels a channel: above 0, and 1 for a flat picture."""
    levels = (rgb >> 4).astype(np.uint16)
    colours = levels[..., 0] << 8 | levels[..., 1] << 4 | levels[..., 2]
    return float(np.bincount(colours.ravel()).max() / colours.size)


def luminance(rgb: RGB) -> RGB:
    """Luminance (Rec. 601, as JPEG has it), rounded: uint8, H x W, 0 to 255."""
    grey: RGB = np.asarray(Image.fromarray(rgb).convert("L"))
    return grey


def luminance_measures(grey: RGB) -> dict[str, float]:
    """Mean and standard deviation (0 to 255, 0 to 127.5), entropy of the histogram (0 to 8 bits).

    Args:
        grey: uint8, H x W.
    """
    counts = np.bincount(grey.ravel(), minlength=256)
    share = counts / grey.size
    levels = np.arange(256)
    mean = float(share @ levels)
    there = share[counts > 0]
    return {
        "luminance_mean": mean,
        "luminance_std": float(np.sqrt(share @ (levels - mean) ** 2)),
        # Adding 0 turns the -0.0 of a flat picture into 0.0.
        "entropy": float(-(there * np.log2(there)).sum()) + 0.0,
    }


def blockiness(grey: RGB) -> float:
    """How much stronger steps are on the lines of an 8x8 grid than beside them; 1 is no grid.

    The ratio of the two features that Wang, Sheikh and Bovik found for JPEG ("No-reference
    perceptual quality assessment of JPEG compressed images", ICIP 2002): the mean absolute
    difference of neighbours across block borders, and inside blocks. Three changes: of the lines
    of a grid the median is taken, so that frames and edges of the picture do not count; the grid
    may lie anywhere, as after a crop, and the strongest one is taken; and 1 is added to both
    features, so that steps that nobody sees count little in a flat picture: steps of one level on
    every line of a grid give 2 at most.

    On the 24 Kodak pictures it is 1.01 to 1.10 as they are, 1.08 to 1.35 after JPEG of quality 75,
    1.22 to 1.59 after 50, 1.33 to 1.90 after 30, and 1.79 to 3.14 after 10.

    Args:
        grey: luminance, uint8, H x W.

    Returns:
        1 to 256; 1 where both sides are below `GRID_SIDE`.
    """
    across, inside = [], []
    for axis in (0, 1):
        if grey.shape[axis] < GRID_SIDE:
            continue
        steps = np.abs(np.diff(grey.astype(np.int16), axis=axis)).mean(axis=1 - axis)
        lines = np.array([np.median(steps[shift::GRID]) for shift in range(GRID)])
        across.append(lines.max())
        inside.append((lines.sum() - lines.max()) / (GRID - 1))
    if not across:
        return 1.0
    # Not below 1 for a rounding of the two sums.
    return max(1.0, float((np.mean(across) + 1) / (np.mean(inside) + 1)))


def measures(rgb: RGB) -> dict[str, float]:
    """All measures that need nothing but the pixels (uint8, H x W x 3), by column."""
    grey = luminance(rgb)
    return {
        "black": black(rgb),
        "blank": blank(rgb),
        **luminance_measures(grey),
        "blockiness": blockiness(grey),
    }


def concept_scores(images: Vectors, texts: Vectors, neutral: Vectors, scale: float) -> Vectors:
    """Probability that a picture is one of `texts` and not one of `neutral`, 0 to 1, for each.

    CLIP's zero-shot classification: a softmax over the cosines with all sentences, times the
    model's own scale; the shares of `texts` are summed. NaN stays NaN.

    Args:
        images: N x D, length 1.
        texts, neutral: vectors of the sentences, length 1.
        scale: `Clip.logit_scale`.
    """
    logits = scale * (images @ np.concatenate([texts, neutral]).T)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Vectors = shares[:, : len(texts)].sum(axis=1) / shares.sum(axis=1)
    return found


class SafetyChecker:
    """The safety checker of Stable Diffusion, for its scores: it blackens nothing.

    Args:
        settings: where its weights come from.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device, or the weights do not fit.
    """

    def __init__(self, settings: SafetyCheckerSettings, device: str = "auto") -> None:
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
                f"{error}\nCopy or download it anew."
            ) from error
        if info["missing_keys"]:
            # They would be random, and so would be the scores.
            raise AigiError(
                f"quality.safety_checker: {settings.folder or settings.model}: the weights lack "
                f"{', '.join(sorted(info['missing_keys'])[:3])}, …: not a safety checker"
            )
        self.model: Any = model.to(self.device).eval()

    def prepare(self, rgb: RGB) -> Pixels:
        """A picture (uint8, H x W x 3) as the model takes it. Safe in threads."""
        pixels: Pixels = self.processor(
            images=rgb, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"][0]
        return pixels

    def scores(self, pictures: Sequence[Pixels]) -> list[float]:
        """The highest score of a concept over its threshold, for each of a batch of pictures.

        To the rounding (three decimals) that of diffusers: above 0 exactly where it flags. A
        picture near one of the three special concepts has 0.01 added, as there.

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


def find_checker(settings: SafetyCheckerSettings) -> None:
    """See that the files of the safety checker are there; downloaded if need be.

    Raises:
        AigiError: one is not.
    """
    for file in CHECKER_FILES:
        if settings.folder is None:
            hub_file("quality.safety_checker", settings.model, file, settings.revision)
        elif not os.path.isfile(os.path.join(settings.folder, file)):
            raise AigiError(
                f"quality.safety_checker.folder: {settings.folder} has no {file} (weights in "
                "pickle files are not read). Copy the folder anew, or convert it with "
                "save_pretrained."
            )


@dataclass(frozen=True)
class _Looked:
    measures: Mapping[str, float]
    perceptual_hash: int
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
        if settings.concepts:
            # Of this model only the sentences are needed: it is gone before the next one comes.
            clip = Clip(_needed(embeddings), device)
            self.scale = clip.logit_scale
            self.concepts = {
                name: (clip.text_vectors(concept.texts), clip.text_vectors(concept.neutral))
                for name, concept in sorted(settings.concepts.items())
            }
            del clip
        self.checker = (
            None
            if settings.safety_checker is None
            else SafetyChecker(settings.safety_checker, device)
        )

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield scores in row order, a chunk a batch.

        Args:
            rows: image_id, image, width, height, planned_width and planned_height, and with
                concepts image_vector; the image is null where it failed.

        Raises:
            AigiError: a stored picture is damaged, or the device has too little memory.
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
                    "png_bpp": 8 * len(row["image"]["bytes"]) / (row["width"] * row["height"]),
                }
            at += len(part)
            yield pa.Table.from_pylist(found, schema=QUALITY)

    def _look(self, row: Row) -> _Looked:
        rgb = stored_picture(row)
        pixels = self.checker.prepare(rgb) if self.checker else None
        return _Looked(measures(rgb), perceptual_hash(rgb), pixels)

    def _nsfw(self, looked: list[_Looked | None]) -> list[float] | list[None]:
        good = [look for look in looked if look is not None]
        if self.checker is None:
            return [None] * len(good)
        return self.checker.scores([look.pixels for look in good if look.pixels is not None])


def _as_planned(row: Row) -> bool:
    # An imported picture may keep its own size; then the plan has none.
    return all(row[f"planned_{side}"] in (None, row[side]) for side in ("width", "height"))


def _needed(embeddings: Embeddings | None) -> Embeddings:
    if embeddings is None:
        raise AigiError(
            "quality.concepts: they are compared with the vectors of the embeddings table, and "
            "there is no embeddings section. Add it to the workflow, or leave out concepts."
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
    vectors = store.read("embeddings", shard, ["image_id", "image_vector"])
    if vectors["image_id"] != rows["image_id"]:
        raise AigiError(
            f"{store.path('embeddings', shard)}.parquet does not have the rows of the images. "
            "Delete it and run again to make it anew."
        )
    return rows.append_column("image_vector", vectors["image_vector"])


def _check(settings: Quality) -> None:
    if settings.safety_checker is not None:
        find_checker(settings.safety_checker)


def stage(workflow: Workflow) -> Map:
    """The quality stage of a workflow that has a quality section.

    Raises:
        AigiError: concepts without an embeddings section, or no safety checker in its folder.
    """
    settings = workflow.quality
    assert settings is not None
    concepts = bool(settings.concepts)
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
            "threads": workflow.compute.threads,
        },
        inputs=("plan", "images", *(("embeddings",) if concepts else ())),
        names=names,
        read=partial(_read, concepts),
        make_worker=partial(
            _make_worker,
            settings,
            _needed(workflow.embeddings) if concepts else None,
            workflow.compute.device,
            workflow.compute.threads,
        ),
        check=partial(_check, settings),
    )
