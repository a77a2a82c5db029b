"""Captions in, the `texts` table out: normalised, each with all its scores.

Nothing is decided here. What is too short, unsafe or in another language is a matter of
`prompts.filters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.prompts import safety
from pipeline.prompts.filters import PromptFilters, reasons
from pipeline.prompts.language import Languages
from pipeline.prompts.meaning import Meanings
from pipeline.prompts.parts import Split, Vocabulary
from pipeline.prompts.personal import Personal
from pipeline.prompts.phrases import Phrases
from pipeline.prompts.safety import SafetyScorer
from pipeline.prompts.text import id_of, names_person, normalise, with_person
from pipeline.prompts.wording import Wordings
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


Score = Callable[[Split], Sequence[pa.Array]]
"""Normalised texts in; for each column of the scorer, one value a text, out."""


class Scorer(NamedTuple):
    """One scorer.

    Attributes:
        columns: of the `texts` table that it makes.
        opened: makes it ready to work.
    """

    columns: tuple[str, ...]
    opened: Callable[[Scoring, Vocabulary], Score]


def _lists(values: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.Array:
    """A column of lists; most are alike, and Arrow takes them one by one."""
    ends = np.cumsum([0, *map(len, values)])
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.array(chain.from_iterable(values), kind)
    )


def _ids(scoring: Scoring, vocabulary: Vocabulary) -> Score:
    return lambda split: [pa.array(map(id_of, split.texts), pa.string())]


def _wording(scoring: Scoring, vocabulary: Vocabulary) -> Score:
    count = Wordings(vocabulary)

    def score(split: Split) -> list[pa.Array]:
        found = count(split)
        letters = pa.array(found.ascii_letters, mask=np.isnan(found.ascii_letters))
        return [pa.array(found.words), letters, pa.array(found.noise), pa.array(found.repeated)]

    return score


def _phrases(setting: str, scoring: Scoring, vocabulary: Vocabulary) -> Score:
    path = getattr(scoring.filters, setting)
    if path is None:
        return lambda split: [pa.nulls(len(split.texts), pa.string())]
    find = Phrases(path, f"prompts.filters.{setting}", vocabulary)
    return lambda split: [pa.array(find(split), pa.string())]


def _language(scoring: Scoring, vocabulary: Vocabulary) -> Score:
    tell = Languages(vocabulary)

    def score(split: Split) -> list[pa.Array]:
        codes, probabilities = tell(split)
        return [pa.array(codes, pa.string()), pa.array(probabilities)]

    return score


def _personal(scoring: Scoring, vocabulary: Vocabulary) -> Score:
    find = Personal(vocabulary)
    return lambda split: [_lists(find(split), pa.string())]


def _meanings(scoring: Scoring, vocabulary: Vocabulary) -> Score:
    find = Meanings(vocabulary)
    return lambda split: [_lists(find(split), pa.uint64())]


class _Safety:
    """All scorers of safety; `loaded` has the digests of the weights of those that have some."""

    def __init__(self, scoring: Scoring, vocabulary: Vocabulary) -> None:
        safety.check_names(scoring.safety)
        if any(isinstance(one, safety.ClassifierScorer) for one in scoring.safety):
            import torch

            torch.set_num_threads(scoring.threads)
        self._scorers: dict[str, safety.Score] = {}
        self.loaded: dict[str, str] = {}
        for one in scoring.safety:
            self._scorers[one.name], sha256 = safety.opened(one, scoring.device, vocabulary)
            if sha256 is not None:
                self.loaded[f"prompts.safety.{one.name}"] = sha256

    def __call__(self, split: Split) -> list[pa.Array]:
        count, names = len(split.texts), tuple(self._scorers)
        hits = [scorer(split) for scorer in self._scorers.values()]
        rows = list(zip(*hits, strict=True)) or [()] * count
        scores = pa.MapArray.from_arrays(
            pa.array(np.arange(count + 1) * len(names), pa.int32()),
            pa.array(names * count, pa.string()),
            pa.array([hit.score for row in rows for hit in row], pa.float64()),
        )
        return [scores, pa.array([max(row).why or None if row else None for row in rows])]


SCORERS = (
    Scorer(("prompt_id",), _ids),
    Scorer(("words", "ascii_letters", "noise", "repeated"), _wording),
    Scorer(("blocked",), partial(_phrases, "blocklist")),
    Scorer(("named",), partial(_phrases, "names")),
    Scorer(("language", "language_probability"), _language),
    Scorer(("personal",), _personal),
    Scorer(("unsafe", "unsafe_for"), _Safety),
    Scorer(("meanings",), _meanings),
)
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
        self._person, self._vocabulary = scoring.filters.person, Vocabulary()
        self._scorers = [
            (scorer.columns, scorer.opened(scoring, self._vocabulary)) for scorer in SCORERS
        ]
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
        some = [text for text in texts if text is not None]
        columns: dict[str, Any] = {
            "line": rows["line"],
            "raw": [written if written != text else None
                    for written, text in zip(raw, texts, strict=True)],
            "text": texts,
            "problem": problems,
        }  # fmt: skip
        split = self._vocabulary.split(some)
        there = np.array([text is not None for text in texts], np.bool_)
        places = pa.array(np.cumsum(there) - 1, mask=~there)
        for names, score in self._scorers:
            for name, values in zip(names, score(split), strict=True):
                values = values.cast(TEXTS.field(name).type)
                columns[name] = values if len(some) == len(texts) else values.take(places)
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
