"""Options of a source as a specification names them in, one text for them out: that of rows.

An option is an argument of the call of its pipeline that decides pixels and has no column of its
own: `true_cfg_scale`, `max_sequence_length`, `clip_skip`. No diffusers here: whether a class has
such an argument is looked at where a model is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

OWN = {
    "prompt": "the prompts",
    "negative_prompt": "negative_prompt",
    "width": "splits.SPLIT.width",
    "height": "splits.SPLIT.height",
    "num_inference_steps": "steps",
    "num_images_per_prompt": "images_per_prompt",
    "generator": "plan.seed",
    "latents": "plan.seed",
    "output_type": "images",
    "return_dict": "images",
}
"""Arguments that aigi gives itself, and the setting that they come from."""
FILES = ("variant", "file", "config", "loras", "components")
"""Names beside those of arguments: what a specification adds to a model, or puts in its place."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST = 2000
"""Characters of all options of a source: they are in each of its rows."""


def simple(value: object) -> bool:
    """Whether JSON has it, and writes it in one way only: no objects, no lists in lists."""
    if isinstance(value, list):
        return all(not isinstance(item, list) and simple(item) for item in value)
    if isinstance(value, float):
        return abs(value) < float("inf")
    return value is None or isinstance(value, bool | int | str)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a specification.

    Raises:
        ValueError: names the one that cannot be.
    """
    for name, value in options.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an argument")
        if name in OWN or name.startswith(("prompt_embeds", "negative_prompt_embeds", "callback")):
            where = OWN.get(name)
            raise ValueError(
                f"{name}: aigi gives this argument itself; "
                + (f"it is set by {where}" if where else "remove it")
            )
        if name in FILES:
            raise ValueError(f"{name}: no argument of a call; it is a key of the source itself")
        if not simple(value):
            raise ValueError(f"{name}: expected a number, text, true, false, null, or a list")
    if len(text_of(options) or "") > _MOST:
        raise ValueError(f"more than {_MOST} characters; they are in every row")
    return dict(options)


def text_of(options: Mapping[str, Any]) -> str | None:
    """The options as compact JSON, sorted by name; None without any."""
    if not options:
        return None
    return json.dumps(options, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def options_of(text: str | None) -> dict[str, Any]:
    """The arguments of a call among the options of a row.

    Raises:
        ValueError: as `parsed`.
    """
    return {name: value for name, value in parsed(text).items() if name not in FILES}


def parsed(text: str | None) -> dict[str, Any]:
    """All options of a row, files included.

    Raises:
        ValueError: it is not such a text.
    """
    if not text:
        return {}
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("options: objects or lists in one another, too deep") from None
    except ValueError as error:
        raise ValueError(f"options: not JSON: {error}") from None
    if not isinstance(found, dict) or not found or text_of(found) != text:
        raise ValueError("options: expected a JSON object, compact and sorted by name")
    return found
