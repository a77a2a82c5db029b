"""JSON from elsewhere: what is refused, in one line that names file and field."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pydantic import Field

from pipeline import AigiError, gate
from pipeline.gate import Checked, Number, Sha256


class Part(Checked):
    name: str
    size: Number = 0


class Whole(Checked):
    parts: list[Part] = Field(max_length=3)
    digest: Sha256 | None = None
    counts: dict[str, int] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" * 100_000, "a.json: objects or lists in one another, too deep"),
        (b'{"a": ' * 60 + b"1" + b"}" * 60, "a.json: a.a.a.*: more than 40 objects or lists"),
        (b'{"a": "\xff"}', "a.json: not JSON: invalid UTF-8 at byte 7"),
        (b'{"a": 1', "a.json: not JSON: Expecting ',' delimiter"),
        (b"", "a.json: not JSON: "),
        (b"[1]", "a.json: expected an object, found a list"),
        (b"null", r"a.json: expected an object, found nothing \(null\)"),
        (b'{"a": NaN}', "a.json: not JSON: NaN is no number"),
        (b'{"a": [1, -Infinity]}', "-Infinity is no number"),
        (b'{"a": [0, 1e999]}', r"a.json: a\.1: a number that is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of too many digits"),
        (b'{"a": {"b": "\\ud800"}}', r"a.json: a\.b: a half of a character"),
        (b'{"\\udc00": 1}', "a half of a character in a key"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "a.json: c: this key is given twice"),
        ("\ufeff{}".encode(), "a.json: not JSON: "),
    ],
)
def test_what_is_no_object_is_refused_in_one_line(data: bytes, said: str) -> None:
    with pytest.raises(AigiError, match=said) as caught:
        gate.parse(data, "a.json", "Get it again.")
    assert str(caught.value).endswith(". Get it again.")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "parts: needed, but not given"),
        ({"parts": {}}, "parts: expected a list, found a mapping"),
        ({"parts": [{"name": "a"}, 3]}, r"parts\.1: expected an object, found 3"),
        ({"parts": [{"name": 3}]}, r"parts\.0\.name: expected text, found 3"),
        ({"parts": [{"name": "a", "size": "3"}]}, r"0\.size: expected a whole number, found"),
        ({"parts": [{"name": "a", "size": True}]}, r"0\.size: expected a whole number"),
        ({"parts": [{"name": "a", "size": 2.0}]}, r"0\.size: expected a whole number"),
        ({"parts": [{"name": "a", "size": -1}]}, r"0\.size: expected 0 or more, found -1"),
        ({"parts": [{"name": "a", "size": 10**400}]}, "expected 9223372036854775807 or less"),
        ({"parts": [{"name": "a"}] * 4}, "parts: expected 3 or fewer entries, found 4"),
        ({"parts": [], "digest": "A" * 64}, "digest: expected a sha256"),
        ({"parts": [], "part": 1}, 'part: no such entry; did you mean "parts"?'),
        ({"parts": [], "counts": {"a": None}}, r"counts\.a: expected a whole number"),
        ({"parts": [], "counts": {"a\nb": ""}}, r"counts\.a\\x0ab: expected a whole number"),
        ({"parts": [{}, {}, {}]}, r"needed, but not given \(2 more like this\)\. Get it again\."),
    ],
)
def test_what_is_of_another_type_is_refused_by_its_field(data: Any, said: str) -> None:
    with pytest.raises(AigiError, match=said) as caught:
        gate.check(Whole, data, "a.json", "Get it again.")
    assert str(caught.value).startswith("a.json: ") and str(caught.value).isprintable()
    assert not any(word in str(caught.value) for word in ("Input", "should", "pydantic"))


def test_a_message_is_short_whatever_the_file_contains() -> None:
    for data in ({"x" * 10**6: 1}, {"parts": "x" * 10**6}, {"parts": [{"y" * 10**5: "z"}]}):
        with pytest.raises(AigiError) as caught:
            gate.check(Whole, data, "a.json", "Get it again.", "within")
        assert len(str(caught.value)) < 600


def test_what_is_sound_comes_out_as_it_is() -> None:
    draw = random.Random(0)
    for _ in range(50):
        value = {
            "a": [draw.random(), draw.randrange(10**9), None, True],
            "b": {"ü": "é\u202e\U0001f600", "": []},
        }
        assert gate.parse(json.dumps(value), "a.json", "") == value
        assert gate.parse(json.dumps(value, ensure_ascii=False), "a.json", "") == value
