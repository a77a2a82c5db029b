"""A prompt in; what it says, without how it is written, out: prompts that say the same are one.

Case, punctuation, articles, forms of *to be*, plural s, British or American spelling, `2` or `two`
and slips of the pen do not count. Everything else does: the order of words, colours, counts,
numbers, negation, names. So no prompt is lost that differs in what an image would show.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from pipeline.prompts.parts import Split, Table, Vocabulary
from pipeline.prompts.tokens import words as known_words

_LIGHT = "a an the and is are was were be been being am there that which who"
LIGHT = frozenset(_LIGHT.split())
"""Words that a prompt says no less without."""

_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_DIGITS = {word: str(number) for number, word in enumerate(_TO_TWENTY.split())} | {
    word: str(10 * number) for number, word in enumerate(_TENS.split(), 3)
}
_PLURALS = {
    "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "leaves": "leaf", "wolves": "wolf", "knives": "knife",
    "wives": "wife", "shelves": "shelf", "loaves": "loaf", "calves": "calf", "halves": "half",
    "scarves": "scarf", "hooves": "hoof", "thieves": "thief", "elves": "elf",
}  # fmt: skip
_SINGULARS = (
    "news glasses goods woods shorts customs means series species arms briefs lens gas bus "
    "christmas canvas always perhaps"
)
_NO_PLURALS = frozenset(_SINGULARS.split())
"""Words with an s that is no plural's, or that say something else without it."""
_PLAIN = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|[%#$+<=>]")
_DIGIT = re.compile(r"\d")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
SLIP = 6
"""Letters of a word from which a slip of the pen is told from another word."""
_LONGEST = 24  # letters of a word that is looked at for a slip


@cache
def _patterns() -> tuple[Any, ...]:
    import regex

    words = regex.compile(
        r"(?<![\p{L}\p{N}])[-−]?\d+(?:[.,:/]\d+)*"  # noqa: RUF001 (the sign of a negative number)
        r"|\d+(?:[.,:/]\d+)*"
        r"|\p{L}[\p{L}\p{M}]*(?:['’]\p{L}+)*"  # noqa: RUF001 (an apostrophe)
        r"|[%#]|[^\s\p{P}\p{L}\p{N}`|~^_]"
    )
    thousands = regex.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
    british = (
        (r"^((?:dis|un|multi|water|tri)?(?:col|flav|harb|neighb|fav|lab|hon|hum|arm|behavi|rum"
         r"|vap|od|sav|parl|endeav|vig|tum|splend|clam|glam|cand|ferv|ranc|val))our", r"\1or"),
        (r"^(theat|cent|met|kilomet|lit|fib|sab|calib|lust|spect|mit|somb)re(s?)$", r"\1er\2"),
        (r"^(.{3,}[iy])s(e|ed|es|ing|er|ers|ation|ations)$", r"\1z\2"),
        (r"^(catal|dial|anal|monol|epil|prol|travel)ogue(s?)$", r"\1og\2"),
        (r"^jewellery", "jewelry"),
        (r"^(.{2,}(?:v|nc|b|d|w|g|u|n|r)el)l(ed|er|ers|ing|ery)$", r"\1\2"),
        (r"^(def|off|pret|lic)ence", r"\1ense"),
        (r"^grey", "gray"), (r"^plough", "plow"), (r"^mould", "mold"),
        (r"^smoulder", "smolder"), (r"^moustache", "mustache"), (r"^pyjama", "pajama"),
        (r"^aluminium", "aluminum"), (r"^aeroplane", "airplane"), (r"^doughnut", "donut"),
        (r"^programme", "program"), (r"^tyre", "tire"), (r"^kerb", "curb"),
        (r"^whisky", "whiskey"), (r"^yoghurt", "yogurt"), (r"^cosy$", "cozy"),
        (r"^cosier", "cozier"), (r"^storey", "story"), (r"^omelette", "omelet"),
        (r"^artefact", "artifact"), (r"^manoeuvr", "maneuver"), (r"^archaeo", "archeo"),
        (r"^mediaeval", "medieval"), (r"^judgement", "judgment"), (r"^ageing$", "aging"),
        (r"^draught", "draft"), (r"^skilful", "skillful"), (r"^fulfil(?!l)", "fulfill"),
        (r"^sceptic", "skeptic"), (r"^encyclopaedi", "encyclopedi"),
        (r"^orthopaed", "orthoped"), (r"^waggon", "wagon"), (r"^chequer", "checker"),
        (r"^towards$", "toward"), (r"^amongst$", "among"), (r"^whilst$", "while"),
        (r"^okay$", "ok"), (r"^axe$", "ax"),
    )  # fmt: skip
    american = tuple((re.compile(pattern), form) for pattern, form in british)
    # Few words are any of these, and one look is cheaper than thirty.
    any_of_them = re.compile("|".join(f"(?:{pattern})" for pattern, _ in british))
    return words, thousands, american, any_of_them


@lru_cache(1 << 16)
def form_of(word: str) -> str:
    """One word, casefolded: in the singular and in American spelling; empty where it is light."""
    if word in LIGHT:
        return ""
    if word in _DIGITS:
        return _DIGITS[word]
    for end in ("'s", "s'"):
        word = word.removesuffix(end) + "s" * (end == "s'" and word.endswith(end))
    if not word.isascii() or not word.isalpha():
        return word
    word = _PLURALS.get(word, word)
    _, _, american, any_of_them = _patterns()
    for pattern, form in american if any_of_them.search(word) else ():
        changed = pattern.sub(form, word)
        if changed != word:
            word = str(changed)
            break
    return _singular(word)


def _singular(word: str) -> str:
    if len(word) < 4 or word in _NO_PLURALS or word[-1] != "s" or word[-2] in "su":
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "toes", "roes")):
        return word[:-2]
    return word if word.endswith("is") else word[:-1]


