"""A text in; the same with those invisible joiners alone that its script or an emoji needs, out.

The tables are ours and fixed. Those of a library grow with each version of Unicode, and the id of a
prompt must not change with it.
"""

from __future__ import annotations

import re

# Letters that can join the next one, unless they are among `_ENDS` (Joining_Type R and U of
# Unicode's ArabicShaping.txt): Arabic, Syriac, N'Ko, Mandaic, Mongolian.
_LETTERS = (
    "\u0620-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06ff\u0750-\u077f\u08a0-\u08b4"
    "\u0710-\u072f\u074d-\u074f\u07ca-\u07ea\u0840-\u0858\u1807\u1820-\u18aa"
)
_ENDS = (
    "\u0621-\u0625\u0627\u0629\u062f-\u0632\u0648\u0671-\u0677\u0688-\u0699\u06c0\u06c3-\u06cb"
    "\u06cd\u06cf\u06d2\u06d3\u06d5\u06ee\u06ef\u0759-\u075b\u076b\u076c\u0771\u0773\u0774\u0778\u0779"
)
_MARKS = "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u08d3-\u08ff"
_INDIC = "\u0900-\u0dff\ua8e0-\ua8ff"  # Devanagari to Sinhala
_VIRAMA = (
    "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d3b\u0d3c\u0d4d\u0dca\u1039\u103a\u17d2"
)
_BRAHMIC = "\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"  # Myanmar, Khmer
_PICTURE = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
)
_TONE = "\U0001f3fb-\U0001f3ff"
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MATHS = "\u2200-\u22ff\u2a00-\u2aff"

SEEN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
"""Arabic and Syriac signs that Unicode calls format characters, and that are seen."""

_RUN = re.compile("[\u180e\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f]+")
_NEEDED = re.compile(
    # The flag of a part of a country: a black flag, its letters as tags, and their end.
    "(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
    # A variant of an emoji, and a joiner to the next one; of a keycap, an ideograph, a sign of
    # mathematics, a letter of Myanmar.
    f"|(?<=[{_PICTURE}{_TONE}])(?:[\ufe0e\ufe0f](?:\u200d(?=[{_PICTURE}]))?|\u200d(?=[{_PICTURE}]))"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    f"|(?<=[{_IDEOGRAPHS}{_MATHS}{_BRAHMIC}])[\ufe00-\ufe02]"
    # What parts two letters that would join, or joins one to nothing.
    f"|(?:(?<=[{_LETTERS}])(?<![{_ENDS}])|(?<=[{_LETTERS}][{_MARKS}])(?<![{_ENDS}][{_MARKS}]))"
    f"(?:\u200c(?=[{_LETTERS}])|\u200d(?![{_LETTERS}{_MARKS}]))"
    "|(?<=[\u1820-\u18aa])\u180e(?=[\u1820\u1821])"
    # What chooses the form of a cluster of consonants.
    f"|(?<=[{_VIRAMA}])[\u200c\u200d]"
    f"|(?<=[{_INDIC}])[\u200c\u200d](?=[{_VIRAMA}])"
    f"|(?<=[{_BRAHMIC}])\u200c(?=[{_BRAHMIC}])"
)


def is_joiner(char: str) -> bool:
    """Whether a character is one that `joined` decides on."""
    return _RUN.fullmatch(char) is not None


def bare(text: str) -> str:
    """A text without any of them."""
    return _RUN.sub("", text)


def joined(text: str) -> str:
    """Remove those joiners and variation selectors that show nothing.

    What stays parts or joins letters of scripts such as Persian or Hindi (Unicode, chapters 9 and
    12), chooses a variant of a sign, or makes one emoji of several (UTS 51). So texts that look
    alike are alike.
    """
    if _RUN.search(text) is None:
        return text

    def needed(run: re.Match[str]) -> str:
        found = _NEEDED.match(text, run.start())
        return "" if found is None else found[0]

    return _RUN.sub(needed, text)
