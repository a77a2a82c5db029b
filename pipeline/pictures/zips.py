"""A zip archive of images in, whole or in volumes; their names and bytes out."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from typing import IO, Any

from pipeline import AigiError
from pipeline.faults import MachineFault, in_short, let_through
from pipeline.pictures.container import MATTERS, Archive
from pipeline.pictures.names import (
    Escapes,
    check_bytes,
    check_utf8,
    escapes,
    seen,
    wanted,
)
from pipeline.pictures.volumes import bytes_now, open_zip
from pipeline.pixels import BadPicture

MOST_UNPACKED = 200
"""Times the size of an archive inside another one that it may unpack to; deflate makes 1,000."""


class ZipPictures(Archive[zipfile.ZipInfo]):
    """Images in a zip archive, local or at an fsspec URL. Safe to read from many threads.

    The location of an archive in volumes (`A.z01`, …, `A.zip`) is that of its last volume.

    Args:
        file: the open archive, where it is inside another one.
    """

    def __init__(self, location: str, file: IO[bytes] | None = None) -> None:
        super().__init__(location)
        self._file = open_zip(location) if file is None else file
        self._bytes = bytes_now(self._file)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._entries = self._checked_entries()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            self._file.close()
            raise AigiError(
                f"{location}: not readable as a zip archive ({error}). Fetch it again."
            ) from error
        except AigiError:
            self._file.close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipPictures, (self.location,)

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            # Links are refused with the names: unpacked elsewhere, both write outside.
            if escapes(info.filename):
                raise Escapes(f"{self._where(info)} escapes the folder; remove it from the archive")
            if info.external_attr and stat.S_ISLNK(info.external_attr >> 16):
                where = self._where(info)
                raise Escapes(f"{where} is a link and escapes the folder; store the file itself")
            name = info.filename
            if not info.flag_bits & 0x800 and not name.isascii():
                # macOS writes UTF-8 and does not say so; `zipfile` then assumes code page 437.
                try:
                    name = name.encode("cp437").decode("utf-8")
                except UnicodeError:
                    name = info.filename
            if info.is_dir():
                continue
            twin = entries.get(name)
            if twin is None:
                self._files.append(name)
            if not seen(name):
                continue
            if info.flag_bits & 1 and wanted(name, MATTERS):
                raise AigiError(f"{self._where(info)} is encrypted; unpack it and give the folder")
            if twin is None:
                entries[check_utf8(self.location, name)] = info
            elif (twin.CRC, twin.file_size) != (info.CRC, info.file_size) and wanted(name, MATTERS):
                where = self._where(info)
                raise AigiError(f"{where} is in it twice, and differs; pack the archive again")
        return entries

    def _where(self, info: zipfile.ZipInfo) -> str:
        return f"{self.location}: the entry {info.filename!r}"

    def archives(self) -> list[str]:
        """Names of the archives inside, sorted."""
        return sorted(name for name in self._entries if wanted(name, frozenset([".zip"])))

    def inner(self, name: str) -> ZipPictures:
        """An archive that is inside this one, unpacked to a file without a name.

        Raises:
            AigiError: it is no archive, or cannot be unpacked.
        """
        info = self._entry(name)
        where = f"{self.location}/{name}"
        if info.file_size > MOST_UNPACKED * max(info.compress_size, 1):
            raise AigiError(f"{where}: unpacks to {info.file_size:,} bytes; unpack it yourself")
        file = tempfile.TemporaryFile(prefix="aigi-zip-")  # noqa: SIM115 (closed with the archive)
        try:
            with self._zip.open(info) as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
        except Exception as error:
            file.close()
            let_through(error, where)
            raise AigiError(f"{where}: damaged in the archive: {error}") from error
        file.seek(0)
        return ZipPictures(where, file)

    def checksum(self, name: str) -> int:
        """CRC-32 of one entry, as the archive declares it. Raises BadPicture, Escapes."""
        return self._entry(name).CRC

    def size(self, name: str) -> int:
        """Bytes of one entry, as the archive declares them. Raises BadPicture, Escapes."""
        return self._entry(name).file_size

    def _read(self, name: str, most: int | None) -> bytes:
        info = self._entry(name)
        if most is None:
            check_bytes(info.file_size)
        try:
            # Never more than was declared is unpacked, whatever the data hold.
            with self._zip.open(info) as file:
                return file.read(info.file_size if most is None else most)
        except NotImplementedError as error:
            raise BadPicture(f"{error}: pack the archive with deflate") from error
        except Exception as error:  # each protocol has errors of its own
            let_through(error, f"{self.location}: {name}")
            if not isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | OSError):
                raise
            if getattr(error, "errno", None) is not None:  # the archive, not its data
                raise MachineFault(f"{self.location}: {in_short(error)}") from error
            if bytes_now(self._file) != self._bytes:
                raise MachineFault(f"{self.location}: changed while it was being read") from error
            raise BadPicture(f"damaged in the archive: {error}") from error
