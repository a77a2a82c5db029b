"""Laws of the normal form, of ids and splits; every reason of the filter; real captions."""

from __future__ import annotations

import csv
import hashlib
import re
import string
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.prompts.filters import PromptFilters
from pipeline.prompts.joiners import SEEN, bare
from pipeline.prompts.scored import MOST_CHARACTERS, Filter
from pipeline.prompts.text import SplitShares, normalise, prompt_id, split_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "prompts"
PIECES = ["&", "amp", ";", "&amp;", "&lt", "#", "39", "&#x", "\u037e", "\u200b", "\u200d", "\ufe0f"]
PIECES += ["e", "\u0301", "\u212b", " ", "\u00a0", "\u2028", "\t", "\x1c", "\0", "\ud83d", "\ude00"]
PIECES += ["\u200c", "\u06cc", "\u0627", "\u064b", "\u0915", "\u094d", "\u2764", "\ufe0e", "\u180e"]
PIECES += ["<PERSON>", "<per", "son>", "a", "Cat", "1", ".", "http://", "日", "é", "\U0001f469"]

messy = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=15).map("".join)


def filter_of(**options: Any) -> Filter:
    """A filter with these options; what is not about the form of a text is off."""
    off = {"languages": None, "max_repeated": None, "personal": (), "max_unsafe": None}
    return Filter(PromptFilters.model_validate(off | options), safety=())


