"""Caption sources in, the tables `lines` and `texts` out: captions as read, then with their scores.

Reading is one process, whatever the format: it takes a microsecond or two a caption, and nothing is
read twice. Scoring is what takes time, shard by shard, serially or by Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.progress import Progress
from pipeline.prompts import safety
from pipeline.prompts.captions import BlipCaptions, CaptionSource, content_of, files_of
from pipeline.prompts.captions import read as read_captions
from pipeline.prompts.scored import Scored, Scoring, in_unicode
from pipeline.rows.shards import short_name
from pipeline.stage import Build, Compute, Map, Stage
from pipeline.store import Shard, Store
from pipeline.tables import LINES, TEXTS

VERSION = 1
SHARD_ROWS = 50_000
"""Captions of one shard: what one worker scores at a time, some seconds."""
_REPORT_EVERY = 1_000_000


def name_of(source: CaptionSource) -> str:
    """The name of a caption source in the `source` column."""
    return source.name or source.kind


class Origin(NamedTuple):
    """A file of a caption source, or all of one that is no file.

    Attributes:
        number: of the source.
        place: how `source_ref` and the rejects name it.
    """

    number: int
    source: CaptionSource
    file: str
    place: str

    def prefix(self) -> str:
        """What names of its shards begin with; another file beside it does not change that."""
        return f"{self.number:02d}-{hashlib.sha256(self.place.encode()).hexdigest()[:8]}-"


def origins(sources: Sequence[CaptionSource]) -> list[Origin]:
    """All files of some sources, in their order.

    Raises:
        AigiError: a folder or pattern without a file.
    """
    return [
        Origin(number, source, file, place)
        for number, source in enumerate(sources)
        for file, place in files_of(source)
    ]


def recorded(sources: Sequence[CaptionSource]) -> list[dict[str, Any]]:
    """What decides the captions of some sources, as JSON values.

    Raises:
        AigiError: a file is missing.
    """
    found = []
    for source in sources:
        # What the captions may be used for changes the card, not the prompts.
        described = source.recorded()
        if described.get("path") is not None:
            # The content counts, wherever the file is stored.
            described |= {"path": short_name(described["path"]), "content": content_of(source)}
        found.append(described)
    return found


def _rows(origin: Origin, store: Store) -> Iterator[tuple[int, str | None, str | None]]:
    if not isinstance(origin.source, BlipCaptions):
        yield from read_captions(origin.source, origin.file)
        return
    for shard in store.shards("captions"):
        if shard.startswith(f"{origin.number:02d}-"):
            for row in store.read("captions", shard).to_pylist():
                yield row["row"], row["text"], row["error"]


def _read(sources: Sequence[CaptionSource], store: Store, progress: Progress) -> list[Shard]:
    made: list[Shard] = []
    count = 0
    for origin in origins(sources):
        held: list[tuple[int, str | None, str | None]] = []
        prefix, first = origin.prefix(), len(made)

        def write(held: list[tuple[int, str | None, str | None]], name: str) -> None:
            lines, texts, problems = zip(*held, strict=True)
            try:
                written = pa.array(texts, pa.string())
            except UnicodeEncodeError:  # halves of surrogate pairs: few files have one
                written = pa.array([text and in_unicode(text) for text in texts], pa.string())
            table = pa.table([pa.array(lines, pa.int64()), written, problems], schema=LINES)
            made.append(store.write("lines", name, table, LINES))

        for line, text, problem in _rows(origin, store):
            held.append((line, text, problem))
            count += 1
            if len(held) == SHARD_ROWS:
                write(held, f"{prefix}{len(made) - first:05d}")
                held = []
            if count % _REPORT_EVERY == 0:
                progress.say(f"lines: {count:,} captions read")
        if held:
            write(held, f"{prefix}{len(made) - first:05d}")
        if len(made) == first:
            progress.say(f"lines: {origin.place} has no captions")
    return made


def _names(store: Store) -> list[str]:
    return list(store.shards("lines"))


def _lines(store: Store, shard: str) -> pa.Table:
    return store.read("lines", shard)


def stages(sources: tuple[CaptionSource, ...], scoring: Scoring, compute: Compute) -> list[Stage]:
    """The captions of all sources, as they are read; then their scores, shard by shard.

    Raises:
        AigiError: a file is missing.
    """
    blip = any(isinstance(source, BlipCaptions) for source in sources)
    return [
        Build(
            table="lines",
            version=VERSION,
            schema=LINES,
            settings={"sources": recorded(sources)},
            inputs=("captions",) if blip else (),
            build=partial(_read, sources),
            remake=True,
        ),
        Map(
            table="texts",
            version=VERSION,
            schema=TEXTS,
            settings={"threads": compute.threads, **scoring.recorded()},
            inputs=("lines",),
            names=_names,
            read=_lines,
            make_worker=partial(
                Scored, scoring._replace(device=compute.device, threads=compute.threads)
            ),
            check=partial(safety.check, scoring.safety),
            remake=True,
        ),
    ]
