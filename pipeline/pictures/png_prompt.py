"""A PNG file of a text-to-image front end in, the prompt written inside it out."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from pipeline.pixels import PNG_MAGIC, BadPicture, png_chunks

MAX_TEXT_BYTES = 1 << 20  # ComfyUI graphs reach 100 KB


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)


def _png_texts(data: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    try:
        for kind, content in png_chunks(data, check=False):
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(content) > MAX_TEXT_BYTES:
                continue
            key, _, rest = bytes(content).partition(b"\0")
            name = key.decode("latin-1")
            if kind == b"tEXt":
                texts.setdefault(name, rest.decode("latin-1"))
            elif kind == b"zTXt":
                texts.setdefault(name, _inflated(rest[1:]).decode("latin-1"))
            else:
                compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
                texts.setdefault(name, (_inflated(text) if compressed else text).decode("utf-8"))
    except (BadPicture, zlib.error, UnicodeDecodeError):
        pass  # what was found before the damage stands
    return texts


def _comfy_prompt(graph: Any) -> str | None:
    """The one text that the samplers of a ComfyUI graph take as their positive input."""
    found = set()
    for node in graph.values():
        if str(node.get("class_type", "")).startswith("KSampler"):
            link = node["inputs"]["positive"]
            found.add(graph[link[0]]["inputs"]["text"])
    text = found.pop() if len(found) == 1 else None
    return text if isinstance(text, str) else None


def embedded_prompt(data: bytes) -> str | None:
    """The prompt that AUTOMATIC1111, InvokeAI or (simple graphs) ComfyUI wrote into a PNG.

    Args:
        data: the file, or its beginning: what is cut off is not searched.

    Returns:
        The positive prompt, stripped; None where there is none.
    """
    if data[:8] != PNG_MAGIC:
        return None
    texts = _png_texts(data)
    found: Any = None
    if "parameters" in texts:
        found = re.split(r"(?m)^(?:Negative prompt|Steps):", texts["parameters"])[0]
    else:
        try:
            if "invokeai_metadata" in texts:
                found = json.loads(texts["invokeai_metadata"])["positive_prompt"]
            elif "prompt" in texts:
                found = _comfy_prompt(json.loads(texts["prompt"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # another program's idea of these names
    return (found.strip() or None) if isinstance(found, str) else None