# Normal form.


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", ""),
        ("a plain caption", "a plain caption"),
        ("  two\t\r\n spaces ", "two spaces"),
        (
            "no\u00a0break\u2003em\u3000wide\u2028line\x85next\x1csep",
            "no break em wide line next sep",
        ),
        ("rock &amp; roll", "rock & roll"),
        ("&amp;quot;twice&amp;quot;", '"twice"'),
        ("&amp;amp;amp;lt;", "<"),
        ("&amp" * 3 + ";", "&&&"),
        ("it&#39;s &#x2019;", "it's \u2019"),
        ("&#0; &#" + "9" * 6000 + ";", "\ufffd \ufffd"),
        ("&#128;", "€"),
        ("AT&T, R&D &unknown; & co", "AT&T, R&D &unknown; & co"),
        ("fish &amp chips &copy 2020", "fish & chips © 2020"),
        ("?a=1&copy=2 black&notable", "?a=1&copy=2 black&notable"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth\ufeff\u00adjoin\u2060er", "zerowidthjoiner"),
        ("bell\x07 nul\0", "bell nul"),
        ("lone \ud83d half", "lone half"),
        ("\ue000private", "private"),
        ("&am\u200bp;", "&"),  # an entity only once the zero-width space is gone
        ("jo\u200diner a\ufe0fb \u200cc\u200d", "joiner ab c"),
        ("&lt;PERSON&gt;", "<PERSON>"),
    ],
)
def test_normal_form(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@given(messy)
@example("&" + "amp;" * 40)
@example("&" + "amp;" * 40 + "lt;")
@example("&" + "amp\u037e" * 40)
@settings(max_examples=800, deadline=None)
def test_normal_form_is_stable_and_valid(raw: str) -> None:
    text = normalise(raw)
    assert normalise(text) == text
    text.encode("utf-8")
    assert unicodedata.is_normalized("NFC", text)
    bad = {unicodedata.category(char) for char in bare(text) if char not in SEEN}
    assert not bad & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert "  " not in text and text == text.strip()
    assert not any(char.isspace() for char in text if char != " ")


@given(st.text(string.ascii_letters + string.digits + string.punctuation.replace("&", "") + " \t"))
@settings(max_examples=200, deadline=None)
def test_plain_text_changes_in_its_spaces_only(raw: str) -> None:
    assert normalise(raw).split(" ") == (raw.split() or [""])


ZWNJ, ZWJ, VS15, VS16 = "\u200c", "\u200d", "\ufe0e", "\ufe0f"


@pytest.mark.parametrize(
    "text",
    [
        f"\u0645\u06cc{ZWNJ}\u062e\u0648\u0627\u0647\u0645",  # Persian: "I want"
        f"\u06a9\u062a\u064e\u0628{ZWNJ}\u0647\u0627",
        f"\u06f1\u06f4 \u0647{ZWJ}",  # an abbreviation: the letter as if another one followed
        f"\u0915\u094d{ZWJ}\u0937",  # Hindi: half a letter
        f"\u0d28\u0d4d{ZWJ}",  # Malayalam, at the end of a word
        f"\u09b0{ZWJ}\u09cd\u09af",  # Bengali
        f"\U0001f469{ZWJ}\U0001f680 \u2764{VS16} \u2764{VS15}",
        f"\U0001f3f3{VS16}{ZWJ}\U0001f308 \U0001f469\U0001f3fd{ZWJ}\U0001f680 1{VS16}\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England
        "\u8fbb\U000e0100 \u2229\ufe00 \u0600\u0661",
        "\u182e\u180e\u1820",  # Mongolian
    ],
)
def test_joiners_that_a_script_needs_stay(text: str) -> None:
    assert normalise(f" a {text} ") == f"a {text}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"ca{ZWJ}t{ZWNJ} a{VS16} {ZWJ}b", "cat a b"),
        (f"\u0627{ZWNJ}\u0645", "\u0627\u0645"),  # alef joins nothing
        (f"\u0645{ZWNJ}", "\u0645"),
        (f"\u0645{ZWJ}\u06cc", "\u0645\u06cc"),  # they join without it
        (f"\U0001f469{ZWJ} a", "\U0001f469 a"),
        (f"\u2764{VS16}{VS16}", f"\u2764{VS16}"),
        ("a\U000e0067\U000e0062\U000e007fb", "ab"),  # hidden text
        ("\U0001f3f4" + "\U000e0067" * 30, "\U0001f3f4"),
        (f"e{ZWJ}\u0301", "\u00e9"),
    ],
)
def test_those_that_show_nothing_go(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


# Ids and splits.


def test_prompt_id() -> None:
    digest = hashlib.sha256("rock & café".encode()).hexdigest()
    assert prompt_id(" rock &amp;  cafe\u0301 ") == prompt_id("rock & café") == digest[:32]
    assert prompt_id("Rock & café") != digest[:32]
    assert prompt_id("a photo of a cat") == "ba792b3ff0f684da9d241ac083006c90"


def test_splits_of_known_ids() -> None:
    shares = SplitShares(validation=0.25, test=0.25)
    found = "".join(split_of(f"{n:032x}", shares)[:2] for n in range(12))
    assert found == "vavatrtrvatetevatrvatrtr"


@given(st.text(max_size=10), st.floats(0, 0.49), st.floats(0, 0.49))
@settings(max_examples=300, deadline=None)
def test_split_is_the_stretch_its_hash_falls_into(key: str, test: float, validation: float) -> None:
    digest = hashlib.sha256(b"split:" + key.encode()).hexdigest()
    u = int(digest[:16], 16) / 16**16
    names = ["test"] * (u < test) + ["validation"] * (u < test + validation) + ["train"]
    assert split_of(key, SplitShares(validation=validation, test=test)) == names[0]


@given(st.lists(st.floats(0, 0.49), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_raising_shares_never_moves_a_prompt_back(parts: list[float]) -> None:
    order = ["train", "validation", "test"]
    (test, more_test), (validation, more_validation) = sorted(parts[:2]), sorted(parts[2:])
    before = SplitShares(test=test, validation=validation)
    after = SplitShares(test=more_test, validation=more_validation)
    for n in range(100):
        assert order.index(split_of(str(n), before)) <= order.index(split_of(str(n), after))


def test_shares_are_met() -> None:
    shares = SplitShares(validation=0.05, test=0.1)
    found = Counter(split_of(prompt_id(f"caption {n}"), shares) for n in range(20_000))
    assert abs(found["test"] - 2000) < 200 and abs(found["validation"] - 1000) < 150
    assert {split_of(str(n), SplitShares(validation=0, test=0)) for n in range(500)} == {"train"}


# The filter.


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("photo of <PERSON> on a beach", "photo of person on a beach"),
        ("<PERSON> and <person>'s dog", "person and person's dog"),
        ("<PERSON><Person>, actor<PERSON>Smith", "person person, actor person Smith"),
        ("&lt;PERSON&gt;-led  team wins", "person-led team wins"),
        ("a cat , a dog .", "a cat , a dog ."),
        (
            "conferences & meetings - day 2 of the café",
            "conferences & meetings - day 2 of the café",
        ),
    ],
)
def test_prompts(raw: str, expected: str) -> None:
    assert filter_of().clean(raw) == (expected, None)


@pytest.mark.parametrize(
    ("raw", "reason", "options"),
    [
        ("", "empty", {}),
        (" \u200b\t&nbsp;", "empty", {}),
        ("<PERSON>", "empty", {"person": ""}),
        ("a portrait of <Person> smiling", "person", {"person": None}),
        ("two words", "too few words: 2 < 3", {}),
        ("two - words . !", "too few words: 2 < 3", {}),
        ("... --- !!!", "too few words: 0 < 3", {}),
        ("one two three four", "too many words: 4 > 3", {"max_words": 3}),
        ("2015 2016 2017", "not English letters: none", {}),
        ("\u00bc \u00b2 \u2460", "not English letters: none", {}),
        ("\u2665 \u2665 \u2665", "not English letters: none", {"min_ascii_letters": 0}),
        ("Кот сидит на door", "not English letters: 0.28 < 0.9", {}),
        ("éèê aaaaaa aaaaaa aaaaaa aaaaa", "not English letters: 0.88 < 0.9", {}),
        ("call 5551234 or +4915112345", "noise: 0.5 > 0.2", {}),
        ("one two 3 == five six", "noise: 0.17 > 0.15", {"max_noise": 0.15}),
        ("123456789 987654321 a b", "noise: 0.5 > 0.2", {}),
        ("see https://a.b/c this page", "noise: 0.25 > 0.2", {}),
        ("see (www.example.org/x) this page", "noise: 0.25 > 0.2", {}),
        ("dress at example.co.uk, new", "noise: 0.25 > 0.2", {}),
        ("sunset #beach by the", "noise: 0.25 > 0.2", {}),
        ("sunset by @someone here", "noise: 0.25 > 0.2", {}),
        ("write to me@example.com today", "noise: 0.25 > 0.2", {}),
        ("my dog IMG_1234.jpg here", "noise: 0.25 > 0.2", {}),
        ("my dog DSC01234 here", "noise: 0.25 > 0.2", {}),
        ("my dog beach-day.PNG. here", "noise: 0.25 > 0.2", {}),
    ],
)
def test_reasons(raw: str, reason: str, options: dict[str, Any]) -> None:
    assert filter_of(**options).clean(raw) == (None, reason)


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        ("one two three", {"min_words": 3, "max_words": 3}),
        ("one two three four 5", {}),  # 0.2 is not above 0.2
        ("aaaa aaaa aé", {"min_ascii_letters": 0.9}),  # 9 of 10
        ("Кот сидит на двери", {"min_ascii_letters": 0}),
        ("www.a.com 1 2 3 x", {"max_noise": 1}),
        ("photograph of St.Louis in node.js style", {}),
        ("5 red apples and 3 pears", {}),
        ("1,000,000 stars, 50% grey, 16:9, f/1.8, $20, 24mm, 1987, 3/4", {}),
    ],
)
def test_limits_are_inclusive(raw: str, options: dict[str, Any]) -> None:
    assert filter_of(**options).clean(raw) == (raw, None)


