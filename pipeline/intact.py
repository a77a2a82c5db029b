"""Recorded files in; those that are what was written, and what is wrong with the others, out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.pixels import decode_threads
from pipeline.record import Written
from pipeline.store import Damaged, Store
from pipeline.threads import ahead, workers


@dataclass(frozen=True)
class Checks:
    """How a run looks at what it finds.

    Attributes:
        rehash: hash every file, also those whose size and time of change are as recorded.
        adopt: take up shards that no record describes.
        retry: make rows that have an error again; what was made from them follows.
        replace: what the settings of now cannot keep may be removed.
    """

    rehash: bool = False
    adopt: bool = False
    retry: bool = False
    replace: bool = False


USUAL = Checks()


def _same(
    known: Written, size: int, stamp: str, look: Callable[[], Written | None], rehash: bool
) -> Written | str:
    """A file as the record should have it now; or what is wrong with it."""
    if known.until_bytes is not None and known.until_bytes == size != known.bytes:
        now = look()
        right = now is not None and now.sha256 == known.until_sha256
        return known if right else "changed since it was written"
    if known.bytes not in (None, size):
        return f"{size:,} bytes, and {known.bytes:,} were written"
    if known.sha256 and known.stamp == stamp and stamp and not rehash:
        return known
    try:
        now = look()
    except Damaged as error:
        return error.why
    if now is None:
        return "missing"
    if known.sha256 not in ("", now.sha256):
        return "changed since it was written"
    kept = {name: getattr(known, name) for name in ("made_from", "moved", "made_as")}
    return now.model_copy(update={**kept, "rows": now.rows or known.rows})


def intact(
    store: Store, table: str, shards: Mapping[str, Written], rehash: bool = False
) -> tuple[dict[str, Written], dict[str, str]]:
    """Recorded shards that are what was written; and by name, what is wrong with the others.

    Sizes and times of change are compared first; a hash is taken where they differ.
    """
    listing = store.listing(table)

    def one(name: str) -> Written | str:
        if name not in listing:
            return "missing"
        path = (table, f"{name}.parquet")
        return _same(shards[name], *listing[name], lambda: store.look(*path), rehash)

    with ThreadPoolExecutor(8) as pool:
        return _apart(dict(zip(shards, pool.map(one, shards), strict=True)))


def intact_files(
    store: Store, files: Mapping[str, Written], rehash: bool = False
) -> tuple[dict[str, Written], dict[str, str]]:
    """The same for files, by their paths below the run."""

    def one(path: str) -> Written | str:
        if (found := store.stat(path)) is None:
            return "missing"
        return _same(files[path], *found, lambda: store.look(path), rehash)

    return _apart({path: one(path) for path in files})


def _apart(found: Mapping[str, Written | str]) -> tuple[dict[str, Written], dict[str, str]]:
    return (
        {name: one for name, one in found.items() if isinstance(one, Written)},
        {name: one for name, one in found.items() if isinstance(one, str)},
    )


def wrong_pixels(store: Store, table: str, shard: str) -> Iterator[str]:
    """What is wrong with each row whose image is not what the row states.

    Args:
        table: `images`, where failed rows have no image; or empty: a file of a release.

    Raises:
        AigiError: the shard is missing or damaged.
    """
    wanted = ["image_id", "image", "width", "height", "pixels_sha256"]

    def compared(item: tuple[int, dict[str, Any]]) -> str | None:
        row, values = item
        if values["image"] is None and table == "images":
            return None
        try:
            rgb = store.pixels(table, shard, row, values)
        except Damaged as error:
            return error.why
        size, stated = rgb.shape[1::-1], (values["width"], values["height"])
        if size != stated:
            return f"row {row + 1}: {size} pixels; stated {stated}"
        return None

    rows = range(store.rows(table, shard) or 0)
    with workers(decode_threads(None), "verify") as pool:
        for wrong in ahead(store.rows_at(table, shard, rows, wanted), compared, pool, 32):
            if wrong is not None:
                yield wrong
