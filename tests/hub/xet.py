"""The Xet store: what its shards and xorbs say.

Files are made of terms, terms are chunks in a row of a xorb, and shards tell which. The formats
and calls are those of https://huggingface.co/docs/xet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.hub.records import Refused


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `stop` of a xorb, `size` bytes once unpacked."""

    xorb: str
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class XetFile:
    hash: str
    sha256: str
    terms: list[Term]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Shard:
    """The files a shard tells of, by hash and by sha256, and its xorbs: (record, chunk hashes)."""

    files: dict[str, XetFile]
    xorbs: list[tuple[bytes, set[str]]]


@lru_cache(maxsize=4096)
def read_shard(path: Path) -> Shard:
    """Both sections of a shard are records of 48 bytes and end with one that starts with 32 FF."""
    data, at = path.read_bytes(), 48
    shard, end = Shard({}, []), b"\xff" * 32

    def number(at: int) -> int:
        return int.from_bytes(data[at : at + 4], "little")

    def more() -> bool:
        if at + 48 > len(data):
            raise Refused(400, "the shard ends too early")
        return data[at : at + 32] != end

    while more():
        flags, count = number(at + 32), number(at + 36)
        terms = [
            Term(hash_digits(data, t), number(t + 40), number(t + 44), number(t + 36))
            for t in range(at + 48, at + 48 * (count + 1), 48)
        ]
        hash, at = hash_digits(data, at), at + 48 * (1 + count * (2 if flags >> 31 else 1))
        sha256 = ""
        if flags >> 30 & 1:
            sha256, at = hash_digits(data, at), at + 48
        shard.files[hash] = shard.files[sha256] = XetFile(hash, sha256, terms)
    at += 48
    while more():
        stop = at + 48 * (1 + number(at + 36))
        chunks = {hash_digits(data, c) for c in range(at + 48, stop, 48)}
        shard.xorbs.append((data[at:stop], chunks))
        at = stop
    return shard


def hash_digits(data: bytes, at: int) -> str:
    """A hash is four little-endian u64, sha256 too."""
    return "".join(data[i : i + 8][::-1].hex() for i in range(at, at + 32, 8))


@dataclass(frozen=True)
class Xorb:
    """A file of packed chunks; `offsets` has the start of each and the end of the last."""

    path: Path
    offsets: list[int]

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Unpack chunks: 8 bytes of header each, then plain, LZ4, or LZ4 of regrouped bytes."""
        import pyarrow as pa

        with self.path.open("rb") as file:
            file.seek(self.offsets[start])
            for _ in range(start, stop):
                header = file.read(8)
                packed, size = (int.from_bytes(header[i : i + 3], "little") for i in (1, 5))
                chunk = file.read(packed)
                if header[4]:
                    chunk = pa.decompress(chunk, size, codec="lz4", asbytes=True)
                if header[4] == 2:  # all first bytes of four, all second ones, ...
                    whole, at = bytearray(size), 0
                    for n in range(4):
                        count = len(whole[n::4])
                        whole[n::4], at = chunk[at : at + count], at + count
                    chunk = bytes(whole)
                yield chunk


@lru_cache(maxsize=4096)
def read_xorb(path: Path) -> Xorb:
    size, offsets = path.stat().st_size, [0]
    with path.open("rb") as file:
        # After the chunks, whose version is 0, there may be a footer, which starts with letters.
        while (header := file.read(8)) and header[0] == 0 and offsets[-1] < size:
            offsets.append(offsets[-1] + 8 + int.from_bytes(header[1:4], "little"))
            file.seek(offsets[-1])
    return Xorb(path, offsets)
