"""Finished batches of a shard in progress in; after a kill, the same batches and what is left, out.

They are Arrow files, `RUN/_parts/<table>/<shard>.shard/<first row>-<end>-<sha256>.arrow`, each
written whole or not at all, and gone when their shard is finished. One is believed if its content
has the hash in its name, and if it was made from what the shard is made from now, by the same stage
with the same weights. Any other is thrown away with a word.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from pipeline import AigiError
from pipeline.faults import in_short, let_through
from pipeline.progress import LOG
from pipeline.retry import ERROR
from pipeline.store import Store
from pipeline.tables import ENDPOINT, without_request

PARTS = "_parts"
EVERY = 60.0
"""Seconds of work that may be lost: a part is written when more is unsaved. 0: each batch is saved
before the next one is made."""
_SHARE = 50
"""What is unsaved took at least this many times as long as the last part took to be written."""
_ORDERLY = 5.0
"""Seconds of unsaved work that are worth a part where a run is stopped or a shard fails."""
_BYTES = 128 << 20
"""Memory for what is unsaved: where there is more, a part is written after a quarter of the time.
Where there is twice as much by then, making it again costs little: nothing is kept."""
_FOLDER = ".shard"
_NAME = re.compile(r"(?P<first>\d+)-(?P<end>\d+)-(?P<sha256>[0-9a-f]{64})\.arrow")
_ABOUT = b"aigi.part"
_NOT_ONE = (
    AigiError, OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException,
)  # fmt: skip
"""What is raised where a file is no part."""


@dataclass(frozen=True)
class Part:
    """One part, by its name: rows `first` to `end` (excluded) of a shard, in how many bytes."""

    path: str
    first: int
    end: int
    sha256: str
    bytes: int


def _folder(table: str, shard: str) -> tuple[str, str, str]:
    return PARTS, table, f"{shard}{_FOLDER}"


def found(store: Store, table: str) -> dict[str, list[Part]]:
    """The parts of a table that a run has, by shard, in row order; nothing is opened."""
    folder = store.path(PARTS, table)
    try:
        files = store.fs.find(folder, detail=True)
    except FileNotFoundError:
        return {}
    base = store.fs._strip_protocol(folder).rstrip("/") + "/"
    parts: dict[str, list[Part]] = {}
    for path, info in files.items():
        where, name = posixpath.split(path[len(base) :] if path.startswith(base) else path)
        match = _NAME.fullmatch(name)
        if match is not None and where.endswith(_FOLDER):
            first, end = int(match["first"]), int(match["end"])
            part = Part(path, first, end, match["sha256"], int(info["size"] or 0))
            parts.setdefault(where.removesuffix(_FOLDER), []).append(part)
    # Of two that begin at the same row, as two processes may write them, the longer one first.
    return {
        shard: sorted(mine, key=lambda part: (part.first, -part.end, part.sha256))
        for shard, mine in sorted(parts.items())
    }


def rows_kept(parts: Sequence[Part]) -> int:
    """Rows from the first one on that parts have, as their names tell."""
    end = 0
    for part in parts:
        if part.first == end:
            end = part.end
    return end


def sweep(store: Store, table: str, but: Iterable[str] = ()) -> list[str]:
    """Remove the parts of all shards of a table but these; returns whose there were."""
    keep, gone = set(but), []
    for shard in found(store, table):
        if shard not in keep:
            store.remove(*_folder(table, shard))
            gone.append(shard)
    if store.local and not keep:
        store.remove(PARTS, table)
        with suppress(AigiError, OSError):  # those of another table may be there
            store.fs.rmdir(store.path(PARTS))
    return gone


def packed(chunks: Sequence[pa.Table], about: Mapping[str, object]) -> memoryview:
    """An Arrow file of one batch per chunk."""
    sink = pa.BufferOutputStream()
    schema = chunks[0].schema
    metadata = {**(schema.metadata or {}), _ABOUT: json.dumps(about, sort_keys=True).encode()}
    with pa.ipc.new_file(sink, schema.with_metadata(metadata)) as writer:
        for chunk in chunks:
            (batch,) = chunk.to_batches()
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


def unpacked(data: bytes | memoryview) -> tuple[list[pa.Table], dict[str, object]]:
    """The chunks of such a file, and what it says about itself.

    Raises:
        ValueError, pa.ArrowException: it is no such file.
    """
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        metadata = dict(reader.schema.metadata or {})
        about = json.loads(metadata.pop(_ABOUT))
        chunks = []
        for number in range(reader.num_record_batches):
            chunk = pa.Table.from_batches([reader.get_batch(number)])
            chunk.validate(full=True)
            chunks.append(chunk.replace_schema_metadata(metadata or None))
    return chunks, about


def one_batch(chunk: pa.Table) -> pa.Table:
    """A chunk in one piece, as a part gives it back: row groups must be cut the same way."""
    return chunk if len(chunk.to_batches()) == 1 else chunk.combine_chunks()


def _paid(chunk: pa.Table) -> bool:
    """Whether a server was asked for its rows, which may cost money: they are kept at once."""
    return "device" in chunk.column_names and ENDPOINT in chunk["device"].to_pylist()


class Parts:
    """The finished batches of one shard while it is being made.

    Args:
        identity: digest of all that decides its rows, but for the weights.
        same: columns that have one value in all rows of a shard, where they have any: what made
            them, as a device. Batches that have another one than new ones are not kept.
        notes: what the footer of the shard will have of the weights; known once rows are made.

    Attributes:
        rows: of all batches.
        start: rows of the batches that are kept from before.
        kept: these batches, until they are taken.
    """

    def __init__(
        self,
        store: Store,
        table: str,
        shard: str,
        identity: str,
        same: Sequence[str],
        notes: Callable[[], Mapping[str, str]],
    ) -> None:
        self.store, self.table, self.shard = store, table, shard
        self.identity, self.same, self.notes = identity, same, notes
        self.start = self.rows = 0
        self.kept: list[pa.Table] = []
        self._kept_notes: dict[str, str] = {}
        self._fresh = False
        self._unsaved: list[pa.Table] = []
        self._end = self._bytes = 0
        self._good = False
        self._cost = 0.0
        self._since = time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._flight: tuple[Future[float], list[pa.Table], int] | None = None
        self._off = self._said = False

    def footer(self) -> Mapping[str, str]:
        """What the footer has of the weights, though they be not loaded: all rows may be kept."""
        return self.notes() if self._fresh else self._kept_notes

    def load(self, rows: pa.Table) -> None:
        """Read the batches that are kept; throw away, with a word, what is not to be believed.

        Args:
            rows: all that the worker gets if nothing is kept.
        """
        self.rows = rows.num_rows
        mine = found(self.store, self.table).get(self.shard, [])
        end, notes, rest = 0, None, []
        for part in mine:
            if part.first != end:  # what another process made too, or what follows a gap
                rest.append(part)
                continue
            try:
                chunks, said = self._read(part, rows)
                if notes is not None and said != notes:
                    raise ValueError("made with other weights than the part before it")
            except _NOT_ONE as error:
                let_through(error, part.path)  # a network that fails is no reason
                self._throw([part], in_short(error))
                continue
            self.kept += chunks
            end, notes = part.end, said
        self._kept_notes, self.start, self._end, self._good = notes or {}, end, end, end > 0
        if end:
            LOG.info("%s: %s: %s of %s rows are kept", self.table, self.shard, end, self.rows)
        else:
            self._throw(rest, "no part has the rows before it")

    def _read(self, part: Part, rows: pa.Table) -> tuple[list[pa.Table], dict[str, str]]:
        data = self.store.fs.cat_file(part.path)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise ValueError("its content is not what was written")
        chunks, about = unpacked(data)
        if about["identity"] != self.identity:
            raise ValueError("made from something else, or with other settings")
        if [chunk.nbytes for chunk in chunks] != about["nbytes"]:
            raise ValueError("its batches are not as they were made")
        made, asked = pa.concat_tables(chunks), rows.slice(part.first, part.end - part.first)
        key = made.column_names[0]
        if made.num_rows != part.end - part.first or part.end > rows.num_rows:
            raise ValueError(f"{made.num_rows} rows from row {part.first + 1} on")
        if key in asked.column_names and made[key] != asked[key]:
            raise ValueError(f"rows of another {key}")
        notes = about["notes"]
        if not isinstance(notes, dict):
            raise ValueError("it does not say with which weights it was made")
        return chunks, {str(key): str(value) for key, value in notes.items()}

    def _throw(self, parts: Iterable[Part], why: str) -> None:
        for part in parts:
            LOG.warning("%s: %s; thrown away, its rows are made again", part.path, why)
            with suppress(OSError, AigiError):  # it is not used, whether it goes or not
                name = posixpath.basename(part.path)
                self.store.remove(*_folder(self.table, self.shard), name)

    def forget(self, why: str) -> None:
        """Throw all of it away: the whole shard is made again."""
        self._settled(True)
        self._throw(found(self.store, self.table).get(self.shard, []), why)
        self.kept, self._kept_notes, self.start, self._end, self._good = [], {}, 0, 0, False
        self._unsaved, self._bytes = [], 0

    def unlike(self, chunk: pa.Table) -> str:
        """Why the kept batches do not go with a new one; nothing where they do."""
        if self.kept and self._kept_notes != dict(self.notes()):
            return "made with other weights"
        for name in self.same:
            values = {
                without_request(value) if isinstance(value, str) else value
                for one in (*self.kept, chunk)
                for value in one[name].unique().to_pylist()
                if value is not None
            }
            if len(values) > 1:
                return f"another {name} made it than makes the rest"
        return ""

    def add(self, chunk: pa.Table) -> None:
        """A batch that was just made; a part is written where that pays."""
        self._fresh = True
        if self._off or not chunk.num_rows:
            return
        self._unsaved.append(chunk)
        self._bytes += chunk.nbytes
        # Where every row fails, the shard may fail for it: nothing is kept until one succeeds.
        self._good |= ERROR not in chunk.column_names or chunk[ERROR].null_count > 0
        self._settled(False)  # so that it is known how long the last part took
        seconds, full = time.monotonic() - self._since, self._bytes > _BYTES
        if _paid(chunk):
            self.save(wait=True)
        elif seconds >= max(EVERY / 4 if full else EVERY, _SHARE * self._cost):
            self.save(wait=EVERY == 0)
        elif self._bytes > 2 * _BYTES:
            self._off, self._unsaved = True, []
            LOG.info("%s: %s: fast; its batches are not kept", self.table, self.shard)

    def save(self, wait: bool) -> None:
        """Write what is unsaved, in a thread while the next batch is made, or at once.

        What goes wrong is said, and the shard goes on without it.
        """
        if not self._settled(wait) or not self._unsaved or not self._good:
            return
        chunks, self._unsaved, self._bytes = self._unsaved, [], 0
        end = self._end + sum(chunk.num_rows for chunk in chunks)
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "part")
        written = self._writer.submit(self._write, chunks, end, dict(self.notes()))
        self._flight, self._since = (written, chunks, end), time.monotonic()
        if wait:
            self._settled(wait)

    def _write(self, chunks: list[pa.Table], end: int, notes: Mapping[str, str]) -> float:
        """Write a part; how many seconds that took."""
        started = time.monotonic()
        sizes = [chunk.nbytes for chunk in chunks]
        data = packed(chunks, {"identity": self.identity, "notes": notes, "nbytes": sizes})
        name = f"{self._end:08d}-{end:08d}-{hashlib.sha256(data).hexdigest()}.arrow"
        self.store.write_bytes(data, *_folder(self.table, self.shard), name)
        return time.monotonic() - started

    def _settled(self, wait: bool) -> bool:
        """Whether no part is being written any more."""
        if self._flight is None:
            return True
        written, chunks, end = self._flight
        if not wait and not written.done():
            return False
        self._flight = None
        try:
            self._cost = written.result()
            self._end = end
        except (OSError, AigiError, ValueError, pa.ArrowException) as error:
            self._unsaved = chunks + self._unsaved
            self._bytes = sum(chunk.nbytes for chunk in self._unsaved)
            if not self._said:
                self._said = True
                why = f"{self.table}: {self.shard}: finished batches cannot be kept"
                LOG.warning("%s: %s. The shard goes on.", why, in_short(error))
        return True

    def stopped(self) -> None:
        """The shard is not finished: keep what is unsaved, if it is worth it."""
        self._settled(True)
        if time.monotonic() - self._since >= min(_ORDERLY, EVERY):
            self.save(wait=True)
        self._end_writer()

    def done(self) -> None:
        """The shard is written: its parts go."""
        self._settled(True)
        self._end_writer()
        with suppress(OSError, AigiError):  # the driver sweeps too
            self.store.remove(*_folder(self.table, self.shard))

    def _end_writer(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()


def gone_on(parts: Parts, make: Callable[[int], Iterable[pa.Table]]) -> Iterator[pa.Table]:
    """All batches of a shard: those that are kept, and those that are made now.

    Args:
        parts: loaded.
        make: makes the batches from a row on, at which a batch begins.
    """
    start = parts.start
    made = make(start) if start < parts.rows else ()
    fresh = (one_batch(chunk) for chunk in made)
    first = next(fresh, None)
    if start and first is not None and (why := parts.unlike(first)):
        parts.forget(why)
        fresh = (one_batch(chunk) for chunk in make(0))
        first = next(fresh, None)
    while parts.kept:
        yield parts.kept.pop(0)
    while first is not None:
        parts.add(first)
        yield first
        first = next(fresh, None)
