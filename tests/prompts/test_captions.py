"""Each caption format: what is written comes back, and each planted defect costs one row."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline import AigiError
from pipeline.files import INVALID
from pipeline.prompts.captions import (
    NO_TAB,
    TAB,
    CaptionSource,
    PairCaptions,
    Row,
    TableCaptions,
    read,
)
from pipeline.rows import lines as rows_lines
from pipeline.rows.delimited import EMPTY_LINE

DATA = Path(__file__).parents[3] / "shared" / "data" / "prompts"
ENDINGS = {"cc12m": ".tsv", "text": ".txt", "jsonl": ".jsonl", "csv": ".csv", "coco": ".json"}
BOM = b"\xef\xbb\xbf"
TRICKY = [b"a", b"\t", b"\n", b"\r", b"\r\n", b'"', b",", b"\0", b"\xff", b"\xe2\x82", b"{}", BOM]
TRICKY += ["é".encode(), "\u2028".encode(), b'{"caption": "x"}', b"\xed\xa0\x80", b'"\\ud800"']

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)
one_cell = one_line.filter(lambda text: "\t" not in text)
any_bytes = st.lists(st.sampled_from(TRICKY) | st.binary(max_size=3), max_size=25).map(b"".join)
block_sizes = st.sampled_from([1, 2, 3, 5, 16, 1 << 16])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captions")


def source(kind: str, path: object, **options: object) -> CaptionSource:
    if kind in ("csv", "jsonl", "parquet"):
        options.setdefault("column", "caption")
    data = {"kind": kind, "path": str(path), **options}
    found: CaptionSource = TypeAdapter(CaptionSource).validate_python(data)
    return found


def rows(kind: str, folder: Path, data: bytes, ending: str = "", **options: object) -> list[Row]:
    path = folder / f"captions{ENDINGS[kind]}{ending}"
    path.write_bytes(data)
    return list(read(source(kind, path, **options)))


def good(texts: list[str], start: int = 1) -> list[Row]:
    return [(line, text, None) for line, text in enumerate(texts, start)]


def physical_lines(data: bytes) -> list[bytes]:
    lines = data.removeprefix(BOM).split(b"\n")
    ended = [line.removesuffix(b"\r") for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


def decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


# What is written comes back.


@given(st.lists(st.tuples(one_cell, one_cell)), block_sizes)
@settings(max_examples=60, deadline=None)
def test_cc12m_round_trip(folder: Path, pairs: list[tuple[str, str]], block: int) -> None:
    data = "\n".join(f"{url}\t{caption}" for url, caption in pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_lines, "BLOCK", block)
        bare = data.removeprefix("\ufeff") if pairs else ""
        expected = good([line.partition("\t")[2] for line in bare.split("\n")] if bare else [])
        assert rows("cc12m", folder, data.encode()) == expected
        assert rows("cc12m", folder, gzip.compress(data.encode()), ".gz") == expected


@given(st.lists(any_text, min_size=1))
@settings(max_examples=60, deadline=None)
def test_csv_round_trip(folder: Path, texts: list[str]) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", "caption"])
    starts = []
    for index, text in enumerate(texts):
        starts.append(out.getvalue().count("\n") + 1)
        writer.writerow([index, text])
    expected = [
        (line, text.replace("\r\n", "\n"), None) for line, text in zip(starts, texts, strict=True)
    ]
    assert rows("csv", folder, out.getvalue().encode()) == expected


@given(st.lists(any_text))
@settings(max_examples=60, deadline=None)
def test_jsonl_round_trip(folder: Path, texts: list[str]) -> None:
    plain = "".join(json.dumps({"caption": text}) + "\n" for text in texts)
    as_is = "".join(json.dumps({"n": 1, "caption": t}, ensure_ascii=False) + "\r\n" for t in texts)
    assert rows("jsonl", folder, plain.encode()) == good(texts)
    assert rows("jsonl", folder, as_is.encode()) == good(texts)


@given(st.lists(any_text, min_size=1))
@settings(max_examples=30, deadline=None)
def test_coco_and_parquet_round_trip(folder: Path, texts: list[str]) -> None:
    notes = [{"id": 7, "image_id": 9, "caption": text} for text in texts]
    data = json.dumps({"images": [], "annotations": notes}).encode()
    assert rows("coco", folder, data) == good(texts)
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"n": range(len(texts)), "caption": pa.array(texts).cast(kind)})
        pq.write_table(table, folder / "captions.parquet", row_group_size=3)
        assert list(read(source("parquet", folder / "captions.parquet"))) == good(texts)


# Any bytes at all.


@given(any_bytes, block_sizes)
@settings(max_examples=300, deadline=None)
def test_every_physical_line_is_accounted_for(folder: Path, data: bytes, block: int) -> None:
    lines = [decoded(line) for line in physical_lines(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_lines, "BLOCK", block)
        text, jsonl = (rows(kind, folder, data) for kind in ("text", "jsonl"))
        cc12m = None
        try:
            cc12m = rows("cc12m", folder, data)
        except AigiError as error:
            assert "tabs, and those of kind cc12m have one" in str(error)
    assert text == [
        (n, None, INVALID) if line is None else (n, line, None) for n, line in enumerate(lines, 1)
    ]
    assert cc12m is None or cc12m == [
        (n, None, INVALID if line is None else NO_TAB)
        if line is None or "\t" not in line
        else (n, None, f"{line.count(TAB)} tabs, and a line of this layout has one")
        if line.count(TAB) > 1
        else (n, line.partition("\t")[2], None)
        for n, line in enumerate(lines, 1)
    ]
    assert [row[0] for row in jsonl] == [row[0] for row in text]
    assert all((caption is None) != (problem is None) for _, caption, problem in jsonl)


@given(any_bytes)
@settings(max_examples=300, deadline=None)
def test_csv_takes_any_bytes(folder: Path, data: bytes) -> None:
    data = b"id,caption\n" + data
    found, last = rows("csv", folder, data), len(physical_lines(data))
    numbers = [line for line, _, _ in found]
    assert numbers == sorted(set(numbers)) and all(2 <= line <= last for line in numbers)
    assert all((text is None) != (problem is None) for _, text, problem in found)
    assert bool(found) == (last > 1)


# Planted defects.


def test_cc12m_defects(folder: Path) -> None:
    data = (
        BOM + b'u\tan 8" pipe, "quoted\n'  # no quoting rules: the next line is not part of it
        b"no tab here\n\n"
        b"u\tcaf\xe9\n"
        b"u\tone\ttwo\r\n"
        b"u\t\n"
        b"u\tnul \0 byte\n"
        b"u\tlast, without an end"
    )
    assert rows("cc12m", folder, data) == [
        (1, 'an 8" pipe, "quoted', None),
        (2, None, NO_TAB),
        (3, None, NO_TAB),
        (4, None, INVALID),
        (5, None, "2 tabs, and a line of this layout has one"),
        (6, "", None),
        (7, "nul \0 byte", None),
        (8, "last, without an end", None),
    ]


def test_csv_defects(folder: Path) -> None:
    data = (
        BOM + b"id,caption,n\r\n"
        b'1,"two\r\nlines, a ""quote""",1\r\n'
        b"2,short\r\n"
        b"3,a comma, not quoted,3\r\n"
        b"\r\n"
        b'4,"caf\xe9\nin two lines",4\r\n'
        b"5,caf\xc3\xa9,5\r\n"
        b'6,"closed" too early,6\r\n'
        b"7,good again,7\r\n"
        b'8,"never closed,8\r\n'
        b"9,not swallowed,9\r\n"
    )
    assert rows("csv", folder, data) == [
        (2, 'two\nlines, a "quote"', None),
        (4, None, "2 fields, the header has 3"),
        (5, None, "4 fields, the header has 3"),
        (6, None, EMPTY_LINE),
        (7, None, INVALID),
        (9, "café", None),
        (10, None, "not CSV: ',' expected after '\"'"),
        (11, "good again", None),
        (12, None, "not CSV: a quote is never closed"),
        (13, "not swallowed", None),
    ]


