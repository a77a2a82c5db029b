"""An image and a prediction of it in, the bytes that correct the prediction out, and back.

What is coded is the difference modulo 256, as 0, -1, 1, -2, 2 … = 0, 1, 2, 3, 4 …. It is written
row by row and, of a row, channel by channel, so that one call codes all symbols that share a table.
A symbol's table is chosen by what is around it: the differences of the three pixels above in all
channels, and those of the same pixel in the channels before. Tables count what they have coded
after each row, in integers alone, so both sides have the same. An image that is nearly predicted
costs some bits for each pixel that differs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.learned.range_coder import DamagedStream, bytes_to_words, words_to_bytes
from pipeline.learned.tables import PRECISION, Ints, range_model
from pipeline.pixels import RGB

Symbols = npt.NDArray[np.int64]

ABOVE = np.array([1, 3, 9, 27, 81])
"""Borders of the sum of the nine symbols above."""
BESIDE = np.array([1, 3, 9])
"""Borders of the sum of the pixel's symbols in the channels before."""
_COUNT = 1 << 12
"""What one coded symbol adds to its table."""


def _begun(unlikely: bool) -> Ints:
    """Counts of a table before anything is coded: as of 16 symbols, halved from each to the next.

    Returns:
        int64, shape (256,), from 1.
    """
    whole = 16 * _COUNT
    others = whole >> (10 if unlikely else 1)
    found: Ints = np.maximum(others >> np.minimum(np.arange(256) // 2 + 2, 40), 1)
    found[0] = whole - others
    return found


class _Tables:
    """Tables by context; told the symbols of each row as they come."""

    def __init__(self) -> None:
        quiet, active = _begun(True), _begun(False)
        contexts = (len(ABOVE) + 1) * (len(BESIDE) + 1)
        self.counts = np.stack([quiet, *[active] * (contexts - 1)])
        self._models: dict[int, object] = {}

    def model(self, context: int) -> object:
        """constriction's model of a context; it stays until `tell` changes the counts."""
        if context not in self._models:
            counts = self.counts[context]
            free = (1 << PRECISION) - 256
            table = counts * free // int(counts.sum()) + 1
            table[int(np.argmax(table))] += (1 << PRECISION) - int(table.sum())
            self._models[context] = range_model(table)
        return self._models[context]

    def tell(self, contexts: Ints, symbols: Symbols) -> None:
        """Count symbols (int64, shape (N,), 0 to 255) of these contexts (the same shape)."""
        np.add.at(self.counts, (contexts, symbols), _COUNT)
        for context in np.unique(contexts).tolist():
            self._models.pop(context, None)


def _around(above: Symbols) -> Ints:
    """What is above each pixel of a row: int64, shape (W,), the first part of its context.

    Args:
        above: symbols of the row above, int64, shape (W, 3), 0 to 255.
    """
    sums = np.pad(above.sum(1), 1)
    found: Ints = np.digitize(sums[:-2] + sums[1:-1] + sums[2:], ABOVE) * (len(BESIDE) + 1)
    return found


def encode_residual(image: RGB, prediction: RGB) -> bytes:
    """What `decode_residual` needs to make an image of its prediction.

    Args:
        image, prediction: uint8, H x W x 3, of one size.
    """
    import constriction

    signed = (image - prediction).view(np.int8).astype(np.int64)
    symbols = np.where(signed < 0, -2 * signed - 1, 2 * signed)
    tables, coder = _Tables(), constriction.stream.queue.RangeEncoder()
    above = np.zeros(symbols.shape[1:], np.int64)
    for row in symbols:
        around, beside = _around(above), np.zeros(len(row), np.int64)
        for channel in range(3):
            contexts = around + np.digitize(beside, BESIDE)
            for context in np.unique(contexts).tolist():
                mine = row[contexts == context, channel]
                coder.encode(mine.astype(np.int32), tables.model(context))
            tables.tell(contexts, row[:, channel])
            beside = beside + row[:, channel]
        above = row
    return words_to_bytes(coder.get_compressed())


def decode_residual(data: bytes, prediction: RGB) -> RGB:
    """The image again (uint8, H x W x 3); of other data or another prediction, another image.

    Args:
        prediction: uint8, H x W x 3.

    Raises:
        DamagedStream: no encoder has written this.
    """
    import constriction

    height, width, _ = prediction.shape
    tables = _Tables()
    coder = constriction.stream.queue.RangeDecoder(bytes_to_words(data))
    symbols = np.zeros((height, width, 3), np.int64)
    above = np.zeros((width, 3), np.int64)
    try:
        for row in symbols:
            around, beside = _around(above), np.zeros(width, np.int64)
            for channel in range(3):
                contexts = around + np.digitize(beside, BESIDE)
                for context in np.unique(contexts).tolist():
                    mine = contexts == context
                    row[mine, channel] = coder.decode(tables.model(context), int(mine.sum()))
                tables.tell(contexts, row[:, channel])
                beside = beside + row[:, channel]
            above = row
    except AssertionError:  # what constriction makes of invalid data
        raise DamagedStream("recipe: its residual is damaged. Get the file again.") from None
    signed = np.where(symbols % 2 == 1, -(symbols + 1) // 2, symbols // 2)
    return prediction + signed.astype(np.uint8)
