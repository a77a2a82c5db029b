"""Ids of planned images in, the same images out, where shards, runs or releases have them already.

An id names everything that decides an image's pixels. What is taken is compared: pixels with their
hash, and the facts in a row of a release with those of the plan. Imported images are not taken:
they are read again from their files.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError, held
from pipeline.images.diffusion.source import DECIDING
from pipeline.manifest import find_release
from pipeline.marks.names import embed
from pipeline.pixels import Container, contained, decode_threads, named, pixels_sha256
from pipeline.plan.specification import Dataset, ZooSpec
from pipeline.progress import Progress
from pipeline.shown import public_url
from pipeline.stage import Taken
from pipeline.store import Store
from pipeline.tables import IMAGES, PLAN
from pipeline.threads import ahead, workers

TABLE = "images"
NOT_MADE = "not made yet"
_AHEAD = 32
_KEPT = tuple(name for name in IMAGES.names if name not in ("image_id", "error"))
_FACTS = tuple(name for name in PLAN.names if name not in ("pair_id", "width", "height"))
"""Columns of the plan that a release has as they were planned."""


@dataclass(frozen=True)
class Place:
    """Where images are.

    Attributes:
        url: of a run, or of the files of a release.
        table: the folder of their shards; empty: the files of a release, by its manifest.
        shards: their names.
        said: as the user named it; empty: it is this run.
    """

    url: str
    table: str
    shards: tuple[str, ...]
    said: str = ""

    def open(self) -> Store:
        """Its files; those of a release are compared with its manifest."""
        return _opened(self.url, bool(self.table))


@lru_cache(maxsize=16)
def _opened(url: str, run: bool) -> Store:
    if run:
        return Store(url)
    found = find_release(url)
    assert found is not None  # it was one when the run began
    return found[0]


@dataclass(frozen=True)
class Wish:
    """How this run's images are to be.

    Attributes:
        reuse: runs and releases to take them from, beside what this run has set aside.
        container: what they are stored in.
        how: by source, what `how` says of an image that this run makes.
    """

    dataset: Dataset
    reuse: tuple[str, ...]
    container: Container
    how: Mapping[str, str]


@dataclass
class _Hits:
    """Of one shard: numbers of rows, and where the image of each is."""

    rows: list[int] = field(default_factory=list)
    at: list[tuple[int, int, int]] = field(default_factory=list)  # place, shard, row
    unmarked: list[bool] = field(default_factory=list)  # the image is there without its mark


class Images:
    """Images that are there already, for the shards that need them.

    Args:
        places: where to look, the first ones first.
        hits: what was found, by shard.
        needs: which shards need rows of each shard of this run that is set aside.
        wish: how images are to be.
        all: nothing has to be made.
    """

    def __init__(
        self,
        places: Sequence[Place],
        hits: Mapping[str, _Hits],
        needs: Mapping[str, set[str]],
        wish: Wish,
        all: bool,
    ) -> None:
        self.places, self.hits, self.needs = tuple(places), dict(hits), dict(needs)
        self.wish, self.all = wish, all

    def __call__(self, store: Store, name: str, rows: pa.Table) -> Taken | None:
        """The images of a shard of the plan that are there.

        Raises:
            AigiError: a file is damaged, or has another image than its row or the plan states.
        """
        hits = self.hits.get(name)
        if hits is None:
            return None
        plan = rows.to_pylist()
        found: list[dict[str, Any]] = [
            {"image_id": row["image_id"], "error": NOT_MADE} for row in plan
        ]
        wanted: dict[tuple[int, int], dict[int, list[tuple[int, bool]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for number, (place, shard, row), unmarked in zip(
            hits.rows, hits.at, hits.unmarked, strict=True
        ):
            wanted[place, shard][row].append((number, unmarked))
        with workers(decode_threads(None), "take") as pool:
            for (place, shard), mine in wanted.items():
                read = self._read(store, self.places[place], shard, mine, plan)
                for number, taken in ahead(read, partial(self._taken, plan), pool, _AHEAD):
                    found[number] = taken
        weights: dict[str, str] = {}
        for number in hits.rows:
            weights |= self._weights(plan[number], found[number])
        return Taken(pa.Table.from_pylist(found, schema=IMAGES), weights)

    def _read(
        self,
        here: Store,
        place: Place,
        shard: int,
        mine: Mapping[int, list[tuple[int, bool]]],
        plan: list[dict[str, Any]],
    ) -> Iterator[tuple[Store, str, str, int, dict[str, Any], int, bool]]:
        store, name = place.open() if place.said else here, place.shards[shard]
        columns = None if not place.table else list(IMAGES.names)
        for row, values in store.rows_at(place.table, name, mine, columns):
            for number, unmarked in mine[row]:
                planned = plan[number]
                if not place.table:
                    _compare(store, name, row, values, planned, unmarked)
                yield store, place.table, name, row, values, number, unmarked

    def _taken(
        self,
        plan: list[dict[str, Any]],
        given: tuple[Store, str, str, int, dict[str, Any], int, bool],
    ) -> tuple[int, dict[str, Any]]:
        store, table, name, row, values, number, unmarked = given
        planned = plan[number]
        rgb = store.pixels(table, name, row, values)
        made = {"image_id": planned["image_id"], "error": None}
        made |= {column: values.get(column) for column in _KEPT}
        if planned["width"] is not None and rgb.shape[:2] != (planned["height"], planned["width"]):
            raise store.damaged(
                store.path(table, f"{name}.parquet"),
                f"row {row + 1} ({values['image_id']}): {rgb.shape[1]}x{rgb.shape[0]} pixels, "
                f"and {planned['width']}x{planned['height']} are planned",
            )
        if unmarked:
            rgb = embed(rgb, planned["watermark"])
            made["pixels_sha256"] = pixels_sha256(rgb)
        mine = values["original_sha256"] is None  # an endpoint's are stored as they came
        if unmarked or (mine and not values["image"]["path"].endswith(self.wish.container.format)):
            made["image"] = named(planned["image_id"], contained(rgb, self.wish.container))
        return number, made

    def _weights(self, planned: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
        """Digests of what made a taken image, as its `versions` have them."""
        of = planned["source"]
        spec = self.wish.dataset.sources[of]
        if isinstance(spec, ZooSpec):
            of = f"{of}.{spec.number_of(planned):04d}"
        try:
            weights = json.loads(row["versions"])["weights"]
            return {f"{of}.{part}": str(sha256) for part, sha256 in weights.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def taken(self, store: Store, name: str) -> None:
        """A shard is made; shards that were set aside, and that no other one needs, are removed."""
        done = []
        for shard, names in self.needs.items():
            names.discard(name)
            if not names:
                done.append(shard)
        for shard in done:
            del self.needs[shard]
        held.release(store, TABLE, done)

    def end(self, store: Store, progress: Progress, replace: bool) -> None:
        """All shards are made: report images that are not planned any more, or remove them."""
        planned = store.read_all("plan", ["image_id"])["image_id"]
        left: Counter[str] = Counter()
        for shard in held.shards(store, TABLE):
            ids = _there(store, held.folder(TABLE), shard, False)["image_id"]
            if lost := len(ids) - (pc.sum(pc.is_in(ids, value_set=planned)).as_py() or 0):
                left[shard] = lost
        held.release(
            store, TABLE, [n for n in held.shards(store, TABLE) if replace or n not in left]
        )
        if left and not replace:
            progress.say(
                f"images: {left.total():,} images that were made before are not planned now; they "
                f"are kept in {store.path(held.folder(TABLE))}. Plan them again to have them back; "
                "to remove them, run the workflow with --replace"
            )


def how(settings: Mapping[str, Any]) -> str:
    """Those settings of a source that decide pixels and that no id names; as JSON."""
    return json.dumps({key: settings[key] for key in DECIDING if key in settings}, sort_keys=True)


def _said(versions: str | None) -> str:
    """The same as a row says it."""
    try:
        return how(json.loads(versions or "{}").get("settings") or {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "not known"


def _compare(
    store: Store,
    name: str,
    row: int,
    values: Mapping[str, Any],
    planned: Mapping[str, Any],
    unmarked: bool,
) -> None:
    """Refuse a row of a release that says other facts than the plan."""
    for column in _FACTS:
        if column not in values or (unmarked and column in ("image_id", "watermark")):
            continue
        if values[column] != planned[column]:
            raise AigiError(
                f"{store.path('', f'{name}.parquet')}: row {row + 1} ({values['image_id']}): "
                f"{column} {values[column]!r}, and the same id is planned with "
                f"{planned[column]!r}. It is no release to take images from: take it out of "
                "plan.reuse."
            )


def _there(store: Store, table: str, shard: str, release: bool) -> pa.Table:
    """Ids of the images of a shard, each with its row; failed ones are left out."""
    columns = ["image_id", "versions"] + ([] if release else ["error", "image.path"])
    found = store.read(table, shard, columns)
    found = found.append_column("row", pa.array(range(found.num_rows), pa.int32()))
    if not release:
        good = pc.is_null(found["error"])
        if table != TABLE:  # without a record, nobody knows which file of the release has it
            good = pc.and_(good, pc.is_valid(found["image"]))
        found = found.filter(good)
    return found.select(["image_id", "row", "versions"])


def _places(store: Store, reuse: Sequence[str]) -> list[Place]:
    """This run's shards that were set aside, then what the user names.

    Raises:
        AigiError: it is neither a run nor a release.
    """
    found = []
    if mine := held.shards(store, TABLE):
        found.append(Place(store.url, held.folder(TABLE), tuple(mine)))
    for url in reuse:
        said = public_url(url)
        run = Store(url)
        if shards := list(run.shards(TABLE)):
            found.append(Place(url, TABLE, tuple(shards), said))
            continue
        opened = find_release(url)
        if opened is None:
            raise AigiError(
                f"plan.reuse: {said}: neither a run with images nor a release. Give a run "
                "directory, a release folder, or hf://datasets/ORG/NAME@REVISION"
            )
        files = (record["path"].removesuffix(".parquet") for record in opened[1]["files"])
        found.append(Place(opened[0].url, "", tuple(files), said))
    return found


def find(
    wish: Wish,
    store: Store,
    names: Sequence[str],
    progress: Progress,
) -> Images | None:
    """What is there of the images of these shards of the plan; None: there is no place to look.

    Raises:
        AigiError: a place is neither a run nor a release, cannot be reached, or is damaged.
    """
    _opened.cache_clear()
    places = _places(store, wish.reuse)
    if not places:
        return None
    columns = ["image_id", "pair_id", "watermark", "path", "source"]
    plan = {name: store.read("plan", name, columns) for name in names}
    wanted = [table["image_id"] for table in plan.values()]
    wanted += [table["pair_id"] for table in plan.values()]
    ids = pa.chunked_array([chunk for column in wanted for chunk in column.chunks], pa.string())
    index = _index(store, places, pc.unique(ids))
    known = index["image_id"].combine_chunks()
    hits: dict[str, _Hits] = {}
    needs: defaultdict[str, set[str]] = defaultdict(set)
    counts: Counter[int] = Counter()
    rows = others = 0
    for name, table in plan.items():
        rows += table.num_rows
        found, other = _hits(table, index, known, wish)
        others += other
        if not found.rows:
            continue
        hits[name] = found
        for place, shard, _ in found.at:
            counts[place] += 1
            if not places[place].said:
                needs[places[place].shards[shard]].add(name)
    for number, where in enumerate(places):
        if names and (counts[number] or where.said):
            of = where.said or "what this run has made"
            progress.say(f"images: {counts[number]:,} of {rows:,} to make are taken from {of}")
    if others:
        progress.say(
            f"images: {others:,} more are there, made with other settings of "
            f"{', '.join(DECIDING)}; they are made again"
        )
    return Images(places, hits, needs, wish, bool(names) and counts.total() == rows)


def _index(store: Store, places: Sequence[Place], wanted: pa.Array) -> pa.Table:
    """Place, shard and row of wanted images; of one that is in two places, the first."""

    def one(at: tuple[int, int]) -> pa.Table:
        place = places[at[0]]
        found = _there(opened[at[0]], place.table, place.shards[at[1]], not place.table)
        found = found.filter(pc.is_in(found["image_id"], value_set=wanted))
        made = found["versions"].combine_chunks().dictionary_encode()
        words = pa.array([_said(text) for text in made.dictionary.to_pylist()], pa.string())
        said = words.take(made.indices) if len(words) else pa.nulls(found.num_rows, pa.string())
        found = found.drop(["versions"]).append_column("how", said)
        for name, number in zip(("place", "shard"), at, strict=True):
            found = found.append_column(name, pa.array([number] * found.num_rows, pa.int32()))
        return found

    opened = [place.open() if place.said else store for place in places]
    where = [(i, j) for i, place in enumerate(places) for j in range(len(place.shards))]
    with ThreadPoolExecutor(16) as pool:
        return pa.concat_tables(pool.map(one, where))


def _hits(plan: pa.Table, index: pa.Table, known: pa.Array, wish: Wish) -> tuple[_Hits, int]:
    """Where the images of a shard of the plan are; of a marked one, else the one without mark.

    Returns: them, and how many are there that were made in another way.
    """
    own = pc.index_in(plan["image_id"], value_set=known).to_pylist()
    unmarked = pc.index_in(plan["pair_id"], value_set=known).to_pylist()
    found, others = _Hits(), 0
    more = (plan[name].to_pylist() for name in ("path", "watermark", "source"))
    facts = zip(own, unmarked, *more, strict=True)
    for number, (mine, other, path, mark, source) in enumerate(facts):
        bare = mine is None and mark != "none"
        at = other if bare else mine
        if at is None or path is not None:
            continue
        if index["how"][at].as_py() not in (None, wish.how.get(source, "{}")):
            others += 1
            continue
        found.rows.append(number)
        found.at.append(tuple(index[name][at].as_py() for name in ("place", "shard", "row")))
        found.unmarked.append(bare)
    return found, others
