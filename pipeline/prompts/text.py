"""Raw caption in; normalised prompt with its id and split out, or the reason for its refusal."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from functools import lru_cache
from html.entities import html5

from pydantic import Field, model_validator

from pipeline import AigiError
from pipeline.outside import opened
from pipeline.prompts.joiners import SEEN, bare, is_joiner, joined
from pipeline.settings import Count, Location, Settings, Share


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


class PromptFilters(Settings):
    """What a caption must be to become a prompt. Every refusal is a row of the rejects table."""

    min_words: Count = Field(3, description="fewest words of a prompt")
    max_words: Count = Field(77, description="most words of a prompt")
    max_tokens: Count | None = Field(
        None,
        description="CLIP tokens, start and end included; null: keep and mark `truncated` above 77",
    )
    min_ascii_letters: Share = Field(0.9, description="share of ASCII among the letters")
    max_noise: Share = Field(
        0.2,
        description="share of words that are URLs, hashtags, handles, signs or long numbers",
    )
    person: str | None = Field(
        "person", description="replacement for <PERSON>; null: reject such captions"
    )
    blocklist: Location | None = Field(None, description="text file, one word or phrase per line")


ROUNDS = 8
"""Entities within entities (`&amp;quot;`) are followed this deep; real captions go two deep."""

_ENTITY = re.compile(
    r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+);?"
    # Captions come from HTML attributes, where a name without its semicolon counts only if
    # nothing goes on: the address `?a=1&copy=2` and the words `black&notable` stay.
    r"|([A-Za-z][A-Za-z0-9]*(?:;|(?![A-Za-z0-9=]))))"
)
_PERSON = re.compile("<person>", re.IGNORECASE)
_WORD = re.compile(r"\w+")
# A sign set apart (CC3M: "a cat , a dog .") is neither a word nor noise.
_PUNCTUATION = "\"'`()[]{}<>.,:;!?*|~&/\\-–—…•·‘’“”«»"  # noqa: RUF001 (quotes and dashes are meant)
_JUNK = re.compile(
    r"[#@]\w|\w+://|www\.|[^\s@]+@[^\s@]+\.\w"
    r"|\S+\.(?:com|net|org|info|biz|co\.uk)(?:/\S*)?$"
    r"|\S+\.(?:jpe?g|png|gif|bmp|tiff?|webp|svg|psd|pdf|mp4)$"
    r"|_?(?:img|mg|dsc[a-z]?|pict|mvi)[_-]?\d{3,}\w*$",
    re.IGNORECASE,
)


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces: Thai, Lao, Myanmar, Khmer, Tai Le, Chinese, Japanese."""
# "5 red apples", "1,000 people", "50%", "$20", "3/4", "16:9", "-3.5°": what longer digits say is a
# telephone's, or a file's.
_NUMBER = re.compile(
    r"[#+\-±~$€£¥№]?(?:\d{1,6}|\d{1,3}(?:[,.' ]\d{3})+)(?:[.,:/x×–-]\d{1,4}){0,2}[%°+$€£¥]?"  # noqa: RUF001
)


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


