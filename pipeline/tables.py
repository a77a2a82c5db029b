"""Schemas of every table, and `Store`: the run directory that reads and writes their shards.

A table is a folder of parquet shards. A shard appears under its name only when it is whole:
local files are written to a temporary name, flushed to disk and renamed; on object stores the
one upload call makes the file visible at its end.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import posixpath
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # first 32 hex digits of sha256(text)
        ("text", pa.string()),
        ("source", pa.string()),
        ("source_ref", pa.string()),  # file:line
        ("split", pa.string()),  # train, validation or test: a function of prompt_id
        ("tokens", pa.int32()),  # CLIP tokens, begin and end included
        ("truncated", pa.bool_()),  # more than CLIP's 77
    ]
)
REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)
PLAN = pa.schema(
    [
        ("image_id", pa.string()),  # hash of every field that decides pixels
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("negative_prompt", pa.string()),
        ("scheduler", pa.string()),
        ("dtype", pa.string()),
        ("width", pa.int32()),  # pixels; null where an imported picture keeps its own size
        ("height", pa.int32()),
        ("watermark", pa.string()),
        ("pair_id", pa.string()),  # image_id of the variant without watermark; null: no pair
        ("path", pa.string()),  # imported pictures: name inside the folder, zip or parquet
        ("index", pa.int32()),  # how many images of this prompt and source come before
        ("rank", pa.int32()),  # position in its source and split; below the count: wanted
        ("round", pa.int32()),  # 0: first plan; 1…: top-up
    ]
)
PHOTOS = pa.schema(
    [
        ("source", pa.int32()),  # which of prompts.sources
        ("photo", pa.string()),
        ("row", pa.int64()),  # 1-based
    ]
)
CAPTIONS = pa.schema(
    [("photo", pa.string()), ("row", pa.int64()), ("text", pa.string()), ("error", pa.string())]
)
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE),  # PNG; null where `error` says why
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels_sha256", pa.string()),  # of the uint8 RGB array, row by row
        ("error", pa.string()),
        ("batch_size", pa.int32()),  # null for imported pictures
        ("device", pa.string()),
        ("versions", pa.string()),  # JSON object of library versions
        ("original_sha256", pa.string()),  # imported pictures: of the file as it came
        ("note", pa.string()),  # imported pictures: what the conversion to RGB changed
    ]
)
QUALITY = pa.schema(
    # All but image_id are null where the image failed.
    [
        ("image_id", pa.string()),
        ("nsfw", pa.float32()),  # above 0: the safety checker flags it; null: none was asked for
        ("concepts", pa.map_(pa.string(), pa.float32())),  # probability of each, 0 to 1
        ("width_ok", pa.bool_()),  # width and height are those of the plan, where it gives them
        ("black", pa.float32()),  # share of nearly black pixels
        ("blank", pa.float32()),  # share of the commonest colour of 16 levels a channel
        ("luminance_mean", pa.float32()),  # 0 to 255
        ("luminance_std", pa.float32()),
        ("entropy", pa.float32()),  # of the luminance histogram: bits, 0 to 8
        ("blockiness", pa.float32()),  # 1: no 8x8 grid; rises as the quality of a JPEG falls
        ("png_bpp", pa.float32()),  # bits of the PNG a pixel
        ("perceptual_hash", pa.uint64()),  # nearly the same after re-encoding or resizing
    ]
)
SELECTION = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # null where kept
        ("duplicate_of", pa.string()),  # image_id of the kept one, where the reason is duplicate
        ("similarity", pa.float32()),  # to it, or to the nearest of the group
    ]
)
DUPLICATES = pa.schema(
    [
        ("image_id", pa.string()),
        ("other_id", pa.string()),  # comes later in the plan
        ("kind", pa.string()),  # pixels, hash or vector
        # 1; share of equal bits; cosine, unrounded, as thresholds are compared with it
        ("similarity", pa.float64()),
    ]
)
CHARACTERISTICS = pa.schema(
    # All numbers are null where `error` says why; also where a picture is too small or flat.
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("watermark", pa.string()),
        ("width", pa.int32()),  # pixels, before any crop
        ("height", pa.int32()),
        ("error", pa.string()),
        # GLCM of the luma at 256 levels: means over the distances and angles of the settings
        ("glcm_contrast", pa.float32()),  # levels²
        ("glcm_dissimilarity", pa.float32()),  # levels
        ("glcm_homogeneity", pa.float32()),  # 0 to 1
        ("glcm_asm", pa.float32()),  # 0 to 1
        ("glcm_energy", pa.float32()),  # 0 to 1
        ("glcm_correlation", pa.float32()),  # -1 to 1
        ("glcm_entropy", pa.float32()),  # bits, 0 to 16
        # mean, standard deviation, signed cube root of the third central moment: levels
        *((f"{channel}_{moment}", pa.float32())
          for channel in ("red", "green", "blue") for moment in ("mean", "std", "third")),
        ("colorfulness", pa.float32()),  # 0 for grey, about 100 for garish
        ("saturation", pa.float32()),  # 0 to 1
        ("gradient_energy", pa.float32()),  # levels²
        ("spectral_slope", pa.float32()),  # of log power over log frequency
        ("noise_level", pa.float32()),  # levels
        ("png_bpp", pa.float32()),  # bits of a lossless file a pixel
        ("jxl_bpp", pa.float32()),  # null: not asked for
    ]
)  # fmt: skip
ALIGNMENTS = pa.schema(
    # Scores and attributes are empty where `error` says why, and where there is no prompt.
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("watermark", pa.string()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float32())),  # by the names of the settings
        # whether the word of the prompt suits the picture best, of all words of its list
        ("attributes", pa.map_(pa.string(), pa.bool_())),
    ]
)
EFFECTS = pa.schema(
    # A source beside the reference (or all other sources), for each number of characteristics;
    # pictures with a watermark are left out.
    [
        ("characteristic", pa.string()),
        ("source", pa.string()),
        ("against", pa.string()),  # null: all other sources
        ("images", pa.int64()),
        ("images_against", pa.int64()),
        ("mean", pa.float64()),
        ("mean_against", pa.float64()),
        ("std", pa.float64()),
        ("std_against", pa.float64()),
        ("cohens_d", pa.float64()),  # difference of means over the pooled standard deviation
        ("cliffs_delta", pa.float64()),  # P(greater) - P(less) of two pictures, -1 to 1
        ("ks", pa.float64()),  # two-sample Kolmogorov-Smirnov statistic, 0 to 1
        ("p_value", pa.float64()),  # of it
        ("p_adjusted", pa.float64()),  # by Benjamini and Hochberg, over all rows
    ]
)
RELEASE = pa.schema(
    [
        ("image", IMAGE),
        *(PLAN.field(name) for name in ("text", "image_id", "prompt_id", "source")),
        *(IMAGES.field(name) for name in ("width", "height")),
        *(
            PLAN.field(name)
            for name in (
                "model",
                "revision",
                "seed",
                "steps",
                "guidance_scale",
                "negative_prompt",
                "scheduler",
                "dtype",
                "watermark",
                "pair_id",
                "path",
            )
        ),
        *(
            IMAGES.field(name)
            for name in (
                "pixels_sha256",
                "original_sha256",
                "note",
                "batch_size",
                "device",
                "versions",
            )
        ),
    ]
)
MEASUREMENTS = pa.schema(
    # What comes after `quality` is null where `error` says why.
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
        ("psnr", pa.float64()),  # dB over uint8 RGB; 100: equal pixels
        ("ms_ssim", pa.float64()),  # up to 1; null below 11 pixels a side
        ("ms_ssim_scales", pa.int8()),  # 5; fewer up to 160 pixels a side
        ("encode_ms", pa.float64()),  # of an external program: with its start
        ("decode_ms", pa.float64()),
        ("device", pa.string()),
        ("codec_version", pa.string()),
        ("error", pa.string()),
    ]
)
CLIP_COLUMNS = (
    ("clip_similarity", pa.float64()),  # cosine of the original's and the decoded one's vectors
    ("clip_score_change", pa.float64()),  # decoded less original; null without a prompt
)
WATERMARK_COLUMNS = (
    # Share of the bits read that are right, 0 to 1; null where the mark holds none.
    ("watermark_accuracy", pa.float64()),
)


def measurements_schema(clip: bool, watermarks: bool, distances: Iterable[str] = ()) -> pa.Schema:
    """MEASUREMENTS, and before `error` the columns that a workflow asked for.

    Args:
        clip, watermarks: whether decoded pictures are looked at so.
        distances: kinds of perceptual distances: 0 for equal pictures, null for too small ones.
    """
    found = MEASUREMENTS
    for name, kind in (
        *((kind, pa.float64()) for kind in distances),
        *CLIP_COLUMNS * clip,
        *WATERMARK_COLUMNS * watermarks,
    ):
        found = found.insert(found.get_field_index("error"), pa.field(name, kind))
    return found


REFERENCES = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("watermark", pa.string()),
        ("image_vector", pa.list_(pa.float32())),  # of CLIP, length 1; null: not asked for
        ("text_vector", pa.list_(pa.float32())),  # null without a prompt
        ("clip_score", pa.float32()),  # cosine of the two, -1 to 1
        ("watermark_accuracy", pa.float64()),  # null where the mark holds no bits
        ("error", pa.string()),  # what is missing, and why
    ]
)
COMPLEXITY = pa.schema(
    # What comes after `quality` is null where `error` says why.
    [
        ("codec", pa.string()),
        ("side", pa.int32()),  # pixels of the square picture
        ("quality", pa.float64()),
        ("parameters", pa.int64()),  # of networks, their text encoder included; else null
        ("encode_kmac_per_pixel", pa.float64()),  # as torch counts: products and convolutions
        ("decode_kmac_per_pixel", pa.float64()),
        ("encode_s_per_mp", pa.float64()),  # median of some rounds
        ("decode_s_per_mp", pa.float64()),
        ("peak_mib", pa.float64()),  # of the program; of a codec in ours: what it adds
        ("device_peak_mib", pa.float64()),  # on a CUDA device; else null
        ("device", pa.string()),
        ("codec_version", pa.string()),
        ("error", pa.string()),
    ]
)
COMPARISONS = pa.schema([*MEASUREMENTS, ("image", IMAGE)])  # as decoded, PNG

# For the reader of a release, who sees no comments; every column of RELEASE has its words here.
RELEASE_MEANING = {
    "image": "the picture, as lossless PNG: 8-bit RGB",
    "text": "the prompt",
    "image_id": "hash of everything that decides the pixels; the key of a row",
    "prompt_id": "hash of the prompt: the first 32 hex digits of sha256(text)",
    "source": "what made the picture; the same as the config",
    "width": "pixels",
    "height": "pixels",
    "model": "Hub id or name of the model",
    "revision": "commit of the model's repository, or a name; empty: not stated",
    "seed": "of the picture's own random generator, on the CPU; null: imported",
    "steps": "of the scheduler; null: imported",
    "guidance_scale": "of classifier-free guidance; null: imported",
    "negative_prompt": "what the guidance leads away from; null: imported",
    "scheduler": "the sampler; null: imported",
    "dtype": "number format of the model while it drew; null: imported",
    "watermark": "which mark the picture carries, `none` where it has none",
    "pair_id": "image_id of the same picture without a mark, where there are both; else null",
    "path": "imported pictures: name of the file that it came from",
    "pixels_sha256": "sha256 of the uint8 RGB array, height x width x 3, row by row",
    "original_sha256": "imported pictures: sha256 of the file as it came",
    "note": "imported pictures: what the conversion to 8-bit RGB changed; null: nothing",
    "batch_size": "pictures drawn at once, which moves the last bit of some pixels; null: imported",
    "device": "what drew the picture, or decoded an imported one",
    "versions": "JSON object: versions of the libraries that made the pixels",
}


def embeddings_schema(size: int) -> pa.Schema:
    """Schema of the embeddings table of a model whose vectors hold `size` numbers.

    Vectors have length 1, to the rounding of float16; all but image_id is null where the image
    failed.
    """
    vector = pa.list_(pa.float16(), size)
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("image_vector", vector),
            ("text_vector", vector),
            ("clip_score", pa.float32()),  # cosine of the two before that rounding, -1 to 1
        ]
    )


# Small row groups let a reader skip to one picture; narrow tables want long ones.
IMAGE_ROWS, IMAGE_BYTES = 100, 64 << 20
NARROW_ROWS = 65_536


@dataclass(frozen=True)
class Shard:
    """A written shard: its rows, its size in bytes and the sha256 of the file."""

    name: str
    rows: int
    bytes: int
    sha256: str


class DiskFull(AigiError):
    """No space left where a shard was being written; the finished shards are kept."""


@contextmanager
def _space(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{where}: no space left on the device. Finished shards are kept; "
                "free some space and run the same command again."
            ) from error
        raise


class _Hashing:
    """A write-only file that keeps the sha256 and the length of what goes through it.

    With content-defined chunking, Arrow 26 ends the whole process where a write fails. So a
    failure is kept, and `check` raises it outside of Arrow.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha, self.bytes, self.closed = file, hashlib.sha256(), 0, False
        self.failure: OSError | None = None

    def check(self) -> None:
        """Raise the first failure of a write, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.failure = error
        self.sha.update(data)
        self.bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """Nothing to do: `_replace` flushes the file itself."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _row_groups(chunks: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Regroup chunks by rows and bytes alone, so that timing never moves a boundary."""
    has_images = "image" in schema.names
    most_rows = IMAGE_ROWS if has_images else NARROW_ROWS
    held: list[pa.Table] = []
    rows = size = 0
    for chunk in chunks:
        # A row at a time where pictures are: one may be tens of megabytes.
        for start in range(0, chunk.num_rows, 1 if has_images else most_rows):
            piece = chunk.slice(start, 1 if has_images else most_rows)
            # nbytes of a slice counts the slice only, unlike get_total_buffer_size.
            if held and (
                rows + piece.num_rows > most_rows
                or (has_images and size + piece.nbytes > IMAGE_BYTES)
            ):
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
            held.append(piece)
            rows, size = rows + piece.num_rows, size + piece.nbytes
    if held:
        yield pa.concat_tables(held)


