"""Texts and locations with secrets and control characters in; none of them out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.shown import lines, one_line, public, public_url, redacted, visible
from tests.conftest import ROOT

SIGNED = (
    "https://bucket.s3.amazonaws.com/a/captions.csv?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F20260101&X-Amz-Signature=0123abcd"
)
HOSTILE = "a\x1b[2Jb\x07c\rd\x9b31me\u202ef\u2066g\u2028h\u2029i[red]j[/red]:smile:k\x00l\ufeffm"
"""What a prompt, a file name or a model's name may hold."""


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("captions.csv", "captions.csv"),
        ("/data/what?.csv", "/data/what?.csv"),
        ("/data/a#b@c.csv", "/data/a#b@c.csv"),
        (SIGNED, "https://bucket.s3.amazonaws.com/a/captions.csv"),
        ("https://me:pw@host:8080/a.csv?t=1#part", "https://host:8080/a.csv"),
        ("https://me@host/a.csv", "https://host/a.csv"),
        ("https://host#part", "https://host"),
        ("https://host?x=1", "https://host"),
        ("https://[::1]:80/a.csv?x", "https://[::1]:80/a.csv"),
        ("s3://AKIA:ab/cd+e@bucket/a.csv", "s3://bucket/a.csv"),
        ("s3://bucket/a#1/b@c.csv?versionId=3", "s3://bucket/a#1/b@c.csv"),
        ("hf://datasets/org/name@v1/a.csv", "hf://datasets/org/name@v1/a.csv"),
        ("hf://org/name@v1", "hf://org/name@v1"),
        ("abfs://container@account.dfs.core.windows.net/a?sig=x",
         "abfs://container@account.dfs.core.windows.net/a"),
        ("zip://a.csv::https://me:pw@host/x.zip?sig=1", "zip://a.csv::https://host/x.zip"),
        ("simplecache::" + SIGNED, "simplecache::https://bucket.s3.amazonaws.com/a/captions.csv"),
        ("https://host/a b.csv?sig=x y", "https://host/a b.csv"),
    ],
)  # fmt: skip
def test_a_location_without_its_secrets(location: str, expected: str) -> None:
    assert public_url(location) == expected
    assert public_url(expected) == expected
    assert public({"a": [{"path": location}]}) == {"a": [{"path": expected}]}


def test_settings_keep_what_is_no_location() -> None:
    kept = {"citation": "see https://a.org/?id=3", "n": 3, "x": None, "yes": True, "l": ["a?b"]}
    assert public(kept) == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SIGNED}: no such file",
         "https://bucket.s3.amazonaws.com/a/captions.csv?...: no such file"),
        ("403, message='Forbidden', url='https://me:pw@h/a.csv?s=1'",
         "403, message='Forbidden', url='https://***@h/a.csv?...'"),
        ("(see https://h/a?x=1).", "(see https://h/a?...)."),
        ("Max retries exceeded with url: /a.csv?anything=1 (Caused by x)",
         "Max retries exceeded with url: /a.csv?... (Caused by x)"),
        ("GET /a b.csv?X-Amz-Signature=00ff&sig=12 HTTP",
         "GET /a b.csv?X-Amz-Signature=...&sig=... HTTP"),
        ("{'key': 'AKIAABCDEFGHIJKLMNOP', 'secret': 'ab/cd'}",
         "{'key': 'AKIA***', 'secret': '...'}"),
        ("token hf_AbCdEfGhIjKlMnOpQrSt was refused", "token hf_*** was refused"),
        ("Authorization: Bearer abcdefghij1234567890", "Authorization: Bearer ***"),
        ("zip://x::https://me:pw@h/x.zip?s=1", "zip://x::https://***@h/x.zip?..."),
        ("hf://datasets/org/name@v1/a: no such file", "hf://datasets/org/name@v1/a: no such file"),
        ("a boat?, max_tokens=77, a#b", "a boat?, max_tokens=77, a#b"),
    ],
)  # fmt: skip
def test_a_text_that_quotes_secrets(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert redacted(expected) == expected


def test_records_keep_harmless_queries_and_lose_signatures() -> None:
    text = f'{{"citation": "https://openreview.net/forum?id=abc", "path": "{SIGNED}"}}'
    found = redacted(text, queries=False)
    assert "forum?id=abc" in found
    assert "0123abcd" not in found and "AKIAABCDEFGHIJKLMNOP" not in found


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-a-usual-token-9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/def+0123456789")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token-0123456789")
    monkeypatch.setenv("MY_KEY", "short1")
    found = redacted("not-a-usual-token-9 abc/def+0123456789 /var/run/token-0123456789 short1")
    assert found == "*** *** /var/run/token-0123456789 short1"


