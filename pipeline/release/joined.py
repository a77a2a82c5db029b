"""A published release and some sources of another one in, one release of both out.

So several machines or teams build one dataset. All that is stated of the whole is derived again
from the rows, plans and manifests of both; what holds of one run alone is listed for it
(`pipeline.makers`). Nothing is taken from one side where they differ: that is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError, __version__, gate
from pipeline.makers import OWN, makers_of, only
from pipeline.manifest import (
    CARD,
    ENTRIES,
    MANIFEST,
    PLAN_FILE,
    REMEDY,
    DocumentRecord,
    FileRecord,
    checked,
    columns_of,
    write_manifest,
)
from pipeline.pixels import RGB
from pipeline.plan.copied import schema as plan_schema
from pipeline.plan.copied import shards_in
from pipeline.plan.rounds import summary_of
from pipeline.plan.specification import Dataset
from pipeline.release.changes import How, Parcel, There
from pipeline.release.counts import COLUMNS, Counts, count_rows, listed_ids
from pipeline.release.croissant import CROISSANT, croissant
from pipeline.release.front_matter import TAGS, configs_of
from pipeline.release.joint_card import Joint, readme, recipe_of
from pipeline.release.sheet import SHEET, draw
from pipeline.software import git_commit
from pipeline.store import Store
from pipeline.tables import OPTIONS
from pipeline.threads import ahead, workers


@dataclass(frozen=True)
class Side:
    """One of the releases that are put together.

    Attributes:
        sources: of its specification, those that are taken.
    """

    store: Store
    manifest: Mapping[str, Any]
    sources: tuple[str, ...]

    @property
    def files(self) -> list[FileRecord]:
        """Its files of these sources."""
        return [file for file in self.manifest["files"] if file["config"] in self.sources]

    def cells(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What is given for each SOURCE/SPLIT, of these sources."""
        return {cell: each for cell, each in found.items() if cell.split("/")[0] in self.sources}

    def has_options(self, config: str) -> bool:
        """Whether files of a config have the column of options."""
        return any(
            line.startswith(f"{OPTIONS.name}:") for line in columns_of(self.manifest, config)
        )


def _dataset(stated: Mapping[str, Any], where: str) -> Dataset:
    """The specification of a manifest, checked; logos are what their names say."""
    context = {"base": None, "recorded": True}
    return gate.check(Dataset, stated, where, REMEDY, "specification", context)


def sides(
    store: Store, manifest: Mapping[str, Any], names: Sequence[str], there: There
) -> list[Side]:
    """What is published and stays, and what is added to it.

    Args:
        store: files of the release that sources are taken from.
        names: of these sources.

    Raises:
        AigiError: it has no such source, or what is published is no whole release.
    """
    known = list(_dataset(manifest["specification"], store.path(MANIFEST)).sources)
    for name in names:
        if name not in known:
            raise AigiError(
                f"--source {name}: {store.url} has no source of this name; it has "
                + ", ".join(known)
            )
        if not any(file["config"] == name for file in manifest["files"]):
            raise AigiError(
                f"--source {name}: {store.url} has no image of this source, so there is nothing "
                "to publish. Its card lists why images were dropped."
            )
    mine = Side(store, manifest, tuple(name for name in known if name in names))
    if there.before is None or there.store is None:
        return [mine]
    where = there.store.path(MANIFEST)
    before = checked(dict(there.before), where, ENTRIES, "Publish a whole release there first.")
    _dataset(before["specification"], where)
    stays = tuple(name for name in before["specification"]["sources"] if name not in names)
    return [Side(there.store, before, stays), mine]


# --- What is one for all ---------------------------------------------------------------------


