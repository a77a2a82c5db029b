"""A zip archive in, whole or split into volumes (`A.z01`, `A.z02`, …, `A.zip`); one file out.

In a split archive an offset counts from the start of a volume, and `zipfile` takes it to count
from the start of the file. So the volumes are shown as one file, with a new central directory
behind them whose offsets are those of that file; nothing is joined or unpacked on disk.

Records are those of PKWARE's APPNOTE 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import bisect
import io
import os
import struct
from typing import IO

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.outside import file_system

_ENTRY = struct.Struct("<4s6H3L5H2L")  # of the central directory
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY_MARK, _END_MARK, _END64_MARK, _LOCATOR64_MARK = b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
# In a field of 16 or 32 bits: the number is in the Zip64 record instead.
_FULL16, _FULL32 = 0xFFFF, 0xFFFF_FFFF
_ZIP64 = 1  # the extra field of an entry that holds its long numbers
# Indices of _ENTRY's fields.
_PACKED, _UNPACKED, _NAME, _EXTRA, _COMMENT, _VOLUME, _OFFSET = 8, 9, 10, 11, 12, 13, 16
_LONGEST_END = _LOCATOR64.size + _END.size + 0xFFFF  # the archive's comment included


def open_file(location: str) -> IO[bytes]:
    """Open a local path or fsspec URL for reading.

    Raises:
        FileNotFoundError: no such file.
    """
    if "://" not in location:
        return open(location, "rb")
    fs, path = file_system(location)
    opened: IO[bytes] = fs.open(path, "rb")
    return opened


def bytes_now(file: object) -> int | None:
    """Bytes that an open file of this machine has now; None for any other."""
    try:
        return os.fstat(file.fileno()).st_size  # type: ignore[attr-defined]
    except (AttributeError, OSError, AigiError):
        return None


class Volumes:
    """Open files one after the other, as one seekable file to read. Not for two threads at once."""

    def __init__(self, files: list[IO[bytes]]) -> None:
        self._files: list[IO[bytes]] = []
        self.starts: list[int] = []
        self.size = self._at = 0
        for file in files:
            self.append(file)

    def append(self, file: IO[bytes]) -> None:
        """Append another file."""
        self._files.append(file)
        self.starts.append(self.size)
        self.size += file.seek(0, os.SEEK_END)

    def read(self, count: int = -1) -> bytes:
        """Read up to `count` bytes (all that are left, where negative) from here on.

        Raises:
            MachineFault: a file became shorter after it was opened.
        """
        end = self.size if count < 0 else min(self.size, self._at + count)
        parts = []
        while self._at < end:
            number = bisect.bisect_right(self.starts, self._at) - 1
            file, start = self._files[number], self.starts[number]
            stop = self.starts[number + 1] if number + 1 < len(self.starts) else self.size
            file.seek(self._at - start)
            data = file.read(min(end, stop) - self._at)
            if not data:
                raise MachineFault(f"{getattr(file, 'name', 'a volume')}: became shorter")
            parts.append(data)
            self._at += len(data)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, as `io.IOBase.seek` does; returns it.

        Raises:
            OSError: before the start.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seekable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _unpack(record: struct.Struct, mark: bytes, data: bytes, at: int = 0) -> list[int]:
    """Numbers of one record, the mark left out.

    Raises:
        ValueError: it is cut short, or something else.
    """
    if data[at : at + 4] != mark or len(data) < at + record.size:
        raise ValueError(f"no {mark!r} record where one should be")
    return list(record.unpack_from(data, at))[1:]


def _end(file: IO[bytes]) -> tuple[list[int], list[int] | None] | None:
    """Numbers of the end record and of the Zip64 locator before it; None where there is none."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_END))
    tail = file.read()
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) < at + _END.size:
        return None
    before = at - _LOCATOR64.size
    if before < 0 or tail[before : before + 4] != _LOCATOR64_MARK:
        return _unpack(_END, _END_MARK, tail, at), None
    return (
        _unpack(_END, _END_MARK, tail, at),
        _unpack(_LOCATOR64, _LOCATOR64_MARK, tail, before),
    )


def _volume_count(end: list[int], locator: list[int] | None) -> int:
    numbered = 1 if end[0] == _FULL16 else end[0] + 1
    return numbered if locator is None else max(numbered, locator[2])


def volume_name(location: str, number: int) -> str:
    """Name of a volume of the archive `location`, not the last: A.zip, 1 to A.z01."""
    stem, suffix = os.path.splitext(location)
    return f"{stem}{suffix[:2]}{number:02d}"


