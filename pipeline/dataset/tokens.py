"""Normalised prompts in, their lengths in CLIP tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

CONTEXT = 77
"""Tokens that CLIP's text encoder takes, begin and end included; the rest of a prompt is cut."""

MEMORY = 1 << 20
"""Different words whose tokens are kept, about 0.2 GB of them."""


@cache
def _tokenizer() -> tuple[Any, dict[str, str]]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return tokenizer, dict(tokenizer.cache)


def count_tokens(texts: Sequence[str]) -> list[int]:
    """Count the tokens of each prompt as open_clip's own tokenizer makes them, none cut off.

    Returns:
        One count a text, begin and end tokens included: 2 for an empty text. A prompt whose
        count is above `CONTEXT` reaches the model truncated.
    """
    tokenizer, specials = _tokenizer()
    counts = []
    for text in texts:
        if len(tokenizer.cache) > MEMORY:
            # It remembers every word it ever saw: gigabytes over twelve million captions.
            tokenizer.cache = dict(specials)
        counts.append(len(tokenizer.encode(text)) + 2)
    return counts
