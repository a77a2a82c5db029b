"""Captions in, the `texts` table out: normalised, each with all its scores.

Nothing is decided here. What is too short, unsafe or in another language is a matter of
`prompts.filters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.prompts import safety
from pipeline.prompts.filters import PromptFilters, reasons
from pipeline.prompts.language import languages_of
from pipeline.prompts.meaning import meanings
from pipeline.prompts.personal import personal
from pipeline.prompts.phrases import Phrases
from pipeline.prompts.safety import SafetyScorer
from pipeline.prompts.text import names_person, normalise, prompt_id, with_person
from pipeline.prompts.wording import wording_of
from pipeline.tables import LINES, TEXTS

BLOCK = 4_096
MOST_CHARACTERS = 10_000
"""Of a prompt; what is longer is no caption, and no scorer has to stand it."""


class Scoring(NamedTuple):
    """The settings that decide texts and scores.

    Attributes:
        filters: `person`, `blocklist` and `names` of it.
        safety: the scorers of safety.
        device, threads: for those that are models.
    """

    filters: PromptFilters
    safety: tuple[SafetyScorer, ...]
    device: str = "auto"
    threads: int = 1

    def recorded(self) -> dict[str, Any]:
        """As JSON values: equal ones give equal scores."""
        return {
            "person": self.filters.person,
            **self.filters.lists(),
            "language": f"py3langid {version('py3langid')}",
            "safety": [safety.recorded(scorer) for scorer in self.safety],
        }


Column = list[Any]
Score = Callable[[Sequence[str]], Sequence[Column]]
"""Normalised texts in; for each column of the scorer, one value a text, out."""


class Scorer(NamedTuple):
    """One scorer.

    Attributes:
        columns: of the `texts` table that it makes.
        opened: makes it ready to work.
    """

    columns: tuple[str, ...]
    opened: Callable[[Scoring], Score]


def _each(function: Callable[[str], Any], texts: Sequence[str]) -> list[Column]:
    return [list(map(function, texts))]


def _several(function: Callable[[str], tuple[Any, ...]], width: int) -> Score:
    """A scorer whose function gives the values of several columns at once."""

    def score(texts: Sequence[str]) -> list[Column]:
        return [list(column) for column in zip(*map(function, texts), strict=True)] or [
            [] for _ in range(width)
        ]

    return score


def _languages(texts: Sequence[str]) -> list[Column]:
    found = languages_of(texts)
    return [[one.code for one in found], [one.probability for one in found]]


def _phrases(setting: str, scoring: Scoring) -> Score:
    path = getattr(scoring.filters, setting)
    if path is None:
        return lambda texts: [[None] * len(texts)]
    return partial(_each, Phrases(path, f"prompts.filters.{setting}").first_in)


class _Safety:
    """All scorers of safety; `loaded` has the digests of the weights of those that have some."""

    def __init__(self, scoring: Scoring) -> None:
        safety.check_names(scoring.safety)
        if any(isinstance(one, safety.ClassifierScorer) for one in scoring.safety):
            import torch

            torch.set_num_threads(scoring.threads)
        self._scorers: dict[str, safety.Score] = {}
        self.loaded: dict[str, str] = {}
        for one in scoring.safety:
            self._scorers[one.name], sha256 = safety.opened(one, scoring.device)
            if sha256 is not None:
                self.loaded[f"prompts.safety.{one.name}"] = sha256

    def __call__(self, texts: Sequence[str]) -> list[Column]:
        names = tuple(self._scorers)
        hits = [scorer(texts) for scorer in self._scorers.values()]
        if not hits:
            return [[[] for _ in texts], [None] * len(texts)]
        rows = list(zip(*hits, strict=True))
        scores = [list(zip(names, (hit.score for hit in row), strict=True)) for row in rows]
        return [scores, [max(row).why or None for row in rows]]


SCORERS = (
    Scorer(("prompt_id",), lambda scoring: partial(_each, prompt_id)),
    Scorer(("words", "ascii_letters", "noise", "repeated"),
           lambda scoring: _several(wording_of, 4)),
    Scorer(("blocked",), partial(_phrases, "blocklist")),
    Scorer(("named",), partial(_phrases, "names")),
    Scorer(("language", "language_probability"), lambda scoring: _languages),
    Scorer(("personal",), lambda scoring: partial(_each, personal)),
    Scorer(("unsafe", "unsafe_for"), _Safety),
    Scorer(("meanings",), lambda scoring: partial(_each, meanings)),
)  # fmt: skip
"""All scorers, by the columns that they make."""


class Scored:
    """A worker: captions as they were read in, rows of the `texts` table out.

    Args:
        scoring: decides texts and scores.

    Attributes:
        loaded: digests of the weights of models, by what uses them.

    Raises:
        AigiError: a list, a lexicon or a model is missing or damaged.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._person = scoring.filters.person
        self._scorers = [(scorer.columns, scorer.opened(scoring)) for scorer in SCORERS]
        self.loaded: dict[str, str] = {}
        for _, score in self._scorers:
            self.loaded |= getattr(score, "loaded", {})

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Score captions, some thousands a chunk, in their order.

        Args:
            rows: as `LINES`.
        """
        for start in range(0, rows.num_rows, BLOCK):
            yield self._scored(rows.slice(start, BLOCK))

    def _usable(self, text: str) -> tuple[str | None, str | None]:
        """A normalised caption with its persons replaced, or why it can be no prompt."""
        if names_person(text):
            if self._person is None:
                return None, "person"
            text = with_person(text, self._person)
        if len(text) > MOST_CHARACTERS:
            return None, f"too long: {len(text):,} characters"
        return (text, None) if text else (None, "empty")

    def _scored(self, rows: pa.Table) -> pa.Table:
        raw, problems = rows["text"].to_pylist(), rows["problem"].to_pylist()
        texts: list[str | None] = []
        for place, written in enumerate(raw):
            text = None if problems[place] is not None else normalise(written or "")
            if text is not None:
                text, problems[place] = self._usable(text)
            texts.append(text)
        good = [place for place, text in enumerate(texts) if text is not None]
        some = [text for text in texts if text is not None]
        columns: dict[str, Any] = {
            "line": rows["line"],
            "raw": [written if written != text else None
                    for written, text in zip(raw, texts, strict=True)],
            "text": texts,
            "problem": problems,
        }  # fmt: skip
        for names, score in self._scorers:
            for name, values in zip(names, score(some), strict=True):
                column: Column = [None] * len(texts)
                for place, value in zip(good, values, strict=True):
                    column[place] = value
                columns[name] = column
        return pa.table(columns, schema=TEXTS)


class Filter:
    """Decides of single captions whether they become prompts.

    Args:
        filters: the thresholds.
        safety: scorers of safety.

    Raises:
        AigiError: a list, a lexicon or a model is missing or damaged.
    """

    def __init__(
        self,
        filters: PromptFilters,
        safety: tuple[SafetyScorer, ...] = (safety.LexiconScorer(),),
    ) -> None:
        self._filters, self._scored = filters, Scored(Scoring(filters, safety))

    def clean(self, text: str) -> tuple[str | None, str | None]:
        """Return `(prompt, None)`, or `(None, reason)` for a caption that is refused.

        The prompt is normalised and its `<PERSON>` marks are replaced. The reason begins with
        `empty`, `person` or a `reason` of `filters.RULES`.
        """
        return self.clean_all([text])[0]

    def clean_all(self, texts: Sequence[str]) -> list[tuple[str | None, str | None]]:
        """The same of many captions, which is much faster."""
        rows = pa.table(
            {"line": range(1, len(texts) + 1), "text": list(map(in_unicode, texts)),
             "problem": [None] * len(texts)},
            schema=LINES,
        )  # fmt: skip
        found: list[tuple[str | None, str | None]] = []
        for scored in self._scored(rows):
            why = reasons(scored, self._filters).to_pylist()
            cleaned = scored["text"].to_pylist()
            found += [
                (text, None) if reason is None else (None, reason)
                for text, reason in zip(cleaned, why, strict=True)
            ]
        return found


def in_unicode(text: str) -> str:
    """A caption without halves of surrogate pairs, which JSON can spell and no UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()
