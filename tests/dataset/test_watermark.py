"""Bits against the invisible-watermark package, visible marks against their golden pixels."""

from __future__ import annotations

import hashlib
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import AigiError
from pipeline.dataset import specification, watermark
from pipeline.dataset.specification import SplitSpec
from pipeline.dataset.watermark import (
    BITS,
    EMBED,
    READ,
    Visible,
    embed,
    message_bits,
    parse,
    place,
)
from tests.dataset.test_plan import import_workflow, planned

METHODS = {"dwt-dct": "dwtDct", "dwt-dct-svd": "dwtDctSvd"}
# Every value once in every row and column: blocks that hold whole pixels after the embedding,
# so that the last digit decides what is cut off.
LATIN = np.add.outer(np.arange(4), np.arange(4)) % 4
KINDS = ("noise", "smooth", "extreme", "flat", "dither", "latin", "stripes")


def latin(cells: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Blocks (Nx8x8x3) of four cells (Nx4x2x2x3) each."""
    return cells[:, LATIN].transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 3)


def picture(height: int, width: int, seed: int, kind: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)

    def colours(*shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    def repeated(tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.tile(tile, (height // len(tile) + 1, width // len(tile) + 1, 1))

    if kind in ("smooth", "extreme"):
        small = Image.fromarray(colours(max(2, height // 32), max(2, width // 32)))
        found = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        found = np.where(found > 127, 255, 0) if kind == "extreme" else found
    else:
        makers: dict[str, Callable[[], Any]] = {
            "noise": lambda: colours(height, width),
            "flat": lambda: repeated(colours(1, 1)),
            "dither": lambda: repeated(colours(2)[np.eye(2, dtype=int)]),
            "latin": lambda: repeated(latin(colours(1, 4, 2, 2))[0]),
            "stripes": lambda: np.broadcast_to(colours(height, 1), (height, width, 3)),
        }
        found = makers[kind]()
    return np.ascontiguousarray(found[:height, :width], dtype=np.uint8)


@pytest.fixture(scope="module")
def package() -> dict[str, Any]:
    """Class of the package for each variant; it refuses no size, as the package's front does."""
    pytest.importorskip("imwatermark", reason="pip install invisible-watermark")
    from imwatermark.dwtDctSvd import EmbedDwtDctSvd
    from imwatermark.maxDct import EmbedMaxDct

    classes = {"dwt-dct": EmbedMaxDct, "dwt-dct-svd": EmbedDwtDctSvd}
    bits = message_bits().tolist()
    return {name: made(bits, wmLen=BITS) for name, made in classes.items()}


def bgr(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(rgb[..., ::-1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [(256, 256), (512, 384), (333, 517), (1023, 258)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "extreme"])
def test_pixels_equal_the_package(name: str, size: tuple[int, int], kind: str) -> None:
    imwatermark = pytest.importorskip("imwatermark")
    encoder = imwatermark.WatermarkEncoder()
    encoder.set_watermark("bits", message_bits().tolist())
    for seed in range(2):
        rgb = picture(*size, seed, kind)
        theirs = encoder.encode(bgr(rgb), METHODS[name])[..., ::-1]
        np.testing.assert_array_equal(embed(rgb, name), theirs)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=150, deadline=None)
@given(
    st.integers(4, 90), st.integers(4, 90), st.integers(0, 2**32), st.sampled_from(KINDS)
)  # fmt: skip
def test_small_and_odd_pictures_equal_the_package(
    package: dict[str, Any], name: str, height: int, width: int, seed: int, kind: str
) -> None:
    rgb = picture(height, width, seed, kind)
    theirs = package[name].encode(bgr(rgb))
    np.testing.assert_array_equal(embed(rgb, name), theirs[..., ::-1])
    votes = READ[name](theirs[..., ::-1])
    read = ~np.isnan(votes)
    if read.all():
        ours = votes * 255 > 127
        assert ours.tolist() == [bool(bit) for bit in package[name].decode(theirs)]
    assert read.sum() == min(BITS, (height // 4 * 4 // 8) * (width // 4 * 4 // 8))


def same_blocks(package: dict[str, Any], blocks: np.ndarray[Any, Any]) -> None:
    """Compare with the package over a picture of 32x32 blocks of 8x8 pixels."""
    rgb = blocks.reshape(32, 32, 8, 8, 3).swapaxes(1, 2).reshape(256, 256, 3)
    theirs = package["dwt-dct-svd"].encode(bgr(rgb))[..., ::-1]
    np.testing.assert_array_equal(embed(rgb, "dwt-dct-svd"), theirs)


def test_the_last_digit_of_a_pixel_is_the_packages(package: dict[str, Any]) -> None:
    for seed in range(4):
        cells = np.random.default_rng(seed).integers(0, 256, (1024, 4, 2, 2, 3), dtype=np.uint8)
        same_blocks(package, latin(cells))


def test_the_last_digit_of_a_step_is_the_packages(package: dict[str, Any]) -> None:
    """Blocks whose largest singular value is a whole number of steps: which one, is rounding."""
    shades = np.full((256, 1, 3), 110, np.uint8)
    shades[:, 0, 2] = np.arange(256)
    u_of = {u: blue for blue, u in enumerate(watermark._y_and_u(shades)[1].ravel().tolist())}
    rng = np.random.default_rng(0)
    wanted = rng.integers(min(u_of) + 18, max(u_of) - 18, (1024, 4))
    wanted[:, 3] -= wanted.sum(axis=1) % 18
    blues = np.vectorize(u_of.get)(wanted)
    cells = np.repeat(shades[blues][:, :, None], 2, axis=2).repeat(2, axis=3)
    same_blocks(package, latin(cells))


def test_every_flat_colour_equals_the_package(package: dict[str, Any]) -> None:
    for blue in range(256):
        rgb = np.full((16, 16, 3), (90, 100, blue), np.uint8)
        for name in METHODS:
            theirs = package[name].encode(bgr(rgb))[..., ::-1]
            np.testing.assert_array_equal(embed(rgb, name), theirs)


def test_another_message() -> None:
    bits = message_bits(0x5A5A_0F0F_1234)
    marked = watermark.embed_dwt_dct_svd(picture(256, 256, 7, "smooth"), bits)
    assert (READ["dwt-dct-svd"](marked) > 0.5).astype(int).tolist() == bits.tolist()


@pytest.mark.parametrize(("name", "share"), [("dwt-dct", 0.85), ("dwt-dct-svd", 1.0)])
def test_the_message_is_read_back(name: str, share: float) -> None:
    marked = embed(picture(512, 512, 7, "smooth"), name)
    # Rounding to 8 bits loses some blocks of dwt-dct, with the package as with us.
    assert ((READ[name](marked) > 0.5) == message_bits()).mean() >= share


ALL = [*EMBED, "visible:text=AI generated", "visible:text=AI,position=center,scale=1,opacity=1"]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 9), (4, 4), (7, 8), (8, 8), (17, 250)])
@pytest.mark.parametrize("name", ALL)
def test_any_size_and_the_picture_stays_as_it_is(name: str, size: tuple[int, int]) -> None:
    rgb = picture(*size, 1, "noise")
    rgb.setflags(write=False)
    before = rgb.copy()
    marked = embed(rgb, name)
    assert marked.shape == rgb.shape
    assert marked.dtype == np.uint8
    np.testing.assert_array_equal(rgb, before)
    assert name == "none" or not np.shares_memory(marked, rgb)
    if name in READ:
        assert READ[name](marked).shape == (BITS,)


# --- visible ----------------------------------------------------------------------------------


def visible(text: str) -> Visible:
    found = parse(text)
    assert isinstance(found, Visible)
    return found


def test_text_has_its_golden_pixels() -> None:
    """The same pixels on every machine: a change here is a change of datasets."""
    rgb = (np.arange(150 * 211 * 3) % 251).astype(np.uint8).reshape(150, 211, 3)
    name = "visible:text=AI generated (gpqy),position=bottom,opacity=0.7,scale=0.6"
    found = hashlib.sha256(embed(rgb, name).tobytes()).hexdigest()
    assert found == "fbb8aa132727a04ead5a3ab281ac66f3a16c14a5d1e0d69dfbfd8673215151a1"


def test_every_ascii_character_has_a_shape() -> None:
    shapes = {watermark._text_grey(chr(code)).tobytes() for code in range(33, 127)}
    assert len(shapes) == 94


def test_a_font_of_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "FONT_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="draws its built-in font in another way"):
        parse("visible:text=AI")


@pytest.mark.parametrize("position", watermark.POSITIONS)
def test_only_the_place_changes(position: str) -> None:
    rgb = np.full((90, 200, 3), 128, np.uint8)
    mark = visible(f"visible:text=AI,position={position},scale=0.3,opacity=0.4")
    rows, columns = place(mark, 90, 200)
    changed = (embed(rgb, str(mark)) != rgb).any(axis=2)
    assert changed[rows, columns].mean() > 0.9
    changed[rows, columns] = False
    assert not changed.any()
    assert columns.stop - columns.start == 60
    middle = ((rows.start + rows.stop) / 180, (columns.start + columns.stop) / 400)
    for where, low, high in zip(middle, ("top", "left"), ("bottom", "right"), strict=True):
        side = 0 if low in position else 1 if high in position else 0.5
        assert abs(where - side) < (0.01 if side == 0.5 else 0.5)
        assert (where < 0.45, where > 0.55) == (side == 0, side == 1)


def logo(folder: Path, rgba: tuple[int, int, int, int] = (200, 10, 30, 255)) -> str:
    """A logo of 40x20 pixels: this colour on the left, nothing on the right. Its sha256."""
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20] = rgba
    Image.fromarray(pixels).save(folder / "mark.png")
    return hashlib.sha256((folder / "mark.png").read_bytes()).hexdigest()


