"""The language of a caption is told, and English is not taken for another one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.filters import PromptFilters
from pipeline.prompts.grammar import Grammar
from pipeline.prompts.language import LANGUAGES, Languages, _bytes, _model, identifier
from pipeline.prompts.parts import Vocabulary
from pipeline.prompts.scored import Filter
from tests.conftest import ROOT

OTHERS = {
    "de": [
        "Ein Mann mit Hut wartet an der Haltestelle auf den Bus",
        "zwei kleine Katzen schlafen in einem Korb neben dem Ofen",
        "Auf dem Tisch steht eine Vase mit roten Blumen",
        "eine Frau im roten Kleid tanzt",
        "Blick auf die verschneiten Berge am Abend",
        "eine alte Burg im Nebel bei Nacht",
    ],
    "fr": [
        "une petite fille joue avec un ballon dans le jardin",
        "un chat noir dort sur le canapé du salon",
        "vue de la mer depuis la terrasse d'un hôtel",
        "trois pommes rouges dans un panier en osier",
        "Le boulanger sort le pain du four",
        "il y a un vélo contre le mur",
    ],
    "nl": ["een hond loopt over het strand met een stok in zijn bek"],
    "it": ["una donna con un ombrello rosso cammina sotto la pioggia"],
    "hu": ["a macska is a házban van, és a kutya is ott alszik"],
    "pl": ["kobieta by a chciała czytać książkę w parku na ławce"],
    "ru": ["мальчик с собакой идёт по снегу"],  # noqa: RUF001
}


class Told(NamedTuple):
    code: str | None
    probability: float


def languages_of(texts: Sequence[str]) -> list[Told]:
    vocabulary = Vocabulary()
    codes, probabilities = Languages(vocabulary)(vocabulary.split(texts))
    return list(map(Told, codes, probabilities.tolist()))


def test_english_captions_are_english() -> None:
    texts = list(Grammar.load(str(ROOT / "prompts" / "grammar.yaml")).sentences(3_000, seed=4))
    others = [one for one in languages_of(texts) if one.code != "en" and one.probability >= 0.4]
    assert len(others) <= 3, others


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_not_english(code: str) -> None:
    found = languages_of(OTHERS[code])
    assert {one.code for one in found} == {code}, found
    chosen = Filter(PromptFilters(min_ascii_letters=0), safety=())
    for text, (prompt, reason) in zip(OTHERS[code], chosen.clean_all(OTHERS[code]), strict=True):
        assert prompt is None and str(reason).startswith(f"language: {code} ("), text
    wanted = Filter(PromptFilters(min_ascii_letters=0, languages=(code,)), safety=())
    assert all(reason is None for _, reason in wanted.clean_all(OTHERS[code]))


def test_words_that_say_nothing_are_refused() -> None:
    chosen = Filter(PromptFilters(), safety=())
    assert chosen.clean("lorem ipsum dolor sit amet consectetur")[1] == "language: la (0.99)"
    assert chosen.clean("the the the the the the the the")[1] == "repeats: 0.88 > 0.6"


def test_a_short_caption_is_rather_english() -> None:
    """Which the model alone takes for Frisian, Dutch and French."""
    texts = [
        "a wild boar in tall grass",
        "a green scooter in midsummer",
        "two quinces on a turquoise plate",
    ]
    assert {one.code for one in languages_of(texts)} == {"en"}


def test_two_of_the_commonest_words_settle_it() -> None:
    found = languages_of(["the cat with", "the cat", "a of", "a of one two three four five six"])
    assert [one.probability == 1.0 for one in found] == [True, False, True, True]
    assert languages_of(["a of one two three four five six seven"])[0].probability < 1.0


def test_a_text_without_letters_has_no_language() -> None:
    (found,) = languages_of(["3 + 4"])
    assert found == (None, 0.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8))
def test_many_texts_at_once_are_as_the_library_has_them(texts: list[str]) -> None:
    """Against py3langid itself, text by text."""
    shares = _model().probabilities([_bytes(text) for text in texts])
    for text, row in zip(texts, shares, strict=True):
        ranked = dict(identifier().rank(text))
        mine = {code: float(row[n]) for n, code in enumerate(_model().codes) if row[n]}
        for code, share in ranked.items():
            assert np.isclose(mine.get(code, 0.0), share, atol=1e-3), (text, code)


def test_texts_do_not_depend_on_their_neighbours() -> None:
    texts = [text for some in OTHERS.values() for text in some]
    assert languages_of(texts) == [languages_of([text])[0] for text in texts]


def test_languages_that_nobody_tells_apart_are_refused() -> None:
    assert set(identifier().labels) == LANGUAGES
    with pytest.raises(ValueError, match="no language xx"):
        PromptFilters(languages=("xx",))


def test_real_captions_are_english(shared: Path) -> None:
    with (shared / "prompts" / "coco_30k.csv").open(newline="") as file:
        coco = [row["prompt"] for row in csv.DictReader(file)][::5]
    kept = [one.code == "en" or one.probability < 0.4 for one in languages_of(coco)]
    assert np.mean(kept) >= 0.99
