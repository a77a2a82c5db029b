"""Images and their prompts in, the `embeddings` table out: CLIP vectors of both, and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import AigiError
from pipeline.models.clip import Clip, Embeddings, Vectors, check_weights, identity, model_config
from pipeline.pixels import RGB, BadPicture, decode_threads, stored
from pipeline.stage import Compute, Map
from pipeline.store import Store
from pipeline.tables import embeddings_schema
from pipeline.threads import ahead, workers

VERSION = 1
AHEAD = 2  # batches that are decoded before the model asks for them

T = TypeVar("T")
Row = dict[str, Any]


def stored_picture(row: Row) -> RGB:
    """Pixels of a row of the images table: uint8, H x W x 3, 0 to 255.

    Raises:
        AigiError: its file is damaged, larger than the row states, or not as aigi stores it.
    """
    try:
        return stored(row["image"], row["width"] * row["height"])
    except BadPicture as error:
        raise AigiError(
            f"images: {row['image_id']}: its image cannot be read: {error}. Delete the shard from "
            "the images table and run again to remake it."
        ) from error


def prepared_batches(
    rows: pa.Table, size: int, threads: int, prepare: Callable[[Row], T]
) -> Iterator[tuple[list[Row], list[T | None]]]:
    """Cut a shard into batches, and prepare their rows in threads ahead of the caller.

    Args:
        rows: a shard; its division into Arrow chunks does not matter.
        size: rows of a batch.
        prepare: what to do with a row, in a thread.

    Yields:
        The rows of a batch, and what `prepare` made of each; None where the image failed.
    """

    def one(row: Row) -> tuple[Row, T | None]:
        return row, prepare(row) if row["image"] else None

    parts = (rows.slice(start, size).to_pylist() for start in range(0, rows.num_rows, size))
    with workers(threads, "pictures") as pool:
        made = ahead((row for part in parts for row in part), one, pool, AHEAD * size)
        while batch := list(islice(made, size)):
            yield [row for row, _ in batch], [prepared for _, prepared in batch]


def _column(vectors: Vectors, there: npt.NDArray[np.bool_]) -> pa.Array:
    """The rows where `there` is true take the vectors in order; the others are null."""
    values = np.zeros((len(there), vectors.shape[1]), np.float16)
    values[there] = vectors
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), vectors.shape[1], mask=pa.array(~there)
    )


def column_vectors(column: pa.ChunkedArray | pa.Array) -> Vectors:
    """A vector column of the embeddings table: float32, N x D, length 1; nulls are rows of NaN.

    The table holds float16, so lengths are 1 but for rounding, and numbers within -1 to 1.
    """
    there = np.asarray(column.is_valid())
    vectors = np.full((len(column), column.type.list_size), np.nan, np.float32)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]  # without nulls
    vectors[there] = np.concatenate([np.empty(0, np.float16), *flat]).reshape(-1, vectors.shape[1])
    return vectors


class Embedder:
    """A worker: rows with an image and a text in, `embeddings` rows out.

    A text that occurs in several rows of a shard is encoded once.

    Args:
        settings: which model, and how it is run.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device.
    """

    def __init__(self, settings: Embeddings, device: str = "auto") -> None:
        self.settings, self.clip = settings, Clip(settings, device)
        self.loaded = {"embeddings": self.clip.loaded}
        self.schema = embeddings_schema(self.clip.size)
        self.threads = decode_threads(settings.decode_threads)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield embeddings in row order, one chunk per batch.

        Args:
            rows: image_id, image, width, height and text; the image is null where it failed.

        Raises:
            AigiError: a stored image is damaged, or the device has too little memory.
        """
        known: dict[str, Vectors] = {}
        for part, prepared in prepared_batches(
            rows,
            self.settings.batch_size,
            self.threads,
            lambda row: self.clip.prepare(stored_picture(row)),
        ):
            there = np.array([picture is not None for picture in prepared])
            texts = [row["text"] for row, good in zip(part, there, strict=True) if good]
            # With their batch, so that the next images are decoded in the meantime.
            new = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(new, self.clip.text_vectors(new), strict=True))
            pictures = self.clip.prepared_vectors([p for p in prepared if p is not None])
            sentences = np.array([known[text] for text in texts], np.float32)
            sentences = sentences.reshape(pictures.shape)
            scores = np.zeros(len(part), np.float32)
            # Rounding must not take a cosine over 1.
            scores[there] = (pictures * sentences).sum(axis=1).clip(-1, 1)
            yield pa.table(
                [
                    pa.array([row["image_id"] for row in part], pa.string()),
                    _column(pictures, there),
                    _column(sentences, there),
                    pa.array(scores, pa.float32(), mask=~there),
                ],
                schema=self.schema,
            )


def _make_worker(settings: Embeddings, device: str, threads: int) -> Embedder:
    import torch

    torch.set_num_threads(threads)
    return Embedder(settings, device)


def names(store: Store) -> list[str]:
    """Names of the shards of the images table."""
    return list(store.shards("images"))


def images_and_plan(store: Store, shard: str, columns: dict[str, str]) -> pa.Table:
    """Images of one shard, and columns of its plan: name in the plan, name in the result.

    Raises:
        AigiError: the two tables do not have the same rows.
    """
    found = store.aligned(shard, {"plan": [*columns], "images": ["image", "width", "height"]})
    images = found["images"]
    for name, renamed in columns.items():
        images = images.append_column(renamed, found["plan"][name])
    return images


def _read(store: Store, shard: str) -> pa.Table:
    return images_and_plan(store, shard, {"text": "text"})


def _check(settings: Embeddings) -> None:
    check_weights(settings)


def stage(settings: Embeddings, compute: Compute) -> Map:
    """The embeddings stage.

    Raises:
        AigiError: the configuration of the model, which the schema needs, cannot be read.
    """
    return Map(
        table="embeddings",
        version=VERSION,
        schema=embeddings_schema(int(model_config(settings)["embed_dim"])),
        settings={
            **identity(settings),
            **settings.model_dump(mode="json", include={"batch_size", "precision"}),
            "threads": compute.threads,
        },
        inputs=("plan", "images"),
        names=names,
        read=_read,
        make_worker=partial(_make_worker, settings, compute.device, compute.threads),
        check=partial(_check, settings),
    )
