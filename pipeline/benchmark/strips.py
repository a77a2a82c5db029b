"""A picture and what codecs made of it in, one strip out: whole, and a crop enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.pixels import RGB, png_bytes

HEIGHT = 220  # pixels of a tile
LINE = 15


def busiest(image: RGB, side: int) -> tuple[int, int]:
    """Top and left of the square with the strongest edges, on a grid of half its side.

    What a codec loses is seen there, and not in a sky.
    """
    height, width = image.shape[:2]
    side_y, side_x = min(side, height), min(side, width)
    grey = image.mean(2)
    edges = np.zeros((height, width))
    edges[1:] += np.abs(np.diff(grey, axis=0))
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    total = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best, place = -1.0, (0, 0)
    for top in range(0, height - side_y + 1, max(side // 2, 1)):
        for left in range(0, width - side_x + 1, max(side // 2, 1)):
            bottom, right = top + side_y, left + side_x
            found = total[bottom, right] - total[top, right] - total[bottom, left]
            found += total[top, left]
            if found > best:
                best, place = found, (top, left)
    return place


def _tile(image: RGB, lines: Sequence[str], place: tuple[int, int], side: int) -> Image.Image:
    """The whole picture, the crop enlarged without smoothing, and some lines below."""
    font = ImageFont.load_default(11)
    height, width = image.shape[:2]
    whole_width = max(1, round(HEIGHT * width / height))
    whole = Image.fromarray(image).resize((whole_width, HEIGHT), Image.Resampling.LANCZOS)
    top, left = place
    crop = Image.fromarray(image[top : top + side, left : left + side])
    crop = crop.resize((HEIGHT, HEIGHT), Image.Resampling.NEAREST)
    tile = Image.new(
        "RGB", (max(whole_width, HEIGHT) + 6, 2 * HEIGHT + LINE * len(lines) + 10), "white"
    )
    tile.paste(whole, (3, 3))
    scale = HEIGHT / height
    ImageDraw.Draw(tile).rectangle(
        (3 + left * scale, 3 + top * scale, 3 + (left + side) * scale, 3 + (top + side) * scale),
        outline=(255, 0, 0),
    )
    tile.paste(crop, (3, HEIGHT + 6))
    for i, line in enumerate(lines):
        ImageDraw.Draw(tile).text((4, 2 * HEIGHT + 8 + i * LINE), line, fill="black", font=font)
    return tile


def strip(original: RGB, others: Sequence[tuple[Sequence[str], RGB]], side: int) -> bytes:
    """PNG: the original and each codec, whole and as a crop of `side` pixels, with lines below."""
    side = min(side, *original.shape[:2])
    place = busiest(original, side)
    tiles = [_tile(original, ["original"], place, side)]
    tiles += [_tile(image, lines, place, side) for lines, image in others]
    size = (sum(tile.width for tile in tiles), max(tile.height for tile in tiles))
    sheet = Image.new("RGB", size, "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width
    return png_bytes(np.asarray(sheet))
