"""A shard of images and its file in the release in, one copy of each image out.

The release has the images that were kept. A shard that is freed has the others alone; whoever reads
it through the store gets them from the release. Its record says so before the file is replaced, so
either file is right when the process is killed in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError
from pipeline.intact import intact
from pipeline.lent import lacking
from pipeline.parquet import NOTE
from pipeline.record import Written
from pipeline.settings import SPLITS
from pipeline.store import Store
from pipeline.tables import IMAGES

TABLE = "images"
MOVING = "_moving"
"""In a run: the next file of a shard, until it takes its place."""


def is_free(store: Store, shard: str) -> bool:
    """Whether the release has images that a shard lacks, as record and size tell."""
    record = store.record(TABLE)
    known = None if record is None else record.shards.get(shard)
    if known is None or not known.moved or not known.made_as:
        return False
    return known.until_bytes is None or store.size(TABLE, f"{shard}.parquet") == known.bytes


def lost(store: Store, shards: Iterable[str], rehash: bool = False) -> dict[str, str]:
    """Shards whose images are in files of the release that are gone or damaged, and why.

    Args:
        rehash: as of `intact`.
    """
    images, record = store.record(TABLE), store.record("release")
    mine = {} if images is None else images.shards
    free = {shard: mine[shard].moved for shard in shards if is_free(store, shard)}
    known = {} if record is None else record.shards
    # What a killed process had not recorded yet is looked at when it is read.
    files = {file: known.get(file, Written()) for file in free.values()}
    _, wrong = intact(store, "release", files, rehash)
    return {
        shard: f"its images are in release/{file}.parquet: {wrong[file]}"
        for shard, file in free.items()
        if file in wrong
    }


def shards_in(store: Store, files: Iterable[str]) -> list[str]:
    """Shards whose images are, or were, in these files of the release."""
    record, wanted = store.record(TABLE), set(files)
    known = {} if record is None else record.shards
    return [shard for shard, one in known.items() if one.moved in wanted]


def _notes(store: Store, shard: str) -> dict[str, str]:
    """What the footer of a shard says of it."""
    footer = store.metadata(TABLE, shard)
    about = (footer.metadata if footer is not None else None) or {}
    mine = {key: value for key, value in about.items() if key.startswith(NOTE.encode())}
    return {key.decode(): value.decode() for key, value in mine.items()}


def adopted(store: Store, shard: str, found: Written) -> Written:
    """A shard without a record, with the images that the release has in its place.

    Raises:
        Damaged: it lacks images, and no file of the release has them.
    """
    file = next(
        (f"{source}/{split}-{rest}" for split in SPLITS
         for source, between, rest in [shard.partition(f"-{split}-")] if between),
        "",
    )  # fmt: skip
    store.believe(TABLE, shard, found.model_copy(update={"moved": file}))
    if lacking(store, TABLE, shard) is None:
        return found
    notes = _notes(store, shard)
    made = store.write(TABLE, shard, store.read(TABLE, shard), IMAGES, lambda: notes)
    return made.written(found.made_from)


def _replace(store: Store, shard: str, rows: pa.Table, moved: str, made_as: str) -> None:
    """Give a shard another file; its record has both until then."""
    was = store.written(TABLE, shard)
    record = store.record(TABLE)
    assert was is not None and record is not None  # it has just been read
    made = store.write(MOVING, shard, rows, IMAGES, partial(_notes, store, shard))
    own = made_as if made.sha256 != made_as else ""
    now = Written(
        bytes=made.bytes, sha256=made.sha256, footer=made.footer, rows=made.rows,
        made_from=record.shards[shard].made_from, moved=moved, made_as=own,
        until_bytes=was.bytes, until_sha256=was.sha256,
    )  # fmt: skip
    store.write_record(record.model_copy(update={"shards": {**record.shards, shard: now}}))
    store.move(f"{MOVING}/{shard}.parquet", f"{TABLE}/{shard}.parquet")


def free(store: Store, shard: str, file: str) -> int:
    """Remove the images from a shard that its file in the release has; returns how many.

    Raises:
        AigiError: the release has other images under these ids.
    """
    whole = store.read(TABLE, shard)
    there = store.read("release", file, ["image_id", "image"])
    at = pc.index_in(whole["image_id"], value_set=there["image_id"].combine_chunks())
    mine = pc.is_valid(at)
    count = pc.sum(mine).as_py() or 0
    if count != there.num_rows:
        raise AigiError(
            f"{store.path('release', file)}.parquet: {there.num_rows:,} rows, and "
            f"{store.path(TABLE, shard)}.parquet has {count:,} of their images. {store.remedy}"
        )
    if (
        whole.filter(mine)["image"].combine_chunks()
        != there["image"].take(at.filter(mine)).combine_chunks()
    ):
        raise AigiError(
            f"{store.path('release', file)}.parquet: not the images of {store.path(TABLE, shard)}."
            f"parquet. {store.remedy}"
        )
    column = whole.column_names.index("image")
    empty = pa.nulls(whole.num_rows, whole.schema.field(column).type)
    rest = whole.set_column(
        column, whole.schema.field(column), pc.if_else(mine, empty, whole["image"].combine_chunks())
    )
    _replace(store, shard, rest, file, store.sha256_of(TABLE, shard))
    return count


def restore(store: Store, shard: str) -> None:
    """Put the images of a shard back into it, before the release gets another file.

    Raises:
        Damaged: the release has not all of them any more.
    """
    known = store.written(TABLE, shard)
    if known is None or lacking(store, TABLE, shard) is None:
        return
    whole = store.read(TABLE, shard)
    _replace(store, shard, whole, known.moved, known.made_as)
