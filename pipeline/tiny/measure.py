"""Trained tiny models in; what they can do, as numbers, and contact sheets of what they draw, out.

python -m pipeline.tiny.measure [MODELS] [--prompts 128] [--sheets FOLDER] [--json FILE]

Scenes and prompts differ from those of training: they have other seeds, and no caption of a
training scene. Without MODELS, the models of this installation are measured. `--json` also writes
the sha256 of the measured files; `weights/figures.json` is such a file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.benchmark.metrics import psnr
from pipeline.models.clip import Clip, Embeddings
from pipeline.tiny.captions import captions
from pipeline.tiny.corpus import FIRST_SEED, JITTER
from pipeline.tiny.gallery import write_sheet
from pipeline.tiny.paint import render
from pipeline.tiny.rules import rules
from pipeline.tiny.scene import Scene, main_color
from pipeline.tiny.scenes import draw_scene

Rgb = NDArray[np.uint8]

HELD_OUT_SEED = 50_000_000
SCENES = 30_000  # of training; their captions are excluded
STEPS, GUIDANCE = 20, 4.0
CANDIDATES = 16
SHOWN = 24  # pictures of a contact sheet
PIPELINES = {"sd": 128, "sdxl": 192}
"""Folder of a pipeline, and the size of its images in pixels."""
TARGETS = {
    "CLIP: caption found first among 64": 0.60,
    "CLIP: moved twins above 0.95 cosine": 0.99,
    "CLIP: JPEG 75 twins above 0.95 cosine": 0.99,
    "CLIP: resized twins above 0.95 cosine": 0.99,
    "CLIP: different captions below 0.9 cosine": 0.99,
    "sd: VAE PSNR at 128x128 in dB": 26.0,
    "sd: VAE PSNR at 256x256 in dB": 26.0,
    "sd: prompt is the best of 16": 0.60,
    "sd: all three rules": 0.70,
    "sdxl: VAE PSNR at 128x128 in dB": 26.0,
    "sdxl: VAE PSNR at 256x256 in dB": 26.0,
    "sdxl: prompt is the best of 16": 0.60,
    "sdxl: all three rules": 0.70,
}
"""The least values of the figures."""


@dataclass(frozen=True)
class Case:
    """A scene that no model has seen, its seed and the caption to draw it by."""

    scene: Scene
    seed: int
    caption: str


@cache
def _trained_captions() -> frozenset[str]:
    # Without the endings that training gives to some of them.
    seeds = range(FIRST_SEED, FIRST_SEED + SCENES)
    return frozenset(text for seed in seeds for text in captions(draw_scene(seed), seed))


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


def demo_prompts(count: int) -> list[str]:
    """Sentences as in the demo: from the grammar's core, in its words instead of the scenes'."""
    from pipeline.files import resource
    from pipeline.prompts.grammar import Grammar

    grammar = Grammar.load(str(resource("prompts/grammar.yaml")), start="core")
    return list(grammar.sentences(count, seed=1))


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def rule_shares(pictures: Sequence[Rgb], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of the images (uint8, H x W x 3) that pass each rule, and all of them."""
    checked = [rules(rgb, scene) for rgb, scene in zip(pictures, scenes, strict=True)]
    shares = {name: _share([c[name] for c in checked]) for name in checked[0]}
    return shares | {"all": _share([all(c.values()) for c in checked])}


# --- CLIP --------------------------------------------------------------------------------------


def clip_of(models: Path) -> Clip:
    """The CLIP among tiny models."""
    return Clip(Embeddings(folder=str(models / "clip")), "cpu")


def found_first(clip: Clip, pictures: Sequence[Rgb], prompts: Sequence[str]) -> list[int]:
    """For each image (uint8, H x W x 3) the index of the nearest of all prompts."""
    nearest = (clip.image_vectors(pictures) @ clip.text_vectors(prompts).T).argmax(1)
    return [int(i) for i in nearest]


