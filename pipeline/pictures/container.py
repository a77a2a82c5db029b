"""What folders, archives and tables of images have in common: names in, bytes out."""

from __future__ import annotations

import zlib
from typing import Generic, Self, TypeVar

from pipeline.pictures.names import (
    EXTENSIONS,
    MAX_TEXT_BYTES,
    SIDECARS,
    Absent,
    Escapes,
    escapes,
    of_image,
    seen,
    sidecars,
)

MATTERS = EXTENSIONS | set(SIDECARS)
"""Endings of files of an archive of which no two may differ under one name."""
Entry = TypeVar("Entry")


class Container:
    """Files by name, some of which are images.

    Names are relative, with `/`. They come from outside and are distrusted.
    """

    location: str
    in_order = False
    """Whether reading in the order of `names` is much faster than in any other."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is held open; by default nothing is."""

    def let_go(self) -> None:
        """Let go of memory that makes the next reading faster; by default there is none."""

    def files(self) -> list[str]:
        """Names of all files, images or not, in an order of their own."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Names of all images, in the order in which they are read fastest."""
        raise NotImplementedError

    def size(self, name: str) -> int:
        """Bytes of one file. Raises as `read` does."""
        raise NotImplementedError

    def _read(self, name: str, most: int | None) -> bytes:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """All bytes of one file.

        Raises:
            BadPicture: it is missing, damaged, or larger than 512 MiB.
            Escapes: it is not in this place.
            MachineFault: the disk, the way to it, or the place itself is at fault.
        """
        return self._read(name, None)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one file. Raises as `read` does."""
        return self._read(name, count)

    def checksum(self, name: str) -> int:
        """CRC-32 of one file. Raises as `read` does."""
        return zlib.crc32(self.read(name))

    def left_out(self) -> list[tuple[str, str]]:
        """Files that are no images, each with the reason; hidden ones are not listed."""
        shown = (name for name in self.files() if seen(name) and not escapes(name))
        found = ((name, of_image(name, self.head)) for name in shown)
        return [(name, why) for name, why in found if why is not None]

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        """Name and content of the file with the caption of an image (`sidecars`), up to 1 MiB."""
        for text in sidecars(name):
            try:
                return text, self._read(text, MAX_TEXT_BYTES)
            except Absent:
                continue
        return None


class Archive(Container, Generic[Entry]):
    """Files by name in one file, whose table of contents is read when it is opened."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._files: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._images: list[str] | None = None

    def files(self) -> list[str]:
        """Names of all files, images or not, in the order of the archive."""
        return self._files

    def names(self) -> list[str]:
        """Names of all images, sorted."""
        if self._images is None:
            found = (name for name in self._entries if of_image(name, self.head) is None)
            self._images = sorted(found)
        return list(self._images)

    def _entry(self, name: str) -> Entry:
        if escapes(name):
            raise Escapes(f"{self.location}: {name!r} escapes the folder; remove it")
        try:
            return self._entries[name]
        except KeyError:
            raise Absent from None
