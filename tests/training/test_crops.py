"""The stream of crops: every picture in turn, the same order always, restartable anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.collection import Collection, Pictures
from pipeline.pixels import RGB
from pipeline.training.crops import Crop, Crops
from tests.conftest import listed
from tests.training.release import write_release


def _plain(value: int, size: int = 24) -> RGB:
    """A picture whose red says which it is, and whose green and blue say where a crop lies."""
    picture = np.empty((size, size, 3), np.uint8)
    picture[..., 0] = value
    picture[..., 1] = np.arange(size)[:, None]
    picture[..., 2] = np.arange(size)[None, :]
    return picture


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    parts = {
        ("a", "train"): [_plain(value) for value in range(10)],
        ("b", "train"): [_plain(value) for value in range(100, 105)],
        ("a", "validation"): [_plain(200)],
    }
    folder = write_release(tmp_path_factory.mktemp("release"), parts)
    return Collection(Pictures(place=str(folder), splits=("train",)))


def _take(crops: Crops, count: int) -> list[Crop]:
    return list(itertools.islice(crops, count))


def _keys(crops: list[Crop]) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in crop.pixels[0, 0]) for crop in crops]


def test_a_crop_is_a_part_of_its_picture_with_its_prompt(collection: Collection) -> None:
    for crop in _take(Crops(collection, 8, 3, buffer=10, seed=1), 200):
        value, top, left = (int(v) for v in crop.pixels[0, 0])
        assert crop.pixels.dtype == np.uint8
        assert (crop.pixels == _plain(value)[top : top + 8, left : left + 8]).all()
        source, number = ("b", value - 100) if value >= 100 else ("a", value)
        assert crop.text == f"a red boat {number} by {source}"


def test_an_epoch_sees_every_picture_and_weights_count(collection: Collection) -> None:
    stream = Crops(collection, 8, 2, buffer=0, weights={"b": 3.0}, seed=2)
    epoch = 2 * (10 + 3 * 5)
    crops = _take(stream, 4 * epoch)
    for number in range(4):
        seen = Counter(key[0] for key in _keys(crops[number * epoch : (number + 1) * epoch]))
        assert seen == dict.fromkeys(range(10), 2) | dict.fromkeys(range(100, 105), 6)
    orders = [tuple(k[0] for k in _keys(crops[i * epoch : (i + 1) * epoch])) for i in range(4)]
    assert len(set(orders)) == 4
    half = _take(Crops(collection, 8, 1, buffer=0, weights={"a": 0.0, "b": 0.5}, seed=2), 400)
    assert {key[0] for key in _keys(half)} == set(range(100, 105))


def test_the_buffer_keeps_crops_of_one_picture_apart(collection: Collection) -> None:
    keys = [key[0] for key in _keys(_take(Crops(collection, 8, 8, buffer=96, seed=3), 960))]
    together = sum(a == b for a, b in itertools.pairwise(keys))
    assert together < 0.25 * len(keys)  # without a buffer: 7 of 8
    without = [key[0] for key in _keys(_take(Crops(collection, 8, 8, buffer=0, seed=3), 960))]
    assert sum(a == b for a, b in itertools.pairwise(without)) > 0.8 * len(without)


def test_parts_are_mixed(tmp_path: Path) -> None:
    """Neighbours in a folder are often alike: a stream is no walk from one to the next."""
    parts = {
        (name, "train"): [_plain(10 * at + n) for n in range(8)]
        for at, name in enumerate("abcdefgh")
    }
    collection = Collection(Pictures(place=str(write_release(tmp_path, parts)), splits=("train",)))

    def sources(interleave: int) -> list[int]:
        crops = _take(Crops(collection, 8, 1, buffer=0, seed=3, interleave=interleave), 128)
        keys = [key[0] for key in _keys(crops)]
        assert all(set(map(keys[:64].count, keys)) == {1} for keys in (keys, keys[64:])), "an epoch"
        return [key // 10 for key in keys]

    def runs(found: list[int]) -> int:
        return sum(a != b for a, b in itertools.pairwise(found))

    assert runs(sources(1)) < 32, "parts have four rows"
    mixed = sources(4)
    assert runs(mixed) > 60
    assert all(len(set(mixed[at : at + 12])) >= 3 for at in range(0, 48, 12))
    # All that are there, if more are asked for; in one process or in two.
    assert len(set(sources(100)[:24])) >= 6
    shared = [
        key[0]
        for rank in range(2)
        for key in _keys(
            _take(Crops(collection, 8, 1, 0, seed=3, rank=rank, world=2, interleave=4), 32)
        )
    ]
    assert sorted(shared) == sorted(set(shared)) and len(shared) == 64


def test_few_parts_are_in_memory(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is read once an epoch, though the stream goes to and fro between parts."""
    read: list[str] = []
    reading = collection.read

    def counted(name: str, columns: list[str]) -> Any:
        read.append(name)
        return reading(name, columns)

    monkeypatch.setattr(collection, "read", counted)
    epochs = 4
    _take(Crops(collection, 8, 1, 0, seed=3, threads=1, interleave=2), 15 * epochs)
    assert len(read) <= len(collection.parts) * (epochs + 1)


