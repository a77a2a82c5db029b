"""A seed in, trained tiny models out: VAE, CLIP, Stable Diffusion and SDXL on drawn scenes.

python -m pipeline.tiny.train WORK [--only vae|clip|sd|sdxl] [--scenes N] [--scale F] [--seed S]

Everything is kept below WORK: `pictures/` (drawn once), `latents/`, `vae/ clip/ sd/ sdxl/` with
checkpoints and `curve.csv`, `curves.png`, and `models/{clip,sd,sdxl}`, ready to load. Training can
be killed at any time; the same command resumes from the last checkpoint. Each step draws its batch
and its noise from seed and step number alone, so a resumed run equals one that was never stopped.

On 2 CPU cores with bf16: 5 minutes for the images, 9 for the VAE, 10 for CLIP (AMD EPYC), 23 for
SD and 6 for SDXL (Intel Xeon). A GPU is used if torch finds one; minutes on a GPU are not measured.
`--scale` multiplies the steps; the loss still falls at 1. `weights/README.md` has the settings of
the shipped weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline import AigiError
from pipeline.files import replaced
from pipeline.threads import cores
from pipeline.tiny import models
from pipeline.tiny.corpus import (
    LARGE,
    LARGE_SHARE,
    SMALL,
    draw_pictures,
    load_pictures,
    tokens_and_captions,
)
from pipeline.tiny.fit import Settings, fit

UNCONDITIONAL = 0.1  # of the captions are left empty, for guidance (Ho and Salimans, 2022)


def _batch(generator: Any, count: int, size: int) -> Any:
    import torch

    return torch.randint(0, count, (size,), generator=generator)


# --- VAE ---------------------------------------------------------------------------------------


def train_vae(work: Path, scenes: int, settings: Settings) -> None:
    """Train on 64x64 crops; write `WORK/vae/model.safetensors` with latents of unit variance."""
    import torch
    from safetensors.torch import save_file

    pictures = torch.from_numpy(load_pictures(work, "first", scenes))
    large = torch.from_numpy(load_pictures(work, "large", scenes))
    torch.manual_seed(settings.seed)
    model = models.vae()
    crop = 64

    def loss(net: Any, generator: Any, step: int) -> Any:
        source = large if step % 4 == 3 else pictures
        index = _batch(generator, len(source), settings.batch)
        y, x = (
            8 * int(torch.randint(0, (source.shape[1] - crop) // 8 + 1, (1,), generator=generator))
            for _ in range(2)
        )
        image = source[index, y : y + crop, x : x + crop].permute(0, 3, 1, 2).float() / 127.5 - 1
        image = image.to(next(net.parameters()).device)
        latents = net.encode(image).latent_dist
        decoded = net.decode(latents.mean + latents.std * _noise(generator, latents.mean)).sample
        error = decoded.float() - image
        # Squares for PSNR, and absolute values, which blur edges less.
        return (error**2).mean() + 0.1 * error.abs().mean() + 1e-6 * latents.kl().mean()

    model = fit(work / "vae", model, loss, settings)
    _whiten(model, pictures[:512])
    save_file(model.state_dict(), work / "vae" / "model.safetensors")


def _noise(generator: Any, like: Any) -> Any:
    import torch

    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _to_input(pictures: Any) -> Any:
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def _whiten(model: Any, pictures: Any) -> None:
    """Fold the scaling of each latent channel to N(0, 1) into the 1x1 convolutions around it.

    The pipelines have one scaling factor for all channels, but diffusion needs equal channels.
    """
    import torch

    with torch.no_grad():
        latents = torch.cat(
            [model.encode(_to_input(p)).latent_dist.mean for p in pictures.split(64)]
        )
        mean = latents.mean((0, 2, 3))
        std = latents.std((0, 2, 3))
        channels = len(mean)
        into, out = model.quant_conv, model.post_quant_conv
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= std[None, :, None, None]
        into.weight[:channels] /= std[:, None, None, None]
        into.bias[:channels] = (into.bias[:channels] - mean) / std
        into.bias[channels:] -= 2 * std.log()


def load_vae(work: Path) -> Any:
    """The trained VAE, in evaluation mode.

    Raises:
        AigiError: it is not trained yet.
    """
    from safetensors.torch import load_file

    model = models.vae()
    model.load_state_dict(load_file(_made_by("vae", work / "vae" / "model.safetensors")))
    return model.eval()


def _made_by(part: str, path: Path) -> Path:
    if not path.exists():
        raise AigiError(f"{path}: missing; train with `--only {part}` in the same folder first")
    return path


def encode_pictures(work: Path, scenes: int, kinds: Sequence[str]) -> None:
    """Write the latents of some kinds of images (see `KINDS`) to `WORK/latents/KIND.npy`."""
    import torch

    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    model = load_vae(work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    for kind in kinds:
        target = folder / f"{kind}.npy"
        if target.exists():
            continue
        pictures = load_pictures(work, "large" if kind in ("crop", "blurred") else kind, scenes)
        if kind == "crop":
            y, x = crop_corners(len(pictures))
            pictures = np.stack(
                [p[b : b + SMALL, a : a + SMALL] for p, b, a in zip(pictures, y, x, strict=True)]
            )
        found: list[NDArray[np.float16]] = []
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for part in torch.split(torch.from_numpy(pictures), 64):
                if len(found) % 100 == 0:
                    print(f"latents: {kind}, {len(found) * 64} of {len(pictures)}", flush=True)
                image = _to_input(part.to(device))
                if kind == "blurred":
                    image = torch.nn.functional.interpolate(
                        image, size=(64, 64), mode="bilinear", antialias=True
                    )
                    image = torch.nn.functional.interpolate(image, (SMALL, SMALL), mode="bilinear")
                found.append(model.encode(image).latent_dist.mean.half().cpu().numpy())
        with replaced(target) as name, open(name, "wb") as file:
            np.save(file, np.concatenate(found))


def crop_corners(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Top and left (int64, N each) of each crop of a large image, multiples of 8 pixels."""
    rng = np.random.default_rng(0)
    steps = (LARGE - SMALL) // 8 + 1
    return 8 * rng.integers(0, steps, count), 8 * rng.integers(0, steps, count)


