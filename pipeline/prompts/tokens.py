"""Normalised prompts in, their lengths in CLIP tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

CONTEXT = 77
"""Tokens that CLIP's text encoder takes, begin and end included; the rest of a prompt is cut."""

MEMORY = 1 << 20
"""Different words whose token counts are kept, about 0.2 GB of them."""


@cache
def _tokenizer() -> tuple[Any, dict[str, str]]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return tokenizer, dict(tokenizer.cache)


_lengths: dict[str, int] = {}


def _length(word: str) -> int:
    """Tokens of one word of the tokenizer's own pattern."""
    found = _lengths.get(word)
    if found is None:
        tokenizer, specials = _tokenizer()
        if len(_lengths) >= MEMORY:
            # Twelve million captions hold gigabytes of different words. The tokenizer
            # remembers them too.
            _lengths.clear()
            tokenizer.cache = dict(specials)
        spelled = "".join(tokenizer.byte_encoder[byte] for byte in word.encode())
        found = _lengths[word] = len(tokenizer.bpe(spelled).split(" "))
    return found


def count_tokens(texts: Sequence[str]) -> list[int]:
    """Count the tokens of each prompt as open_clip's own tokenizer makes them, none cut off.

    Returns:
        One count a text, begin and end tokens included: 2 for an empty text. A prompt whose
        count is above `CONTEXT` reaches the model truncated.
    """
    tokenizer, _ = _tokenizer()
    counts = []
    for text in texts:
        # The tokenizer's cleaning repairs encodings and entities; plain ASCII has neither.
        plain = text.isascii() and "&" not in text
        words = tokenizer.pat.findall((text if plain else tokenizer.clean_fn(text)).lower())
        counts.append(2 + sum(map(_length, words)))
    return counts
