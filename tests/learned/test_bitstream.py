"""The container and the prompt in it: what goes in comes out, in few bytes, or is refused."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.learned.bitstream import (
    MOST_TILE_PIXELS,
    Header,
    areas,
    pack,
    pack_lossless,
    padded,
    rates,
    seal,
    unpack,
)
from pipeline.learned.fields import MOST_PROMPT, Reader, pack_prompt, varint
from pipeline.learned.prompt import compress_prompt, decompress_prompt
from pipeline.learned.range_coder import DamagedStream

HEADER = Header("catc", b"\1\2\3\4", 3, 100, 70, 0, "a cat")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
@example("")
@example("a cat")
@example("一隻貓在月光下 🐈")
@example("\n\n\0")
def test_any_prompt_comes_back(prompt: str) -> None:
    try:
        field = pack_prompt(prompt)
    except AigiError:
        assert any("\ud800" <= letter <= "\udfff" for letter in prompt)
        return
    assert len(field) <= len(prompt.encode()) + 2
    header = dataclasses.replace(HEADER, prompt=prompt)
    assert unpack(pack(header, [b"tile"])) == (header, [b"tile"])


def test_english_prompts_are_small() -> None:
    prompt = b"A small brown dog is running along the beach with a stick in its mouth."
    coded = compress_prompt(prompt)
    assert len(coded) < 0.5 * len(zlib.compress(prompt, 9, -15))
    assert decompress_prompt(coded, len(prompt)) == prompt
    # The prior is a part of the format: with another one no file could be read.
    assert coded.hex() == GOLDEN


GOLDEN = "224de0fcf3066750b90eeddf3ad62d07dca34e8d22adb26be4d0985b"


def test_prompts_that_cannot_be_stored_are_refused() -> None:
    assert len(pack_prompt("x" * MOST_PROMPT)) < 100, "it learns on the way"
    with pytest.raises(AigiError, match="4,097 bytes"):
        pack_prompt("x" * (MOST_PROMPT + 1))
    with pytest.raises(AigiError, match="UTF-8"):
        pack_prompt("\ud800")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, (1 << 28) - 1))
def testvarints(value: int) -> None:
    reader = Reader(varint(value) + b"\0", 0)
    assert reader.varint("number") == value
    assert reader.at == len(varint(value)) <= 4


@pytest.mark.parametrize("data", [b"\x80", b"\x80\0", b"\xff\xff\xff\xff\1", b""])
def test_numbers_have_one_form(data: bytes) -> None:
    with pytest.raises(DamagedStream):
        Reader(data, 0).varint("number")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 128, 1024]), st.data())
def test_tiles_are_a_partition(width: int, height: int, tile: int, data: st.DataObject) -> None:
    places = areas(width, height, tile)
    assert sum((p.bottom - p.top) * (p.right - p.left) for p in places) == padded(width) * padded(
        height
    )
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    assert sum(p.top <= y < p.bottom and p.left <= x < p.right for p in places) == 1
    for place in places:
        assert place.bottom - place.top <= tile and place.right - place.left <= tile
        assert not any(edge % 64 for edge in dataclasses.astuple(place))


def test_tiles_keep_their_order_and_bounds() -> None:
    header = dataclasses.replace(HEADER, width=130, height=100, tile=64)
    tiles = [bytes([n]) * (n * 50) for n in range(6)]
    data = pack(header, tiles)
    assert unpack(data) == (header, tiles)
    assert rates(data).bpp == 8 * len(data) / 13_000


def test_what_stands_where() -> None:
    data = pack(dataclasses.replace(HEADER, prompt=""), [b"tile"])
    assert data[:5] == b"AIGI\2"
    assert data[9:] == b"\4catc\1\2\3\4" + bytes([3, 100, 70, 0, 0]) + b"tile"
    assert int.from_bytes(data[5:9], "big") == zlib.crc32(data[9:])


def test_a_quality_between_two_is_said_exactly_in_one_byte_more() -> None:
    whole = pack(HEADER, [b"tile"])
    for quality, fraction in ((3.005, 1), (3.37, 74), (3.5, 100), (3.995, 199)):
        header = dataclasses.replace(HEADER, quality=quality)
        data = pack(header, [b"tile"])
        assert data[:5] == b"AIGI\3" and data[18:20] == bytes([3, fraction])
        assert data[9:18] + data[18:19] + data[20:] == whole[9:]
        assert unpack(data) == (header, [b"tile"])
    assert pack(dataclasses.replace(HEADER, quality=3.0), [b"tile"]) == whole
    for quality in (3.001, 2.9999, float("nan")):
        with pytest.raises(AigiError, match=r"in steps of 0\.005"):
            pack(dataclasses.replace(HEADER, quality=quality), [b"tile"])


def _claim(width: int, height: int, tile: int) -> bytes:
    fields = b"".join(map(varint, (width, height, tile)))
    return seal(b"\4catc\1\2\3\4\1" + fields + b"\0" + bytes(50))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an aigi file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an aigi file"),
        (b"AIGI", "cut short"),
        (b"AIGI\5" + bytes(40), "version 5; this reads versions 1, 2, 3"),
        (pack_lossless(5, 5, bytes(40)), "lossless; this reads versions 1, 2, 3"),
        (seal(b"\4catc\1\2\3\4\1", 3), "cut short in its header"),
        (seal(b"\4catc\1\2\3\4\0\144" + bytes(50), 3), "its quality is 0"),
        (seal(b"\4catc\1\2\3\4\1\0\5\5\0\0t", 3), "claims 0 of 200 steps"),
        (seal(b"\4catc\1\2\3\4\1\310\5\5\0\0t", 3), "claims 200 of 200 steps"),
        (seal(b"\4catc\1\2\3\4" + bytes(50)), "its quality is 0"),
        (pack(HEADER, [b"tile"])[:-1], "wrong checksum"),
        (_claim(0, 5, 0), "claims 0x5"),
        (_claim(1 << 20, 1 << 20, 1), "at most 134,217,728"),
        (_claim(11_000, 11_000, 1), "fewer bytes than tiles"),
        (_claim(4096, 4096, 0), "a tile of 4096x4096"),
        (_claim(4096, 4096, 40), "a tile of 2560x2560"),
        (seal(b"\3../\1\2\3\4\5\5\0\0"), "name of its model"),
        (seal(b"\4catc\1\2\3\4\1\5\5\0" + varint(2 * 5000)), "a prompt of 5,000"),
        (seal(b"\4catc\1\2\3\4\1\5\5\0" + varint(2 * 4 + 1) + b"\xff\xfe\xfd\xfc"), "not text"),
        (seal(b"\4catc\1\2\3\4\1\5\5\0" + varint(2 * 4 + 1) + b"ab"), "cut short in its prompt"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_is_refused_and_why(data: bytes, why: str) -> None:
    with pytest.raises(DamagedStream, match=why):
        unpack(data)


def test_a_limit_can_be_raised() -> None:
    data = pack(dataclasses.replace(HEADER, width=1000, height=1000), [b"x"])
    with pytest.raises(DamagedStream, match="1000x1000"):
        unpack(data, max_pixels=999_999)
    assert unpack(data, max_pixels=1_000_000)[0].width == 1000
    assert MOST_TILE_PIXELS >= 1_000_000
