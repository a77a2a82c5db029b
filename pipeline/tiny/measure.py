"""Trained tiny models in; what they can do, as numbers, and contact sheets of what they draw, out.

python -m pipeline.tiny.measure [MODELS] [--prompts 128] [--sheets FOLDER] [--json FILE]

Scenes and prompts are other ones than those of training: other seeds, and no caption that any
scene of training has. Without MODELS the models of this installation are measured.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.tiny.scenes import (
    Scene,
    captions,
    draw_scene,
    is_night,
    looks_night,
    main_color,
    render,
    seen_colors,
)
from pipeline.tiny.train import FIRST_SEED, JITTER, said

Rgb = NDArray[np.uint8]

HELD_OUT_SEED = 50_000_000
SCENES = 30_000  # of training; their captions are excluded
STEPS, GUIDANCE = 20, 4.0
CANDIDATES = 16
LEAST_SHARE = 0.02  # half of what the main color fills in every drawn scene
CELLS, FILLED = 12, 0.5
PIPELINES = {"sd": 128, "sdxl": 192}
"""Folder of a pipeline, and the size of its pictures in pixels."""


@dataclass(frozen=True)
class Case:
    """A scene that no model has seen, its seed and the caption to draw it by."""

    scene: Scene
    seed: int
    caption: str


@cache
def _trained_captions() -> frozenset[str]:
    return frozenset(text for i in range(SCENES) for text in said(FIRST_SEED + i))


def held_out(count: int, first: int = HELD_OUT_SEED) -> list[Case]:
    """Cases with distinct captions that name the main color and that no training scene has."""
    known = _trained_captions()
    found: dict[str, Case] = {}
    seed = first
    while len(found) < count:
        scene = draw_scene(seed)
        caption = captions(scene, seed)[2]  # the one with all colors
        if caption not in known and caption not in found and main_color(scene) in caption:
            found[caption] = Case(scene, seed, caption)
        seed += 1
    return list(found.values())


# --- Rules on pixels ---------------------------------------------------------------------------


def object_seen(rgb: Rgb, color: str) -> bool:
    """Whether some square of a 12x12 grid is at least half filled with a color."""
    height, width = (size // CELLS for size in rgb.shape[:2])
    return any(
        seen_colors(rgb[y * height : (y + 1) * height, x * width : (x + 1) * width])[color]
        >= FILLED
        for y in range(CELLS)
        for x in range(CELLS)
    )


def rules(rgb: Rgb, scene: Scene) -> dict[str, bool]:
    """What the pixels of a picture (uint8 HxWx3) say about a scene, model-free.

    Returns: `color`: the main color fills at least 2 % of the picture; `night`: the sky is dark
        just if the scene is of the night; `object`: something of the main color is compact enough
        to be a thing. No scene has its main color around its things, so noise or background of
        the wrong scene seldom pass.
    """
    color = main_color(scene)
    return {
        "color": seen_colors(rgb)[color] >= LEAST_SHARE,
        "night": looks_night(rgb) == is_night(scene),
        "object": object_seen(rgb, color),
    }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def rule_shares(pictures: Sequence[Rgb], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of the pictures that pass each rule, and all of them."""
    checked = [rules(rgb, scene) for rgb, scene in zip(pictures, scenes, strict=True)]
    shares = {name: _share([c[name] for c in checked]) for name in checked[0]}
    return shares | {"all": _share([all(c.values()) for c in checked])}


# --- CLIP --------------------------------------------------------------------------------------


class Clip:
    """The tiny CLIP through open_clip's own loading code."""

    def __init__(self, folder: Path) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        self._model, _, self._prepare = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    def images(self, pictures: Sequence[Rgb]) -> NDArray[np.float32]:
        """Normalised vectors (float32 NxD) of uint8 HxWx3 pictures."""
        import torch

        with torch.no_grad():
            parts = [
                self._model.encode_image(
                    torch.stack([self._prepare(Image.fromarray(p)) for p in pictures[i : i + 64]]),
                    normalize=True,
                )
                for i in range(0, len(pictures), 64)
            ]
        return np.asarray(torch.cat(parts).numpy())

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Normalised vectors (float32 NxD) of texts."""
        import torch

        with torch.no_grad():
            return np.asarray(
                self._model.encode_text(self._tokenizer(list(texts)), normalize=True).numpy()
            )


def retrieval(clip: Clip, cases: Sequence[Case], group: int = 64) -> float:
    """Share of pictures whose own caption is the nearest of the captions of their group."""
    vectors = clip.images([render(c.scene, 128, 128, c.seed) for c in cases])
    texts = clip.texts([c.caption for c in cases])
    found = []
    for i in range(0, len(cases) - group + 1, group):
        nearest = (vectors[i : i + group] @ texts[i : i + group].T).argmax(1)
        found += list(nearest == np.arange(group))
    return _share(found)


def _coded(rgb: Rgb, quality: int) -> Rgb:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def duplicates(clip: Clip, cases: Sequence[Case]) -> dict[str, float]:
    """Cosines of twins (moved, re-encoded, resized) and of pictures of different captions."""
    first = [render(c.scene, 128, 128, c.seed) for c in cases]
    vectors = clip.images(first)
    moved = [render(c.scene, 128, 128, c.seed, jitter=JITTER) for c in cases]
    smaller = [
        np.asarray(Image.fromarray(p).resize((112, 112), Image.Resampling.BICUBIC)) for p in first
    ]
    twins = {"moved": moved, "JPEG 75": [_coded(p, 75) for p in first], "resized": smaller}
    result = {}
    for name, pictures in twins.items():
        cosines = (vectors * clip.images(pictures)).sum(1)
        result[f"{name}, above 0.95"] = float((cosines > 0.95).mean())
    others = (vectors @ vectors.T)[~np.eye(len(cases), dtype=bool)]
    return result | {"different captions, below 0.9": float((others < 0.9).mean())}


def best_of(clip: Clip, pictures: Sequence[Rgb], cases: Sequence[Case]) -> float:
    """Share of pictures whose prompt is the best of 16: itself and 15 others, drawn at random."""
    vectors = clip.images(pictures)
    texts = clip.texts([c.caption for c in cases])
    rng = random.Random(0)
    found = []
    for i, vector in enumerate(vectors):
        others = rng.sample([j for j in range(len(cases)) if j != i], CANDIDATES - 1)
        found.append(bool((texts[others] @ vector).max() < texts[i] @ vector))
    return _share(found)


# --- Pipelines ---------------------------------------------------------------------------------


def load_pipeline(folder: Path) -> Any:
    """A tiny pipeline by `from_pretrained`, in float32 on the best device."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from pipeline.device import pick_device

    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    classes = {c.__name__: c for c in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
    options = {"add_watermarker": False} if kind == "StableDiffusionXLPipeline" else {}
    pipe = classes[kind].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(pick_device("auto"))


def generate(pipe: Any, prompts: Sequence[str], size: int, batch: int = 16) -> list[Rgb]:
    """One picture a prompt (uint8 size x size x 3), each from the seed of its position."""
    import torch

    found: list[Rgb] = []
    for i in range(0, len(prompts), batch):
        part = list(prompts[i : i + batch])
        made = pipe(
            part,
            width=size,
            height=size,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(i + k) for k in range(len(part))],
            output_type="np",
        )
        found += [np.asarray((p * 255).round(), np.uint8) for p in made.images]
    return found


