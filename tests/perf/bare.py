"""Plan rows in, PIL pictures out, by nothing but diffusers: the peer of the images stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image


def batch(pipe: Any, rows: list[dict[str, Any]]) -> list[Image.Image]:
    """The pictures of one batch, as a user of diffusers would make them."""
    import torch

    first = rows[0]
    made: list[Image.Image] = pipe(
        prompt=[row["text"] for row in rows],
        negative_prompt=[row["negative_prompt"] for row in rows],
        width=first["width"],
        height=first["height"],
        num_inference_steps=first["steps"],
        guidance_scale=first["guidance_scale"],
        generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
        output_type="pil",
    ).images
    return made


def pictures(pipe: Any, rows: list[dict[str, Any]], size: int) -> Iterator[list[Image.Image]]:
    """Batch after batch of `size` rows."""
    for start in range(0, len(rows), size):
        yield batch(pipe, rows[start : start + size])


def sentences(count: int) -> list[str]:
    """Distinct sentences of ten words or so; the first 16 hold every word but the number."""
    things = ("boat", "house", "tree", "bridge")
    colors = ("red", "blue", "green", "yellow")
    places = ("on a calm lake", "under heavy clouds", "beside an old wall", "in the morning light")
    return [
        f"a {colors[n % 4]} {things[n // 4 % 4]} {places[(n + n // 4) % 4]}, picture number {n}"
        for n in range(count)
    ]
