"""A folder, .zip or .parquet of images in; their names and bytes out.

Names come from outside and are distrusted: they must stay inside their folder or archive.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from pipeline import AigiError
from pipeline.faults import Folders, MachineFault, in_short, let_through, of_a_name
from pipeline.outside import file_system, unreachable
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    SIDECARS,
    Absent,
    Escapes,
    check_bytes,
    check_utf8,
    escapes,
    may_be_image,
    of_image,
    seen,
    sidecars,
    wanted,
)
from pipeline.pictures.volumes import bytes_now, open_zip
from pipeline.pixels import BadPicture, open_at_once
from pipeline.shown import public_url


def _left_out(files: Iterable[str], head: Callable[[str, int], bytes]) -> list[tuple[str, str]]:
    found = ((name, of_image(name, head)) for name in files if seen(name) and not escapes(name))
    return [(name, why) for name, why in found if why is not None]


class _LooseFiles:
    """What a local folder and one at a URL have in common: each image is a file of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, name: str, most: int | None) -> bytes:
        raise NotImplementedError

    def checksum(self, name: str) -> int:
        """CRC-32 of one file. Raises as `read` does."""
        return zlib.crc32(self.read(name))

    def files(self) -> list[str]:
        raise NotImplementedError

    def left_out(self) -> list[tuple[str, str]]:
        """Files that are no images, each with the reason; hidden ones are not listed."""
        return _left_out(self.files(), self.head)

    def read(self, name: str) -> bytes:
        """All bytes of one file.

        Raises:
            BadPicture: it is missing, or larger than 512 MiB.
            Escapes: it is not in the folder.
            MachineFault: the disk, the way to it, or the folder itself is at fault.
        """
        return self._read(name, None)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one file. Raises as `read` does."""
        return self._read(name, count)


class FolderPictures(_LooseFiles):
    """Images in a local folder and its subfolders; names are relative, with `/`.

    One file that is not there is its own fault. If its folder is not there, is another one now or
    has no image in it (as where a mount went away), that is the machine's fault.
    """

    def __init__(self, location: str) -> None:
        self.location, self.root = location, Path(location).resolve()
        self._folders = Folders()
        self._folders.read(self.root)

    def _path(self, name: str) -> Path:
        if escapes(name):
            raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise Escapes(
                f"{self.location}: {name!r} is a link to {path} and escapes the folder; "
                "put the file itself there"
            )
        return path

    def files(self) -> list[str]:
        """Names of all files, images or not, sorted. Links are found when they are read.

        Raises:
            Escapes: a link to a folder leads out of the folder.
        """
        found = []
        for folder, folders, files in os.walk(self.root, onerror=self._unlisted):
            inside = Path(folder).relative_to(self.root)
            # A linked folder is not entered: inside, its images are listed at their own place.
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    self._path((inside / name).as_posix())
            found += [(inside / file).as_posix() for file in files]
        return sorted(found)

    def _unlisted(self, error: OSError) -> None:
        """`os.walk` would leave out in silence what it cannot list."""
        raise MachineFault(f"{error.filename}: cannot be listed: {error.strerror}") from error

    def names(self) -> list[str]:
        """Names of all images, sorted.

        Raises:
            Escapes: a link leads out of the folder.
        """
        found = []
        for name in filter(seen, self.files()):
            if wanted(name, EXTENSIONS):
                path = self._path(check_utf8(self.location, name))
                if path.is_file() or not path.exists():  # no pipes, no devices
                    found.append(name)
            elif of_image(name, self.head) is None:
                found.append(check_utf8(self.location, name))
        return found

    def _read(self, name: str, most: int | None) -> bytes:
        try:
            with open(self._path(name), "rb", opener=open_at_once) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise BadPicture("not a regular file")
                if most is None:
                    check_bytes(info.st_size)
                data = file.read(MAX_FILE_BYTES if most is None else most)
        except OSError as error:
            raise self._fault(name, error) from error
        self._folders.read((self.root / name).parent)
        return data

    def size(self, name: str) -> int:
        """Bytes of one file. Raises BadPicture, Escapes, MachineFault."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise self._fault(name, error) from error

    def _fault(self, name: str, error: OSError) -> BadPicture | MachineFault:
        """Whose fault it is that a file cannot be read."""
        if not of_a_name(error):
            return MachineFault(f"{self.location}: {name}: cannot be read: {error.strerror}")
        for folder in (self.root, (self.root / name).parent):
            lost = self._folders.lost(folder, may_be_image)
            if lost is not None:
                return MachineFault(
                    f"{folder}: the folder of {name} {lost}. Mount it or put it back; to go on "
                    "without this image, put an empty file in its place."
                )
        return Absent()

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        """Name and content of the file with the caption of an image (`sidecars`), up to 1 MiB."""
        for text in sidecars(name):
            try:
                return text, self._read(text, MAX_TEXT_BYTES)
            except BadPicture:
                continue
        return None


