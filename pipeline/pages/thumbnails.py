"""Rows of a run in, small images of them as `data:` addresses out.

Only the row groups that hold a wanted row are read.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from pipeline.pixels import RGB
from pipeline.store import Store


class Place(NamedTuple):
    """The place of an image: shard of the plan, and row in it, from 0."""

    shard: str
    row: int


class Thumbnail(NamedTuple):
    """A small image: WebP as a `data:` address, and its size in pixels."""

    address: str
    width: int
    height: int


def _small(rgb: RGB, side: int, quality: int) -> Thumbnail:
    picture = Image.fromarray(rgb)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=4)
    text = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/webp;base64,{text}", *picture.size)


def pictures(store: Store, places: Iterable[Place]) -> Iterator[tuple[Place, RGB]]:
    """Decoded images (uint8, H x W x 3) of these rows, shard by shard.

    Rows without an image are left out.

    Raises:
        AigiError: a shard is missing, or a stored image is damaged.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for place in places:
        wanted[place.shard].add(place.row)
    for shard, rows in sorted(wanted.items()):
        for row, rgb, _ in store.images("images", shard, rows):
            yield Place(shard, row), rgb


def thumbnails(
    store: Store, places: Iterable[Place], side: int, quality: int = 80
) -> dict[Place, Thumbnail]:
    """Thumbnails of these rows, at most `side` pixels a side; rows without an image are left out.

    Raises:
        AigiError: as `pictures`.
    """
    return {place: _small(rgb, side, quality) for place, rgb in pictures(store, places)}
