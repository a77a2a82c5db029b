"""Text from outside cannot become Markdown: what is shown is the text, and nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.markdown import Safe, code, escape, fence, link, number, plain, table

Test = TypeVar("Test", bound=Callable[..., object])
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "a | b || c",
    "`code` ``two`` ```three```",
    "<script>alert(1)</script>",
    "<!-- gone -->",
    "---",
    "--- \ntitle: mine\n---",
    "===",
    "# heading",
    "#",
    "- item",
    "* item",
    "+ item",
    "1. item",
    "12) item",
    "> quote",
    "    indented",
    "\tindented",
    "[link](javascript:alert(1))",
    "![image](x.png)",
    "[reference]: /url",
    "[^1]: note",
    "<https://example.org>",
    "www.example.org and https://example.org",
    "two  spaces and a line  \nbreak\\\nhere",
    "&copy; &#60; &amp;lt;",
    "**bold** _it_ ~~gone~~ ***",
    "snow_white_and_the_seven",
    "$$x^2$$ \\(y\\) \\[z\\]",
    ":smile: @user #123",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f é e\u0301",
    "\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "\ufeff--- \x00 \x1b[31m \x85 \u2028 \u2029",
    "half a pair \ud83d",
    "| --- | --- |",
    "\\",
    "\\|",
    "~~~",
    "{{ jinja }} {% raw %}",
]


def shown(markdown: str) -> str:
    """Text of the only line of text in the document, as a reader sees it."""
    (inline,) = [token for token in PARSER.parse(markdown) if token.type == "inline"]
    assert all(child.type in ("text", "text_special") for child in inline.children or [])
    return "".join(child.content for child in inline.children or [])


def structure(markdown: str) -> list[str]:
    return [token.type for token in PARSER.parse(markdown)]


texts = st.one_of(
    st.text(),
    st.sampled_from(HOSTILE),
    st.text("|`<>-=+#*_~[]()!&;:\\/\n\r\t .1a\u202e👩$@", max_size=30),
)


def examples(test: Test) -> Test:
    """Every hostile text is tried, whatever is drawn."""
    for text in HOSTILE:
        test = example(text)(test)
    return test


@examples
@settings(max_examples=400, deadline=None)
@given(texts)
def test_a_cell_shows_the_text_and_stays_one_cell(text: str) -> None:
    heads = [Safe("one"), Safe("two")]
    lines = table(heads, [[escape(text), number(1234)], [Safe("x"), Safe("y")]], right=1)
    assert len(lines) == 4
    tokens = PARSER.parse("\n".join(lines))
    plainly = table(heads, [[Safe("a"), Safe("b")], [Safe("x"), Safe("y")]], right=1)
    assert [token.type for token in tokens] == structure("\n".join(plainly))
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.content for token in inline[-3:]] == ["1,234", "x", "y"]
    assert "".join(child.content for child in inline[2].children or []) == plain(text)


@examples
@settings(max_examples=400, deadline=None)
@given(texts)
def test_a_paragraph_a_heading_and_an_item_show_the_text(text: str) -> None:
    if not plain(text):
        assert escape(text) == ""
        return
    for before, kinds in (
        ("", ["paragraph_open", "inline", "paragraph_close"]),
        ("# ", ["heading_open", "inline", "heading_close"]),
    ):
        markdown = before + escape(text)
        assert structure(markdown) == kinds
        assert shown(markdown) == plain(text)
    item = structure(f"- a\n- {escape(text)}\n- b")
    assert item == structure("- a\n- x\n- b")


@examples
@settings(max_examples=200, deadline=None)
@given(texts)
def test_plain_text_is_one_line_that_a_file_can_hold(text: str) -> None:
    line = plain(text)
    assert line == plain(line)
    assert line.encode().decode() == line
    assert len((line + "x").splitlines()) == 1
    assert not set(line) & set("\u202e\u2066\u200f\ufeff")


@examples
@settings(max_examples=200, deadline=None)
@given(texts)
def test_a_fence_holds_everything(text: str) -> None:
    markdown = "\n".join([*fence(text, "bibtex"), "", "after"])
    tokens = PARSER.parse(markdown)
    assert [token.type for token in tokens] == [
        "fence", "paragraph_open", "inline", "paragraph_close",
    ]  # fmt: skip
    assert [plain(line) for line in tokens[0].content.splitlines()] == [
        plain(line) for line in text.strip("\r\n").splitlines()
    ]


def test_emoji_stay_whole_and_turning_marks_go() -> None:
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
    assert escape(f"{family} \u202eabc") == f"{family} abc"


def test_usual_words_stay_as_they_are() -> None:
    for text in ("SD2.1B (tiny)", "a cat, 3.5 cm - on a table; 50% off", "1.0.0", "12 apples"):
        assert escape(text) == text


def test_names_in_code_style_are_our_own() -> None:
    assert code("sd21-base") == "`sd21-base`"
    for name in ("a`b", "a|b", "a b", "", "a\n"):
        with pytest.raises(ValueError, match="no plain name"):
            code(name)


def test_a_link_without_an_address_is_text() -> None:
    assert link("a|b", None) == "a&#124;b"
    (inline,) = [t for t in PARSER.parse(link("[x](y)", "https://e.org/a_b")) if t.type == "inline"]
    assert [c.type for c in inline.children or []] == ["link_open", "text", "link_close"]
    assert (inline.children or [])[0].attrs == {"href": "https://e.org/a_b"}


def test_a_row_of_another_length_is_a_defect() -> None:
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        table([Safe("a"), Safe("b")], [[Safe("x")]])
