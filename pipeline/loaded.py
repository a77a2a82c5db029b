"""What workers loaded in; whether all shards of a table were made with the same weights, out.

A worker that runs models has `loaded`: digests of their weights by component, as
`pipeline.models.weights.digest` defines them. They are in the footer of each shard, so they are
recorded beside every row and change no schema. `aigi run` compares them before it adds shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline import AigiError
from pipeline.parquet import NOTE
from pipeline.store import Store

WEIGHTS = f"{NOTE}weights"
"""In the footer of a shard: a JSON object of digests by component."""


def notes(worker: object) -> Mapping[str, str]:
    """What a worker's shards have in their footers: nothing, if it has not loaded weights."""
    return as_notes(getattr(worker, "loaded", None) or {})


def as_notes(found: Mapping[str, str]) -> Mapping[str, str]:
    """The same of digests by component."""
    return {WEIGHTS: json.dumps(dict(found), sort_keys=True)} if found else {}


def of_shard(store: Store, table: str, shard: str) -> dict[str, str]:
    """Digests by component of the weights that made a shard; empty: none, or not recorded.

    Raises:
        AigiError: its footer is damaged.
    """
    metadata = store.metadata(table, shard)
    text = ((metadata and metadata.metadata) or {}).get(WEIGHTS.encode(), b"{}")
    try:
        found = json.loads(text)
        return {str(part): str(sha256) for part, sha256 in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise AigiError(
            f"{store.path(table, shard)}.parquet: its footer has damaged weights "
            f"({type(error).__name__}). {store.remedy}"
        ) from error


class Weights:
    """The weights that made the shards of a table: one digest a component.

    Args:
        shards: those that there are.
        inputs: tables that it is made from; what both name has to be the same, as the model that
            made vectors and the one that compares them.

    Raises:
        AigiError: two shards were made with different weights.
    """

    def __init__(
        self, table: str, store: Store, shards: Iterable[str], inputs: Iterable[str] = ()
    ) -> None:
        self.table, self.store = table, store
        self._first: dict[str, tuple[str, str]] = {}  # digest and shard by component
        # All shards of an input agree: they were compared when it was made.
        places = [(name, shard) for name in inputs for shard in list(store.shards(name))[:1]]
        places += [(table, shard) for shard in shards]
        with ThreadPoolExecutor(16) as pool:  # on an object store each footer is a round trip
            found = list(pool.map(lambda place: of_shard(store, *place), places))
        for place, weights in zip(places, found, strict=True):
            self._compare("/".join(place), weights)

    def add(self, shard: str, weights: str) -> None:
        """Compare a shard that was just made; it is removed if others have other weights.

        Args:
            weights: as in its footer; empty: no model.

        Raises:
            AigiError: its weights are others.
        """
        try:
            self._compare(f"{self.table}/{shard}", json.loads(weights or "{}"))
        except AigiError:
            self.store.remove(self.table, f"{shard}.parquet")
            raise

    def _compare(self, shard: str, found: Mapping[str, str]) -> None:
        for part, sha256 in found.items():
            known, first = self._first.setdefault(part, (sha256, shard))
            if known != sha256:
                raise AigiError(
                    f"{self.table}: {part}: {shard} was made with weights of sha256 "
                    f"{sha256[:12]}…, {first} with {known[:12]}…. Give every machine the same "
                    "weights and run again; to change to others, first delete the shards in "
                    f"{self.store.url} that have the old ones."
                )
