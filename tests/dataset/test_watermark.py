"""`dwt-dct` against the invisible-watermark package, and its message read back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from imwatermark import WatermarkDecoder, WatermarkEncoder

from pipeline.dataset.watermark import BITS, embed_dwt_dct, message_bits, read_dwt_dct


def _picture(height: int, width: int, seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = rng.integers(0, 256, (max(2, height // 32), max(2, width // 32), 3), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    picture: np.ndarray = np.where(smooth > 127, 255, 0) if kind == "extreme" else smooth
    return picture.astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 256), (512, 384), (333, 517), (1023, 258)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "extreme"])
def test_pixels_equal_the_package(size: tuple[int, int], kind: str) -> None:
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", message_bits().tolist())
    for seed in range(3):
        rgb = _picture(*size, seed, kind)
        theirs = encoder.encode(np.ascontiguousarray(rgb[..., ::-1]), "dwtDct")[..., ::-1]
        np.testing.assert_array_equal(embed_dwt_dct(rgb), theirs)


def test_message_is_read_as_the_package_reads_it() -> None:
    marked = embed_dwt_dct(_picture(512, 512, 7, "smooth"))
    ours = (read_dwt_dct(marked) > 0.5).astype(int)
    theirs = WatermarkDecoder("bits", BITS).decode(
        np.ascontiguousarray(marked[..., ::-1]), "dwtDct"
    )
    assert ours.tolist() == [int(bit) for bit in theirs]
    # Rounding to 8 bits loses some blocks, with the package as with us.
    assert (ours == message_bits()).mean() > 0.9


def test_unmarked_picture_reads_at_chance() -> None:
    bits = read_dwt_dct(_picture(512, 512, 3, "noise")) > 0.5
    assert 0.2 < (bits == message_bits().astype(bool)).mean() < 0.8


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 4), (7, 8), (8, 8), (17, 250)])
def test_any_size(size: tuple[int, int]) -> None:
    rgb = _picture(*size, 1, "noise")
    marked = embed_dwt_dct(rgb)
    assert marked.shape == rgb.shape
    assert marked.dtype == np.uint8
    assert read_dwt_dct(marked).shape == (BITS,)
