"""Image shards with kept rows in, the release files that hold them out: by name, and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pipeline import AigiError, gate
from pipeline.gate import Checked, Number, Sha256, matching
from pipeline.store import Store

FILES = "_files.json"
REMEDY = "Delete the run's folder selection, and run the workflow again."
_Release = Annotated[
    str,
    matching(r"[a-z0-9][a-z0-9-]*/(train|validation|test)-[a-z0-9-]+", "a release file's name"),
]
_Shard = Annotated[str, matching("[a-z0-9][a-z0-9-]*", "the name of an image shard")]


class Counts(Checked):
    """Generations of a source and split, as `pipeline.selection.tally.Tally` counts them."""

    planned: Number
    kept: Number
    reasons: dict[str, Number]
    errors: dict[str, Number]


class _Files(Checked):
    files: dict[_Release, _Shard]
    sha256: Sha256
    tally: dict[str, Counts] | None = None


def release_names(
    files: Mapping[tuple[str, str], Sequence[str]], numbered: bool = False
) -> dict[str, str]:
    """The image shard of every release file, by the file's name: `sdxl/test-00000`.

    The name is that of the shard, so it stays when the dataset grows.

    Args:
        files: shards with kept rows, in order, by source and split.
        numbered: as releases of before: `sdxl/test-00000-of-00001`.
    """
    found = {}
    for (source, split), shards in files.items():
        for number, shard in enumerate(shards):
            name = shard.removeprefix(f"{source}-")
            if numbered:
                name = f"{split}-{number:05d}-of-{len(shards):05d}"
            found[f"{source}/{name}"] = shard
    return found


def record(store: Store, files: dict[str, str], sha256: str, tally: dict[str, Any]) -> None:
    """Record the image shard of every release file, a digest of the selection, and its tally."""
    store.write_json({"files": files, "sha256": sha256, "tally": tally}, "selection", FILES)


def counts_of(store: Store) -> dict[str, Counts] | None:
    """The tally of the selection by `source/split`; None where an earlier version made it.

    Raises:
        AigiError: its record is damaged.
    """
    found = _read(store)
    return None if found is None else found.tally


def _read(store: Store) -> _Files | None:
    # Each file of a release asks; with thousands, parsing would take longer than the work.
    stat = store.stat("selection", FILES)
    return None if stat is None else _parsed(store, stat)


@lru_cache(maxsize=2)
def _parsed(store: Store, stat: tuple[int, str]) -> _Files | None:
    found = store.read_json("selection", FILES, remedy=REMEDY)
    if found is None:
        return None
    return gate.check(_Files, found, store.path("selection", FILES), REMEDY)


def files_of(store: Store) -> dict[str, str]:
    """The image shard of every release file.

    Raises:
        AigiError: they are not recorded, or the record is damaged.
    """
    if (found := _read(store)) is None:
        raise AigiError(f"{store.path('selection', FILES)}: missing. {REMEDY}")
    return found.files


def digest_of(store: Store) -> str | None:
    """The digest of the selection; None without one.

    Raises:
        AigiError: its record is damaged.
    """
    found = _read(store)
    return None if found is None else found.sha256
