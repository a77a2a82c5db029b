"""Shards that a run no longer has as they were; their files, for as long as rows may be taken."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.record import Written
from pipeline.store import Store

HELD = "_held"
"""In a run: shards that are made anew, or that nobody wants now, until their rows are taken."""


def folder(table: str) -> str:
    """Where such shards of a table are, as the name of a table."""
    return f"{HELD}/{table}"


def move(store: Store, table: str, shard: str, known: Written) -> None:
    """Move a shard there, under a name that no other content of it has had."""
    name = f"{shard}@{known.sha256[:16] or known.bytes}"
    store.move(f"{table}/{shard}.parquet", f"{folder(table)}/{name}.parquet")


def shards(store: Store, table: str) -> list[str]:
    """The names of those of a table."""
    return list(store.shards(folder(table)))


def release(store: Store, table: str, names: Iterable[str]) -> None:
    """Remove some whose rows are taken, or that may go."""
    for name in names:
        store.remove(folder(table), f"{name}.parquet")
    if not shards(store, table):
        store.remove(HELD, table)
        if not store.fs.exists(store.path(HELD)) or not store.fs.ls(store.path(HELD)):
            store.remove(HELD)
