"""The plan made row by row, plainly and slowly: what the columns of the plan are compared with."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.plan.quotas import Plan, generations_of, shard_rows
from pipeline.plan.specification import DiffusersSpec, HttpSpec, PromptedSpec, ZooSpec
from pipeline.store import Store
from pipeline.tables import PLAN, with_options

_GENERATED = (
    "text", "source", "model", "revision", "seed", "steps", "guidance_scale", "negative_prompt",
    "scheduler", "dtype", "width", "height", "watermark",
)  # fmt: skip
_ASKED = (
    "text", "source", "model", "revision", "seed", "index", "width", "height", "watermark",
)  # fmt: skip
_IMPORTED = ("text", "source", "path")


class Prompt(NamedTuple):
    prompt_id: str
    text: str
    source: str
    split: str


def prompts_of(store: Store, stated: Mapping[str, str]) -> list[Prompt]:
    """All prompts of a run; splits that an import states win."""
    found = []
    for shard in store.shards("prompts"):
        for row in store.read("prompts", shard).to_pylist():
            split = stated.get(row["prompt_id"], row["split"])
            found.append(Prompt(row["prompt_id"], row["text"], row["source"], split))
    return found


def image_id(row: Mapping[str, Any]) -> str:
    """The id of a row, from the JSON of what decides its pixels."""
    deciding: tuple[str, ...] = _GENERATED if row["path"] is None else _IMPORTED
    if row["path"] is None and row["steps"] is None:
        deciding = _ASKED
    fields = {name: row[name] for name in deciding}
    if row["path"] is not None and row["watermark"] != "none":
        fields["watermark"] = row["watermark"]
    if row.get("options") is not None:
        fields["options"] = row["options"]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def seed(prompt: str, source: str, index: int, salt: int) -> int:
    """The seed of an image."""
    digest = hashlib.sha256(f"seed:{salt}:{prompt}:{source}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _ranks(
    spec: PromptedSpec, split: str, first: int, last: int
) -> Iterator[tuple[int | None, DiffusersSpec | HttpSpec, Sequence[int]]]:
    if not isinstance(spec, ZooSpec):
        yield None, spec, range(first, last)
        return
    turns = spec.turns(split)
    mine: dict[int, list[int]] = defaultdict(list)
    for rank in range(first, last):
        mine[turns[rank % len(turns)]].append(rank)
    for model, ranks in sorted(mine.items()):
        yield model, spec.members[model], ranks


def _rows(
    name: str, member: DiffusersSpec | HttpSpec, split: str, size: Any, plan: Plan,
    prompts: list[Prompt], each: int, rank: int, number: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    lap, rest = divmod(rank, len(prompts) * each)
    prompt, index = prompts[rest // each], lap * each + rest % each
    drawn = isinstance(member, DiffusersSpec)
    own: int | None = seed(prompt.prompt_id, name, index, plan.seed)
    if isinstance(member, HttpSpec):
        assert own is not None
        own = own >> 32 if member.seeds else None
    columns = ("steps", "guidance_scale", "negative_prompt", "scheduler", "dtype")
    row = {
        "text": prompt.text, "split": split, "source": name, "model": member.model,
        "revision": member.revision, "seed": own, "width": size.width, "height": size.height,
        "path": None, "index": index, "options": member.row_options,
        **{column: getattr(member, column) if drawn else None for column in columns},
    }  # fmt: skip
    ids = {mark: image_id({**row, "watermark": mark}) for mark in size.watermarks}
    pair = ids.get("none", next(iter(ids.values()))) if len(ids) > 1 else None
    for mark, image in ids.items():
        more = {"prompt_id": prompt.prompt_id, "rank": rank, "round": number}
        yield {**row, **more, "image_id": image, "watermark": mark, "pair_id": pair}


def generated(
    name: str, spec: PromptedSpec, split: str, prompts: list[Prompt], plan: Plan,
    rounds: list[int], options: bool,
) -> dict[str, pa.Table]:  # fmt: skip
    """Shards of a generated source and split, by name."""
    size = spec.splits[split]  # type: ignore[index]
    planned = math.ceil(generations_of(size, plan) * (1 + plan.margin))
    usable = [
        p for p in prompts if p.split == split and (not spec.captions or p.source in spec.captions)
    ]
    each = shard_rows(size.width or 0, size.height or 0, len(size.watermarks), plan.shard_mb)
    found: dict[str, pa.Table] = {}
    start = 0
    for number, count in enumerate([planned, *rounds]):
        for model, member, ranks in _ranks(spec, split, start, start + count):
            for place in range(0, len(ranks), each):
                rows = [
                    row
                    for rank in ranks[place : place + each]
                    for row in _rows(
                        name, member, split, size, plan, usable, spec.images_per_prompt, rank,
                        number,
                    )
                ]  # fmt: skip
                of = ("" if not number else f"round{number}-") + (
                    "" if model is None else f"m{model:04d}-"
                )
                found[f"{name}-{split}-{of}{place // each:05d}"] = pa.Table.from_pylist(
                    rows, schema=with_options(PLAN, options)
                )
        start += count
    return found
