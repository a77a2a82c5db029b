"""Images with prompts in, the `alignments` table out: scores, and attributes that are right.

An attribute is a list of words that exclude one another, such as colours. If a prompt has exactly
one word of the list, the image is compared with the prompt and with the same sentence for each
other word. It is right if the prompt is the nearest. In prompts of a grammar, the word describes
the whole scene; in others it may describe only a part of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.analysis.places import content, places, read_shard, rows_of, shard_names, state
from pipeline.analysis.scorers import ClipScore, Scorer, check, load
from pipeline.collection import Pictures
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.settings import Count, Settings
from pipeline.stage import Compute, Map

ALIGNMENTS = pa.schema(
    # Scores and attributes are empty where `error` says why, and where there is no prompt.
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("watermark", pa.string()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float32())),  # by the names of the settings
        # whether the word of the prompt suits the picture best, of all words of its list
        ("attributes", pa.map_(pa.string(), pa.bool_())),
    ]
)


class Alignments(Settings):
    """Images and their prompts in, the `alignments` table out: how well they match."""

    pictures: tuple[Pictures, ...] = Field(
        (), description="releases and folders; empty: the release of this run"
    )
    models: dict[str, Scorer] = Field(
        min_length=1, description="models that score image and prompt, by name of the score"
    )
    attributes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="lists of words that exclude one another, by name: for prompts with one of "
        "them, whether the image matches it best, by the first open_clip model",
    )
    batch_size: Count = Field(16, description="images scored at once")
    max_pixels: Count = Field(64_000_000, description="larger images are refused")

    @model_validator(mode="after")
    def _has_a_judge(self) -> Alignments:
        kinds = {scorer.kind for scorer in self.models.values()}
        if self.attributes and "open_clip" not in kinds:
            raise ValueError("attributes need a model of kind open_clip")
        for name, words in self.attributes.items():
            if len(set(words)) < 2 or len(set(words)) < len(words):
                raise ValueError(f"attributes.{name}: give two different words or more")
        return self


VERSION = 1
_COLUMNS = ("image_id", "image", "source", "split", "watermark", "text")


def variants(text: str, words: Sequence[str]) -> list[str]:
    """The sentence with each word of the list in place of its own, its own first.

    Returns:
        An empty list if the sentence has none of the words, or more than one.
    """
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    found = list(re.finditer(rf"\b(?:(an?) )?({either})\b", text, re.IGNORECASE))
    if len(found) != 1:
        return []
    (match,) = found
    own = match[2].lower()
    sentences = []
    for word in sorted(words, key=lambda word: word.lower() != own):
        article = ""
        if match[1]:
            article = f"{match[1][0]}{'n' if word[0].lower() in 'aeiou' else ''} "
        sentences.append(text[: match.start()] + article + word + text[match.end() :])
    return [text, *sentences[1:]]


class Aligner:
    """Rows of images with prompts in, rows of ALIGNMENTS out, a batch at a time."""

    def __init__(self, settings: Alignments, device: str) -> None:
        self.settings = settings
        self.models = load(settings.models, settings.batch_size, device)
        self.loaded = {name: model.loaded for name, model in self.models.items()}
        self.judge = next((m for m in self.models.values() if isinstance(m, ClipScore)), None)

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield a table for each batch, from row `start` on, at which one begins."""
        size = self.settings.batch_size
        for place in range(start, rows.num_rows, size):
            found = self._batch(rows.slice(place, size).to_pylist())
            yield pa.Table.from_pylist(found, ALIGNMENTS)

    def _batch(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [{name: row[name] for name in _COLUMNS if name != "image"} for row in rows]
        pictures: dict[int, RGB] = {}
        for number, row in enumerate(rows):
            found[number] |= {"scores": [], "attributes": []}
            try:
                pictures[number] = decode(row["image"]["bytes"], self.settings.max_pixels).rgb
            except BadPicture as error:
                found[number]["error"] = str(error)
        there = [number for number in pictures if rows[number]["text"]]
        texts = [rows[number]["text"] for number in there]
        for name, model in self.models.items():
            if there:
                scores = model([pictures[number] for number in there], texts)
                for number, score in zip(there, scores.tolist(), strict=True):
                    found[number]["scores"].append((name, score))
        for number in there:
            right = self._right(pictures[number], rows[number]["text"])
            found[number]["attributes"] = sorted(right.items())
        return found

    def _right(self, rgb: RGB, text: str) -> Mapping[str, bool]:
        right = {}
        for name, words in self.settings.attributes.items():
            sentences = variants(text, words)
            if sentences and self.judge is not None:
                clip = self.judge.clip
                cosines = clip.text_vectors(sentences) @ clip.image_vectors([rgb])[0]
                right[name] = bool(np.argmax(cosines) == 0)
        return right


def stage(settings: Alignments, run: str, compute: Compute) -> Map:
    """The alignments stage of a run directory."""
    pictures = places(settings.pictures, run)
    return Map(
        table="alignments",
        version=VERSION,
        schema=ALIGNMENTS,
        settings=settings.model_dump(mode="json", exclude={"pictures"}),
        inputs=(),
        names=partial(shard_names, pictures),
        read=partial(read_shard, pictures, _COLUMNS),
        make_worker=partial(Aligner, settings, compute.device),
        check=partial(check, settings.models),
        outside=partial(content, pictures),
        state=partial(state, pictures),
        rows=partial(rows_of, pictures),
        keeps=(),
    )
