"""A list of words and phrases in (one a line); the first one that each prompt has, out."""

from __future__ import annotations

import re

from pipeline import AigiError
from pipeline.outside import opened
from pipeline.prompts.joiners import bare
from pipeline.prompts.parts import Split, Table, Vocabulary, all_of
from pipeline.prompts.text import normalise

_WORD = re.compile(r"\w+")


class Phrases:
    """A list of phrases, found as whole words without regard to case.

    Args:
        path: a text file, local or at an fsspec URL; `#` begins a comment.
        setting: that names it, for errors.
        vocabulary: of the parts of prompts.

    Raises:
        AigiError: it is missing or not UTF-8.
    """

    def __init__(self, path: str, setting: str, vocabulary: Vocabulary) -> None:
        self._table = Table(vocabulary, self._worth, 1)
        self._entries: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        try:
            with opened(path) as file:
                lines = file.read().decode("utf-8-sig").splitlines()
        except FileNotFoundError:
            raise AigiError(f"{path}: no such file; correct `{setting}` or leave it out") from None
        except UnicodeDecodeError as error:
            raise AigiError(f"{path}: {error}; save it as UTF-8") from None
        for line in lines:
            entry = bare(normalise(re.split(r"(?:^|\s)#", line)[0]).casefold())
            if entry:
                first = _WORD.search(entry)
                pattern = re.compile(rf"(?<!\w){re.escape(entry)}(?!\w)")
                self._entries.setdefault(first[0] if first else "", []).append((entry, pattern))

    def first_in(self, text: str) -> str | None:
        """The first phrase that a normalised prompt has; None: it has none."""
        # Words in a set, then the few patterns that can fit: one alternation of all entries is
        # ten times slower at a thousand entries.
        text = bare(text.casefold())  # a joiner hides no word
        words = _WORD.findall(text)
        if self._entries.keys().isdisjoint(words) and "" not in self._entries:
            return None
        for word in (*words, ""):
            for entry, pattern in self._entries.get(word, ()):
                if pattern.search(text):
                    return entry
        return None

    def __call__(self, split: Split) -> list[str | None]:
        """The first phrase that each of some normalised prompts has; None: it has none."""
        (worth,) = self._table.of(split)
        return all_of(self.first_in, split, split.ored(worth) > 0, None)

    def _worth(self, part: str) -> tuple[int]:
        words = _WORD.findall(bare(part.casefold()))
        return (int("" in self._entries or not self._entries.keys().isdisjoint(words)),)