def open_zip(location: str) -> IO[bytes] | Volumes:
    """Open an archive for `zipfile`: the file itself, or all its volumes as one.

    Args:
        location: local path or fsspec URL; the last volume (`.zip`) of a split archive.

    Raises:
        FileNotFoundError: no such file.
        AigiError: a volume is missing, or the central directory is damaged; names it.
    """
    last = open_file(location)
    files = [last]
    try:
        found = _end(last)
        count = 1 if found is None else _volume_count(*found)
        if found is None or count == 1:
            return last
        files = []
        for number in range(1, count):
            name = volume_name(location, number)
            try:
                files.append(open_file(name))
            except FileNotFoundError:
                raise AigiError(
                    f"{name}: missing. {location} is the last of {count} volumes of one archive; "
                    "fetch the others into its folder."
                ) from None
        files.append(last)
        whole = Volumes(files)
        try:
            directory = _directory(whole, *found)
        except (ValueError, struct.error) as error:
            raise AigiError(
                f"{location}: not readable as the last of {count} volumes ({error}). "
                "Fetch all volumes again."
            ) from error
        whole.append(io.BytesIO(directory))
        return whole
    except BaseException:
        for file in {id(file): file for file in (*files, last)}.values():
            file.close()
        raise


def _directory(whole: Volumes, end: list[int], locator: list[int] | None) -> bytes:
    """Central directory and end records of the same archive in one file."""
    _, first, _, entries, size, offset, _ = end
    if locator is not None:
        volume, at, _ = locator
        whole.seek(_place(whole, volume, at))
        _, _, _, _, first, _, entries, size, offset = _unpack(
            _END64, _END64_MARK, whole.read(_END64.size)
        )
    start = _place(whole, first, offset)
    if start + size > whole.size:
        raise ValueError("the central directory is cut short")
    whole.seek(start)
    moved = _moved(whole, whole.read(size), entries)
    return b"".join(
        [
            moved,
            _END64.pack(_END64_MARK, _END64.size - 12, 45, 45, 0, 0, entries, entries,
                        len(moved), whole.size),
            _LOCATOR64.pack(_LOCATOR64_MARK, 0, whole.size + len(moved), 1),
            _END.pack(_END_MARK, 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, 0),
        ]
    )  # fmt: skip


def _place(whole: Volumes, volume: int, offset: int) -> int:
    if volume >= len(whole.starts):
        raise ValueError(f"it names volume {volume + 1}")
    return whole.starts[volume] + offset


def _moved(whole: Volumes, directory: bytes, entries: int) -> bytearray:
    """The entries of a central directory, with offsets that count from the first volume's start.

    Every entry gets its offset in a Zip64 field, whether or not it is that large.
    """
    out = bytearray()
    at = 0
    for _ in range(entries):
        fields: list[int] = [0, *_unpack(_ENTRY, _ENTRY_MARK, directory, at)]
        at += _ENTRY.size
        name = directory[at : at + fields[_NAME]]
        at += fields[_NAME]
        extra = directory[at : at + fields[_EXTRA]]
        at += fields[_EXTRA]
        comment = directory[at : at + fields[_COMMENT]]
        at += fields[_COMMENT]
        if at > len(directory):
            raise ValueError("the central directory is cut short")
        long, others = _extras(extra)
        # The long numbers are in this order, and only those that do not fit above.
        sizes = b""
        for field in (_UNPACKED, _PACKED):
            if fields[field] == _FULL32:
                sizes, long = sizes + long[:8], long[8:]
        offset, volume = fields[_OFFSET], fields[_VOLUME]
        if offset == _FULL32:
            (offset,), long = struct.unpack("<Q", long[:8]), long[8:]
        if volume == _FULL16:
            (volume,) = struct.unpack("<L", long[:4])
        sizes += struct.pack("<Q", _place(whole, volume, offset))
        extra = struct.pack("<2H", _ZIP64, len(sizes)) + sizes + others
        fields[_EXTRA], fields[_VOLUME], fields[_OFFSET] = len(extra), 0, _FULL32
        out += _ENTRY.pack(_ENTRY_MARK, *fields[1:]) + name + extra + comment
    return out


def _extras(extra: bytes) -> tuple[bytes, bytes]:
    """Content of the Zip64 field (empty where there is none), and all other fields."""
    long, others, at = b"", b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at : at + 4 + length]
        if kind == _ZIP64 and not long:
            long = field[4:]
        else:
            others += field
        at += 4 + length
    return long, others