def test_a_logo_is_mixed_by_its_alpha_and_the_opacity(tmp_path: Path) -> None:
    digest = logo(tmp_path)
    found = parse("visible:logo=mark.png,opacity=0.5,scale=0.5,position=top-left", tmp_path)
    assert str(found) == (
        f"visible:logo=mark.png,sha256={digest},position=top-left,opacity=0.5,scale=0.5"
    )
    rgb = np.full((40, 60, 3), 100, np.uint8)
    marked = embed(rgb, str(found))
    rows, columns = place(visible(str(found)), 40, 60)
    assert (rows, columns) == (slice(0, 15), slice(0, 30))
    np.testing.assert_array_equal(marked[:15, :15], np.full((15, 15, 3), (150, 55, 65)))
    marked[:15, :15] = 100
    np.testing.assert_array_equal(marked, rgb)


def test_values_have_one_spelling() -> None:
    full = "visible:text=AI, made by us,position=bottom-right,opacity=0.5,scale=0.2"
    for same in (full, "visible:text=AI, made by us", "visible:scale=0.200, text=AI, made by us"):
        assert str(parse(same)) == full


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dwtdct", "'dwtdct' is no watermark; use none, dwt-dct, dwt-dct-svd or visible:"),
        ("visible", "is no watermark"),
        ("visible:", "expected one of text=, logo="),
        ("visible:text=", "either text=WORDS or logo=FILE"),
        ("visible:text=AI,logo=a.png", "either text=WORDS or logo=FILE"),
        ("visible:text=AI,opacty=0.5", "'opacty=0.5': expected one of"),
        ("visible:text=AI,scale=0.1,scale=0.2", "scale= stands twice"),
        ("visible:text=AI,opacity=0", "opacity=0: expected 0.001 to 1"),
        ("visible:text=AI,opacity=nan", "opacity=nan: expected 0.001 to 1"),
        ("visible:text=AI,scale=1.001", "scale=1.001: expected 0.001 to 1"),
        ("visible:text=AI,scale=0.1234", "at most three decimals"),
        ("visible:text=AI,scale=big", "scale=big: expected"),
        ("visible:text=AI,position=middle", "position=middle: expected top-left, top"),
        ("visible:text=KÜNSTLICH", "ASCII characters, not 'Ü'"),
        ("visible:text=two\nlines", "ASCII characters"),
        ("visible:text=" + "a" * 101, "at most 100"),
        ("visible:text=AI,sha256=" + "0" * 64, "belongs to a logo"),
        ("visible:logo=absent.png", "absent.png: cannot be read"),
        ("visible:logo=no.png", "no.png: not a PNG picture"),
        ("visible:logo=mark.png,sha256=12", "sha256=12: expected 64"),
        ("visible:logo=mark.png,sha256=" + "0" * 64, "put the right file there"),
    ],
)
def test_a_wrong_name_is_explained_with_file_and_field(
    tmp_path: Path, name: str, said: str
) -> None:
    logo(tmp_path)
    (tmp_path / "no.png").write_text("no picture")
    spec = tmp_path / "dataset.yaml"
    source = {
        "title": "t",
        "licence": "l",
        "kind": "import",
        "model": "m",
        "splits": {"train": {"watermarks": ["none", name]}},
    }
    data = {"name": "n", "title": "t", "licence": "l", "sources": {"mj": source}}
    spec.write_text(yaml.safe_dump(data))
    with pytest.raises(AigiError) as error:
        specification.load(str(spec))
    assert f"{spec}: sources.mj.import.splits.train.watermarks.1: " in str(error.value)
    assert said in str(error.value)


