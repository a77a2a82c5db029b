"""Marks found where they are, not found where they are not, in files and in a release."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.marks import visible
from pipeline.marks.detection import chance, detect, robustness, search
from pipeline.marks.dwt_dct import BITS, READ, message_bits, read_message
from pipeline.marks.names import embed, parse
from pipeline.pixels import decode, png_bytes
from pipeline.store import Store
from tests.marks.test_watermark import picture

TEXT = "visible:text=AI generated,position=bottom-right,opacity=0.3,scale=0.3"


def photo(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    """Smooth colours under a little noise."""
    rng = np.random.default_rng(seed)
    smooth = picture(height, width, seed, "smooth").astype(int)
    noisy: np.ndarray[Any, Any] = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255)
    return noisy.astype(np.uint8)


def test_chance_is_binomial() -> None:
    assert chance(0, 0) == chance(0, 48) == 1
    assert chance(48, 48) == 2**-48
    assert chance(2, 3) == 0.5
    assert chance(24, 48) == pytest.approx(0.5573, abs=1e-4)


def test_bits_are_read_as_in_the_package() -> None:
    assert read_message(np.array([0.0, 0.49, 0.5, 1.0, np.nan])) == "0011."


@pytest.mark.parametrize("name", READ)
def test_a_marked_picture_says_so(name: str) -> None:
    found = detect(embed(photo(256, 320, 1), name), name)
    assert found.bit_accuracy is not None and found.bit_accuracy > 0.85
    assert found.p_value < 1e-7
    assert found.match is None
    right = [a == str(b) for a, b in zip(found.bits, message_bits().tolist(), strict=True)]
    assert found.bit_accuracy == sum(right) / BITS
    assert found.whole == all(right)
    other = detect(embed(photo(256, 320, 1), name), next(n for n in READ if n != name))
    assert other.p_value > 1e-4


def test_the_whole_message_needs_every_bit() -> None:
    assert detect(embed(photo(64, 64, 1), "dwt-dct-svd"), "dwt-dct-svd").whole is True
    small = detect(embed(photo(40, 48, 1), "dwt-dct-svd"), "dwt-dct-svd")
    assert small.bits.count(".") == 48 - 30
    assert (small.bit_accuracy, small.whole) == (1.0, False)
    assert small.p_value == 2**-30
    none = detect(photo(7, 300, 1), "dwt-dct")
    assert (none.bit_accuracy, none.p_value, none.whole) == (None, 1.0, False)


@pytest.mark.parametrize("name", [*READ, TEXT])
def test_p_values_of_unmarked_pictures_are_about_uniform(name: str) -> None:
    found = np.array([detect(picture(96, 96, seed, "noise"), name).p_value for seed in range(200)])
    for level in (0.05, 0.2, 0.5):
        # 200 tosses: three standard deviations; a rank or a count has steps, so it may be less.
        assert (found <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 200)
    assert (found <= 0.3).mean() > 0.1
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("position", visible.POSITIONS)
def test_a_visible_mark_is_found_at_its_place_alone(position: str) -> None:
    name = TEXT.replace("bottom-right", position)
    rgb = photo(200, 300, 4)
    here = detect(embed(rgb, name), name)
    assert here.match is not None and here.match > 0.5
    assert here.p_value < 0.02
    assert (here.bits, here.bit_accuracy, here.whole) == ("", None, None)
    elsewhere = detect(embed(rgb, TEXT.replace("bottom-right", "top")), TEXT)
    assert elsewhere.p_value > here.p_value and (elsewhere.match or 0) < here.match


def test_the_mark_is_not_compared_with_itself() -> None:
    # Without a margin its own place is one of the 5x5 looked at; 2x2 of them touch the mark.
    found = detect(embed(photo(48, 200, 4), TEXT), TEXT)
    assert found.p_value == 1 / 22


def test_a_mark_that_leaves_no_other_place_proves_nothing(tmp_path: Path) -> None:
    name = TEXT.replace("0.3", "1")
    assert detect(embed(photo(40, 100, 1), name), name).p_value > 0.2
    flat = detect(np.full((50, 50, 3), 7, np.uint8), TEXT)
    assert (flat.match, flat.p_value) == (None, 1.0)
    Image.new("RGB", (8, 8), (128, 128, 128)).save(tmp_path / "grey.png")
    plain = str(parse("visible:logo=grey.png", tmp_path))
    assert detect(photo(50, 50, 1), plain).match is None


def test_none_cannot_be_looked_for() -> None:
    with pytest.raises(ValueError, match="none: leaves no mark; use dwt-dct, dwt-dct-svd"):
        detect(photo(8, 8, 0), "none")


# --- command line -----------------------------------------------------------------------------


def aigi(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with and without a mark, and two files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    rgb = photo(128, 128, 5)
    for name in ("none", "dwt-dct-svd"):
        (root / f"{name}.png").write_bytes(png_bytes(embed(rgb, name)))
    (root / "cut.png").write_bytes(png_bytes(rgb)[:500])
    (root / "zero.jpg").write_bytes(b"")
    return root


def test_detect_prints_a_line_for_every_picture_and_variant(folder: Path) -> None:
    done = aigi(
        "watermark", "detect", "--csv", *(folder / f"{n}.png" for n in ("none", "dwt-dct-svd")),
        "--variant", "dwt-dct-svd", "--variant", "dwt-dct",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = lines(done.stdout)
    assert [(Path(row["file"]).stem, row["variant"]) for row in rows] == [
        ("none", "dwt-dct-svd"),
        ("none", "dwt-dct"),
        ("dwt-dct-svd", "dwt-dct-svd"),
        ("dwt-dct-svd", "dwt-dct"),
    ]
    assert [row["whole"] for row in rows] == ["False", "False", "True", "False"]
    assert float(rows[2]["p_value"]) == 2**-48 and rows[2]["bit_accuracy"] == "1.0"
    assert all(row["stated"] == row["match"] == row["error"] == "" for row in rows)


def test_a_bad_file_is_a_line_and_not_the_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    done = aigi(
        "watermark", "detect", "--csv", folder / "absent.png", folder, tmp_path / "bad.parquet",
        folder / "none.png", "--variant", "dwt-dct",
    )  # fmt: skip
    rows = {Path(row["file"]).name: row["error"] for row in lines(done.stdout)}
    assert list(rows) == [
        "absent.png", "cut.png", "dwt-dct-svd.png", "none.png", "zero.jpg", "bad.parquet",
    ]  # fmt: skip
    assert rows["absent.png"] == "no such picture"
    assert rows["cut.png"] == "truncated" and rows["zero.jpg"] == "empty"
    assert "not readable as parquet" in rows["bad.parquet"]
    assert rows["none.png"] == rows["dwt-dct-svd.png"] == ""
    assert len(lines(done.stdout)) == 7
    assert done.exit_code == 1
    assert "error: 4 of 7 lines have an error" in done.stderr


def test_the_table_says_the_same(folder: Path) -> None:
    done = aigi("watermark", "detect", folder)
    assert done.exit_code == 1
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    (svd,) = [row for row in rows if len(row) > 2 and row[3] == "dwt-dct-svd" and "svd" in row[1]]
    assert svd[4:8] == ["1.000", "", "3.6e-15", "yes"]
    assert any("truncated" in row for row in rows)


def test_a_wrong_variant_is_an_error_with_its_remedy(folder: Path) -> None:
    done = aigi("watermark", "detect", folder, "--variant", "dwt")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: 'dwt' is no watermark; use none, dwt-dct" in done.stderr


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of imported pictures, each in five variants, one with a logo."""
    root = tmp_path_factory.mktemp("release")
    (root / "pictures").mkdir()
    captions = ["file,text,split"]
    for i, split in enumerate(("train", "train", "test")):
        (root / "pictures" / f"{i}.png").write_bytes(png_bytes(photo(128, 136 + i, i)))
        captions.append(f"{i}.png,a castle number {i} on a hill,{split}")
    (root / "pictures" / "captions.csv").write_text("\n".join(captions) + "\n")
    mark = np.zeros((16, 32, 4), np.uint8)
    mark[4:12, 4:20] = (250, 240, 20, 255)
    Image.fromarray(mark).save(root / "mark.png")
    marks = ["none", *READ, TEXT, "visible:logo=mark.png,opacity=0.8,scale=0.3"]
    split_spec = {"watermarks": marks}
    source = {
        "title": "MJ",
        "licence": "l",
        "kind": "import",
        "model": "closed",
        "splits": {"train": split_spec, "test": split_spec},
    }
    dataset = {"name": "marked", "title": "t", "licence": "l", "sources": {"mj": source}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    place = {
        "kind": "import",
        "path": "pictures",
        "captions": "pictures/captions.csv",
        "split_column": "split",
    }
    flow = {
        "run": "run",
        "plan": {"dataset": "dataset.yaml"},
        "sources": {"mj": place},
        "images": {},
        "release": {},
    }
    (root / "flow.yaml").write_text(yaml.safe_dump(flow))
    done = aigi("run", root / "flow.yaml", "--quiet")
    assert done.exit_code == 0, done.output
    return root


def test_an_import_has_its_variants_in_the_release(release: Path) -> None:
    store = Store(str(release / "run" / "release"))
    rows = [row for name in store.shards("") for row in store.read("", name).to_pylist()]
    assert len(rows) == 15
    plain = {row["image_id"]: row for row in rows if row["watermark"] == "none"}
    for row in rows:
        before = plain[row["pair_id"]]
        original = (release / "pictures" / before["path"]).read_bytes()
        assert before["image"]["bytes"] == original, "unmarked, it is kept byte for byte"
        expected = embed(decode(original, 10**6).rgb, row["watermark"])
        np.testing.assert_array_equal(decode(row["image"]["bytes"], 10**6).rgb, expected)
    assert set(Counter(row["watermark"] for row in rows).values()) == {3}


def test_detect_reads_a_release_beside_what_it_states(release: Path) -> None:
    folder = release / "run" / "release"
    done = aigi("watermark", "detect", folder, "--csv", "--logo", release / "mark.png")
    assert done.exit_code == 0, done.output
    rows = lines(done.stdout)
    # Both messages in each of 15 pictures, and the stated visible mark in 6 of them.
    assert len(rows) == 36
    assert all(".parquet/" in row["file"] for row in rows)
    for row in rows:
        # An imported PNG that carries no mark is kept as it came.
        assert row["file"].endswith(".png" if row["stated"] == "none" else ".webp")
        stated = row["stated"] == row["variant"]
        if row["variant"].startswith("visible"):
            assert stated and float(row["p_value"]) < 0.1 and float(row["match"]) > 0.5
        elif row["stated"] in READ:
            assert (float(row["p_value"]) < 1e-3) == stated
    (file,) = (folder / "mj").glob("test-*.parquet")
    part = aigi("watermark", "detect", file, "--csv", "--logo", release / "mark.png")
    assert lines(part.stdout) == [row for row in rows if "/test-" in row["file"]]


def test_a_logo_that_is_not_here_is_named(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible, "_logos", {})
    errors = Counter(found.error for found in search([str(release / "run" / "release")]))
    assert errors == {"": 33, "logo=mark.png: no file with this sha256 was given (--logo FILE)": 3}


def test_a_parquet_file_of_others_is_read(tmp_path: Path) -> None:
    rgb = embed(photo(128, 128, 5), "dwt-dct-svd")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png_bytes(rgb), "path": "a.png"}, {"bytes": b"", "path": "b.png"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "x.parquet")
    found = list(search([str(tmp_path / "x.parquet")], ("dwt-dct-svd",)))
    assert [(line.stated, line.whole, line.error) for line in found] == [
        ("", True, ""),
        ("", None, "empty"),
        ("", None, "the row holds no bytes"),
    ]


