"""Images and codecs in, the `measurements` table out: a row an image, codec and quality.

A shard is one part of the images, coded by one codec at one quality; its name says which, and
has a digest of the codec's settings in it. So another codec or quality in the workflow costs its
own shards alone, and so does another version of a codec (`versions.py`). Those of one that is
taken out stay for the day it comes back, and are not reported.

What CLIP and marks say of a decoded image is measured where the workflow asks for it; what they
say of the originals is in the `references` table, which is made first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import AigiError
from pipeline.benchmark import perceptual
from pipeline.benchmark.metrics import METRICS
from pipeline.benchmark.settings import Benchmark
from pipeline.benchmark.versions import Shards, agreed, at_hand, here_of
from pipeline.codecs.codec import Codec, CodecSettings, Here, OfRows
from pipeline.codecs.command import Missing
from pipeline.codecs.recipe import known_of
from pipeline.codecs.table import digest, opened, qualities, row_of
from pipeline.collection import Collection, Part
from pipeline.faults import MachineFault, let_through
from pipeline.marks.dwt_dct import bit_accuracy
from pipeline.models.clip import Clip, Embeddings, check_weights, cosine, identity
from pipeline.outside import Unreachable
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.stage import Compute, Map
from pipeline.store import Store


def measurements_schema(
    clip: bool = False, watermarks: bool = False, distances: Iterable[str] = ()
) -> pa.Schema:
    """Columns of facts, and of all metrics that a workflow asked for.

    Args:
        clip, watermarks: whether decoded images are looked at so.
        distances: kinds of perceptual distances: 0 for equal images, null for too small ones.
    """
    asked = {*["clip"] * clip, *["watermarks"] * watermarks, *distances}
    columns = [pa.field(of.name, of.kind) for of in METRICS.values() if not of.needs]
    more = [pa.field(of.name, of.kind) for of in METRICS.values() if of.needs in asked]
    # What comes after `quality`, but for the version, is null where `error` says why.
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("source", pa.string()),
            ("split", pa.string()),
            ("watermark", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("codec", pa.string()),  # its label in the workflow
            ("quality", pa.float64()),  # in the codec's own units
            ("bytes", pa.int64()),  # all that decoding needs but the codec itself
            ("prompt_bytes", pa.int32()),  # of them
            ("bpp", pa.float64()),  # 8 * bytes / (width * height)
            *columns,
            ("encode_ms", pa.float64()),  # of an external program: with its start
            ("decode_ms", pa.float64()),
            ("device", pa.string()),
            ("codec_version", pa.string()),  # null where the codec was not tried
            *more,
            ("error", pa.string()),
        ]
    )


MEASUREMENTS = measurements_schema()
VERSION = 1
MOST_PIXELS = 1 << 27
COLUMNS = ("image_id", "image", "text", "source", "split", "watermark")
CLIP = "benchmark.clip"
VECTORS = ("image_vector", "text_vector")


def asked(benchmark: Benchmark, compute: Compute) -> dict[str, Any]:
    """What a workflow asks for beside rates and distances, as records of stages have it.

    Empty where it asks for nothing, so that tables are what they were without the question.

    Raises:
        AigiError: a folder has no weights of CLIP.
    """
    found: dict[str, Any] = {}
    if (clip := benchmark.clip) is not None:
        settings = clip.model_dump(mode="json", include={"batch_size", "precision"})
        found["clip"] = {**identity(clip, CLIP), **settings, "threads": compute.threads}
    if benchmark.watermarks:
        found["watermarks"] = True
    return found


@dataclass(frozen=True)
class Job:
    """What one shard is made of."""

    codec: CodecSettings
    quality: float
    part: Part


def jobs(benchmark: Benchmark, parts: list[Part]) -> dict[str, Job]:
    """All shards by name: codec by codec, so that a network is loaded once a quality."""
    found = {}
    for given in benchmark.codecs:
        folder = f"{given.label}-{digest(given)}"
        for quality in qualities(given):
            for part in parts:
                found[f"{folder}/{quality:g}/{part.name}"] = Job(given, quality, part)
    return found


def _names(shards: Shards, store: Store) -> list[str]:
    """Those of the workflow, and whole ones that it no longer asks for: they may be hours' work."""
    others = [name for name in store.shards("measurements") if name not in shards.labels]
    whole = store.rows_of("measurements", others)
    return shards.names(store) + [name for name in others if whole[name] is not None]