class UrlPictures(_LooseFiles):
    """Images in a folder at an fsspec URL and its subfolders; names are relative, with `/`."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._fs, root = file_system(location)
        self._root = root.rstrip("/") + "/"
        found = self._fs.find(root, detail=True)
        self._sizes = {
            path.removeprefix(self._root): int(info["size"] or 0)
            for path, info in sorted(found.items())
        }

    def files(self) -> list[str]:
        """Names of all files, images or not, sorted."""
        return list(self._sizes)

    def names(self) -> list[str]:
        """Names of all images, sorted. Raises Escapes."""
        found = [
            name
            for name in filter(seen, self._sizes)
            if escapes(name) or of_image(name, self.head) is None
        ]
        for name in found:
            if escapes(name):
                raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        return found

    def _read(self, name: str, most: int | None) -> bytes:
        if most is None:
            check_bytes(self.size(name))
        try:
            return bytes(self._fs.cat_file(self._root + name, start=0, end=most))
        except Exception as error:  # each protocol has errors of its own
            if isinstance(error, FileNotFoundError) and self._fs.exists(self._root):
                raise Absent from None
            raise MachineFault(
                f"{self.location}: {name}: cannot be read: {in_short(error)}"
            ) from error

    def size(self, name: str) -> int:
        """Bytes of one file. Raises BadPicture."""
        if name not in self._sizes:
            raise Absent
        return self._sizes[name]

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        """Name and content of the file with the caption of an image (`sidecars`), up to 1 MiB."""
        for text in sidecars(name):
            if text in self._sizes:
                return text, self._read(text, MAX_TEXT_BYTES)
        return None


class ZipPictures:
    """Images in a zip archive, local or at an fsspec URL. Safe to read from many threads.

    The location of an archive in volumes (`A.z01`, …, `A.zip`) is that of its last volume.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._file = open_zip(location)
        self._bytes = bytes_now(self._file)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._files: list[str] = []
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            where = f"{self.location}: the entry {info.filename!r}"
            # Links are refused with the names: unpacked elsewhere, both write outside.
            if escapes(info.filename):
                raise Escapes(f"{where} escapes the folder; remove it from the archive")
            if stat.S_ISLNK(info.external_attr >> 16):
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
            matters = wanted(name, EXTENSIONS | set(SIDECARS))
            if matters and info.flag_bits & 1:
                raise AigiError(f"{where} is encrypted; unpack it and give the folder")
            if twin is None:
                entries[check_utf8(self.location, name)] = info
            elif matters and (twin.CRC, twin.file_size) != (info.CRC, info.file_size):
                raise AigiError(f"{where} is in it twice, and differs; pack the archive again")
        return entries

    def files(self) -> list[str]:
        """Names of all files, images or not, in the order of the archive."""
        return self._files

    def names(self) -> list[str]:
        """Names of all images, sorted."""
        return sorted(name for name in self._entries if of_image(name, self.head) is None)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if escapes(name):
            raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        try:
            return self._entries[name]
        except KeyError:
            raise Absent from None

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

    def read(self, name: str) -> bytes:
        """All bytes of one entry. Raises as that of a folder; a damaged one is a BadPicture."""
        return self._read(name, None)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one entry. Raises as `read` does."""
        return self._read(name, count)

    def left_out(self) -> list[tuple[str, str]]:
        """Entries that are no images, each with the reason; hidden ones are not listed."""
        return _left_out(self._files, self.head)

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        """Name and content of the entry with the caption of an image (`sidecars`), up to 1 MiB."""
        for text in sidecars(name):
            if text in self._entries:
                return text, self._read(text, MAX_TEXT_BYTES)
        return None


Pictures = FolderPictures | UrlPictures | ZipPictures | ParquetPictures


def _suffix(location: str) -> str:
    """The ending of a location's name, in lower case; that of a signed link is before the query."""
    return os.path.splitext(public_url(location))[1].lower()


def packed(location: str) -> bool:
    """Whether a location is, by its name, an archive or table of images and no folder."""
    folder = "://" not in location and os.path.isdir(location)
    return not folder and _suffix(location) in (".zip", ".parquet")


def open_pictures(location: str, column: str | None = None) -> Pictures:
    """Open a folder, .zip or .parquet of images, local or at an fsspec URL.

    Args:
        column: of images in a parquet file; null: found by name and type.

    Raises:
        AigiError: no such file, not readable, or another kind of file.
        Escapes: a zip entry leads out of the archive.
    """
    suffix = _suffix(location)
    try:
        if "://" not in location and os.path.isdir(location):
            return FolderPictures(location)
        if suffix == ".zip":
            return ZipPictures(location)
        if suffix == ".parquet":
            return ParquetPictures(location, column)
        if "://" not in location:
            os.stat(location)
        elif (found := UrlPictures(location)).files():
            return found
        else:
            raise FileNotFoundError
    except FileNotFoundError:
        raise AigiError(f"{location}: no such file or folder") from None
    except OSError as error:
        raise unreachable(location, error) from error
    raise AigiError(f"{location}: expected a folder, a .zip or a .parquet of images")