def _specification(found: Sequence[Side], how: How, url: str) -> dict[str, Any]:
    """The specification of all sources: published ones stay at their place, new ones come behind.

    Raises:
        AigiError: both state something else of the dataset as a whole.
    """
    whole = [
        {name: each for name, each in side.manifest["specification"].items() if name != "sources"}
        for side in found
    ]
    first, last = whole[0], whole[-1]
    if first["name"] != last["name"]:
        raise AigiError(
            f"{url}: nothing was sent: it is the dataset {_short(first['name'])}, and this is "
            f"{_short(last['name'])}. Sources are added to a dataset of the same name: correct "
            "`name` in the specification, or give another --to."
        )
    differing = [name for name in {**first, **last} if first.get(name) != last.get(name)]
    if differing and not how.replace:
        lines = "; ".join(
            f"{name}: published {_short(first.get(name))}, here {_short(last.get(name))}"
            for name in differing
        )
        raise AigiError(
            f"{url}: nothing was sent: the specifications say different things of the dataset: "
            f"{lines}. Make them equal, or take what is stated here: --replace."
        )
    specs = {
        name: side.manifest["specification"]["sources"][name]
        for side in found
        for name in side.sources
    }
    order = dict.fromkeys(
        name
        for side in found
        for name in side.manifest["specification"]["sources"]
        if name in specs
    )
    return {**last, "sources": {name: specs[name] for name in order}}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _common(maker: Mapping[str, Any]) -> dict[str, Any]:
    """All that a maker states, but for which sources it made, and how many by which version."""
    workflow = dict(maker["workflow"])
    workflow.pop("sources", None)
    workflow["plan"] = {**(workflow.get("plan") or {}), "sources": None}
    return {**maker, "sources": None, "version": None, "counted": None, "workflow": workflow}


def _makers(found: Sequence[Side], order: Sequence[str]) -> list[dict[str, Any]]:
    """The makers of all sources; sources that the same run made have one, however they came."""
    parts: list[dict[str, Any]] = []
    for side in found:
        for maker in makers_of(side.manifest):
            if not (
                mine := [
                    name for name in order if name in maker["sources"] and name in side.sources
                ]
            ):
                continue
            part = maker if mine == maker["sources"] else only(maker, mine)
            same = next((one for one in parts if _common(one) == _common(part)), None)
            if same is None:
                parts.append(part)
                continue
            names = [name for name in order if name in (*same["sources"], *mine)]
            settings = {
                **same["workflow"].get("sources", {}),
                **part["workflow"].get("sources", {}),
            }
            workflow = {**same["workflow"], "sources": settings}
            parts[parts.index(same)] = only({**part, "workflow": workflow}, names)
    return sorted(parts, key=lambda part: order.index(part["sources"][0]))


