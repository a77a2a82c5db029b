"""Usable prompts and what is specified of a source in, its rows of the plan out: in columns.

A part is some ranks of one source and split. It needs nothing of another part, so any process
makes its shards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.plan.hashed import image_ids, pair_ids, seeds
from pipeline.plan.ids import asked_seed, places_of
from pipeline.plan.rounds import shard_name
from pipeline.plan.specification import DiffusersSpec, HttpSpec, PromptedSpec, SplitSpec, ZooSpec
from pipeline.plan.usable import Usable
from pipeline.stage import Compute
from pipeline.store import Shard, Store
from pipeline.tables import OPTIONS, PLAN, with_options
from pipeline.threads import ahead, workers

Int64 = NDArray[np.int64]
RANKS = 1 << 20
"""About how many ranks a part has."""
_WRITERS = 4
_BLOCK = 1 << 16  # ranks of a zoo that are dealt out to its models at once


def _fixed(
    name: str, spec: DiffusersSpec | HttpSpec, split: str, size: SplitSpec
) -> dict[str, Any]:
    """What all rows of a source and split have in common."""
    ran: dict[str, Any] = {}
    if isinstance(spec, DiffusersSpec):
        ran = {
            "steps": spec.steps,
            "guidance_scale": spec.guidance_scale,
            "negative_prompt": spec.negative_prompt,
            "scheduler": spec.scheduler,
            "dtype": spec.dtype,
        }
    return {
        "split": split,
        "source": name,
        "model": spec.model,
        "revision": spec.revision,
        **ran,
        "width": size.width,
        "height": size.height,
        OPTIONS.name: spec.row_options,
    }


@dataclass(frozen=True)
class Ranked:
    """Some ranks, the prompt of each, and which of the prompt's images it is.

    `prompts` has `prompt_id` and `text`; `rank` and `index` are int64 of the same length.
    """

    prompts: pa.Table
    rank: Int64
    index: Int64

    def __len__(self) -> int:
        return len(self.rank)


@dataclass(frozen=True)
class Part:
    """Ranks of one source, split and round, from `first` up to `last`.

    Attributes:
        seed: setting of the plan.
        each: ranks of a shard.
        options: whether the plan has a column of options.
        number: of the round.
        shard: number of its first shard in its round.
    """

    name: str
    spec: PromptedSpec
    split: str
    usable: Usable
    seed: int
    each: int
    options: bool
    number: int
    first: int
    last: int
    shard: int

    def shards(self) -> Iterator[tuple[str, pa.Table]]:
        """Names and rows (PLAN) of its shards."""
        count: dict[int | None, int] = defaultdict(lambda: self.shard)
        dealt = self._dealt() if isinstance(self.spec, ZooSpec) else self._plain()
        for model, ranked in dealt:
            name = shard_name(self.name, self.split, self.number, count[model], model)
            count[model] += 1
            yield name, self._rows(model, ranked)

    def _ranked(self, ranks: Int64) -> Ranked:
        at, index = places_of(ranks, len(self.usable), self.spec.images_per_prompt)
        return Ranked(self.usable.take(at), ranks, index)

    def _plain(self) -> Iterator[tuple[None, Ranked]]:
        for start in range(self.first, self.last, self.each):
            yield None, self._ranked(np.arange(start, min(start + self.each, self.last)))

    def _dealt(self) -> Iterator[tuple[int, Ranked]]:
        """Shards of the models of a zoo, each when it is full; prompts are read once."""
        assert isinstance(self.spec, ZooSpec)
        turns = np.array(self.spec.turns(self.split), np.int64)
        waiting: dict[int, list[Ranked]] = defaultdict(list)
        for start in range(self.first, self.last, _BLOCK):
            block = self._ranked(np.arange(start, min(start + _BLOCK, self.last)))
            models = turns[block.rank % len(turns)]
            order = np.argsort(models, kind="stable")
            ends = np.flatnonzero(np.diff(models[order])) + 1
            for at in np.split(order, ends):
                model = int(models[at[0]])
                waiting[model].append(
                    Ranked(block.prompts.take(pa.array(at)), block.rank[at], block.index[at])
                )
                if sum(map(len, waiting[model])) >= self.each:
                    *full, rest = self._cut(waiting.pop(model))
                    if len(rest) == self.each:
                        full.append(rest)
                    elif len(rest):
                        waiting[model] = [rest]
                    yield from ((model, one) for one in full)
        for model, left in sorted(waiting.items()):
            yield from ((model, one) for one in self._cut(left))

    def _cut(self, ranked: list[Ranked]) -> Iterator[Ranked]:
        prompts = pa.concat_tables([one.prompts for one in ranked]).combine_chunks()
        rank = np.concatenate([one.rank for one in ranked])
        index = np.concatenate([one.index for one in ranked])
        for start in range(0, len(rank), self.each):
            mine = slice(start, start + self.each)
            yield Ranked(prompts.slice(start, self.each), rank[mine], index[mine])

    def _rows(self, model: int | None, ranked: Ranked) -> pa.Table:
        spec = self.spec.members[model or 0] if isinstance(self.spec, ZooSpec) else self.spec
        size: SplitSpec = self.spec.splits[self.split]  # type: ignore[index]
        marks = size.watermarks
        n = len(ranked)
        prompts = ranked.prompts.combine_chunks()
        prompt_id = prompts["prompt_id"].combine_chunks()
        own = seeds(prompt_id, self.name, ranked.index, self.seed)
        seed: Int64 | None = own
        if isinstance(spec, HttpSpec):
            seed = np.asarray(asked_seed(own)) if spec.seeds else None
        each = np.repeat(np.arange(n), len(marks))
        columns: dict[str, Any] = {
            "prompt_id": prompt_id.take(pa.array(each)),
            "text": prompts["text"].combine_chunks().take(pa.array(each)),
            "seed": None if seed is None else seed[each],
            "index": ranked.index[each],
            "rank": ranked.rank[each],
            "watermark": pa.array(marks, pa.string()).take(
                pa.array(np.tile(np.arange(len(marks)), n))
            ),
        }
        fixed = {**_fixed(self.name, spec, self.split, size), "round": self.number}
        schema = with_options(PLAN, self.options)
        made = {
            field.name: _column(
                columns.get(field.name), fixed.get(field.name), field.type, len(each)
            )
            for field in schema
        }
        made["image_id"] = image_ids(pa.table(made))
        made["pair_id"] = pair_ids(made["image_id"], marks)
        return pa.table(made, schema=schema)


def _column(values: Any, fixed: Any, kind: pa.DataType, rows: int) -> pa.Array:
    """A column of values or, without any, of the same one in all rows; None: it has none."""
    if values is not None:
        return pa.array(values).cast(kind)
    return pa.nulls(rows, kind) if fixed is None else pa.repeat(pa.scalar(fixed, kind), rows)


def parts_of(
    name: str,
    spec: PromptedSpec,
    split: str,
    usable: Usable,
    seed: int,
    each: int,
    options: bool,
    spans: Iterator[tuple[int, int, int]],
) -> Iterator[Part]:
    """The parts of a source and split, in order.

    Args:
        spans: number, first rank and end of every round.
        seed, each, options: as in `Part`.
    """
    for number, first, last in spans:
        # Where models share the ranks, their shards do not begin at the same ranks.
        step = (
            max(1, RANKS // each) * each if not isinstance(spec, ZooSpec) else max(1, last - first)
        )
        for start in range(first, last, step):
            yield Part(
                name, spec, split, usable, seed, each, options, number, start,
                min(start + step, last), (start - first) // each,
            )  # fmt: skip


# --- Writing -----------------------------------------------------------------------------------


def named(
    name: str, split: str, tables: Iterable[tuple[int, pa.Table]]
) -> Iterator[tuple[str, pa.Table]]:
    """Shards of a source and split with their names.

    Args:
        tables: number of the round and rows of each shard.
    """
    count: Counter[int] = Counter()
    for number, table in tables:
        yield shard_name(name, split, number, count[number]), table
        count[number] += 1


def write_shards(
    store: Store, shards: Iterable[tuple[str, pa.Table]], schema: pa.Schema
) -> Iterator[Shard]:
    """Write shards of the plan, a few at once: one waits for the disk while another is made."""

    def write(shard: tuple[str, pa.Table]) -> Shard:
        return store.write("plan", *shard, schema)

    with workers(_WRITERS, "plan") as pool:
        yield from ahead(shards, write, pool, _WRITERS)


def _write_part(store: Store, part: Part, schema: pa.Schema) -> list[Shard]:
    return list(write_shards(store, part.shards(), schema))


def write_parts(
    store: Store, parts: Iterable[Part], schema: pa.Schema, compute: Compute
) -> Iterator[Shard]:
    """Make and write the shards of parts: here, or each part as a task of Ray.

    Raises:
        AigiError: as `cluster.with_ray`.
    """
    if compute.ray is None:
        yield from write_shards(store, (one for part in parts for one in part.shards()), schema)
        return
    from pipeline.cluster import with_ray

    given = ((store, part, schema) for part in parts)
    for made in with_ray(_write_part, given, compute, store):
        for shard in made:
            store.made_elsewhere("plan", shard)
            yield shard