def prompt_id(text: str) -> str:
    """Return the id of a prompt: 32 hex digits of SHA-256 over the normalised text in UTF-8."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:32]


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


def _is_noise(word: str) -> bool:
    core = word.strip(_PUNCTUATION)
    if any(map(str.isalpha, core)):
        return _JUNK.match(core) is not None
    return _NUMBER.fullmatch(core) is None


def _words(part: str) -> int:
    """How many words a run without spaces has, where its language writes none between them."""
    from icu4py.breakers import WordBreaker

    found = 0
    for start, end in WordBreaker(part, "root").segments():
        found += any(map(str.isalnum, part[start:end]))
    return found


def _read_blocklist(path: str) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return `(entry, pattern)` by the first word of the entry ('' for one of signs alone)."""
    try:
        with opened(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        remedy = "correct `prompts.filters.blocklist` or leave it out"
        raise AigiError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise AigiError(f"{path}: {error}; save the blocklist as UTF-8") from None
    entries: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for line in lines:
        entry = bare(normalise(re.split(r"(?:^|\s)#", line)[0]).casefold())
        if entry:
            first = _WORD.search(entry)
            pattern = re.compile(rf"(?<!\w){re.escape(entry)}(?!\w)")
            entries.setdefault(first[0] if first else "", []).append((entry, pattern))
    return entries


class Filter:
    """Decides whether a caption becomes a prompt. Holds the settings and the blocklist."""

    def __init__(self, filters: PromptFilters) -> None:
        """Read the blocklist, if there is one.

        Raises:
            AigiError: the blocklist is missing or not UTF-8.
        """
        self._filters = filters
        self._blocklist = _read_blocklist(filters.blocklist) if filters.blocklist else {}

    def clean(self, text: str) -> tuple[str | None, str | None]:
        """Return `(prompt, None)`, or `(None, reason)` for a caption that is refused.

        The prompt is normalised and its `<PERSON>` marks are replaced. A word is a run without
        spaces that is not punctuation alone. The reason begins with one of: `empty`, `person`,
        `too few words`, `too many words`, `not English letters`, `noise`, `blocklist`.
        """
        text = normalise(text)
        if "<" in text and _PERSON.search(text):
            if self._filters.person is None:
                return None, "person"
            text = normalise(_PERSON.sub(self._person, text))
        if not text:
            return None, "empty"
        reason = self._refused(text)
        return (text, None) if reason is None else (None, reason)

    def _person(self, mark: re.Match[str]) -> str:
        before = mark.string[: mark.start()][-1:]
        after = mark.string[mark.end() :][:1]
        left = " " if before.isalnum() or before == ">" else ""
        right = " " if after.isalnum() or after == "<" else ""
        return f"{left}{self._filters.person}{right}"

    def _refused(self, text: str) -> str | None:
        limits = self._filters
        parts = text.split(" ")
        # Nearly every word is letters alone; only the others need a closer look.
        odd = [word for word in parts if not word.isalpha()]
        real = [word for word in odd if word.strip(_PUNCTUATION)]
        count = len(parts) - len(odd) + len(real)
        if not text.isascii() and _UNSPACED.search(text):
            count += sum(max(0, _words(part) - 1) for part in parts if _UNSPACED.search(part))
        if count < limits.min_words:
            return f"too few words: {count} < {limits.min_words}"
        if count > limits.max_words:
            return f"too many words: {count} > {limits.max_words}"
        if len(odd) == len(parts) and not any(map(str.isalpha, text)):
            return "not English letters: none"
        if not text.isascii():
            letters = [char for char in text if char.isalpha()]
            english = sum(map(str.isascii, letters))
            if english / len(letters) < limits.min_ascii_letters:
                share = 100 * english // len(letters) / 100  # rounded down, so never "0.9 < 0.9"
                return f"not English letters: {share} < {limits.min_ascii_letters}"
        noise = sum(map(_is_noise, real))
        if noise / count > limits.max_noise:
            share = -(-100 * noise // count) / 100  # rounded up, so never "0.2 > 0.2"
            return f"noise: {share} > {limits.max_noise}"
        entry = self._blocked(text) if self._blocklist else None
        return None if entry is None else f"blocklist: {entry}"

    def _blocked(self, text: str) -> str | None:
        # Words in a set, then the few patterns that can fit: one alternation of all entries is
        # ten times slower at a thousand entries.
        text = bare(text.casefold())  # a joiner hides no word
        words = _WORD.findall(text)
        if self._blocklist.keys().isdisjoint(words) and "" not in self._blocklist:
            return None
        for word in (*words, ""):
            for entry, pattern in self._blocklist.get(word, ()):
                if pattern.search(text):
                    return entry
        return None