@given(messy, st.sampled_from(["person", "", "  someone\t else ", "&amp;amp;", "\\1", None]))
@settings(max_examples=600, deadline=None)
def test_filter_laws(raw: str, person: str | None) -> None:
    chosen = filter_of(person=person, min_words=1, min_ascii_letters=0, max_noise=1)
    prompt, reason = chosen.clean(raw)
    assert (prompt is None) != (reason is None)
    assert chosen.clean(normalise(raw)) == (prompt, reason)
    if prompt is not None:
        assert prompt and normalise(prompt) == prompt
        if person:
            assert "<person>" not in prompt.lower()
            assert chosen.clean(prompt) == (prompt, None)


def test_a_long_caption_takes_no_long_time() -> None:
    for unit in ("a", "@", "a@", "&amp", "a.com/", "<PERSON>", "&#", "é", "img_1"):
        filter_of().clean("x" + unit * (100_000 // len(unit)) + " b c d")


UNITS = (
    "a|@|a@|a@b.|a.com/|1|1 |1.|12:|www.|n u d e |naked |blood |é|img_1|aaab|the |(1) 23-|+1 (2) "
)


@pytest.mark.parametrize("unit", UNITS.split("|"))
def test_the_longest_text_is_scored_in_no_long_time(unit: str) -> None:
    chosen = Filter(PromptFilters(max_words=10_000))
    chosen.clean((unit * 10_000)[: MOST_CHARACTERS - 6] + " b c d")
    text, reason = chosen.clean("a" * 10_001)
    assert (text, reason) == (None, "too long: 10,001 characters")


# Blocklist.


def blocklist(folder: Path, text: str) -> Filter:
    path = folder / "blocklist.txt"
    path.write_text(text, encoding="utf-8")
    return filter_of(blocklist=str(path))


def test_joiners_hide_no_word_of_the_blocklist(tmp_path: Path) -> None:
    word = "\u0645\u06cc\u062e\u0648"
    (tmp_path / "blocklist.txt").write_text(f"{word}\n", encoding="utf-8")
    chosen = filter_of(blocklist=str(tmp_path / "blocklist.txt"), min_ascii_letters=0)
    parted = f"\u0645\u06cc{ZWNJ}\u062e\u0648"
    assert chosen.clean(f"a red {parted} boat") == (None, f"blocklist: {word}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u732b\u5750\u5728\u7a97\u53f0\u4e0a", 6),  # Chinese
        ("\u8d64\u3044\u30ea\u30f3\u30b4\u3068\u68a8", 4),  # Japanese
        ("\u0e41\u0e21\u0e27\u0e2a\u0e35\u0e41\u0e14\u0e07\u0e19\u0e31\u0e48\u0e07", 4),  # Thai
        ("red \u732b, \U0001f680 \u732b", 4),
    ],
)
def test_words_of_scripts_without_spaces_are_counted(text: str, words: int) -> None:
    settings = {"min_ascii_letters": 0, "max_noise": 1}
    assert filter_of(min_words=words, max_words=words, **settings).clean(text)[0] == text
    refused = filter_of(min_words=words + 1, **settings).clean(text)
    assert refused == (None, f"too few words: {words} < {words + 1}")


