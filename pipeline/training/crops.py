"""A collection of images in, an endless stream of random crops and their prompts out.

An image is read and decoded once for several crops, which leave through a shuffle buffer. The
images of a part may all be alike, being of one source or neighbours in a folder, so the stream
draws from several parts at once. The order follows from the seed alone and is known before anything
is decoded: threads change nothing, and a stream can start anywhere once its buffer is filled.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import AigiError
from pipeline.collection import Collection, Part
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.threads import ahead, workers

MOST_PIXELS = 1 << 28
LARGEST_SCALE = 2.0
"""A crop is scaled down from a part of the image with at most this many times its sides."""
AHEAD = 8
"""Images that are decoded in advance, for each thread."""
SPARE = 2
"""Parts that stay in memory beside those that are drawn from: threads are some images behind."""


@dataclass(frozen=True)
class Crop:
    """A part of an image.

    Attributes:
        pixels: uint8, size x size x 3.
        text: the image's prompt.
    """

    pixels: RGB
    text: str


@dataclass(frozen=True)
class _Visit:
    """The n-th image of the stream: row `row` of a part."""

    number: int
    round: int
    part: Part
    row: int


class Crops:
    """An endless stream of crops.

    Args:
        collection: the images.
        size: of a crop, in pixels; smaller images are mirrored at their edges.
        per_picture: crops of an image each time it is decoded.
        buffer: crops that wait in the shuffle buffer.
        weights: how often an epoch uses the images of a source; default: once.
        seed: of everything random.
        rank, world: number of this process, and of all processes, which share an epoch's images.
        threads: number of threads that decode.
        start: crops of this stream to skip, because they were used before.
        interleave: parts that are drawn from at once; so many are in memory.
        augment: whether crops are turned by 0, 90, 180 or 270 degrees, mirrored, and half of them
            scaled down by at most 2, where the image is large enough for it.

    Raises:
        AigiError: there are fewer images than processes, or a weight names an unknown source.
    """

    def __init__(
        self,
        collection: Collection,
        size: int,
        per_picture: int = 8,
        buffer: int = 1024,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        start: int = 0,
        augment: bool = False,
        interleave: int = 1,
    ) -> None:
        self.collection, self.size, self.per_picture = collection, size, per_picture
        self.buffer, self.weights, self.seed = buffer, dict(weights or {}), seed
        self.rank, self.world, self.threads, self.start = rank, world, threads, start
        self.augment, self.interleave = augment, interleave
        sources = {part.source for part in collection.parts}
        for source in self.weights:
            if source not in sources:
                raise AigiError(
                    f"train.weights: no source {source} among the training images; there are "
                    f"{', '.join(sorted(sources))}"
                )
        pictures = sum(p.rows for p in collection.parts if self.weights.get(p.source, 1.0) > 0)
        if pictures < world:
            raise AigiError(f"train: {pictures} images are too few for {world} processes")

    def __iter__(self) -> Iterator[Crop]:
        shuffle = random.Random(f"{self.seed} shuffle {self.rank}")
        visits = self._visits()
        waiting: list[tuple[int, int]] = []  # visit and crop number
        held: dict[tuple[int, int], Crop] = {}
        seen: dict[int, _Visit] = {}  # of crops that wait, while nothing is decoded

        def admit(number: int) -> Iterator[tuple[int, int]]:
            """Put an image's crops into the buffer, and yield the crops that leave it."""
            for crop in range(self.per_picture):
                waiting.append((number, crop))
                if len(waiting) > self.buffer:
                    at = shuffle.randrange(len(waiting))
                    waiting[at], waiting[-1] = waiting[-1], waiting[at]
                    yield waiting.pop()

        # Up to `start` the order alone is followed.
        left = self.start
        rest: list[tuple[int, int]] = []
        while left > 0:
            visit = next(visits)
            seen[visit.number] = visit
            gone = list(admit(visit.number))
            rest = gone[left:]
            left -= min(left, len(gone))
            if len(seen) > 2 * self.buffer:
                alive = {number for number, _ in [*waiting, *rest]}
                seen = {number: v for number, v in seen.items() if number in alive}
        wanted = {number for number, _ in [*waiting, *rest]}
        again = (visit for number, visit in seen.items() if number in wanted)
        with workers(self.threads, "crops") as pool:
            keep = {*waiting, *rest}
            for visit, crops in self._decoded(again, pool):
                for number, crop in enumerate(crops):
                    if (visit.number, number) in keep:
                        held[visit.number, number] = crop
            for key in rest:
                yield held.pop(key)
            for visit, crops in self._decoded(visits, pool):
                for number, crop in enumerate(crops):
                    held[visit.number, number] = crop
                for key in admit(visit.number):
                    yield held.pop(key)

    def _visits(self) -> Iterator[_Visit]:
        """The images of this process, epoch after epoch."""
        numbers, rounds, turn = itertools.count(), itertools.count(), itertools.count()
        for epoch in itertools.count():
            order = random.Random(f"{self.seed} epoch {epoch}")
            parts = [
                part
                for part in self.collection.parts
                for _ in range(_times(self.weights.get(part.source, 1.0), order))
            ]
            order.shuffle(parts)
            # Whole parts where there are plenty: each is then read by one process alone.
            whole = len(parts) >= 4 * self.world
            mine = parts[self.rank :: self.world] if whole else parts
            for here, part, row in self._mixed(mine, rounds, order):
                if whole or next(turn) % self.world == self.rank:
                    yield _Visit(next(numbers), here, part, row)

    def _mixed(
        self, parts: list[Part], rounds: Iterator[int], order: random.Random
    ) -> Iterator[tuple[int, Part, int]]:
        """The rows of all parts, each with the number of its part: drawn from several at a time."""
        waiting = iter(parts)
        drawn: list[tuple[int, Part, list[int]]] = []
        while True:
            for part in itertools.islice(waiting, self.interleave - len(drawn)):
                rows = list(range(part.rows))
                order.shuffle(rows)
                drawn.append((next(rounds), part, rows))
            if not drawn:
                return
            # One part needs no draw: the order of runs of before.
            at = order.randrange(len(drawn)) if self.interleave > 1 else 0
            here, part, rows = drawn[at]
            yield here, part, rows.pop(0)
            if not rows:
                del drawn[at]

    def _decoded(
        self, visits: Iterator[_Visit], pool: Executor
    ) -> Iterator[tuple[_Visit, list[Crop]]]:
        """Crops of images, in the order of the visits; threads work some images ahead."""

        def with_rows() -> Iterator[tuple[_Visit, Future[pa.Table]]]:
            held: dict[int, Future[pa.Table]] = {}  # those used last are at the end
            for visit in visits:
                rows = held.pop(visit.round, None)
                if rows is None:
                    columns = ["image_id", "image", "text"]
                    rows = pool.submit(self.collection.read, visit.part.name, columns)
                held[visit.round] = rows
                if len(held) > self.interleave + SPARE:
                    del held[next(iter(held))]
                yield visit, rows

        return ahead(with_rows(), self._cut, pool, AHEAD * self.threads)

    def _cut(self, given: tuple[_Visit, Future[pa.Table]]) -> tuple[_Visit, list[Crop]]:
        visit, rows = given
        table = rows.result()  # submitted before, so never behind this in the queue
        image = table["image"][visit.row]
        try:
            rgb = decode(image["bytes"].as_py(), MOST_PIXELS).rgb
        except BadPicture as error:
            raise AigiError(
                f"{self.collection.pictures.place}: {visit.part.name}: row {visit.row}, image "
                f"{table['image_id'][visit.row]}: {error}"
            ) from error
        short = [max(0, self.size - edge) for edge in rgb.shape[:2]]
        if any(short):
            rgb = np.pad(rgb, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
        text = table["text"][visit.row].as_py() or ""
        rng = random.Random(f"{self.seed} crop {self.rank} {visit.number}")
        cut = _augmented if self.augment else _cut
        crops = (cut(rgb, self.size, rng) for _ in range(self.per_picture))
        return visit, [Crop(np.ascontiguousarray(crop), text) for crop in crops]


def _cut(rgb: RGB, size: int, rng: random.Random) -> RGB:
    top, left = (rng.randrange(edge - size + 1) for edge in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


def _augmented(rgb: RGB, size: int, rng: random.Random) -> RGB:
    """A crop that was turned, mirrored, and perhaps scaled down."""
    scaled = rng.random() < 0.5
    most = min(LARGEST_SCALE, min(rgb.shape[:2]) / size)
    wide = round(size * rng.uniform(1, most)) if scaled else size
    crop = _cut(rgb, wide, rng)
    if wide != size:
        crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS))
    crop = np.rot90(crop, rng.randrange(4))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _times(weight: float, order: random.Random) -> int:
    """How often a part is seen in this epoch: `weight` on average."""
    whole = int(weight)
    return whole + (order.random() < weight - whole)
