"""Two releases in, the rows that were added, removed or changed out (`aigi diff`).

Files with the same content are not opened. Of the rows of others, 16 bytes each are held: hashes of
the id and of all columns. Only rows that differ are looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.columns import BLOCK, Growing, repeated
from pipeline.digests import Digests, UInt64
from pipeline.manifest import open_release
from pipeline.store import Store
from pipeline.threads import ahead, workers

_AHEAD = 4  # files that are read while one is hashed
_HELD = 4  # files of each release that are looked at again


@dataclass(frozen=True)
class Difference:
    """A row that is in one release only, or differs between the two.

    Attributes:
        what: `added` (only in the second), `removed` (only in the first) or `changed`.
        columns: names of those in which a changed row differs; `pixels_sha256` is the image's.
    """

    what: str
    config: str
    split: str
    image_id: str
    columns: str = ""


def narrow(store: Store, path: str) -> pa.Table:
    """All of a release file but the images, whose hash is a column."""
    name = path.removesuffix(".parquet")
    schema = store.schema("", name)
    columns = [] if schema is None else schema.names
    # A missing file is named by `read`.
    return store.read("", name, [column for column in columns if column != "image"])


class _Side:
    """The rows of one release, but those of some files.

    Attributes:
        ids, content: 64 bits of each row, in the order of the files: of its id, and of all of it.
        starts: number of the first row of each file.
    """

    def __init__(self, store: Store, files: Sequence[dict[str, Any]], digests: Digests) -> None:
        self.store, self.files, self._digests = store, files, digests
        self.read = lru_cache(maxsize=_HELD)(self._read)
        ids, content, starts = Growing(np.uint64), Growing(np.uint64), [0]
        with workers(_AHEAD, "diff") as pool:
            for table in ahead(range(len(files)), self._read, pool, _AHEAD):
                ids.add(digests.values(table["image_id"]))
                content.add(
                    digests.rows(zip(table.column_names, table.columns, strict=True), len(table))
                )
                starts.append(len(ids))
        self.ids, self.content, self.starts = ids.values(), content.values(), np.array(starts)

    def _read(self, number: int) -> pa.Table:
        """The rows of a file, where they are among their columns."""
        record = self.files[number]
        table = narrow(self.store, record["path"])
        if "image_id" not in table.column_names:
            path = self.store.path(record["path"])
            raise AigiError(f"{path}: no column image_id: not a file of a release")
        for name in ("config", "split"):
            if name in table.column_names:
                table = table.drop([name])
            table = table.append_column(name, pa.repeat(record[name], table.num_rows))
        return table

    def file_of(self, row: int) -> int:
        """The number of the file that a row is in."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def twice(self) -> NDArray[np.uint64]:
        """Those hashes of ids that are there more than once, ascending."""
        return repeated(self.ids.copy())

    def refuse_twice(self, again: NDArray[np.uint64]) -> None:
        """Raises AigiError: an id is there twice. If only its hash is, nothing."""
        seen: dict[str, int] = {}
        for row in np.flatnonzero(np.isin(self.ids, again)).tolist():
            number = self.file_of(row)
            name = self.read(number)["image_id"][row - int(self.starts[number])].as_py()
            if name in seen:
                paths = [self.files[one]["path"] for one in (seen[name], number)]
                raise AigiError(
                    f"{self.store.url}: {name} is there twice: in {paths[0]} and {paths[1]}. "
                    f"aigi verify {self.store.url} lists what is wrong with it."
                )
            seen[name] = number