def test_csv_reads_on_after_a_quote_that_swallows_too_much(folder: Path) -> None:
    data = b'caption\n"open\n' + b"x" * 80 + b"\n" * 1 + (b"y" * 80 + b"\n") * 5000
    found = rows("csv", folder, data)
    assert found[0] == (2, None, "not CSV: a quote is never closed")
    assert found[1:] == [(3, "x" * 80, None), *((n, "y" * 80, None) for n in range(4, 5004))]


def test_csv_columns(folder: Path) -> None:
    with pytest.raises(
        AigiError, match=r"captions\.csv: text: no such column\. Set column to one of: id, capt"
    ):
        rows("csv", folder, b"id,caption\n1,a\n", column="text")
    with pytest.raises(AigiError, match="caption: more than one column of this name"):
        rows("csv", folder, b"caption,caption\n1,a\n")
    with pytest.raises(AigiError, match="header: not CSV"):
        rows("csv", folder, b'"caption\n1,a\n')


def test_jsonl_defects(folder: Path) -> None:
    data = BOM + (
        b'{"caption": "a\\nb"}\n{"caption": "cut\n[1]\n{"text": "x"}\n{"caption": null}\n'
        b'{"caption": 5}\n\n{"caption": "\xff"}\n' + b"[" * 9000 + b"\n" + b"9" * 9000 + b"\n"
        b'{"caption": "\\ud83d"}'
    )
    texts, problems = zip(*((row[1], row[2]) for row in rows("jsonl", folder, data)), strict=True)
    assert texts == ("a\nb", *[None] * 9, "\ud83d")
    starts = ["not JSON: Unterminated", "expected an object, found list", "'caption' is missing"]
    starts += ["'caption' is missing or null", "'caption' is int, not text", EMPTY_LINE, INVALID]
    starts += ["not JSON: ", "not JSON: "]
    assert all(str(p).startswith(s) for p, s in zip(problems[1:-1], starts, strict=True))


