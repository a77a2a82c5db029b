"""Images in, files out and back: no pixel is lost, and what aigi did not make is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline import pixels
from pipeline.pixels import (
    RGB,
    BadPicture,
    Container,
    contained,
    decode,
    named,
    pixels_sha256,
    png_bytes,
    stored,
    webp_bytes,
)
from pipeline.store import Store
from tests.conftest import aigi_here, listed

LIMIT = 1_000_000
NOISE = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SMOOTH = np.tile(np.linspace(0, 255, 60, dtype=np.uint8)[None, :, None], (40, 1, 3))
WEBP = webp_bytes(NOISE)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def reason(data: bytes, path: str | None = None, limit: int = LIMIT) -> str:
    with pytest.raises(BadPicture) as caught:
        stored({"bytes": data, "path": path}, limit)
    return str(caught.value)


# --- no pixel is lost -------------------------------------------------------------------------


@st.composite
def pictures(draw: st.DrawFn) -> RGB:
    """Noise, few colours (WebP packs them into a palette), runs, rows that repeat, odd sizes."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    values = draw(
        st.sampled_from(
            [st.integers(0, 255), st.sampled_from([0, 255]), st.sampled_from([0, 1, 2, 127, 254])]
        )
    )
    rgb: RGB = draw(arrays.arrays(np.uint8, (height, width, 3), elements=values))
    how = draw(st.sampled_from(["as it is", "grey", "rows", "strided"]))
    if how == "grey":
        rgb[:] = rgb[..., :1]
    elif how == "rows":
        rgb[:] = rgb[:1]
    return rgb[:, ::-1] if how == "strided" else rgb


containers = st.builds(
    Container,
    format=st.sampled_from(["webp", "png"]),
    png=st.sampled_from(["fast", "small"]),
    method=st.integers(0, 6),
)


@given(pictures(), containers)
def test_every_image_comes_back_as_it_was(rgb: RGB, container: Container) -> None:
    image = named("id", contained(rgb, container))
    assert image["path"] == f"id.{container.format}"
    back = stored(image, rgb[..., 0].size)
    np.testing.assert_array_equal(back, rgb)
    assert pixels_sha256(back) == pixels_sha256(rgb)
    with Image.open(io.BytesIO(image["bytes"])) as other:  # as `datasets` and people read it
        assert (other.format or "").lower() == container.format and other.mode == "RGB"
        assert not {"exif", "xmp", "icc_profile", "timestamp"} & {
            k for k, v in other.info.items() if v
        }
        np.testing.assert_array_equal(np.asarray(other), rgb)


def test_real_images_come_back_as_they_were(shared: Path) -> None:
    files = sorted((shared / "aigi").glob("*_n.webp"))[::6] + sorted(shared.glob("kodak/*.png"))[:2]
    assert len(files) > 6
    for file in files:
        rgb = decode(file.read_bytes(), 1 << 24).rgb
        png = png_bytes(rgb)
        for method in (0, 1):
            webp = contained(rgb, Container(method=method))
            np.testing.assert_array_equal(stored(named("a", webp), rgb[..., 0].size), rgb)
            assert len(webp) < len(png), file.name


@pytest.mark.parametrize("shape", [(1, 16_384, 3), (16_384, 1, 3)])
def test_what_no_webp_can_hold_is_a_png(shape: tuple[int, int, int]) -> None:
    large = np.zeros(shape, np.uint8)
    large[-1, -1] = 1, 2, 3
    image = named("id", contained(large, Container("webp")))
    assert image["path"] == "id.png"
    np.testing.assert_array_equal(stored(image, LIMIT), large)
    fits = large[:16_383, :16_383]  # the most that libwebp takes
    assert named("id", contained(fits, Container("webp")))["path"] == "id.webp"
    np.testing.assert_array_equal(stored(named("id", contained(fits, Container())), LIMIT), fits)


# --- what is refused --------------------------------------------------------------------------


def _animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(NOISE, 5 * n, axis=1)) for n in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


ALPHA = np.dstack([NOISE, np.arange(40 * 60).reshape(40, 60).astype(np.uint8)])
OPAQUE = np.dstack([NOISE, np.full((40, 60), 255, np.uint8)])