def test_blocklist(tmp_path: Path) -> None:
    chosen = blocklist(
        tmp_path,
        "\ufeff# comment\nGore\n\n  blood  bath # two words\nf*ck\ncafé noir\n\u5350\nnew\n@home\n",
    )
    for raw, entry in {
        "scenes of GORE here": "gore",
        "gore: the film": "gore",
        "a &quot;gore&quot; film": "gore",
        "a real Blood\n Bath here": "blood bath",
        "what the F*CK is": "f*ck",
        "at the Cafe\u0301 Noir today": "café noir",
        "sign of \u5350 on wall": "\u5350",
        "gore new gore": "gore",
        "new gore new": "new",
        "look @home for it right now": "@home",
    }.items():
        assert chosen.clean(raw) == (None, f"blocklist: {entry}")
    for raw in [
        "al gores speech today",
        "category gored bull",
        "blood in the bath",
        "blood-bath in town",
        "cafés noir et blanc",
        "newly built home",
        "gore_x file name",
    ]:
        assert chosen.clean(raw)[1] is None


names = st.text("ab *'", min_size=1, max_size=4).map(str.strip).filter(bool)


@given(st.lists(names, max_size=4), st.text("abAB *'-", max_size=15).map(normalise))
@settings(max_examples=400, deadline=None)
def test_blocklist_is_word_boundary_search(
    tmp_path_factory: pytest.TempPathFactory, entries: list[str], text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "entries.txt"
    path.write_text("\n".join(entries), encoding="utf-8")
    chosen = filter_of(blocklist=str(path), min_words=1, max_noise=1)
    _, reason = chosen.clean(text)
    if reason is not None and not reason.startswith("blocklist"):
        return
    hits = [
        entry
        for entry in map(normalise, entries)
        if re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", text, re.IGNORECASE)
    ]
    assert (reason is not None) == bool(hits)
    assert reason is None or reason.removeprefix("blocklist: ") in hits


def test_blocklist_files(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"nowhere\.txt: no such file.*prompts\.filters\.blocklist"):
        filter_of(blocklist=str(tmp_path / "nowhere.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(AigiError, match=r"latin\.txt: .*UTF-8"):
        filter_of(blocklist=str(tmp_path / "latin.txt"))
    assert blocklist(tmp_path, "# nothing\n\n").clean("a plain caption")[1] is None


# Real captions.


def test_real_captions() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no folder {DATA} with real caption files")
    lines = (DATA / "cc3m_val_cc12m_layout.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    with open(DATA / "coco_30k.csv", encoding="utf-8", newline="") as file:
        coco = [row["prompt"] for row in csv.DictReader(file)]
    for texts, refused in (([line.split("\t")[1] for line in lines], 5), (coco, 0)):
        chosen = filter_of()
        found = chosen.clean_all(texts)
        assert Counter(r.partition(":")[0] for _, r in found if r) == Counter(noise=refused)
        assert all(p is None or (normalise(p) == p and "<PERSON>" not in p) for p, _ in found)
