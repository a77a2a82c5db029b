"""Pictures and codecs in, the `measurements` table out: a row an image, codec and quality.

A shard is one part of the pictures, coded by one codec at one quality; its name says which, and
has a digest of the codec's settings in it. So another codec or quality in the workflow costs its
own shards alone, and one that is taken out takes its shards along.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.benchmark.metrics import ms_ssim, psnr
from pipeline.codecs.codec import (
    Codec,
    Here,
    digest,
    opened,
    qualities,
    row_of,
)
from pipeline.codecs.command import Missing
from pipeline.collection import Collection, Part
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.run import Map
from pipeline.tables import MEASUREMENTS, Store
from pipeline.workflow import Benchmark, CodecSettings, Compute

VERSION = 1
MOST_PIXELS = 1 << 27
COLUMNS = ("image_id", "image", "text", "source", "split", "watermark")


def here_of(benchmark: Benchmark, compute: Compute) -> Here:
    """Where this run finds programs, and the device of its networks."""
    return Here(benchmark.programs, compute.device)


def skipped(benchmark: Benchmark, compute: Compute) -> dict[str, str]:
    """Codecs that this machine cannot run, by label: what is missing and how to get it.

    Raises:
        AigiError: a codec or one of its settings does not exist.
    """
    found = {}
    for given in benchmark.codecs:
        try:
            row_of(given).version(given, here_of(benchmark, compute))
        except Missing as missing:
            found[given.label] = str(missing)
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


def names_of(
    table: str, labels: Mapping[str, str], without: Container[str], store: Store
) -> list[str]:
    """Shards to make or to keep: of a codec that cannot run here, those made elsewhere before.

    Args:
        labels: the codec of every shard.
        without: codecs that cannot run here.
    """
    present = store.shards(table)
    return [name for name, label in labels.items() if label not in without or name in present]


def with_job(rows: pa.Table, job: Job) -> pa.Table:
    """The rows of a part with what to do with them, for the worker."""
    count = rows.num_rows
    settings = pa.repeat(pa.scalar(job.codec.model_dump_json()), count)
    return rows.append_column("settings", settings).append_column(
        "quality", pa.repeat(pa.scalar(float(job.quality)), count)
    )


def _read(collection: Collection, found: dict[str, Job], store: Store, name: str) -> pa.Table:
    job = found[name]
    return with_job(collection.read(job.part.name, COLUMNS), job)


def pixels_of(row: dict[str, Any]) -> RGB:
    """The picture of a row.

    Raises:
        BadPicture: it is damaged or too large.
    """
    return decode(row["image"]["bytes"], MOST_PIXELS).rgb


@dataclass(frozen=True, eq=False)
class Coded:
    """A picture after a codec, with the columns of MEASUREMENTS that follow from it."""

    image: RGB
    columns: dict[str, Any]


class Bench:
    """Codecs that are ready to be measured on this machine; the last one used is kept open."""

    def __init__(self, here: Here, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.here = here
        self._key: tuple[str, float] | None = None
        self._codec: Codec | None = None
        self._version = ""

    def measure(self, given: CodecSettings, quality: float, image: RGB, prompt: str) -> Coded:
        """Code and decode a picture once, by the clock.

        What codecs return lies in memory of the CPU, so a device has finished by then. A codec in
        this process codes the first picture twice: what it sets up on first use does not count.

        Raises:
            Missing: this machine cannot run the codec.
            Exception: whatever the codec raises.
        """
        row = row_of(given)
        codec = self._open(given, quality, image, prompt)
        started = time.perf_counter()
        data = codec.encode(image, prompt)
        between = time.perf_counter()
        decoded = codec.decode(data)
        ended = time.perf_counter()
        if decoded.shape != image.shape:
            raise AigiError(f"decoded to {decoded.shape[1]}x{decoded.shape[0]} pixels")
        similarity = ms_ssim(image, decoded)
        height, width = image.shape[:2]
        columns = {
            "bytes": len(data),
            "prompt_bytes": row.prompt_bytes(data),
            "bpp": 8 * len(data) / (width * height),
            "psnr": psnr(image, decoded),
            "ms_ssim": None if similarity is None else similarity.value,
            "ms_ssim_scales": None if similarity is None else similarity.scales,
            "encode_ms": 1000 * (between - started),
            "decode_ms": 1000 * (ended - between),
            "device": self._device(row.network),
            "codec_version": self._version,
        }
        return Coded(decoded, columns)

    def _open(self, given: CodecSettings, quality: float, image: RGB, prompt: str) -> Codec:
        key = (given.model_dump_json(), quality)
        if self._codec is None or self._key != key:
            self._codec = None  # a network goes before the next one comes
            row = row_of(given)
            codec = opened(given, quality, self.here)
            self._version = row.version(given, self.here)
            if not row.external:
                codec.decode(codec.encode(image, prompt))
            self._key, self._codec = key, codec
        return self._codec

    def _device(self, network: bool) -> str:
        if not network:
            return "cpu"
        from pipeline.device import device_name, pick_device

        return device_name(pick_device(self.here.device))


def facts_of(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of MEASUREMENTS that a picture has before any codec."""
    given = CodecSettings.model_validate_json(row["settings"])
    names = ("image_id", "source", "split", "watermark", "quality")
    return {name: row[name] for name in names} | {"codec": given.label}


class Measurer:
    """Rows with pictures in, rows of measurements out."""

    def __init__(self, here: Here, threads: int) -> None:
        self.bench = Bench(here, threads)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield one row at a time: a codec may take minutes for a picture."""
        for batch in rows.to_batches(1):
            (row,) = batch.to_pylist()
            yield pa.Table.from_pylist([self._row(row)], MEASUREMENTS)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        facts = facts_of(row)
        try:
            image = pixels_of(row)
        except BadPicture as error:
            return facts | {"error": f"picture: {error}"}
        facts |= {"width": image.shape[1], "height": image.shape[0]}
        given = CodecSettings.model_validate_json(row["settings"])
        try:
            return facts | self.bench.measure(given, row["quality"], image, row["text"]).columns
        except Missing:
            raise
        except Exception as error:  # whatever a codec does to this picture, the others go on
            return facts | {"error": f"{type(error).__name__}: {error}"}


def stage(benchmark: Benchmark, compute: Compute, collection: Collection) -> Map:
    """The stage of the measurements table.

    Raises:
        AigiError: a codec does not exist, or none of them can run here.
    """
    without = skipped(benchmark, compute)
    if len(without) == len(benchmark.codecs):
        lines = "\n".join(f"{label}: {why}" for label, why in without.items())
        raise AigiError(f"benchmark.codecs: none of them can run on this machine:\n{lines}")
    found = jobs(benchmark, collection.parts)
    labels = {name: job.codec.label for name, job in found.items()}
    return Map(
        table="measurements",
        version=VERSION,
        schema=MEASUREMENTS,
        settings={"pictures": benchmark.pictures.model_dump(mode="json")},
        inputs=(),
        names=partial(names_of, "measurements", labels, without),
        read=partial(_read, collection, found),
        make_worker=partial(Measurer, here_of(benchmark, compute), compute.threads),
        state=lambda store: collection.state,
    )