def retrieval(clip: Clip, cases: Sequence[Case], group: int = 64) -> float:
    """Share of images whose own caption is the nearest of the captions of their group."""
    found: list[bool] = []
    for i in range(0, len(cases) - group + 1, group):
        some = cases[i : i + group]
        pictures = [render(c.scene, 128, 128, c.seed) for c in some]
        first = found_first(clip, pictures, [c.caption for c in some])
        found += [index == own for own, index in enumerate(first)]
    return _share(found)


def _coded(rgb: Rgb, quality: int) -> Rgb:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def duplicates(clip: Clip, cases: Sequence[Case]) -> dict[str, float]:
    """Cosines of twins (moved, re-encoded, resized) and of images of different captions."""
    first = [render(c.scene, 128, 128, c.seed) for c in cases]
    vectors = clip.image_vectors(first)
    moved = [render(c.scene, 128, 128, c.seed, jitter=JITTER) for c in cases]
    smaller = [
        np.asarray(Image.fromarray(p).resize((112, 112), Image.Resampling.BICUBIC)) for p in first
    ]
    twins = {"moved": moved, "JPEG 75": [_coded(p, 75) for p in first], "resized": smaller}
    result = {}
    for name, pictures in twins.items():
        cosines = (vectors * clip.image_vectors(pictures)).sum(1)
        result[f"{name} twins above 0.95 cosine"] = float((cosines > 0.95).mean())
    others = (vectors @ vectors.T)[~np.eye(len(cases), dtype=bool)]
    return result | {"different captions below 0.9 cosine": float((others < 0.9).mean())}


def best_of(clip: Clip, pictures: Sequence[Rgb], prompts: Sequence[str]) -> float:
    """Share of images (uint8, H x W x 3) whose prompt is the best of 16: 15 others are random."""
    vectors = clip.image_vectors(pictures)
    texts = clip.text_vectors(prompts)
    rng = random.Random(0)
    found = []
    for i, vector in enumerate(vectors):
        others = rng.sample([j for j in range(len(prompts)) if j != i], CANDIDATES - 1)
        found.append(bool((texts[others] @ vector).max() < texts[i] @ vector))
    return _share(found)


# --- Pipelines ---------------------------------------------------------------------------------


