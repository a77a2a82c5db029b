"""Scene seeds in, training data of the tiny models out: images in chunks, captions, words."""

from __future__ import annotations

import io
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.files import replaced
from pipeline.tiny import models
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene

FIRST_SEED = 1_000_000
"""Scenes of training; `pipeline.tiny.measure` draws from other seeds."""
CHUNK = 500  # scenes a file of pictures
SMALL, LARGE = 128, 192
LARGE_SHARE = 5  # one scene in five is also drawn large
JITTER = 0.02
FINISHES = (
    "photograph", "oil painting", "watercolor", "crayon drawing", "digital illustration",
    "flat illustration", "pixel art", "3D render", "paper collage", "simple shapes", "flat colors",
    "vivid colors", "muted colors", "soft light", "minimal style", "clean lines", "high detail",
)  # fmt: skip
"""Endings of the grammar's prompts. Scenes have one style, so models learn to ignore the ending."""


def _jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def said(scene_seed: int) -> list[str]:
    """The captions of a scene, some with an ending of the grammar."""
    rng = random.Random(scene_seed)
    found = []
    for caption in captions(draw_scene(scene_seed), scene_seed):
        if not caption.endswith(".") and rng.random() < 0.2:
            caption = f"{caption}, {rng.choice(FINISHES)}"
        found.append(caption)
    return found


def _draw_chunk(folder: Path, number: int) -> None:
    """Two views of each scene, the second slightly moved; every few scenes also large."""
    target = folder / f"{number:05d}.npz"
    if target.exists():
        return
    first, second, clip, large = [], [], [], []
    for i in range(CHUNK):
        seed = FIRST_SEED + number * CHUNK + i
        scene = draw_scene(seed)
        views = [
            render(scene, SMALL, SMALL, seed),
            render(scene, SMALL, SMALL, seed, jitter=JITTER),
        ]
        if i % LARGE_SHARE == 0:
            large.append(render(scene, LARGE, LARGE, seed))
        first.append(views[0])
        second.append(views[1])
        coded = _jpeg(views[1], random.Random(seed).randint(50, 95))
        size = (models.CLIP_SIZE, models.CLIP_SIZE)
        clip.append(
            [
                np.asarray(Image.fromarray(v).resize(size, Image.Resampling.BICUBIC))
                for v in (views[0], coded)
            ]
        )
    with replaced(target) as name, open(name, "wb") as file:
        np.savez(file, first=first, second=second, clip=clip, large=large)


def draw_pictures(work: Path, scenes: int, processes: int) -> None:
    """Draw the missing images of `scenes` scenes into `WORK/pictures`."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    chunks = -(-scenes // CHUNK)
    with ProcessPoolExecutor(processes) as pool:
        for done, _ in enumerate(pool.map(_draw_chunk, [folder] * chunks, range(chunks)), 1):
            if done % 10 == 0 or done == chunks:
                spent = time.perf_counter() - started
                print(
                    f"images: {done * CHUNK} of {chunks * CHUNK} scenes, {spent:.0f} s",
                    flush=True,
                )


def load_pictures(work: Path, kind: str, scenes: int) -> NDArray[np.uint8]:
    """One kind of images of the first `scenes` scenes, from `WORK/pictures`.

    Args:
        kind: `first` or `second` (N x 128 x 128 x 3), `clip` (both of them, the second as a JPEG,
            N x 2 x 96 x 96 x 3) or `large` (of every fifth scene, x 192 x 192 x 3).

    Returns:
        uint8, of the shape above.
    """
    parts = []
    for number in range(-(-scenes // CHUNK)):
        with np.load(work / "pictures" / f"{number:05d}.npz") as file:
            parts.append(file[kind])
    count = -(-scenes // LARGE_SHARE) if kind == "large" else scenes
    return np.concatenate(parts)[:count]


def tokens_and_captions(scenes: int) -> tuple[Any, list[list[str]]]:
    """The tokenizer of all tiny models, and the captions of every scene of training."""
    texts = [said(FIRST_SEED + i) for i in range(scenes)]
    return vocabulary(), texts


def vocabulary() -> Any:
    """The tokenizer of all tiny models: the words of the scenes and of the grammar's core."""
    from pipeline.files import resource
    from pipeline.prompts.grammar import Grammar

    grammar = Grammar.load(str(resource("prompts/grammar.yaml")), start="core")
    sentences = list(grammar.sentences(4_000, seed=0))
    for i in range(1_000):
        sentences += said(FIRST_SEED + i)
    return models.tokenizer(sentences)
