"""Several archives or tables of images in, as one place; their names and bytes out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.pictures.container import Container

HELD = 32
"""Parts that are open at once; the others are opened again when they are read."""


class Several(Container):
    """Shards, or the archives in an archive, one after the other.

    The name of an image begins with that of its part: `train-00001.tar/000010042.png`. Parts are
    opened when they are read. Safe to read from many threads.

    Args:
        parts: what opens each, by name; the part without a name is what the others are inside of.
        again: makes this place once more, in another process.
    """

    def __init__(
        self,
        location: str,
        parts: Mapping[str, Callable[[], Container]],
        again: tuple[Callable[..., Any], tuple[Any, ...]],
    ) -> None:
        self.location, self._openers, self._again = location, dict(parts), again
        self._open: OrderedDict[str, Container] = OrderedDict()
        self._last: Container | None = None
        self._lock = threading.Lock()
        self.in_order = any(name.lower().endswith(".parquet") for name in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again

    def close(self) -> None:
        """Close all parts that are open."""
        with self._lock:
            for part in self._open.values():
                part.close()
            self._open.clear()

    def __contains__(self, name: str) -> bool:
        """Whether this is the name of a part."""
        return name in self._openers

    def part(self, name: str) -> Container:
        """A part by its name. Raises as opening it does."""
        with self._lock:
            found = self._open.get(name)
            if self._last is not None and self._last is not found:
                self._last.let_go()
            if found is None:
                found = self._open[name] = self._openers[name]()
                # Another thread may be reading the part that goes; its end closes it.
                if len(self._open) > HELD:
                    self._open.pop(next(one for one in self._open if one and one != name))
            self._open.move_to_end(name)
            self._last = found
            return found

    def parts(self) -> Iterator[tuple[str, Container]]:
        """All parts, in order, each with what its names begin with."""
        for name in self._openers:
            yield (f"{name}/" if name else ""), self.part(name)

    def of(self, name: str) -> tuple[Container, str]:
        """The part that an image is in, and its name there."""
        at = name.find("/")
        while at >= 0:
            if name[:at] in self._openers:
                return self.part(name[:at]), name[at + 1 :]
            at = name.find("/", at + 1)
        return self.part(""), name

    def files(self) -> list[str]:
        return [prefix + name for prefix, part in self.parts() for name in part.files()]

    def names(self) -> list[str]:
        return [prefix + name for prefix, part in self.parts() for name in part.names()]

    def size(self, name: str) -> int:
        part, inside = self.of(name)
        return part.size(inside)

    def read(self, name: str) -> bytes:
        part, inside = self.of(name)
        return part.read(inside)

    def head(self, name: str, count: int) -> bytes:
        part, inside = self.of(name)
        return part.head(inside, count)

    def checksum(self, name: str) -> int:
        part, inside = self.of(name)
        return part.checksum(inside)

    def left_out(self) -> list[tuple[str, str]]:
        return [
            (prefix + name, why)
            for prefix, part in self.parts()
            for name, why in part.left_out()
            if prefix or name not in self._openers
        ]

    def sidecar(self, name: str) -> tuple[str, bytes] | None:
        part, inside = self.of(name)
        found = part.sidecar(inside)
        prefix = name[: len(name) - len(inside)]
        return None if found is None else (prefix + found[0], found[1])