def load_pipeline(folder: Path) -> Any:
    """A tiny pipeline by `from_pretrained`, in float32 on the best device."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from pipeline.models.device import pick_device

    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    classes = {c.__name__: c for c in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
    options = {"add_watermarker": False} if kind == "StableDiffusionXLPipeline" else {}
    pipe = classes[kind].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(pick_device("auto"))


def generate(pipe: Any, prompts: Sequence[str], size: int, batch: int = 16) -> list[Rgb]:
    """One image (uint8, size x size x 3) for each prompt, from the seed of its position."""
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
    """Mean PSNR in dB of uint8 images after encoding (the mean) and decoding."""
    import torch

    found = []
    with torch.no_grad():
        for case in cases:
            rgb = render(case.scene, size, size, case.seed)
            tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
            decoded = vae.decode(vae.encode(tensor / 127.5 - 1).latent_dist.mean).sample
            again = ((decoded.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).cpu().numpy()
            found.append(psnr(rgb, again.astype(np.uint8)))
    return float(np.mean(found))


# --- All ---------------------------------------------------------------------------------------


def _write_clip_sheet(path: Path, clip: Clip, cases: Sequence[Case]) -> None:
    """Write the scenes, each with the caption that CLIP finds for it among all captions."""
    pictures = [render(c.scene, 192, 192, c.seed) for c in cases]
    texts = [c.caption for c in cases]
    said = [
        ("found: " if index == own else "WRONG: ") + texts[index]
        for own, index in enumerate(found_first(clip, pictures, texts))
    ]
    write_sheet(path, pictures[:SHOWN], said[:SHOWN])


def scenes_per_second(cases: Sequence[Case]) -> float:
    """How many 256x256 images the renderer paints in a second, in one process."""
    started = time.perf_counter()
    for case in cases:
        render(case.scene, 256, 256, case.seed)
    return len(cases) / (time.perf_counter() - started)


def measure(models: Path, prompts: int, sheets: Path | None) -> Iterator[tuple[str, float]]:
    """Yield name and value of every figure, the slow ones last.

    Args:
        models: folder with `clip`, and `sd` or `sdxl` or both.
        prompts: images of each pipeline, at most 512; half as many with the demo's prompts.
        sheets: folder for `sheet-{clip,sd,sdxl}.jpg`.
    """
    clip = clip_of(models)
    cases = held_out(512)
    if sheets:
        sheets.mkdir(parents=True, exist_ok=True)
        _write_clip_sheet(sheets / "sheet-clip.jpg", clip, cases[:64])
    yield "scenes: 256x256 images a second", scenes_per_second(cases[:128])
    yield "CLIP: caption found first among 64", retrieval(clip, cases)
    for name, value in duplicates(clip, cases).items():
        yield f"CLIP: {name}", value
    scenes = [c.scene for c in cases]
    drawn = [render(c.scene, 128, 128, c.seed) for c in cases[:prompts]]
    yield "rules: drawn scenes pass all three", rule_shares(drawn, scenes[:prompts])["all"]
    turned = [*scenes[1:prompts], scenes[0]]
    yield "rules: they pass those of another scene", rule_shares(drawn, turned)["all"]
    cases, scenes = cases[:prompts], scenes[:prompts]
    texts = [c.caption for c in cases]
    others = demo_prompts(max(CANDIDATES, prompts // 2))
    for name, size in PIPELINES.items():
        if not (models / name).is_dir():
            continue
        pipe = load_pipeline(models / name)
        for edge in (128, 256):
            yield f"{name}: VAE PSNR at {edge}x{edge} in dB", vae_psnr(pipe.vae, cases[:64], edge)
        pictures = generate(pipe, texts, size)
        if sheets:
            write_sheet(sheets / f"sheet-{name}.jpg", pictures[:SHOWN], texts[:SHOWN])
        yield f"{name}: prompt is the best of 16", best_of(clip, pictures, texts)
        shares = rule_shares(pictures, scenes)
        yield f"{name}: main color is there", shares["color"]
        yield f"{name}: day or night is right", shares["night"]
        yield f"{name}: an object of that color is there", shares["object"]
        yield f"{name}: all three rules", shares["all"]
        pictures = generate(pipe, others, size)
        yield f"{name}: prompt of the demo is the best of 16", best_of(clip, pictures, others)


def table(figures: Mapping[str, float]) -> str:
    """The figures as the Markdown table of the model card."""

    def shown(name: str, value: float, digits: int) -> str:
        if name.endswith("in dB"):
            return f"{value:.{digits}f} dB"
        return f"{value:.0f}" if name.endswith("a second") else f"{100 * value:.{digits}f} %"

    lines = ["| figure | asked | reached |", "|---|---:|---:|"]
    for name, value in figures.items():
        asked = shown(name, TARGETS[name], 0) if name in TARGETS else ""
        lines.append(f"| {name.removesuffix(' in dB')} | {asked} | {shown(name, value, 1)} |")
    return "\n".join(lines) + "\n"


def weights_of(models: Path) -> dict[str, str]:
    """sha256 of every weight file, by its path in the folder."""
    return {
        path.relative_to(models).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(models.rglob("*.safetensors"))
    }


def _main(arguments: Sequence[str] | None = None) -> None:
    from pipeline.demo import MODELS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "models", nargs="?", type=Path, default=MODELS, help="folder with clip, sd, sdxl"
    )
    parser.add_argument("--prompts", type=int, default=128, help="images of each pipeline")
    parser.add_argument("--sheets", type=Path, help="also write contact sheets to this folder")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args(arguments)
    if not CANDIDATES <= given.prompts <= 512:
        parser.error(f"--prompts must be {CANDIDATES} to 512")
    figures = {}
    for name, value in measure(given.models, given.prompts, given.sheets):
        figures[name] = round(value, 4)
        print(f"{name}: {value:.3f}", flush=True)
    print(f"\n{table(figures)}")
    if given.json:
        record = {"figures": figures, "weights": weights_of(given.models)}
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
