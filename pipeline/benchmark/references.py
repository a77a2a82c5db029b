"""Images in, the `references` table out: what each shows before any codec, a row an image.

Vectors of the image and its prompt are the same for every codec and quality, so they are
computed here, once, and measurements read them. What a mark says in the image as it came is the
most that can be expected after a codec.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.benchmark.measurements import CLIP, COLUMNS, asked, pixels_of
from pipeline.benchmark.settings import Benchmark
from pipeline.collection import Collection
from pipeline.faults import let_through
from pipeline.marks.dwt_dct import bit_accuracy
from pipeline.models.clip import Clip, Embeddings, Vectors, check_weights, cosine
from pipeline.pixels import BadPicture, decode_threads
from pipeline.stage import Compute, Map
from pipeline.store import Store

if TYPE_CHECKING:
    import torch


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

VERSION = 1
_AT_ONCE = 16  # pictures, where no model says how many

Row = dict[str, Any]


class Referrer:
    """Rows with images in, rows of REFERENCES out, a batch at a time.

    Args:
        clip: null: no vectors.
        watermarks: read marks back.
        device, threads: of the model.
    """

    def __init__(
        self, clip: Embeddings | None, watermarks: bool, device: str, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.clip = None if clip is None else Clip(clip, device, CLIP)
        self.loaded = {} if self.clip is None else {CLIP: self.clip.loaded}
        self.watermarks = watermarks
        self.size = _AT_ONCE if clip is None else clip.batch_size
        self.threads = decode_threads(None if clip is None else clip.decode_threads)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield references in row order.

        Raises:
            AigiError: the device has too little memory, or the model overflows.
        """
        known: dict[str, Vectors] = {}
        with ThreadPoolExecutor(self.threads, "pictures") as pool:
            for start in range(0, rows.num_rows, self.size):
                part = rows.slice(start, self.size).to_pylist()
                looked = list(pool.map(self._look, part))
                found = [one for one, _ in looked]
                if self.clip is not None:
                    self._embed(self.clip, part, looked, known)
                yield pa.Table.from_pylist(found, REFERENCES)

    def _look(self, row: Row) -> tuple[Row, torch.Tensor | None]:
        """What the image of a row says without a model, and the image as the model takes it."""
        found: Row = {name: row[name] for name in ("image_id", "source", "split", "watermark")}
        try:
            image = pixels_of(row)
        except BadPicture as error:
            return found | {"error": f"picture: {error}"}, None
        if self.watermarks:
            found["watermark_accuracy"] = bit_accuracy(image, row["watermark"])
        if self.clip is None:
            return found, None
        try:
            return found, self.clip.prepare(image)
        except Exception as error:  # whatever the model's own resizing makes of this picture
            let_through(error, CLIP)
            return found | {"error": f"clip: {type(error).__name__}: {error}"}, None

    def _embed(
        self,
        clip: Clip,
        part: list[Row],
        looked: list[tuple[Row, torch.Tensor | None]],
        known: dict[str, Vectors],
    ) -> None:
        there = [
            (row, found, picture)
            for row, (found, picture) in zip(part, looked, strict=True)
            if picture is not None
        ]
        texts = dict.fromkeys(row["text"] for row, _, _ in there if row["text"])
        new = [text for text in texts if text not in known]
        known.update(zip(new, clip.text_vectors(new), strict=True))
        vectors = clip.prepared_vectors([picture for _, _, picture in there])
        for (row, found, _), vector in zip(there, vectors, strict=True):
            found["image_vector"] = vector
            if row["text"]:
                found["text_vector"] = known[row["text"]]
                found["clip_score"] = cosine(vector, known[row["text"]])


def _names(names: list[str], store: Store) -> list[str]:
    return names


def _rows(found: dict[str, int], store: Store, name: str) -> int | None:
    return found[name]


def _read(collection: Collection, store: Store, name: str) -> pa.Table:
    return collection.read(name, COLUMNS)


def _check(clip: Embeddings | None) -> None:
    if clip is not None:
        check_weights(clip, CLIP)


def stage(benchmark: Benchmark, compute: Compute, collection: Collection) -> Map:
    """The stage of the references table: a shard a part of the images.

    Raises:
        AigiError: a folder has no weights of CLIP.
    """
    return Map(
        table="references",
        version=VERSION,
        schema=REFERENCES,
        settings={
            "pictures": benchmark.measured.model_dump(mode="json"),
            **asked(benchmark, compute),
        },
        inputs=(),
        names=partial(_names, [part.name for part in collection.parts]),
        read=partial(_read, collection),
        make_worker=partial(
            Referrer, benchmark.clip, benchmark.watermarks, compute.device, compute.threads
        ),
        check=partial(_check, benchmark.clip),
        outside=lambda store, name: collection.digest(name),
        state=lambda store: collection.state,
        rows=partial(_rows, {part.name: part.rows for part in collection.parts}),
    )
