"""Fields of a row in, its seed and ids out: hashes, the same on any machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.tables import OPTIONS, PLAN, with_options


def seed_of(prompt: str, source: str, index: int, salt: int) -> int:
    """63-bit seed of one generation: a hash of prompt id, source and index."""
    digest = hashlib.sha256(f"seed:{salt}:{prompt}:{source}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_GENERATED = (
    "text", "source", "model", "revision", "seed", "steps", "guidance_scale", "negative_prompt",
    "scheduler", "dtype", "width", "height", "watermark",
)  # fmt: skip
_IMPORTED = ("text", "source", "path")
# Without a seed, two images of one prompt differ in their number alone.
_ASKED = (
    "text", "source", "model", "revision", "seed", "index", "width", "height", "watermark",
)  # fmt: skip


def asked_seed(seed: int) -> int:
    """The seed of an image of an endpoint, in 31 bits: many read numbers as floats or int32."""
    return seed >> 32


def image_id_of(row: Mapping[str, Any]) -> str:
    """The id of a row of the plan: a hash of every field that decides its pixels.

    Args:
        row: with a `path`, it is that of an imported image; with neither path nor steps, that of
            an endpoint.
    """
    deciding: tuple[str, ...] = _GENERATED if row["path"] is None else _IMPORTED
    if row["path"] is None and row["steps"] is None:
        deciding = _ASKED
    fields = {name: row[name] for name in deciding}
    if row["path"] is not None and row["watermark"] != "none":
        # Without a watermark the id is what it was before imports could have one.
        fields["watermark"] = row["watermark"]
    if row.get(OPTIONS.name) is not None:
        fields[OPTIONS.name] = row[OPTIONS.name]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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


def rank_of(rank: int, prompts: int, each: int) -> tuple[int, int]:
    """The prompt that a rank stands for, and which of the prompt's images it is.

    Every prompt gets `each` images in turn; ranks beyond the last one begin again at the first
    prompt, with new seeds.
    """
    lap, rest = divmod(rank, prompts * each)
    return rest // each, lap * each + rest % each


def spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Number of each round, its first rank, and the end of its ranks."""
    end = 0
    for number, count in enumerate(counts):
        yield number, end, end + count
        end += count