def _write_parquet(sink: _Hashing, chunks: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write row groups in a thread of their own while the worker makes the next rows."""
    rows = 0
    names = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in ("image_id", "pixels_sha256")
    ]
    # PNG bytes do not compress again; everything else does, very well.
    codecs = {
        path: "NONE" if path == "image.bytes" else "ZSTD"
        for field in schema
        for path in (
            [f"{field.name}.bytes", f"{field.name}.path"] if field.type == IMAGE else [field.name]
        )
    }
    with (
        pq.ParquetWriter(
            sink,
            schema,
            compression=codecs,
            use_dictionary=names,
            use_content_defined_chunking=True,
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
        ThreadPoolExecutor(1, "parquet") as thread,
    ):
        pending: Future[None] | None = None
        for group in _row_groups(chunks, schema):
            if pending is not None:
                pending.result()
                sink.check()
            pending = thread.submit(
                writer.write_table, group.cast(schema), row_group_size=group.num_rows
            )
            rows += group.num_rows
        if pending is not None:
            pending.result()
    sink.check()
    return rows


_TEMPORARY = re.compile(r"^\..*\.(?P<pid>\d+)@(?P<host>.+)\.[0-9a-f]{32}\.tmp$")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Store:
    """A run directory, on local disk or at any fsspec URL: `ROOT/<table>/<shard>.parquet`.

    Args:
        url: local path or fsspec URL, for example `s3://bucket/runs/a` or `memory://a`.
    """

    def __init__(self, url: str) -> None:
        try:
            # Other processes write here too: a remembered listing would hide their shards.
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise AigiError(f"run: {url}: {error}") from error
        self.url = url
        self.local = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def path(self, *parts: str) -> str:
        """Path of a file or folder below the root, for `self.fs`."""
        return posixpath.join(self.root, *parts)

    def shards(self, table: str) -> dict[str, int]:
        """Names of the table's shards, sorted, each with its size in bytes."""
        folder = self.path(table)
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(folder).rstrip("/") + "/"
        sizes = {}
        for path, info in sorted(found.items()):
            name = path[len(base) :] if path.startswith(base) else posixpath.basename(path)
            if name.endswith(".parquet") and not posixpath.basename(name).startswith("."):
                sizes[name.removesuffix(".parquet")] = int(info["size"] or 0)
        return sizes

    def rows(self, table: str, shard: str) -> int | None:
        """Rows of a shard, read from its footer; None where it is missing or cut short."""
        metadata = self.metadata(table, shard)
        return None if metadata is None else int(metadata.num_rows)

    def metadata(self, table: str, shard: str) -> pq.FileMetaData | None:
        """The footer of a shard; None where it is missing or cut short."""
        try:
            with self.fs.open(self.path(table, f"{shard}.parquet"), "rb") as file:
                return pq.read_metadata(file)
        except (FileNotFoundError, pa.ArrowInvalid, EOFError):
            return None

    def rows_of(self, table: str, shards: list[str]) -> dict[str, int | None]:
        """`rows` of many shards at once: on an object store each is a round trip."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(shards, pool.map(partial(self.rows, table), shards), strict=True))

    def read(self, table: str, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Read one shard.

        Raises:
            AigiError: missing or unreadable, with the remedy.
        """
        path = self.path(table, f"{shard}.parquet")
        try:
            if self.local:
                return pq.read_table(path, columns=columns, partitioning=None)
            with self.fs.open(path, "rb") as file:
                # Read ahead, Arrow may let go of the Python file in a thread of its own while
                # the interpreter ends, which ends the process with SIGABRT.
                return pq.read_table(file, columns=columns, partitioning=None, pre_buffer=False)
        except FileNotFoundError:
            raise AigiError(f"{path}: missing. Run the {table} stage again.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise AigiError(
                f"{path}: unreadable ({error}). Delete it and run again to make it anew."
            ) from error

    def read_all(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """Read a whole (narrow) table, shards in name order.

        Raises:
            AigiError: the table has no shard.
        """
        names = list(self.shards(table))
        if not names:
            raise AigiError(f"{self.path(table)}: no {table} table in this run")
        with ThreadPoolExecutor(8) as pool:
            return pa.concat_tables(pool.map(lambda name: self.read(table, name, columns), names))

    def write(
        self, table: str, shard: str, chunks: pa.Table | Iterable[pa.Table], schema: pa.Schema
    ) -> Shard:
        """Write one shard whole or not at all; row groups are written while chunks arrive.

        Raises:
            DiskFull: nothing of the shard is left behind.
        """
        if isinstance(chunks, pa.Table):
            chunks = [chunks]
        rows = 0

        def fill(file: IO[bytes]) -> _Hashing:
            nonlocal rows
            sink = _Hashing(file)
            rows = _write_parquet(sink, chunks, schema)
            return sink

        sink = self._replace(self.path(table, f"{shard}.parquet"), fill)
        return Shard(shard, rows, sink.bytes, sink.sha.hexdigest())

    def write_arrow(
        self, tables: Iterable[pa.Table], schema: pa.Schema, *parts: str
    ) -> tuple[int, str]:
        """Write an Arrow file of one record batch a table, whole or not at all.

        Returns: its bytes and their sha256.
        """

        def fill(file: IO[bytes]) -> _Hashing:
            sink = _Hashing(file)
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(sink, schema, options=options) as writer:
                for table in tables:
                    # Without a limit, one batch: strings of a shard stay below 2 GiB.
                    writer.write_table(table.combine_chunks())
            sink.check()
            return sink

        sink = self._replace(self.path(*parts), fill)
        return sink.bytes, sink.sha.hexdigest()

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a small file whole or not at all."""

        def fill(file: IO[bytes]) -> _Hashing:
            sink = _Hashing(file)
            sink.write(data)
            sink.check()
            return sink

        self._replace(self.path(*parts), fill)

    def copy(self, source: IO[bytes], *parts: str) -> None:
        """Write all that is left of an open file, block by block, whole or not at all."""

        def fill(file: IO[bytes]) -> None:
            while block := source.read(1 << 22):
                file.write(block)

        self._replace(self.path(*parts), fill)

    def sha256(self, *parts: str) -> str:
        """sha256 of a file, in hex; of large files on the Hub, as the Hub states it."""
        digest = hashlib.sha256()
        stated = getattr(self.fs.info(self.path(*parts)).get("lfs"), "sha256", None)
        if stated is not None:
            return str(stated)
        with self.fs.open(self.path(*parts), "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """Read a JSON object; None where the file does not exist."""
        try:
            data = self.fs.cat_file(self.path(*parts))
        except FileNotFoundError:
            return None
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise AigiError(f"{self.path(*parts)}: not JSON ({error}); delete it") from error
        return value

    def read_csv(self, *parts: str) -> list[dict[str, str]]:
        """Read the rows of a CSV file with a heading; none where it does not exist.

        A last line that is still being written, without its line break, is left out.
        """
        try:
            text = self.fs.cat_file(self.path(*parts)).decode()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline="")))

    def write_json(self, value: object, *parts: str) -> None:
        """Write a JSON object, keys in order, whole or not at all."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        self.write_bytes(text.encode() + b"\n", *parts)

    def remove(self, *parts: str) -> None:
        """Remove a file or folder; one that does not exist is no error."""
        path = self.path(*parts)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def _replace(self, path: str, fill: Any) -> Any:
        """Let `fill` write a temporary file, then make it visible as `path` in one step."""
        with _space(path):
            if not self.local:
                with tempfile.TemporaryDirectory(prefix="aigi-") as folder:
                    name = os.path.join(folder, "shard")
                    with open(name, "wb") as file:
                        result = fill(file)
                    self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
                    self.fs.put_file(name, path)
                return result
            folder, base = os.path.split(path)
            os.makedirs(folder, exist_ok=True)
            writer = f"{os.getpid()}@{socket.gethostname()}"
            name = os.path.join(folder, f".{base}.{writer}.{uuid.uuid4().hex}.tmp")
            try:
                with open(name, "wb") as file:
                    result = fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                if os.path.exists(name):
                    os.unlink(name)
                raise
            return result

    def sweep(self, table: str) -> None:
        """Remove temporary files that a killed process left in a local table."""
        if not self.local or not os.path.isdir(self.path(table)):
            return
        for folder, _, names in os.walk(self.path(table)):
            for name in names:
                writer = _TEMPORARY.search(name)
                if writer is None:
                    continue
                path = os.path.join(folder, name)
                dead = writer["host"] == socket.gethostname() and not _alive(int(writer["pid"]))
                with suppress(FileNotFoundError):
                    # Of another machine's writer only the age is known; a live one is younger.
                    if dead or time.time() - os.path.getmtime(path) > 86_400:
                        os.unlink(path)
