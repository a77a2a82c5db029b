"""The tables of a finished run in, what its release holds and what was left out of it, counted.

Only narrow columns are read, shard by shard; what is held grows with the number of different
settings and, by some 40 bytes each, of rows.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.metadata import LEFT_OUT, kinds_of
from pipeline.plan.specification import Dataset, PromptedSpec
from pipeline.progress import Progress
from pipeline.release.sheet import CANDIDATES, Sample
from pipeline.store import Store
from pipeline.tables import OPTIONS, READERS, without_request
from pipeline.threads import ahead, workers


class Kind(NamedTuple):
    """What rows of a release may share."""

    source: str
    split: str
    model: str
    revision: str
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    scheduler: str | None
    dtype: str | None
    width: int
    height: int
    watermark: str
    device: str | None
    versions: str | None
    converted: bool  # a picture that came as a file and is not stored as it came
    options: str | None = None


class Origin(NamedTuple):
    """Where a prompt comes from: what `source` calls it, and the file name or dataset."""

    source: str
    place: str


@dataclass
class PromptCount:
    """Prompts of one origin.

    Attributes:
        kept: in the prompts table.
        used: of these, with an image in the release.
        images: images made from them.
        truncated: of the used, those longer than what CLIP reads.
    """

    kept: int = 0
    used: int = 0
    images: int = 0
    truncated: int = 0


@dataclass
class Reading:
    """How a model with other tokenizers than CLIP's reads the prompts of the images.

    Attributes:
        most: tokens that it reads.
        cut: prompts that are longer.
    """

    most: int
    cut: int = 0


@dataclass(frozen=True)
class Counts:
    """What a release holds, and what was left out.

    Attributes:
        kinds: images of each kind.
        prompts: distinct prompts of each source of images; of all together under an empty name.
        origins: prompts of the generated images; empty where the run has no prompts table.
        planned: images planned for each source.
        dropped: images by source and reason.
        refused: captions by the name of their source and the reason; likewise `unplanned`,
            images of imports that never came into the plan, and `failed`, images that could
            not be made.
        samples: some images of each source, drawn by the hash that their id is.
        formats: what images are stored in: WebP, PNG or both.
        readings: by source, of models that do not read what CLIP reads.
        left_out: images that came as files by kind of the metadata that was left out of them; those
            with any under an empty name.
        rows: sha256 of the ids of all images, in their order.
        unasked: sources of the specification that `plan.sources` left out.
        copied: the plan is that of an earlier release, and what is counted beside it is not known.
    """

    kinds: Counter[Kind]
    prompts: dict[str, int]
    origins: dict[Origin, PromptCount]
    planned: Counter[str]
    dropped: Counter[tuple[str, str]]
    refused: Counter[tuple[str, str]]
    unplanned: Counter[tuple[str, str]]
    failed: Counter[tuple[str, str]]
    samples: dict[str, list[Sample]]
    formats: tuple[str, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    readings: dict[str, Reading] = field(default_factory=dict)
    rows: str = ""
    unasked: tuple[str, ...] = ()
    copied: bool = False

    def by(self, *fields: str) -> Counter[tuple[object, ...]]:
        """Images by the fields of `Kind` that are named."""
        found: Counter[tuple[object, ...]] = Counter()
        for kind, images in self.kinds.items():
            found[tuple(getattr(kind, field) for field in fields)] += images
        return found

    def recorded(self) -> dict[str, Any] | None:
        """What a manifest keeps for releases that are made from it; None: it is not known here."""
        if self.copied:
            return None
        return {
            "rows": self.rows,
            "origins": [
                {**origin._asdict(), **asdict(found)}
                for origin, found in sorted(self.origins.items())
            ],
            "refused": _whys(self.refused),
            "unplanned": _whys(self.unplanned),
            "readings": {name: asdict(each) for name, each in sorted(self.readings.items())},
            "unasked": list(self.unasked),
        }

    def again(self, first: Mapping[str, Any] | None) -> Counts:
        """The counts of a release whose plan is copied.

        Args:
            first: what the manifest of the plan recorded; None: nothing, or of other sources. It
                holds only if this release has the same images.
        """
        if first is None or first["rows"] != self.rows:
            return replace(self, copied=True)
        return replace(
            self,
            origins={
                Origin(each["source"], each["place"]): PromptCount(
                    each["kept"], each["used"], each["images"], each["truncated"]
                )
                for each in first["origins"]
            },
            refused=Counter({(e["source"], e["reason"]): e["count"] for e in first["refused"]}),
            unplanned=Counter({(e["source"], e["reason"]): e["count"] for e in first["unplanned"]}),
            readings={name: Reading(**each) for name, each in first["readings"].items()},
        )


def _whys(found: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"source": source, "reason": reason, "count": many}
        for (source, reason), many in sorted(found.items())
    ]


_SHARED = [name for name in Kind._fields if name not in ("split", "converted", "options")]
_COLUMNS = [*_SHARED, "image_id", "prompt_id", "pair_id", "note", "image.path"]


def listed_ids(rows: pa.Table) -> bytes:
    """The ids of images, a line each: what `rows` of `Counts` is a hash of."""
    return "".join(f"{image}\n" for image in rows["image_id"].to_pylist()).encode()


def shared_versions(versions: pa.ChunkedArray) -> pa.Array:
    """The column `versions` without what is of one row alone: requests to an endpoint."""
    encoded = versions.combine_chunks().dictionary_encode()
    values = [without_request(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(values, pa.string()).take(encoded.indices)


def _kinds(rows: pa.Table, split: str) -> Counter[Kind]:
    note = pc.fill_null(rows["note"], LEFT_OUT)
    converted = pc.invert(pc.starts_with(note, LEFT_OUT))
    shared = [*_SHARED, *(name for name in (OPTIONS.name,) if name in rows.column_names)]
    table = rows.select(shared).append_column("converted", converted)
    place = table.schema.get_field_index("versions")
    table = table.set_column(place, "versions", shared_versions(rows["versions"]))
    # Of an imported image, what its file states is its own.
    imported = pc.is_null(rows["dtype"])
    for name in ("steps", "guidance_scale", "scheduler"):
        own = pc.if_else(imported, pa.scalar(None, table[name].type), table[name])
        table = table.set_column(table.schema.get_field_index(name), name, own)
    grouped = table.group_by(table.column_names, use_threads=False).aggregate([([], "count_all")])
    return Counter(
        {
            Kind(split=split, **{name: row[name] for name in table.column_names}): row["count_all"]
            for row in grouped.to_pylist()
        }
    )


def _left_out(notes: pa.ChunkedArray) -> Counter[str]:
    found: Counter[str] = Counter()
    for note in pc.value_counts(notes.drop_null()).to_pylist():
        kinds = kinds_of(note["values"])
        for kind in ("", *kinds) if kinds else ():
            found[kind] += note["counts"]
    return found


def _formats(images: pa.ChunkedArray) -> set[str]:
    """What images are stored in, as their names tell; pixels and names are checked elsewhere."""
    webp = pc.ends_with(pc.struct_field(images, "path"), ".webp")
    return {"WebP" if one else "PNG" for one in pc.unique(webp).to_pylist()}


def _samples(rows: pa.Table, shard: str, split: str) -> Iterator[Sample]:
    columns = (rows[name].to_pylist() for name in ("image_id", "pair_id", "width", "height"))
    for row, (image, pair, width, height) in enumerate(zip(*columns, strict=True)):
        yield Sample(image, pair or image, split, shard, row, width, height)


def _lowest(samples: Iterator[Sample]) -> list[Sample]:
    """The lowest ids, of the variants of one image only one."""
    found: dict[str, Sample] = {}
    for sample in heapq.nsmallest(8 * CANDIDATES, samples):
        found.setdefault(sample.picture, sample)
    return list(found.values())[:CANDIDATES]


def _origins(store: Store, used: pa.ChunkedArray) -> dict[Origin, PromptCount]:
    """Prompts by origin; `used` has the prompt of every generated image."""
    found: dict[Origin, PromptCount] = defaultdict(PromptCount)
    counts = pc.value_counts(used)
    values, images = counts.field("values"), counts.field("counts")
    columns = ["prompt_id", "source", "source_ref", "truncated"]
    for shard in store.shards("prompts"):
        rows = store.read("prompts", shard, columns)
        at = pc.index_in(rows["prompt_id"], value_set=values)
        # The line goes: `file:line` is where one prompt stands.
        place = pc.replace_substring_regex(rows["source_ref"], pattern=r":[0-9]+$", replacement="")
        table = pa.table(
            {
                "source": rows["source"],
                "place": place,
                "used": pc.is_valid(at),
                "truncated": pc.and_(pc.is_valid(at), rows["truncated"]),
                "images": pc.fill_null(pc.take(images, at), 0),
            }
        )
        sums = [(name, "sum") for name in ("used", "truncated", "images")]
        grouped = table.group_by(["source", "place"], use_threads=False).aggregate(
            [*sums, ([], "count_all")]
        )
        for row in grouped.to_pylist():
            count = found[Origin(row["source"], row["place"])]
            count.kept += row["count_all"]
            count.used += row["used_sum"]
            count.images += row["images_sum"]
            count.truncated += row["truncated_sum"]
    return dict(found)


def _readings(store: Store, used: pa.ChunkedArray) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for shard in store.shards("prompts"):
        schema = store.schema("prompts", shard)
        if schema is None or READERS.name not in schema.names:
            continue
        rows = store.read("prompts", shard, ["prompt_id", READERS.name])
        for readers in rows.filter(pc.is_in(rows["prompt_id"], used))[READERS.name].to_pylist():
            for name, length in readers:
                reading = found.setdefault(name, Reading(length["most"]))
                reading.cut += length["tokens"] > length["most"]
    return found


def reject_reasons(store: Store, shard: str) -> Counter[tuple[str, str]]:
    """Rejects by source and reason; what stands behind a colon is of one row alone."""
    found: Counter[tuple[str, str]] = Counter()
    if shard not in store.shards("rejects"):
        return found
    columns = ["source", "reason"]
    with store.parquet("rejects", shard, columns, some=True) as parquet:
        for batch in parquet.iter_batches(columns=columns):
            for row in batch.to_pylist():
                found[row["source"], row["reason"].split(":")[0]] += 1
    return found


def count(
    store: Store, dataset: Dataset, shards: list[str], progress: Progress, options: bool = False
) -> Counts:
    """Count the rows of the release's shards, and what its run says about them.

    Args:
        options: whether a source has some, so that shards have a column of them.

    Raises:
        AigiError: a table or shard is missing or unreadable.
    """
    kinds: Counter[Kind] = Counter()
    left_out: Counter[str] = Counter()
    formats: set[str] = set()
    ids: dict[str, list[pa.Array]] = defaultdict(list)
    samples: dict[str, list[Sample]] = defaultdict(list)
    digest = hashlib.sha256()
    columns = [*_COLUMNS, OPTIONS.name] if options else _COLUMNS
    read = partial(store.read, "release", columns=columns)
    with (
        progress.stage("card", len(shards), 0, 0) as bar,
        workers(4, "card") as pool,
    ):
        # Not all of them at once: a release has thousands.
        for shard, rows in zip(shards, ahead(shards, read, pool, 16), strict=True):
            source, split = shard.split("/")[0], shard.split("/")[1].split("-")[0]
            kinds += _kinds(rows, split)
            left_out += _left_out(rows["note"])
            formats |= _formats(rows["image"])
            ids[source] += rows["prompt_id"].chunks
            digest.update(listed_ids(rows))
            samples[source] = _lowest(iter([*samples[source], *_samples(rows, shard, split)]))
            bar.advance(rows.num_rows)
    generated = [
        chunk
        for source, chunks in ids.items()
        if isinstance(dataset.sources[source], PromptedSpec)
        for chunk in chunks
    ]
    prompts = {
        source: len(pc.unique(pa.chunked_array(chunks, pa.string())))
        for source, chunks in ids.items()
    }
    everything = [chunk for chunks in ids.values() for chunk in chunks]
    prompts[""] = len(pc.unique(pa.chunked_array(everything, pa.string())))
    planned: Counter[str] = Counter()
    dropped: Counter[tuple[str, str]] = Counter()
    for shard in store.shards("selection"):
        rows = store.read("selection", shard, ["source", "reason"])
        planned.update(rows["source"].to_pylist())
        reasons = zip(rows["source"].to_pylist(), rows["reason"].to_pylist(), strict=True)
        dropped.update((source, why) for source, why in reasons if why is not None)
    return Counts(
        kinds=kinds,
        prompts=prompts,
        origins=_origins(store, pa.chunked_array(generated, pa.string())),
        planned=planned,
        dropped=dropped,
        refused=reject_reasons(store, "prompts"),
        unplanned=reject_reasons(store, "plan"),
        failed=reject_reasons(store, "images"),
        samples=dict(samples),
        formats=tuple(sorted(formats, reverse=True)),
        left_out=left_out,
        readings=_readings(store, pa.chunked_array(generated, pa.string())),
        rows=digest.hexdigest(),
    )


COLUMNS = tuple(_COLUMNS)
"""Columns of a release that `count_rows` reads; OPTIONS too, of files that have it."""


def count_rows(tables: Iterable[tuple[str, pa.Table]], planned: Counter[str]) -> Counts:
    """The counts of a release by its own rows, without the tables of a run.

    What was refused, and why images were dropped, is not known.

    Args:
        tables: names of shards (`sdxl/test-00000-of-00001`), and their rows with `COLUMNS`.
        planned: images planned for each source.
    """
    kinds: Counter[Kind] = Counter()
    left_out: Counter[str] = Counter()
    formats: set[str] = set()
    ids: dict[str, list[pa.Array]] = defaultdict(list)
    samples: dict[str, list[Sample]] = defaultdict(list)
    for shard, rows in tables:
        source, split = shard.split("/")[0], shard.split("/")[1].split("-")[0]
        kinds += _kinds(rows, split)
        left_out += _left_out(rows["note"])
        formats |= _formats(rows["image"])
        ids[source] += [pc.unique(rows["prompt_id"])]
        samples[source] = _lowest(iter([*samples[source], *_samples(rows, shard, split)]))
    of_all = [chunk for chunks in ids.values() for chunk in chunks]
    return Counts(
        kinds=kinds,
        prompts={
            source: len(pc.unique(pa.chunked_array(chunks, pa.string())))
            for source, chunks in {**ids, "": of_all}.items()
        },
        origins={},
        planned=planned,
        dropped=Counter(),
        refused=Counter(),
        unplanned=Counter(),
        failed=Counter(),
        samples=dict(samples),
        formats=tuple(sorted(formats, reverse=True)),
        left_out=left_out,
    )
