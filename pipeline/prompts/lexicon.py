"""A lexicon file (YAML) in; a score of each prompt, and the words that it is for, out.

Words are found in the plural, in other spellings and written so that no list would find them. The
notation is described at the top of `prompts/unsafe.yaml`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial, reduce
from operator import or_
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from pipeline import AigiError
from pipeline.prompts.joiners import bare
from pipeline.prompts.meaning import form_of, slips_of
from pipeline.prompts.parts import Split, Table, Vocabulary, all_of
from pipeline.prompts.tokens import words as known_words
from pipeline.settings import Settings, Share, check, read_yaml


class _Rule(Settings):
    kind: str
    score: Share
    all: tuple[str, ...] = Field(min_length=1, max_length=2)
    within: int = Field(1_000_000, ge=1)
    unless: str | None = None


class _File(Settings):
    harmless: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    sets: dict[str, tuple[str, ...]]
    rules: tuple[_Rule, ...]


class Hit(NamedTuple):
    """What a lexicon says of a prompt.

    Attributes:
        score: 0 (nothing found) to 1.
        why: the kind of the rule and its words, as `violence: severed head`; empty: none.
    """

    score: float
    why: str


NOTHING = Hit(0.0, "")

_TOKEN = re.compile(r"[^\W_]+(?:[@$!|][^\W_]+)+|[@$][^\W_]+|[^\W_]+(?:['’][^\W\d_]+)?")  # noqa: RUF001
_APART = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .*_-]){3,}[^\W\d_](?![^\W_])")
_FIGURES = str.maketrans("013457@$!|", "oieastasil")
_MANY = re.compile(r"(.)\1{2,}")
_DOUBLE = re.compile(r"(.)\1+")
_REMEMBERED = 1 << 17
_BITS = 60
_ANY = 1 << _BITS
V = TypeVar("V")


def _forms(word: str) -> tuple[str, ...]:
    """All that a word may stand for, casefolded: as it is, in the singular, unmasked."""
    found = [word]
    if not word.isalpha() and any(map(str.isalpha, word)):
        found.append(word.translate(_FIGURES))
    for one in tuple(found):
        if _MANY.search(one):
            found += [_MANY.sub(r"\1", one), _MANY.sub(r"\1\1", one)]
    found += [form for one in tuple(found) if (form := form_of(one))]
    # Letters exchanged; a letter more or less makes too many harmless words bad ones.
    found += [one for one in slips_of(word) if len(one) == len(word)]
    return tuple(dict.fromkeys(found))


def _squeezed(word: str) -> str:
    """A word without doubled letters."""
    return _DOUBLE.sub(r"\1", word)


class _Entry(NamedTuple):
    """A word or phrase of a set; set "": it is harmless.

    Attributes:
        words: as the file has them, in the singular.
        found_by: which of them is looked for: the rarest.
    """

    set: str
    words: tuple[str, ...]
    found_by: int


def _places(entry: _Entry, place: int) -> range:
    """Where the words of an entry are, if it is found here."""
    first = place - entry.found_by
    return range(first, first + len(entry.words))


class _Word(NamedTuple):
    """What a word may stand for, the entries that are found by it, and whether a rule may hold."""

    forms: tuple[str, ...]
    entries: tuple[_Entry, ...]
    leads: bool


class _Remembered(dict[str, V]):
    """What was found out of words; when there are too many, it begins anew."""

    def __init__(self, look_up: Callable[[str], V]) -> None:
        super().__init__()
        self.look_up = look_up

    def __missing__(self, word: str) -> V:
        if len(self) >= _REMEMBERED:
            self.clear()
        found = self[word] = self.look_up(word)
        return found


def _rarity(word: str) -> float:
    return known_words().get(word.removesuffix("*"), math.inf)


def _fits(part: str, form: str) -> bool:
    return form.startswith(part[:-1]) if part.endswith("*") else form == part


class Lexicon:
    """Scores prompts by the words of a file.

    Args:
        path: a lexicon file, local or at an fsspec URL.
        vocabulary: of the parts of prompts, for `scores`.

    Raises:
        AigiError: it is missing, not such a file, or a rule names a set that it does not have.
    """

    def __init__(self, path: str, vocabulary: Vocabulary | None = None) -> None:
        file = check(_File, read_yaml(path), path)
        for number, rule in enumerate(file.rules):
            for name in (*rule.all, *((rule.unless,) if rule.unless else ())):
                if name not in file.sets:
                    raise AigiError(f"{path}: rules.{number}: there is no set {name}")
        self._rules = sorted(file.rules, key=lambda rule: -rule.score)
        self._names = frozenset(file.names)
        self._leads = frozenset(rule.all[0] for rule in file.rules)
        self._words: dict[str, list[_Entry]] = {}
        self._undoubled: dict[str, list[_Entry]] = {}
        self._prefixes: dict[str, list[_Entry]] = {}
        for name, entries in (("", file.harmless), *file.sets.items()):
            for entry in entries:
                words = tuple(map(self._part, re.split(r"[\s-]+", entry.strip().casefold())))
                found = _Entry(name, words, words.index(max(words, key=_rarity)))
                word = words[found.found_by]
                index = self._prefixes if word.endswith("*") else self._words
                index.setdefault(word.removesuffix("*"), []).append(found)
                self._undoubled.setdefault(_squeezed(word.removesuffix("*")), []).append(found)
        self._starts = tuple(self._prefixes)
        self._remembered = _Remembered(self._look_up)
        # Where several sets share a bit, more prompts are looked at. Harmless words have none.
        self._bits = {name: 1 << n % _BITS for n, name in enumerate(sorted(file.sets))} | {"": 0}
        self._needed = {
            reduce(or_, (self._bits[name] for name in rule.all)) for rule in self._rules
        }
        self._parts = _Remembered(self._tokens)
        self._table = Table(vocabulary or Vocabulary(), self._sets_of, 1)

    @staticmethod
    def _part(word: str) -> str:
        return word if word.endswith("*") else form_of(word) or word

    def _look_up(self, word: str) -> _Word:
        forms, entries = _forms(word), list[_Entry]()
        for form in forms:
            entries += self._words.get(form, ())
            if form.startswith(self._starts):
                for start, some in self._prefixes.items():
                    if form.startswith(start):
                        entries += some
        if not entries and len(word) > 4 and word not in known_words():
            # Not for words that there are: "bare" is no "barre".
            entries += self._undoubled.get(_squeezed(word), ())
        leads = any(entry.set in self._leads for entry in entries)
        return _Word(forms, tuple(dict.fromkeys(entries)), leads)

    def _tokens(self, part: str) -> tuple[_Word, ...]:
        """The words of a part of a prompt."""
        words = _TOKEN.findall(bare(part))
        return tuple(self._remembered[word.casefold()] for word in words)

    def _sets_of(self, part: str) -> tuple[int]:
        """The sets of which a part may have a word or a phrase, a bit each; or `_ANY`."""
        if (len(part) == 1 and part not in "aAI" and part.isalpha()) or _APART.search(part):
            return (_ANY,)  # letters set apart
        entries = (entry for word in self._parts[part] for entry in word.entries)
        return (reduce(or_, (self._bits[entry.set] for entry in entries), 0),)

    def scores(self, split: Split) -> list[Hit]:
        """The highest score of a rule that each of some normalised prompts fulfils."""
        (sets,) = self._table.of(split)
        sets = split.ored(sets)
        worth = (sets & _ANY) > 0
        for needed in self._needed:
            worth |= (sets & needed) == needed
        for place in np.flatnonzero(worth & (sets < _ANY)).tolist():
            worth[place] = self._may_hold(split.texts[place])
        return all_of(self.score, split, worth, NOTHING)

    def _may_hold(self, text: str) -> bool:
        """Whether a prompt has the words of a rule, and whole phrases of it."""
        known = [word for part in text.split(" ") for word in self._parts[part]]
        sets = 0
        for place, word in enumerate(known):
            for entry in word.entries:
                if self._fits(entry, known, _places(entry, place)):
                    sets |= self._bits[entry.set]
        return any(sets & needed == needed for needed in self._needed)

    def score(self, text: str) -> Hit:
        """The highest score of a rule that a normalised prompt fulfils."""
        text = bare(text)
        if _APART.search(text):
            text = _APART.sub(lambda found: re.sub(r"[ .*_-]", "", found[0]), text)
        written = _TOKEN.findall(text)
        words = [word.casefold() for word in written]
        known = [self._remembered[word] for word in words]
        if not any(word.leads for word in known):
            return NOTHING
        found = self._found(written, words, known)
        for rule in self._rules:
            if all(name in found for name in rule.all) and rule.unless not in found:
                places = self._fulfilled(rule, found)
                if places is not None:
                    shown = " ".join(written[place] for place in places)
                    return Hit(rule.score, f"{rule.kind}: {shown}")
        return NOTHING

    def _found(
        self,
        written: list[str],
        words: list[str],
        known: list[_Word],
    ) -> dict[str, list[range]]:
        """Places of the words of each set in a prompt, without what is in harmless phrases."""
        every = []
        for place, word in enumerate(known):
            for entry in word.entries:
                places = _places(entry, place)
                if self._fits(entry, known, places):
                    every.append((entry.set, places))
        titled = sum(map(str.istitle, written)) > len(written) / 2
        harmless = {place for name, places in every if not name for place in places}
        harmless |= {
            place
            for place, word in enumerate(words)
            if place and not titled and written[place].istitle() and word in self._names
        }
        found: dict[str, list[range]] = {}
        for name, places in every:
            if name and harmless.isdisjoint(places):
                found.setdefault(name, []).append(places)
        return found

    @staticmethod
    def _fits(entry: _Entry, known: list[_Word], places: range) -> bool:
        """Whether a phrase has its other words in these places."""
        if places.start < 0 or places.stop > len(known):
            return False
        return all(
            number == entry.found_by or any(map(partial(_fits, part), known[place].forms))
            for number, (part, place) in enumerate(zip(entry.words, places, strict=True))
        )

    @staticmethod
    def _fulfilled(rule: _Rule, found: dict[str, list[range]]) -> list[int] | None:
        """Places of the words for which a rule holds; None: it does not."""
        if len(rule.all) == 1:
            return list(found[rule.all[0]][0])
        for one in found[rule.all[0]]:
            for other in found[rule.all[1]]:
                apart = one.stop <= other.start or other.stop <= one.start
                if apart and abs(one.start - other.start) <= rule.within:
                    return sorted([*one, *other])
        return None
