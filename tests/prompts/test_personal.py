"""Personal data in captions are found, and other numbers are not taken for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.filters import PromptFilters
from pipeline.prompts.grammar import Grammar
from pipeline.prompts.personal import KINDS, Kind, personal
from pipeline.prompts.scored import Filter
from tests.conftest import ROOT

Draw = random.Random


def _digits(draw: Draw, count: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(count))


def _name(draw: Draw) -> str:
    return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(3, 9)))


def _email(draw: Draw) -> str:
    user = draw.choice(
        [_name(draw), f"{_name(draw)}.{_name(draw)}", f"{_name(draw)}+{_name(draw)}"]
    )
    host = f"{_name(draw)}.{draw.choice(['com', 'org', 'co.uk', 'de', 'museum'])}"
    return draw.choice(
        [f"{user}@{host}", f"{user}@mail.{host}", f"{user} (at) {host}", f"{user}[at]{host}"]
    )


def _url(draw: Draw) -> str:
    host = f"{_name(draw)}.{draw.choice(['com', 'org', 'net', 'de', 'fr', 'io', 'co.uk'])}"
    path = draw.choice(["", "/", f"/{_name(draw)}", f"/{_name(draw)}?id={_digits(draw, 3)}"])
    return draw.choice(
        [f"http://{host}{path}", f"https://{host}{path}", f"www.{host}{path}", f"{host}{path}"]
    )


def _ip(draw: Draw) -> str:
    if draw.random() < 0.3:
        return ":".join(f"{draw.randint(0x1000, 0xFFFF):x}" for _ in range(8))
    return ".".join(str(draw.randint(1, 254)) for _ in range(4))


def _phone(draw: Draw) -> str:
    area, first, last = str(draw.randint(200, 989)), str(draw.randint(200, 999)), _digits(draw, 4)
    return draw.choice(
        [
            f"({area}) {first}-{last}", f"{area}-{first}-{last}", f"{area}.{first}.{last}",
            f"+1 {area} {first} {last}", f"+1-{area}-{first}-{last}", f"1-{area}-{first}-{last}",
            f"+49 {draw.randint(30, 999)} {_digits(draw, 6)}",
            f"+44 20 {_digits(draw, 4)} {_digits(draw, 4)}",
            f"020 {_digits(draw, 4)} {_digits(draw, 4)}", f"0{draw.randint(1, 9)} 12 34 56 78",
            f"+86 1{_digits(draw, 10)}", f"{area}{first}{last}",
        ]
    )  # fmt: skip


def _ssn(draw: Draw) -> str:
    sign = draw.choice("- ")
    area = draw.choice([draw.randint(1, 665), draw.randint(667, 899)])
    return f"{area:03d}{sign}{draw.randint(1, 99):02d}{sign}{draw.randint(1, 9999):04d}"


def _card(draw: Draw) -> str:
    digits = draw.choice(["4", "51", "37", "6011"]) + _digits(draw, 11)
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 == 0 else digit
        total += doubled - 9 if doubled > 9 else doubled
    digits += str(-total % 10)
    if len(digits) == 16 and draw.random() < 0.7:
        return draw.choice(" -").join(digits[n : n + 4] for n in range(0, 16, 4))
    return digits


def _iban(draw: Draw) -> str:
    account = _digits(draw, 18)
    check = 98 - int(account + "131400") % 97  # DE00 behind it
    return f"DE{check:02d}{account}"


CASES: dict[Kind, Callable[[Draw], str]] = {
    "email": _email, "url": _url, "ip": _ip, "phone": _phone, "ssn": _ssn, "card": _card,
    "iban": _iban,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_99_of_100_are_found(kind: Kind) -> None:
    draw, missed = Draw(kind), []
    for _ in range(1_000):
        case = CASES[kind](draw)
        text = draw.choice(
            ["call {} for a red boat", "a photo of a boat, {}", "{} and a boat.", "({})"]
        )
        if kind not in personal(text.format(case)):
            missed.append(case)
    assert len(missed) <= 10, missed


@pytest.mark.parametrize(
    "text",
    [
        "5 red apples and 3 pears", "1,000,000 stars", "a lake in 1987", "from 1914-1918",
        "12.03.2016", "2016-03-12 at 10:30:45", "24-70mm f/2.8 lens", "1920x1080",
        "a ratio of 16:9", "version 2.0.1", "3.14159", "St.Louis at night", "node.js style",
        "a dog.the cat", "in the car.in the back", "a cat @ home", "100 000 people",
        "the 4x4x4 cube 12345", "$20.00 a day", "room 101, floor 12",
        "4111 1111 1111 1112 is no card", "123-45", "no. 007", "U.S. Route 66", "a.m. or p.m.",
        "::",
    ],
)  # fmt: skip
def test_other_numbers_and_signs_are_none(text: str) -> None:
    assert personal(text) == []


def test_a_filter_names_the_kinds() -> None:
    text = "write to me@example.com or call 415-555-2671 now"
    assert Filter(PromptFilters(), safety=()).clean(text)[1] == "personal: email, phone"
    assert Filter(PromptFilters(personal=("phone",)), safety=()).clean(text)[1] == "personal: phone"
    assert Filter(PromptFilters(personal=("card",)), safety=()).clean(text) == (text, None)


def test_captions_have_nearly_none(shared: Path) -> None:
    import csv

    with (shared / "prompts" / "coco_30k.csv").open(newline="") as file:
        found = [personal(row["prompt"]) for row in csv.DictReader(file)]
    assert sum(map(bool, found)) <= 0.001 * len(found)


def test_sentences_of_the_grammar_have_none() -> None:
    sentences = Grammar.load(str(ROOT / "prompts" / "grammar.yaml")).sentences(5_000, seed=3)
    assert not [text for text in sentences if personal(text)]


@settings(max_examples=300, deadline=None)
@given(st.text("ab1.@:/-+() w", max_size=60))
def test_any_text_can_be_looked_at(text: str) -> None:
    assert set(personal(text)) <= set(KINDS)
