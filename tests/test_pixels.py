"""Good, odd and damaged pictures in; pixels, notes and stable reasons out."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from pipeline import pixels
from pipeline.pictures.embedded import embedded
from pipeline.pixels import BadPicture, decode, image_size, pixels_sha256, png_bytes

LIMIT = 1_000_000
GREY = np.tile(np.arange(0, 256, 2, dtype=np.uint8)[:, None], (2, 1, 3)).repeat(64, axis=1)
NOISE = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


NOISE_PNG = encoded(Image.fromarray(NOISE), "PNG")


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def raw_png(
    width: int, height: int, bits: int, color: int, rows: bytes, *extra: bytes, after: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def reason(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(BadPicture) as caught:
        decode(data, limit)
    return str(caught.value)


# --- sound pictures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 255),
        ("JPEG", {"quality": 100, "subsampling": 0}, 8),
        ("JPEG", {"progressive": True}, 255),
        ("AVIF", {}, 255),
        ("GIF", {}, 255),
    ],
)
def test_every_format_is_decoded(kind: str, options: dict[str, Any], error: int) -> None:
    data = encoded(Image.fromarray(NOISE), kind, **options)
    picture = decode(data, LIMIT)
    assert picture.rgb.shape == (40, 60, 3) and picture.rgb.dtype == np.uint8
    assert np.abs(picture.rgb.astype(int) - NOISE).max() <= error
    assert picture.lossless_png == (kind == "PNG")
    assert picture.note is None
    assert image_size(data) == (60, 40)


def test_png_bytes_and_hash_are_of_the_pixels() -> None:
    turned = NOISE[::-1, ::-1]  # not contiguous
    data = png_bytes(turned)
    again = decode(data, LIMIT)
    assert again.lossless_png and np.array_equal(again.rgb, turned)
    assert pixels_sha256(again.rgb) == pixels_sha256(turned) != pixels_sha256(NOISE)
    assert b"tEXt" not in data and len(png_bytes(GREY, "small")) < len(png_bytes(GREY, "fast"))


def test_interlaced_png_is_lossless() -> None:
    # Adam7 of a 1 x 1 picture is one pass of one pixel.
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    data = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(b"\0\1\2\3")),
            chunk(b"IEND", b""),
        ]
    )
    picture = decode(data, LIMIT)
    assert picture.lossless_png and picture.rgb.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    "other",
    [
        raw_png(1, 1, 8, 0, b"\0\5"),
        raw_png(1, 1, 8, 3, b"\0\0", chunk(b"PLTE", b"\1\2\3")),
        raw_png(1, 1, 8, 6, b"\0\1\2\3\xff"),
        raw_png(1, 1, 16, 2, b"\0" + b"\1\1" * 3),
        raw_png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"tRNS", b"\0\1\0\2\0\3")),
        raw_png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"acTL", struct.pack(">II", 1, 0))),
        raw_png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"prIv", b"x" * 65536)),
    ],
    ids=["grey", "palette", "alpha", "16 bits", "tRNS", "acTL", "stuffed"],
)
def test_any_other_png_is_not_kept(other: bytes) -> None:
    assert not decode(other, LIMIT).lossless_png


ROW16 = [0, 128, 129, 255, 256, 384, 385, 386, 32767, 32768, 65406, 65407, 65408, 65535]
ROUNDED = [round(value * 255 / 65535) for value in ROW16]


def test_16_bit_samples_are_rounded() -> None:
    assert [value >> 8 for value in ROW16] != ROUNDED  # Pillow's high byte is not enough
    row = np.array(ROW16, ">u2")
    for color, bands in ((0, 1), (2, 3), (4, 2), (6, 4)):
        samples = np.repeat(row[:, None], bands, axis=1)
        if bands in (2, 4):
            samples[:, -1] = 65535
        picture = decode(raw_png(len(row), 1, 16, color, b"\0" + samples.tobytes()), LIMIT)
        for band in range(3):
            assert picture.rgb[0, :, band].tolist() == ROUNDED, color
        assert picture.note is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_is_rounded(order: str) -> None:
    row = np.repeat(np.array(ROW16, f"{order}u2")[:, None], 3, axis=1).tobytes()
    tags = [
        (256, 3, 1, len(ROW16)),
        (257, 3, 1, 1),
        (258, 3, 3, 8),  # bits, at offset 8
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),  # pixels, at offset 14
        (277, 3, 1, 3),
        (278, 3, 1, 1),
        (279, 4, 1, len(row)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 14 + len(row))
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (
            struct.pack(f"{order}HH", value, 0)
            if kind == 3 and count == 1
            else struct.pack(f"{order}I", value)
        )
        for tag, kind, count, value in tags
    )
    body = struct.pack(f"{order}HHH", 16, 16, 16) + row
    data = head + body + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    assert decode(data, LIMIT).rgb[0, :, 1].tolist() == ROUNDED
    # The same through libtiff, which hands over native byte order.
    grey = Image.fromarray(np.array([ROW16], np.uint16))
    packed = decode(encoded(grey, "TIFF", compression="tiff_lzw"), LIMIT)
    assert packed.rgb[0, :, 0].tolist() == ROUNDED


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_alpha_that_hides_data_changes_no_colour(kind: str) -> None:
    """As NovelAI stores its texts: in the last bit of alpha."""
    rgb = np.random.default_rng(3).integers(0, 256, (8, 9, 3), np.uint8)
    alpha = np.random.default_rng(4).integers(254, 256, (8, 9, 1), np.uint8)
    picture = decode(encoded(Image.fromarray(np.dstack([rgb, alpha])), kind, lossless=True), LIMIT)
    assert (picture.rgb == rgb).all()
    assert picture.note is None and not picture.lossless_png and not picture.plain
    alpha[3, 4] = 253
    picture = decode(encoded(Image.fromarray(np.dstack([rgb, alpha])), kind, lossless=True), LIMIT)
    assert picture.note == "transparent pixels laid over white"


def test_transparency_is_laid_over_white() -> None:
    def shown(data: bytes) -> list[list[int]]:
        picture = decode(data, LIMIT)
        assert picture.note == "transparent pixels laid over white"
        assert not picture.lossless_png
        return [list(map(int, pixel)) for pixel in picture.rgb[0]]

    half = 128  # 1 at alpha 128: 127.5, rounded up
    assert shown(raw_png(2, 1, 8, 6, b"\0" + b"\1\1\1\x80" + b"\7\7\7\xff")) == [
        [half] * 3,
        [7] * 3,
    ]
    assert shown(raw_png(2, 1, 8, 4, b"\0\1\x80\7\xff")) == [[half] * 3, [7] * 3]  # LA
    palette = chunk(b"PLTE", b"\1\1\1\7\7\7"), chunk(b"tRNS", b"\x80")
    assert shown(raw_png(2, 1, 8, 3, b"\0\0\1", *palette)) == [[half] * 3, [7] * 3]
    # One value that means transparent: RGB, grey of 8, 2 and 1 bits, and 16 bits of both.
    assert shown(raw_png(2, 1, 8, 2, b"\0\1\2\3\7\7\7", chunk(b"tRNS", b"\0\1\0\2\0\3"))) == [
        [255] * 3,
        [7] * 3,
    ]
    assert shown(raw_png(2, 1, 8, 0, b"\0\1\7", chunk(b"tRNS", b"\0\1"))) == [[255] * 3, [7] * 3]
    grey = shown(raw_png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")))
    assert [pixel[0] for pixel in grey] == [0, 255, 170, 255]
    assert shown(raw_png(2, 1, 1, 0, b"\0\x40", chunk(b"tRNS", b"\0\0"))) == [[255] * 3] * 2
    deep = b"\0\1\0\1\1"  # 256 is transparent, 257 differs from it in the low byte only
    assert shown(raw_png(2, 1, 16, 0, deep, chunk(b"tRNS", b"\1\0"))) == [[255] * 3, [1] * 3]
    deep = b"\0" + b"\1\0" * 3 + b"\1\1" * 3
    assert shown(raw_png(2, 1, 16, 2, deep, chunk(b"tRNS", b"\1\0" * 3))) == [[255] * 3, [1] * 3]


def test_small_and_grey_modes() -> None:
    bits = decode(raw_png(8, 1, 1, 0, b"\0\x1b"), LIMIT)
    assert bits.rgb[0, :, 2].tolist() == [0, 0, 0, 255, 255, 0, 255, 255] and bits.note is None
    opaque = decode(raw_png(1, 1, 8, 4, b"\0\7\xff"), LIMIT)
    assert opaque.rgb.tolist() == [[[7, 7, 7]]] and opaque.note is None
    twelve = Image.fromarray(np.array([[0, 4095]], np.uint16))
    assert decode(encoded(twelve, "TIFF"), LIMIT).rgb[0, :, 0].tolist() == [0, 16]


def test_samples_without_a_range_are_refused() -> None:
    for kind in (np.float32, np.int32):
        data = encoded(Image.fromarray(np.zeros((2, 2), kind)), "TIFF")
        assert reason(data).startswith("unsupported: ")


def test_cmyk_becomes_rgb() -> None:
    ink = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (0, 255, 255, 0)])
    plain = decode(encoded(ink, "JPEG", quality=100), LIMIT)
    assert plain.note == "CMYK converted without a profile"
    assert np.abs(plain.rgb.astype(int) - [255, 0, 0]).max() <= 4
    # A profile of another colour space cannot be used, nor one that is no profile.
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (wrong, b"not a profile"):
        data = encoded(ink, "JPEG", quality=100, icc_profile=profile)
        assert np.array_equal(decode(data, LIMIT).rgb, plain.rgb)


def cmyk_profile() -> bytes:
    """A whole ICC profile of a press that was filled with green instead of cyan."""
    white, green, black = (255, 128, 128), (153, 68, 188), (0, 128, 128)  # Lab, as bytes
    corners = [black if n & 1 else green if n & 8 else white for n in range(16)]
    same = bytes(range(256))
    identity = [65536 if n % 4 == 0 else 0 for n in range(9)]
    table = b"mft1" + bytes(4) + struct.pack(">4B9i", 4, 3, 2, 0, *identity)
    table += same * 4 + bytes(sum(corners, ())) + same * 3
    start = 128 + 4 + 12
    header = struct.pack(
        ">I4sI4s4s4s12s4s28s3i48s",
        start + len(table),
        b"",
        0x02400000,
        b"prtr",
        b"CMYK",
        b"Lab ",
        bytes([7, 232, 0, 1, 0, 1]),
        b"acsp",
        b"",
        *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)),
        b"",
    )
    return header + struct.pack(">I4sII", 1, b"A2B0", start, len(table)) + table


def test_cmyk_profile_is_used() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        picture = decode(encoded(cyan, kind, icc_profile=cmyk_profile()), LIMIT)
        assert picture.note == "CMYK converted with its profile"
        red, green, blue = map(int, picture.rgb[0, 0])
        assert green > red + 50 and green > blue + 50
        plain = decode(encoded(cyan, kind), LIMIT)
        assert plain.rgb[0, 0, 2] > 250


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(kind: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    small = Image.fromarray(np.kron(NOISE[:2, :3], np.ones((16, 16, 1), np.uint8)))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    data = encoded(small, kind, exif=exif, **options)
    picture = decode(data, LIMIT)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(picture.rgb, expected)
    assert picture.rgb.shape == ((48, 32, 3) if value >= 5 else (32, 48, 3))
    assert image_size(data) == picture.rgb.shape[1::-1]
    assert picture.lossless_png == (kind == "PNG" and value == 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_behind_the_pixels_counts_and_damaged_exif_does_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes()[6:])
    picture = decode(raw_png(1, 2, 8, 2, b"\0\1\1\1\0\2\2\2", after=late), LIMIT)
    assert picture.rgb.tolist() == [[[2, 2, 2], [1, 1, 1]]] and not picture.lossless_png
    broken = chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")
    assert decode(raw_png(1, 1, 8, 2, b"\0\1\2\3", broken), LIMIT).rgb.shape == (1, 1, 3)


# --- damaged and hostile pictures -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "TIFF"])
def test_truncated(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    assert reason(data[: len(data) * 9 // 10]) == "truncated"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_png_without_its_end_is_truncated() -> None:
    # Pillow alone takes it: all pixels are there.
    assert reason(NOISE_PNG[:-12]) == "truncated"


def test_flipped_bits_of_a_png_are_found() -> None:
    damaged = bytearray(raw_png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tEXt", b"a\0b")))
    damaged[damaged.index(b"a\0b")] ^= 1
    assert reason(bytes(damaged)) == "damaged: wrong checksum in the PNG chunk b'tEXt'"


def test_png_headers_that_readers_take_differently() -> None:
    other = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    assert reason(raw_png(1, 1, 8, 2, b"\0\1\2\3", other)).startswith("damaged: a PNG must have")
    assert reason(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b"")).startswith("damaged: a PNG must")
    short = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"") + chunk(b"IEND", b"")
    assert reason(short) == "damaged: the PNG header is cut short"


def test_not_a_picture() -> None:
    assert reason(b"") == "empty"
    for data in (b"x", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0" * 4096, b"PK\3\4"):
        assert reason(data) == "not a picture"
        assert image_size(data) is None
    assert reason(b"\xff\x0a" + b"\0" * 64).startswith("JPEG XL")
    assert image_size("/no/such/file.png") is None


def test_size_is_checked_before_pixels() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    tiny = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    assert reason(tiny, 64_000_000) == "too large: 60000x60000 pixels > 64000000"
    real = raw_png(20000, 20000, 1, 0, bytes(20000 * (1 + 2500)))
    assert len(real) < 60_000
    assert reason(real, 64_000_000) == "too large: 20000x20000 pixels > 64000000"
    for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        data = encoded(Image.new("RGB", (64, 65)), kind)
        assert reason(data, 64 * 64) == "too large: 64x65 pixels > 4096"
    exif = Image.Exif()
    exif[0x0112] = 1
    parts: dict[bytes, dict[str, Any]] = {
        b"VP8L": {"lossless": True},
        b"VP8 ": {"quality": 80},
        b"VP8X": {"exif": exif},
    }
    for part, options in parts.items():
        data = encoded(Image.new("RGB", (64, 65)), "WEBP", **options)
        assert data[12:16] == part
        assert pixels._early_size(data, "WEBP") == (64, 65)
    canvas = bytearray(data)
    canvas[24:30] = b"\xff\x3f\0\xff\x3f\0"
    assert reason(bytes(canvas)) == "too large: 16384x16384 pixels > 1000000"


def test_packed_metadata_is_bounded() -> None:
    bomb = zlib.compress(bytes(8 << 20), 9)
    for kind in (b"zTXt", b"iCCP"):
        data = raw_png(1, 1, 8, 2, b"\0\1\2\3", chunk(kind, b"a\0\0" + bomb))
        assert reason(data).startswith("damaged: Decompressed data too large")
    found = embedded(raw_png(1, 1, 8, 2, b"", chunk(b"zTXt", b"parameters\0\0" + bomb)))
    assert found.text is not None and len(found.text) <= 1 << 20


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.fromarray(np.roll(NOISE, 5 * n, axis=1)) for n in range(12)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert reason(data) == ("several pages: 12" if kind == "TIFF" else "animated: 12 frames")


def test_all_that_pillow_raises_is_a_bad_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [
        MemoryError(),
        RecursionError("deep"),
        struct.error("x"),
        zlib.error("x"),
        Image.DecompressionBombError("Image size (9 pixels) exceeds limit of 8 pixels, could be"),
        OSError("cannot identify image file <_io.BytesIO object at 0x7f0000001000>"),
    ]
    reasons = []
    for error in raised:

        def fail(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(pixels._OPENERS, "PNG", fail)
        reasons.append(reason(NOISE_PNG))
    assert reasons == [
        "too large: out of memory",
        "damaged: deep",
        "damaged: x",
        "damaged: x",
        "too large: Image size (9 pixels) exceeds limit of 8 pixels",
        "damaged: cannot identify image file",
    ]


ANY = [
    NOISE_PNG,
    *(
        encoded(Image.fromarray(NOISE[:16, :16]), kind)
        for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    ),
    encoded(Image.new("CMYK", (9, 9)), "JPEG", icc_profile=b"p" * 200),
    raw_png(3, 1, 16, 6, b"\0" + bytes(24)),
    raw_png(2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", b"\0\0\0\7\7\7"), chunk(b"tRNS", b"\x80")),
]


def only_bad(data: bytes) -> None:
    image_size(data)
    embedded(data)
    try:
        picture = decode(data, LIMIT)
    except BadPicture as error:
        assert str(error)
    else:
        assert picture.rgb.dtype == np.uint8 and picture.rgb.shape[2:] == (3,)


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF and of odd frames
@quick
@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:30] for data in ANY)]))
def test_random_bytes(data: bytes, start: bytes) -> None:
    only_bad(start + data)


@pytest.mark.filterwarnings("ignore")
@quick
@given(st.sampled_from(ANY), st.data())
def test_damaged_files(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    only_bad(bytes(damaged[: draw.draw(st.integers(1, len(data)))]))


@pytest.mark.filterwarnings("ignore")
def test_truncation_of_a_png_is_always_found() -> None:
    small = raw_png(2, 1, 8, 2, b"\0\1\2\3\4\5\6")
    for length in range(8, len(small)):
        assert reason(small[:length]) == "truncated"
