"""Prompts that say the same are one, and prompts that differ in what an image shows are not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.grammar import Grammar
from pipeline.prompts.meaning import SaidBefore, meaning, readings
from pipeline.prompts.text import normalise
from tests.conftest import ROOT

PAIRS = 10_000
COLOURS = "red blue green yellow white black pink purple orange brown gray gold silver"
NAMES = "Anna Maria Karl Erik Olga Bowen Bolen Karlsen Karlson Jon John Steven Stephen"
PLACES = ["on", "under", "behind", "beside", "in front of", "above", "inside"]
THINGS = "cat dog horse bus car boat tree cup ball lamp chair house bird rabbit bear"

Change = Callable[[str, random.Random], str | None]


def _other(words: list[str], one: str, draw: random.Random) -> str:
    return draw.choice([word for word in words if word != one])


def _colour(text: str, draw: random.Random) -> str | None:
    found = [word for word in text.split() if word in COLOURS.split()]
    if not found:
        return None
    return re.sub(rf"\b{found[0]}\b", _other(COLOURS.split(), found[0], draw), text, count=1)


def _two(text: str, draw: random.Random) -> str:
    a, b = draw.sample(COLOURS.split(), 2)
    c, d = draw.sample(THINGS.split(), 2)
    return f"{text}, with a {a} {c} {draw.choice(PLACES)} a {b} {d}"


def _swapped(text: str, draw: random.Random) -> str | None:
    """What belongs to two things, exchanged."""
    found = re.fullmatch(r"(.*, with a )(\w+)( \w+ .*? a )(\w+)( \w+)", text)
    return found and f"{found[1]}{found[4]}{found[3]}{found[2]}{found[5]}"


def _turned(text: str, draw: random.Random) -> str | None:
    """Two things, exchanged."""
    found = re.fullmatch(r"(.*, with )(a \w+ \w+)( .*? )(a \w+ \w+)", text)
    return found and f"{found[1]}{found[4]}{found[3]}{found[2]}"


def _elsewhere(text: str, draw: random.Random) -> str | None:
    found = re.search(rf" ({'|'.join(PLACES)}) a (?=\w+ \w+$)", text)
    return found and text.replace(found[0], f" {_other(PLACES, found[1], draw)} a ")


def _counted(text: str, draw: random.Random) -> str:
    return f"{text} and {draw.randint(2, 9)} apples"


def _more(text: str, draw: random.Random) -> str:
    return re.sub(r"\d apples$", lambda found: f"{int(found[0][0]) + 1} apples", text)


def _negated(text: str, draw: random.Random) -> str:
    return re.sub(r"with a", draw.choice(["without a", "with no"]), text)


def _named(text: str, draw: random.Random) -> str:
    return f"{draw.choice(NAMES.split())} and {text[0].lower()}{text[1:]}"


def _renamed(text: str, draw: random.Random) -> str:
    first, rest = text.split(" ", 1)
    return f"{_other(NAMES.split(), first, draw)} {rest}"


def _sentences(count: int) -> list[str]:
    return list(Grammar.load(str(ROOT / "prompts" / "grammar.yaml")).sentences(count, seed=23))


def _pairs() -> list[tuple[str, str]]:
    draw = random.Random(5)
    kinds: list[tuple[Change, Change]] = [
        (_two, _swapped), (_two, _turned), (_two, _elsewhere), (_two, _negated), (_two, _colour),
        (_counted, _more), (_named, _renamed),
    ]  # fmt: skip
    found = []
    for number, text in enumerate(_sentences(PAIRS)):
        begun, changed = kinds[number % len(kinds)]
        first = begun(text, draw)
        assert first is not None
        second = changed(first, draw)
        assert second is not None and second != first, (first, changed)
        found.append((first, second))
    return found


def test_no_contrast_is_lost() -> None:
    lost = []
    for first, second in _pairs():
        said = SaidBefore()
        said.add(first)
        if said.add(second) is not None:
            lost.append((first, second))
    assert lost == []


def _article(text: str, draw: random.Random) -> str:
    return re.sub(r"\b(a|an|the) ", draw.choice(["", "the "]), text, count=2, flags=re.IGNORECASE)


def _plural(text: str, draw: random.Random) -> str:
    last = re.search(r"(\w+)\W*$", text)
    assert last is not None
    word = last[1]
    other = word.removesuffix("s") if re.search(r"[^su]s$", word) else f"{word}s"
    return text[: last.start(1)] + other + text[last.end(1) :]


BRITISH = {"gray": "grey", "color": "colour", "colors": "colours", "center": "centre"}


def _spelt(text: str, draw: random.Random) -> str:
    """Another spelling; where there is none, a letter of a long word is lost."""
    for word, other in BRITISH.items():
        if re.search(rf"\b{word}\b", text):
            return re.sub(rf"\b{word}\b", other, text)
    words = text.split(" ")
    long = [
        n for n, word in enumerate(words) if word.isalpha() and word.islower() and len(word) > 7
    ]
    if long:
        place = draw.choice(long)
        at = draw.randrange(2, len(words[place]) - 2)
        words[place] = words[place][:at] + words[place][at + 1 :]
    return " ".join(words)


WAYS: dict[str, Change] = {
    "case": lambda text, draw: text.upper() if draw.random() < 0.5 else text.title(),
    "signs": lambda text, draw: text.replace(",", " ,") + draw.choice([".", " !", "..."]),
    "articles": _article,
    "plural": _plural,
    "spelling": _spelt,
}


def test_at_least_nine_of_ten_variants_are_found() -> None:
    draw = random.Random(6)
    found: dict[str, list[bool]] = {way: [] for way in WAYS}
    for number, text in enumerate(_sentences(PAIRS)):
        way = list(WAYS)[number % len(WAYS)]
        other = WAYS[way](text, draw)
        assert other is not None
        said = SaidBefore()
        said.add(text)
        found[way].append(said.add(normalise(other)) is not None)
    shares = {way: sum(each) / len(each) for way, each in found.items()}
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A man on a surfboard riding a wave.", "a man on surf board, riding waves"),
        ("There are two dogs in the grey theatre", "2 dogs in a gray theater"),
        ("1,000 balloons over the harbour", "1000 balloons over a harbor"),
        ("a jewellery box is travelling", "Jewelry boxes traveling"),
        ("The children's toys don't move", "child’s toys do not move"),  # noqa: RUF001
        ("an ORGANISED row of shelves", "organized row of shelf"),
        ("a motorcyle parked on the street", "a motorcycle parked on the street"),
        ("a giraffe eats brocoli leaves", "A giraffe eats broccoli leaf"),
        ("ein Hund im Schnee", "Ein Hund im Schnee!"),
        ("一只红色的猫", "一只红色的猫。"),
    ],
)
def test_the_same_in_other_words_is_one(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        said = SaidBefore()
        assert said.add(first) is None
        assert said.add(second) == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red bus and a blue car", "a blue bus and a red car"),
        ("a man with glasses", "a man with a glass"),
        ("a news stand", "a new stand"),
        ("2 cats at 10:30", "2 cats at 1:030"),
        ("twenty one cats", "20 | 11 cats"),
        ("a lake at -5 degrees", "a lake at 5 degrees"),
        ("a 50% full glass", "a 50 full glass"),
        ("3.5 apples", "35 apples"),
        ("the dog can swim", "the dog can't swim"),
        ("a cat 🐱 card", "a cat 🐶 card"),
        ("portrait of Karlsen", "portrait of Karlson"),
        ("portrait of bolen", "portrait of bowen"),
        ("portrait of johnsan", "portrait of johnson"),
        ("a hat of felt", "a hat of belt"),
        ("a dog biting a man", "a man biting a dog"),
        ("一只红色的猫", "一只蓝色的猫"),
        ("a blue cat and a black cat on a bed", "a black cat and a blue cat on a bed"),
        ("A woman skis down a long slope of snow.", "A man skis down a long slope of snow."),
        ("a small squirrel shouts on a stump", "a small platypus shouts on a stump"),
    ],
)
def test_what_an_image_would_show_otherwise_is_two(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        said = SaidBefore()
        said.add(first)
        assert said.add(second) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_a_meaning_and_equal_ones_are_one(text: str) -> None:
    text = normalise(text)
    assert readings(text)[0] == meaning(text)
    said = SaidBefore()
    assert said.add(text) is None
    assert said.add(text) == text


def test_a_prompt_takes_at_most_200_bytes() -> None:
    import tracemalloc

    texts = [f"{text} {number}" for number, text in enumerate(_sentences(10_000))]
    said = SaidBefore()
    for text in texts:
        said.add(text)  # what is remembered of words is not of prompts
    tracemalloc.start()
    said = SaidBefore()
    for text in texts:
        said.add(text)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(texts) < 200, used / len(texts)
