"""Token counts are those of open_clip's own `tokenize`, which is not loaded for them."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.text import normalise
from pipeline.prompts.tokens import CONTEXT, count_tokens
from tests.conftest import ROOT

DATA = Path(__file__).parents[3] / "shared" / "data" / "prompts"


def lengths(texts: list[str], context: int) -> list[int]:
    """Length up to the last end token: '!' has the number 0 too, so zeros cannot be counted."""
    import open_clip

    end = 49407
    return [int((row == end).nonzero()[-1]) + 1 for row in open_clip.tokenize(texts, context)]


def test_a_few_by_hand() -> None:
    assert count_tokens([]) == []
    assert count_tokens(["", "cat", "a cat!!!", "a photo of a cat"]) == [2, 3, 5, 7]


def test_longer_than_the_context_is_counted_in_full() -> None:
    long = "cat " * 200
    assert count_tokens([long]) == [202] == lengths([long], 300)
    assert lengths([long], CONTEXT) == [CONTEXT]


PIECES = (
    *("&amp;", "&amp;lt;", "&#x27;", "&eacute;", "&#28;", "&nbsp;", "&", "<", ";"),
    *(
        "'s",
        "'LL",
        "\u2019s",
        "'\u017f",
        "<start_of_text>",
        "<END_OF_TEXT>",
        "<\u017ftart_of_text>",
    ),
    *(
        "Ã©",
        "â€™",
        "ﬁ",
        "\uff46\uff55\uff4c\uff4c",
        "İ",
        "ß",
        "e\u0301",
        "\u0345",
        "1²",
        "…",
        "!!!",
    ),
    *("👩\u200d👩\u200d👧", "\x1b[31m", "\x00", "\x1c", "\x85", "\r\n", "\t", "\u2028", " ", "   "),
    *("cat", "Cats", "WATERCOLOUR", "12345", "http://a.b/c?d=e"),
)
"""What cleaning repairs, what the pattern takes apart, and plain words."""

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(max_size=8),
        st.characters(codec="ascii"),
        st.text(st.characters(categories=["L", "N", "So", "Cc", "Cf", "Cn"]), max_size=5),
        st.text(st.sampled_from("ab'"), min_size=20, max_size=60),
    ),
    max_size=40,
).map("".join)


@given(TEXTS)
@settings(max_examples=500, deadline=None)
def test_counts_are_those_of_open_clip(text: str) -> None:
    assert count_tokens([text]) == lengths([text], 4000)


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_between_letters_and_alone(piece: str) -> None:
    texts = [piece, f"a1{piece}!b", f"{piece} {piece}"]
    assert count_tokens(texts) == lengths(texts, CONTEXT)


def test_characters_of_every_block_are_cut_as_there() -> None:
    """Letters that only a new version of Unicode knows included."""
    texts = [f"a1{chr(number)}!b" for number in range(0x21, 0x20000, 17)]
    assert count_tokens(texts) == lengths(texts, CONTEXT)


def test_the_vocabulary_ends_where_that_of_clip_does() -> None:
    """The file has more merges than the model has tokens."""
    from open_clip.tokenizer import default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    words = ["".join(line.split()).removesuffix("</w>") for line in lines[48_800:49_000]]
    assert count_tokens(words) == lengths(words, CONTEXT)


def test_counting_loads_neither_open_clip_nor_torch() -> None:
    code = """
import sys
from pipeline.prompts.tokens import count_tokens
assert count_tokens(["a cat", "a caf\u00e9 &amp; a cat"]) == [4, 7]
print(*sorted({"open_clip", "torch", "transformers"} & {*sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


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