def _words(text: str) -> list[str]:
    """The words, numbers and signs of a text, as written but for the kind of their apostrophes."""
    words, thousands, *_ = _patterns()
    if text.isascii() and _DIGIT.search(text) is None:
        return _PLAIN.findall(text)  # the same, three times faster
    plain = thousands.sub("", text.replace("’", "'")).replace("−", "-")  # noqa: RUF001
    return [str(word) for word in words.findall(plain)]


def _joined(words: list[str]) -> str:
    """One string of all words; a blank parts numbers, and words run on: `skate board`."""
    return "".join(map(_part, words))


@lru_cache(1 << 16)
def _part(word: str) -> str:
    """What one word adds to the string, as it is written."""
    word = word.casefold()
    if word.endswith("n't"):
        stem = {"ca": "can", "wo": "will", "sha": "shall"}.get(word[:-3], word[:-3])
        return f"{form_of(stem)}not"
    if word == "cannot":
        return "cannot"
    form = form_of(word)
    return f" {form} " if form[-1:].isdigit() else form


def meaning(text: str) -> str:
    """What a normalised prompt says: equal for prompts that say the same. It is not to be read."""
    return _joined(_words(text))


def readings(text: str) -> list[str]:
    """The meaning of a prompt, and those that it may have if one word is a slip of the pen.

    A slip is a word of at least `SLIP` small letters that CLIP's vocabulary does not have, and that
    has a letter too many or too few, or two exchanged, but not the first. Names in capitals are
    none, nor are other letters: too many words and names differ in one.
    """
    words = _words(text)
    found = [_joined(words)]
    for place, word in enumerate(words):
        if len(word) >= SLIP and (others := slips_of(word)):
            found += [_joined([*words[:place], one, *words[place + 1 :]]) for one in others]
    return found


@lru_cache(1 << 16)
def slips_of(word: str) -> tuple[str, ...]:
    """Words of which this unknown one may be a slip."""
    if len(word) > _LONGEST or not (word.isascii() and word.islower() and word.isalpha()):
        return ()
    known = known_words()
    if word in known or form_of(word) in known:
        return ()
    found = set()
    for place in range(1, len(word) + 1):
        before, after = word[:place], word[place:]
        found.add(before + after[1:])
        if len(after) > 1:
            found.add(before + after[1] + after[0] + after[2:])
        found.update(before + letter + after for letter in _LETTERS)
    found.discard(word)
    return tuple(sorted(one for one in found if len(one) >= SLIP - 1 and one in known))


class Meanings:
    """Finds what normalised prompts say; see `meanings`.

    Args:
        vocabulary: of their parts.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._table = Table(vocabulary, _may_slip, 1)
        self._said = Table(vocabulary, lambda part: (meaning(part),), 1, object)

    def __call__(self, split: Split) -> list[list[int]]:
        """The `meanings` of each of some prompts."""
        # A prompt says what its parts say, one after the other.
        (said,) = self._said.of(split)
        found = [[_hash(whole)] for whole in split.joined(said)]
        (slips,) = self._table.of(split)
        for place in np.flatnonzero(split.ored(slips)).tolist():
            found[place] = meanings(split.texts[place])
        return found


def _may_slip(part: str) -> tuple[int]:
    """Whether a part has a word that may be a slip of the pen."""
    return (int(any(len(word) >= SLIP and slips_of(word) for word in _words(part))),)


def meanings(text: str) -> list[int]:
    """Hashes of the readings of a normalised prompt, 64 bits each; the first is of its meaning."""
    return [_hash(reading) for reading in readings(text)]


def _hash(reading: str) -> int:
    digest = hashlib.blake2b(reading.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class SaidBefore:
    """Prompts added one by one; finds the earlier one that says the same as a new one.

    A prompt takes some 170 bytes: a hash of what it says, and its text, for the reason.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._texts, self._ends = bytearray(), array("Q", [0])

    def add(self, text: str, said: Sequence[int] | None = None) -> str | None:
        """Add a normalised prompt, or return the earlier one that says the same.

        Args:
            said: its `meanings`, where they are at hand.
        """
        keys = meanings(text) if said is None else said
        for key in keys:
            if (place := self._known.get(key)) is not None:
                start, end = self._ends[place], self._ends[place + 1]
                return self._texts[start:end].decode()
        place = len(self._ends) - 1
        self._texts += text.encode()
        self._ends.append(len(self._texts))
        for key in keys:
            self._known[key] = place
        return None
