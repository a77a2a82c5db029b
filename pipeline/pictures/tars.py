"""A tar archive of images in, as WebDataset has them; their names and bytes out."""

from __future__ import annotations

import os
import tarfile
from typing import IO, Any, NamedTuple

from pipeline import AigiError
from pipeline.faults import MachineFault, in_short, let_through, of_a_name
from pipeline.outside import file_system
from pipeline.pictures.container import Container
from pipeline.pictures.names import (
    EXTENSIONS,
    SIDECARS,
    Absent,
    Escapes,
    check_bytes,
    check_utf8,
    escapes,
    of_image,
    seen,
    wanted,
)
from pipeline.pictures.volumes import open_file


class _Member(NamedTuple):
    offset: int
    size: int


class TarPictures(Container):
    """Images in a tar archive, local or at an fsspec URL. Safe to read from many threads.

    The archive is read once from header to header; then each file is read where it is. Nothing is
    held open.

    Raises:
        FileNotFoundError: no such file.
        AigiError: it is damaged or cut, or a name in it is refused.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._files: list[str] = []
        self._members: dict[str, _Member] = {}
        with open_file(location) as file:
            self._size = file.seek(0, os.SEEK_END)
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
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                self._take(info, file)
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all
            end = archive.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0") or end + tarfile.BLOCKSIZE > self._size:
            raise self._damaged(f"it breaks off at byte {end:,}")

    def _take(self, info: tarfile.TarInfo, file: IO[bytes]) -> None:
        where = f"{self.location}: the entry {info.name!r}"
        if escapes(info.name):
            raise Escapes(f"{where} escapes the folder; remove it from the archive")
        if info.issym() or info.islnk():
            raise Escapes(f"{where} is a link and escapes the folder; store the file itself")
        name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
        if info.isdir():
            return
        twin = self._members.get(name)
        if twin is None:
            self._files.append(name)
        if not seen(name):
            return
        if info.sparse is not None or not info.isreg():
            raise AigiError(f"{where} is no regular file; pack the archive again without it")
        member = _Member(info.offset_data, info.size)
        if twin is None:
            self._members[check_utf8(self.location, name)] = member
        elif wanted(name, EXTENSIONS | set(SIDECARS)):
            at, same = file.tell(), twin.size == member.size
            same = same and _part(file, twin, None) == _part(file, member, None)
            file.seek(at)
            if not same:
                raise AigiError(f"{where} is in it twice, and differs; pack the archive again")

    def files(self) -> list[str]:
        """Names of all files, images or not, in the order of the archive."""
        return self._files

    def names(self) -> list[str]:
        """Names of all images, sorted."""
        return sorted(name for name in self._members if of_image(name, self.head) is None)

    def _member(self, name: str) -> _Member:
        if escapes(name):
            raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        try:
            return self._members[name]
        except KeyError:
            raise Absent from None

    def size(self, name: str) -> int:
        """Bytes of one file. Raises BadPicture, Escapes."""
        return self._member(name).size

    def _read(self, name: str, most: int | None) -> bytes:
        member = self._member(name)
        if most is None:
            check_bytes(member.size)
        try:
            if "://" in self.location:
                fs, path = file_system(self.location)
                end = member.offset + _length(member, most)
                data = bytes(fs.cat_file(path, start=member.offset, end=end))
            else:
                with open(self.location, "rb", buffering=0) as file:
                    data = _part(file, member, most)
        except Exception as error:  # each protocol has errors of its own
            let_through(error, f"{self.location}: {name}")
            if isinstance(error, OSError) and of_a_name(error):
                raise MachineFault(f"{self.location}: is gone. Put it back.") from error
            raise MachineFault(f"{self.location}: {name}: {in_short(error)}") from error
        if len(data) < _length(member, most):
            raise MachineFault(f"{self.location}: became shorter while it was being read")
        return data


def _length(member: _Member, most: int | None) -> int:
    return member.size if most is None else min(most, member.size)


def _part(file: IO[bytes], member: _Member, most: int | None) -> bytes:
    file.seek(member.offset)
    count, parts = _length(member, most), []
    while count and (data := file.read(count)):
        parts.append(data)
        count -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
