"""The grammar notation and its errors; the sentences of prompts/grammar.yaml as English."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.prompts.grammar import PATIENCE, Grammar

ROOT = Path(__file__).parents[2]
GRAMMAR = ROOT / "prompts" / "grammar.yaml"
BLOCKLIST = ROOT / "prompts" / "blocklist.txt"


def listed(text: str) -> list[str]:
    return text.split()


COLORS = set(listed("red orange yellow green blue purple pink white black brown grey"))
SIZES = set(listed("small large big tiny little tall"))
MATERIALS = set(listed("wooden metal glass stone"))
COUNTS = set(listed("two three four five"))
ADJECTIVES = COLORS | SIZES | MATERIALS | {"bare", "bright"}
NOUNS = listed("ball cube cup apple flower house tree boat cloud star table mountain")
# What a procedural renderer has to know; anything else makes a sentence no core sentence.
CORE_NOUNS = {*NOUNS, *(noun + "s" for noun in NOUNS), "sky", "sea", "field", "sun", "moon"}
CORE_WORDS = {
    *(CORE_NOUNS | COLORS | SIZES | MATERIALS | COUNTS),
    *listed("roof roofs door doors sail sails wall floor background snow rain fog"),
    *listed("day daylight night sunset dawn sunny clear cloudy rainy snowy foggy"),
    *listed("bright dark pale calm plain wide bare full"),
    *listed("a an the one there it is are and of with in on at to no many during around past"),
    *listed("beside next near front behind left right above below over under top between against"),
    *listed("row stands stand floats float sail lies shine shines grow grows setting sets rises"),
    *listed("falls falling"),
    *listed("photo photograph painting oil watercolor drawing simple crayon pastel gouache flat"),
    *listed("illustration digital children's book 3d render pixel art image paper collage"),
    *listed("woodcut print postcard poster shapes colors vivid muted soft light minimal"),
    *listed("style clean lines high detail"),
}


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(Grammar.load(str(GRAMMAR)).sentences(150_000, seed=0))


@pytest.fixture(scope="module")
def some(many: list[str]) -> list[str]:
    return many[:20_000]


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Grammar]:
    def load(**rules: Any) -> Grammar:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(rules))
        return Grammar.load(str(path))

    return load


def words_of(sentence: str) -> list[str]:
    return sentence.lower().replace(",", "").rstrip(".").split()


# The notation.


def test_number_article_and_choice(small: Callable[..., Grammar]) -> None:
    grammar = small(
        start=["{a} {thing} stands", "two {thing+} stand"],
        thing=["{size=} house(s) with {a=} old roof(s)", "ox/oxen"],
        size=["big", "ugly"],
    )
    assert set(grammar.sentences(6, seed=3)) == {
        "a big house with an old roof stands",
        "an ugly house with an old roof stands",
        "an ox stands",
        "two big houses with old roofs stand",
        "two ugly houses with old roofs stand",
        "two oxen stand",
    }


def test_optional_parts_leave_no_gaps(small: Callable[..., Grammar]) -> None:
    grammar = small(start=["{a} [50% red [50% old]] boat [50% at sea], oil [50% paint].", "x"])
    found = set(grammar.sentences(13, seed=0))
    assert "A boat, oil." in found
    assert "A red old boat at sea, oil paint." in found
    assert all("  " not in item and " ," not in item and " ." not in item for item in found)


def test_weights_and_chances_set_the_shares(small: Callable[..., Grammar]) -> None:
    number = [str(digit) for digit in range(10)]
    grammar = small(start=["x{n}{n}{n}{n} | 3", "y{n}{n}{n}{n} [20% z] | 1"], n=number)
    found = list(grammar.sentences(4_000, seed=1))
    ys = [item for item in found if item.startswith("y")]
    assert 0.25 < len(ys) / len(found) < 0.34  # above a quarter: repeated x are drawn again
    assert 0.16 < sum(item.endswith("z") for item in ys) / len(ys) < 0.30


def test_words_apart_and_words_twice(small: Callable[..., Grammar]) -> None:
    grammar = small(
        start=["{thing} and {thing}", "{thing} {time} {sky}"],
        thing=["boat(s)", "red red", "cup", "red"],
        time=["at night", "at noon"],
        sky=["in sun,", "in stars"],
        may_repeat="red at",
        apart=["night / sun", "noon / star"],
    )
    with pytest.raises(
        AigiError, match=r"small\.yaml: only 12 distinct sentences found, 99 needed"
    ):
        list(grammar.sentences(99, seed=0))
    found = set(grammar.sentences(12, seed=0))
    assert {"boat and cup", "red and cup", "cup at night in stars"} < found
    assert not found & {"cup and cup", "red and red", "boat at night in sun,"}


@pytest.mark.parametrize(
    ("following", "article"),
    [
        *((word, "a") for word in listed("one-room unicorn European useful uniform ukulele boat")),
        *((word, "an") for word in listed("hour honest heirloom hourglass umbrella uninhabited")),
        *((word, "an") for word in listed("orange onion 8 18 unusual ugly")),
    ],
)
def test_article(small: Callable[..., Grammar], following: str, article: str) -> None:
    grammar = small(start=["see {a} " + following])
    assert list(grammar.sentences(1, seed=0)) == [f"see {article} {following}"]


# Errors: the file, the rule and the remedy.


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"begin": ["x"]}, "no rule 'start'; add it"),
        ({"start": ["{tree}"]}, r"rule 'start': \{tree\} is not a rule; define it"),
        ({"start": ["x"], "tree": ["y"]}, "rule 'tree': never reached from 'start'; refer to it"),
        ({"start": []}, "rule 'start': empty or not a list; list at least one"),
        ({"start": None}, "rule 'start': empty or not a list"),
        ({"start": "x"}, "rule 'start': empty or not a list"),
        ({"start": ["x", " "]}, "rule 'start': ' ': empty alternative"),
        ({"start": [" | 2"]}, "rule 'start': .*empty alternative"),
        ({"start": [True]}, "rule 'start': True is not text; put it in quotes"),
        ({"start": ["{start} x"]}, r"rule 'start': leads back to itself \(start > start\)"),
        ({"start": ["x {b}"], "b": ["y {c}"], "c": ["{b}", "z"]}, r"rule 'b': .*\(b > c > b\)"),
        ({"start": ["x {b=}"], "b": ["{c+}"], "c": ["cat(s) {b}"]}, "leads back to itself"),
        ({"start": ["x | 0"]}, "rule 'start': 'x | 0': the weight after | must be a number above"),
        ({"start": ["x | -1"]}, "must be a number above 0"),
        ({"start": ["x | nan"]}, "must be a number above 0"),
        ({"start": ["x | inf"]}, "must be a number above 0"),
        ({"start": ["x | much"]}, "must be a number above 0"),
        ({"start": ["x |"]}, "must be a number above 0"),
        ({"start": ["{cat+}"], "cat": ["cat(s)", "dog"]}, "rule 'cat': 'dog' has no plural"),
        ({"start": ["{b+}"], "b": ["{c=}"], "c": ["dog"]}, "rule 'b': .* has no plural"),
        ({"start": ["x [50% y"]}, "rule 'start': .*is not closed"),
        ({"start": ["x y]"]}, r"rule 'start': .*not understood: '\]'"),
        ({"start": ["x [0% y]"]}, "rule 'start': .*not understood"),
        ({"start": ["x {Tree}"]}, r"rule 'start': .*not understood: '\{Tree\}'"),
        ({"start": ["x {a}"]}, "rule 'start': .*not understood: "),
        ({"start": ["x"], "a": ["y"]}, "rule 'a': a name is a lower-case word"),
        ({"start": ["x"], 1: ["y"]}, "rule 1: a name is a lower-case word"),
        ({"start": ["x"], "apart": ["night noon"]}, "apart: expected lines like"),
        ({"start": ["x"], "may_repeat": []}, "may_repeat: expected words in one string"),
    ],
)
def test_loader_names_file_rule_and_remedy(
    tmp_path: Path, rules: dict[Any, Any], message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(rules))
    with pytest.raises(AigiError, match=message.replace(" | ", r" \| ")) as error:
        Grammar.load(str(path))
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_is_named() -> None:
    with pytest.raises(AigiError, match=r"no/such\.yaml: no such file"):
        Grammar.load("no/such.yaml")


def test_exhaustion_is_an_error(small: Callable[..., Grammar]) -> None:
    grammar = small(start=["{n} boats"], n=["two", "three"])
    taken = grammar.sentences(3, seed=0)
    assert {next(taken), next(taken)} == {"two boats", "three boats"}
    with pytest.raises(AigiError, match=rf"small\.yaml: only 2 .*{PATIENCE} draws.*lower count"):
        next(taken)


pieces = st.sampled_from(
    [
        "{a} ",
        "{a=} ",
        "{b}",
        "{b+}",
        "{b=}",
        "[50% ",
        "]",
        "(s)",
        "/",
        "|",
        "ox",
        " ",
        "{",
        ", ",
        ".",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(pieces, min_size=1, max_size=8).map("".join),
    st.lists(pieces, min_size=1, max_size=5).map("".join),
)
def test_any_text_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, start: str, below: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"start": [start, "end {b}"], "b": [below]}))
    try:
        found = list(Grammar.load(str(path)).sentences(1, seed=0))
    except AigiError:
        return
    assert len(found) == 1 and found[0]
    assert not re.search(r"[{}\[\]|]|  ", found[0])


# Reproducibility.


def test_the_draw_is_pinned(small: Callable[..., Grammar]) -> None:
    """Fails if the same file and seed give other sentences than they gave in release 0.1."""
    grammar = small(
        start=["{n} {c} cup(s) [50% here] | 2.5", "{a} {c} cup"], n=["one"], c=["red", "old"]
    )
    assert list(grammar.sentences(6, seed=1)) == [
        "one red cup here",
        "one old cup",
        "one old cup here",
        "one red cup",
        "an old cup",
        "a red cup",
    ]
    assert list(grammar.sentences(6, seed=-1)) == [
        "one red cup",
        "a red cup",
        "one old cup here",
        "one red cup here",
        "an old cup",
        "one old cup",
    ]


def test_prefixes_are_stable(many: list[str]) -> None:
    grammar = Grammar.load(str(GRAMMAR))
    assert list(grammar.sentences(1_000, seed=0)) == many[:1_000]
    assert list(islice(grammar.sentences(10**9, seed=0), 1_000)) == many[:1_000]
    assert list(grammar.sentences(0, seed=0)) == []


def test_seeds_differ(many: list[str]) -> None:
    grammar = Grammar.load(str(GRAMMAR))
    assert len({*grammar.sentences(1_000, seed=1)} & {*many[:1_000]}) < 50
    assert list(grammar.sentences(10, seed=-1)) != list(grammar.sentences(10, seed=1))


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_other_processes_give_the_same(many: list[str], hash_seed: str) -> None:
    program = (
        "import hashlib, sys; from pipeline.prompts.grammar import Grammar\n"
        "text = '\\n'.join(Grammar.load(sys.argv[1]).sentences(3000, seed=0))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(GRAMMAR)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = hashlib.sha256("\n".join(many[:3_000]).encode()).hexdigest()
    assert result.stdout.strip() == expected


# The sentences of prompts/grammar.yaml.


def test_count_and_distinctness(many: list[str]) -> None:
    assert len(many) == 150_000
    assert len(set(many)) == 150_000
    # Case and punctuation do not count as a difference either.
    assert len({" ".join(words_of(sentence)) for sentence in many}) > 149_000


def test_form(many: list[str]) -> None:
    bad = re.compile(r"[^A-Za-z0-9 ,.'-]|  |^ | $| [,.]|,,|\.(?!$)|,$|^[,.]|-(?: |$)")
    assert [sentence for sentence in many if bad.search(sentence)] == []
    counts = [len(sentence.split()) for sentence in many]
    assert min(counts) >= 5
    assert max(counts) <= 40
    assert sum(count <= 8 for count in counts) > 15_000
    assert sum(count >= 20 for count in counts) > 7_500
    full = [sentence for sentence in many if sentence.endswith(".")]
    assert 0.08 < len(full) / len(many) < 0.3
    assert all(sentence[0].isupper() for sentence in full)


def test_vocabulary(many: list[str]) -> None:
    assert len({word for sentence in many for word in words_of(sentence)}) > 2_000


def test_articles(some: list[str]) -> None:
    consonant_sound = ("one", "uni", "euro", "use", "uku")
    vowel_sound = ("hour", "honest", "heir")
    wrong = []
    for sentence in some:
        for word, following in pairwise(sentence.lower().split()):
            if word in ("a", "an"):
                vowel = following[0] in "aeiou" and not following.startswith(consonant_sound)
                vowel = vowel or following.startswith(vowel_sound)
                if (word == "an") != vowel:
                    wrong.append(sentence)
    assert wrong == []


def test_no_word_twice_in_a_row(many: list[str]) -> None:
    assert [item for item in many if any(a == b for a, b in pairwise(words_of(item)))] == []


def test_counts_and_nouns_agree(some: list[str]) -> None:
    checked = 0
    for sentence in some:
        words = words_of(sentence)
        for index, word in enumerate(words):
            if word not in COUNTS | {"a", "an", "one"}:
                continue
            rest = [item for item in words[index + 1 : index + 5] if item not in ADJECTIVES]
            if rest and rest[0].rstrip("s") in NOUNS and rest[:2] != ["flower", "shop"]:
                checked += 1
                # "an apple orchard" is singular too.
                assert rest[0].endswith("s") == (word in COUNTS), sentence
    assert checked > 10_000


def test_subjects_and_verbs_agree(many: list[str]) -> None:
    noun = f"(?:(?:{'|'.join(ADJECTIVES)}) )*(?:{'|'.join(NOUNS)})s?"
    several, single = f"^(?:two|three|four|five) {noun}", f"^(?:a|an|one) {noun}"
    checked = 0
    for sentence in (item.lower() for item in many if item.endswith(".")):
        assert not re.match(several + r" (?:is|lies|stands|floats|grows|shines)\b", sentence)
        assert not re.match(single + r" (?:are|lie|stand|float|grow|shine)\b", sentence)
        assert not re.search(
            r"\bthere are (?:a|an|one)\b(?! few)|\bthere is (?:two|three)", sentence
        )
        checked += bool(re.match(several + " (?:are|stand|float)", sentence))
    assert checked > 500


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("night", "sunny"),
        ("night", "noon"),
        ("starry", "cloudless"),
        ("dawn", "sunset"),
        ("rain", "sunny"),
        ("foggy", "clear"),
        ("snow", "summer"),
        ("winter", "autumn"),
        ("black-and-white", "red"),
    ],
)
def test_no_contradictions(many: list[str], one: str, other: str) -> None:
    sets = [set(words_of(sentence)) for sentence in many]
    assert any(one in words for words in sets)
    assert any(other in words for words in sets)
    assert not any(one in words and other in words for words in sets)


def test_core_share(some: list[str]) -> None:
    core = 0
    for sentence in some:
        words = set(words_of(sentence))
        core += words <= CORE_WORDS and len(words & CORE_NOUNS) >= 1
    assert core / len(some) >= 0.4
    # Every core word is in use: the lists above and the grammar do not drift apart.
    used = {word for sentence in some for word in words_of(sentence)}
    assert CORE_WORDS - used <= {"no"}


def test_world_share(some: list[str]) -> None:
    assert sum(not set(words_of(sentence)) <= CORE_WORDS for sentence in some) / len(some) > 0.35


def test_blocklist_keeps_every_sentence(some: list[str]) -> None:
    lines = BLOCKLIST.read_text(encoding="utf-8").splitlines()
    terms = [line for line in lines if line and not line.startswith("#")]
    assert 60 <= len(terms) <= 130
    assert terms == [term.strip().lower() for term in terms]
    assert len(set(terms)) == len(terms)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, terms))})\b", re.IGNORECASE)
    assert pattern.search("An EROTIC picture") and not pattern.search("a Scunthorpe nudescape")
    assert [sentence for sentence in some if pattern.search(sentence)] == []