def _sources(
    found: Mapping[str, Job], references: bool, store: Store, name: str
) -> list[tuple[str, str]] | None:
    """What a shard is made from beside images; None for one that is no longer asked for."""
    if name not in found:
        return None
    return [("references", found[name].part.name)] if references else []


def _rows(found: Mapping[str, Job], store: Store, name: str) -> int | None:
    return found[name].part.rows if name in found else None


def measured(benchmark: Benchmark, store: Store, parts: list[Part]) -> pa.Table:
    """The rows of the table that the workflow asks for, shards in name order."""
    names = sorted(jobs(benchmark, parts).keys() & store.shards("measurements").keys())
    return pa.concat_tables(store.read("measurements", name) for name in names)


def with_job(rows: pa.Table, job: Job) -> pa.Table:
    """The rows of a part with what to do with them, for the worker."""
    count = rows.num_rows
    settings = pa.repeat(pa.scalar(job.codec.model_dump_json()), count)
    return rows.append_column("settings", settings).append_column(
        "quality", pa.repeat(pa.scalar(float(job.quality)), count)
    )


def with_known(rows: pa.Table, job: Job, collection: Collection) -> pa.Table:
    """The rows of a whole part, for a codec that needs it with what is known of their making."""
    if not row_of(job.codec).rows:
        return rows
    return rows.append_column("known", pa.array(known_of(collection, job.part.name)))


def _read(
    collection: Collection, found: dict[str, Job], vectors: bool, store: Store, name: str
) -> pa.Table:
    job = found[name]
    rows = with_known(collection.read(job.part.name, COLUMNS), job, collection)
    if vectors:
        references = store.read("references", job.part.name, ["image_id", *VECTORS])
        if references["image_id"] != rows["image_id"]:
            raise AigiError(
                f"{store.path('references', job.part.name)}.parquet does not have the rows of the "
                "images. Delete it and run again to make it anew."
            )
        for column in VECTORS:
            rows = rows.append_column(column, references[column])
    return with_job(rows, job)


def pixels_of(row: dict[str, Any]) -> RGB:
    """The image of a row (uint8, H x W x 3).

    Raises:
        BadPicture: it is damaged or too large.
    """
    return decode(row["image"]["bytes"], MOST_PIXELS).rgb


@dataclass(frozen=True, eq=False)
class Coded:
    """An image after a codec (uint8, H x W x 3), its file, and its columns of MEASUREMENTS."""

    image: RGB
    data: bytes
    columns: dict[str, Any]