@given(st.text(), st.text(st.characters(exclude_characters="/?#@ ", categories=["L", "N"])))
@example("a::b", "s")
def test_no_location_keeps_its_query(path: str, secret: str) -> None:
    clean = path.replace("?", "").replace("#", "")
    assert public_url(f"https://h/{clean}?{secret}") == public_url(f"https://h/{clean}")


def test_an_error_has_no_secret_wherever_it_is_read() -> None:
    error = AigiError(f"{SIGNED}: no such file")
    assert "0123abcd" not in f"{error}{error.args!r}"
    assert str(AigiError("one\ntwo")) == "one\ntwo" and AigiError().args == ()


def test_a_text_is_shown_as_it_is_and_does_nothing() -> None:
    assert visible(HOSTILE) == (
        "a[U+001B][2Jb[U+0007]c d[U+009B]31me[U+202E]f[U+2066]g h i[red]j[/red]:smile:"
        "k[U+0000]l[U+FEFF]m"
    )
    assert visible("a\u202eb\x00\nc\ud800") == "a[U+202E]b[U+0000] c?"
    # Joiners belong to the spelling of scripts and emoji.
    family = "\u0645\u06cc\u200c\u062e\u0648 👩\u200d🚀"
    assert visible(family) == family
    assert lines("one\ntwo\x1b\n") == "one\ntwo[U+001B]\n"
    assert one_line(f"{SIGNED} \x1b\n") == (
        "https://bucket.s3.amazonaws.com/a/captions.csv?... [U+001B] "
    )


@given(st.text())
def test_what_is_visible_stays_on_its_line(text: str) -> None:
    assert len(visible(text).splitlines()) <= 1
    assert not set(visible(text)) & set("\x1b\x07\r\x9b\u202e\u2066\u2028\u2029\x00")


def test_logs_and_warnings_of_libraries_are_shown_so_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from pipeline.cli.show import guard

    factory, formatter = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        guard.__wrapped__()
        logging.getLogger("some.package").error("cannot get %s \x1b[2J", SIGNED)
        shown = warnings.formatwarning(f"{SIGNED} \x07", UserWarning, "a.py", 1)
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = formatter
    assert "0123abcd" not in shown and "[U+0007]" in shown
    assert "captions.csv?... [U+001B]" in caplog.text and "0123abcd" not in caplog.text


def test_what_users_see_is_printed_in_few_places() -> None:
    """A bare `print` knows nothing of secrets and control characters."""
    doors = {"cli/show.py", "progress.py", "codecs/command.py", "learned/export.py"}
    printing = {
        file.relative_to(ROOT / "pipeline").as_posix()
        for file in Path(ROOT / "pipeline").rglob("*.py")
        if any(line.lstrip().startswith("print(") for line in file.read_text().splitlines())
    }
    assert {name for name in printing if not name.startswith("tiny/")} - doors <= {
        "release/card_rows.py",  # an example in the card
        "cli/reference.py",
        "logbook.py",  # that the log cannot be written, which no line in the log can report
        # Processes of their own, whose lines the parent reads.
        "joining.py",
        "benchmark/complexity.py",
    }
