"""Files of rows as people and programs write them: each is read, and a bad row costs itself."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import AigiError
from pipeline.files import fixed_part
from pipeline.rows import rows
from pipeline.rows.asked import Asked, texts_of
from pipeline.rows.lines import Held
from pipeline.rows.settings import TableFormat
from pipeline.rows.shards import content_of, files_of

TEXT = Asked("caption")
BOTH = Asked("caption", "file")


def read(path: Path, asked: Asked = TEXT, layout: str | None = None, **form: Any) -> list[Any]:
    return list(rows.read(str(path), asked, TableFormat(**form), layout))


def texts(found: list[Any]) -> list[Any]:
    return [values[0] if values else problem for _, values, problem in found]


def written(tmp_path: Path, name: str, data: bytes | str) -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- CSV -----------------------------------------------------------------------------------------


def test_an_open_quote_costs_its_own_line(tmp_path: Path) -> None:
    good = [f"{n},a red house {n}" for n in range(2000)]
    lines = ["id,caption", *good[:7], '7b,"open by mistake', *good[7:]]
    found = read(written(tmp_path, "c.csv", "\n".join(lines) + "\n"))
    assert [row for row in found if row[1] is None] == [
        (9, None, "not CSV: a quote is never closed")
    ]
    assert texts([row for row in found if row[1]]) == [line.split(",")[1] for line in good]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_open_quotes_cost_their_own_lines_whatever_is_around(data: st.DataObject) -> None:
    """Sound rows around them, quoted, with quotes in them or plain, all come back."""
    sound = st.sampled_from(["plain", '"in, quotes"', 'an 8" pipe', '"a ""word"" in it"', "x y"])
    bad = st.just('"open')
    kinds = data.draw(st.lists(st.one_of(sound, sound, bad), min_size=1, max_size=12))
    text = "".join(f"{kind},{n}\n" for n, kind in enumerate(kinds))
    held = Held("c.csv", ("caption,n\n" + text).encode())
    found = list(rows.read(held, Asked("caption", "n")))
    plain = {'"in, quotes"': "in, quotes", '"a ""word"" in it"': 'a "word" in it'}
    expected = [
        (n + 2, None if kind == '"open' else plain.get(kind, kind)) for n, kind in enumerate(kinds)
    ]
    assert [(line, values[0] if values else None) for line, values, _ in found] == expected


def test_a_field_may_span_lines(tmp_path: Path) -> None:
    found = read(written(tmp_path, "c.csv", 'id,caption\n1,"two\nlines"\n2,one\n'))
    assert found == [(2, ("two\nlines",), None), (4, ("one",), None)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    for name, text in {
        "c.csv": "id,caption\n1,ein Käfer\n",
        "c.jsonl": '{"caption": "ein Käfer"}\n',
        "c.json": json.dumps([{"caption": "ein Käfer"}], ensure_ascii=False, indent=1),
    }.items():
        assert texts(read(written(tmp_path, name, text.encode(encoding)))) == ["ein Käfer"]


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path: Path, order: str) -> None:
    path = written(tmp_path, "c.csv", "id,caption\n1,a beetle in the grass\n".encode(order))
    with pytest.raises(AigiError, match=r"c\.csv: not UTF-8: .*utf-16-le or utf-16-be"):
        read(path)
    assert texts(read(path, encoding=order)) == ["a beetle in the grass"]


def test_bytes_of_another_encoding_cost_their_row(tmp_path: Path) -> None:
    path = written(tmp_path, "c.csv", "caption\na house\nein Käfer\na tree\n".encode("latin-1"))
    assert texts(read(path)) == ["a house", "invalid UTF-8", "a tree"]
    assert texts(read(path, encoding="latin-1")) == ["a house", "ein Käfer", "a tree"]
    bad = written(tmp_path, "d.csv", b"caption\na house\n\x81\x20\nb\n")
    assert texts(read(bad, encoding="gb18030")) == ["a house", "invalid UTF-8", "b"]
    for name in ("no-such", "base64", "rot13"):
        with pytest.raises(ValidationError, match="encoding"):
            TableFormat(encoding=name)


def test_settings_of_a_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "c.csv", 'x#"say "hi"#1\ny#b#2\n')
    found = read(path, delimiter="#", header=("url", "caption", "n"), quoting=False)
    assert texts(found) == ['"say "hi"', "b"]
    path = written(tmp_path, "d.tsv", "u\ta house\nv\ta tree\n")
    assert texts(read(path, header=("url", "caption"))) == ["a house", "a tree"]
    with pytest.raises(AigiError, match=r"d\.tsv: text: no such column\. Set text_column to one"):
        read(path, Asked("text"), header=("url", "caption"))


def test_csv_of_spreadsheets(tmp_path: Path) -> None:
    old = written(tmp_path, "old.csv", 'id,caption\r1,a house\r2,"a tree, green"\r')
    assert read(old) == [(2, ("a house",), None), (3, ("a tree, green",), None)]
    told = written(tmp_path, "told.csv", "sep=;\r\nid;caption\r\n1;a house, red\r\n")
    assert read(told) == [(3, ("a house, red",), None)]
    spaced = written(tmp_path, "spaced.csv", "id, caption \n1,a house\n")
    assert texts(read(spaced)) == ["a house"]


# --- JSON ----------------------------------------------------------------------------------------


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    odd = "a house\u2028by the sea\u2029\x85\x0b\x0c"
    data = "".join(json.dumps({"caption": t}, ensure_ascii=False) + "\n" for t in (odd, "b"))
    assert texts(read(written(tmp_path, "c.jsonl", data))) == [odd, "b"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
def test_an_array_is_read_whole(tmp_path: Path, name: str, indent: int | None) -> None:
    records: list[Any] = [{"caption": "a"}, 7, {"caption": None}, {"caption": "b", "n": 1}]
    path = written(tmp_path, name, json.dumps(records, indent=indent))
    assert texts(read(path)) == ["a", "expected an object, found int", None, "b"]


def test_json_that_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"c\.json: not JSON"):
        read(written(tmp_path, "c.json", '[{"caption": "a"},\n{"caption": "b"\n'))
    with pytest.raises(AigiError, match=r"caption: no such column\. Set text_column to"):
        read(written(tmp_path, "d.jsonl", '{"text": "a"}\n{"text": "b"}\n'))
    with pytest.raises(AigiError, match="expected a COCO captions file"):
        read(written(tmp_path, "e.json", '{"images": [{"id": 1}]}'))


COCO = {
    "images": [{"id": 9, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "one"},
        {"image_id": 9, "caption": "two"},
        {"image_id": 7, "caption": "three"},
        {"image_id": 5, "caption": "four"},
        8,
    ],
}
KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "one"}, {"raw": "two"}]},
        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "three"}]},
        {"filename": "c.jpg", "split": "test"},
    ],
    "dataset": "coco",
}


@pytest.mark.parametrize("layout", [None, "coco"])
def test_coco_files(tmp_path: Path, layout: str | None) -> None:
    official = written(tmp_path, "coco.json", json.dumps(COCO))
    not_one = "expected an object, found int"
    assert texts(read(official, layout=layout)) == ["one", "two", "three", "four", not_one]
    assert read(official, BOTH, layout) == [
        (4, None, "image_id: 5: no such image under the key 'images'"),
        (5, None, not_one),
        (1, (["one", "three"], "b.jpg"), None),
        (2, ("two", "a.jpg"), None),
    ]
    splits = written(tmp_path, "dataset_coco.json", json.dumps(KARPATHY, indent=2))
    none = "no list under the key 'sentences'"
    assert texts(read(splits, layout=layout)) == ["one", "two", "three", none]
    assert read(splits, Asked("caption", "file", "split"), layout) == [
        (1, (["one", "two"], "a.jpg", "train"), None),
        (2, ("three", "b.jpg", "validation"), None),
        (3, None, none),
    ]


def test_a_list_of_captions_is_never_turned_into_text() -> None:
    two = ["a", "b"]
    assert texts_of("c", two, "first") == ["a"]
    assert texts_of("c", two, "all") == ["a b"]
    assert texts_of("c", two, "rows") == two
    assert texts_of("c", ["a"], None) == ["a"]
    value: Any
    for value in (two, [], ["a", 1], [["a"]], {"en": "a"}, 3, None, True):
        assert isinstance(texts_of("c", value, None), str)
    for value in ([], ["a", None], {"en": "a"}):
        for how in ("first", "all", "rows"):
            assert isinstance(texts_of("c", value, how), str)


# --- parquet, packed files, shards ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
     pa.dictionary(pa.int32(), pa.large_string())],
)  # fmt: skip
def test_every_type_of_text_in_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["a", None, "b"]).cast(kind)
    pq.write_table(pa.table({"n": [1, 2, 3], "caption": column}), tmp_path / "c.parquet")
    assert texts(read(tmp_path / "c.parquet")) == ["a", None, "b"]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view])
def test_every_type_of_list_in_parquet(tmp_path: Path, kind: Any) -> None:
    column = pa.array([["a", "b"], None, []], kind(pa.string()))
    pq.write_table(pa.table({"caption": column}), tmp_path / "c.parquet")
    assert texts(read(tmp_path / "c.parquet")) == [["a", "b"], None, []]


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("ending", PACKED)
def test_packed_files(tmp_path: Path, ending: str) -> None:
    texts_in = [f"a house with {n * n} windows" for n in range(5000)]
    whole = PACKED[ending](("caption\n" + "\n".join(texts_in) + "\n").encode())
    path = written(tmp_path, f"c.csv{ending}", whole)
    assert texts(read(path)) == texts_in
    path.write_bytes(whole[: len(whole) // 2])
    *before, (_, values, problem) = read(path)
    assert values is None and "the file breaks off here" in problem
    assert texts(before) == texts_in[: len(before)]
    # Two in one file, as programs that append write them.
    path.write_bytes(PACKED[ending](b"caption\na\n") + PACKED[ending](b"b\n"))
    assert texts(read(path)) == ["a", "b"]


def test_a_folder_and_a_pattern_are_their_files(tmp_path: Path) -> None:
    for name in ("part-1.csv", "part-0.csv.gz", "deep/part-2.tsv", "notes.md", "_part.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"x")
    where = str(tmp_path)
    names = ["deep/part-2.tsv", "part-0.csv.gz", "part-1.csv"]
    assert files_of(where, {".csv", ".tsv"}) == [(f"{where}/{name}", name) for name in names]
    assert [name for _, name in files_of(f"{where}/*.csv*", ())] == [
        "_part.csv", "part-0.csv.gz", "part-1.csv",
    ]  # fmt: skip
    assert [name for _, name in files_of(f"{where}/**/*.tsv", ())] == ["deep/part-2.tsv"]
    assert files_of(f"{where}/part-1.csv", ()) == [(f"{where}/part-1.csv", "part-1.csv")]
    odd = written(tmp_path, "a[1].csv", "x")  # a name, although it could be a pattern
    assert files_of(str(odd), ()) == [(str(odd), "a[1].csv")]
    with pytest.raises(AigiError, match="no file fits this pattern"):
        files_of(f"{where}/*.parquet", ())
    with pytest.raises(AigiError, match=r"a folder without a file that ends in \.parquet"):
        files_of(where, {".parquet"})
    before = content_of(where, {".csv"})
    written(tmp_path, "part-1.csv", "y")  # of the same length
    assert content_of(where, {".csv"}) != before


def test_shards_at_a_url() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe_file(f"/shards-of-rows/c-{number}.csv", b"caption\nx\n")
    found = files_of("memory://shards-of-rows/*.csv", ())
    assert [name for _, name in found] == ["c-0.csv", "c-1.csv"]
    assert [texts(list(rows.read(place, TEXT))) for place, _ in found] == [["x"], ["x"]]


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("/a/b-*.csv", "/a/"), ("b-?.csv", ""), ("/a/**/b.csv", "/a/"), ("/a*/b/c.csv", "/"),
        ("/a/b.csv", None), ("s3://x/a/b-*.csv", "s3://x/a/"), ("s3://x/[ab]/c.csv", "s3://x/"),
        ("s3://x/b.csv?versionId=1", None), ("https://x.y/b.csv?sig=a*b[c", None),
    ],
)  # fmt: skip
def test_what_is_a_pattern(path: str, start: str | None) -> None:
    assert fixed_part(path) == start


def test_an_ending_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"c\.xlsx: captions are read from \.csv, \.tsv"):
        read(written(tmp_path, "c.xlsx", "x"))
