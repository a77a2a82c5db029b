"""Lossless files: what comes back, when they are written, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline import AigiError
from pipeline.cli import app
from pipeline.learned import lossless
from pipeline.learned.bitstream import (
    LOSSLESS,
    is_lossless,
    pack_lossless,
    prompt_bytes,
    rates,
    seal,
    unpack_lossless,
)
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.fields import varint
from pipeline.learned.range_coder import DamagedStream
from pipeline.learned.targets import meet
from pipeline.pixels import CAP_DB, RGB
from tests.learned.conftest import pictures, small
from tests.perf.floors import odd

MANY = 1 << 30


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([2, 256]))
@example(1, 1, 0, 256)
@example(1, 40, 0, 2)
def test_any_image_comes_back(height: int, width: int, seed: int, colours: int) -> None:
    random = np.random.default_rng(seed)
    image: RGB = random.integers(0, colours, (height, width, 3), dtype=np.uint8)
    data = lossless.encode(image, MANY)
    assert data is not None and is_lossless(data)
    assert np.array_equal(lossless.decode(data), image)
    # The limit is that of the whole file.
    assert lossless.encode(image, len(data)) == data
    assert lossless.encode(image, len(data) - 1) is None
    assert rates(data).bpp == rates(data).bpp_without_prompt == 8 * len(data) / (height * width)
    assert prompt_bytes(data) == 0


@pytest.mark.parametrize("name", odd())
def test_drawn_images_take_few_bytes(name: str) -> None:
    image = odd()[name]
    data = lossless.encode(image, MANY)
    assert data is not None and np.array_equal(lossless.decode(data), image)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    assert len(data) < 0.7 * len(out.getvalue())


def test_one_that_is_too_wide_for_webp_is_raw_or_none() -> None:
    image = np.zeros((1, 16_384, 3), np.uint8)
    data = lossless.encode(image, MANY)
    assert data is not None and len(data) == len(pack_lossless(16_384, 1, b"")) + 1 + image.size
    assert np.array_equal(lossless.decode(data), image)
    assert lossless.encode(image, 1000) is None


def _vp8l(image: RGB, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True, **options)
    return b"\1" + out.getvalue()[20:]


RED = np.full((4, 6, 3), (200, 0, 0), np.uint8)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pack_lossless(6, 4, b""), "no lossless form"),
        (pack_lossless(6, 4, b"\2" + bytes(72)), "no lossless form"),
        (pack_lossless(6, 4, b"\0" + bytes(71)), "71 bytes of pixels for 6x4"),
        (pack_lossless(6, 4, b"\0" + bytes(73)), "73 bytes of pixels for 6x4"),
        (pack_lossless(6, 4, b"\1"), "its lossless image: "),
        (pack_lossless(6, 4, b"\1" + bytes(50)), "its lossless image: "),
        (pack_lossless(6, 4, _vp8l(RED)[:-3]), "its lossless image: "),
        (pack_lossless(6, 4, _vp8l(RED.transpose(1, 0, 2).copy())), "has 4x6"),
        (pack_lossless(5, 4, _vp8l(RED)), "its lossless image: too large: 6x4"),
        (pack_lossless(7, 4, _vp8l(RED)), "claims 7x4 pixels; its lossless image has 6x4"),
        (seal(b"\0\4\0", LOSSLESS), "claims 0x4"),
        (seal(b"\6", LOSSLESS), "cut short in its header"),
        (seal(varint(1 << 20) * 2 + b"\0", LOSSLESS), "at most 134,217,728 are decoded"),
        (pack_lossless(6, 4, b"\0" + bytes(72))[:-1], "wrong checksum"),
        (b"AIGI\4", "cut short"),
    ],
)
def test_what_is_refused_and_why(data: bytes, why: str) -> None:
    with pytest.raises(DamagedStream, match=why):
        lossless.decode(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_forged_streams_are_damaged_or_an_image_of_the_size(data: st.DataObject) -> None:
    stream = bytearray(_vp8l(pictures(1)[0][:24, :40].copy()))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(1, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DamagedStream):
        assert lossless.decode(pack_lossless(40, 24, bytes(stream))).shape == (24, 40, 3)


def test_a_limit_of_pixels_holds() -> None:
    data = lossless.encode(np.zeros((300, 500, 3), np.uint8), MANY)
    assert data is not None and unpack_lossless(data, 150_000)[:2] == (500, 300)
    with pytest.raises(DamagedStream, match=r"claims 500x300 pixels \(150,000\)"):
        lossless.decode(data, 149_999)


def _codecs(lossless: bool = True) -> LearnedCodec:
    return LearnedCodec(small("mean-scale", qualities=3), "cpu", lossless=lossless)


def test_a_codec_writes_the_shorter_file() -> None:
    codec, network = _codecs(), _codecs(lossless=False)
    flat, photo = odd()["flat"], pictures(1, 64, 64)[0]
    data = codec.encode(flat, quality=1)
    assert is_lossless(data) and len(data) <= len(network.encode(flat, quality=1))
    assert np.array_equal(codec.decode(data), flat)
    assert np.array_equal(network.decode(data), flat), "whoever has a codec can read it"
    coded = codec.encode_and_reconstruct(flat, quality=1, effort=1)
    assert coded.data == data and np.array_equal(coded.reconstruction, flat)
    assert coded.gain is None, "nothing is searched for"
    noisy: RGB = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for image in (photo, noisy):
        theirs, exact = network.encode(image, quality=1), lossless.encode(image, MANY)
        assert exact is not None
        assert codec.encode(image, quality=1) == (exact if len(exact) <= len(theirs) else theirs)
    assert codec.encode(noisy, quality=1) == network.encode(noisy, quality=1)


def test_targets_know_lossless_files() -> None:
    flat = odd()["flat"]
    codec = _codecs()
    size = 8 * len(codec.encode(flat)) / flat[..., 0].size
    for unit, target in (("bpp", 3.0), ("bpp", size), ("psnr", 36.0), ("psnr", CAP_DB)):
        found = meet(codec, flat, "", unit, target)  # type: ignore[arg-type]
        assert is_lossless(found.data) and found.psnr == CAP_DB and found.bpp == size
    with pytest.raises(AigiError, match="out of reach"):
        meet(codec, flat, "", "bpp", size / 2)


def _patches() -> RGB:
    """An image that costs more without loss than at a low quality, and less than at a high one."""
    random = np.random.default_rng(1)
    image = np.zeros((64, 64, 3), np.uint8)
    for _ in range(12):
        top, left = random.integers(0, 56, 2)
        image[top : top + 8, left : left + 8] = random.integers(0, 256, 3)
    return image


def test_targets_below_a_lossless_file_take_the_network() -> None:
    codec, image = _codecs(), _patches()
    pixels = image[..., 0].size
    low, high = codec.encode(image, quality=1), codec.encode(image)
    assert not is_lossless(low) and is_lossless(high) and len(low) < 0.8 * len(high)
    between = 8 * (len(low) + len(high)) / 2 / pixels
    found = meet(codec, image, "", "bpp", between)
    assert not is_lossless(found.data) and 0.97 * between < found.bpp <= between
    for rate in (8 * len(high) / pixels, 3.0):
        assert meet(codec, image, "", "bpp", rate).data == high
    assert meet(codec, image, "", "psnr", CAP_DB).data == high
    with pytest.raises(AigiError, match="out of reach"):
        meet(codec, image, "", "bpp", 8 * (len(low) - 5) / pixels)


def aigi(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_that_a_file_is_lossless(tmp_path: Path) -> None:
    flat = odd()["stripes"]
    Image.fromarray(flat).save(tmp_path / "flat.png")
    small("mean-scale", qualities=3).save_pretrained(tmp_path / "model")
    file, back = tmp_path / "x.aigi", tmp_path / "back.png"
    coding = ("encode", tmp_path / "flat.png", "-m", tmp_path / "model", "-o", file)
    done = aigi(*coding, "--prompt", "stripes")
    assert done.exit_code == 0, done.output
    assert ", lossless, quality 3" in done.stdout
    assert "a lossless file has no prompt" in done.stderr
    done = aigi("decode", file, "-o", back)
    assert done.exit_code == 0 and "128x128, lossless" in done.stdout, done.output
    assert np.array_equal(np.asarray(Image.open(back)), flat)
    done = aigi("decode", file, "-m", tmp_path / "absent", "-o", back)
    assert done.exit_code == 0 and "needs no model" in done.stderr
    file.write_bytes(file.read_bytes()[:-1])
    done = aigi("decode", file, "-o", back)
    assert done.exit_code == 1 and "wrong checksum" in done.stderr


def test_a_lossless_file_is_decoded_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "x.aigi"
    data = lossless.encode(odd()["text"], MANY)
    assert data is not None
    file.write_bytes(data)
    code = (
        "import sys\nfrom pipeline.cli import app\n"
        f"try: app(['decode', {str(file)!r}, '-o', {str(tmp_path / 'x.png')!r}])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("False"), done.stderr


def test_a_loaded_codec_writes_lossless_files_unless_asked_not_to(tmp_path: Path) -> None:
    small("mean-scale").save_pretrained(tmp_path)
    flat = odd()["flat"]
    assert is_lossless(load(tmp_path, device="cpu").encode(flat))
    assert not is_lossless(load(tmp_path, device="cpu", lossless=False).encode(flat))
