"""A few images and codecs in, the `comparisons` table out: each codec brought to one target.

A row holds the decoded image at the quality that comes nearest to the wanted bits a pixel or dB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipeline.benchmark.measurements import (
    COLUMNS,
    MEASUREMENTS,
    Bench,
    Coded,
    Job,
    facts_of,
    pixels_of,
    with_job,
    with_known,
)
from pipeline.benchmark.search import nearest
from pipeline.benchmark.settings import Benchmark, Strips
from pipeline.benchmark.versions import Shards, at_hand, here_of
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.command import Missing
from pipeline.codecs.table import digest, searchable
from pipeline.collection import Collection, Part
from pipeline.faults import let_through
from pipeline.pixels import png_bytes
from pipeline.stage import Compute, Map
from pipeline.store import Store
from pipeline.tables import IMAGE

COMPARISONS = pa.schema([*MEASUREMENTS, ("image", IMAGE)])  # as decoded, PNG

VERSION = 1


def chosen_parts(collection: Collection) -> list[Part]:
    """The first part of each source, of its test images where there are any."""
    first: dict[str, Part] = {}
    for part in sorted(collection.parts, key=lambda part: part.split != "test"):
        first.setdefault(part.source, part)
    return list(first.values())


def _chosen(collection: Collection, part: Part, count: int) -> list[int]:
    marks = collection.read(part.name, ["watermark"])["watermark"].to_pylist()
    return [i for i, mark in enumerate(marks) if marks[:i].count(mark) < count]


def chosen_rows(collection: Collection, part: Part, count: int) -> pa.Table:
    """The first images of a part: so many of each kind of watermark."""
    return collection.read(part.name, COLUMNS).take(_chosen(collection, part, count))


def _read(
    collection: Collection, count: int, found: dict[str, Job], store: Store, name: str
) -> pa.Table:
    job = found[name]
    rows = with_known(collection.read(job.part.name, COLUMNS), job, collection)
    return with_job(rows.take(_chosen(collection, job.part, count)), job)


class Comparer:
    """Rows with images in, the same images at the wanted rate or distance out."""

    def __init__(
        self,
        here: Here,
        threads: int,
        strips: Strips,
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.bench, self.strips = Bench(here, threads, versions), strips

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield one row at a time, from row `start` on."""
        for batch in rows.slice(start).to_batches(1):
            (row,) = batch.to_pylist()
            yield pa.Table.from_pylist([self._row(row)], COMPARISONS)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        given = CodecSettings.model_validate_json(row["settings"])
        facts = facts_of(row)
        try:
            quality, coded = self._brought(given, row)
        except Missing:
            raise
        except Exception as error:  # as in the measurements: one picture, one row
            let_through(error, given.label)
            failed = {"quality": None, "error": f"{type(error).__name__}: {error}"}
            return facts | failed | {"codec_version": self.bench.version(given)}
        height, width = coded.image.shape[:2]
        image = {"bytes": png_bytes(coded.image), "path": None}
        facts |= {"quality": quality, "width": width, "height": height, "image": image}
        return facts | coded.columns

    def _brought(self, given: CodecSettings, row: dict[str, Any]) -> tuple[float, Coded]:
        image = pixels_of(row)
        unit, target = self.strips.target
        made: dict[float, Coded] = {}

        def measure(quality: float) -> float:
            made[quality] = self.bench.measure(given, quality, image, row["text"], row.get("known"))
            return float(made[quality].columns[unit])

        quality, _ = nearest(searchable(given), measure, target)
        return quality, made[quality]


def stage(benchmark: Benchmark, strips: Strips, compute: Compute, collection: Collection) -> Map:
    """The stage of the comparisons table.

    Raises:
        AigiError: a codec does not exist.
    """
    versions, _ = at_hand(benchmark, compute)
    found = {
        f"{given.label}-{digest(given)}/{part.name}": Job(given, 0, part)
        for given in benchmark.codecs
        for part in chosen_parts(collection)
    }
    labels = {name: job.codec.label for name, job in found.items()}
    shards = Shards("comparisons", labels, versions)
    return Map(
        table="comparisons",
        version=VERSION,
        schema=COMPARISONS,
        settings={
            "pictures": benchmark.measured.model_dump(mode="json"),
            "strips": strips.model_dump(mode="json", exclude={"crop"}),
        },
        inputs=(),
        names=shards.names,
        read=partial(_read, collection, strips.count, found),
        make_worker=partial(
            Comparer, here_of(benchmark, compute), compute.threads, strips, versions
        ),
        outside=lambda store, name: collection.digest(found[name].part.name),
        state=lambda store: collection.state,
        remake=True,
        outdated=shards.outdated,
        possible=shards.possible,
        keeps=("codec_version", "device"),
    )
