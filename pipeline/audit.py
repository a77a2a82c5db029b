"""A release and its models in, rows made again and compared with its own out.

For `aigi verify --pixels N`. A row is made again in its original batch, which the plan beside
the manifest contains, because the batch changes the last bit of some pixels; where batches were
filled, in one of the same size.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.benchmark.metrics import psnr
from pipeline.makers import made_by_one, makers_of
from pipeline.manifest import MANIFEST
from pipeline.pixels import RGB, stored
from pipeline.plan import specification
from pipeline.plan.copied import read_plan
from pipeline.plan.specification import DrawnSpec, HttpSpec
from pipeline.release import regenerate
from pipeline.release.trust import confirm
from pipeline.release.words import library_words
from pipeline.settings import check
from pipeline.store import Store
from pipeline.workflow import Workflow


@dataclass(frozen=True)
class Remade:
    """One row of a release and the same row made again.

    Attributes:
        same: `bytes` (the files of both are equal), `pixels`, or `different`.
        psnr: dB over 8-bit RGB, for an image that differs; None if the sizes differ, too.
        clip_similarity: cosine of the two image vectors; None for equal images, or without a model.
        there: device and versions that made the row.
        here: those that made it again.
        error: why it could not be made again.
    """

    image_id: str
    source: str
    same: str
    psnr: float | None = None
    clip_similarity: float | None = None
    there: str = ""
    here: str = ""
    error: str = ""


def _environment(row: Mapping[str, Any]) -> str:
    return f"{row['device'] or '?'}, {library_words(row['versions'])}"


def _row(store: Store, path: str, row: int) -> dict[str, Any]:
    shard = path.removesuffix(".parquet")
    ((_, found),) = store.rows_at("", shard, [row])
    store.pixels("", shard, row, found)  # its hash is compared below: it must be that of the image
    return found


def draw(
    store: Store, manifest: Mapping[str, Any], sources: set[str], count: int, seed: int
) -> list[dict[str, Any]]:
    """`count` rows of these sources, image included: a function of the release and the seed."""
    places: dict[str, tuple[str, int]] = {}
    for record in manifest["files"]:
        if record["config"] in sources:
            path = record["path"]
            ids = store.read("", path.removesuffix(".parquet"), ["image_id"])["image_id"]
            places |= {image: (path, row) for row, image in enumerate(ids.to_pylist())}
    drawn = random.Random(seed).sample(sorted(places), min(count, len(places)))
    return [_row(store, *places[image]) for image in drawn]


def _batches(table: pa.Table, size: int) -> Iterator[pa.Table]:
    """The batches that a shard's generations are cut into, as the `Diffuser` cuts them."""
    keys = [
        pair or image
        for pair, image in zip(
            table["pair_id"].to_pylist(), table["image_id"].to_pylist(), strict=True
        )
    ]
    starts = [row for row in range(len(keys)) if row == 0 or keys[row] != keys[row - 1]]
    ends = [*starts[size::size], table.num_rows]
    for start, end in zip(starts[::size], ends, strict=True):
        yield table.slice(start, end - start)


def _made_in(batch: pa.Table, image: str, size: int | None) -> pa.Table:
    """The part of a batch that a row was made in; batches were halved when memory was short."""
    while size is not None and len(parts := list(_batches(batch, 1))) > size:
        half = len(parts) // 2
        halves = [parts[:half], parts[half:]] if size > 1 else [[part] for part in parts]
        tables = [pa.concat_tables(half) for half in halves]
        batch = next(table for table in tables if image in table["image_id"].to_pylist())
    return batch


def _pixels(row: Mapping[str, Any]) -> RGB:
    return stored(row["image"], row["width"] * row["height"])


def audit(
    store: Store,
    manifest: Mapping[str, Any],
    mine: Mapping[str, Any],
    count: int,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    trusted: bool = False,
) -> Iterator[Remade]:
    """Make rows of a release again and compare; of one of several runs, as each made its own.

    Args:
        store: the release, with the plan in it.
        mine: an unchecked workflow, of which only places and `compute` are used. Imported sources
            whose images it does not name are left out.
        count: number of rows, drawn at random by `seed`.
        say: is called with a line about what is left out.
        trusted: models may be loaded because the manifest names them, see `pipeline.release.trust`.

    Raises:
        AigiError: a model is missing or has changed, nothing can be made again, or an image is not
            what its row states.
    """
    makers = makers_of(manifest)
    if len(makers) == 1:
        yield from _audit(store, manifest, mine, count, seed, say, trusted)
        return
    rows = [
        sum(file["rows"] for file in manifest["files"] if file["config"] in maker["sources"])
        for maker in makers
    ]
    before = made = 0
    for number, maker in enumerate(makers):
        # Rounded so that the shares of all add up to what was asked for.
        until = round(count * sum(rows[: number + 1]) / max(1, sum(rows)))
        if until > before:
            among = frozenset(maker["sources"])
            one = made_by_one(store.url, manifest, among)
            for row in _audit(store, one, mine, until - before, seed, say, trusted, among):
                made += 1
                yield row
        before = until
    if not made:
        raise AigiError(
            f"{store.url}: of {count} images, none is of a source that can be made here"
        )


