"""Prompts are scored by their parts, each looked at once: the scores are those of whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prompts import parts
from pipeline.prompts.filters import PromptFilters
from pipeline.prompts.lexicon import Lexicon
from pipeline.prompts.meaning import Meanings, meanings
from pipeline.prompts.parts import Table, Vocabulary
from pipeline.prompts.personal import Personal, personal
from pipeline.prompts.phrases import Phrases
from pipeline.prompts.safety import LexiconScorer
from pipeline.prompts.scored import Scored, Scoring
from pipeline.prompts.text import normalise
from pipeline.prompts.wording import Wordings
from pipeline.tables import LINES
from tests.conftest import ROOT

_PLAIN = (
    "a the dog naked woman child dead shot in head covered blood with gun hand colour recieve "
    "skate board Obama man's women 2 two 1,000 +49 30 901820 4111 1111 192.168.0.1 cut off his "
    "see through wearing nothing but hat n k e d"
)
_ODD = ["(", "at", "[", ")", "@", "me@x.com", ",", ".", "-", "\u2014", "bl00d,", "n.a.k.e.d",
        "covered-in", "#tag", "http://x.y", "\u5915\u713c\u3051\u306e\u6d77", "\u0e44\u0e17\u0e22",
        "caf\u00e9", "\u05d1\u05d9\u05ea", "IMG_1234.jpg", "NAKED", "o\u2019clock",
        "\u00bd", "\U0001f600"]  # fmt: skip
WORDS = [*_PLAIN.split(" "), *_ODD]
texts = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(
        lambda some: normalise(" ".join(some))
    ),
    max_size=9,
)
LEXICON = str(ROOT / "prompts" / "unsafe.yaml")


@given(texts)
def test_arithmetic_over_parts_is_that_over_each_prompt(some: list[str]) -> None:
    vocabulary = Vocabulary()
    table = Table(vocabulary, lambda part: (len(part), 1 << len(part) % 5), 2)
    words = Table(vocabulary, lambda part: (part.upper(),), 1, object)
    for given_texts in (some[:3], some):
        split = vocabulary.split(given_texts)
        length, bits = table.of(split)
        every = [text.split(" ") for text in given_texts]
        assert split.lengths.tolist() == list(map(len, every))
        assert split.sums(length).tolist() == [sum(map(len, each)) for each in every]
        expected = [
            int(np.bitwise_or.reduce([1 << len(part) % 5 for part in each])) for each in every
        ]
        assert split.ored(bits).tolist() == expected
        assert split.distinct().tolist() == [len(set(each)) for each in every]
        assert split.joined(words.of(split)[0]) == ["".join(each).upper() for each in every]


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("phrases") / "list.txt"
    path.write_text("obama\ncovered in\nbut hat\n@\n# a comment\n")
    return str(path)


@given(texts)
def test_scores_of_parts_are_those_of_prompts(phrases: str, some: list[str]) -> None:
    vocabulary = Vocabulary()
    lexicon, listed = Lexicon(LEXICON, vocabulary), Phrases(phrases, "names", vocabulary)
    split = vocabulary.split(some)
    assert lexicon.scores(split) == list(map(lexicon.score, some))
    assert listed(split) == list(map(listed.first_in, some))
    assert Personal(vocabulary)(split) == list(map(personal, some))
    assert Meanings(vocabulary)(split) == list(map(meanings, some))


def test_an_address_may_be_in_several_parts() -> None:
    vocabulary = Vocabulary()
    split = vocabulary.split(["write to me ( at ) example ( dot ) com", "[ at ] the sea"])
    assert Personal(vocabulary)(split) == [["email"], []]


def test_words_are_counted() -> None:
    vocabulary = Vocabulary()
    some = [
        "a dog , a dog",
        "#tag 5 IMG_1234.jpg \u2014",
        "caf\u00e9 au lait",
        "3 + 4",
        "12345678 x",
    ]
    found = Wordings(vocabulary)(vocabulary.split(some))
    assert found.words.tolist() == [4, 3, 3, 3, 2]
    assert found.noise.tolist() == [0.0, 2 / 3, 0.0, 1 / 3, 0.5]
    assert found.repeated.tolist() == [1 - 3 / 5, 0.0, 0.0, 0.0, 0.0]
    letters = found.ascii_letters.tolist()
    assert letters[:3] == [1.0, 1.0, 9 / 10] and np.isnan(letters[3]) and letters[4] == 1.0


def rows(some: Sequence[str | None], problems: Sequence[str | None]) -> pa.Table:
    return pa.table({"line": range(len(some)), "text": some, "problem": problems}, schema=LINES)


def scored(table: pa.Table) -> list[dict[str, Any]]:
    scoring = Scoring(PromptFilters(), (LexiconScorer(), LexiconScorer(name="again")))
    found: list[dict[str, Any]] = pa.concat_tables(Scored(scoring)(table)).to_pylist()
    return found


def test_what_is_forgotten_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    some = [" ".join(random.choice(WORDS, 6)) for _ in range(300)]
    problems = ["no tab" if number % 7 == 0 else None for number in range(300)]
    table = rows(
        [None if why else text for text, why in zip(some, problems, strict=True)], problems
    )
    expected = scored(table)
    monkeypatch.setattr(parts, "REMEMBERED", 10)
    monkeypatch.setattr("pipeline.prompts.scored.BLOCK", 16)
    assert scored(table) == expected
    one_by_one = [scored(table.slice(number, 1))[0] for number in range(0, 300, 25)]
    assert one_by_one == expected[::25], "a score does not depend on the texts beside it"


def test_shards_without_a_usable_text_have_columns_all_the_same(tmp_path: Path) -> None:
    assert [row["text"] for row in scored(rows(["", "  "], [None, None]))] == [None, None]
    assert [row["problem"] for row in scored(rows([None], ["no tab"]))] == ["no tab"]
