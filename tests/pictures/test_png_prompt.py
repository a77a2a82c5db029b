"""PNG files of text-to-image front ends in, the prompts written inside them out."""

from __future__ import annotations

from PIL import Image, PngImagePlugin

from pipeline.pictures.png_prompt import embedded_prompt
from tests.test_pixels import NOISE_PNG, encoded


def with_text(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return encoded(Image.new("RGB", (2, 2)), "PNG", pnginfo=info)


def test_embedded_prompts() -> None:
    web = "a red\nhouse, Steps: no\nNegative prompt: blur\nSteps: 20, Sampler: Euler"
    assert embedded_prompt(with_text(parameters=web)) == "a red\nhouse, Steps: no"
    assert embedded_prompt(with_text(parameters="ein Haus\u2026")) == "ein Haus\u2026"  # iTXt
    assert embedded_prompt(with_text(parameters="\nSteps: 20")) is None
    invoke = '{"positive_prompt": "a dog", "negative_prompt": ""}'
    assert embedded_prompt(with_text(invokeai_metadata=invoke)) == "a dog"
    graph = (
        '{"3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},'
        ' "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},'
        ' "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blur"}}}'
    )
    assert embedded_prompt(with_text(prompt=graph)) == "a cat"
    for other in ("not json", "[1]", '{"3": 1}', "[" * 100_000, graph.replace('"text"', '"t"')):
        assert embedded_prompt(with_text(prompt=other)) is None
    assert embedded_prompt(with_text(parameters="a house")[:80]) == "a house"  # the head is enough
    assert embedded_prompt(b"") is None and embedded_prompt(NOISE_PNG) is None
