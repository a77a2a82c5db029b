"""What every codec must do: any size, the same bytes again, and back from the bytes alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import AigiError
from pipeline.codecs.codec import Codec, CodecSettings, Here, Row
from pipeline.codecs.table import CODECS, opened, qualities, row_of
from pipeline.pixels import RGB
from tests.conftest import ROOT

SIZES = [(1, 1), (1, 9), (7, 5), (17, 33), (48, 64)]


def picture(height: int, width: int) -> RGB:
    """A smooth gradient with an edge in it, in colour."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x * 3 + 40, y * 2 + 60, 200 - x - y], -1)
    image: RGB = np.clip(ramp + 50 * (x > width // 2)[..., None], 0, 255).astype(np.uint8)
    return image


def middle(settings: CodecSettings, here: Here) -> Codec:
    """The codec at a usual quality."""
    usual = qualities(settings)
    return opened(settings, usual[len(usual) // 2], here)


def rms(one: RGB, other: RGB) -> float:
    """Root of the mean squared difference, 0 to 255."""
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


def test_any_size_comes_back(settings: CodecSettings, here: Here) -> None:
    codec = middle(settings, here)
    for height, width in SIZES:
        image = picture(height, width)
        data = codec.encode(image, "a ramp")
        assert isinstance(data, bytes) and data
        decoded = codec.decode(data)
        assert decoded.shape == image.shape and decoded.dtype == np.uint8
        # Random weights of a network keep nothing; its size and bytes are tested all the same.
        if settings.codec != "learned":
            assert rms(decoded, image) < 32, (height, width)


def test_same_picture_same_bytes(settings: CodecSettings, here: Here) -> None:
    image = picture(40, 56)
    first = middle(settings, here).encode(image, "a ramp")
    assert middle(settings, here).encode(image.copy(), "a ramp") == first


def test_input_is_left_alone_and_may_be_read_only(settings: CodecSettings, here: Here) -> None:
    image = picture(16, 24)
    before = image.copy()
    image.setflags(write=False)
    middle(settings, here).encode(image, "")
    # A view with gaps between its rows, as a crop is.
    crop = np.repeat(before, 2, axis=1)[:, ::2]
    middle(settings, here).encode(crop, "")
    assert (image == before).all() and (crop == before).all()


def test_grey_stays_grey(settings: CodecSettings, here: Here) -> None:
    if settings.codec == "learned":
        pytest.skip("random weights have colours")
    grey = np.repeat(picture(32, 48)[..., :1], 3, axis=2)
    codec = middle(settings, here)
    decoded = codec.decode(codec.encode(grey, "")).astype(int)
    assert np.ptp(decoded, axis=2).mean() < 6
    assert rms(decoded.astype(np.uint8), grey) < 24


def test_better_qualities_are_nearer_and_larger(settings: CodecSettings, here: Here) -> None:
    usual = qualities(settings)
    if settings.codec in ("vtm", "bpg", "learned"):
        pytest.skip("a stand-in is lossless, random weights know no better")
    random = np.random.default_rng(0)
    image = np.clip(picture(64, 96) + random.normal(0, 12, (64, 96, 3)), 0, 255).astype(np.uint8)
    sizes, errors = [], []
    for quality in (usual[0], usual[-1]):
        codec = opened(settings, quality, here)
        data = codec.encode(image, "")
        sizes.append(len(data))
        errors.append(rms(codec.decode(data), image))
    assert sizes[0] < sizes[1] and errors[0] > errors[1] > 0


DAMAGED = (
    "cannot identify image file|no JPEG XL codestream|bytes are no image|: exit code [1-9]|"
    "not an aigi file"
)
"""What libraries say, what is seen before a program is run, and that a program failed."""


def test_damaged_bytes_are_an_error(settings: CodecSettings, here: Here) -> None:
    codec = middle(settings, here)
    for data in (b"", b"\0" * 3, b"not an image at all, but long enough to have a header"):
        with pytest.raises(AigiError, match=DAMAGED):
            codec.decode(data)


def test_row_says_what_it_is(row: Row, settings: CodecSettings, here: Here) -> None:
    assert row.title and ("bits" in row.format or "float" in row.format)
    assert row.version(settings, here)
    if row.grid:
        assert min(row.grid) <= min(row.qualities) and max(row.qualities) <= max(row.grid)


DECODE = """
import sys
from pathlib import Path
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.table import opened
settings = CodecSettings.model_validate_json(sys.argv[1])
codec = opened(settings, float(sys.argv[2]), Here(device="cpu"))
sys.stdout.buffer.write(codec.decode(Path(sys.argv[3]).read_bytes()).tobytes())
"""


@pytest.mark.parametrize("name", ["avif", "vvc"])
def test_bytes_alone_suffice_in_another_process(name: str, here: Here, tmp_path: Path) -> None:
    settings = CodecSettings(codec=name)
    if name == "vvc":
        pytest.importorskip("imageio_ffmpeg")
    usual = qualities(settings)
    image = picture(33, 50)
    data = opened(settings, usual[-1], here).encode(image, "a ramp with an edge")
    path = tmp_path / "coded"
    path.write_bytes(data)
    # Decoded at another quality than it was coded with: that, too, must be in the bytes.
    made = subprocess.run(
        [sys.executable, "-c", DECODE, settings.model_dump_json(), str(usual[0]), str(path)],
        cwd=ROOT,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr.decode()
    decoded = np.frombuffer(made.stdout, np.uint8).reshape(image.shape)
    assert (decoded == opened(settings, usual[-1], here).decode(data)).all()


def test_prompt_is_in_the_rate_of_a_network_with_text(model: str, here: Here) -> None:
    with_text = CodecSettings(codec="learned", models=(model,))
    without = with_text.model_copy(update={"prompts": False})
    row = row_of(with_text)
    image = picture(20, 20)
    data = opened(with_text, 1, here).encode(image, "a red boat on a lake")
    bare = opened(without, 1, here).encode(image, "a red boat on a lake")
    assert row.prompt_bytes(data) > 5 and row.prompt_bytes(bare) == 1
    assert CODECS["jpeg"].prompt_bytes(b"anything") == 0
