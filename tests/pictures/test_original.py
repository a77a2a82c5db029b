"""The original release in every layout that it may have; everything refused has its reason."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.pictures import original
from pipeline.pictures.lists import list_captions
from pipeline.pictures.names import Caption, Escapes
from pipeline.pictures.original import SUBFOLDERS, OriginalPictures
from pipeline.pictures.sources import OriginalSource
from tests.pictures.test_volumes import split, write_volumes, zipped

Layout = Mapping[str, bytes | Mapping[str, bytes]]


def lay(root: Path, layout: Layout) -> Path:
    """Write files, and an archive for each mapping."""
    for name, content in layout.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else zipped(dict(content)))
    return root


def source(root: Path, subfolder: str = "SD-XL") -> OriginalSource:
    values = {"kind": "pku", "path": str(root), "subfolder": subfolder}
    return OriginalSource.model_validate(values)


def listed(root: Path, subfolder: str = "SD-XL") -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """Caption by picture (variants too), and (place, reason, line) of what is refused."""
    good: dict[str, str] = {}
    bad = []
    for caption in list_captions(source(root, subfolder)):
        assert isinstance(caption, Caption)
        if caption.problem is None:
            for name in (caption.variants or {"none": caption.name}).values():
                assert caption.text is not None
                good[name] = caption.text
        else:
            bad.append((caption.name, caption.problem, caption.line))
    return good, bad


TEXTS = {"train.txt": b"one\ntwo\n", "vaild.txt": b"v one\n", "test.txt": b"t one\nt two\n"}
PICTURES = {
    "train/1_0.png": b"a",
    "train/1_1.png": b"b",
    "train/2_0.png": b"c",
    "val/1_0.png": b"d",
    "test/1.png": b"e",
    "test/2.png": b"f",
}
SHOWN = {
    "SD-XL/train/1_0.png": "one",
    "SD-XL/train/1_1.png": "one",
    "SD-XL/train/2_0.png": "two",
    "SD-XL/val/1_0.png": "v one",
    "SD-XL/test/1.png": "t one",
    "SD-XL/test/2.png": "t two",
}
BYTES = dict(zip(SHOWN, PICTURES.values(), strict=True))


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def without(part: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if part not in name}


LAYOUTS: dict[str, Layout] = {
    "unpacked": below("SD-XL", PICTURES | TEXTS),
    "archive repeats the folder": {"SD-XL/SD-XL.zip": below("SD-XL", PICTURES | TEXTS)},
    "archive does not": {"SD-XL/SD-XL.zip": PICTURES | TEXTS},
    "archive has another folder": {"SD-XL/SD-XL.zip": below("out/SDXL", PICTURES | TEXTS)},
    "texts beside the archive": {"SD-XL/SD-XL.zip": PICTURES, **below("SD-XL", TEXTS)},
    "texts at the root": {"SD-XL/SD-XL.zip": PICTURES, "MJ.zip": PICTURES, **TEXTS},
    "texts at the root and in a source": {"SD-XL/SD-XL.zip": PICTURES | TEXTS, **TEXTS},
    "texts in the split folders": {
        "SD-XL/SD-XL.zip": PICTURES,
        "SD-XL/train/train.txt": TEXTS["train.txt"],
        "SD-XL/val/vaild.txt": TEXTS["vaild.txt"],
        "SD-XL/test/test.txt": TEXTS["test.txt"],
    },
    "texts in every part": {
        "SD-XL/SD-XL-part1.zip": without("_1", PICTURES) | TEXTS,
        "SD-XL/SD-XL-part2.zip": {"train/1_1.png": b"b"} | TEXTS,
    },
    "archives side by side": {
        "SD-XL.zip": PICTURES | TEXTS,
        "MOD.zip": PICTURES | TEXTS,
    },
    "validation of all in one": {
        "SD-XL/SD-XL.zip": without("val", PICTURES) | TEXTS,
        "vaild.zip": {"vaild/SD-XL/1_0.png": b"d", "vaild/MJ/1_0.png": b"z"},
    },
    "validation unpacked": {
        "SD-XL/SD-XL.zip": without("val", PICTURES) | without("vaild", TEXTS),
        "vaild/SD-XL/val/1_0.png": b"d",
        "vaild/SD-XL/valid.txt": b"v one",
        "vaild/MJ/val/1_0.png": b"z",
    },
    "unpacked beside the archive": {
        "SD-XL/SD-XL.zip": PICTURES | TEXTS,
        **below("SD-XL", PICTURES | TEXTS),
        "SD-XL/train/2_0.png": b"",  # unpacking was broken off
    },
    "other spellings": {
        "SD-XL/SD-XL.zip": {
            "SD_XL\\Train\\1_0.PNG": b"a",
            "SD_XL\\Train\\01_1.png": b"b",
            "train_part2/2_0.png": b"c",
            "Validation/1_0.png": b"d",
            "TEST/test.txt": b"\xef\xbb\xbft one\r\nt two",
            "TEST/1.png": b"e",
            "TEST/2.png": b"f",
            "Train.TXT": b"one\r\ntwo\r\n",
            "val.txt": b"v one",
        }
    },
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_is_the_same_release(tmp_path: Path, layout: Layout) -> None:
    root = lay(tmp_path, layout)
    assert listed(root) == (SHOWN, [])
    with OriginalPictures(source(root)) as pictures:
        assert {name: pictures.read(name) for name in SHOWN} == BYTES
        assert pictures.head("SD-XL/train/1_0.png", 10) == b"a"
        for name in ("SD-XL/train/9_0.png", "../x.png", "train/1_0.png"):
            with pytest.raises(MachineFault, match="not in the release any more"):
                pictures.read(name)


@pytest.mark.parametrize("zip64", [False, True])
def test_an_archive_in_volumes(tmp_path: Path, zip64: bool) -> None:
    data = zipped(below("SD21", PICTURES | TEXTS), zip64=zip64)
    path = write_volumes(split(data, [0.2, 0.5, 0.9], zip64), tmp_path / "SD-2_1" / "SD21.zip")
    good, bad = listed(tmp_path, "SD-2_1")
    assert (list(good.values()), bad) == (list(SHOWN.values()), [])
    path.unlink()
    with pytest.raises(AigiError, match=r"SD21\.zip: missing\. SD21\.z01 is a volume"):
        listed(tmp_path, "SD-2_1")
    lay(tmp_path, {"MJ/MJ.zip": PICTURES | TEXTS})
    assert listed(tmp_path, "MJ")[1] == [], "another source's volumes are its own matter"


def test_pictures_come_in_the_order_of_the_archive(tmp_path: Path) -> None:
    """That of the pictures in it, which need not be the order of its directory."""
    order = [f"train/{n}_0.png" for n in (7, 10, 1, 2)]
    (tmp_path / "MJ").mkdir()
    with zipfile.ZipFile(tmp_path / "MJ" / "MJ.zip", "w") as archive:
        for name in order:
            archive.writestr(name, b"x")
        archive.writestr("train.txt", b"a\n" * 10)
        archive.filelist.sort(key=lambda info: info.filename)
    assert [name.removeprefix("MJ/") for name in listed(tmp_path, "MJ")[0]] == order


def test_captions_that_are_not_there(tmp_path: Path) -> None:
    """An empty line is a line: those behind it keep their numbers."""
    lines = [
        b"one",
        b"",
        b"  ",
        b"f\xfcnf",
        b"five \xe2\x80\xa8more",
        b"six",
        b"seven",
        b"\t",
        b"\xfc",
    ]
    text = b"\xef\xbb\xbf" + b"\r\n".join(lines)
    files = {f"train/{n}_0.png": b"%d" % n for n in (0, 1, 2, 3, 4, 5, 7, 10)}
    lay(tmp_path, {"MOD/MOD.zip": {**files, "train.txt": text, "val/1_0.png": b"x"}})
    good, bad = listed(tmp_path, "MOD")
    assert good == {
        "MOD/train/1_0.png": "one",
        "MOD/train/5_0.png": "five \u2028more",
        "MOD/train/7_0.png": "seven",
    }
    where = "MOD/MOD.zip/train.txt"
    assert bad == [
        ("MOD/train/0_0.png", f"no caption: {where} has lines 1 to 9", 0),
        ("MOD/train/2_0.png", f"no caption: {where}: the line is empty", 2),
        ("MOD/train/3_0.png", f"no caption: {where}: the line is empty", 3),
        ("MOD/train/4_0.png", f"no caption: {where}: invalid UTF-8", 4),
        ("MOD/train/10_0.png", f"no caption: {where} has lines 1 to 9", 10),
        ("MOD/val/1_0.png", "no caption: there is no val.txt", 1),
        (where, "no picture of this line", 6),
        (where, "no picture of this line", 9),
    ]


def test_files_that_do_not_belong_there(tmp_path: Path) -> None:
    stray = "stray file: neither a picture nor a text of the release"
    train, test = "wrong name: a train picture is LINE_INDEX.png", "wrong name: a test picture is"
    refused = {
        "train/Thumbs.db": stray,
        "__MACOSX/train/._1_0.png": stray,
        "train/.DS_Store": stray,
        ".hidden/1_0.png": stray,
        "._MJ.zip": stray,  # beside an archive that was copied on a Mac
        "__MACOSX/._MJ.z01": stray,
        "notes.txt": "stray file: not train.txt, vaild.txt or test.txt",
        "cover.png": "no split: none of train, val or test on its way",
        "train/1.png": train,
        "train/1_0_2.png": train,
        "train/1_0.jpg": train,
        "train/-1_0.png": train,
        "train/1_0 (1).png": train,
        f"train/{'9' * 40}_0.png": train,
        "train/\u0661_0.png": train,  # a digit, of another script
        "test/1_0.png": f"{test} LINE.png",
        "test/one.png": f"{test} LINE.png",
    }
    extra = dict.fromkeys(refused, b"x")
    for layout, prefix in (
        ({"MJ/MJ.zip": PICTURES | TEXTS | extra}, "MJ/MJ.zip"),
        (below("MJ", PICTURES | TEXTS | extra), "MJ"),
    ):
        root = lay(tmp_path / prefix.replace("/", "-"), layout)
        good, bad = listed(root, "MJ")
        assert len(good) == len(SHOWN)
        assert {place: why for place, why, _ in bad} == {
            f"{prefix}/{name}": why for name, why in refused.items()
        }
        assert {line for _, _, line in bad} == {None}


def test_what_belongs_to_no_source_is_shown_once(tmp_path: Path) -> None:
    shared = {"Thumbs.db": b"x", "1_0.png": b"x", "MOD/Thumbs.db": b"x"}
    lay(
        tmp_path,
        {
            "vaild.zip": shared | {f"{name}/val/1_0.png": b"x" for name in ("MOD", "SD-XL", "MJ")},
            "README.md": b"what a download brings along",
            ".cache/huggingface/x.png": b"x",
            "MJ/vaild.txt": b"v",
            "SD-XL/vaild.txt": b"v",
            "MOD/vaild.txt": b"v",
        },
    )
    found = {name: listed(tmp_path, name) for name in ("MOD", "SD-XL", "MJ")}
    assert all(list(good.values()) == ["v"] for good, _ in found.values())
    assert [place for place, _, _ in found["MOD"][1]] == ["vaild.zip/MOD/Thumbs.db"]
    assert found["MJ"][1] == []
    assert [(place, why.split(":")[0]) for place, why, _ in found["SD-XL"][1]] == [
        ("vaild.zip/Thumbs.db", "stray file"),
        ("vaild.zip/1_0.png", "no source"),
    ]


def test_one_name_in_two_archives(tmp_path: Path) -> None:
    """Equal pictures: the first stays. Different ones: neither, for which is meant is unknown."""
    one, two, val = "SD-2_1-B/SD-2_1-B-part1.zip", "SD-2_1-B/SD-2_1-B-part2.zip", "vaild.zip"
    lay(
        tmp_path,
        {
            one: PICTURES | TEXTS,
            two: {"train/1_0.png": b"a", "train/2_0.png": b"other"},
            val: {"SD-2_1-B/val/1_0.png": b"d", "SD-2_1-B/train/2_0.png": b"c"},
            # Unpacked, it is there once more, and says nothing about which is the right one.
            "SD-2_1-B/train/2_0.png": b"c",
            # A train.txt of equal lines is no contradiction.
            "SD-2_1-B/train.txt": b"\xef\xbb\xbfone\r\ntwo",
        },
    )
    good, bad = listed(tmp_path, "SD-2_1-B")
    names = {name.replace("SD-XL", "SD-2_1-B") for name in SHOWN}
    assert set(good) == names - {"SD-2_1-B/train/2_0.png"}
    other = f"{val}/SD-2_1-B/train/2_0.png"
    assert sorted(bad) == sorted(
        [
            (other, f"twice: another picture than {one}/train/2_0.png", 2),
            (f"{one}/train/2_0.png", f"twice: another picture than {other}", 2),
            (f"{two}/train/2_0.png", f"twice: another picture than {other}", 2),
            (f"{two}/train/1_0.png", f"twice: the same picture as {one}/train/1_0.png", 1),
            (f"{one}/val/1_0.png", f"twice: the same picture as {val}/SD-2_1-B/val/1_0.png", 1),
        ]
    )


def test_texts_that_differ_are_named(tmp_path: Path) -> None:
    lay(tmp_path, {"MJ/MJ.zip": PICTURES | TEXTS, "MJ/train.txt": b"one\nzwei\n"})
    with pytest.raises(
        AigiError, match=r"MJ/MJ\.zip/train\.txt and MJ/train\.txt differ.*MJ train"
    ):
        listed(tmp_path, "MJ")


def test_texts_at_the_root_are_for_every_source(tmp_path: Path) -> None:
    root = lay(tmp_path, {"SD-XL.zip": PICTURES, "MJ.zip": without("val", PICTURES), **TEXTS})
    good, bad = listed(root)
    assert good == SHOWN and not bad
    good, bad = listed(root, "MJ")
    assert good == {
        name.replace("SD-XL", "MJ"): text for name, text in SHOWN.items() if "val" not in name
    }
    assert not bad  # the text of a split without images is none of its business
    (root / "SD-XL").mkdir()
    (root / "SD-XL/train.txt").write_bytes(b"another\n")
    with pytest.raises(AigiError, match=r"SD-XL/train\.txt and train\.txt differ"):
        listed(root)
    listed(root, "MJ")


def test_a_damaged_text_is_passed_over_where_there_is_another(tmp_path: Path) -> None:
    lay(tmp_path, {"MJ/MJ.zip": PICTURES | TEXTS, "MJ/train.txt": TEXTS["train.txt"]})
    path = tmp_path / "MJ" / "MJ.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (PICTURES | TEXTS).items():
            archive.writestr(name, data)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"one\ntwo\n", b"one\ntwi\n", 1))
    good, bad = listed(tmp_path, "MJ")
    assert len(good) == len(SHOWN)
    assert [(place, why.split(":")[0]) for place, why, _ in bad] == [
        ("MJ/MJ.zip/train.txt", "damaged in the archive")
    ]


PAIRS: dict[str, tuple[str, str]] = {
    "a folder inside": ("test/1.png", "test/watermark/1.png"),
    "two folders inside": ("test/no_watermark/1.png", "test/with_watermark/1.png"),
    "two folders": ("test/1.png", "test_watermark/1.png"),
    "short names": ("test_wo_wm/1.png", "test_wm/1.png"),
    "shorter ones": ("w_o_watermark/test/1.png", "w_watermark/test/1.png"),
    "suffixes": ("test/1.png", "test/1_watermark.png"),
    "two suffixes": ("test/1-NoWaterMark.png", "test/1-WaterMarked.png"),
    "English": ("test/without watermark/1.png", "test/Water Mark/1.png"),
    "unmarked": ("test/unwatermarked/1.png", "test/watermarked/1.png"),
}


@pytest.mark.parametrize("names", PAIRS.values(), ids=list(PAIRS))
def test_the_two_variants_of_a_test_picture(tmp_path: Path, names: tuple[str, str]) -> None:
    plain, marked = names
    lay(tmp_path, {"SD-XL/SD-XL.zip": {marked: b"marked", plain: b"plain", "test.txt": b"t\n"}})
    (caption,) = list_captions(source(tmp_path))
    assert (caption.text, caption.problem, caption.split) == ("t", None, "test")
    variants = {"none": "SD-XL/test/1.png", "dwt-dct": "SD-XL/test/watermark/1.png"}
    assert caption.variants == variants
    with OriginalPictures(source(tmp_path)) as pictures:
        assert pictures.read(variants["none"]) == b"plain"
        assert pictures.read(variants["dwt-dct"]) == b"marked"


def test_half_a_pair_and_a_pair_without_caption(tmp_path: Path) -> None:
    files = {"test/1.png": b"1", "test/wm/2.png": b"2", "test/3.png": b"3", "test/wm/3.png": b"4"}
    lay(tmp_path, {"SD-XL/SD-XL.zip": files | {"test.txt": b"one\ntwo\n"}})
    found = {caption.name: caption for caption in list_captions(source(tmp_path))}
    assert found["SD-XL/test/1.png"].variants is None
    assert found["SD-XL/test/watermark/2.png"].variants == {"dwt-dct": "SD-XL/test/watermark/2.png"}
    bad = {name for name, caption in found.items() if caption.problem}
    assert bad == {"SD-XL/test/3.png", "SD-XL/test/watermark/3.png"}, "both are counted"


def test_two_folders_that_say_nothing_are_not_guessed(tmp_path: Path) -> None:
    files = {"test/a/1.png": b"1", "test/b/1.png": b"2", "test.txt": b"one\n"}
    lay(tmp_path, {"SD-XL/SD-XL.zip": files})
    good, bad = listed(tmp_path)
    assert good == {}
    assert [why.split(" than")[0] for _, why, _ in bad[:2]] == ["twice: another picture"] * 2


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, r"nothing of SD-XL in it; path must be the folder"),
        ({"MJ/MJ.zip": {"x.png": b"x"}}, r"nothing of SD-XL in it"),
        ({"SD-XL/SD-XL.zip": b"version https://git-lfs"}, r"SD-XL\.zip: not readable as a zip"),
        ({"SD-XL/SD-XL.zip": {"../x.png": b"x"}}, r"escapes the folder"),
        ({"SD-XL/SD-XL.z01": b"x"}, r"SD-XL/SD-XL\.zip: missing\. SD-XL\.z01"),
        ({"SD-XL.z01": b"x"}, r"SD-XL\.zip: missing\. SD-XL\.z01"),
    ],
)
def test_releases_that_cannot_be_used(tmp_path: Path, layout: Layout, message: str) -> None:
    with pytest.raises(AigiError, match=message):
        listed(lay(tmp_path, layout))


def test_no_such_folder_and_links(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"gone: no such folder; give the folder that contains"):
        listed(tmp_path / "gone")
    root = lay(tmp_path / "root", below("SD-XL", PICTURES | TEXTS))
    lay(tmp_path / "blobs", {"x.zip": {"train/2_1.png": b"y"}, "secret.txt": b"secret"})
    # A cache of downloads holds links to archives; those may lead anywhere.
    (root / "SD-XL" / "SD-XL.zip").symlink_to(tmp_path / "blobs" / "x.zip")
    (root / "SD-XL" / "train" / "2_2.png").symlink_to(tmp_path / "blobs" / "secret.txt")
    (root / "SD-XL" / "train" / "train.txt").symlink_to(tmp_path / "blobs" / "secret.txt")
    good, bad = listed(root)
    assert good["SD-XL/train/2_1.png"] == "two"
    ((place, why, _),) = bad
    assert place == "SD-XL/train/train.txt" and "escapes the folder" in why
    with OriginalPictures(source(root)) as pictures, pytest.raises(Escapes):
        pictures.read("SD-XL/train/2_2.png")
    (root / "SD-XL" / "SD-XL.zip").unlink()
    (root / "SD-XL" / "SD-XL.zip").symlink_to(tmp_path / "blobs" / "gone.zip")
    with pytest.raises(AigiError, match=r"SD-XL\.zip: no such file"):
        listed(root)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = lay(tmp_path, below("MJ", PICTURES | TEXTS))
    os.rename(root / "MJ" / "train", os.fsencode(root / "MJ") + b"/train_\xff")
    good, bad = listed(root, "MJ")
    assert (len(good), bad) == (len(SHOWN), [])
    Path(os.fsdecode(os.fsencode(root / "MJ") + b"/train_\xff/\xfe.png")).write_bytes(b"x")
    ((place, why, _),) = listed(root, "MJ")[1]
    assert place.encode() == b"MJ/train_?/?.png" and why.startswith("wrong name")
    with OriginalPictures(source(root, "MJ")) as pictures:
        assert pictures.read("MJ/train/1_0.png") == b"a"


parts = st.sampled_from(
    [*SUBFOLDERS, "train", "val", "vaild", "test", "out", "watermark", "a b", "1", "Ä"]
)


@given(
    way=st.lists(parts, max_size=5),
    line=st.integers(0, 999),
    index=st.integers(0, 9),
    place=st.integers(0, 5),
)
@example(way=["test", "train"], line=1, index=0, place=0)
def test_a_file_is_placed_by_the_names_along_its_way(
    way: list[str], line: int, index: int, place: int
) -> None:
    way.insert(min(place, len(way)), "MJ")
    folder = original._folder("/".join(way))
    sources = [part for part in way if part in SUBFOLDERS]
    splits = [part for part in way if part in ("train", "val", "vaild", "test")]
    assert folder.source == sources[0]
    expected = splits[-1].replace("vaild", "val") if splits else None
    assert original._SHORT.get(folder.split) == expected  # type: ignore[arg-type]
    assert folder.marked == (True if "watermark" in way else None)
