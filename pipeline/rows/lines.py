"""A text file in, packed or not and in any encoding; its lines out, with the problem of each."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

from pipeline import AigiError
from pipeline.files import ESCAPED, INVALID, decode_lines
from pipeline.outside import opened

BLOCK = 1 << 16  # bytes; larger is slower (measured: the lines leave the processor's cache)

# What a cut or damaged .gz, .bz2, .xz or .zst raises. Others (disk, network) are no row's fault.
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
BREAKS_OFF = "the file breaks off here"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),  # a block of lines drops it
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = codecs.lookup("utf-8").name


def _one_bad(error: UnicodeError) -> tuple[str, int]:
    """A character that marks its line as not readable, whatever the encoding is."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


codecs.register_error("aigi.one_bad", _one_bad)


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        number: from 1.
        text: without its end; bytes that are not of the encoding are surrogates in it.
        problem: why it cannot be used; None: it can.
    """

    number: int
    text: str
    problem: str | None


class Held(str):
    """The name of a file whose bytes are at hand, as of one inside an archive."""

    data: bytes

    def __new__(cls, name: str, data: bytes) -> Held:
        held = super().__new__(cls, name)
        held.data = data
        return held


@contextmanager
def opened_file(path: str) -> Iterator[Any]:
    """A file of captions, open for reading bytes; .gz, .bz2, .xz and .zst are unpacked.

    Raises:
        AigiError: there is none, or it cannot be read.
    """
    if isinstance(path, Held):
        yield io.BytesIO(path.data)
        return
    try:
        with opened(path, unpack=True) as file:
            yield file
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file") from None


def _chunks(path: str, file: Any) -> Iterator[bytes]:
    """Bytes as they come, up to where a packed file breaks off.

    Raises:
        AigiError: it is not packed at all.
    """
    # read1 hands out what lies before the damage in a cut .gz, where read loses a block of it.
    read_some = getattr(file, "read1", None) or file.read
    first = True
    while True:
        try:
            chunk = read_some(BLOCK)
        except BROKEN as error:
            if first and isinstance(error, gzip.BadGzipFile):
                raise AigiError(f"{path}: not a gzip file; rename it or compress it") from error
            raise
        if not chunk:
            return
        first = False
        yield chunk


def _in_utf8(path: str, chunks: Iterator[bytes], encoding: str | None) -> Iterator[bytes]:
    """The same text in UTF-8, in which bytes that are not of the encoding stay wrong."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    named = codecs.lookup(encoding).name if encoding else None
    # A mark decides between the two byte orders of `utf-16` and, where nothing is set, all.
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    found = named or marked or _UTF8
    if found == _UTF8:
        zeros = max(head[start::2].count(0) for start in (0, 1))
        if len(head) > 16 and zeros * 5 > len(head) * 2 and encoding is None:
            raise AigiError(
                f"{path}: not UTF-8: every second byte of it is zero, as in UTF-16 without its "
                "mark. Set `table.encoding` to utf-16-le or utf-16-be."
            )
        yield head
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(found)("aigi.one_bad")
    for chunk in chain([head], chunks):
        yield decoder.decode(chunk).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _with_line_feeds(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text; where carriage returns alone end its lines, with line feeds for them."""
    first = next(chunks, b"")
    if b"\n" in first or b"\r" not in first:
        yield first
        yield from chunks
        return
    for chunk in chain([first], chunks):
        yield chunk.replace(b"\r", b"\n")


def blocks(
    path: str, encoding: str | None = None, carriage: bool = False
) -> Iterator[tuple[int, list[str], dict[int, str]]]:
    """Yield `(number of the first line, lines without endings, problem by line number)`.

    LF and CRLF end a line, nothing else does; a byte order mark at the start is dropped. A line
    with a problem is there too: its bytes that are not of the encoding become surrogates. Where a
    packed file is cut or damaged, one more line says so.

    Args:
        encoding: name of a codec; None: UTF-8, or that of the byte order mark.
        carriage: whether carriage returns end lines where no line feed is in the first block, as
            in a CSV of old programs.

    Raises:
        AigiError: no such file, or one that cannot be read.
    """
    first, rest = 1, bytearray()
    with opened_file(path) as file:
        try:
            text = _in_utf8(path, _chunks(path, file), encoding)
            for chunk in _with_line_feeds(text) if carriage else text:
                head, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    lines, problems = decode_lines(bytes(rest) + head + newline, first)
                    yield first, lines, problems
                    first += len(lines)
                    rest.clear()
                rest += tail
        except BROKEN as error:
            # The line that the damage cuts is part of the problem: half a caption is no caption.
            yield first, [""], {first: f"{BREAKS_OFF}: {error}"}
            return
    if rest:
        yield first, *decode_lines(bytes(rest), first)


def lines(path: str, encoding: str | None = None, carriage: bool = False) -> Iterator[Line]:
    """The lines of `blocks`, one by one. Raises as it does."""
    for first, texts, problems in blocks(path, encoding, carriage):
        for number, text in enumerate(texts, first):
            yield Line(number, text, problems.get(number))


def whole(path: str, found: Iterable[Line]) -> str:
    """The text of all lines of a file; bytes that are not of the encoding are surrogates in it.

    Raises:
        AigiError: the file breaks off.
    """
    texts = []
    for line in found:
        if line.problem not in (None, INVALID):
            raise AigiError(f"{path}: {line.problem}. Fetch it again.")
        texts.append(line.text)
    return "\n".join(texts)


def is_wrong(text: object) -> bool:
    """Whether a text has bytes in it that are not of the file's encoding."""
    return isinstance(text, str) and not text.isascii() and ESCAPED.search(text) is not None
