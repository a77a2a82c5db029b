"""Grammar file (YAML) in, distinct English sentences out, the same ones on every machine.

The notation is described at the top of `prompts/grammar.yaml`. A rule may not lead back to
itself, so every grammar here is finite and every sentence ends.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import AigiError
from pipeline.settings import read_yaml

PATIENCE = 1_000
"""Draws in a row without a new sentence after which a grammar counts as exhausted."""

_ARTICLE = "{a}"
_RULE_NAME = re.compile(r"[a-z]\w*")
_TOKEN = re.compile(
    r"\{a(?P<article>=?)\}(?= )"
    r"|\{(?P<name>(?!a[+=]?\})[a-z]\w*)(?P<number>[+=]?)\}"
    r"|\[(?P<chance>\d+)% "
    r"|(?P<close>\])"
    r"|(?P<one>[\w'-]+)(?:/(?P<many>[\w'-]+)|\((?P<ending>e?s)\))"
    r"|(?P<text>[\w'-]+|[^\w'{}\[\]()/|-]+)"
    r"|(?P<bad>.)"
)
# By sound, not by letter: a unicorn, a one-room house, a European town; an hour, an 18th.
_TAKES_AN = re.compile(
    r"(?!one\b|once\b|eu|ewe|u(?:se|su|ti|ku|ra[ln]|ni(?![dmn])))[aeiou]"
    r"|hour|honest|hono|heir|8|1[18](?!\d)|x-",
    re.IGNORECASE,
)
# Stripped from both sides of a comparison, so that "boats," and "boat" are one word.
_ENDINGS = ".,;:'s"


def _article(following: str) -> str:
    return "an" if _TAKES_AN.match(following) else "a"


def _write(choice: _Choice, draw: Callable[[], float], out: list[str]) -> None:
    for part in choice.options[bisect_right(choice.bounds, draw())]:
        if isinstance(part, str):
            out.append(part)
        else:
            _write(part, draw, out)


def _choice(weighted: list[tuple[float, _Parts]]) -> _Choice:
    total = math.fsum(weight for weight, _ in weighted)
    sums = [math.fsum(weight for weight, _ in weighted[:end]) for end in range(1, len(weighted))]
    return _Choice(tuple(part / total for part in sums), tuple(parts for _, parts in weighted))


def _words(path: str, key: str, text: object) -> list[str]:
    if not isinstance(text, str) or not text.split():
        raise AigiError(f"{path}: {key}: expected words in one string, found {text!r}")
    return [word.rstrip(_ENDINGS) for word in text.split()]


def _pairs(path: str, listed: object) -> tuple[dict[str, int], dict[str, int]]:
    """Return, for each word, a bit mask of the `apart` lines that hold it left or right of `/`."""
    left: dict[str, int] = {}
    right: dict[str, int] = {}
    for index, line in enumerate(listed if isinstance(listed, list) else [listed]):
        sides = line.split(" / ") if isinstance(line, str) else []
        if len(sides) != 2:
            raise AigiError(
                f"{path}: apart: expected lines like 'night / sunny noon', not {line!r}"
            )
        for side, text in zip((left, right), sides, strict=True):
            for word in _words(path, "apart", text):
                side[word] = side.get(word, 0) | 1 << index
    return left, right


@dataclass(frozen=True, slots=True)
class _Choice:
    """One place where the dice fall: a rule, or an optional part (itself or nothing)."""

    bounds: tuple[float, ...]
    """Cumulative shares of the options, without the last one, which is 1."""
    options: tuple[_Parts, ...]


_Parts = tuple[str | _Choice, ...]


class _Compiler:
    """Turns the checked text of the rules into a tree of choices, each rule and number once."""

    def __init__(self, path: str, rules: Mapping[str, Any]) -> None:
        self._path = path
        self._built: dict[tuple[str, bool], _Choice] = {}
        self._trail: list[str] = []
        self._rules = {name: self._alternatives(name, rules[name]) for name in rules}

    def start(self, chosen: str) -> _Choice:
        if "start" not in self._rules:
            raise AigiError(f"{self._path}: no rule 'start'; add it: every sentence begins there")
        self._rule("start", many=False)
        reached = {name for name, _ in self._built}
        for name in self._rules:
            if name not in reached:
                raise self._error(name, "never reached from 'start'; refer to it or delete it")
        if chosen not in self._rules:
            raise AigiError(f"{self._path}: no rule {chosen!r} to start from; name another")
        return self._rule(chosen, many=False)

    def _error(self, name: str, problem: str) -> AigiError:
        return AigiError(f"{self._path}: rule {name!r}: {problem}")

    def _alternatives(self, name: object, listed: object) -> list[tuple[float, str]]:
        if not isinstance(name, str) or not _RULE_NAME.fullmatch(name) or name == "a":
            raise AigiError(
                f"{self._path}: rule {name!r}: a name is a lower-case word, and not 'a'; rename it"
            )
        if not isinstance(listed, list) or not listed:
            raise self._error(name, "empty or not a list; list at least one alternative")
        found = []
        for item in listed:
            if not isinstance(item, str):
                raise self._error(name, f"{item!r} is not text; put it in quotes")
            text, bar, after = item.partition("|")
            try:
                weight = float(after) if bar else 1.0
            except ValueError:
                weight = math.nan
            if not (math.isfinite(weight) and weight > 0):
                raise self._error(name, f"{item!r}: the weight after | must be a number above 0")
            if not text.strip():
                raise self._error(name, f"{item!r}: empty alternative; write [50% ...] instead")
            found.append((weight, text.strip()))
        return found

    def _rule(self, name: str, many: bool) -> _Choice:
        if name in self._trail:
            loop = " > ".join([*self._trail[self._trail.index(name) :], name])
            raise self._error(name, f"leads back to itself ({loop}); break the loop")
        if (name, many) not in self._built:
            self._trail.append(name)
            self._built[name, many] = _choice(
                [(weight, self._parts(name, text, many)) for weight, text in self._rules[name]]
            )
            self._trail.pop()
        return self._built[name, many]

    def _parts(self, name: str, text: str, many: bool) -> _Parts:
        levels: list[tuple[float, list[str | _Choice]]] = [(1.0, [])]
        for token in _TOKEN.finditer(text):
            parts = levels[-1][1]
            if token["text"]:
                parts.append(token["text"])
            elif token["one"]:
                plural = token["many"] or token["one"] + token["ending"]
                parts.append(plural if many else token["one"])
            elif token["article"] is not None:
                # {a=} stands only before a singular: "a red roof", but "red roofs".
                # Spaces set it apart as a word of its own; `_finished` removes the extra ones.
                parts.append("" if many and token["article"] else f" {_ARTICLE} ")
            elif token["name"]:
                parts.append(self._reference(name, token["name"], token["number"], many))
            elif token["chance"] and 0 < int(token["chance"]) < 100:
                levels.append((int(token["chance"]) / 100, []))
            elif token["close"] and len(levels) > 1:
                chance, optional = levels.pop()
                levels[-1][1].append(_choice([(chance, tuple(optional)), (1 - chance, ())]))
            else:
                raise self._error(name, f"{text!r}: not understood: {text[token.start() :]!r}")
        if len(levels) > 1:
            raise self._error(name, f"{text!r}: a [ is not closed; add ]")
        return tuple(levels[0][1])

    def _reference(self, name: str, target: str, number: str, many: bool) -> _Choice:
        if target not in self._rules:
            raise self._error(name, f"{{{target}}} is not a rule; define it or correct the name")
        choice = self._rule(target, many=number == "+" or (number == "=" and many))
        if number == "+":
            for _, text in self._rules[target]:
                if not self._has_plural(text):
                    raise self._error(
                        target, f"{text!r} has no plural for {{{target}+}}; write word(s) or a/b"
                    )
        return choice

    def _has_plural(self, text: str) -> bool:
        return any(
            bool(token["one"])
            or (
                token["number"] == "="
                and all(self._has_plural(below) for _, below in self._rules[token["name"]])
            )
            for token in _TOKEN.finditer(text)
        )


@dataclass(frozen=True)
class Grammar:
    """A checked grammar. Make one with `Grammar.load`."""

    path: str
    _start: _Choice
    _left: Mapping[str, int]
    _right: Mapping[str, int]
    _may_repeat: frozenset[str] | None

    @classmethod
    def load(cls, path: str, start: str = "start") -> Grammar:
        """Read and check a grammar from a local path or fsspec URL.

        Args:
            path: the YAML file.
            start: the rule that sentences are drawn from.

        Raises:
            AigiError: names the file, the rule and the remedy: an undefined, unreachable, empty
                or recursive rule, a weight that is not above 0, a missing `start`, a plural that
                a rule does not have, or text outside the notation.
        """
        rules = dict(read_yaml(path))
        left, right = _pairs(path, rules.pop("apart", []))
        repeat = rules.pop("may_repeat", None)
        free = None if repeat is None else frozenset([*_words(path, "may_repeat", repeat), ""])
        return cls(path, _Compiler(path, rules).start(start), left, right, free)

    def sentences(self, count: int, seed: int) -> Iterator[str]:
        """Yield exactly `count` distinct sentences; the first k are the same for any count.

        The order depends on the grammar file and `seed` alone (any integer), not on the machine,
        the process or the Python version: `random.Random.random` is the one draw that Python
        promises to keep. Every sentence is remembered, about 200 bytes each.

        Raises:
            AigiError: the grammar is exhausted: `PATIENCE` draws in a row gave nothing new.
        """
        # Hashed, because random.Random takes -1 and 1 for the same seed.
        digest = hashlib.sha256(str(seed).encode()).digest()
        draw = random.Random(int.from_bytes(digest[:8], "big")).random
        seen: set[str] = set()
        idle = 0
        while len(seen) < count:
            parts: list[str] = []
            _write(self._start, draw, parts)
            sentence = self._finished("".join(parts))
            if sentence is not None and sentence not in seen:
                seen.add(sentence)
                idle = 0
                yield sentence
                continue
            idle += 1
            if idle == PATIENCE:
                raise AigiError(
                    f"{self.path}: only {len(seen)} distinct sentences found, {count} needed: "
                    f"{PATIENCE} draws in a row gave no new one; lower count or add to the rules"
                )

    def _finished(self, text: str) -> str | None:
        """Return `text` with articles and spaces set right, or None where words clash."""
        words = text.split()
        seen: set[str] = set()
        following = previous = before = ""
        left = right = 0
        for index in range(len(words) - 1, -1, -1):
            if words[index] == _ARTICLE:
                words[index] = _article(following)
            following = words[index]
            key = following.rstrip(_ENDINGS)
            left |= self._left.get(key, 0)
            right |= self._right.get(key, 0)
            if self._may_repeat is not None:
                # Free words may come again, but not as "red red" or "red and red".
                if key in seen or key == previous or (previous == "and" and key == before):
                    return None
                if key not in self._may_repeat:
                    seen.add(key)
                before, previous = previous, key
        if left & right or not words:
            return None
        sentence = " ".join(words).replace(" ,", ",").replace(" .", ".")
        return sentence[0].upper() + sentence[1:] if sentence.endswith(".") else sentence
