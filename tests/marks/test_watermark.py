"""Invisible marks against the invisible-watermark package; every variant in the plan."""

from __future__ import annotations

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

from pipeline.marks import dwt_dct
from pipeline.marks.dwt_dct import BITS, READ, message_bits
from pipeline.marks.names import EMBED, embed, parse
from tests.plan.test_plan import import_workflow, planned

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
    u_of = {u: blue for blue, u in enumerate(dwt_dct._y_and_u(shades)[1].ravel().tolist())}
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
    marked = dwt_dct.embed_dwt_dct_svd(picture(256, 256, 7, "smooth"), bits)
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
