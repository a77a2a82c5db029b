"""Normalised prompts in, their lengths in tokens out: of CLIP, and of the models of a dataset.

For CLIP neither open_clip nor torch is loaded.
The vocabulary is the file that comes with the open_clip package. Words are cut by the same pattern
and the same `regex` library as there: the pattern engine of `tokenizers` knows another version of
Unicode, in which thousands of characters are no letters yet.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.models.hub import loading


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a model that reads most of a prompt.

    Attributes:
        tokenizer: of transformers.
        most: tokens of a prompt that reach the model.
        templated: whether a prompt is a message to a chat model, whose template counts, too.
    """

    tokenizer: Any
    most: int
    templated: bool = False

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each prompt, none cut off; with those that the tokenizer adds."""
        told = [self._said(text) for text in texts]
        ids = self.tokenizer(told, truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(found) for found in ids]

    def _said(self, text: str) -> str:
        if not self.templated:
            return text
        message = [{"role": "user", "content": text}]
        return str(
            self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        )


def reader_of(
    where: str, folder: str, index: Mapping[str, Any], most: int | None, templated: bool
) -> Reader:
    """The reader of a pipeline of diffusers.

    Args:
        where: names its setting, for errors.
        folder: of the pipeline; its tokenizers are read.
        index: content of its `model_index.json`.
        most: tokens that the pipeline takes of tokenizers other than CLIP's; None: those that the
            tokenizers themselves take.

    Raises:
        AigiError: it has no tokenizer, or one that cannot be loaded.
    """
    import transformers

    found = []
    for name, stated in index.items():
        if not name.startswith(("tokenizer", "processor")) or not isinstance(stated, list):
            continue
        if len(stated) != 2 or stated[0] != "transformers":
            continue
        kind: Any = getattr(transformers, str(stated[1]), None)
        if kind is None:
            raise AigiError(
                f"{where}: {folder}: {name}: transformers {transformers.__version__} has no "
                f"{stated[1]}. Install the release that has it."
            )
        with loading(where, os.path.join(folder, name)):
            made = kind.from_pretrained(os.path.join(folder, name), local_files_only=True)
        made = getattr(made, "tokenizer", made)  # that of a processor
        own = int(made.model_max_length)
        taken = own if most is None or "CLIP" in type(made).__name__ else most
        found.append(Reader(made, min(taken, _MOST), templated))
    if not found:
        raise AigiError(f"{where}: {folder}: has no tokenizer. Copy or download the model anew.")
    return max(found, key=lambda reader: reader.most)


_MOST = 1 << 20
"""Tokenizers without a limit state 1e30."""
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

    entries, merges = _entries()
    numbers = {entry: number for number, entry in enumerate(entries)}
    # The counts themselves are remembered.
    merging = BPE(numbers, merges, end_of_word_suffix="</w>", cache_capacity=0)
    return ByteLevel(add_prefix_space=False, use_regex=False), merging


def _entries() -> tuple[list[str], list[tuple[str, str]]]:
    """The vocabulary but for its marks, and the pairs that merge into one entry."""
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
    return [*letters, *ends, *(left + right for left, right in merges)], merges


@lru_cache(MEMORY)
def _length(word: str) -> int:
    """Tokens of one word of the pattern."""
    if word in MARKS:
        return 1
    spelling, merging = _model()
    ((spelled, _),) = spelling.pre_tokenize_str(word)
    return len(merging.tokenize(spelled))


@cache
def words() -> Mapping[str, int]:
    """The whole words of CLIP's vocabulary, 32,901 of small ASCII letters; rarer ones come later.

    Returns:
        The place of each in the vocabulary.
    """
    entries = enumerate(_entries()[0])
    found = {entry.removesuffix("</w>"): n for n, entry in entries if entry.endswith("</w>")}
    return {word: n for word, n in found.items() if word.isascii() and word.isalpha()}


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
