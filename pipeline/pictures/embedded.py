"""An image file of a text-to-image front end in; the prompt that is written inside it out.

Each program is a row of `PROGRAMS`. JSON is never a prompt: what is not understood is a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipeline.pictures.comfyui import NoText, prompt_of
from pipeline.pictures.stated import Made, stated
from pipeline.pictures.texts import (
    COMMENT,
    DESCRIPTION,
    HIDDEN,
    MAKE,
    MODEL,
    STEPS,
    XMP,
    json_in,
    texts_of,
)

Flag = Literal["lora", "midjourney"]
_FLAGS: dict[Flag, re.Pattern[str]] = {
    "lora": re.compile(r"<(?:lora|lyco|lycoris|hypernet|embedding):[^<>]*>", re.IGNORECASE),
    "midjourney": re.compile(r"\s--[A-Za-z]+(?:\s+(?!--)[^\s]+)*?(?=\s--|\s*$)"),
}
_JOB = re.compile(r"\s*Job ID:\s*[0-9a-f-]{36}\s*$")
_NEGATIVE = "Negative prompt:"
_INVOKE = re.compile(r'^"(.*)"\s+-[A-Za-z]\s', re.DOTALL)

Texts = Mapping[str, str]


class Embedded(NamedTuple):
    """What an image file says of its prompt.

    Attributes:
        text: None: none that is understood.
        problem: why not; None where there is a text, or nothing at all.
        program: what wrote it.
        made: what the file states of how it was made.
    """

    text: str | None
    problem: str | None = None
    program: str = ""
    made: Made = Made()


def _member(data: Any, *names: str) -> str | None:
    """The first text of an object under one of these names."""
    found = (data.get(name) for name in names) if isinstance(data, dict) else ()
    return next((value for value in found if isinstance(value, str)), None)


def _block(text: str) -> str | None:
    """The prompt of a parameter block: all before its last line of settings, or `Negative prompt:`.

    None: it is none, but JSON.
    """
    if json_in(text) is not None:
        return None
    lines = text.split("\n")
    ends = [number for number, line in enumerate(lines) if STEPS.match(line)]
    lines = lines[: ends[-1]] if ends else lines
    begins = [number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    return "\n".join(lines[: begins[-1]] if begins else lines).strip()


def _swarm(texts: Texts) -> str | None:
    """SwarmUI: settings as JSON in `parameters`, or in EXIF."""
    for name in ("parameters", COMMENT):
        data = json_in(texts.get(name))
        if isinstance(data, dict) and isinstance(data.get("sui_image_params"), dict):
            return _member(data["sui_image_params"], "prompt")
    return None


def _fooocus(texts: Texts) -> str | None:
    """Fooocus and RuinedFooocus: JSON with the prompt by name."""
    for name in ("parameters", COMMENT):
        data = json_in(texts.get(name))
        if (isinstance(data, dict) and {"base_model", "base_model_name", "fooocus_scheme"} & {
            *data, *texts
        }) or (name == "parameters" and isinstance(data, dict) and "Prompt" in data):  # fmt: skip
            return _member(data, "prompt", "Prompt")
    return None


def _parameters(texts: Texts) -> str | None:
    """AUTOMATIC1111 and its likes: a block of text in `parameters`, or in EXIF."""
    if "parameters" in texts:
        return _block(texts["parameters"])
    for name in (COMMENT, DESCRIPTION, XMP, "comment", HIDDEN):
        text = texts.get(name, "")
        if any(STEPS.match(line) for line in text.split("\n")):
            return _block(text)
    return None


def _invoke(texts: Texts) -> str | None:
    """InvokeAI, of today and its first versions."""
    if found := _member(json_in(texts.get("invokeai_metadata")), "positive_prompt"):
        return found
    old = json_in(texts.get("sd-metadata"))
    image = old.get("image") if isinstance(old, dict) else None
    prompt = image.get("prompt") if isinstance(image, dict) else None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = _member(prompt[0], "prompt")
    if isinstance(prompt, str):
        return prompt
    dream = _INVOKE.match(texts.get("Dream", ""))
    return None if dream is None else dream[1]


def _novel(texts: Texts) -> str | None:
    """NovelAI: chunks, or JSON with the same in the last bits of alpha."""
    found: Any = texts
    if HIDDEN in texts and not isinstance(found := json_in(texts[HIDDEN]), dict):
        return None
    if "NovelAI" not in str(found.get("Software", "")) and "NovelAI" not in str(found.get("Title")):
        return None
    if text := _member(found, "Description"):
        return text
    return _member(json_in(_member(found, "Comment")), "prompt")


def _easy(texts: Texts) -> str | None:
    """EasyDiffusion: a chunk for each setting."""
    for name, others in (("prompt", ("seed", "negative_prompt")), ("Prompt", ("Seed",))):
        if name in texts and json_in(texts[name]) is None and any(o in texts for o in others):
            return texts[name]
    return None


def _midjourney(texts: Texts) -> str | None:
    """Midjourney: the prompt with its flags, and the id of its job."""
    for name in ("Description", DESCRIPTION, XMP):
        text = texts.get(name, "")
        if _JOB.search(text) or (name == "Description" and re.search(r"\s--v \S+", text)):
            return _JOB.sub("", text)
    return None


def _mflux(texts: Texts) -> str | None:
    """mflux: JSON in EXIF."""
    data = json_in(texts.get(COMMENT))
    return _member(data, "prompt") if isinstance(data, dict) and "mflux_version" in data else None


def _draw_things(texts: Texts) -> str | None:
    """Draw Things: JSON in EXIF, `c` is what is wanted and `uc` what is not."""
    data = json_in(texts.get(COMMENT))
    return _member(data, "c") if isinstance(data, dict) and {"c", "uc"} <= data.keys() else None


def _comfy(texts: Texts) -> str | None:
    """ComfyUI: a graph in `prompt`; in a WebP, in EXIF."""
    graph = _graph(texts)
    return None if graph is None else prompt_of(graph)


def _graph(texts: Texts) -> str | None:
    graph = texts.get("prompt")
    for name in (MAKE, MODEL):
        if graph is None and texts.get(name, "").startswith("prompt:"):
            graph = texts[name].removeprefix("prompt:")
    return graph if isinstance(json_in(graph), dict) else None


PROGRAMS: dict[str, Callable[[Texts], str | None]] = {
    "SwarmUI": _swarm,
    "Fooocus": _fooocus,
    "InvokeAI": _invoke,
    "NovelAI": _novel,
    "AUTOMATIC1111": _parameters,
    "EasyDiffusion": _easy,
    "Midjourney": _midjourney,
    "mflux": _mflux,
    "Draw Things": _draw_things,
    "ComfyUI": _comfy,
}
"""Readers in the order in which they are asked; each knows its own texts, and no others."""
_KNOWN = ("parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", COMMENT, HIDDEN)


def without(text: str, flags: Sequence[Flag]) -> str:
    """A prompt without tags and flags that are no words of it."""
    for flag in flags:
        text = _FLAGS[flag].sub("", text)
    return text.strip()


def embedded(data: bytes, flags: Sequence[Flag] = ("lora", "midjourney")) -> Embedded:
    """The prompt that is written inside an image.

    Args:
        data: a PNG, JPEG or WebP, or its beginning: see `texts_of`.
        flags: kinds of tags and flags that are taken out.
    """
    texts = texts_of(data)
    for program, read in PROGRAMS.items():
        try:
            text = read(texts)
        except NoText as error:
            return Embedded(None, str(error), program)
        if text is None:
            continue
        text = without(text, flags)
        if json_in(text) is not None:
            return Embedded(None, f"JSON in the place of the prompt ({program})", program)
        graph = _graph(texts) if read is _comfy else None
        return Embedded(text or None, None, program, stated(program, texts, graph))
    for name in _KNOWN:
        if json_in(texts.get(name)) is not None:
            return Embedded(None, f"`{name}` has JSON of a layout that is not known")
    return Embedded(None)
