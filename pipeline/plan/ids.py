"""Fields of a row in, its seed and ids out: hashes, the same on any machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables import OPTIONS, PLAN, with_options


def seed_text(source: str, salt: int) -> tuple[str, str]:
    """What is hashed for a seed before the id of the prompt, and between it and the index."""
    return f"seed:{salt}:", f":{source}:"


def seed_of(prompt: str, source: str, index: int, salt: int) -> int:
    """63-bit seed of one generation: a hash of prompt id, source and index."""
    before, after = seed_text(source, salt)
    digest = hashlib.sha256(f"{before}{prompt}{after}{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


ID_DIGITS = 32
"""Hex digits of SHA-256 that an id of an image has."""
_GENERATED = (
    "text", "source", "model", "revision", "seed", "steps", "guidance_scale", "negative_prompt",
    "scheduler", "dtype", "width", "height", "watermark",
)  # fmt: skip
_IMPORTED = ("text", "source", "path")
# Without a seed, two images of one prompt differ in their number alone.
_ASKED = (
    "text", "source", "model", "revision", "seed", "index", "width", "height", "watermark",
)  # fmt: skip


Seed = TypeVar("Seed", int, NDArray[np.int64])


def asked_seed(seed: Seed) -> Seed:
    """The seed of an image of an endpoint, in 31 bits: many read numbers as floats or int32."""
    return seed >> 32


def deciding(*, path: bool, steps: bool, marked: bool, options: bool) -> tuple[str, ...]:
    """Names of the fields whose hash is the id of a row.

    Args:
        path, steps, options: whether the row has a value there.
        marked: whether its watermark is another than `none`.
    """
    if not path:
        found: tuple[str, ...] = _GENERATED if steps else _ASKED
    else:
        # Without a watermark the id is what it was before imports could have one.
        found = (*_IMPORTED, "watermark") if marked else _IMPORTED
    return (*found, OPTIONS.name) if options else found


def image_id_of(row: Mapping[str, Any]) -> str:
    """The id of a row of the plan: a hash of every field that decides its pixels.

    Args:
        row: with a `path`, it is that of an imported image; with neither path nor steps, that of
            an endpoint.
    """
    names = deciding(
        path=row["path"] is not None,
        # Of an import nobody asks.
        steps=row["path"] is None and row["steps"] is not None,
        marked=row["watermark"] != "none",
        options=row.get(OPTIONS.name) is not None,
    )
    fields = {name: row[name] for name in names}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def pair_id_of(ids: dict[str, str]) -> str | None:
    """The id of the unmarked variant, if there is one; None for an image without variants.

    Args:
        ids: image id of every watermark of one image, in the order of the specification.
    """
    return ids.get("none", next(iter(ids.values()))) if len(ids) > 1 else None


def plan_table(rows: Iterable[dict[str, Any]], options: bool = False) -> pa.Table:
    """Rows of a plan.

    Args:
        options: whether a source of the plan has some.
    """
    return pa.Table.from_pylist(list(rows), schema=with_options(PLAN, options))


def places_of(
    ranks: NDArray[np.int64], prompts: int, each: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The prompts that ranks stand for, and which of their prompts' images they are.

    Every prompt gets `each` images in turn; ranks beyond the last one begin again at the first
    prompt, with new seeds.

    Args:
        ranks: int64, shape (n,), from 0.
        prompts: how many there are.

    Returns: int64, shape (n,) both; numbers of prompts and of images, from 0.
    """
    lap, rest = np.divmod(ranks, prompts * each)
    return rest // each, lap * each + rest % each


def spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Number of each round, its first rank, and the end of its ranks."""
    end = 0
    for number, count in enumerate(counts):
        yield number, end, end + count
        end += count
