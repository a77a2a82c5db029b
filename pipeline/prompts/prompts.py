"""The `texts` table in, the `prompts` table and its rejects out: distinct, selected.

Memory grows with what is selected, not with the input: candidates are spread over buckets on disk
by a hash of their text, so equal texts meet in one bucket, and the buckets, read in order, give
the prompts in one fixed random order. `random` selection takes the first of that order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline import AigiError
from pipeline.decisions import read_decisions
from pipeline.files import scratch
from pipeline.models.clip import Embeddings
from pipeline.progress import Progress
from pipeline.prompts import filters, texts
from pipeline.prompts.captions import CaptionSource
from pipeline.prompts.choice import SPREAD, Chooser, PromptSelection
from pipeline.prompts.decided import Decided
from pipeline.prompts.filters import PromptFilters
from pipeline.prompts.meaning import SaidBefore
from pipeline.prompts.safety import LexiconScorer, SafetyScorer
from pipeline.prompts.scored import Scoring
from pipeline.prompts.spool import Spool
from pipeline.prompts.spread import SPREADS
from pipeline.prompts.text import SplitShares, split_of
from pipeline.prompts.texts import Origin, name_of, origins, recorded
from pipeline.prompts.tokens import CONTEXT, Reader, count_tokens
from pipeline.settings import Location, Settings, Share
from pipeline.stage import Build, Compute, Stage
from pipeline.store import Shard, Store
from pipeline.tables import PROMPTS, READERS, REJECTS


class Prompts(Settings):
    """Captions in, the `prompts` table out."""

    sources: tuple[CaptionSource, ...] = Field(
        min_length=1, description="where captions come from, one entry each"
    )
    safety: tuple[SafetyScorer, ...] = Field(
        (LexiconScorer(),), description="what scores how unsafe a text is, one entry each"
    )
    filters: PromptFilters = PromptFilters()
    near_duplicates: bool | Share | None = Field(
        True,
        description="keep one of several prompts that say the same; a number, which was a "
        "similarity of letters, is read as true",
    )
    select: PromptSelection = PromptSelection()
    review: Location | None = Field(
        None, description="CSV or parquet: prompt_id, decision (keep, drop, unsure)"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without decisions where nobody was asked, as in records of before."""
        found: dict[str, Any] = dump(self)
        if self.review is None:
            del found["review"]
        return found


