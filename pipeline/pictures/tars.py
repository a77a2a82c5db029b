"""A tar archive of images in, as WebDataset has them; their names and bytes out."""

from __future__ import annotations

import os
import tarfile
from typing import IO, Any, NamedTuple

from pipeline import AigiError
from pipeline.faults import MachineFault, in_short, let_through, of_a_name
from pipeline.outside import file_system
from pipeline.pictures.container import MATTERS, Archive
from pipeline.pictures.names import (
    Escapes,
    check_bytes,
    check_utf8,
    escapes,
    seen,
    wanted,
)
from pipeline.pictures.volumes import open_file


class _Member(NamedTuple):
    offset: int
    size: int


_REGULAR, _FOLDER, _PAX = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE, tarfile.XHDTYPE
_TIMES = frozenset([b"mtime", b"atime", b"ctime"])


def _number(field: bytes) -> int | None:
    """An octal number of a header; None: it is written otherwise."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits.isdigit() and not set(digits) & {56, 57} else None


def _plain_header(block: bytes) -> tuple[bytes, str, int] | None:
    """Type, name and bytes of an entry; None where `tarfile` has to look at it.

    Fields are those of POSIX.1-1988 (ustar) and of GNU tar, which differ behind these.
    """
    kind = block[156:157]
    size, checksum = _number(block[124:136]), _number(block[148:156])
    if (kind not in _REGULAR and kind not in (_FOLDER, _PAX)) or size is None:
        return None
    # Its own field counts as eight spaces.
    if checksum is None or sum(block) - sum(block[148:156]) + 256 != checksum:
        return None
    name, prefix = block[:100].partition(b"\0")[0], block[345:346]
    if block[257:265] == b"ustar\x0000" and prefix != b"\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    elif kind == tarfile.AREGTYPE and name.endswith(b"/"):
        return None  # a folder in the oldest form
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return (_FOLDER, text.rstrip("/"), 0) if kind == _FOLDER else (kind, text, size)


def _only_times(records: bytes) -> bool:
    """Whether records that go before an entry only say when it was changed."""
    at = 0
    while at < len(records):
        length, space, rest = records[at : at + 32].partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(records) - at:
            return False
        if rest.partition(b"=")[0] not in _TIMES:
            return False
        at += int(length)
    return True


class TarPictures(Archive[_Member]):
    """Images in a tar archive, local or at an fsspec URL. Safe to read from many threads.

    The archive is read once from header to header; then each file is read where it is. Nothing is
    held open.

    Raises:
        FileNotFoundError: no such file.
        AigiError: it is damaged or cut, or a name in it is refused.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location)
        with open_file(location) as file:
            self._size = file.seek(0, os.SEEK_END)
            self._was = _identity(file)
            file.seek(0)
            try:
                self._index(file)
            except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
                raise self._damaged(str(error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return TarPictures, (self.location,)

    def _damaged(self, why: str) -> AigiError:
        return AigiError(f"{self.location}: not readable as a tar archive ({why}). Fetch it again.")

    def _index(self, file: IO[bytes]) -> None:
        """Find all files, and check that none was missed: `tarfile` ends at what it cannot read."""
        end = self._plain(file)
        if end is None:
            self._files, self._entries = [], {}
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    if info.isdir():
                        self._take(info.name, None, file)
                        continue
                    if info.issym() or info.islnk():
                        where = self._where(info.name)
                        raise Escapes(
                            f"{where} is a link and escapes the folder; store the file itself"
                        )
                    if info.sparse is not None or not info.isreg():
                        raise AigiError(
                            f"{self._where(info.name)} is no regular file; pack the archive again "
                            "without it"
                        )
                    self._take(info.name, _Member(info.offset_data, info.size), file)
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps all
                end = archive.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0") or end + tarfile.BLOCKSIZE > self._size:
            raise self._damaged(f"it breaks off at byte {end:,}")

    def _plain(self, file: IO[bytes]) -> int | None:
        """Index an archive of regular files with plain headers, in a third of `tarfile`'s time.

        Returns: where it ends; None: something else is in it, for which `tarfile` is asked.
        """
        at = 0
        while True:
            file.seek(at)
            block = file.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE or not block[0]:
                return at if block and not any(block) else None
            header = _plain_header(block)
            if header is None:
                return None
            kind, name, size = header
            data = at + tarfile.BLOCKSIZE
            at = data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if at > self._size:
                return None
            if kind == _PAX:
                if not _only_times(file.read(size)):
                    return None
            else:
                self._take(name, None if kind == _FOLDER else _Member(data, size), file)

    def _where(self, name: str) -> str:
        return f"{self.location}: the entry {name!r}"

    def _take(self, entry: str, member: _Member | None, file: IO[bytes]) -> None:
        """Take a file; of a folder (None), only the name is checked."""
        if escapes(entry):
            raise Escapes(f"{self._where(entry)} escapes the folder; remove it from the archive")
        if member is None:
            return
        name = entry
        if entry.startswith("./") or "//" in entry or "/./" in entry:
            name = "/".join(part for part in entry.split("/") if part not in ("", "."))
        twin = self._entries.get(name)
        if twin is None:
            self._files.append(name)
        if not seen(name):
            return
        if twin is None:
            self._entries[check_utf8(self.location, name)] = member
        elif wanted(name, MATTERS):
            at, same = file.tell(), twin.size == member.size
            same = same and _part(file, twin, None) == _part(file, member, None)
            file.seek(at)
            if not same:
                where = self._where(entry)
                raise AigiError(f"{where} is in it twice, and differs; pack the archive again")

    def size(self, name: str) -> int:
        """Bytes of one file. Raises BadPicture, Escapes."""
        return self._entry(name).size

    def _read(self, name: str, most: int | None) -> bytes:
        member = self._entry(name)
        if most is None:
            check_bytes(member.size)
        try:
            if "://" in self.location:
                fs, path = file_system(self.location)
                end = member.offset + _length(member, most)
                data = bytes(fs.cat_file(path, start=member.offset, end=end))
            else:
                with open(self.location, "rb", buffering=0) as file:
                    if _identity(file) != self._was:
                        raise MachineFault(f"{self.location}: changed since it was opened")
                    data = _part(file, member, most)
        except MachineFault:
            raise
        except Exception as error:  # each protocol has errors of its own
            let_through(error, f"{self.location}: {name}")
            if isinstance(error, OSError) and of_a_name(error):
                raise MachineFault(f"{self.location}: is gone. Put it back.") from error
            raise MachineFault(f"{self.location}: {name}: {in_short(error)}") from error
        if len(data) < _length(member, most):
            raise MachineFault(f"{self.location}: became shorter while it was being read")
        return data


def _identity(file: IO[bytes]) -> tuple[int, ...] | None:
    """What tells a local file from another one of its name; None: it is at a URL."""
    try:
        info = os.fstat(file.fileno())
    except (AttributeError, OSError, AigiError):
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _length(member: _Member, most: int | None) -> int:
    return member.size if most is None else min(most, member.size)


def _part(file: IO[bytes], member: _Member, most: int | None) -> bytes:
    file.seek(member.offset)
    count, parts = _length(member, most), []
    while count and (data := file.read(count)):
        parts.append(data)
        count -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
