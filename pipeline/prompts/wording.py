"""A normalised prompt in; how many words it has, of what kind they are, and repeats, out."""

from __future__ import annotations

import re
from typing import NamedTuple

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
    """The words of a prompt, in numbers; shares are from 0 to 1.

    Attributes:
        words: runs without spaces that are not punctuation alone; where a language writes no
            spaces, those of ICU's dictionaries.
        ascii_letters: share of ASCII among the letters; None: there is no letter.
        noise: share of words that are URLs, hashtags, handles, signs or long numbers.
        repeated: share of words that are there before: 0.5 for `a dog a dog`.
    """

    words: int
    ascii_letters: float | None
    noise: float
    repeated: float


def wording_of(text: str) -> Wording:
    """Count the words of a normalised prompt."""
    parts = text.split(" ")
    # Nearly every word is letters alone; only the others need a closer look.
    odd = [word for word in parts if not word.isalpha()]
    real = [word for word in odd if word.strip(_PUNCTUATION)]
    count = len(parts) - len(odd) + len(real)
    plain = text.isascii()
    if not plain and _UNSPACED.search(text):
        count += sum(max(0, _words(part) - 1) for part in parts if _UNSPACED.search(part))
    letters: float | None = 1.0
    if len(odd) == len(parts) and not any(map(str.isalpha, text)):
        letters = None
    elif not plain:
        each = [char for char in text if char.isalpha()]
        letters = sum(map(str.isascii, each)) / len(each)
    noise = sum(map(_is_noise, real)) / count if count else 0.0
    repeated = 1 - len(set(parts)) / len(parts)
    return Wording(count, letters, noise, repeated)


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