@given(
    st.integers(0, 130), st.integers(1, 5), st.integers(0, 40), st.integers(1, 3),
    st.integers(1, 4), st.integers(1, 5),
)  # fmt: skip
def test_a_stream_starts_anywhere(
    collection: Collection,
    start: int,
    per_picture: int,
    buffer: int,
    world: int,
    threads: int,
    interleave: int,
) -> None:
    rank = start % world

    def stream(start: int, threads: int) -> Crops:
        given = (per_picture, buffer, {"b": 1.5}, 4, rank, world, threads, start)
        return Crops(collection, 8, *given, interleave=interleave)

    whole = _take(stream(0, 1), start + 20)
    later = _take(stream(start, threads), 20)
    assert _keys(later) == _keys(whole[start:])
    assert [crop.text for crop in later] == [crop.text for crop in whole[start:]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_an_epoch(collection: Collection, world: int) -> None:
    # Few parts for four processes: they share rows; else each takes whole parts.
    seen: Counter[int] = Counter()
    epochs = 12
    for rank in range(world):
        crops = _take(Crops(collection, 8, 1, 0, seed=5, rank=rank, world=world), 15 * epochs)
        seen += Counter(key[0] for key in _keys(crops))
    assert set(seen) == {*range(10), *range(100, 105)}
    assert max(seen.values()) < 2.5 * min(seen.values())
    first = [
        {k[0] for k in _keys(_take(Crops(collection, 8, 1, 0, seed=5, rank=r, world=4), 3))}
        for r in range(4)
    ]
    assert sum(len(part) for part in first) == len(set().union(*first))


def test_small_pictures_are_mirrored(collection: Collection) -> None:
    (crop,) = _take(Crops(collection, 32, 1, 0), 1)
    assert crop.pixels.shape == (32, 32, 3)
    value = int(crop.pixels[0, 0, 0])
    assert (crop.pixels[:24, :24] == _plain(value)).all()
    assert (crop.pixels[24:, :24] == _plain(value)[:15:-1]).all()


def test_what_cannot_be_read_is_named(collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(AigiError, match="no source c among"):
        Crops(collection, 8, weights={"c": 4.0})
    with pytest.raises(AigiError, match="5 images are too few for 6 processes"):
        Crops(collection, 8, weights={"a": 0.0}, world=6)
    folder = write_release(tmp_path, {("a", "train"): [_plain(1)]})
    import pyarrow.parquet as pq

    path = folder / "a" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:40]
    pq.write_table(table.from_pylist(rows, table.schema), path)
    listed(folder, "a/train-00000-of-00001.parquet")
    broken = Collection(Pictures(place=str(folder)))
    with pytest.raises(AigiError, match=r"row 0, image a-train-0: "):
        _take(Crops(broken, 8, 1, 0), 1)
