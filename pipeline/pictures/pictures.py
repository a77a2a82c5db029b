"""A place of images in (a folder, an archive, a table, shards of them); names and bytes out.

Names come from outside and are distrusted: they must stay inside their folder or archive.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from pipeline import AigiError
from pipeline.faults import Folders, MachineFault, in_short, of_a_name
from pipeline.files import fixed_part
from pipeline.outside import file_system, unreachable
from pipeline.pictures.container import Container
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    Absent,
    Escapes,
    check_bytes,
    check_utf8,
    escapes,
    may_be_image,
    of_image,
    seen,
    wanted,
)
from pipeline.pictures.several import Several
from pipeline.pictures.tars import TarPictures
from pipeline.pictures.zips import ZipPictures
from pipeline.pixels import BadPicture, open_at_once
from pipeline.rows import shards
from pipeline.shown import public_url


class FolderPictures(Container):
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


class UrlPictures(Container):
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
        size = self.size(name)
        if most is None:
            check_bytes(size)
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


PACKED = (".zip", ".parquet", ".tar")
"""Endings of archives and tables of images."""
_TAR_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


def _suffix(location: str) -> str:
    """The ending of a location's name, in lower case; that of a signed link is before the query."""
    return os.path.splitext(public_url(location))[1].lower()


def packed(location: str) -> bool:
    """Whether a location is, by its name, an archive or table of images and no folder."""
    folder = "://" not in location and os.path.isdir(location)
    return not folder and _suffix(location) in PACKED


def _shards(files: Iterable[str]) -> list[str]:
    """Archives and tables among files that have no image beside them; else none.

    What img2dataset writes beside `00000.tar` (`00000.parquet`, with its urls) is none of them.
    """
    shown = [name for name in files if seen(name)]
    if any(map(may_be_image, shown)):
        return []
    tars = {os.path.splitext(name)[0] for name in shown if _suffix(name) == ".tar"}
    return sorted(
        name
        for name in shown
        if _suffix(name) in PACKED
        and not (_suffix(name) == ".parquet" and os.path.splitext(name)[0] in tars)
    )


def _several(location: str, root: str, names: Iterable[str], column: str | None) -> Container:
    openers = {name: partial(_open_packed, f"{root}{name}", column) for name in names}
    return Several(location, openers, (open_pictures, (location, column)))


def _folder(location: str, opened: FolderPictures | UrlPictures, column: str | None) -> Container:
    """A folder of images, or of shards with images."""
    if isinstance(opened, FolderPictures) and not any(map(packed, os.listdir(opened.root))):
        return opened
    found = _shards(opened.files())
    return _several(location, location.rstrip("/") + "/", found, column) if found else opened


def _pattern(location: str, start: str, column: str | None) -> Container:
    found = shards.files_of(location, ())
    others = [name for _, name in found if _suffix(name) not in PACKED]
    if others:
        raise AigiError(
            f"{location}: {others[0]} fits this pattern, and is none of {', '.join(PACKED)}"
        )
    return _several(location, start, [name for _, name in found], column)


def _zip(location: str) -> Container:
    outer = ZipPictures(location)
    inside = outer.archives()
    if not inside:
        return outer
    openers: dict[str, Callable[[], Container]] = {"": lambda: outer}
    openers |= {name: partial(outer.inner, name) for name in inside}
    found = Several(location, openers, (open_pictures, (location,)))
    found.part("")  # so that it is closed with the others
    return found


def _open_packed(location: str, column: str | None) -> Container:
    suffix = _suffix(location)
    if suffix == ".zip":
        return _zip(location)
    return TarPictures(location) if suffix == ".tar" else ParquetPictures(location, column)


def open_pictures(location: str, column: str | None = None) -> Container:
    """Open a place of images, local or at an fsspec URL.

    Args:
        location: a folder of images; a .zip (with archives in it, too), .tar or .parquet of
            images; a folder of such shards, or a pattern (`train-*.tar`).
        column: of images in a parquet file; null: found by name and type.

    Raises:
        AigiError: no such file, not readable, or another kind of file.
        Escapes: an entry leads out of its archive.
    """
    local = "://" not in location
    try:
        if local and os.path.isdir(location):
            return _folder(location, FolderPictures(location), column)
        start = fixed_part(location)
        if start is not None and not (local and os.path.exists(location)):
            return _pattern(location, start, column)
        if _suffix(location) in PACKED:
            return _open_packed(location, column)
        if public_url(location).lower().endswith(_TAR_PACKED):
            raise AigiError(f"{location}: unpack it to a .tar; files in it cannot be found so")
        if local:
            os.stat(location)
        elif (found := UrlPictures(location)).files():
            return _folder(location, found, column)
        else:
            raise FileNotFoundError
    except FileNotFoundError:
        raise AigiError(f"{location}: no such file or folder") from None
    except OSError as error:
        raise unreachable(location, error) from error
    raise AigiError(f"{location}: expected a folder, a .zip, a .tar or a .parquet of images")


def in_order(location: str) -> bool:
    """Whether images are read much faster in the order of their names; raises as opening does."""
    if packed(location) and fixed_part(location) is None:
        return _suffix(location) == ".parquet"
    with open_pictures(location) as pictures:
        return pictures.in_order
