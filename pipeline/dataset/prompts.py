"""Caption sources in, the `prompts` table and its rejects out: cleaned, distinct, selected.

Memory grows with what is selected, not with the input: candidates are spread over buckets on disk
by a hash of their text, so equal texts meet in one bucket, and the buckets, read in order, give
the prompts in one fixed random order. `random` selection takes the first of that order.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError
from pipeline.dataset.captions import read as read_captions
from pipeline.dataset.diversity import NearDuplicates, most_diverse
from pipeline.dataset.text import Filter, prompt_id, split_of
from pipeline.dataset.tokens import CONTEXT, count_tokens
from pipeline.progress import Progress
from pipeline.run import Build
from pipeline.tables import PROMPTS, REJECTS, Shard, Store
from pipeline.workflow import BlipCaptions, CaptionSource, Workflow
from pipeline.workflow import Prompts as PromptSettings

VERSION = 1
BUCKETS = 64
# Candidates held in memory before they are written to the buckets.
HELD = 200_000
BLOCK = 4_096
SHARD_ROWS = 100_000
_REPORT_EVERY = 1_000_000

_CANDIDATE = pa.schema(
    [
        ("key", pa.uint64()),
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("origin", pa.int32()),  # index of the caption source
        ("line", pa.int64()),
    ]
)

_ACCEPTED = pa.schema(
    [
        *(_CANDIDATE.field(name) for name in ("prompt_id", "text", "origin", "line")),
        ("tokens", pa.int32()),
    ]
)


class _Spool:
    """An append-only Arrow file on disk, read back batch by batch."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.columns: list[list[Any]] = [[] for _ in schema]
        self.writer: pa.ipc.RecordBatchStreamWriter | None = None

    def append(self, *row: Any) -> None:
        for column, value in zip(self.columns, row, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self.columns[0])

    def flush(self) -> None:
        if not self.columns[0]:
            return
        if self.writer is None:
            self.writer = pa.ipc.new_stream(self.path, self.schema)
        self.writer.write_batch(self._held())
        self.columns = [[] for _ in self.schema]

    def _held(self) -> pa.RecordBatch:
        return pa.record_batch(
            [
                pa.array(column, field.type)
                for column, field in zip(self.columns, self.schema, strict=True)
            ],
            schema=self.schema,
        )

    def read(self) -> Iterator[pa.Table]:
        """What was appended; a spool that never grew large never touches the disk."""
        if self.writer is None:
            yield pa.Table.from_batches([self._held()])
            return
        self.flush()
        self.writer.close()
        with pa.OSFile(self.path) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


def name_of(source: CaptionSource) -> str:
    """What the `source` column calls it."""
    return source.name or source.kind


def place_of(source: CaptionSource) -> str:
    """What `source_ref` and the rejects call the origin: its file name or dataset."""
    for field in ("path", "dataset", "photos"):
        value = getattr(source, field, None)
        if value is not None:
            return posixpath.basename(str(value).rstrip("/")) or str(value)
    return source.kind


def _rows(
    source: CaptionSource, number: int, store: Store
) -> Iterator[tuple[int, str | None, str | None]]:
    if not isinstance(source, BlipCaptions):
        yield from read_captions(source)
        return
    for shard in store.shards("captions"):
        if shard.startswith(f"{number:02d}-"):
            for row in store.read("captions", shard).to_pylist():
                yield row["row"], row["text"], row["error"]


def _gather(
    workflow: Workflow, settings: PromptSettings, store: Store, folder: str, progress: Progress
) -> tuple[list[_Spool], _Spool]:
    """Read, clean and spread all captions over the buckets; the rejected ones apart."""
    buckets = [_Spool(f"{folder}/{i:02d}.arrow", _CANDIDATE) for i in range(BUCKETS)]
    rejects = _Spool(f"{folder}/rejects.arrow", REJECTS)
    clean = Filter(settings.filters).clean
    salt = f"{settings.select.seed}:"
    count = held = 0
    for number, source in enumerate(settings.sources):
        name, place = name_of(source), place_of(source)
        found = False
        for line, text, problem in _rows(source, number, store):
            found = True
            cleaned = None
            if text is not None:
                cleaned, problem = clean(text)
            if cleaned is None:
                # A raw caption may hold half a surrogate pair, which no UTF-8 file can.
                shown = None if text is None else text.encode(errors="replace").decode()
                rejects.append(name, place, line, problem or "empty", shown)
            else:
                identity = prompt_id(cleaned)
                digest = hashlib.sha256((salt + identity).encode()).digest()
                key = int.from_bytes(digest[:8], "big")
                buckets[key * BUCKETS >> 64].append(key, identity, cleaned, number, line)
            count, held = count + 1, held + 1
            if held >= HELD:
                for spool in (*buckets, rejects):
                    spool.flush()
                held = 0
            if count % _REPORT_EVERY == 0:
                progress.say(f"prompts: {count:,} captions read")
        if not found:
            progress.say(f"prompts: {place} has no captions")
    return buckets, rejects


