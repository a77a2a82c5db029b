"""An image and what codecs made of it in, one strip out: whole, and a crop enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.pixels import RGB, png_bytes

HEIGHT, WIDTH = 220, 300  # pixels of a tile's whole picture, at most
PAGE = 920  # pixels of a row of tiles, at most: what a page shows without shrinking the captions
LINE = 15


def busiest(image: RGB, side: int) -> tuple[int, int]:
    """Top and left of the square with the strongest edges in a uint8 H x W x 3 image, on a grid.

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
    """The whole image, the crop enlarged without smoothing, and some lines below."""
    font = ImageFont.load_default(11)
    height, width = image.shape[:2]
    scale = min(HEIGHT / height, WIDTH / width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    whole = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    top, left = place
    crop = Image.fromarray(image[top : top + side, left : left + side])
    crop = crop.resize((HEIGHT, HEIGHT), Image.Resampling.NEAREST)
    below = size[1] + 6
    tile = Image.new(
        "RGB", (max(size[0], HEIGHT) + 6, below + HEIGHT + LINE * len(lines) + 4), "white"
    )
    tile.paste(whole, (3, 3))
    ImageDraw.Draw(tile).rectangle(
        (3 + left * scale, 3 + top * scale, 3 + (left + side) * scale, 3 + (top + side) * scale),
        outline=(255, 0, 0),
    )
    tile.paste(crop, (3, below))
    for i, line in enumerate(lines):
        ImageDraw.Draw(tile).text((4, below + HEIGHT + 2 + i * LINE), line, fill="black", font=font)
    return tile


def strip(original: RGB, others: Sequence[tuple[Sequence[str], RGB]], side: int) -> bytes:
    """PNG: the original and each codec, whole and as a crop of `side` pixels, with lines below.

    Tiles stand in rows of at most `PAGE` pixels.

    Args:
        original: uint8, H x W x 3.
        others: lines of text and an image, uint8, H x W x 3, of each codec.
        side: of the crop, in pixels; at most the image's shorter side is taken.
    """
    side = min(side, *original.shape[:2])
    place = busiest(original, side)
    tiles = [_tile(original, ["original"], place, side)]
    tiles += [_tile(image, lines, place, side) for lines, image in others]
    # All are of one width, and those of codecs of one height.
    width, height = tiles[-1].size
    columns = min(PAGE // width, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return png_bytes(np.asarray(sheet))