def vae_psnr(vae: Any, cases: Sequence[Case], size: int) -> float:
    """Mean PSNR in dB of uint8 pictures after encoding (the mean) and decoding."""
    import torch

    found = []
    with torch.no_grad():
        for case in cases:
            rgb = render(case.scene, size, size, case.seed)
            tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
            decoded = vae.decode(vae.encode(tensor / 127.5 - 1).latent_dist.mean).sample
            again = ((decoded.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).cpu().numpy()
            error = ((again - rgb.astype(np.float64)) ** 2).mean()
            found.append(10 * np.log10(255**2 / error))
    return float(np.mean(found))


# --- All ---------------------------------------------------------------------------------------


def write_sheet(
    path: Path, pictures: Sequence[Rgb], texts: Sequence[str], columns: int = 6
) -> None:
    """Write pictures with their prompts as one PNG, or JPEG by the file's ending."""
    height, width, _ = pictures[0].shape
    cell, text = max(width, 192) + 8, 64
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (height + text)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (rgb, caption) in enumerate(zip(pictures, texts, strict=True)):
        x, y = i % columns * cell, i // columns * (height + text)
        sheet.paste(Image.fromarray(rgb), (x + 4, y + 2))
        lines = textwrap.wrap(caption, cell // 6)[:5]
        pen.multiline_text((x + 4, y + height + 4), "\n".join(lines), fill=(0, 0, 0))
    sheet.save(path)


def measure(models: Path, prompts: int, sheets: Path | None) -> Iterator[tuple[str, float]]:
    """Yield name and value of every figure, the slow ones last."""
    clip = Clip(models / "clip")
    cases = held_out(512)
    yield "CLIP: caption found first among 64", retrieval(clip, cases)
    for name, value in duplicates(clip, cases).items():
        yield f"CLIP: {name}", value
    scenes = [c.scene for c in cases]
    drawn = [render(c.scene, 128, 128, c.seed) for c in cases[:prompts]]
    yield "rules: drawn scenes that pass all", rule_shares(drawn, scenes[:prompts])["all"]
    yield (
        "rules: drawn scenes that pass those of another scene",
        rule_shares(drawn, scenes[1 : prompts + 1])["all"],
    )
    cases = cases[:prompts]
    for name, size in PIPELINES.items():
        if not (models / name).is_dir():
            continue
        pipe = load_pipeline(models / name)
        for edge in (128, 256):
            yield f"{name}: VAE PSNR at {edge}x{edge} in dB", vae_psnr(pipe.vae, cases[:64], edge)
        pictures = generate(pipe, [c.caption for c in cases], size)
        yield f"{name}: prompt is best of 16", best_of(clip, pictures, cases)
        for rule, share in rule_shares(pictures, [c.scene for c in cases]).items():
            yield f"{name}: rule {rule}", share
        if sheets:
            sheets.mkdir(parents=True, exist_ok=True)
            shown = slice(0, 24)
            write_sheet(sheets / f"{name}.png", pictures[shown], [c.caption for c in cases[shown]])


def _main(arguments: Sequence[str] | None = None) -> None:
    from pipeline.demo import MODELS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="?", type=Path, default=MODELS, help="with clip, sd, sdxl")
    parser.add_argument("--prompts", type=int, default=128, help="pictures a pipeline")
    parser.add_argument("--sheets", type=Path, help="folder of contact sheets")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    figures = {}
    for name, value in measure(given.models, given.prompts, given.sheets):
        figures[name] = round(value, 4)
        print(f"{name}: {value:.3f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    _main()