def _audit(
    store: Store,
    manifest: Mapping[str, Any],
    mine: Mapping[str, Any],
    count: int,
    seed: int,
    say: Callable[[str], None],
    trusted: bool,
    among: frozenset[str] | None = None,
) -> Iterator[Remade]:
    """The same of the sources of one run.

    Args:
        among: these sources; None: all.
    """
    import torch

    from pipeline.images.images import ImageMaker, Images, check_sources, local_diffusers

    location = store.path(MANIFEST) if store.local else f"{store.url.rstrip('/')}/{MANIFEST}"
    dataset = specification.load(location)
    given = mine.get("sources") or {}
    specs = {n: spec for n, spec in dataset.sources.items() if among is None or n in among}
    sources = {
        name
        for name, spec in specs.items()
        if isinstance(spec, DrawnSpec)
        or (not isinstance(spec, HttpSpec) and (given.get(name) or {}).get("path") is not None)
    }
    asked = sorted(n for n, spec in specs.items() if isinstance(spec, HttpSpec))
    if asked:
        say(
            f"not made again: {', '.join(asked)}: images of an endpoint, which gives other images "
            "each time; `verify --deep` compares their pixels with their rows"
        )
    left = sorted(set(specs) - sources - set(asked))
    if left:
        say(f"not made again without images: {', '.join(left)} (give sources.NAME.path)")
    if not sources and among is not None:
        return  # others can
    if not sources and not left:
        raise AigiError(f"{store.url}: every image is of an endpoint; none can be made again")
    if not sources:
        raise AigiError(
            f"{store.url}: every source is imported; give the place of its images in "
            "sources.NAME.path"
        )
    sections = ["images", "sources"]
    model = manifest["workflow"].get("embeddings") or {}
    if model.get("folder") is None or (mine.get("embeddings") or {}).get("folder") is not None:
        sections.append("embeddings")
    else:
        say(f"no CLIP similarity: give the model's folder {model['folder']} (embeddings.folder)")
    plan = {"sources": [name for name in dataset.sources if name in sources]}
    data = regenerate.merged(
        location, {**mine, "run": os.path.dirname(location), "plan": plan}, sections
    )
    workflow = check(Workflow, data, location)
    confirm(workflow, trusted)
    check_sources(workflow.planned("images"), workflow.sources)
    settings = workflow.images or Images(format="png")
    filled = bool(settings.fill_batches)
    drawn = draw(store, manifest, sources, count, seed)
    wanted = {row["image_id"]: row for row in drawn}
    found: dict[str, list[tuple[dict[str, Any], pa.Table]]] = defaultdict(list)
    for _, shard in read_plan(location, manifest):
        if wanted.keys().isdisjoint(shard["image_id"].to_pylist()):
            continue
        source = shard["source"][0].as_py()
        made_here = isinstance(dataset.sources[source], DrawnSpec)
        size = local_diffusers(workflow.sources, source).batch_size if made_here else 1
        for batch in _batches(shard, size):
            for image in batch["image_id"].to_pylist():
                if image in wanted:
                    row = wanted[image]
                    made_in = 1 if filled and made_here else row["batch_size"]
                    found[source].append((row, _made_in(batch, image, made_in)))
    torch.set_num_threads(workflow.compute.threads)
    maker = ImageMaker(settings, workflow.sources, dataset, workflow.compute)
    clip: Any = None
    for source, rows in found.items():
        for row, batch in rows:
            if filled and row["batch_size"] is not None:
                maker.batch_size = row["batch_size"]
            again = next(
                made
                for chunk in maker(batch)
                for made in chunk.to_pylist()
                if made["image_id"] == row["image_id"]
            )
            known = {
                "image_id": row["image_id"],
                "source": source,
                "there": _environment(row),
                "here": _environment(again),
            }
            if again["image"] is None:
                yield Remade(**known, same="different", error=again["error"])
            elif again["image"]["bytes"] == row["image"]["bytes"]:
                yield Remade(**known, same="bytes")
            elif again["pixels_sha256"] == row["pixels_sha256"]:
                yield Remade(**known, same="pixels")
            else:
                one, other = _pixels(row), _pixels(again)
                similarity = None
                if workflow.embeddings is not None:
                    if clip is None:
                        from pipeline.models.clip import Clip

                        clip = Clip(workflow.embeddings, workflow.compute.device)
                    a, b = clip.image_vectors([one, other])
                    similarity = float(a @ b)
                yield Remade(
                    **known,
                    same="different",
                    psnr=psnr(one, other) if one.shape == other.shape else None,
                    clip_similarity=similarity,
                )