def test_a_file_that_is_not_as_aigi_stores_it_is_refused() -> None:
    """The same for both containers; a hash that fits its pixels does not help."""
    one = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    turned = Image.Exif()
    turned[0x0112] = 6  # readers do not agree on whether to turn it
    plain = "that is not 8-bit RGB alone, without loss"
    for kind, lossless in (("WEBP", {"lossless": True}), ("PNG", {})):
        assert reason(encoded(Image.fromarray(ALPHA), kind, **lossless)) == f"a {kind} {plain}"
        assert reason(_animated(kind)) == "animated: 3 frames"
        data = encoded(one, kind, **lossless)
        assert reason(data[: len(data) * 9 // 10]) == "truncated"
        assert reason(data, limit=2399) == "too large: 60x40 pixels > 2399"
    assert reason(encoded(Image.fromarray(OPAQUE), "PNG")) == f"a PNG {plain}"
    assert reason(encoded(one, "PNG", exif=turned)) == f"a PNG {plain}"
    assert reason(encoded(one.convert("L"), "PNG")) == f"a PNG {plain}"
    assert reason(encoded(one, "WEBP", quality=90)) == f"a WEBP {plain}"
    assert reason(encoded(one, "WEBP", lossless=True, exif=exif)) == f"a WEBP {plain}"
    assert reason(encoded(one, "WEBP", lossless=True, xmp=b"<x/>")) == f"a WEBP {plain}"
    assert reason(WEBP + b"hidden") == f"a WEBP {plain}"
    assert reason(encoded(one, "JPEG")) == f"a JPEG {plain}"
    assert reason(encoded(one, "BMP")) == f"a BMP {plain}"


def test_a_name_must_agree_with_the_content() -> None:
    assert reason(WEBP, "a.png") == "its content is WEBP, but its name is 'a.png'"
    assert reason(png_bytes(NOISE), "a.webp") == "its content is PNG, but its name is 'a.webp'"
    for path in (None, "a.webp", "A.WEBP"):
        np.testing.assert_array_equal(stored({"bytes": WEBP, "path": path}, LIMIT), NOISE)


@given(st.integers(0, len(WEBP) - 1), st.integers(1, 255))
def test_a_damaged_webp_is_refused_in_words_or_within_its_limit(at: int, by: int) -> None:
    """It has no checksum: where it decodes, the hash of the pixels in its row finds the damage."""
    data = bytearray(WEBP)
    data[at] ^= by
    try:
        rgb = stored({"bytes": bytes(data), "path": None}, 2400)
    except BadPicture as error:
        assert str(error)
    else:
        assert rgb[..., 0].size <= 2400


@given(st.integers(0, len(WEBP) - 1))
def test_a_webp_that_was_cut_off_is_never_taken(length: int) -> None:
    with pytest.raises(BadPicture):
        stored({"bytes": WEBP[:length], "path": None}, LIMIT)


@pytest.mark.parametrize("length", [25, 28, 30, 4096])
def test_a_bomb_is_refused_before_its_canvas_is_allocated(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(_: object) -> Any:
        raise AssertionError("Pillow was asked, which allocates the canvas")

    monkeypatch.setitem(pixels._OPENERS, "WEBP", opened)
    bits = 16_382 | 16_382 << 14
    head = b"WEBPVP8L" + (length - 20).to_bytes(4, "little") + b"/" + bits.to_bytes(4, "little")
    data = b"RIFF" + (length - 8).to_bytes(4, "little") + head
    assert reason(data.ljust(length, b"\0")) == f"too large: 16383x16383 pixels > {LIMIT}"


# --- in a release -----------------------------------------------------------------------------


def _changed(release: Path, image: dict[str, Any], **facts: Any) -> str:
    """Put an image into the third row of a file of a release, as a forger would; returns its id."""
    path = "sd/train-00000.parquet"
    store = Store(str(release))
    table = store.read("", path.removesuffix(".parquet"))
    rows = table.to_pylist()
    rows[2] |= {"image": image, **facts}
    made = pa.Table.from_pylist(rows, schema=table.schema)
    store.write("", path.removesuffix(".parquet"), made, table.schema)
    listed(release, path)
    return str(rows[2]["image_id"])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("lossy", "a WEBP that is not 8-bit RGB alone, without loss"),
        ("alpha", "a WEBP that is not 8-bit RGB alone, without loss"),
        ("animated", "animated: 3 frames"),
        ("truncated", "truncated"),
        ("named PNG", "its content is WEBP, but its name is 'a.png'"),
        ("other pixels", "other pixels than its pixels_sha256 states"),
    ],
)
def test_a_release_with_such_an_image_is_found_with_file_and_row(
    finished: tuple[Path, Path], tmp_path: Path, kind: str, why: str
) -> None:
    release = tmp_path / "release"
    shutil.copytree(finished[1] / "release", release)
    shape = (64, 64)
    rgb = np.resize(NOISE, (*shape, 3))
    one = Image.fromarray(rgb)
    data = {
        "lossy": encoded(one, "WEBP", quality=90),
        "alpha": encoded(Image.fromarray(np.resize(ALPHA, (*shape, 4))), "WEBP", lossless=True),
        "animated": encoded(
            one, "WEBP", save_all=True, append_images=[one.rotate(90 * n) for n in (1, 2)]
        ),
        "truncated": webp_bytes(rgb)[:-9],
        "named PNG": webp_bytes(rgb),
        "other pixels": webp_bytes(255 - rgb),
    }[kind]
    shown = rgb
    if kind in ("lossy", "alpha"):  # its hash is that of what it shows
        shown = decode(data, LIMIT).rgb
    path = "a.png" if kind == "named PNG" else "a.webp"
    found = _changed(release, {"bytes": data, "path": path}, pixels_sha256=pixels_sha256(shown))
    done = aigi_here("verify", str(release), "--deep")
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert f"sd/train-00000.parquet: row 3 ({found}): {why}" in said
