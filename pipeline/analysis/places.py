"""Several places of images in; names of shards, and the rows of each, out.

A shard is a part of a `Collection`; the number of its place makes its name unique.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa

from pipeline.collection import Collection, Pictures
from pipeline.store import Store


def places(asked: tuple[Pictures, ...], run: str) -> tuple[Pictures, ...]:
    """The places that a section names; if it names none, the release of the run itself."""
    return asked or (Pictures(place=run),)


@lru_cache(maxsize=16)
def _open(pictures: Pictures) -> Collection:
    return Collection(pictures)


def state(pictures: tuple[Pictures, ...], store: Store) -> list[str]:
    """Digests of what is at the places now, taken before anything is read."""
    _open.cache_clear()
    return [_open(place).state for place in pictures]


def content(pictures: tuple[Pictures, ...], store: Store, name: str) -> str:
    """The digest of the images of one part."""
    number, _, part = name.partition("-")
    return _open(pictures[int(number)]).digest(part)


def shard_names(pictures: tuple[Pictures, ...], store: Store) -> list[str]:
    """The parts of all places now, in order; the number of the place makes them unique."""
    _open.cache_clear()
    return [
        f"{number:02d}-{part.name}"
        for number, place in enumerate(pictures)
        for part in _open(place).parts
    ]


def rows_of(pictures: tuple[Pictures, ...], store: Store, name: str) -> int:
    """How many images a part has."""
    number, _, part = name.partition("-")
    return {one.name: one.rows for one in _open(pictures[int(number)]).parts}[part]


def read_shard(
    pictures: tuple[Pictures, ...], columns: Sequence[str], store: Store, name: str
) -> pa.Table:
    """These columns of the images of one part."""
    number, _, part = name.partition("-")
    return _open(pictures[int(number)]).read(part, columns)
