"""Texts that a program wrote into an image in; the seed, steps, scale and sampler it states out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.pictures.comfyui import samplers_of
from pipeline.pictures.texts import COMMENT, DESCRIPTION, HIDDEN, XMP

Texts = Mapping[str, str]
Found = Mapping[str, Any]
MOST_SEED, MOST_STEPS, MOST_NAME = 2**63 - 1, 10_000, 60


_STEPS = re.compile(r"Steps: \d+\b")
_PAIRS = re.compile(r'(?:^|, )([A-Za-z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)')


class Made(NamedTuple):
    """How an image was made, as far as its file states it; None: it does not.

    Attributes:
        seed: 0 to 2^63 - 1.
        steps: of the sampler, 1 to 10,000.
        guidance_scale: of classifier-free guidance.
        scheduler: the program's own name of its sampler.
    """

    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


def object_in(text: str | None) -> dict[str, Any]:
    """A JSON object; empty where the text is something else."""
    if text is None or text.lstrip()[:1] != "{":
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
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


def _made(seed: Any = None, steps: Any = None, scale: Any = None, sampler: Any = None) -> Made:
    """Those of the values that make sense."""
    named = isinstance(sampler, str) and 0 < len(sampler.strip()) <= MOST_NAME
    named = named and sampler.isprintable()
    return Made(
        _whole(seed, 0, MOST_SEED),
        _whole(steps, 1, MOST_STEPS),
        _real(scale),
        sampler.strip() if named else None,
    )


def _under(found: Found, seed: str, steps: str, scale: str, sampler: str) -> Made:
    return _made(found.get(seed), found.get(steps), found.get(scale), found.get(sampler))


def _block(texts: Texts) -> Made:
    for name in ("parameters", COMMENT, DESCRIPTION, XMP, "comment", HIDDEN):
        lines = [
            line for line in texts.get(name, "").split("\n") if re.match(r"Steps: \d+\b", line)
        ]
        if lines:
            pairs = re.findall(r'(?:^|, )([A-Za-z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)', lines[-1])
            return _under(dict(reversed(pairs)), "Seed", "Steps", "CFG scale", "Sampler")
    return Made()


def _swarm(texts: Texts) -> Made:
    for name in ("parameters", COMMENT):
        found = object_in(texts.get(name)).get("sui_image_params")
        if isinstance(found, dict):
            return _under(found, "seed", "steps", "cfgscale", "sampler")
    return Made()


def _fooocus(texts: Texts) -> Made:
    for name in ("parameters", COMMENT):
        found = object_in(texts.get(name))
        if "Prompt" in found:
            return _under(found, "Seed", "Steps", "CFG", "Sampler name")
        if found:
            return _under(found, "seed", "steps", "guidance_scale", "sampler")
    return Made()


def _invoke(texts: Texts) -> Made:
    if found := object_in(texts.get("invokeai_metadata")):
        return _under(found, "seed", "steps", "cfg_scale", "scheduler")
    image = object_in(texts.get("sd-metadata")).get("image")
    if isinstance(image, dict):
        return _under(image, "seed", "steps", "cfg_scale", "sampler")
    return Made()


def _novel(texts: Texts) -> Made:
    hidden = object_in(texts.get(HIDDEN))
    comment = texts.get("Comment") or hidden.get("Comment")
    found = object_in(comment if isinstance(comment, str) else None)
    return _under(found, "seed", "steps", "scale", "sampler")


def _easy(texts: Texts) -> Made:
    lower = {name.lower().replace(" ", "_"): value for name, value in texts.items()}
    steps = lower.get("num_inference_steps", lower.get("steps"))
    sampler = lower.get("sampler_name", lower.get("sampler"))
    return _made(lower.get("seed"), steps, lower.get("guidance_scale"), sampler)


def _midjourney(texts: Texts) -> Made:
    for name in ("Description", DESCRIPTION, XMP):
        if found := re.search(r"\s--seed\s+(\d+)", texts.get(name, "")):
            return _made(seed=found[1])
    return Made()


def _mflux(texts: Texts) -> Made:
    return _under(object_in(texts.get(COMMENT)), "seed", "steps", "guidance", "scheduler")


def _draw_things(texts: Texts) -> Made:
    return _under(object_in(texts.get(COMMENT)), "seed", "steps", "scale", "sampler")


def _comfy(graph: str) -> Made:
    """Of a graph with one sampler: of several, none made the image alone."""
    samplers = samplers_of(graph)
    if len(samplers) != 1:
        return Made()
    found = samplers[0]
    seed = found.get("seed", found.get("noise_seed"))
    return _made(seed, found.get("steps"), found.get("cfg"), found.get("sampler_name"))


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
