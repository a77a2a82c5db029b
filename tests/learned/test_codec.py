"""Codecs: any picture in, a file out, the same picture back; rates that count everything."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.learned import bitstream
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.range_coder import DamagedStream
from pipeline.pixels import RGB, decode, png_bytes
from tests.conftest import ROOT
from tests.learned.conftest import SMALL, codec, pictures, ready, small, tensor, text_of

GOLDEN = ROOT / "tests" / "golden" / "learned"
REWRITE = bool(os.environ.get("AIGI_REWRITE_GOLDEN"))
PROMPT = "a red boat on a calm lake at dawn"


@pytest.mark.parametrize("name", SMALL)
def test_a_picture_comes_back_as_the_encoder_saw_it(name: str) -> None:
    (picture,) = pictures(1, 100, 70)
    encoded = ready(name).encode_and_reconstruct(picture, PROMPT)
    decoded = ready(name).decode(encoded.data)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    assert np.array_equal(decoded, encoded.reconstruction)
    assert ready(name).encode(picture, PROMPT) == encoded.data
    assert len(np.unique(decoded)) > 20, "a constant picture would prove nothing"


@pytest.mark.parametrize("size", [(1, 1), (1, 130), (64, 64), (65, 63), (3, 64)])
def test_any_size(size: tuple[int, int]) -> None:
    (picture,) = pictures(1, *size)
    for name in ("mean-scale", "catc-small"):
        encoded = ready(name).encode_and_reconstruct(picture, "x")
        assert encoded.reconstruction.shape == (*size, 3)
        assert np.array_equal(ready(name).decode(encoded.data), encoded.reconstruction)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(bad: RGB) -> None:
    with pytest.raises(AigiError, match="expected uint8, height x width x 3"):
        ready("mean-scale").encode(bad)


@pytest.mark.parametrize("name", SMALL)
def test_estimated_bits_are_the_real_ones(name: str) -> None:
    (picture,) = pictures(1, 256, 256, seed=3)
    network = ready(name).network
    text = text_of(network, [PROMPT])
    estimate = network(tensor(picture), None if text is None else text.to("cpu", torch.float32))
    header, tiles = bitstream.unpack(data := ready(name).encode(picture, PROMPT))
    bits = float(estimate.bits())
    assert 8 * sum(map(len, tiles)) == pytest.approx(bits, rel=0.01)
    # And no more than the header beside them.
    fields = (
        9 + 1 + len(header.model) + 4 + 1 + 2 + 2 + 1 + len(bitstream.pack_prompt(header.prompt))
    )
    assert len(data) == fields + sum(map(len, tiles))


def test_a_prompt_that_cannot_be_stored_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = ready("catc")
    monkeypatch.setattr(codec.network, "analyse", lambda *_: pytest.fail("it was coded"))
    with pytest.raises(AigiError, match="at most 4,096 are stored"):
        codec.encode(pictures(1)[0], "x" * 4097)


def test_every_byte_counts_and_the_prompt_is_told_apart() -> None:
    (picture,) = pictures(1, 64, 96)
    with_prompt = ready("catc").encode(picture, PROMPT)
    rates = bitstream.rates(with_prompt)
    assert rates.bpp == 8 * len(with_prompt) / (64 * 96)
    spent = (rates.bpp - rates.bpp_without_prompt) * 64 * 96 / 8
    assert spent == pytest.approx(len(bitstream.pack_prompt(PROMPT)))
    assert 1 < spent < len(PROMPT)
    assert bitstream.unpack(with_prompt)[0].prompt == PROMPT
    # A codec that does not read the prompt does not store it.
    without = ready("mean-scale").encode(picture, PROMPT)
    assert without == ready("mean-scale").encode(picture)
    assert bitstream.unpack(without)[0].prompt == ""


def test_the_text_decides_the_bits() -> None:
    (picture,) = pictures(1)
    tiles = {bitstream.unpack(ready("catc").encode(picture, p))[1][0] for p in ("", "a", "b")}
    assert len(tiles) == 3


@pytest.mark.parametrize("name", SMALL)
def test_one_network_codes_at_several_qualities(name: str, tmp_path: Path) -> None:
    small(name, qualities=3).save_pretrained(tmp_path)
    several = load(tmp_path, device="cpu")
    (picture,) = pictures(1, 100, 130)
    coded = [several.encode_and_reconstruct(picture, PROMPT, quality) for quality in (1, 2, 3)]
    assert [bitstream.unpack(one.data)[0].quality for one in coded] == [1, 2, 3]
    # A file says its quality: nothing else is needed to read it.
    for one in coded:
        assert np.array_equal(several.decode(one.data), one.reconstruction)
    sizes = [len(one.data) for one in coded]
    assert sizes == sorted(sizes) and sizes[0] < 0.8 * sizes[2]
    assert len({one.reconstruction.tobytes() for one in coded}) == 3
    assert several.encode(picture, PROMPT) == coded[2].data, "the highest where none is given"


def test_a_network_codes_between_its_qualities() -> None:
    several = LearnedCodec(small("mean-scale", qualities=3), "cpu")
    (picture,) = pictures(1, 100, 130)
    qualities = (1, 1.25, 1.5, 2, 2.37, 3)
    coded = [several.encode_and_reconstruct(picture, quality=quality) for quality in qualities]
    assert [bitstream.unpack(one.data)[0].quality for one in coded] == list(qualities)
    assert [one.data[4] for one in coded] == [2, 3, 3, 2, 3, 2]
    for one in coded:
        assert np.array_equal(several.decode(one.data), one.reconstruction)
    sizes = [len(one.data) for one in coded]
    assert sizes == sorted(set(sizes))
    assert several.encode(picture, quality=2.0) == coded[3].data
    # Decoded with the gains of its own quality, not of a neighbour.
    header, tiles = bitstream.unpack(coded[2].data)
    other = several.decode(bitstream.pack(dataclasses.replace(header, quality=1.25), tiles))
    assert not np.array_equal(other, coded[2].reconstruction)
    for quality in (0.5, 3.005, float("nan"), float("inf")):
        with pytest.raises(AigiError, match="mean-scale codes at 1 to 3"):
            several.encode(picture, quality=quality)
    with pytest.raises(AigiError, match=r"quality: 1\.333: .* Give 1\.335, which is the nearest"):
        several.encode(picture, quality=1.333)
    claimed = bitstream.pack(dataclasses.replace(header, quality=3.5), tiles)
    with pytest.raises(DamagedStream, match=r"coded at quality 3\.5; mean-scale has 3"):
        several.decode(claimed)


def test_qualities_train_and_code_alike() -> None:
    """What a batch of mixed qualities learns from is what each picture is coded to."""
    network = small("mean-scale", qualities=3).eval()
    mixed = torch.cat([tensor(p) for p in pictures(3)])
    with torch.no_grad():
        together = network(mixed, None, torch.tensor([3, 1, 2])).x_hat
        highest = network(mixed[:1]).x_hat
    torch.testing.assert_close(together[:1], highest)
    frozen = copy.deepcopy(network).freeze()
    for number, quality in enumerate((3, 1, 2)):
        data = frozen.compress(mixed[number : number + 1], None, quality)
        alone = frozen.decompress(data, 64, 64, None, quality)
        off = float((alone - together[number : number + 1]).abs().mean())
        assert off < 0.004  # the grid of means
    other = frozen.decompress(data, 64, 64, None, 3)
    assert float((other - together[2:]).abs().mean()) > 2 * off, "another gain, another picture"


def test_a_file_decodes_with_the_gains_of_its_quality() -> None:
    network = small("mean-scale", qualities=3).eval()
    codec = LearnedCodec(copy.deepcopy(network), device="cpu")
    (picture,) = pictures(1)
    with torch.no_grad():
        expected = [network(tensor(picture), None, torch.tensor([q])).x_hat for q in (1, 2, 3)]
    for number in range(3):
        decoded = tensor(codec.decode(codec.encode(picture, quality=number + 1)))
        off = [float((decoded - x_hat.clamp(0, 1)).abs().mean()) for x_hat in expected]
        assert off[number] < 0.004 and off.index(min(off)) == number


def test_a_quality_that_is_not_there_is_refused() -> None:
    (picture,) = pictures(1)
    for quality in (0, 2, -1):
        with pytest.raises(AigiError, match=rf"quality: {quality}: mean-scale codes at 1 to 1"):
            ready("mean-scale").encode(picture, quality=quality)
    header, tiles = bitstream.unpack(ready("mean-scale").encode(picture))
    claimed = bitstream.pack(dataclasses.replace(header, quality=2), tiles)
    with pytest.raises(DamagedStream, match="coded at quality 2; mean-scale has 1"):
        ready("mean-scale").decode(claimed)


def test_another_model_is_named() -> None:
    data = ready("mean-scale").encode(pictures(1)[0])
    with pytest.raises(AigiError, match=r"made with model mean-scale .* this is hyperprior"):
        ready("hyperprior").decode(data)
    with pytest.raises(AigiError, match="made with model mean-scale"):
        codec("mean-scale", seed=1).decode(data)


def test_the_fingerprint_covers_everything_that_decides_bits(tmp_path: Path) -> None:
    base = small("catc")
    before = base.fingerprint()
    assert small("catc").fingerprint() == before
    assert base.fingerprint({"text": torch.zeros(1)}) != before
    with torch.no_grad():
        base.entropy.e[2][-1].bias[0] += 1e-6
    assert base.fingerprint() != before
    again = small("catc")
    again.prior.table[0, 0] += 1
    assert again.fingerprint() != before
    frozen = small("catc").freeze()
    assert frozen.fingerprint() == before, "float64 holds the same numbers"


RUN = """
import sys, numpy as np
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.range_coder import DamagedStream
codec = load(sys.argv[1], device="cpu")
np.save(sys.argv[3], codec.decode(open(sys.argv[2], "rb").read()))
"""


def test_a_fresh_process_decodes_the_encoders_reconstruction(tmp_path: Path) -> None:
    small("catc").save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    encoded = loaded.encode_and_reconstruct(pictures(1, 90, 200)[0], PROMPT)
    (tmp_path / "x.aigi").write_bytes(encoded.data)
    subprocess.run(
        [sys.executable, "-c", RUN, *(str(tmp_path / n) for n in ("model", "x.aigi", "y.npy"))],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert np.array_equal(np.load(tmp_path / "y.npy"), encoded.reconstruction)


@pytest.mark.parametrize(
    "name", ["hyperprior", "mean-scale", "catc", "catc-small", "mean-scale-3", "catc-3"]
)
def test_golden_files_decode(name: str) -> None:
    """A file that was written once is read for ever, to the same picture.

    Those of one quality are of version 1 of the format.
    """
    file, picture = GOLDEN / f"{name}.aigi", GOLDEN / f"{name}.png"
    several = name.endswith("-3")
    kind = name.removesuffix("-3")
    made = LearnedCodec(small(kind, qualities=3), "cpu") if several else ready(kind)
    if REWRITE:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (original,) = pictures(1, 48, 80, seed=11)
        encoded = made.encode_and_reconstruct(original, PROMPT, 2 if several else 1)
        file.write_bytes(encoded.data)
        picture.write_bytes(png_bytes(encoded.reconstruction, "small"))
    assert file.read_bytes()[4] == (2 if several else 1)
    decoded = made.decode(file.read_bytes())  # fails where a latent differs
    expected = decode(picture.read_bytes(), 10_000).rgb
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01, "rounding of float32"


def test_tiles_of_wrong_sizes_are_refused() -> None:
    for tile in (0, -64, 100, 2048):
        with pytest.raises(AigiError, match="multiple of 64"):
            codec("mean-scale", tile=tile)