def test_a_variant_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"opacity=0\.5,scale=0\.2 stands twice"):
        SplitSpec.model_validate({"watermarks": ["visible:text=AI", "visible:text=AI,opacity=0.5"]})


def test_the_logo_goes_along_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logo(tmp_path)
    name = f"visible:logo={tmp_path}/mark.png"
    spec = SplitSpec.model_validate({"watermarks": ["none", name]})
    rgb = picture(40, 60, 0, "noise")
    here = embed(rgb, spec.watermarks[1])
    assert str(tmp_path) not in spec.watermarks[1], "a release does not depend on the place"
    sent = pickle.dumps(spec)
    monkeypatch.setattr(watermark, "_logos", {})
    watermark._mark_rgba.cache_clear()
    watermark.layer.cache_clear()
    with pytest.raises(ValueError, match=r"logo=mark\.png: no file with this sha256"):
        embed(rgb, spec.watermarks[1])
    assert pickle.loads(sent) == spec  # noqa: S301
    np.testing.assert_array_equal(embed(rgb, spec.watermarks[1]), here)


# --- plan -------------------------------------------------------------------------------------

MARKS = ["dwt-dct-svd", "none", "dwt-dct", "visible:text=AI"]


def marked_plan(folder: Path, marks: list[str]) -> list[dict[str, Any]]:
    path = import_workflow(
        folder, [("a.png", "a castle on a hill", "train"), ("b.png", "a red barn", "test")]
    )
    spec = yaml.safe_load((folder / "imported.yaml").read_text())
    for source in spec["sources"].values():
        for split in source["splits"].values():
            split["watermarks"] = marks
    (folder / "imported.yaml").write_text(yaml.safe_dump(spec))
    rows, _ = planned(path, f"run={folder}/run-{len(marks)}")
    return rows


def test_every_source_and_split_may_have_every_variant(tmp_path: Path) -> None:
    rows = marked_plan(tmp_path, MARKS)
    assert len(rows) == 4 * (2 + 8) == len({row["image_id"] for row in rows})
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["pair_id"]].append(row)
    assert {(row["source"], row["split"]) for row in rows} == {
        ("mj", "train"), ("mj", "test"), ("sd", "train"),
    }  # fmt: skip
    for name, four in pairs.items():
        assert [row["watermark"] for row in four] == [str(parse(mark)) for mark in MARKS]
        assert four[1]["image_id"] == name, "the pair is named for the picture without a mark"
        for field in four[0].keys() - {"image_id", "watermark"}:
            assert len({row[field] for row in four}) == 1
    plain = {row["image_id"] for row in marked_plan(tmp_path, ["none"])}
    assert plain == set(pairs), "a picture without a mark has the id that it has alone"