class Bench:
    """Codecs that are ready to be measured on this machine; the last one used is kept open.

    Args:
        versions: by label, those that the driver of the run has; empty: any will do.

    Attributes:
        loaded: digests of the weights of the codec that is open, if it has any.
    """

    def __init__(
        self, here: Here, threads: int, versions: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.here, self.versions = here, versions
        self._found: dict[str, str] = {}
        self._key: tuple[str, float] | None = None
        self._codec: Codec | None = None
        self.loaded: dict[str, str] = {}

    def measure(
        self,
        given: CodecSettings,
        quality: float,
        image: RGB,
        prompt: str,
        known: str | None = None,
    ) -> Coded:
        """Code and decode an image (uint8, H x W x 3) once, by the clock.

        What codecs return lies in memory of the CPU, so a device has finished by then. A codec in
        this process codes the first image twice: what it sets up on first use does not count.

        Args:
            known: JSON of what is known of its making, for a codec of rows.

        Raises:
            Missing: this machine cannot run the codec, or has another version than the driver.
            MachineFault: the codec cannot be opened, which is no fault of the image.
            Exception: whatever the codec raises.
        """
        row = row_of(given)
        codec = self._open(given, quality, image, prompt, known)
        started = time.perf_counter()
        data = codec.encode(image, prompt)
        between = time.perf_counter()
        decoded = codec.decode(data)
        ended = time.perf_counter()
        if decoded.shape != image.shape:
            raise AigiError(f"decoded to {decoded.shape[1]}x{decoded.shape[0]} pixels")
        height, width = image.shape[:2]
        columns = {
            "bytes": len(data),
            "prompt_bytes": row.prompt_bytes(data),
            "bpp": 8 * len(data) / (width * height),
            **{of.name: of.function(image, decoded) for of in METRICS.values() if of.function},
            "encode_ms": 1000 * (between - started),
            "decode_ms": 1000 * (ended - between),
            "device": self._device(row.network),
            "codec_version": self.version(given),
        }
        return Coded(decoded, data, columns)

    def version(self, given: CodecSettings) -> str:
        """The version of a codec here, looked up once.

        Raises:
            Missing: this machine cannot run the codec, or has another version than the driver.
        """
        if given.label not in self._found:
            version = row_of(given).version(given, self.here)
            self._found[given.label] = agreed(given.label, version, self.versions)
        return self._found[given.label]

    def _open(
        self, given: CodecSettings, quality: float, image: RGB, prompt: str, known: str | None
    ) -> Codec:
        key = (given.model_dump_json(), quality)
        if self._codec is None or self._key != key:
            self._codec, self.loaded = None, {}  # a network goes before the next one comes
            self.version(given)  # another one is refused before it measures
            try:
                codec = opened(given, quality, self.here)
            except Missing:
                raise
            except Exception as error:
                raise MachineFault(f"{given.label}: cannot be opened: {error}") from error
            self._load(given, quality, codec)
            if not row_of(given).external:
                mine = self._of_image(given, quality, codec, known)
                mine.decode(mine.encode(image, prompt))
            self._key, self._codec = key, codec
        return self._of_image(given, quality, self._codec, known)

    def _of_image(
        self, given: CodecSettings, quality: float, codec: Codec, known: str | None
    ) -> Codec:
        """The codec itself, or that of one image."""
        if not isinstance(codec, OfRows) or known is None:
            return codec
        mine = codec.of(known)
        self._load(given, quality, codec)  # another image may be another model's
        return mine

    def _load(self, given: CodecSettings, quality: float, codec: Codec) -> None:
        parts: Mapping[str, str] = getattr(codec, "loaded", {})
        self.loaded = {f"{given.label} {quality:g} {p}": sha for p, sha in parts.items()}

    def _device(self, network: bool) -> str:
        if not network:
            return "cpu"
        from pipeline.models.device import device_name, pick_device

        return device_name(pick_device(self.here.device))


def facts_of(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of MEASUREMENTS that an image has before any codec."""
    given = CodecSettings.model_validate_json(row["settings"])
    names = ("image_id", "source", "split", "watermark", "quality")
    return {name: row[name] for name in names} | {"codec": given.label}


class Measurer:
    """Rows with images in, rows of measurements out.

    Args:
        clip: the model that decoded images are looked at with, or none; with it rows have the
            vectors of `references`.
        watermarks: read the marks of decoded images.
        distances: files of weights of perceptual distances, by their kinds.
        versions: of codecs, by label.
    """

    def __init__(
        self,
        here: Here,
        threads: int,
        clip: Embeddings | None = None,
        watermarks: bool = False,
        distances: Mapping[str, str] = MappingProxyType({}),
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.bench, self.watermarks = Bench(here, threads, versions), watermarks
        self.clip = None if clip is None else Clip(clip, here.device, CLIP)
        self.distances = {
            kind: perceptual.DISTANCES[kind](file, here.device) for kind, file in distances.items()
        }
        self.schema = measurements_schema(clip is not None, watermarks, distances)
        self._networks = {kind: distance.loaded for kind, distance in self.distances.items()}
        if self.clip is not None:
            self._networks[CLIP] = self.clip.loaded

    @property
    def loaded(self) -> Mapping[str, str]:
        """Digests of the weights of all that measures, and of the codec of the last row."""
        return {**self._networks, **self.bench.loaded}

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield one row at a time, from row `start` on: a codec may take minutes for an image."""
        for batch in rows.slice(start).to_batches(1):
            (row,) = batch.to_pylist()
            yield pa.Table.from_pylist([self._row(row)], self.schema)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        facts = facts_of(row)
        try:
            image = pixels_of(row)
        except BadPicture as error:
            return facts | {"error": f"picture: {error}"}
        facts |= {"width": image.shape[1], "height": image.shape[0]}
        given = CodecSettings.model_validate_json(row["settings"])
        try:
            coded = self.bench.measure(given, row["quality"], image, row["text"], row.get("known"))
            return facts | coded.columns | self._content(row, image, coded.image)
        except (Missing, Unreachable):  # of this machine, not of the image
            raise
        except Exception as error:  # whatever a codec does to this picture, the others go on
            let_through(error, given.label)
            failed = {"error": f"{type(error).__name__}: {error}"}
            return facts | failed | {"codec_version": self.bench.version(given)}

    def _content(self, row: dict[str, Any], image: RGB, decoded: RGB) -> dict[str, Any]:
        """What networks and the mark say of a decoded image, as far as that was asked for."""
        found: dict[str, Any] = {
            kind: distance(image, decoded) for kind, distance in self.distances.items()
        }
        if self.watermarks:
            found["watermark_accuracy"] = bit_accuracy(decoded, row["watermark"])
        if self.clip is not None and row["image_vector"] is not None:
            vector = self.clip.image_vectors([decoded])[0]
            original = np.array(row["image_vector"], np.float32)
            found["clip_similarity"] = cosine(vector, original)
            if row["text_vector"] is not None:
                text = np.array(row["text_vector"], np.float32)
                found["clip_score_change"] = cosine(vector, text) - cosine(original, text)
        return found


def _check(distances: Mapping[str, str], clip: Embeddings | None) -> None:
    for kind, file in distances.items():
        perceptual.check(kind, file)
    if clip is not None:
        check_weights(clip, CLIP)


def stage(benchmark: Benchmark, compute: Compute, collection: Collection) -> Map:
    """The stage of the measurements table.

    Raises:
        AigiError: a codec does not exist, or none of them can run here; a folder has no weights
            of CLIP, or there is no file for a perceptual distance.
    """
    versions, without = at_hand(benchmark, compute)
    if len(without) == len(benchmark.codecs):
        lines = "\n".join(f"{label}: {why}" for label, why in without.items())
        raise AigiError(f"benchmark.codecs: none of them can run on this machine:\n{lines}")
    found = jobs(benchmark, collection.parts)
    labels = {name: job.codec.label for name, job in found.items()}
    shards = Shards("measurements", labels, versions)
    more = asked(benchmark, compute)
    distances = benchmark.distances
    networks = {kind: perceptual.identity(kind, file) for kind, file in distances.items()}
    return Map(
        table="measurements",
        version=VERSION,
        schema=measurements_schema(benchmark.clip is not None, benchmark.watermarks, distances),
        settings={"pictures": benchmark.measured.model_dump(mode="json"), **more, **networks},
        inputs=("references",) if more else (),
        names=partial(_names, shards),
        read=partial(_read, collection, found, benchmark.clip is not None),
        make_worker=partial(
            Measurer,
            here_of(benchmark, compute),
            compute.threads,
            benchmark.clip,
            benchmark.watermarks,
            distances,
            versions,
        ),
        check=partial(_check, distances, benchmark.clip),
        sources=partial(_sources, found, bool(more)),
        outside=lambda store, name: collection.digest(found[name].part.name),
        state=lambda store: collection.state,
        outdated=shards.outdated,
        possible=shards.possible,
        keeps=("codec_version", "device"),
        rows=partial(_rows, found),
    )
