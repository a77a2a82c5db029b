"""On the pictures of the field, our figures are those that others published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from pipeline.benchmark.metrics import psnr
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.table import opened
from pipeline.pixels import decode

# CompressAI, results/image/kodak/webp.json and jpeg.json (commits 128f004 and 3d3c9bb): means over
# the 24 pictures at qualities 5, 35, 65 and 95, bits a pixel and PSNR over RGB, by Pillow 7.1.2.
WEBP = [(0.234419, 28.3284), (0.567407, 31.9360), (0.874027, 34.3282), (2.928479, 41.7593)]
JPEG = [(0.221153, 23.7799), (0.728946, 30.9032), (1.127396, 33.2347), (3.401340, 40.5567)]


def _curve(shared: Path, name: str, qualities: list[int]) -> tuple[list[float], list[float]]:
    images = [decode(path.read_bytes(), 1 << 24).rgb for path in sorted(shared.glob("kodak/*.png"))]
    assert len(images) == 24
    rates, values = [], []
    for quality in qualities:
        codec = opened(CodecSettings(codec=name), quality, Here())
        coded = [codec.encode(image) for image in images]
        rates.append(float(np.mean([8 * len(data) / (768 * 512) for data in coded])))
        pairs = zip(images, coded, strict=True)
        values.append(float(np.mean([psnr(image, codec.decode(data)) for image, data in pairs])))
    return rates, values


@pytest.mark.slow
def test_webp_is_as_published(shared: Path) -> None:
    rates, values = _curve(shared, "webp", [5, 35, 65, 95])
    assert rates == pytest.approx([rate for rate, _ in WEBP], abs=1e-5)
    assert values == pytest.approx([value for _, value in WEBP], abs=1e-3)


@pytest.mark.slow
def test_jpeg_of_the_same_library_is_as_published(shared: Path, tmp_path: Path) -> None:
    """Pillow 7.1.2 came with libjpeg 9d of the Independent JPEG Group, as jpeglib does."""
    jpeglib = pytest.importorskip("jpeglib", reason="not installed: pip install jpeglib")
    jpeglib.version.set("9d")
    for quality, (rate, value) in ((35, JPEG[1]), (65, JPEG[2])):
        rates, values = [], []
        for path in sorted(shared.glob("kodak/*.png")):
            picture = decode(path.read_bytes(), 1 << 24).rgb
            image = jpeglib.from_spatial(picture)
            image.samp_factor = "4:2:0"
            image.write_spatial(str(tmp_path / "x.jpeg"), qt=quality)
            decoded = jpeglib.read_spatial(str(tmp_path / "x.jpeg")).spatial
            rates.append(8 * (tmp_path / "x.jpeg").stat().st_size / (768 * 512))
            values.append(psnr(picture, np.asarray(decoded)))
        assert float(np.mean(rates)) == pytest.approx(rate, abs=1e-4)
        assert float(np.mean(values)) == pytest.approx(value, abs=2e-3)


@pytest.mark.slow
def test_jpeg_is_near_what_was_published(shared: Path) -> None:
    """libjpeg-turbo's is 0.12 dB better on the average, in the same bytes."""
    rates, values = _curve(shared, "jpeg", [5, 20, 35, 50, 65, 80, 95])
    curve = PchipInterpolator(np.log(rates), values)
    for rate, value in JPEG[1:3]:
        assert float(curve(np.log(rate))) == pytest.approx(value, abs=0.15)
    assert rates[0] == pytest.approx(JPEG[0][0], abs=1e-4)