def test_parquet_defects(folder: Path) -> None:
    path = folder / "bad.parquet"
    raw = pa.array([b"good", None, b"\xff", b"good again"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())  # unchecked: one is not UTF-8
    pq.write_table(pa.table({"caption": text, "n": [1, 2, 3, 4]}), path)
    assert list(read(source("parquet", path))) == [
        (1, "good", None),
        (2, None, "'caption' is missing or null"),
        (3, None, INVALID),
        (4, "good again", None),
    ]
    found = list(read(source("parquet", path, column="n")))
    assert found == [(n, None, "'n' is int, not text") for n in range(1, 5)]
    with pytest.raises(AigiError, match=r"x: no such column\. Set column to one of: caption, n"):
        list(read(source("parquet", path, column="x")))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AigiError, match=r"bad\.parquet: not readable as parquet after row 0"):
        list(read(source("parquet", path)))


def test_coco_defects(folder: Path) -> None:
    notes = b'{"caption": "good"}, {"id": 2}, 7, {"caption": [1]}, {"caption": "\xff"}'
    found = rows("coco", folder, BOM + b'{"annotations": [' + notes + b"]}")
    assert [(line, text) for line, text, _ in found] == list(
        enumerate(["good", None, None, None, None], 1)
    )
    assert [problem for _, _, problem in found] == [
        None,
        "'caption' is missing or null",
        "expected an object, found int",
        "'caption' is list, not text",
        INVALID,
    ]


@pytest.mark.parametrize(
    "data",
    [b"", b"caption\n", b"[1]", b"{}", b'{"annotations": 3}', b'{"annotations": [{"bbox": []}]}'],
)
def test_not_a_coco_file(folder: Path, data: bytes) -> None:
    with pytest.raises(AigiError, match=r"captions\.json: .*expected a COCO captions file"):
        rows("coco", folder, data)
    assert rows("coco", folder, b'{"annotations": []}') == []


@pytest.mark.parametrize("kind", ["cc12m", "text", "jsonl", "csv"])
def test_empty_files_give_nothing(folder: Path, kind: str) -> None:
    assert rows(kind, folder, b"") == rows(kind, folder, BOM) == []
    assert rows(kind, folder, gzip.compress(b""), ".gz") == []
    assert rows("csv", folder, b"id,caption\n") == []


@pytest.mark.parametrize("kind", ["cc12m", "text", "jsonl", "csv", "parquet", "coco", "grammar"])
def test_missing_file(folder: Path, kind: str) -> None:
    options = {"count": 3} if kind == "grammar" else {}
    with pytest.raises(AigiError, match=r"nowhere\.x: no such file"):
        list(read(source(kind, folder / "nowhere.x", **options)))


def test_a_folder_without_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(AigiError, match=r"a folder without a file that ends in \.txt"):
        list(read(source("text", tmp_path)))


# Compressed files.


@pytest.mark.parametrize("kind", ["text", "cc12m", "jsonl", "csv"])
def test_cut_gzip_gives_the_rows_before_and_one_problem(folder: Path, kind: str) -> None:
    texts = [f"caption {n * n} {hashlib.md5(b'%d' % n).hexdigest()}" for n in range(400)]
    line = {"text": "{}", "csv": "{}", "cc12m": "u\t{}", "jsonl": '{{"caption": "{}"}}'}[kind]
    head = "caption\n" if kind == "csv" else ""
    whole = gzip.compress((head + "".join(line.format(t) + "\n" for t in texts)).encode())
    expected = good(texts, 2 if kind == "csv" else 1)
    assert rows(kind, folder, whole, ".gz") == expected
    most = 0
    for cut in range(2, len(whole), 251):
        *before, last = rows(kind, folder, whole[:cut], ".gz")
        assert before == expected[: len(before)] and "the file breaks off here" in str(last[2])
        most = max(most, len(before))
    assert most > 300
    damaged = whole[:-8] + b"\0" * 8  # a wrong checksum: everything was read by then
    assert rows(kind, folder, damaged, ".gz")[:-1] == expected


