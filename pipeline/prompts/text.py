"""Raw caption in; normalised prompt, its id and its split out."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from functools import lru_cache
from html.entities import html5

from pydantic import Field, model_validator

from pipeline.prompts.joiners import SEEN, is_joiner, joined
from pipeline.settings import Settings, Share


class SplitShares(Settings):
    """Shares of all prompts that go to each held-out split; the rest is train.

    They are reserves, not quotas: the plan takes exactly the published counts from each.
    """

    validation: Share = Field(0.005, description="share of the prompts")
    test: Share = Field(0.01, description="share of the prompts")

    @model_validator(mode="after")
    def _leave_train(self) -> SplitShares:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave a share for train (sum below 1)")
        return self


ROUNDS = 8
"""Entities within entities (`&amp;quot;`) are followed this deep; real captions go two deep."""

_ENTITY = re.compile(
    r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+);?"
    # Captions come from HTML attributes, where a name without its semicolon counts only if
    # nothing goes on: the address `?a=1&copy=2` and the words `black&notable` stay.
    r"|([A-Za-z][A-Za-z0-9]*(?:;|(?![A-Za-z0-9=]))))"
)
_PERSON = re.compile("<person>", re.IGNORECASE)


def normalise(text: str) -> str:
    """Return the one form of a caption that is stored, hashed and given to the models.

    HTML entities become characters (to any depth up to `ROUNDS`; where a caption nests deeper,
    each `&` left becomes a space), Unicode is NFC, invisible characters are gone but for joiners
    that show (`joiners.joined`), any run of white space is one space, with none at the ends. The
    result is valid Unicode, and normalising it again changes nothing.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split())
    for _ in range(ROUNDS):
        before = text
        # In one loop: what a zero-width character or NFC hid can be an entity after all.
        text = _visible(_ENTITY.sub(_character, text))
        if text == before:
            return text
    return _visible(text.replace("&", " "))


def _character(entity: re.Match[str]) -> str:
    if entity[1]:
        return html5.get(entity[1], entity[0])
    # HTML's answer to a number above Unicode; int() would refuse one of 5,000 digits.
    return html.unescape(entity[0]) if len(entity[0]) < 16 else "\ufffd"


def _visible(text: str) -> str:
    kept = joined("".join(map(_kept, text)))
    return " ".join(unicodedata.normalize("NFC", kept).split())


@lru_cache(maxsize=1 << 16)
def _kept(char: str) -> str:
    # Dropped: control, format, lone surrogates, private use, and the zero-width mark U+034F.
    # Unassigned code points stay: which ones they are depends on the Unicode version of Python,
    # and an id must not.
    if is_joiner(char) or char in SEEN:
        return char
    if char.isspace():
        return " "
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co"):
        return ""
    return "" if char == "\u034f" else char


def names_person(text: str) -> bool:
    """Whether a normalised caption has the mark `<PERSON>`, which stands for a name."""
    return "<" in text and _PERSON.search(text) is not None


def with_person(text: str, person: str) -> str:
    """A normalised caption with other words for its marks `<PERSON>`."""

    def replaced(mark: re.Match[str]) -> str:
        before = mark.string[: mark.start()][-1:]
        after = mark.string[mark.end() :][:1]
        left = " " if before.isalnum() or before == ">" else ""
        right = " " if after.isalnum() or after == "<" else ""
        return f"{left}{person}{right}"

    return normalise(_PERSON.sub(replaced, text))


def prompt_id(text: str) -> str:
    """Return the id of a prompt: 32 hex digits of SHA-256 over the normalised text in UTF-8."""
    return id_of(normalise(text))


def id_of(text: str) -> str:
    """The same of a text that is normalised."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def split_of(prompt_id: str, shares: SplitShares) -> str:
    """Return 'test', 'validation' or 'train', a function of the prompt and the shares alone.

    A hash of the id is a number u in [0, 1); test is u below the test share, validation the
    next stretch, train the rest. So raising a share moves prompts only from train towards test
    (train to validation, validation to test), never back.
    """
    digest = hashlib.sha256(f"split:{prompt_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    # Python compares int and float exactly; dividing by 2**64 would round, to 1.0 at the end.
    if number < shares.test * 2**64:
        return "test"
    return "validation" if number < (shares.test + shares.validation) * 2**64 else "train"