# --- CLIP --------------------------------------------------------------------------------------


class _Texts:
    """The captions of every scene as token ids; one of them is drawn at each use."""

    def __init__(self, tokens: Any, texts: Sequence[Sequence[str]], length: int) -> None:
        import torch

        flat = [text for group in texts for text in group]
        ids = tokens(
            flat, padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )["input_ids"]
        self._ids = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        counts = torch.tensor([len(group) for group in texts])
        self._first = torch.cumsum(counts, 0) - counts
        self._counts = counts
        empty = tokens([""], padding="max_length", max_length=length, return_tensors="np")
        self._empty = torch.from_numpy(np.asarray(empty["input_ids"], dtype=np.int64))
        # It would remember both, and be saved with them.
        tokens.backend_tokenizer.no_padding()
        tokens.backend_tokenizer.no_truncation()

    def draw(self, index: Any, generator: Any, unconditional: float = 0.0) -> Any:
        import torch

        which = (torch.rand(len(index), generator=generator) * self._counts[index]).long()
        ids = self._ids[self._first[index] + which]
        empty = torch.rand(len(index), generator=generator) < unconditional
        return torch.where(empty[:, None], self._empty, ids)


def train_clip(work: Path, scenes: int, settings: Settings) -> None:
    """Train by contrast of images, their moved and re-encoded twins, and captions."""
    import torch
    from torch.nn.functional import cross_entropy

    tokens, texts = tokens_and_captions(scenes)
    drawn = _Texts(tokens, texts, models.CONTEXT)
    pictures = torch.from_numpy(load_pictures(work, "clip", scenes))
    torch.manual_seed(settings.seed)
    model = models.clip(tokens)
    mean = torch.tensor(models.CLIP_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(models.CLIP_STD).view(1, 3, 1, 1)

    def loss(net: Any, generator: Any, step: int) -> Any:
        index = _batch(generator, len(pictures), settings.batch)
        device = next(net.parameters()).device
        views = pictures[index].transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        ids = drawn.draw(index, generator).to(device)
        image, text, scale = net(((views - mean) / std).to(device), ids)[:3]
        with torch.autocast(device.type, enabled=False):
            first, second = image.float().chunk(2)
            text, scale = text.float(), scale.float().clamp(max=100)
            target = torch.arange(len(index), device=device)
            total = torch.zeros((), device=device)
            for a, b, weight in ((first, text, 1.0), (second, text, 1.0), (first, second, 0.5)):
                logits = scale * a @ b.T
                total = total + weight * (
                    cross_entropy(logits, target) + cross_entropy(logits.T, target)
                )
            # Twins shall not only be nearest but near: duplicates are found by a threshold.
            apart = 1 - (first * second).sum(1).mean()
        return total / 5 + apart

    model = fit(work / "clip", model, loss, settings)
    models.save_clip(work / "models" / "clip", model, tokens)


def _trained_clip(work: Path, tokens: Any) -> Any:
    from safetensors.torch import load_file

    model = models.clip(tokens)
    path = work / "models" / "clip" / "open_clip_model.safetensors"
    weights = load_file(_made_by("clip", path))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


# --- Diffusion ---------------------------------------------------------------------------------


def _diffusion_loss(unet: Any, scheduler: Any, latents: Any, generator: Any, call: Any) -> Any:
    """Mean square error of v (Salimans and Ho, 2022) at random times, late ones more often."""
    import torch

    noise = _noise(generator, latents)
    count = scheduler.config.num_train_timesteps
    # One stratum a sample: the loss of a batch varies less than with independent draws. The root
    # draws more of the times at which noise hides all but what the text says: colours come sooner.
    spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(
        latents
    )
    times = (spread.sqrt() * count).long().clamp(max=count - 1).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    velocity = scheduler.get_velocity(latents, noise, times)
    return ((call(unet, noisy, times).float() - velocity) ** 2).mean()


def train_sd(work: Path, scenes: int, settings: Settings) -> None:
    """Train the UNet beside CLIP's text encoder as it is; write `WORK/models/sd`.

    After 400 steps, a UNet trained together with its text encoder used the text a quarter less
    (loss with wrong captions minus loss with right ones).
    """
    import torch
    from diffusers import DDPMScheduler

    tokens, texts = tokens_and_captions(scenes)
    drawn = _Texts(tokens, texts, models.CONTEXT)
    torch.manual_seed(settings.seed)
    pipe = models.sd(tokens)
    pipe.vae = load_vae(work)
    models.take_clip_text(pipe.text_encoder, _trained_clip(work, tokens))
    scheduler = DDPMScheduler(**models.SCHEDULE)
    small, large = _latents(work, "first"), _latents(work, "large")
    encoder = pipe.text_encoder.requires_grad_(False).eval()

    def loss(net: Any, generator: Any, step: int) -> Any:
        device = next(net.parameters()).device
        size = settings.batch
        if step % 6 == 5:
            index = _batch(generator, len(large), size * SMALL**2 // LARGE**2)
            latents, scene = large[index], index * LARGE_SHARE
        else:
            index = _batch(generator, len(small), size)
            latents, scene = small[index], index
        ids = drawn.draw(scene, generator, UNCONDITIONAL).to(device)

        def call(unet: Any, noisy: Any, times: Any) -> Any:
            return unet(noisy, times, encoder.to(device)(ids)[0]).sample

        return _diffusion_loss(net, scheduler, latents.float().to(device), generator, call)

    fit(work / "sd", pipe.unet, loss, settings)
    encoder.cpu()
    models.save_pipeline(work / "models" / "sd", pipe)


def train_sdxl(work: Path, scenes: int, settings: Settings) -> None:
    """Train a UNet, begun with SD's where shapes agree, and a new second text encoder.

    The first text encoder is CLIP's, unchanged. Write `WORK/models/sdxl`.

    Size conditioning is learned from four kinds of input: small, large, cut out of large, and
    blurred (drawn as if enlarged from 64x64), told by original size, corner and target size.
    """
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokens, texts = tokens_and_captions(scenes)
    drawn = _Texts(tokens, texts, models.CONTEXT)
    torch.manual_seed(settings.seed)
    pipe = models.sdxl(tokens)
    pipe.vae = load_vae(work)
    sd = _made_by("sd", work / "models" / "sd")
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder")
    pipe.text_encoder.load_state_dict(encoder.state_dict())
    trained = UNet2DConditionModel.from_pretrained(sd / "unet").state_dict()
    own = pipe.unet.state_dict()
    same = {k: v for k, v in trained.items() if own[k].shape == v.shape}
    pipe.unet.load_state_dict(own | same)
    scheduler = DDPMScheduler(**models.SCHEDULE)
    latents = {kind: _latents(work, kind) for kind in KINDS["sdxl"]}
    top, left = (torch.from_numpy(c) for c in crop_corners(len(latents["crop"])))
    first = pipe.text_encoder.requires_grad_(False).eval()
    net = torch.nn.ModuleDict({"unet": pipe.unet, "two": pipe.text_encoder_2})
    kinds = ("first", "large", "first", "crop", "first", "large", "first", "blurred")

    def loss(parts: Any, generator: Any, step: int) -> Any:
        device = next(parts.parameters()).device
        kind = kinds[step % len(kinds)]
        size = settings.batch * SMALL**2 // LARGE**2 if kind == "large" else settings.batch
        index = _batch(generator, len(latents[kind]), size)
        scene = index if kind == "first" else index * LARGE_SHARE
        edge = LARGE if kind == "large" else SMALL
        original = {"crop": LARGE, "blurred": 64}.get(kind, edge)
        sizes = torch.tensor([original, original, 0, 0, edge, edge]).repeat(size, 1)
        if kind == "crop":
            sizes[:, 2], sizes[:, 3] = top[index], left[index]
        ids = drawn.draw(scene, generator, UNCONDITIONAL).to(device)

        def call(unet: Any, noisy: Any, times: Any) -> Any:
            one = first.to(device)(ids, output_hidden_states=True)
            two = parts["two"](ids, output_hidden_states=True)
            text = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
            known = {"text_embeds": two.text_embeds, "time_ids": sizes.to(device)}
            return unet(noisy, times, text, added_cond_kwargs=known).sample

        picked = latents[kind][index].float().to(device)
        return _diffusion_loss(parts["unet"], scheduler, picked, generator, call)

    fit(work / "sdxl", net, loss, settings)
    first.cpu()
    models.save_pipeline(work / "models" / "sdxl", pipe)


def _latents(work: Path, kind: str) -> Any:
    import torch

    return torch.from_numpy(np.load(work / "latents" / f"{kind}.npy"))


# --- All ---------------------------------------------------------------------------------------

KINDS = {"sd": ("first", "large"), "sdxl": ("first", "large", "crop", "blurred")}
"""Latents to train a pipeline on: of small and large images, of parts of large ones, and of small
ones enlarged from 64x64."""
PARTS = ("vae", "clip", "sd", "sdxl")


def plan(scale: float, seed: int) -> dict[str, Settings]:
    """The settings of each part; `scale` multiplies the steps."""
    return {
        "vae": Settings(round(3_000 * scale), 16, 1.5e-3, seed),
        "clip": Settings(round(900 * scale), 128, 1e-3, seed + 1),
        "sd": Settings(round(3_600 * scale), 64, 1.2e-3, seed + 2, average=0.998),
        "sdxl": Settings(round(1_200 * scale), 64, 8e-4, seed + 3, average=0.998),
    }


def draw_curves(work: Path) -> None:
    """Write `WORK/curves.png`: loss of each part over its steps, logarithmic, a panel each."""
    width, height, edge = 360, 200, 30
    found = [part for part in PARTS if (work / part / "curve.csv").exists()]
    if not found:
        return
    sheet = Image.new("RGB", (width * len(found), height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, part in enumerate(found):
        with (work / part / "curve.csv").open(newline="", encoding="utf-8") as file:
            rows = [(int(r["step"]), math.log(float(r["loss"]))) for r in csv.DictReader(file)]
        if not rows:
            continue
        low, high = min(y for _, y in rows), max(y for _, y in rows)
        left = number * width + edge
        points = [
            (
                left + (width - 2 * edge) * x / rows[-1][0],
                edge + (height - 2 * edge) * (high - y) / max(high - low, 1e-9),
            )
            for x, y in rows
        ]
        pen.rectangle((left, edge, left + width - 2 * edge, height - edge), outline=(180, 180, 180))
        pen.line(points, fill=(20, 80, 180), width=2)
        text = f"{part}: loss {math.exp(high):.3g} to {math.exp(low):.3g} in {rows[-1][0]:,} steps"
        pen.text((left, 8), text, fill=(0, 0, 0))
    sheet.save(work / "curves.png")


def train(work: Path, only: Sequence[str], scenes: int, scale: float, seed: int) -> None:
    """Train the named parts in order, each from where it stopped.

    Raises:
        AigiError: `work` was begun with other settings, a part needs another one that is not
            trained yet, or nothing would be trained.
    """
    plans = plan(scale, seed)
    if scenes < 1 or min(settings.steps for settings in plans.values()) < 1:
        raise AigiError(
            f"scenes {scenes}, scale {scale}: give at least one scene and one step for each part"
        )
    work.mkdir(parents=True, exist_ok=True)
    settings = {"scenes": scenes, "scale": scale, "seed": seed}
    record = work / "settings.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise AigiError(
            f"{record}: begun with {record.read_text().strip()}; use these, or another folder"
        )
    record.write_text(json.dumps(settings) + "\n")
    draw_pictures(work, scenes, cores())
    parts = {"vae": train_vae, "clip": train_clip, "sd": train_sd, "sdxl": train_sdxl}
    for part in PARTS:
        if part not in only:
            continue
        if part in KINDS:
            encode_pictures(work, scenes, KINDS[part])
        parts[part](work, scenes, plans[part])
        draw_curves(work)


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="folder for images, checkpoints and models")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to train")
    parser.add_argument("--scenes", type=int, default=30_000, help="scenes to train on")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    train(given.work, given.only, given.scenes, given.scale, given.seed)


if __name__ == "__main__":
    _main()