def _own(makers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of the manifest that hold of one run, or are what all makers have in common."""
    if len(makers) == 1:
        return {name: makers[0][name] for name in (*OWN, "counted") if name in makers[0]}
    versions = [set(maker["versions"].items()) for maker in makers]
    captions = [line for maker in makers for line in maker["captions"]]
    return {
        "workflow": {},
        "captions": [line for n, line in enumerate(captions) if line not in captions[:n]],
        "tables": {},
        "aigi": {"version": __version__, "commit": git_commit()},
        "versions": dict(sorted(set.intersection(*versions))),
        "makers": list(makers),
    }


# --- Plans -------------------------------------------------------------------------------------


def _plan(
    found: Sequence[Side], documents: Store, folder: str
) -> tuple[dict[str, Any], DocumentRecord]:
    """Write the plan of all sources, its shards by name; return what the manifest says of it.

    Raises:
        AigiError: one has no plan, or it cannot be read.
    """
    shards: list[tuple[str, int, int, list[str]]] = []
    options = False
    copies = []
    for number, side in enumerate(found):
        copies.append(_copied_plan(side, os.path.join(folder, f"plan-{number}.arrow")))
        with open(copies[-1], "rb") as file:
            for place, table in enumerate(shards_in(side.store.path(PLAN_FILE), file)):
                options = options or OPTIONS.name in table.column_names
                (source, *others) = pc.unique(table["source"]).to_pylist()
                if others:
                    where = side.store.path(PLAN_FILE)
                    raise gate.refused(where, f"shard {place}", "rows of two sources", REMEDY)
                if source in side.sources:
                    ids = table["image_id"].to_pylist()
                    shards.append((table["shard"][0].as_py(), number, place, ids))
    shards.sort(key=lambda shard: shard[0])
    schema = plan_schema(options)
    with pa.memory_map(copies[0]) as first, pa.memory_map(copies[-1]) as last:
        readers = [pa.ipc.open_file(file) for file in (first, last)]

        def tables() -> Iterator[pa.Table]:
            for _, number, place, _ in shards:
                batch = pa.Table.from_batches([readers[number].get_batch(place)])
                absent = pa.nulls(batch.num_rows, pa.string())
                have = batch.column_names
                columns = [batch[name] if name in have else absent for name in schema.names]
                yield pa.table(columns, schema=schema)

        size, sha256 = documents.write_arrow(tables(), schema, PLAN_FILE)
    rounds: list[dict[str, Any]] = []
    for side in found:
        for number, more in enumerate(side.manifest["plan"]["rounds"]):
            if number == len(rounds):
                rounds.append({})
            rounds[number] |= side.cells(more)
    while rounds and not rounds[-1]:
        rounds.pop()
    summary = summary_of((name, ids) for name, _, _, ids in shards)
    return {**summary, "rounds": rounds}, {"path": PLAN_FILE, "bytes": size, "sha256": sha256}


def _copied_plan(side: Side, to: str) -> str:
    """The plan of a release as a file of this machine, which is what its manifest lists."""
    stated = [one["sha256"] for one in side.manifest["documents"] if one["path"] == PLAN_FILE]
    where = side.store.path(PLAN_FILE)
    if not stated:
        raise AigiError(
            f"{side.store.url}: it has no {PLAN_FILE}, as releases of earlier versions of aigi, so "
            "nothing can be put together with it. Publish a whole release there first, made anew."
        )
    digest = hashlib.sha256()
    with side.store.fs.open(where, "rb") as source, open(to, "wb") as file:
        while block := source.read(1 << 22):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != stated[0]:
        raise AigiError(f"{where}: not what its manifest lists. Publish its release again.")
    return to


# --- Rows --------------------------------------------------------------------------------------


class _Rows:
    """The rows of all sides: narrow columns, and single images."""

    def __init__(self, found: Sequence[Side], makers: Sequence[Mapping[str, Any]]) -> None:
        self._side = {
            file["path"].removesuffix(".parquet"): side for side in found for file in side.files
        }
        self.prompts: dict[tuple[str, str], list[pa.Array]] = defaultdict(list)
        self._maker = {name: n for n, maker in enumerate(makers) for name in maker["sources"]}
        self.digests = [hashlib.sha256() for _ in makers]

    def read(self, shard: str) -> pa.Table:
        """A shard with the columns that are counted."""
        side = self._side[shard]
        more = (OPTIONS.name,) if side.has_options(shard.split("/")[0]) else ()
        return side.store.read("", shard, [*COLUMNS, *more])

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """All shards; which prompts each source and split has is kept."""
        shards = list(self._side)
        with workers(8, "joined") as pool:
            for shard, rows in zip(shards, ahead(shards, self.read, pool, 16), strict=True):
                source, rest = shard.split("/")
                if pc.unique(rows["source"]).to_pylist() not in ([source], []):
                    where = self._side[shard].store.path(f"{shard}.parquet")
                    raise gate.refused(where, "source", f"other than {source}", REMEDY)
                self.prompts[source, rest.split("-")[0]].append(pc.unique(rows["prompt_id"]))
                self.digests[self._maker[source]].update(listed_ids(rows))
                yield shard, rows

    def images(
        self, table: str, shard: str, rows: Any, columns: Sequence[str] = ()
    ) -> Iterator[tuple[int, RGB, dict[str, Any]]]:
        """As `Store.images`."""
        yield from self._side[shard].store.images("", shard, rows, columns)

    def refuse_prompts_in_two_splits(self, url: str) -> None:
        """Refuse to publish a prompt in two splits, whatever the sources."""
        found = {
            key: pc.unique(pa.chunked_array(parts, pa.string()))
            for key, parts in self.prompts.items()
        }
        for one, mine in found.items():
            for other, theirs in found.items():
                if one >= other or one[1] == other[1]:
                    continue
                shared = mine.filter(pc.is_in(mine, value_set=theirs))
                if len(shared):
                    raise AigiError(
                        f"{url}: nothing was sent: prompt {shared[0]} is in {one[1]} of {one[0]} "
                        f"and in {other[1]} of {other[0]}"
                        + (f", and {len(shared) - 1:,} more are" if len(shared) > 1 else "")
                        + ". A prompt has one split in a dataset: make both with the same `split` "
                        "shares, and import no image with another split than its prompt has."
                    )


# --- The whole ---------------------------------------------------------------------------------


def _planned(documents: Store) -> Counter[str]:
    planned: Counter[str] = Counter()
    with documents.fs.open(documents.path(PLAN_FILE), "rb") as file:
        for shard in shards_in(PLAN_FILE, file):
            planned[shard["source"][0].as_py()] += shard.num_rows
    return planned


def _documents(
    joint: Joint, counts: Counts, rows: _Rows, having: Sequence[str], to: Store
) -> list[DocumentRecord]:
    """Write card, metadata and sheet, and say what they are."""
    samples = {config: counts.samples[config] for config in configs_of(joint.dataset, joint.files)}
    sheet, shown = draw(rows, samples)
    metadata = croissant(
        joint.dataset, joint.version, joint.files, list(TAGS), counts.formats, having
    )
    documents = {
        CARD: readme(joint, counts, shown).encode(),
        CROISSANT: json.dumps(metadata, indent=1, ensure_ascii=False).encode() + b"\n",
        SHEET: sheet,
    }
    found: list[DocumentRecord] = []
    for path, data in documents.items():
        to.write_bytes(data, path)
        found.append({"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return found


def _schemas(found: Sequence[Side], order: Sequence[str]) -> dict[str, Any]:
    """The columns of all files, and of the configs whose files have others."""
    of = {name: columns_of(side.manifest, name) for side in found for name in side.sources}
    usual = max((of[name] for name in order), key=len)
    others = {name: of[name] for name in order if of[name] != usual}
    return {"schema": usual, **({"schemas": others} if others else {})}


def joined(found: Sequence[Side], version: str, there: There, how: How, folder: str) -> Parcel:
    """The release of all sides together.

    Args:
        found: as `sides` returns it.
        version: of the release that it is.
        folder: an empty one, for its documents.

    Raises:
        AigiError: the sides contradict each other, or a prompt is in two splits; a file of one is
            missing or damaged.
    """
    stated = _specification(found, how, there.url)
    order = list(stated["sources"])
    dataset = _dataset(stated, there.url)
    documents = Store(folder)
    by_config = {name: [f for s in found for f in s.files if f["config"] == name] for name in order}
    files = [file for name in order for file in by_config[name]]
    how.say(f"puts together {', '.join(order)}: reads the columns of {len(files):,} files")
    for side in found:
        for maker in makers_of(side.manifest):
            recipe_of(maker, side.store.path(MANIFEST))
    plan, plan_record = _plan(found, documents, _scratch_below(folder))
    makers = _makers(found, order)
    rows = _Rows(found, makers)
    counts = count_rows(rows.tables(), _planned(documents))
    rows.refuse_prompts_in_two_splits(there.url)
    wanted = {
        cell: each for side in found for cell, each in side.cells(side.manifest["wanted"]).items()
    }
    hashes = [digest.hexdigest() for digest in rows.digests]
    joint = Joint(dataset, version, files, makers, wanted, hashes)
    having = [name for side in found for name in side.sources if side.has_options(name)]
    manifest = {
        "name": stated["name"],
        "version": version,
        "files": files,
        "documents": [
            *_documents(joint, counts, rows, having, documents),
            plan_record,
        ],
        **_schemas(found, order),
        "specification": stated,
        "plan": plan,
        **_own(makers),
        "wanted": wanted,
    }
    write_manifest(documents, manifest, MANIFEST)
    kept = frozenset(f["path"] for side in found[:-1] for f in side.files)
    return Parcel(manifest, found[-1].store, documents, kept)


def _scratch_below(folder: str) -> str:
    """A folder for files that are no documents."""
    place = os.path.join(folder, "plans")
    os.makedirs(place, exist_ok=True)
    return place
