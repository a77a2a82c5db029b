"""Image vectors, perceptual hashes and pixel hashes in, the `duplicates` table out: near pairs.

Pairs, not verdicts: the selection decides which image of a pair stays. A training image
is compared with the test and validation images of every source, whatever the scope. Variants of
one generation are no pair. New shards (a top-up round, one more source) are joined with the old
ones; what was joined before is not joined again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline import AigiError, gate
from pipeline.cluster import with_ray
from pipeline.duplicates.clusters import clustered_pairs, divide, part_pairs
from pipeline.duplicates.groups import equal_pairs
from pipeline.duplicates.hashes import hash_pairs
from pipeline.duplicates.pairs import Pairs, gathered, near_pairs
from pipeline.files import scratch
from pipeline.gate import Checked, Number, Sha256, matching
from pipeline.progress import Progress
from pipeline.record import digest
from pipeline.settings import Count, Settings
from pipeline.stage import Build, Compute
from pipeline.store import Damaged, Shard, Store
from pipeline.tables import DUPLICATES


class Duplicates(Settings):
    """Embeddings, hashes and pixels in, the `duplicates` table out: pairs of near images.

    The selection can only set thresholds that are higher than these.
    """

    scope: Literal["source", "all"] = Field(
        "source",
        description="pairs inside a source, or anywhere; those of a training image with a "
        "test or validation image are always found anywhere",
    )
    min_similarity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.9, description="least cosine of image vectors; null: do not compare vectors"
    )
    min_hash_similarity: Annotated[float, Field(ge=0.75, le=1)] | None = Field(
        None, description="least share of equal bits of perceptual hashes (quality section)"
    )
    clusters: Count | None = Field(
        None,
        description="number of clusters that are joined one by one, as Ray tasks with compute.ray: "
        "the same pairs, for more than about ten million images",
    )


VERSION = 2
COVERED = "_covered.json"
REMEDY = "Delete it: the pairs are then found again."


class _Made(Checked):
    name: Annotated[str, matching(r"pairs-\d{5,}", "the name of a shard of pairs")]
    rows: Number
    bytes: Number
    sha256: Sha256
    footer: str = ""
    stamp: str = ""


class _Covered(Checked):
    """Plan shards that were compared, and the shards that hold their pairs."""

    shards: dict[str, str] | list[str]
    made: list[_Made]


HASH_BITS = 64
_AT_ONCE = 1 << 16  # pairs of a chunk


@dataclass(frozen=True)
class _Rows:
    """Images in the order in which they are joined: old shards first."""

    image_id: pa.Array
    unit: NDArray[np.int64]  # one number for all variants of a generation
    pixels: list[str | None]
    scope: NDArray[np.int64]
    held: NDArray[np.bool_]
    old: int


def _rows(store: Store, shards: list[str], old: int, scope: str) -> _Rows:
    """`old` is a number of shards here, and of rows in the answer."""
    image_id: list[str] = []
    unit: list[int] = []
    number: dict[str, int] = {}
    pixels: list[str | None] = []
    source: list[str] = []
    split: list[str] = []
    before = 0
    for place, shard in enumerate(shards):
        found = store.aligned(
            shard, {"plan": ["source", "split", "pair_id"], "images": ["pixels_sha256"]}
        )
        plan, images = found["plan"], found["images"]
        ids = plan["image_id"].to_pylist()
        image_id += ids
        for pair, own in zip(plan["pair_id"].to_pylist(), ids, strict=True):
            unit.append(number.setdefault(pair or own, len(number)))
        pixels += images["pixels_sha256"].to_pylist()
        source += plan["source"].to_pylist()
        split += plan["split"].to_pylist()
        if place < old:
            before += len(ids)
    names = {name: i for i, name in enumerate(dict.fromkeys(source))}
    return _Rows(
        pa.array(image_id, pa.string()),
        np.array(unit, np.int64),
        pixels,
        np.array([names[name] if scope == "source" else 0 for name in source], np.int64),
        np.array([name != "train" for name in split], np.bool_),
        before,
    )


def _counts(pairs: Pairs, rows: _Rows) -> NDArray[np.bool_]:
    """Which pairs are of one scope or across the held-out line, new, and of two generations."""
    a, b = pairs.first, pairs.second
    near = (rows.scope[a] == rows.scope[b]) | (rows.held[a] != rows.held[b])
    counted: NDArray[np.bool_] = near & (b >= rows.old) & (rows.unit[a] != rows.unit[b])
    return counted


def _vectors(
    store: Store, shards: list[str], rows: _Rows, folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Vectors of all images that have one, memory-mapped, and the row of each."""
    which: list[int] = []
    start = 0
    size = 0
    path = folder / "vectors.f16"
    with path.open("wb") as file:
        for shard in shards:
            table = store.read("embeddings", shard, ["image_id", "image_vector"])
            ids = table["image_id"].combine_chunks()
            if ids != rows.image_id.slice(start, len(ids)):
                raise AigiError(
                    f"{store.path('embeddings', shard)}.parquet: rows differ from the plan's"
                )
            column = table["image_vector"].combine_chunks()
            which += [start + int(i) for i in np.flatnonzero(column.is_valid())]
            present = column.drop_null()
            size = column.type.list_size
            if len(present):
                file.write(present.flatten().to_numpy(zero_copy_only=False).tobytes())
            start += len(ids)
    if not which:
        return np.empty((0, max(size, 1)), np.float16), np.empty(0, np.int64)
    found = np.memmap(path, np.float16, "r", shape=(len(which), size))
    return found, np.array(which, np.int64)


