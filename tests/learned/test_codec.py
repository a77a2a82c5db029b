"""Codecs: any picture in, a file out, the same picture back; rates that count everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.learned import bitstream
from pipeline.learned.codec import load
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
    fields = 9 + 1 + len(header.model) + 4 + 2 + 2 + 1 + len(bitstream.pack_prompt(header.prompt))
    assert len(data) == fields + sum(map(len, tiles))


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
from pipeline.learned.codec import load
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


@pytest.mark.parametrize("name", ["hyperprior", "mean-scale", "catc", "catc-small"])
def test_golden_files_decode(name: str) -> None:
    """A file that was written once is read for ever, to the same picture."""
    file, picture = GOLDEN / f"{name}.aigi", GOLDEN / f"{name}.png"
    if REWRITE:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (original,) = pictures(1, 48, 80, seed=11)
        encoded = ready(name).encode_and_reconstruct(original, PROMPT)
        file.write_bytes(encoded.data)
        picture.write_bytes(png_bytes(encoded.reconstruction, "small"))
    decoded = ready(name).decode(file.read_bytes())  # fails where a latent differs
    expected = decode(picture.read_bytes(), 10_000).rgb
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01, "rounding of float32"


def test_tiles_of_wrong_sizes_are_refused() -> None:
    for tile in (0, -64, 100, 2048):
        with pytest.raises(AigiError, match="multiple of 64"):
            codec("mean-scale", tile=tile)
