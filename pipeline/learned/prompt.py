"""A prompt in, a few bytes out, and back: every byte is predicted from those before it.

The predictor counts which byte follows the last 0 to 5 ones (prediction by partial matching, with
Witten and Bell's weights). It starts with the counts of `prompt_prior.txt`, sentences of this
project, and learns from the prompt on the way. Frequencies are integers, so both sides have the
same. The text file is a part of the format: another one is another version of it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.learned.range_coder import DamagedStream, bytes_to_words, words_to_bytes
from pipeline.learned.tables import PRECISION, Ints, range_model

ORDERS = 6
"""Contexts of 0 to 5 bytes."""
Counts = dict[bytes, dict[int, int]]


def _count(counts: Counts, text: bytes, at: int) -> None:
    """Count the byte at `at` after each of its contexts."""
    for order in range(min(ORDERS, at + 1)):
        following = counts[text[at - order : at]]
        following[text[at]] = following.get(text[at], 0) + 1


@lru_cache(maxsize=1)
def _prior() -> Counts:
    text = Path(__file__).with_name("prompt_prior.txt").read_bytes()
    counts: Counts = defaultdict(dict)
    for line in text.splitlines(keepends=True):
        # As a prompt starts after the end of a line, so does a line.
        line = b"\n" + line
        for at in range(1, len(line)):
            _count(counts, line, at)
    return dict(counts)


class _Predictor:
    """Frequencies of the next byte; told each byte as it comes."""

    def __init__(self) -> None:
        self.prior, self.text = _prior(), bytearray(b"\n")
        self.seen: Counts = defaultdict(dict)

    def table(self) -> Ints:
        """int64, shape (256,): above 0, and 2^24 in all."""
        whole = 1 << PRECISION
        found = np.full(256, whole >> 8, np.int64)
        for order in range(min(ORDERS, len(self.text) + 1)):
            context = bytes(self.text[len(self.text) - order :])
            old, new = self.prior.get(context, {}), self.seen.get(context, {})
            if not old and not new:
                break  # a longer context was not seen either
            counts = np.zeros(256, np.int64)
            for following in (old, new):
                for byte, count in following.items():
                    counts[byte] += count
            distinct, total = int((counts > 0).sum()), int(counts.sum())
            found = (counts * whole + distinct * found) // (total + distinct)
        # Rounding down leaves some; and nothing may be impossible.
        found = found * (whole - 256) // whole + 1
        found[int(np.argmax(found))] += whole - int(found.sum())
        return found

    def tell(self, byte: int) -> None:
        """Go on to the next byte."""
        self.text.append(byte)
        _count(self.seen, bytes(self.text), len(self.text) - 1)


def compress_prompt(text: bytes) -> bytes:
    """Code UTF-8 text; its length is not in what comes out."""
    import constriction

    predictor, coder = _Predictor(), constriction.stream.queue.RangeEncoder()
    for byte in text:
        coder.encode(byte, range_model(predictor.table()))
        predictor.tell(byte)
    return words_to_bytes(coder.get_compressed())


def decompress_prompt(data: bytes, length: int) -> bytes:
    """The `length` bytes of text that were coded; from other data some bytes, or an error.

    Raises:
        DamagedStream: no encoder has written this.
    """
    import constriction

    predictor, coder = _Predictor(), constriction.stream.queue.RangeDecoder(bytes_to_words(data))
    try:
        for _ in range(length):
            predictor.tell(int(coder.decode(range_model(predictor.table()))))
    except AssertionError:  # what constriction makes of invalid data
        raise DamagedStream("bitstream: its prompt is damaged. Get the file again.") from None
    return bytes(predictor.text[1:])
