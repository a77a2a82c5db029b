"""Files that no encoder wrote: one typed error each, after little work and in little memory."""

from __future__ import annotations

import resource
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.learned.bitstream import MOST_TILE_PIXELS, START, seal, unpack
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.fields import pack_prompt, varint
from pipeline.learned.range_coder import DamagedStream, RangeWriter
from tests.learned.conftest import pictures, ready, text_encoder

CODECS = ("mean-scale", "catc", "catc-small", "mean-scale-power")


@cache
def files(name: str) -> list[bytes]:
    """Sound files: small, tiled, with and without a prompt."""
    sizes = [(64, 64, "a boat"), (1, 1, ""), (100, 130, "two trees at night")]
    found = [ready(name).encode(pictures(1, h, w)[0], prompt) for h, w, prompt in sizes]
    tiled = LearnedCodec(ready(name).network, "cpu", tile=64)
    return [*found, tiled.encode(pictures(1, 130, 200)[0], "a boat")]


@st.composite
def damaged(draw: st.DrawFn, name: str) -> tuple[bytes, bool]:
    """A hostile file, and whether its checksum of the file was made to fit."""
    data = bytearray(draw(st.sampled_from(files(name))))
    kind = draw(st.sampled_from(["cut", "flip", "random", "forged", "claim", "splice"]))
    if kind == "cut":
        return bytes(data[: draw(st.integers(0, len(data) - 1))]), False
    if kind == "flip":
        places = draw(st.sets(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=9))
        for place in places:
            data[place // 8] ^= 1 << place % 8
        return bytes(data), False
    if kind == "random":
        head = draw(st.sampled_from([b"", b"AIGI", b"AIGI\1", b"AIGI\2", b"AIGI\3"]))
        return head + draw(st.binary(max_size=200)), False
    if kind == "claim":
        sizes = st.one_of(st.integers(1, 1 << 13), st.integers(0, (1 << 28) - 1))
        fields = [draw(sizes), draw(sizes), draw(st.integers(0, 64))]
        claim = bytes([len(name)]) + name.encode() + ready(name).weights
        claim += bytes([draw(st.sampled_from([1, 1, 1, 0, 2, 255]))])
        version = draw(st.sampled_from([2, 2, 3]))
        if version == 3:
            claim += bytes([draw(st.sampled_from([0, 1, 100, 199, 200, 255]))])
        claim += b"".join(map(varint, fields)) + pack_prompt(draw(st.sampled_from(["", "a boat"])))
        return seal(claim + draw(st.binary(max_size=400)), version), True
    body = data[START:]
    if kind == "splice":
        at, count = draw(st.integers(0, len(body))), draw(st.integers(0, 60))
        body[at : at + count] = draw(st.binary(max_size=80))
    else:
        places = draw(st.sets(st.integers(0, 8 * len(body) - 1), min_size=1, max_size=9))
        for place in places:
            body[place // 8] ^= 1 << place % 8
    return seal(bytes(body)), True


def attack(name: str, data: bytes, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode it: a typed error, or, where every checksum was made to fit, a picture."""
    codec, work = ready(name), []
    read = codec.network.read

    def watched(tile: bytes, height: int, width: int, text: object) -> object:
        work.append(height * width)
        return read(tile, height, width, text)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(codec.network, "read", watched)
        try:
            picture = codec.decode(data)
        except AigiError as error:
            assert isinstance(error, DamagedStream) or "made with model" in str(error)
            # All tiles but the one that failed had the right checksums.
            assert len(work) <= 13 and max(work, default=0) <= MOST_TILE_PIXELS
            return
    header, _ = unpack(data)
    assert fits, "a changed file was decoded"
    assert picture.shape == (header.height, header.width, 3)


@pytest.mark.parametrize("name", CODECS)
def test_hostile_files_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(damaged(name))
    def check(case: tuple[bytes, bool]) -> None:
        attack(name, *case, monkeypatch)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_12_000_hostile_files_in_bounded_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=4000, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(damaged(name))
    def check(case: tuple[bytes, bool]) -> None:
        attack(name, *case, monkeypatch)

    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"{grown:.0f} MiB more"


def test_a_line_that_pads_to_many_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first tile is sound, so only the claim tells; 1 pixel wide is 64 when decoded."""
    codec = ready("mean-scale")
    _, (tile,) = unpack(codec.encode(np.zeros((1536, 64, 3), np.uint8)))
    count = (1 << 27) // 1536 + 1
    name = codec.name.encode()
    head = bytes([len(name)]) + name + codec.weights + b"\1"
    head += varint(1) + varint(1 << 27) + varint(1536 // 64) + pack_prompt("")
    data = seal(head + varint(len(tile)) + tile + b"\1\0" * (count - 1))
    monkeypatch.setattr(codec.network, "read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DamagedStream, match=r"claims 1x134217728 pixels \(8,589,934,592 when"):
        codec.decode(data)


def test_every_cut_of_a_file_is_refused() -> None:
    for data in files("catc-small"):
        for length in range(len(data)):
            with pytest.raises(DamagedStream):
                unpack(data[:length])


def test_symbols_that_do_not_fit_are_refused_where_all_else_fits() -> None:
    """The checksum of the file is right, the coded symbols are others."""
    codec = ready("mean-scale")
    data = codec.encode(pictures(1)[0])
    refused = 0
    for place in range(8 * (len(data) - 12), 8 * len(data), 5):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        try:
            same = codec.decode(seal(bytes(changed[START:])))
        except DamagedStream as error:
            assert "do not match their checksum" in str(error)
            refused += 1
        else:  # bits at the very end may mean nothing
            assert np.array_equal(same, codec.decode(data))
    assert refused >= 10


def test_a_file_of_escapes_only_is_refused() -> None:
    """Symbols as far out as can be written, everywhere, with a forged checksum of the file."""
    writer = RangeWriter()
    codec = ready("mean-scale")
    for code in codec.network.prior.codes():
        writer.write(np.array([32767]), code)
    header = bytes([10]) + b"mean-scale" + codec.weights + bytes([1, 64, 64, 0, 0])
    with pytest.raises(DamagedStream, match="checksum"):
        codec.decode(seal(header + bytes(6) + writer.bytes()))


def test_a_long_prompt_of_garbage_is_bounded() -> None:
    assert text_encoder() is not None
    head = bytes([4]) + b"catc" + ready("catc").weights + bytes([1, 64, 64, 0])
    for length in (4096, 4097, (1 << 27) - 1):
        forged = seal(head + varint(2 * length) + varint(30) + bytes(range(30)) + bytes(100))
        with pytest.raises(DamagedStream):
            ready("catc").decode(forged)
