"""Normalised prompts in, their lengths in CLIP tokens out; neither open_clip nor torch is loaded.

The vocabulary is the file that comes with the open_clip package. Words are cut by the same pattern
and the same `regex` library as there: the pattern engine of `tokenizers` knows another version of
Unicode, in which thousands of characters are no letters yet.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

CONTEXT = 77
"""Tokens that CLIP's text encoder takes, begin and end included; the rest of a prompt is cut."""

MEMORY = 1 << 20
"""Different words whose token counts are kept, about 0.2 GB of them."""

ENTRIES = 49_408
"""Of CLIP's vocabulary."""

MARKS = ("<start_of_text>", "<end_of_text>")
"""One token each, also where they are written in a text."""


@cache
def _pattern() -> Any:
    import regex

    return regex.compile(
        "|".join(MARKS) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )


@cache
def _model() -> tuple[Any, Any]:
    """What spells the bytes of a word, and what merges the spelling into tokens."""
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    package = importlib.util.find_spec("open_clip")  # its place; nothing of it runs
    assert package is not None and package.origin is not None
    file = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    letters = ByteLevel.alphabet()
    ends = [f"{letter}</w>" for letter in letters]
    # The first line is a heading, and there are more merges than CLIP's vocabulary takes.
    taken = ENTRIES - len(MARKS) - len(letters) - len(ends)
    merges = [(left, right) for left, right in map(str.split, lines[1 : 1 + taken])]
    entries = [*letters, *ends, *(left + right for left, right in merges)]
    numbers = {entry: number for number, entry in enumerate(entries)}
    # The counts themselves are remembered.
    merging = BPE(numbers, merges, end_of_word_suffix="</w>", cache_capacity=0)
    return ByteLevel(add_prefix_space=False, use_regex=False), merging


@lru_cache(MEMORY)
def _length(word: str) -> int:
    """Tokens of one word of the pattern."""
    if word in MARKS:
        return 1
    spelling, merging = _model()
    ((spelled, _),) = spelling.pre_tokenize_str(word)
    return len(merging.tokenize(spelled))


def _clean(text: str) -> str:
    """A text with its encodings, entities and white space repaired, as open_clip does it."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def count_tokens(texts: Sequence[str]) -> list[int]:
    """Count the tokens of each prompt as open_clip's own tokenizer makes them, none cut off.

    Returns:
        One count a text, begin and end tokens included: 2 for an empty text. A prompt whose
        count is above `CONTEXT` reaches the model truncated.
    """
    words = _pattern().findall
    counts = []
    for text in texts:
        # Printable ASCII has nothing to repair but entities.
        plain = text.isascii() and text.isprintable() and "&" not in text
        cleaned = text if plain else _clean(text)
        counts.append(2 + sum(map(_length, words(cleaned.lower()))))
    return counts
