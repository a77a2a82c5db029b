"""Texts that a program wrote into an image in; seed, steps, scale, sampler and model out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.pictures.comfyui import LOADERS, SAMPLERS, values_of
from pipeline.pictures.texts import COMMENT, DESCRIPTION, HIDDEN, XMP, json_in

Texts = Mapping[str, str]
Found = Mapping[str, Any]
MOST_SEED, MOST_STEPS, MOST_NAME = 2**63 - 1, 10_000, 60
_LOADED = ("ckpt_name", "unet_name")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAIRS = re.compile(r'(?:^|, )([A-Za-z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)')


class Made(NamedTuple):
    """How an image was made, as far as its file states it; None: it does not.

    Attributes:
        seed: 0 to 2^63 - 1.
        steps: of the sampler, 1 to 10,000.
        guidance_scale: of classifier-free guidance.
        scheduler: the program's own name of its sampler.
        model: a file's name or a Hub id; no path of somebody's disk.
    """

    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    model: str | None = None


def _object_in(text: str | None) -> dict[str, Any]:
    """A JSON object; empty where the text is something else."""
    found = json_in(text)
    return found if isinstance(found, dict) else {}


def _whole(value: Any, least: int, most: int) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        return None
    return value


def _real(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e6:
        return None
    return float(value) if math.isfinite(value) else None


def _name(value: Any) -> str | None:
    if not isinstance(value, str) or not value.isprintable():
        return None
    return value.strip() if 0 < len(value.strip()) <= MOST_NAME else None


def _model(value: Any) -> str | None:
    """The name of a model; of a path, its last part."""
    if isinstance(value, dict):
        value = value.get("model_name", value.get("name"))
    if not isinstance(value, str):
        return None
    plain = value.strip().strip('"').replace("\\", "/")
    if not _HUB_ID.fullmatch(plain):
        plain = plain.rstrip("/").rpartition("/")[2]
    return _name(plain)


def _made(
    seed: Any = None, steps: Any = None, scale: Any = None, sampler: Any = None, model: Any = None
) -> Made:
    """Those of the values that make sense."""
    return Made(
        _whole(seed, 0, MOST_SEED),
        _whole(steps, 1, MOST_STEPS),
        _real(scale),
        _name(sampler),
        _model(model),
    )


def _under(found: Found, seed: str, steps: str, scale: str, sampler: str, *models: str) -> Made:
    model = next((found[name] for name in models if found.get(name)), None)
    return _made(found.get(seed), found.get(steps), found.get(scale), found.get(sampler), model)


def _block(texts: Texts) -> Made:
    for name in ("parameters", COMMENT, DESCRIPTION, XMP, "comment", HIDDEN):
        lines = [
            line for line in texts.get(name, "").split("\n") if re.match(r"Steps: \d+\b", line)
        ]
        if lines:
            pairs = re.findall(r'(?:^|, )([A-Za-z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)', lines[-1])
            return _under(dict(reversed(pairs)), "Seed", "Steps", "CFG scale", "Sampler", "Model")
    return Made()


def _swarm(texts: Texts) -> Made:
    for name in ("parameters", COMMENT):
        found = _object_in(texts.get(name)).get("sui_image_params")
        if isinstance(found, dict):
            return _under(found, "seed", "steps", "cfgscale", "sampler", "model")
    return Made()


def _fooocus(texts: Texts) -> Made:
    for name in ("parameters", COMMENT):
        found = _object_in(texts.get(name))
        if "Prompt" in found:
            return _under(found, "Seed", "Steps", "CFG", "Sampler name", "base_model_name")
        if found:
            return _under(found, "seed", "steps", "guidance_scale", "sampler", "base_model")
    return Made()


def _invoke(texts: Texts) -> Made:
    if found := _object_in(texts.get("invokeai_metadata")):
        return _under(found, "seed", "steps", "cfg_scale", "scheduler", "model")
    old = _object_in(texts.get("sd-metadata"))
    image = old.get("image")
    if isinstance(image, dict):
        made = _under(image, "seed", "steps", "cfg_scale", "sampler")
        return made._replace(model=_model(old.get("model_weights")))
    return Made()


def _novel(texts: Texts) -> Made:
    hidden = _object_in(texts.get(HIDDEN))
    comment = texts.get("Comment") or hidden.get("Comment")
    found = _object_in(comment if isinstance(comment, str) else None)
    made = _under(found, "seed", "steps", "scale", "sampler")
    return made._replace(model=_model(texts.get("Source") or hidden.get("Source")))


def _easy(texts: Texts) -> Made:
    lower = {name.lower().replace(" ", "_"): value for name, value in texts.items()}
    steps = lower.get("num_inference_steps", lower.get("steps"))
    sampler = lower.get("sampler_name", lower.get("sampler"))
    model = lower.get("use_stable_diffusion_model", lower.get("stable_diffusion_model"))
    return _made(lower.get("seed"), steps, lower.get("guidance_scale"), sampler, model)


def _midjourney(texts: Texts) -> Made:
    for name in ("Description", DESCRIPTION, XMP):
        flags = dict(re.findall(r"\s--(seed|v|version|niji)\s+(\S+)", texts.get(name, "")))
        version = flags.get("v", flags.get("version"))
        model = f"niji-{flags['niji']}" if "niji" in flags else version and f"midjourney-{version}"
        if flags:
            return _made(seed=flags.get("seed"), model=model)
    return Made()


def _mflux(texts: Texts) -> Made:
    return _under(
        _object_in(texts.get(COMMENT)),
        "seed",
        "steps",
        "guidance",
        "scheduler",
        "model",
        "base_model",
    )


def _draw_things(texts: Texts) -> Made:
    return _under(_object_in(texts.get(COMMENT)), "seed", "steps", "scale", "sampler", "model")


def _comfy(graph: str) -> Made:
    """Of a graph with one sampler: of several, none made the image alone."""
    samplers = values_of(graph, SAMPLERS)
    if len(samplers) != 1:
        return Made()
    found = samplers[0]
    seed = found.get("seed", found.get("noise_seed"))
    loaders = values_of(graph, LOADERS)
    models = {value for one in loaders for name in _LOADED if (value := _model(one.get(name)))}
    made = _made(seed, found.get("steps"), found.get("cfg"), found.get("sampler_name"))
    return made._replace(model=models.pop() if len(models) == 1 else None)


_PROGRAMS: dict[str, Callable[[Texts], Made]] = {
    "SwarmUI": _swarm,
    "Fooocus": _fooocus,
    "InvokeAI": _invoke,
    "NovelAI": _novel,
    "AUTOMATIC1111": _block,
    "EasyDiffusion": _easy,
    "Midjourney": _midjourney,
    "mflux": _mflux,
    "Draw Things": _draw_things,
}


def stated(program: str, texts: Texts, graph: str | None = None) -> Made:
    """What a program states of how it made an image, beside its prompt.

    Args:
        program: key of `embedded.PROGRAMS`.
        graph: of ComfyUI.
    """
    if graph is not None:
        return _comfy(graph)
    read = _PROGRAMS.get(program)
    return Made() if read is None else read(texts)