def _hashes(store: Store, shards: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    parts: list[int | None] = []
    for shard in shards:
        table = store.read("quality", shard, ["perceptual_hash"])
        parts += table["perceptual_hash"].to_pylist()
    which = np.array([i for i, value in enumerate(parts) if value is not None], np.int64)
    return np.array([value for value in parts if value is not None], np.uint64), which


def _moved(pairs: Iterable[Pairs], which: NDArray[np.int64]) -> Iterator[Pairs]:
    for part in pairs:
        yield Pairs(which[part.first], which[part.second], part.measure)


def _near(
    tau: float,
    settings: Duplicates,
    compute: Compute,
    progress: Progress,
    vectors: NDArray[np.float16],
    rows: _Rows,
    which: NDArray[np.int64],
) -> Iterator[Pairs]:
    """Pairs of vectors with a cosine of `tau` or more, by their rows in `which`."""
    scopes, held = rows.scope[which], rows.held[which]
    old = int(np.searchsorted(which, rows.old))
    if settings.clusters is None:
        return near_pairs(vectors, tau, scopes=scopes, held=held, old=old, device=compute.device)
    clusters = divide(vectors, tau, settings.clusters, device=compute.device)
    progress.say(
        f"duplicates: {clusters.count:,} clusters, {clusters.share:.0%} of the products of all "
        "pairs"
    )
    return clustered_pairs(
        vectors,
        tau,
        clusters,
        scopes=scopes,
        held=held,
        old=old,
        device=compute.device,
        join=None if compute.ray is None else lambda given: with_ray(part_pairs, given, compute),
    )


def _find(
    settings: Duplicates,
    compute: Compute,
    progress: Progress,
    store: Store,
    shards: list[str],
    old: int,
    folder: Path,
) -> Iterator[pa.Table]:
    rows = _rows(store, shards, old, settings.scope)
    found: list[tuple[str, Pairs]] = [("pixels", gathered(equal_pairs(rows.pixels)))]
    if settings.min_hash_similarity is not None:
        hashes, which = _hashes(store, shards)
        most = int((1 - settings.min_hash_similarity) * HASH_BITS + 1e-9)
        near = gathered(_moved(hash_pairs(hashes, most), which))
        found.append(("hash", Pairs(near.first, near.second, 1 - near.measure / HASH_BITS)))
    if (tau := settings.min_similarity) is not None:
        vectors, which = _vectors(store, shards, rows, folder)
        join = _near(tau, settings, compute, progress, vectors, rows, which)
        found.append(("vector", gathered(_moved(join, which))))
    for kind, pairs in found:
        counts = np.flatnonzero(_counts(pairs, rows))
        for start in range(0, len(counts), _AT_ONCE):
            some = counts[start : start + _AT_ONCE]
            yield pa.table(
                [
                    rows.image_id.take(pa.array(pairs.first[some])),
                    rows.image_id.take(pa.array(pairs.second[some])),
                    pa.array([kind] * len(some), pa.string()),
                    pa.array(pairs.measure[some], pa.float64()),
                ],
                schema=DUPLICATES,
            )


def _content(settings: Duplicates, store: Store, shard: str) -> str:
    """A digest of what is compared of one shard."""
    read = ((table, shard, store.sha256_of(table, shard)) for table in needs(settings))
    return digest(read)


def _covered(store: Store, now: Mapping[str, str]) -> tuple[list[str], list[Shard]]:
    """Shards that were joined before, and the pairs of them; none where one has changed."""
    before: dict[str, Any] = {"shards": {}, "made": []}
    if (found := store.read_json("duplicates", COVERED, remedy=REMEDY)) is not None:
        gate.check(_Covered, found, store.path("duplicates", COVERED), REMEDY)
        before = found
    kept = [Shard(**made) for made in before["made"]]
    shards = before["shards"]
    if isinstance(shards, list):  # as an earlier version wrote it, without their content
        shards = {name: now.get(name) for name in shards}
    for shard in kept:
        try:
            there = store.look("duplicates", f"{shard.name}.parquet")
        except Damaged:
            return [], []
        if there is None or there.sha256 != shard.sha256:
            return [], []
    if any(content is None or now.get(name) != content for name, content in shards.items()):
        return [], []
    return list(shards), kept


def _build(settings: Duplicates, compute: Compute, store: Store, progress: Progress) -> list[Shard]:
    now = {name: _content(settings, store, name) for name in sorted(store.shards("plan"))}
    before, kept = _covered(store, now)
    new = [name for name in now if name not in before]
    if not new and kept:
        return kept
    name = f"pairs-{len(kept):05d}"
    with scratch("duplicates") as folder:
        tables = _find(
            settings,
            compute,
            progress,
            store,
            [*before, *new],
            len(before),
            Path(folder),
        )
        shard = store.write("duplicates", name, tables, DUPLICATES)
    made = [*kept, shard]
    store.write_json(
        {
            "shards": {name: now[name] for name in (*before, *new)},
            "made": [vars(one) for one in made],
        },
        "duplicates",
        COVERED,
    )
    progress.say(f"duplicates: {shard.rows:,} pairs found in {len(new):,} new shards")
    return made


def needs(settings: Duplicates) -> tuple[str, ...]:
    """Tables that are compared: those of the stages before that these settings need."""
    found = ["plan", "images"]
    if settings.min_similarity is not None:
        found.append("embeddings")
    if settings.min_hash_similarity is not None:
        found.append("quality")
    return tuple(found)


def stage(settings: Duplicates, compute: Compute) -> Build:
    """The duplicates stage; the tables of `needs` must be there when it runs."""
    return Build(
        table="duplicates",
        version=VERSION,
        schema=DUPLICATES,
        # In clusters or not, the pairs are the same.
        settings=settings.model_dump(mode="json", exclude={"clusters"}),
        inputs=needs(settings),
        build=partial(_build, settings, compute),
    )
