"""Symbols and their tables in, bytes out, and back: the range coder.

It is constriction's. One call codes all symbols that share a table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline import AigiError
from pipeline.learned.tables import SCALES, Code, Ints, doublings

ESCAPES = 4 << 15
Indices = npt.NDArray[np.uint8]


class DamagedStream(AigiError):
    """A bitstream that is cut short, changed, or not made for this model."""


MISMATCH = (
    "bitstream: its symbols do not match their checksum: the file is damaged, or was made with "
    "another model. Get the file again, and decode it with the model that its header names."
)


def words_to_bytes(words: npt.NDArray[np.uint32]) -> bytes:
    """What a range encoder wrote, big-endian, without the zeros at its end.

    Args:
        words: uint32, shape (W,), of any values.
    """
    return words.astype(">u4").tobytes().rstrip(b"\0")


def bytes_to_words(data: bytes) -> npt.NDArray[np.uint32]:
    """The words again, for a range decoder: it takes what is missing at the end for zeros.

    Returns:
        uint32, shape (W,): W is a quarter of the bytes, rounded up.
    """
    return np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)


class RangeWriter:
    """Symbols in, bytes out."""

    def __init__(self) -> None:
        import constriction

        self.uniform = constriction.stream.model.Uniform()
        self.coder = constriction.stream.queue.RangeEncoder()

    def write(self, symbols: Ints, code: Code) -> None:
        """Code symbols of one table, and then what the table leaves open of those beyond its reach.

        Args:
            symbols: int64, shape (P,), -32767 to 32767.
        """
        reach = code.reach
        inside = np.abs(symbols) <= reach
        indices = np.where(inside, symbols + reach, 2 * reach + 1)
        outside = symbols[~inside]
        beyond = np.abs(outside) - reach - 1
        sizes = np.full(len(outside), ESCAPES)
        if code.octave:
            number = doublings(beyond // code.octave + 1)
            indices[~inside] += number
            beyond -= code.octave * ((1 << number) - 1)
            sizes = 2 * code.octave << number
        self.coder.encode(indices.astype(np.int32), code.model)
        if len(outside):
            values = 2 * beyond + (outside < 0)
            self.coder.encode(values.astype(np.int32), self.uniform, sizes.astype(np.int32))

    def bytes(self) -> bytes:
        """Everything written; zeros at the end are left out."""
        return words_to_bytes(self.coder.get_compressed())


class RangeReader:
    """What `RangeWriter` made in, symbols out; any bytes give some symbols."""

    def __init__(self, data: bytes) -> None:
        import constriction

        self.uniform = constriction.stream.model.Uniform()
        self.coder = constriction.stream.queue.RangeDecoder(bytes_to_words(data))

    def read(self, count: int, code: Code) -> Ints:
        """Decode `count` symbols of one table.

        Returns:
            int64, shape (count,): -32767 to 32767 if `RangeWriter` made the bytes, else any within
            +-(reach + 65536).

        Raises:
            DamagedStream: no encoder has written this.
        """
        try:
            indices = np.asarray(self.coder.decode(code.model, count), np.int64)
            symbols = indices - code.reach
            outside = symbols > code.reach
            if outside.any():
                number = symbols[outside] - code.reach - 1
                first = code.octave * ((1 << number) - 1)
                sizes = 2 * code.octave << number if code.octave else np.full(len(number), ESCAPES)
                decoded = self.coder.decode(self.uniform, sizes.astype(np.int32))
                values = np.asarray(decoded, np.int64)
                far = values // 2 + first + code.reach + 1
                symbols[outside] = np.where(values % 2, -far, far)
        except AssertionError as error:  # what constriction makes of invalid data
            raise DamagedStream(MISMATCH) from error
        return symbols


def _groups(indices: Indices) -> Iterator[tuple[int, Ints]]:
    """Each table that is used, and the places of its symbols in order."""
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices, minlength=len(SCALES))
    start = 0
    for index in np.flatnonzero(counts):
        yield int(index), order[start : start + counts[index]]
        start += counts[index]


def write_scaled(writer: RangeWriter, symbols: Ints, indices: Indices, codes: list[Code]) -> None:
    """Code symbols, shape (P,), each around 0 with the code of `SCALES[index]`.

    Args:
        symbols: int64, shape (P,), -32767 to 32767.
        indices: uint8, shape (P,), 0 to 63.
        codes: of the 64 scales.
    """
    for index, places in _groups(indices):
        writer.write(symbols[places], codes[index])


def read_scaled(reader: RangeReader, indices: Indices, codes: list[Code]) -> Ints:
    """The symbols that `write_scaled` was given.

    Args:
        indices: uint8, shape (P,), 0 to 63, the same as then.
        codes: the same as then.

    Returns:
        int64, shape (P,), -32767 to 32767.

    Raises:
        DamagedStream: no encoder has written this.
    """
    symbols = np.zeros(indices.shape, np.int64)
    for index, places in _groups(indices):
        symbols[places] = reader.read(len(places), codes[index])
    return symbols
