"""A prompt in; which kinds of personal data are in it, out: addresses, telephones, numbers.

Patterns as those of Microsoft's Presidio; numbers that have a checksum count only if it is right.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pipeline.prompts.parts import Split, Table, Vocabulary, all_of

Kind = Literal["email", "url", "ip", "phone", "ssn", "card", "iban"]
KINDS: tuple[Kind, ...] = ("email", "url", "ip", "phone", "ssn", "card", "iban")

_MAYBE = re.compile(
    r"@|://|www\.|\d{3}|\.[a-z]{2}|:[0-9a-f]*:|[(\[]\s?at\s?[)\]]|\d[ .)-]+\d", re.IGNORECASE
)
"""Nothing personal is in a text without this."""
_SIGNS = re.compile(r"[\d@:]|\.\w|[(\[]\s?at", re.IGNORECASE)  # nor without this, which is faster

_TLDS = (
    "com|net|org|info|biz|edu|gov|mil|io|co|me|tv|app|dev|ai|xyz|online|site|shop|store|blog|club|"
    "de|uk|fr|it|es|nl|be|ch|at|pl|se|no|dk|fi|ie|pt|gr|cz|hu|ro|ru|ua|tr|jp|cn|kr|in|id|au|nz|ca|us|"
    "br|mx|ar|cl|za|eu|museum|travel|news|media|photo|photography|gallery|art"
)
_AT = r"(?:@|\s?[(\[]\s?at\s?[)\]]\s?)"
_DOT = r"(?:\.|\s?[(\[]\s?dot\s?[)\]]\s?)"
_EMAIL = re.compile(
    rf"[\w.!#$%&'*+/=?^`{{|}}~-]{{0,63}}\w{_AT}(?:[\w-]{{1,63}}{_DOT}){{1,8}}[a-z]{{2,63}}",
    re.IGNORECASE,
)
_URL = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,15}://\S+|\bwww\d?\.[^\s.]{1,63}\.\S+"
    rf"|(?<![\w@.])(?:[a-z0-9][a-z0-9-]{{0,62}}\.){{1,8}}(?:{_TLDS})(?![\w-])(?:[:/?#]\S*)?",
    re.IGNORECASE,
)
# A sentence that lacks the blank after its full stop: "in the car.in the back".
_TWO_WORDS = re.compile(r"[a-z]+\.(?:in|is|it|at|no|me|to|be|us|so|art|news|photo)", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_PHONE = re.compile(
    r"(?<![\w.,/+-])"
    r"(?:\+\d{1,3}[ .-]?(?:\(0\)[ .-]?)?(?:\(?\d{1,5}\)?[ .-]?){1,5}\d{2,}"  # +49 30 901820
    r"|\(\d{2,5}\)[ .-]?\d{3,4}[ .-]?\d{3,4}"  # (415) 555-2671
    r"|\d{3}([ .-])\d{3}\1\d{4}"  # 415-555-2671
    r"|1[ .-]\d{3}[ .-]\d{3}[ .-]\d{4}"
    r"|0\d{1,5}[ ./-]\d{3,8}(?:[ -]\d{2,6}){0,3}"  # 020 7946 0958
    r"|0\d(?:[ .-]\d{2}){4}"  # 01 23 45 67 89
    r"|\d{3}[-]\d{4}(?![\w-])"  # 555-2671
    r"|\d{10,11})"
    r"(?![\w-]|\.\d)"
)
_DATE = re.compile(r"(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{4}-\d{4})")


def _luhn(digits: str) -> bool:
    """Luhn's checksum of a card (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0 and len(set(digits)) > 1


def _iban(text: str) -> bool:
    """The checksum of an account (ISO 13616, modulo 97)."""
    plain = text.replace(" ", "")
    turned = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(one, 36)) for one in turned)) % 97 == 1


def _is_ip(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    # "1.0.0.0" is rather a version, and "::" a pair of signs.
    return not (found.is_unspecified or int(found) & 0xFFFFFF == 0)


def _is_phone(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return 7 <= digits <= 15 and _DATE.fullmatch(text) is None


def _is_url(text: str) -> bool:
    return "://" in text or text.lower().startswith("www") or _TWO_WORDS.fullmatch(text) is None


def personal(text: str) -> list[Kind]:
    """Kinds of personal data in a normalised prompt, in the order of `KINDS`; mostly none.

    A number is of one kind: that of a card is no telephone.
    """
    if _SIGNS.search(text) is None or _MAYBE.search(text) is None:
        return []
    found: list[Kind] = []
    if _EMAIL.search(text):
        found.append("email")
        text = _EMAIL.sub(" ", text)
    if any(_is_url(one[0]) for one in _URL.finditer(text)):
        found.append("url")
        text = _URL.sub(" ", text)
    if any(_is_ip(one[0]) for pattern in (_IPV4, _IPV6) for one in pattern.finditer(text)):
        found.append("ip")
        text = _IPV6.sub(" ", _IPV4.sub(" ", text))
    numbers: list[Kind] = []
    if any(_luhn(re.sub(r"\D", "", one[0])) for one in _CARD.finditer(text)):
        numbers.append("card")
        text = _CARD.sub(" ", text)
    if any(_iban(one[0]) for one in _IBAN.finditer(text)):
        numbers.append("iban")
        text = _IBAN.sub(" ", text)
    if _SSN.search(text):
        numbers.append("ssn")
        text = _SSN.sub(" ", text)
    if any(_is_phone(one[0]) for one in _PHONE.finditer(text)):
        numbers.append("phone")
    return [kind for kind in KINDS if kind in found or kind in numbers]


class Personal:
    """Finds the kinds of personal data in normalised prompts; see `personal`.

    Args:
        vocabulary: of their parts.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._table = Table(vocabulary, _worth, 1)

    def __call__(self, split: Split) -> list[list[Kind]]:
        """The kinds in each of some prompts."""
        (worth,) = self._table.of(split)
        return all_of(personal, split, split.ored(worth) > 0, [])


def _worth(part: str) -> tuple[int]:
    """Whether a part has a sign of personal data; "( at" is one in two parts."""
    return (int(_SIGNS.search(part) is not None or part.endswith(("(", "["))),)
