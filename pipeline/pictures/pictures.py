"""A folder, .zip or .parquet of images in; their names and bytes out.

Names come from outside and are distrusted: they must stay inside their folder or archive.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError
from pipeline.faults import Folders, MachineFault, in_short, let_through, of_a_name
from pipeline.outside import file_system, unreachable
from pipeline.pictures.volumes import bytes_now, open_file, open_zip
from pipeline.pixels import BadPicture, open_at_once
from pipeline.shown import public_url

EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"]
)
MAX_FILE_BYTES = 512 << 20  # 64 million pixels of 16-bit RGBA, uncompressed
MAX_TEXT_BYTES = 1 << 20  # of a caption file


class Escapes(AigiError):
    """A name or a link that leads out of the folder or archive."""


class Absent(BadPicture):
    """A name that is not in its folder or archive, which itself is there."""

    def __init__(self) -> None:
        super().__init__("no such picture")


class Caption(NamedTuple):
    """What a list states about an image: a text, or the problem that keeps it out.

    Attributes:
        split: the one that the list states; null: a hash of the text decides.
        line: of the list, where it has lines.
        variants: name of the image by watermark, where it comes in several.
    """

    name: str
    text: str | None
    problem: str | None
    split: str | None = None
    line: int | None = None
    variants: Mapping[str, str] | None = None


def escapes(name: str) -> bool:
    """True where a name is absolute, has a drive letter, or goes up with `..`."""
    plain = name.replace("\\", "/")
    return (
        plain.startswith("/")
        or re.match(r"[A-Za-z]:", plain) is not None
        or ".." in plain.split("/")
        or "\0" in plain
    )


def wanted(name: str, extensions: frozenset[str]) -> bool:
    """True where a name has one of the extensions, and no part of it is hidden."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in extensions


