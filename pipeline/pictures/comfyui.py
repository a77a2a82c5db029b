"""A graph of ComfyUI in; the one text that its samplers take as what is wanted, or why not, out.

A graph is as its interface sends it to the server: nodes by id, each with its class and its inputs,
which are values or links `[node, output]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.pictures.texts import json_in

MOST_NODES = 10_000
SAMPLERS = ("KSampler", "SamplerCustom", "UltimateSDUpscale", "FaceDetailer", "SamplerTiled")
LOADERS = ("CheckpointLoader", "UNETLoader", "UnetLoader", "DiffusionModelLoader")
"""Beginnings and parts of the names of nodes that draw, and that load what draws."""
_WANTED = ("positive", "conditioning", "guider", "cond")
_TEXTS = (
    "text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "bert", "mt5xl", "llama", "prompt",
    "user_prompt", "positive", "positive_prompt", "text_positive",
)  # fmt: skip
"""Inputs of text encoders that have words."""
_STRINGS = ("text", "string", "value", "populated_text", "prompt", "text_a", "string_a", "Text", "")
_PIECES = (("string_a", "string_b"), ("text_a", "text_b"), ("text1", "text2"))


class NoText(Exception):
    """Why a graph has no text that is clearly the prompt."""


class Graph:
    """Nodes and their links; nothing is believed of them."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self.nodes = {
            str(name): node
            for name, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def kind(self, name: str) -> str:
        """The class of a node."""
        return str(self.nodes[name].get("class_type", ""))

    def link(self, value: Any) -> tuple[str, int] | None:
        """Node and output that an input is linked to; None: it is a value."""
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
            return str(value[0]), value[1] if isinstance(value[1], int) else 0
        return None

    def inputs(self, name: str) -> Mapping[str, Any]:
        """Values and links by name."""
        found: Mapping[str, Any] = self.nodes[name]["inputs"]
        return found

    # --- strings -----------------------------------------------------------------------------

    def string(self, value: Any, seen: frozenset[str] = frozenset()) -> str | None:
        """The text of an input: its own, or that of the node it is linked to; None: not known."""
        if isinstance(value, str):
            return value
        link = self.link(value)
        if link is None or link[0] in seen:
            return None
        inputs, seen = self.inputs(link[0]), seen | {link[0]}
        for first, second in _PIECES:
            if first in inputs and second in inputs:
                one, other = (self.string(inputs[name], seen) for name in (first, second))
                between = inputs.get("delimiter", inputs.get("separator", ""))
                if one is None or other is None or not isinstance(between, str):
                    return None
                return between.join(part for part in (one, other) if part)
        texts = [self.string(inputs[name], seen) for name in _STRINGS if name in inputs]
        known = {text for text in texts if text is not None}
        return known.pop() if len(known) == 1 else None

    # --- conditioning ------------------------------------------------------------------------

    def texts(self, link: tuple[str, int], seen: set[tuple[str, int]]) -> Iterator[str]:
        """Texts that a conditioning is made of.

        Raises:
            NoText: a part of it is no text that is known.
        """
        if link in seen:
            return
        seen.add(link)
        name, output = link
        kind, inputs = self.kind(name), self.inputs(name)
        if "ZeroOut" in kind:
            return
        if "TextEncode" in kind or ("Encode" in kind and any(key in inputs for key in _TEXTS)):
            yield from self._encoded(inputs)
            return
        wanted = [key for key in inputs if key.lower().startswith(_WANTED)]
        if "positive" in inputs and "negative" in inputs:  # it has an output for each
            wanted = ["negative" if output == 1 else "positive"]
        if not wanted:  # a node in between, such as a reroute
            wanted = [key for key in inputs if key in ("", "value", "any", "input", "anything")]
        links = [found for key in wanted if (found := self.link(inputs[key])) is not None]
        if not links:
            raise NoText(f"the text of a ComfyUI graph comes from {kind or 'a node'}, not known")
        for found in links:
            yield from self.texts(found, seen)

    def _encoded(self, inputs: Mapping[str, Any]) -> Iterator[str]:
        given = [inputs[key] for key in _TEXTS if key in inputs]
        texts = [self.string(value) for value in given]
        if not texts or None in texts:
            raise NoText("the text of a ComfyUI graph is made by nodes that are not known")
        yield from (text for text in texts if text is not None and text.strip())


def graph_in(text: str) -> Graph | None:
    """The graph that a JSON text is; None: it is none."""
    nodes = json_in(text)
    return Graph(nodes) if isinstance(nodes, dict) and len(nodes) <= MOST_NODES else None


def values_of(graph: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Inputs of the nodes of some kinds that are values and no links, a dictionary each."""
    found = graph_in(graph)
    if found is None:
        return []
    return [
        {key: value for key, value in found.inputs(name).items() if not isinstance(value, list)}
        for name in found.nodes
        if any(word in found.kind(name) for word in kinds)
    ]


def prompt_of(graph: str) -> str:
    """The one positive text of a graph.

    Args:
        graph: JSON.

    Raises:
        NoText: it is no such graph, has no sampler, or none or several texts.
    """
    found = graph_in(graph)
    if found is None:
        raise NoText("not a graph of ComfyUI")
    texts: dict[str, None] = {}
    samplers = 0
    for name in found.nodes:
        inputs = found.inputs(name)
        if not any(word in found.kind(name) for word in SAMPLERS):
            continue
        starts = (inputs[key] for key in ("positive", "guider", "conditioning") if key in inputs)
        link = found.link(next(starts, None))
        if link is None:
            continue
        samplers += 1
        try:
            texts |= dict.fromkeys(text.strip() for text in found.texts(link, set()))
        except RecursionError:
            raise NoText("a graph of ComfyUI that is too deep") from None
    if not samplers:
        raise NoText("a graph of ComfyUI without a sampler")
    if len(texts) != 1:
        raise NoText(f"{len(texts) or 'no'} texts in a graph of ComfyUI: which one is the prompt?")
    return next(iter(texts))