def as_before(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a manifest: of one without scorers, nothing was scored and refused for it."""
    given = section.get("filters") or {}
    if "safety" in section or not isinstance(given, Mapping):
        return dict(section)
    return {**section, "safety": [], "filters": {**filters.OFF, **given}}


def as_recorded(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section for a manifest: one without scorers is written as those of before."""
    if section["safety"]:
        return dict(section)
    found = {**section, "filters": filters.without_off(section["filters"])}
    del found["safety"]
    return found


VERSION = 1
BUCKETS = 64
BLOCK = 4_096
SHARD_ROWS = 100_000

_CANDIDATE = pa.schema(
    [
        ("key", pa.uint64()),
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("origin", pa.int32()),  # index of the caption source
        ("line", pa.int64()),
        ("meanings", pa.list_(pa.uint64())),
    ]
)
_READ = ["line", "raw", "text", "prompt_id", "meanings"]

CHOSEN = "_chosen.arrow"
"""Beside the prompts of a run that has grown: the ids of those that it had before, in order."""
_CHOSEN = pa.schema([("prompt_id", pa.string())])


def chosen_before(store: Store, old: Mapping[str, Any], new: Mapping[str, Any]) -> pa.Table | None:
    """The prompts that a run has, which stay chosen; None: it is asked to choose anew.

    Args:
        old, new: settings of the stage, then and now; with another seed, method or embedder of
            `prompts.select`, other prompts are wanted.
    """
    for name in ("seed", "method", "embedder"):
        if old.get("select", {}).get(name) != new["select"].get(name):
            return None
    return store.read_all("prompts", ["prompt_id"]).cast(_CHOSEN)


_ACCEPTED = pa.schema(
    [
        *(_CANDIDATE.field(name) for name in ("prompt_id", "text", "origin", "line")),
        ("tokens", pa.int32()),
    ]
)


def _gather(
    settings: Prompts,
    origins: list[Origin],
    chosen: Mapping[str, int],
    decided: Decided,
    store: Store,
    folder: str,
) -> tuple[list[Spool], Spool]:
    """Spread all texts over the buckets; those that the filters refuse, apart.

    Args:
        chosen: prompts that come before all others, with their places: they have the first bucket.
    """
    first = Spool(f"{folder}/chosen.arrow", _CANDIDATE)
    buckets = [Spool(f"{folder}/{i:02d}.arrow", _CANDIDATE) for i in range(BUCKETS)]
    rejects = Spool(f"{folder}/rejects.arrow", REJECTS)
    shards = list(store.shards("texts"))
    columns = list(dict.fromkeys([*_READ, *filters.COLUMNS]))
    for number, origin in enumerate(origins):
        for shard in (name for name in shards if name.startswith(origin.prefix())):
            rows = store.read("texts", shard, columns)
            reasons = decided.over(rows, filters.reasons(rows, settings.filters))
            rejects.add(_refused(rows, reasons, origin))
            rows = rows.filter(pc.is_null(reasons))
            _spread(rows, number, settings.select.seed, chosen, first, buckets)
    return [first, *buckets], rejects


def _refused(rows: pa.Table, reasons: pa.Array, origin: Origin) -> pa.Table:
    """Rows of the rejects for texts that have a reason."""
    mask = pc.is_valid(reasons)
    rows, reasons = rows.filter(mask), reasons.filter(mask)
    written = pc.coalesce(rows["raw"], rows["text"])
    same = {"source": name_of(origin.source), "file": origin.place}
    columns = {name: pa.repeat(pa.scalar(value), len(reasons)) for name, value in same.items()}
    columns |= {"line": rows["line"], "reason": reasons, "text": written}
    return pa.table(columns, schema=REJECTS)


def _spread(
    rows: pa.Table,
    number: int,
    seed: int,
    chosen: Mapping[str, int],
    first: Spool,
    buckets: list[Spool],
) -> None:
    """Put texts into the buckets, by a hash of seed and id; those chosen before into the first."""
    salt, ids = f"{seed}:", rows["prompt_id"].to_pylist()
    keys = np.empty(len(ids), np.uint64)
    old = np.zeros(len(ids), np.bool_)
    for place, identity in enumerate(ids):
        key = chosen.get(identity)
        if key is None:
            digest = hashlib.sha256((salt + identity).encode()).digest()
            key = int.from_bytes(digest[:8], "big")
        else:
            old[place] = True
        keys[place] = key
    origin = pa.repeat(pa.scalar(number, pa.int32()), len(ids))
    found = pa.table(
        {"key": keys, **{name: rows[name] for name in ("prompt_id", "text")}, "origin": origin,
         **{name: rows[name] for name in ("line", "meanings")}},
        schema=_CANDIDATE,
    )  # fmt: skip
    first.add(found.filter(pa.array(old)))
    bucket = (keys >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)
    for one in np.unique(bucket[~old]):
        buckets[one].add(found.filter(pa.array((bucket == one) & ~old)))


def _distinct(
    buckets: list[Spool], origins: list[Origin], rejects: Spool
) -> Iterator[pa.RecordBatch]:
    """Candidates in key order, in blocks; of equal texts the first by source and line."""
    for bucket in buckets:
        table = pa.concat_tables(bucket.read())
        table = table.sort_by(
            [("key", "ascending"), ("prompt_id", "ascending"), ("origin", "ascending"),
             ("line", "ascending")]
        )  # fmt: skip
        ids = table["prompt_id"].combine_chunks()
        if len(ids) < 2:
            yield from table.to_batches()
            continue
        same = pc.equal(ids[1:], ids[:-1])
        mask = pa.concat_arrays([pa.array([False]), same])
        for row in table.filter(mask).select(["text", "origin", "line"]).to_pylist():
            origin = origins[row["origin"]]
            name = name_of(origin.source)
            rejects.append(name, origin.place, row["line"], "duplicate", row["text"])
        yield from table.filter(pc.invert(mask)).combine_chunks().to_batches(BLOCK)


def _accepted(
    candidates: Iterator[pa.RecordBatch],
    settings: Prompts,
    origins: list[Origin],
    accepted: Spool,
    rejects: Spool,
    limit: int | None,
    chosen: Mapping[str, int],
    kept_by_people: Collection[str],
) -> tuple[int, int]:
    """The first `limit` candidates with few enough tokens that say what no accepted one says.

    Tokens and near-duplicates are checked only until enough are found: they cost far more than
    everything before. Returns how many were accepted, and how many were left unread.
    """
    before = SaidBefore() if settings.near_duplicates else None
    most = settings.filters.max_tokens
    kept = unread = 0
    for batch in candidates:
        if limit is not None and kept >= limit:
            unread += batch.num_rows
            continue
        block = batch.to_pylist()
        tokens = count_tokens([row["text"] for row in block])
        for row, count in zip(block, tokens, strict=True):
            if limit is not None and kept >= limit:
                unread += 1
                continue
            reason = None
            if most is not None and count > most and row["prompt_id"] not in kept_by_people:
                reason = f"too many tokens: {count} > {most}"
            elif before is not None:
                twin = before.add(row["text"], row["meanings"])
                # Those that were chosen, or that people keep, stay, whatever makes two one.
                if twin is not None and row["prompt_id"] not in chosen:
                    reason = f"near duplicate: {twin}"
            origin = origins[row["origin"]]
            if reason is None:
                accepted.append(row["prompt_id"], row["text"], row["origin"], row["line"], count)
                kept += 1
            else:
                name = name_of(origin.source)
                rejects.append(name, origin.place, row["line"], reason, row["text"])
    return kept, unread


@dataclass(frozen=True)
class Model:
    """A model of the dataset, as prompts depend on it.

    Attributes:
        settings: what decides how it reads a prompt, as JSON values.
        reader: loads its tokenizer; None: it reads what CLIP reads.
    """

    settings: Mapping[str, Any]
    reader: Callable[[], Reader] | None = None


Models = Mapping[str, Model]
"""Models of the dataset by source; none: nobody asked."""


def _schema(models: Models) -> pa.Schema:
    return PROMPTS.append(READERS) if _reading(models) else PROMPTS


def _reading(models: Models) -> dict[str, Callable[[], Reader]]:
    return {name: model.reader for name, model in models.items() if model.reader is not None}


def _with_readers(table: pa.Table, models: Models) -> pa.Table:
    """The same prompts with the lengths that the tokenizers of the models give them."""
    readers = {name: load() for name, load in _reading(models).items()}
    if not readers:
        return table
    texts = table["text"].to_pylist()
    counts = {name: reader.count(texts) for name, reader in readers.items()}
    clip = any(model.reader is None for model in models.values())
    tokens, truncated, found = [], [], []
    for row, (known, cut) in enumerate(
        zip(table["tokens"].to_pylist(), table["truncated"].to_pylist(), strict=True)
    ):
        lengths = {name: (counts[name][row], reader.most) for name, reader in readers.items()}
        tokens.append(known if clip else max(count for count, _ in lengths.values()))
        truncated.append((clip and cut) or any(count > most for count, most in lengths.values()))
        found.append(
            [(name, {"tokens": count, "most": most}) for name, (count, most) in lengths.items()]
        )
    columns = {name: table[name] for name in table.column_names}
    columns |= {"tokens": pa.array(tokens, pa.int32()), "truncated": pa.array(truncated)}
    columns[READERS.name] = pa.array(found, READERS.type)
    return pa.table(columns, schema=_schema(models))


def _table(rows: pa.Table, origins: list[Origin], shares: SplitShares, models: Models) -> pa.Table:
    found = []
    for row in rows.to_pylist():
        origin = origins[row["origin"]]
        found.append(
            {
                "prompt_id": row["prompt_id"],
                "text": row["text"],
                "source": name_of(origin.source),
                "source_ref": f"{origin.place}:{row['line']}",
                "split": split_of(row["prompt_id"], shares),
                "tokens": row["tokens"],
                "truncated": row["tokens"] > CONTEXT,
            }
        )
    return _with_readers(pa.Table.from_pylist(found, schema=PROMPTS), models)


def _shards(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of any size, regrouped to SHARD_ROWS rows; the last may be shorter."""
    held: pa.Table | None = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        while held.num_rows >= SHARD_ROWS:
            yield held.slice(0, SHARD_ROWS)
            held = held.slice(SHARD_ROWS)
    if held is not None and held.num_rows:
        yield held


def _chosen(
    accepted: Spool,
    before: Mapping[str, int],
    count: int,
    chooser: Chooser,
    store: Store,
    progress: Progress,
) -> Iterator[pa.Table]:
    """Those of the accepted that spread most beside the first ones, in their own order.

    Args:
        before: prompts that are chosen already.
    """
    table = pa.concat_tables(accepted.read())
    first = sum(identity in before for identity in table["prompt_id"].to_pylist())
    chosen, spread = chooser.choose(table["text"].to_pylist(), count, first, progress)
    store.write_arrow([spread], SPREADS, "prompts", SPREAD)
    yield table.take(pa.array(sorted(chosen)))


def _before(store: Store) -> list[str]:
    """Prompts that were chosen before the run grew, in order."""
    table = store.read_arrow("prompts", CHOSEN)
    return [] if table is None else list(table["prompt_id"].to_pylist())


def _few(reasons: Mapping[str, int], first: str | None, path: str) -> str:
    """What is known of captions that were refused, for an error: a sentence, or nothing."""
    if not reasons:
        return ""
    counts = ", ".join(f"{count:,} {why}" for why, count in Counter(reasons).most_common())
    return f" {sum(reasons.values()):,} captions: {counts}; first {first}; all in {path}."


def _write_rejects(rejects: Spool, store: Store) -> tuple[Counter[str], str | None]:
    """Write what was refused, whatever comes of the others; its reasons, and the first one."""
    reasons: Counter[str] = Counter()
    first: str | None = None

    def rejected() -> Iterator[pa.Table]:
        nonlocal first
        for table in rejects.read():
            for row in table.select(["file", "line", "reason"]).to_pylist():
                first = first or f"{row['file']}:{row['line']}: {row['reason']}"
                reasons[str(row["reason"]).split(":")[0]] += 1
            yield table

    store.write("rejects", "prompts", rejected(), REJECTS)
    return reasons, first


def _build(
    settings: Prompts,
    shares: SplitShares,
    models: Models,
    chooser: Chooser,
    decisions: Mapping[str, str],
    store: Store,
    progress: Progress,
) -> list[Shard]:
    select, found = settings.select, origins(settings.sources)
    decided = Decided(decisions)
    before = {name: place for place, name in enumerate(dict.fromkeys(
        [*decided.keep, *_before(store)]
    ))}  # fmt: skip
    if isinstance(near := settings.near_duplicates, float) and near:
        progress.say(
            f"prompts: near_duplicates is {near:g}, but similar letters no longer make two prompts "
            "one: they have to say the same. Write true"
        )
    with scratch("prompts") as folder:
        buckets, rejects = _gather(settings, found, before, decided, store, folder)
        decided.say(select.count, progress)
        limit = select.count
        if select.spread is not None:
            limit = int(select.spread * select.pool)
        candidates = _distinct(buckets, found, rejects)
        accepted = Spool(f"{folder}/accepted.arrow", _ACCEPTED)
        kept, unread = _accepted(
            candidates, settings, found, accepted, rejects, limit, before, set(decided.keep)
        )
        reasons, first = _write_rejects(rejects, store)
        refused = _few(reasons, first, store.path("rejects", "prompts.parquet"))
        if select.count is not None and kept < select.count:
            raise AigiError(
                f"prompts: {select.count:,} needed (prompts.select.count), only "
                f"{kept:,} captions pass.{refused} Add sources, relax prompts.filters or "
                "prompts.near_duplicates, or lower the count."
            )
        if not kept:
            raise AigiError(
                f"prompts: no caption passes.{refused} Check the filters and the sources."
            )
        tables = accepted.read()
        if select.spread is not None:
            unread += kept - select.spread
            kept = select.spread
            tables = _chosen(accepted, before, kept, chooser, store, progress)
        made = [
            store.write(
                "prompts",
                f"part-{i:05d}",
                _table(rows, found, shares, models),
                _schema(models),
            )
            for i, rows in enumerate(_shards(tables))
        ]
    progress.say(
        f"prompts: {kept:,} kept, {unread:,} not needed, {sum(reasons.values()):,} "
        "rejected" + "".join(f", {count:,} {why}" for why, count in reasons.most_common())
    )
    return made


def stages(
    settings: Prompts,
    shares: SplitShares,
    compute: Compute,
    models: Models | None = None,
    clip: Embeddings | None = None,
) -> list[Stage]:
    """Captions are read, scored, and prompts chosen from them. Arguments are those of `stage`."""
    scoring = Scoring(settings.filters, settings.safety)
    return [
        *texts.stages(settings.sources, scoring, compute),
        stage(settings, shares, models, clip, compute.device),
    ]


def stage(
    settings: Prompts,
    shares: SplitShares,
    models: Models | None = None,
    clip: Embeddings | None = None,
    device: str = "auto",
) -> Build:
    """The prompts stage.

    Args:
        shares: of the splits.
        models: which read the prompts, by source.
        clip: whose text model may choose prompts.
        device: for it.

    Raises:
        AigiError: a CLIP model is asked for, and there is none.
    """
    models = models or {}
    chooser = Chooser(settings.select, clip, device)
    decisions = {} if settings.review is None else read_decisions(settings.review, "prompt_id")
    readers = {name: models[name].settings for name in _reading(models)}
    scoring = Scoring(settings.filters, settings.safety)
    return Build(
        table="prompts",
        version=VERSION,
        schema=_schema(models),
        settings={
            **({"readers": readers} if readers else {}),
            **({} if settings.review is None else {"review": decisions}),
            "sources": recorded(settings.sources),
            "filters": settings.filters.recorded(),
            # Scores decide prompts: other ones are another choice, and not the same one remade.
            "scores": scoring.recorded(),
            # Not false or null, as in records of before: these had a similarity of letters.
            "near_duplicates": "same meaning" if settings.near_duplicates else None,
            "select": chooser.recorded(),
            "split": shares.model_dump(mode="json"),
        },
        inputs=("texts",),
        build=partial(_build, settings, shares, models, chooser, decisions),
    )