def _distinct(
    buckets: list[_Spool], settings: PromptSettings, rejects: _Spool
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
            source = settings.sources[row["origin"]]
            rejects.append(name_of(source), place_of(source), row["line"], "duplicate", row["text"])
        if len(rejects) >= HELD:
            rejects.flush()
        yield from table.filter(pc.invert(mask)).combine_chunks().to_batches(BLOCK)


def _accepted(
    candidates: Iterator[pa.RecordBatch],
    settings: PromptSettings,
    accepted: _Spool,
    rejects: _Spool,
    limit: int | None,
) -> tuple[int, int]:
    """The first `limit` candidates with few enough tokens that are near no accepted one.

    Tokens and near-duplicates are looked at only until enough are found: they cost far more than
    everything before. Returns how many were accepted, and how many were left unread.
    """
    near = None if settings.near_duplicates is None else NearDuplicates(settings.near_duplicates)
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
            if most is not None and count > most:
                reason = f"too many tokens: {count} > {most}"
            elif near is not None and (twin := near.add(row["text"])) is not None:
                reason = f"near duplicate: {twin}"
            source = settings.sources[row["origin"]]
            if reason is None:
                accepted.append(row["prompt_id"], row["text"], row["origin"], row["line"], count)
                kept += 1
            else:
                rejects.append(name_of(source), place_of(source), row["line"], reason, row["text"])
        for spool in (accepted, rejects):
            if len(spool) >= HELD:
                spool.flush()
    return kept, unread


def _table(rows: pa.Table, settings: PromptSettings, workflow: Workflow) -> pa.Table:
    found = []
    for row in rows.to_pylist():
        source = settings.sources[row["origin"]]
        found.append(
            {
                "prompt_id": row["prompt_id"],
                "text": row["text"],
                "source": name_of(source),
                "source_ref": f"{place_of(source)}:{row['line']}",
                "split": split_of(row["prompt_id"], workflow.split),
                "tokens": row["tokens"],
                "truncated": row["tokens"] > CONTEXT,
            }
        )
    return pa.Table.from_pylist(found, schema=PROMPTS)


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


def _chosen(accepted: _Spool, count: int) -> Iterator[pa.Table]:
    """The most diverse of the accepted, in their own order."""
    table = pa.concat_tables(accepted.read())
    yield table.take(pa.array(sorted(most_diverse(table["text"].to_pylist(), count))))


def _build(workflow: Workflow, store: Store, progress: Progress) -> list[Shard]:
    settings = workflow.prompts
    assert settings is not None
    select = settings.select
    with tempfile.TemporaryDirectory(prefix="aigi-prompts-") as folder:
        buckets, rejects = _gather(workflow, settings, store, folder, progress)
        limit = select.count
        if limit is not None and select.method == "diverse":
            limit = int(limit * select.pool)
        candidates = _distinct(buckets, settings, rejects)
        accepted = _Spool(f"{folder}/accepted.arrow", _ACCEPTED)
        kept, unread = _accepted(candidates, settings, accepted, rejects, limit)
        if select.count is not None and kept < select.count:
            raise AigiError(
                f"prompts: {select.count:,} wanted (prompts.select.count), only "
                f"{kept:,} captions pass. Add sources, relax prompts.filters or "
                "prompts.near_duplicates, or ask for fewer."
            )
        if not kept:
            raise AigiError("prompts: no caption passes; look at the filters and the sources")
        tables = accepted.read()
        if select.count is not None and select.method == "diverse":
            unread += kept - select.count
            kept = select.count
            tables = _chosen(accepted, select.count)
        made = [
            store.write("prompts", f"part-{i:05d}", _table(rows, settings, workflow), PROMPTS)
            for i, rows in enumerate(_shards(tables))
        ]
        reasons: Counter[str] = Counter()

        def rejected() -> Iterator[pa.Table]:
            for table in rejects.read():
                for reason in table["reason"].to_pylist():
                    reasons[str(reason).split(":")[0]] += 1
                yield table

        store.write("rejects", "prompts", rejected(), REJECTS)
    progress.say(
        f"prompts: {kept:,} kept, {unread:,} not needed, {sum(reasons.values()):,} "
        "rejected" + "".join(f", {count:,} {why}" for why, count in reasons.most_common())
    )
    return made


def signature(path: str) -> dict[str, Any]:
    """Size and a hash of a file's content: of all of it to 64 MiB, of three samples beyond.

    Raises:
        AigiError: no such file.
    """
    fs, name = fsspec.core.url_to_fs(path)
    try:
        info = fs.info(name)
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file or folder") from None
    if info["type"] == "directory":
        files = fs.find(name, detail=True)
        listing = sorted(
            (file[len(name) :], int(item["size"] or 0)) for file, item in files.items()
        )
        return {"files": len(listing), "sha256": hashlib.sha256(repr(listing).encode()).hexdigest()}
    size, sample = int(info["size"]), 1 << 20
    digest = hashlib.sha256()
    with fs.open(name, "rb") as file:
        if size <= 64 * sample:
            digest.update(file.read())
        else:
            for start in (0, size // 2, size - sample):
                file.seek(start)
                digest.update(file.read(sample))
    return {"bytes": size, "sha256": digest.hexdigest()}


def stage(workflow: Workflow) -> Build:
    """The prompts stage of a workflow that has a prompts section."""
    assert workflow.prompts is not None
    settings = workflow.prompts
    sources = []
    for source in settings.sources:
        # What the captions may be used for changes the card, not the prompts.
        described = source.model_dump(mode="json", exclude={"licence"})
        if not isinstance(source, BlipCaptions) and described.get("path") is not None:
            # The content counts, wherever the file lies.
            described |= {"path": place_of(source), "content": signature(described["path"])}
        sources.append(described)
    filters = settings.filters.model_dump(mode="json")
    if settings.filters.blocklist is not None:
        filters["blocklist"] = signature(settings.filters.blocklist)
    blip = any(isinstance(source, BlipCaptions) for source in settings.sources)
    return Build(
        table="prompts",
        version=VERSION,
        schema=PROMPTS,
        settings={
            "sources": sources,
            "filters": filters,
            "near_duplicates": settings.near_duplicates,
            "select": settings.select.model_dump(mode="json"),
            "split": workflow.split.model_dump(mode="json"),
        },
        inputs=("captions",) if blip else (),
        build=partial(_build, workflow),
    )