def _sides(first: str, second: str) -> tuple[_Side, _Side]:
    """The rows of both releases, but those of files that are in both.

    Raises:
        AigiError: one is no release; a file is missing or unreadable; an id is there twice.
    """
    opened = [open_release(first), open_release(second)]
    listed = [
        {(r["config"], r["split"], r["sha256"]) for r in manifest["files"]}
        for _, manifest in opened
    ]
    both = listed[0] & listed[1]
    left = []
    for store, manifest in opened:
        there = store.shards("")
        for record in manifest["files"]:
            path = record["path"]
            if path.removesuffix(".parquet") not in there:
                raise store.damaged(store.path(path), "missing")
        left.append(
            [r for r in manifest["files"] if (r["config"], r["split"], r["sha256"]) not in both]
        )
    while True:
        digests = Digests()
        sides = [
            _Side(store, files, digests) for (store, _), files in zip(opened, left, strict=True)
        ]
        again = [side.twice() for side in sides]
        if not any(map(len, again)):
            return sides[0], sides[1]
        for side, hashes in zip(sides, again, strict=True):
            side.refuse_twice(hashes)
        # Two ids with one hash, which happens once in a thousand years: with another key, not.


def diff(first: str, second: str) -> Iterator[Difference]:
    """Compare two releases row by row, by image id.

    Args:
        first, second: as `open_release` takes them.

    Yields:
        Differences in the order of the first release, then what was added, in that of the second.

    Raises:
        AigiError: one is no release; a file of it is missing or unreadable, or has an id twice.
    """
    old, new = _sides(first, second)
    order = np.argsort(new.ids, kind="stable").astype(np.int64)
    ascending: UInt64 = new.ids[order]
    kept = np.zeros(len(new.ids), np.bool_)
    for number in range(len(old.files)):
        rows = np.arange(old.starts[number], old.starts[number + 1])
        for block in np.array_split(rows, max(1, -(-len(rows) // BLOCK))):
            yield from _of_file(old, new, number, block, ascending, order, kept)
    for number in range(len(new.files)):
        fresh = np.flatnonzero(~kept[new.starts[number] : new.starts[number + 1]])
        if len(fresh):
            record = new.files[number]
            for name in new.read(number)["image_id"].take(pa.array(fresh)).to_pylist():
                yield Difference("added", record["config"], record["split"], name)


def _of_file(
    old: _Side,
    new: _Side,
    number: int,
    rows: NDArray[np.int64],
    ascending: UInt64,
    order: NDArray[np.int64],
    kept: NDArray[np.bool_],
) -> Iterator[Difference]:
    """Differences of some rows of an old file; notes which new rows were there before."""
    ids = old.ids[rows]
    at = np.searchsorted(ascending, ids)
    at[at == len(ascending)] = 0
    there = ascending[at] == ids if len(ascending) else np.zeros(len(ids), np.bool_)
    match = np.where(there, order[at] if len(order) else 0, -1)
    kept[match[there]] = True
    equal = np.zeros(len(ids), np.bool_)
    equal[there] = new.content[match[there]] == old.content[rows[there]]
    odd = np.flatnonzero(~equal)
    if not len(odd):
        return
    record, mine = old.files[number], old.read(number)
    local = rows[odd] - int(old.starts[number])
    names = mine["image_id"].take(pa.array(local)).to_pylist()
    changed = _changed(new, match[odd], mine, local)
    for place, name in enumerate(names):
        if match[odd[place]] < 0:
            yield Difference("removed", record["config"], record["split"], name)
            continue
        other, columns = changed[place]
        yield Difference("changed", other["config"], other["split"], name, columns)


def _changed(
    new: _Side, match: NDArray[np.int64], mine: pa.Table, local: NDArray[np.int64]
) -> dict[int, tuple[dict[str, Any], str]]:
    """File and differing columns of changed rows, by their place among the given ones."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    digests = Digests()
    here = np.flatnonzero(match >= 0)
    files = np.searchsorted(new.starts, match[here], side="right") - 1
    for number in np.unique(files).tolist():
        places = here[files == number]
        theirs = new.read(number).take(pa.array(match[places] - int(new.starts[number])))
        own = mine.take(pa.array(local[places]))
        differing = {
            name: np.ones(len(places), np.bool_)
            if (name in own.column_names) != (name in theirs.column_names)
            else digests.values(own[name]) != digests.values(theirs[name])
            for name in dict.fromkeys([*own.column_names, *theirs.column_names])
        }
        for row, place in enumerate(places.tolist()):
            words = " ".join(name for name, marks in differing.items() if marks[row])
            found[place] = (new.files[number], words)
    return found
