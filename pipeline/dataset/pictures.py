"""A folder, .zip or .parquet of pictures in; names, bytes and safely decoded RGB pictures out.

Everything that comes from outside is distrusted: names must stay inside their folder or
archive, sizes are read from headers before any pixel is decoded, and whatever a decoder raises
becomes a `BadPicture` with a reason. Where Pillow is known to lose something in silence
(16-bit samples, grey transparency, PNG checksums) the work is done here.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline import AigiError

RGB = npt.NDArray[np.uint8]
"""A picture: uint8, H x W x 3, red green blue, 0 to 255."""

EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"]
)
MAX_FILE_BYTES = 512 << 20  # 64 million pixels of 16-bit RGBA, uncompressed
MAX_TEXT_BYTES = 1 << 20  # of a caption file or a PNG text; ComfyUI graphs reach 100 KB


class BadPicture(Exception):
    """One picture that cannot be used; the text is the reason and is the same every time."""


class Escapes(AigiError):
    """A name or a link that leads out of the folder or archive."""


# --- where pictures lie ---------------------------------------------------------------------


def escapes(name: str) -> bool:
    """True where a name is absolute, has a drive letter, or goes up with `..`."""
    plain = name.replace("\\", "/")
    return (
        plain.startswith("/")
        or re.match(r"[A-Za-z]:", plain) is not None
        or ".." in plain.split("/")
        or "\0" in plain
    )


def _wanted(name: str, extensions: frozenset[str]) -> bool:
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


class FolderPictures:
    """Pictures in a local folder and its subfolders; names are relative, with `/`."""

    def __init__(self, location: str) -> None:
        self.location, self.root = location, Path(location).resolve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open."""

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

    def names(self) -> list[str]:
        """Names of all pictures, sorted.

        Raises:
            Escapes: a link leads out of the folder.
        """
        found = []
        for folder, folders, files in os.walk(self.root):
            inside = Path(folder).relative_to(self.root)
            # A linked folder is not entered: inside, its pictures are listed at their own place.
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    self._path((inside / name).as_posix())
            for file in files:
                name = (inside / file).as_posix()
                if _wanted(name, EXTENSIONS):
                    path = self._path(_check_utf8(self.location, name))
                    if path.is_file() or not path.exists():  # no pipes, no devices
                        found.append(name)
        return sorted(found)

    def _read(self, name: str, most: int | None) -> bytes:
        try:
            with open(self._path(name), "rb", opener=_open_at_once) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise BadPicture("not a regular file")
                if most is None:
                    _check_bytes(info.st_size)
                return file.read(MAX_FILE_BYTES if most is None else most)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise BadPicture("no such picture") from None

    def size(self, name: str) -> int:
        """Bytes of one file. Raises BadPicture, Escapes."""
        try:
            return self._path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise BadPicture("no such picture") from None

    def read(self, name: str) -> bytes:
        """All bytes of one file. Raises BadPicture (missing, over 512 MiB), Escapes."""
        return self._read(name, None)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one file. Raises BadPicture, Escapes."""
        return self._read(name, count)

    def sidecar(self, name: str) -> bytes | None:
        """What the text file beside a picture holds (`a.txt`, else `a.png.txt`), up to 1 MiB."""
        for text in _sidecar_names(name):
            try:
                return self._read(text, MAX_TEXT_BYTES)
            except BadPicture:
                continue
        return None


def _open_at_once(path: str, flags: int) -> int:
    # Opening a named pipe that nobody writes to would wait for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class ZipPictures:
    """Pictures in a zip archive, local or at an fsspec URL. Safe to read from many threads."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._file = _open_file(location)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._entries = self._checked_entries()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            self._file.close()
            raise AigiError(
                f"{location}: not readable as a zip archive ({error}). Fetch it again; join or "
                "unpack an archive of several volumes first."
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
        for info in self._zip.infolist():
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
            if not _wanted(name, EXTENSIONS | {".txt"}):
                continue
            if info.flag_bits & 1:
                raise AigiError(f"{where} is encrypted; unpack it and give the folder")
            if name in entries:
                raise AigiError(f"{where} stands twice; pack the archive anew")
            entries[_check_utf8(self.location, name)] = info
        return entries

    def names(self) -> list[str]:
        """Names of all pictures, sorted."""
        return sorted(name for name in self._entries if _wanted(name, EXTENSIONS))

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if escapes(name):
            raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        try:
            return self._entries[name]
        except KeyError:
            raise BadPicture("no such picture") from None

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
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BadPicture(f"damaged in the archive: {error}") from error
        except NotImplementedError as error:
            raise BadPicture(f"{error}: pack the archive with deflate") from error
        except OSError as error:
            if error.errno is not None:  # the disk, not the data
                raise
            raise BadPicture(f"damaged in the archive: {error}") from error

    def read(self, name: str) -> bytes:
        """All bytes of one entry. Raises BadPicture (missing, damaged, over 512 MiB), Escapes."""
        return self._read(name, None)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one entry. Raises BadPicture, Escapes."""
        return self._read(name, count)

    def sidecar(self, name: str) -> bytes | None:
        """What the text entry beside a picture holds (`a.txt`, else `a.png.txt`), up to 1 MiB."""
        for text in _sidecar_names(name):
            if text in self._entries:
                return self._read(text, MAX_TEXT_BYTES)
        return None


class ParquetPictures:
    """Pictures in one column of a parquet file, `struct<bytes, path>` or binary.

    The name of a row is its `path`; where that is null or stands twice, `ROW-00000000` on.
    One row group is held at a time, so reading in the order of `names()` reads each once.

    Args:
        location: local path or fsspec URL.
        column: the column; null: `image`, else the only one that can hold pictures.
    """

    def __init__(self, location: str, column: str | None = None) -> None:
        self.location, self._wanted_column = location, column
        self._file = _open_file(location)
        try:
            self._parquet = pq.ParquetFile(self._file)
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
                f"{self.location}: {column or 'image'}: no such column of pictures "
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
        """Bytes of one row's picture. Raises BadPicture (missing, null, over 512 MiB)."""
        row = self._index().get(name)
        if row is None:
            raise BadPicture("no such picture")
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = None  # let go of the last one before the next is read
                table = self._parquet.read_row_group(group, columns=[self._column])
                self._held = (group, table.column(0))
            value = self._held[1][row - self._starts[group]]
            data = value["bytes"] if self._struct and value.is_valid else value
            if not data.is_valid:
                raise BadPicture("the row holds no bytes")
            _check_bytes(data.as_buffer().size)
            return bytes(data.as_py())

    def size(self, name: str) -> int:
        """Bytes of one row's picture (it is read for that). Raises BadPicture."""
        return len(self.read(name))

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
            with self._lock:
                texts = self._parquet.read_row_group(group, columns=[column]).column(0)
            for text in texts.to_pylist():
                yield next(names), text


Pictures = FolderPictures | ZipPictures | ParquetPictures


def _open_file(location: str) -> IO[bytes]:
    if "://" not in location:
        return open(location, "rb")
    import fsspec

    opened: IO[bytes] = fsspec.open(location, "rb").open()
    return opened


def open_pictures(location: str, column: str | None = None) -> Pictures:
    """Open a folder, .zip or .parquet of pictures (the last two also at an fsspec URL).

    Args:
        column: of a parquet file, the column of pictures; null: found by name and type.

    Raises:
        AigiError: no such file, not readable, or another kind of file.
        Escapes: a zip entry leads out of the archive.
    """
    suffix = os.path.splitext(location)[1].lower()
    try:
        if "://" not in location and os.path.isdir(location):
            return FolderPictures(location)
        if suffix == ".zip":
            return ZipPictures(location)
        if suffix == ".parquet":
            return ParquetPictures(location, column)
        if "://" not in location:
            os.stat(location)
    except FileNotFoundError:
        raise AigiError(f"{location}: no such file or folder") from None
    raise AigiError(
        f"{location}: expected a folder, a .zip or a .parquet of pictures"
        + ("; a folder at a URL cannot be read, pack it" if "://" in location else "")
    )


# --- from bytes to pixels -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        rgb: uint8, H x W x 3; may be read-only. Colour values as stored: a profile of an RGB
            picture is not applied.
        lossless_png: the bytes are already an 8-bit RGB PNG that shows exactly `rgb`.
        note: what was lost or decided on the way; None where nothing was.
    """

    rgb: RGB
    lossless_png: bool
    note: str | None


Opener = Callable[[IO[bytes]], ImageFile.ImageFile]

# The classes are called directly. `Image.open` would also try formats that start programs
# (EPS), would warn at a global pixel limit, and calls a damaged picture "not identified".
_OPENERS: dict[str, Opener] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

_PNG = b"\x89PNG\r\n\x1a\n"


def _kind(data: bytes) -> str:
    if data[:8] == _PNG:
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[4:8] == b"ftyp" and (b"avif" in data[8:64] or b"avis" in data[8:64]):
        return "AVIF"
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        raise BadPicture("JPEG XL: Pillow cannot decode it; convert it to PNG")
    if not data:
        raise BadPicture("empty")
    raise BadPicture("not a picture")


def _check_pixels(size: tuple[int, int] | None, most: int) -> None:
    if size is not None and size[0] * size[1] > most:
        raise BadPicture(f"too large: {size[0]}x{size[1]} pixels > {most}")


def _early_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height where they must be known before Pillow sees the file, else None.

    Of a WebP the canvas is allocated as soon as it is opened; of a PNG the size decides first,
    so that a bomb is called a bomb and not damaged.
    """
    if kind == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if kind == "WEBP" and len(data) >= 30:
        if data[12:16] == b"VP8X":
            return (
                int.from_bytes(data[24:27], "little") + 1,
                int.from_bytes(data[27:30], "little") + 1,
            )
        if data[12:16] == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if data[12:16] == b"VP8 ":
            return (
                int.from_bytes(data[26:28], "little") & 0x3FFF,
                int.from_bytes(data[28:30], "little") & 0x3FFF,
            )
    return None


def _png_chunks(data: bytes, check: bool) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of every chunk up to IEND; with `check`, checksums are verified.

    Pillow checks neither the checksums of pixel data nor that IEND is there.
    """
    view, at = memoryview(data), len(_PNG)
    while True:
        if at + 8 > len(data):
            raise BadPicture("truncated")
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadPicture("truncated")
        if check and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadPicture(f"damaged: wrong checksum in the PNG chunk {kind!r}")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4


@dataclass(frozen=True)
class _PngHeader:
    bits: int = 0
    rgb: bool = False
    alpha: bool = False  # a tRNS chunk
    animated: bool = False  # an acTL chunk, even of one frame


def _png_header(data: bytes) -> _PngHeader:
    chunks: dict[bytes, bytes] = {}
    for number, (kind, content) in enumerate(_png_chunks(data, check=True)):
        if (kind == b"IHDR") != (number == 0):  # of two, readers do not take the same one
            raise BadPicture("damaged: a PNG must have one header, first")
        if kind in (b"IHDR", b"tRNS", b"acTL"):
            chunks.setdefault(kind, bytes(content[:13]))
    header = chunks.get(b"IHDR", b"")
    if len(header) < 13:
        raise BadPicture("damaged: the PNG header is cut short")
    frames = int.from_bytes(chunks.get(b"acTL", b"")[:4], "big")
    if frames > 1:
        raise BadPicture(f"animated: {frames} frames")
    return _PngHeader(header[8], header[9] == 2, b"tRNS" in chunks, b"acTL" in chunks)


# How an array is turned for each EXIF orientation; 5 to 8 swap width and height.
_TURNS: dict[int, Callable[[RGB], RGB]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def _orientation(exif: Callable[[], Image.Exif]) -> int:
    try:
        value = exif().get(0x0112, 1)
    except Exception:  # damaged EXIF of a sound picture; Pillow raises nearly anything here
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


# Pillow has no RGB of 16 bits: it keeps the high byte, that is, truncates. Unpacked in the
# other byte order the same data give the low byte.
_LOW_BYTE = {
    f"{mode};16{order}": f"{mode};16{'B' if order != 'B' else 'L'}"
    for mode in ("RGB", "RGBA")
    for order in "LBN"  # N, native: little-endian wherever this runs, as Arrow assumes too
}


def _raw_mode(picture: ImageFile.ImageFile) -> str:
    args = picture.tile[0].args if picture.tile else None
    return str(args[0] if isinstance(args, tuple) and args else args)


def _set_raw_mode(picture: ImageFile.ImageFile, mode: str) -> None:
    picture.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile in picture.tile
    ]


def _samples16(
    picture: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]
) -> npt.NDArray[np.uint16] | None:
    """All 16 bits of a colour picture, H x W x 3 or 4; None where Pillow's mode holds them all."""
    mode = _raw_mode(picture)
    if mode == "LA;16B":
        # Grey and alpha of 16 bits are as wide as RGBA of 8: read the four bytes as they stand.
        _set_raw_mode(picture, "RGBA")
        pairs = np.asarray(picture).astype(np.uint16)
        both: npt.NDArray[np.uint16] = pairs[..., ::2] << np.uint16(8) | pairs[..., 1::2]
        return both[..., [0, 0, 0, 1]]
    if mode not in _LOW_BYTE:
        return None
    with again() as other:
        _set_raw_mode(other, _LOW_BYTE[mode])
        low = np.asarray(other)
    deep: npt.NDArray[np.uint16] = np.asarray(picture).astype(np.uint16) << np.uint16(8) | low
    return deep


def _to_8_bits(samples: npt.NDArray[np.uint16], top: int) -> RGB:
    """Samples of 0 to `top`, rounded to 0 to 255."""
    table: RGB = ((np.arange(65536) * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)
    return table[samples]


def _over_white(rgba: RGB) -> tuple[RGB, str | None]:
    """Drop an opaque alpha channel; else lay the picture over white, and say so."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return rgba[..., :3], None
    # At most 255 * 255 + 127: it fits.
    mixed = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8), "transparent pixels laid over white"


def _cmyk(picture: Image.Image) -> tuple[RGB, str]:
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                picture,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
            if converted is not None:
                return np.asarray(converted), "CMYK converted with its profile"
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # no profile, or one of another colour space: the plain conversion
    return np.asarray(picture.convert("RGB")), "CMYK converted without a profile"


def _rgb(
    picture: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile], grey_bits: int
) -> tuple[RGB, str | None]:
    key = picture.info.get("transparency")
    deep = _samples16(picture, again)
    if deep is None and picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(258, (16,))
        samples = np.asarray(picture).astype(np.uint16)  # whatever its byte order
        grey = _to_8_bits(samples, 4095 if bits == (12,) else 65535)
        alpha = samples != key if isinstance(key, int) else np.ones(samples.shape, bool)
        return _over_white(np.dstack([grey, grey, grey, np.uint8(255) * alpha]))
    if deep is not None:
        eight = _to_8_bits(deep, 65535)
        if deep.shape[2] == 3 and isinstance(key, tuple):
            alpha = (deep != np.array(key, np.uint16)).any(axis=2)
            eight = np.dstack([eight, np.uint8(255) * alpha])
        return _over_white(eight) if eight.shape[2] == 4 else (eight, None)
    cut = "16-bit samples cut to 8" if ";16" in _raw_mode(picture) else None
    picture.load()
    if picture.mode == "CMYK":
        rgb, how = _cmyk(picture)
        return rgb, f"{how}; {cut}" if cut else how
    if picture.mode in ("I", "F", "LAB"):
        raise BadPicture(f"unsupported: {picture.mode} samples have no fixed range; use 8 bits")
    if isinstance(key, int) and picture.mode == "L" and grey_bits in (2, 4):
        # Pillow scales such pixels to 0..255 but not the value that means transparent.
        picture.info["transparency"] = key * (255 // (2**grey_bits - 1))
    if picture.has_transparency_data:
        rgb, flat = _over_white(np.asarray(picture.convert("RGBA")))
        return rgb, "; ".join(part for part in (flat, cut) if part) or None
    return np.asarray(picture.convert("RGB")), cut


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too large: " + str(error).partition(",")[0]
    if isinstance(error, MemoryError):
        return "too large: out of memory"
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>|0x[0-9a-f]{6,}", "", str(error)).strip()
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "truncated"
    return f"damaged: {text[:200] or type(error).__name__}"


def decode(data: bytes, max_pixels: int) -> Picture:
    """Decode one picture file: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.

    EXIF orientation is applied. Grey, palette and CMYK become RGB (CMYK through its profile),
    16-bit samples are rounded to 8, transparency is laid over white.

    Args:
        data: the whole file.
        max_pixels: more, by the header, are refused before any is decoded.

    Raises:
        BadPicture: `empty`, `not a picture`, `truncated`, `too large: …`, `animated: …`,
            `several pages: …`, `unsupported: …` or `damaged: …`. Never anything else.
    """
    try:
        return _decode(data, max_pixels)
    except BadPicture:
        raise
    except Exception as error:  # Pillow promises no closed set of exceptions for damaged files
        raise BadPicture(_reason(error)) from error


def _decode(data: bytes, max_pixels: int) -> Picture:
    kind = _kind(data)
    _check_pixels(_early_size(data, kind), max_pixels)
    png = _png_header(data) if kind == "PNG" else _PngHeader()
    if kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadPicture("truncated")

    def opened() -> ImageFile.ImageFile:
        return _OPENERS[kind](io.BytesIO(data))

    with opened() as picture:
        _check_pixels(picture.size, max_pixels)
        frames = 1 if kind == "PNG" else int(getattr(picture, "n_frames", 1))
        if frames > 1:
            raise BadPicture(
                f"several pages: {frames}" if kind == "TIFF" else f"animated: {frames} frames"
            )
        rgb, note = _rgb(picture, opened, png.bits)
        # After loading: EXIF may follow the pixels, and a TIFF is turned by Pillow itself.
        orientation = _orientation(picture.getexif)
    height, width = rgb.shape[:2]
    return Picture(
        rgb=np.ascontiguousarray(_TURNS[orientation](rgb)),
        lossless_png=png.bits == 8
        and png.rgb
        and not png.alpha
        and not png.animated
        and orientation == 1
        and len(data) <= 4 * width * height + 65536,  # no megabytes of something else inside
        note=note,
    )


def image_size(data_or_path: bytes | str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height as shown (EXIF orientation 5 to 8 swaps them), read from the header.

    EXIF that stands behind the pixels of a PNG (allowed, rare) is not seen.

    Returns:
        None where it is no picture or the header is damaged.
    """
    try:
        with (
            io.BytesIO(data_or_path)
            if isinstance(data_or_path, bytes)
            else open(data_or_path, "rb", opener=_open_at_once) as file
        ):
            kind = _kind(file.read(64))
            file.seek(0)
            with _OPENERS[kind](file) as picture:
                width, height = picture.size
                # Not the PNG's own getexif, which decodes the pixels first.
                orientation = _orientation(lambda: Image.Image.getexif(picture))
    except Exception:  # as in `decode`; there is no reason to give here
        return None
    swapped = orientation >= 5 and kind != "TIFF"  # Pillow gives a TIFF's size as shown
    return (height, width) if swapped else (width, height)


def png_bytes(rgb: RGB, level: int) -> bytes:
    """Encode a uint8 H x W x 3 picture as PNG without metadata; `level` is zlib's, 0 to 9."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", compress_level=level)
    return out.getvalue()


def pixels_sha256(rgb: RGB) -> str:
    """sha256 (hex) of a uint8 H x W x 3 picture, row by row."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()


# --- prompts inside PNG files ---------------------------------------------------------------


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)


def _png_texts(data: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    try:
        for kind, content in _png_chunks(data, check=False):
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(content) > MAX_TEXT_BYTES:
                continue
            key, _, rest = bytes(content).partition(b"\0")
            name = key.decode("latin-1")
            if kind == b"tEXt":
                texts.setdefault(name, rest.decode("latin-1"))
            elif kind == b"zTXt":
                texts.setdefault(name, _inflated(rest[1:]).decode("latin-1"))
            else:
                compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
                texts.setdefault(name, (_inflated(text) if compressed else text).decode("utf-8"))
    except (BadPicture, zlib.error, UnicodeDecodeError):
        pass  # what was found before the damage stands
    return texts


def _comfy_prompt(graph: Any) -> str | None:
    """The one text that the samplers of a ComfyUI graph take as their positive input."""
    found = set()
    for node in graph.values():
        if str(node.get("class_type", "")).startswith("KSampler"):
            link = node["inputs"]["positive"]
            found.add(graph[link[0]]["inputs"]["text"])
    text = found.pop() if len(found) == 1 else None
    return text if isinstance(text, str) else None


def embedded_prompt(data: bytes) -> str | None:
    """The prompt that AUTOMATIC1111, InvokeAI or (simple graphs) ComfyUI wrote into a PNG.

    Args:
        data: the file, or its beginning: what is cut off is not searched.

    Returns:
        The positive prompt, stripped; None where there is none.
    """
    if data[:8] != _PNG:
        return None
    texts = _png_texts(data)
    found: Any = None
    if "parameters" in texts:
        found = re.split(r"(?m)^(?:Negative prompt|Steps):", texts["parameters"])[0]
    else:
        try:
            if "invokeai_metadata" in texts:
                found = json.loads(texts["invokeai_metadata"])["positive_prompt"]
            elif "prompt" in texts:
                found = _comfy_prompt(json.loads(texts["prompt"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # another program's idea of these names
    return (found.strip() or None) if isinstance(found, str) else None
