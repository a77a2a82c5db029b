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
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipeline import gate
from pipeline.cluster import with_ray
from pipeline.columns import Growing, is_in, repeated
from pipeline.digests import Digests
from pipeline.duplicates.clusters import clustered_pairs, divide, part_pairs
from pipeline.duplicates.groups import equal_pairs
from pipeline.duplicates.hashes import hash_pairs
from pipeline.duplicates.pairs import Pairs, gathered, near_pairs
from pipeline.files import scratch
from pipeline.gate import Checked, Number, Sha256, matching
from pipeline.plan.units import Units, ids_of, numbered
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
    """n images in the order in which they are joined: old shards first.

    Attributes:
        shards: the number of the first row of each shard.
        unit: int32, one number for all variants of a generation.
        prints: 64 bits of the hash of an image's pixels; 0 where it has none.
        scope: int32, equal where images are compared with each other.
        held: of a held-out split.
        old: how many were joined before.
    """

    shards: Mapping[str, int]
    unit: NDArray[np.int32]
    prints: NDArray[np.uint64]
    scope: NDArray[np.int32]
    held: NDArray[np.bool_]
    old: int


def _rows(store: Store, shards: list[str], old: int, scope: str) -> _Rows:
    """`old` is a number of shards here, and of rows in the answer."""
    units, prints, digests = Units(), Growing(np.uint64), Digests()
    scopes, held = Growing(np.int32), Growing(np.bool_)
    starts: dict[str, int] = {}
    names: dict[str, int] = {}
    for shard in shards:
        starts[shard] = len(prints)
        found = store.aligned(
            shard, {"plan": ["source", "split", "pair_id"], "images": ["pixels_sha256"]}
        )
        plan, pixels = found["plan"], found["images"]["pixels_sha256"]
        units.add(*numbered(plan))
        prints.add(np.where(pixels.is_null().to_numpy(), np.uint64(0), digests.values(pixels)))
        held.add(pc.not_equal(plan["split"], "train").to_numpy())
        source = plan["source"].combine_chunks().dictionary_encode()
        numbers = [names.setdefault(name, len(names)) for name in source.dictionary.to_pylist()]
        here = np.array(numbers if scope == "source" else [0] * len(numbers), np.int32)
        scopes.add(here[source.indices.to_numpy()])
    return _Rows(
        starts,
        units.whole(store, shards),
        prints.values(),
        scopes.values(),
        held.values(),
        starts[shards[old]] if old < len(shards) else len(prints),
    )


def _equal_pixels(store: Store, rows: _Rows) -> Iterator[Pairs]:
    """Pairs of images with the same pixels: of rows whose hashes look equal, these are compared."""
    alike = np.flatnonzero(is_in(rows.prints, repeated(rows.prints[rows.prints != 0])))
    names, starts = list(rows.shards), np.array([*rows.shards.values()], np.int64)
    of = np.searchsorted(starts, alike, side="right") - 1
    keys: list[str | None] = []
    for shard in np.unique(of).tolist():
        column = store.read("images", names[shard], ["pixels_sha256"])["pixels_sha256"]
        keys += column.take(pa.array(alike[of == shard] - starts[shard])).to_pylist()
    yield from _moved(equal_pairs(keys), alike)


def _counts(pairs: Pairs, rows: _Rows) -> NDArray[np.bool_]:
    """Which pairs are of one scope or across the held-out line, new, and of two generations."""
    a, b = pairs.first, pairs.second
    near = (rows.scope[a] == rows.scope[b]) | (rows.held[a] != rows.held[b])
    counted: NDArray[np.bool_] = near & (b >= rows.old) & (rows.unit[a] != rows.unit[b])
    return counted


def _vectors(
    store: Store, shards: list[str], folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Vectors of all images that have one, memory-mapped, and the row of each."""
    which, start, size = Growing(np.int64), 0, 0
    path = folder / "vectors.f16"
    with path.open("wb") as file:
        for shard in shards:
            both = {"plan": [], "embeddings": ["image_vector"]}
            column = store.aligned(shard, both)["embeddings"]["image_vector"].combine_chunks()
            there = column.is_valid().to_numpy(zero_copy_only=False)
            which.add(start + np.flatnonzero(there))
            present = column.drop_null()
            size = column.type.list_size
            if len(present):
                file.write(present.flatten().to_numpy(zero_copy_only=False).tobytes())
            start += len(column)
    if not len(which):
        return np.empty((0, max(size, 1)), np.float16), np.empty(0, np.int64)
    found = np.memmap(path, np.float16, "r", shape=(len(which), size))
    return found, which.values()


def _hashes(store: Store, shards: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    hashes, which, start = Growing(np.uint64), Growing(np.int64), 0
    for shard in shards:
        column = store.read("quality", shard, ["perceptual_hash"])["perceptual_hash"]
        which.add(start + np.flatnonzero(column.is_valid().to_numpy()))
        hashes.add(column.drop_null().to_numpy())
        start += len(column)
    return hashes.values(), which.values()


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
    found: list[tuple[str, Pairs]] = [("pixels", gathered(_equal_pixels(store, rows)))]
    if settings.min_hash_similarity is not None:
        hashes, which = _hashes(store, shards)
        most = int((1 - settings.min_hash_similarity) * HASH_BITS + 1e-9)
        near = gathered(_moved(hash_pairs(hashes, most), which))
        found.append(("hash", Pairs(near.first, near.second, 1 - near.measure / HASH_BITS)))
    if (tau := settings.min_similarity) is not None:
        vectors, which = _vectors(store, shards, folder)
        join = _near(tau, settings, compute, progress, vectors, rows, which)
        found.append(("vector", gathered(_moved(join, which))))
    ids = ids_of(store, rows.shards)
    for kind, pairs in found:
        counts = np.flatnonzero(_counts(pairs, rows))
        for start in range(0, len(counts), _AT_ONCE):
            some = counts[start : start + _AT_ONCE]
            yield pa.table(
                [
                    ids(pairs.first[some]),
                    ids(pairs.second[some]),
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