def _check_utf8(location: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AigiError(f"{location}: the name {name!r} is not UTF-8; rename the file") from None
    return name


def _sidecar_names(name: str) -> tuple[str, str]:
    return os.path.splitext(name)[0] + ".txt", name + ".txt"


def _check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadPicture(f"too large: {size} bytes > {MAX_FILE_BYTES}")


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
        for name in self.files():
            if wanted(name, EXTENSIONS):
                path = self._path(_check_utf8(self.location, name))
                if path.is_file() or not path.exists():  # no pipes, no devices
                    found.append(name)
        return found

    def _read(self, name: str, most: int | None) -> bytes:
        try:
            with open(self._path(name), "rb", opener=open_at_once) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise BadPicture("not a regular file")
                if most is None:
                    _check_bytes(info.st_size)
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
            lost = self._folders.lost(folder, lambda file: wanted(file, EXTENSIONS))
            if lost is not None:
                return MachineFault(
                    f"{folder}: the folder of {name} {lost}. Mount it or put it back; to go on "
                    "without this image, put an empty file in its place."
                )
        return Absent()

    def sidecar(self, name: str) -> bytes | None:
        """Content of the text file beside an image (`a.txt`, else `a.png.txt`), up to 1 MiB."""
        for text in _sidecar_names(name):
            try:
                return self._read(text, MAX_TEXT_BYTES)
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
        found = [name for name in self._sizes if wanted(name, EXTENSIONS)]
        for name in found:
            if escapes(name):
                raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        return found

    def _read(self, name: str, most: int | None) -> bytes:
        if most is None:
            _check_bytes(self.size(name))
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

    def sidecar(self, name: str) -> bytes | None:
        """Content of the text file beside an image (`a.txt`, else `a.png.txt`), up to 1 MiB."""
        for text in _sidecar_names(name):
            if text in self._sizes:
                return self._read(text, MAX_TEXT_BYTES)
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
            if not info.is_dir():
                self._files.append(name)
            if not wanted(name, EXTENSIONS | {".txt"}):
                continue
            if info.flag_bits & 1:
                raise AigiError(f"{where} is encrypted; unpack it and give the folder")
            if name in entries:
                raise AigiError(f"{where} is in it twice; pack the archive again")
            entries[_check_utf8(self.location, name)] = info
        return entries

    def files(self) -> list[str]:
        """Names of all files, images or not, in the order of the archive."""
        return self._files

    def names(self) -> list[str]:
        """Names of all images, sorted."""
        return sorted(name for name in self._entries if wanted(name, EXTENSIONS))

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
            _check_bytes(info.file_size)
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

    def sidecar(self, name: str) -> bytes | None:
        """Content of the text entry beside an image (`a.txt`, else `a.png.txt`), up to 1 MiB."""
        for text in _sidecar_names(name):
            if text in self._entries:
                return self._read(text, MAX_TEXT_BYTES)
        return None


class ParquetPictures:
    """Images in one column of a parquet file, `struct<bytes, path>` or binary.

    The name of a row is its `path`; where that is null or not unique, `ROW-00000000` and so on.
    One row group is held at a time, so reading in the order of `names()` reads each once.

    Args:
        location: local path or fsspec URL.
        column: the column; null: `image`, else the only one that can hold images.
    """

    def __init__(self, location: str, column: str | None = None) -> None:
        self.location, self._wanted_column = location, column
        self._file = open_file(location)
        try:
            self._parquet = pq.ParquetFile(self._file, page_checksum_verification=True)
            self._column, self._struct = self._picture_column(column)
        except (pa.ArrowException, OSError) as error:
            self._file.close()
            raise AigiError(
                f"{location}: not readable as parquet ({error}). Fetch it again."
            ) from error
        except AigiError:
            self._file.close()
            raise
        metadata = self._parquet.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [sum(rows[:group]) for group in range(len(rows))]
        self._lock = threading.Lock()
        self._held: tuple[int, pa.ChunkedArray] | None = None
        self._rows: dict[str, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetPictures, (self.location, self._wanted_column)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._held = None
        self._parquet.close()
        self._file.close()

    def _picture_column(self, column: str | None) -> tuple[str, bool]:
        def binary(kind: pa.DataType) -> bool:
            return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

        found: dict[str, bool] = {}
        schema = self._parquet.schema_arrow
        for field in schema:
            if binary(field.type):
                found[field.name] = False
            elif pa.types.is_struct(field.type):
                index = field.type.get_field_index("bytes")
                if index >= 0 and binary(field.type.field(index).type):
                    found[field.name] = True
        names = [column] if column else (["image"] if "image" in found else list(found))
        if len(names) != 1 or names[0] not in found:
            raise AigiError(
                f"{self.location}: {column or 'image'}: no such column of images "
                "(struct<bytes, path> or binary), or several without that name. "
                f"Its columns: {', '.join(schema.names)}"
            )
        return names[0], found[names[0]]

    def _index(self) -> dict[str, int]:
        with self._lock:
            if self._rows is None:
                rows = self._parquet.metadata.num_rows
                paths: list[str | None] = [None] * rows
                if self._struct and self._has_path():
                    with self._reading():
                        table = self._parquet.read(columns=[f"{self._column}.path"])
                    paths = [(row or {}).get("path") for row in table.column(0).to_pylist()]
                self._rows = {}
                for row, path in enumerate(paths):
                    if not path or path in self._rows or re.fullmatch(r"ROW-\d{8,}", path):
                        path = f"ROW-{row:08d}"
                    self._rows[path] = row
            return self._rows

    def _has_path(self) -> bool:
        kind = self._parquet.schema_arrow.field(self._column).type
        index = kind.get_field_index("path")
        return index >= 0 and bool(pa.types.is_string(kind.field(index).type))

    def names(self) -> list[str]:
        """Names of all rows, in the order of the file, which is the fast order to read."""
        return list(self._index())

    def read(self, name: str) -> bytes:
        """Bytes of one row's image. Raises BadPicture (missing, null, over 512 MiB)."""
        row = self._index().get(name)
        if row is None:
            raise Absent
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = None  # let go of the last one before the next is read
                with self._reading():
                    table = self._parquet.read_row_group(group, columns=[self._column])
                self._held = (group, table.column(0))
            value = self._held[1][row - self._starts[group]]
            data = value["bytes"] if self._struct and value.is_valid else value
            if not data.is_valid:
                raise BadPicture("the row holds no bytes")
            _check_bytes(data.as_buffer().size)
            return bytes(data.as_py())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around reading: what is damaged holds many rows, so it is no fault of one of them.

        Raises:
            AigiError: the file is damaged.
            MachineFault: it cannot be read.
        """
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            let_through(error, self.location)
            raise AigiError(
                f"{self.location}: not readable as parquet ({error}). Fetch it again."
            ) from error

    def size(self, name: str) -> int:
        """Roughly the bytes of one row: the mean of its row group. Raises BadPicture (missing)."""
        row = self._index().get(name)
        if row is None:
            raise Absent
        group = self._parquet.metadata.row_group(bisect.bisect_right(self._starts, row) - 1)
        return int(group.total_byte_size) // int(group.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(self._parquet.schema_arrow.names)

    def texts(self, column: str) -> Iterator[tuple[str, str | None]]:
        """Name and text of every row, in order.

        Raises:
            AigiError: no such column, or no text in it.
        """
        schema = self._parquet.schema_arrow
        if column not in schema.names:
            raise AigiError(
                f"{self.location}: {column}: no such column. Set text_column to one of: "
                f"{', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise AigiError(f"{self.location}: {column}: expected text, found {kind}")
        names = iter(self.names())
        for group in range(len(self._starts)):
            with self._lock, self._reading():
                texts = self._parquet.read_row_group(group, columns=[column]).column(0)
            for text in texts.to_pylist():
                yield next(names), text


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
