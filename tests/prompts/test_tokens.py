"""Token counts against open_clip's own `tokenize`, on real captions and on long ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.prompts import tokens
from pipeline.prompts.text import normalise
from pipeline.prompts.tokens import CONTEXT, count_tokens

DATA = Path(__file__).parents[3] / "shared" / "data" / "prompts"


def lengths(texts: list[str], context: int) -> list[int]:
    """Length up to the end token: '!' has the number 0 too, so zeros cannot be counted."""
    import open_clip

    end = 49407
    return [int((row == end).nonzero()[0]) + 1 for row in open_clip.tokenize(texts, context)]


def test_a_few_by_hand() -> None:
    assert count_tokens([]) == []
    assert count_tokens(["", "cat", "a cat!!!", "a photo of a cat"]) == [2, 3, 5, 7]


def test_longer_than_the_context_is_counted_in_full() -> None:
    long = "cat " * 200
    assert count_tokens([long]) == [202] == lengths([long], 300)
    assert lengths([long], CONTEXT) == [CONTEXT]


def test_forgetting_words_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"unusual {first}{last}qx <start_of_text>" for first in "bcdf" for last in "ghjklm"]
    whole = count_tokens(texts)
    monkeypatch.setattr(tokens, "MEMORY", 5)
    monkeypatch.setattr(tokens, "_lengths", {})
    assert count_tokens(texts) == whole
    assert len(tokens._lengths) <= 5
    assert len(tokens._tokenizer()[0].cache) < 10


def test_real_captions() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no folder {DATA} with real caption files")
    with open(DATA / "coco_30k.csv", encoding="utf-8", newline="") as file:
        texts = [normalise(row["prompt"]) for row in csv.DictReader(file)][:1000]
    lines = (DATA / "cc3m_val_cc12m_layout.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    texts += [normalise(line.split("\t")[1]) for line in lines if not line.isascii()]
    texts += [normalise(line.split("\t")[1]) for line in lines[:1000]]
    assert len(texts) > 2000
    assert count_tokens(texts) == lengths(texts, CONTEXT)