def test_robustness_counts_what_survives(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png_bytes(photo(192, 256, i)))
    (tmp_path / "small.png").write_bytes(png_bytes(photo(20, 20, 1)))
    (tmp_path / "zero.png").write_bytes(b"")
    said: list[str] = []
    found = {
        (line.variant, line.after): line for line in robustness(str(tmp_path), None, said.append)
    }
    assert said == [
        "small.png: skipped: 20x20 holds fewer than 48 bits",
        "zero.png: skipped: empty",
    ]
    assert all(line.pictures == 3 for line in found.values())
    svd = {after: line for (variant, after), line in found.items() if variant == "dwt-dct-svd"}
    assert (svd["nothing"].whole, svd["nothing"].bit_accuracy) == (1.0, 1.0)
    accuracies = [svd[f"JPEG {quality}"].bit_accuracy for quality in (90, 75, 50)]
    assert accuracies == sorted(accuracies, reverse=True)
    for variant in READ:
        assert found[variant, "not marked"].whole == 0
        assert 0.3 < found[variant, "not marked"].bit_accuracy < 0.7
        marked = [found[variant, f"JPEG {q}"].bit_accuracy for q in (90, 50)]
        assert found[variant, "nothing"].bit_accuracy >= marked[0] > 0.4
        assert 0.3 < found[variant, "a tenth cut off each side"].bit_accuracy < 0.7
    done = aigi("watermark", "robustness", tmp_path, "--limit", 2, "--csv")
    assert done.exit_code == 0, done.output
    assert {row["pictures"] for row in lines(done.stdout)} == {"2"}
    assert len(lines(done.stdout)) == len(found) == 14
