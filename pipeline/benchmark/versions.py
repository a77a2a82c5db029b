"""Shards of a table in; which of them codecs of today's versions made, and which come anew, out.

Settings of a codec are in the names of its shards, its version is in their rows. So what was
measured is found where the codec is not at hand, and made anew where another version is: one
curve never mixes two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline import AigiError
from pipeline.benchmark.settings import Benchmark
from pipeline.codecs.codec import Here
from pipeline.codecs.command import UNKNOWN, Missing
from pipeline.codecs.table import row_of
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store


def here_of(benchmark: Benchmark, compute: Compute) -> Here:
    """Where this run finds programs, and the device of its networks."""
    return Here(benchmark.programs, compute.device)


def at_hand(benchmark: Benchmark, compute: Compute) -> tuple[dict[str, str], dict[str, str]]:
    """By label: versions of the codecs that this machine can run; and what the others lack.

    Raises:
        AigiError: a codec or one of its settings does not exist.
    """
    versions, without = {}, {}
    for given in benchmark.codecs:
        try:
            versions[given.label] = row_of(given).version(given, here_of(benchmark, compute))
        except Missing as missing:
            without[given.label] = str(missing)
    return versions, without


def agreed(label: str, version: str, versions: Mapping[str, str]) -> str:
    """The version of a codec where a worker runs, which must be that of the driver.

    Args:
        versions: by label, those that the driver found; empty: any will do.

    Raises:
        Missing: it is another one.
    """
    if version != versions.get(label, version):
        raise Missing(
            f"{label}: a worker has {version}, but this run measures with {versions[label]}. "
            "Install the same version on every machine."
        )
    return version


@dataclass(frozen=True)
class Shards:
    """What a workflow asks of a table of measurements.

    Attributes:
        labels: the codec of every shard.
        versions: of the codecs that can run here.
    """

    table: str
    labels: Mapping[str, str]
    versions: Mapping[str, str]

    def names(self, store: Store) -> list[str]:
        """Shards to make or to keep: of a codec that cannot go on here, those made before."""
        present = store.shards(self.table)
        unsure = [
            name
            for name, label in self.labels.items()
            if name in present and UNKNOWN in self.versions.get(label, UNKNOWN)
        ]
        rows = store.rows_of(self.table, unsure)
        whole = [name for name in unsure if rows[name] is not None]
        made = self._made(store, whole)
        return [
            name
            for name, label in self.labels.items()
            if name in whole or not self._kept(label, made.get(label, {}))
        ]

    def outdated(self, store: Store, names: Iterable[str], progress: Progress) -> set[str]:
        """Shards that another version of their codec made, and which this machine can make anew.

        Those of a codec of which no image could be coded have no version, and go with the others.

        Args:
            names: of whole shards.

        Raises:
            AigiError: those of a codec that cannot run here are of several versions.
        """
        found: set[str] = set()
        for label, mine in self._made(store, names).items():
            seen: set[str] = set().union(*mine.values())
            now = self.versions.get(label)
            others = ", ".join(sorted(seen - {now}))
            if self._kept(label, mine):
                if len(seen) > 1:
                    raise AigiError(
                        f"{self.table}: {label} was measured with several versions ({others}), and "
                        "none of them is at hand to measure all of it. Run on a machine that has "
                        "one, or take the codec out of benchmark.codecs."
                    )
                if now is not None:
                    progress.say(
                        f"{self.table}: {label}: now {now}; kept as measured with {others}"
                    )
            elif others:
                progress.say(f"{self.table}: {label}: measured with {others}, now {now}: made anew")
                found |= {name for name, versions in mine.items() if versions != {now}}
        return found

    def possible(self, names: Sequence[str]) -> list[str]:
        """Those of the shards that are asked for, and whose codec can run here."""
        return [name for name in names if self.labels.get(name) in self.versions]

    def _kept(self, label: str, made: Mapping[str, set[str]]) -> bool:
        """Whether shards of a codec stay as they are, and no other is made."""
        now = self.versions.get(label)
        return now is None or (UNKNOWN in now and bool(set().union(*made.values()) - {now}))

    def _made(self, store: Store, names: Iterable[str]) -> dict[str, dict[str, set[str]]]:
        """By codec and shard, the versions that its rows name."""

        def versions(name: str) -> set[str]:
            column = store.read(self.table, name, ["codec_version"])["codec_version"]
            return set(column.drop_null().to_pylist())

        found: dict[str, dict[str, set[str]]] = {}
        mine = [name for name in names if name in self.labels]
        with ThreadPoolExecutor(16) as pool:
            for name, seen in zip(mine, pool.map(versions, mine), strict=True):
                found.setdefault(self.labels[name], {})[name] = seen
        return found