def test_cut_gzip_within_a_quoted_csv_field(folder: Path) -> None:
    open_field = "".join(f"line {n}\n" for n in range(2000))
    whole = gzip.compress(f'caption\nfirst\n"{open_field}"\n'.encode(), mtime=0)
    found = rows("csv", folder, whole[: len(whole) // 2], ".gz")
    assert found[0] == (2, "first", None)
    assert len(found) == 2 and "the file breaks off here" in str(found[1][2])


def test_other_compression_and_what_only_claims_it(folder: Path) -> None:
    assert rows("text", folder, bz2.compress(b"a\nb"), ".bz2") == good(["a", "b"])
    assert rows("text", folder, gzip.compress(b"a\n") + gzip.compress(b"b\n"), ".gz") == good(
        ["a", "b"]
    )
    with pytest.raises(AigiError, match="not a gzip file"):
        rows("text", folder, b"plain text\n", ".gz")


def test_fsspec_url() -> None:
    import fsspec

    with fsspec.open("memory://captions/some.txt.gz", "wb", compression="gzip") as file:
        file.write(b"one\ntwo\n")
    assert list(read(source("text", "memory://captions/some.txt.gz"))) == good(["one", "two"])


def test_reading_is_streamed(folder: Path) -> None:
    path = folder / "large.tsv.gz"
    path.write_bytes(
        gzip.compress((b"http://example.org/x.jpg\t" + b"word " * 40 + b"\n") * 60_000)
    )
    tracemalloc.start()
    assert sum(1 for _ in read(source("cc12m", path))) == 60_000  # 13 MB of text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Sources that are no caption file.


def test_hub_reads_a_local_dataset_folder(tmp_path: Path) -> None:
    table = pa.table({"caption": ["a", None, "c"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "validation-00000.parquet")

    def hub(**options: Any) -> list[Row]:
        data = {"kind": "hub", "dataset": str(tmp_path), "split": "validation", **options}
        return list(read(TypeAdapter(CaptionSource).validate_python(data)))

    missing = (2, None, "'caption' is missing or null")
    assert hub(column="caption") == [(1, "a", None), missing, (3, "c", None)]
    with pytest.raises(AigiError, match=r"text: no such column\. Set column to one of: caption, n"):
        hub(column="text")
    with pytest.raises(AigiError, match=r"split test.*not readable"):
        hub(column="caption", split="test")
    with pytest.raises(AigiError, match="no-such-folder"):
        hub(column="caption", dataset=str(tmp_path / "no-such-folder"))


def test_grammar(tmp_path: Path) -> None:
    path = tmp_path / "grammar.yaml"
    path.write_text("start: ['{size} {thing}']\nsize: [small, large]\nthing: [cat, dog]\n")
    found = list(read(source("grammar", path, count=4, seed=1)))
    pairs = {" ".join(pair) for pair in itertools.product(["small", "large"], ["cat", "dog"])}
    assert {text for _, text, _ in found} == pairs
    assert [line for line, _, _ in found] == [1, 2, 3, 4]


def test_blip_is_read_elsewhere(tmp_path: Path) -> None:
    blip = TypeAdapter(CaptionSource).validate_python({"kind": "blip", "photos": str(tmp_path)})
    with pytest.raises(ValueError, match="blip"):
        read(blip)


# Real files.


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("cc12m", "cc3m_val_cc12m_layout.tsv", 15_833),
        ("cc12m", "cc12m_sample.tsv", 5),
        ("text", "geneval.txt", 553),
        ("csv", "coco_30k.csv", 30_000),
    ],
)
def test_real_files(kind: str, name: str, count: int) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no folder {DATA} with real caption files")
    options = {"column": "prompt"} if kind == "csv" else {}
    found = list(read(source(kind, DATA / name, **options)))
    assert len(found) == count
    texts = [text for _, text, problem in found if text and problem is None]
    assert len(texts) == count
    if kind == "csv":
        assert sum("\n" in text for text in texts) == 97
        assert sum('"' in text for text in texts) == 77
        assert found[-1][0] == 30_001 + sum(text.count("\n") for text in texts[:-1])


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_is_found_by_the_column(tmp_path: Path, delimiter: str) -> None:
    rows = [["url", "caption", "key"], ["u", "a red boat", "1"], ["u", "a house", "2"]]
    path = tmp_path / "c.csv"
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    source = TableCaptions(kind="csv", path=str(path), column="caption")
    assert list(read(source)) == [(2, "a red boat", None), (3, "a house", None)]


def test_a_file_of_another_layout_is_no_cc12m(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("url\tcaption\tkey\nu\ta red boat\t1\nu\ta house\t2\n")
    with pytest.raises(AigiError, match=r"c\.tsv: its lines have 2 tabs, and those of kind cc12m"):
        list(read(PairCaptions(kind="cc12m", path=str(path))))
    path.write_text("u\ta red boat\nu\ta house\t2\nu\ta tree\n")
    assert list(read(PairCaptions(kind="cc12m", path=str(path)))) == [
        (1, "a red boat", None), (2, None, "2 tabs, and a line of this layout has one"),
        (3, "a tree", None),
    ]  # fmt: skip
