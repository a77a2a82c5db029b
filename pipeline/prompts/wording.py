"""Normalised prompts in; how many words each has, of what kind they are, and repeats, out."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.prompts.parts import Split, Table, Vocabulary

# A sign set apart (CC3M: "a cat , a dog .") is neither a word nor noise.
_PUNCTUATION = "\"'`()[]{}<>.,:;!?*|~&/\\-–—…•·‘’“”«»"  # noqa: RUF001 (quotes and dashes are meant)
_JUNK = re.compile(
    r"[#@]\w|\w+://|www\.|[^\s@]+@[^\s@]+\.\w"
    r"|\S+\.(?:com|net|org|info|biz|co\.uk)(?:/\S*)?$"
    r"|\S+\.(?:jpe?g|png|gif|bmp|tiff?|webp|svg|psd|pdf|mp4)$"
    r"|_?(?:img|mg|dsc[a-z]?|pict|mvi)[_-]?\d{3,}\w*$",
    re.IGNORECASE,
)
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces: Thai, Lao, Myanmar, Khmer, Tai Le, Chinese, Japanese."""
# "5 red apples", "1,000 people", "50%", "$20", "3/4", "16:9", "-3.5°": what longer digits say is a
# telephone's, or a file's.
_NUMBER = re.compile(
    r"[#+\-±~$€£¥№]?(?:\d{1,6}|\d{1,3}(?:[,.' ]\d{3})+)(?:[.,:/x×–-]\d{1,4}){0,2}[%°+$€£¥]?"  # noqa: RUF001
)


class Wording(NamedTuple):
    """The words of prompts, in numbers: a value each; shares are float64 from 0 to 1.

    Attributes:
        words: int64: runs without spaces that are not punctuation alone; where a language writes no
            spaces, those of ICU's dictionaries.
        ascii_letters: share of ASCII among the letters; NaN: there is no letter.
        noise: share of words that are URLs, hashtags, handles, signs or long numbers.
        repeated: share of words that are there before: 0.5 for `a dog a dog`.
    """

    words: NDArray[np.int64]
    ascii_letters: NDArray[np.float64]
    noise: NDArray[np.float64]
    repeated: NDArray[np.float64]


class Wordings:
    """Counts the words of normalised prompts.

    Args:
        vocabulary: of their parts.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._table = Table(vocabulary, _counts, 4)

    def __call__(self, split: Split) -> Wording:
        """The words of some prompts, in numbers."""
        words, noise, letters, plain = map(split.sums, self._table.of(split))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(words > 0, noise / words, 0.0)
            known = plain / letters
        return Wording(words, known, shares, 1 - split.distinct() / split.lengths)


def _counts(part: str) -> tuple[int, int, int, int]:
    """Of a part: words, those that are noise, letters, and letters of ASCII."""
    if part.isascii() and part.isalpha():
        return 1, 0, len(part), len(part)
    words = int(bool(part.strip(_PUNCTUATION)))
    noise = int(bool(words) and not part.isalpha() and _is_noise(part))
    if _UNSPACED.search(part):
        words += max(0, _words(part) - 1)
    letters = [char for char in part if char.isalpha()]
    return words, noise, len(letters), sum(map(str.isascii, letters))


def _is_noise(word: str) -> bool:
    core = word.strip(_PUNCTUATION)
    if any(map(str.isalpha, core)):
        return _JUNK.match(core) is not None
    return _NUMBER.fullmatch(core) is None


def _words(part: str) -> int:
    """How many words a run without spaces has, where its language writes none between them."""
    from icu4py.breakers import WordBreaker

    found = 0
    for start, end in WordBreaker(part, "root").segments():
        found += any(map(str.isalnum, part[start:end]))
    return found
