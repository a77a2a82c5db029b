"""Tables fitted to what a network codes: they are part of its weights, wherever these go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.learned import export as exporting
from pipeline.learned import shipped as module
from pipeline.learned.codec import LearnedCodec, load, load_network
from pipeline.learned.export import export
from pipeline.learned.fitting import _input, fit
from pipeline.learned.network import TABLE, WEIGHTS, Network
from pipeline.pixels import RGB, png_bytes
from tests.learned.conftest import pictures, small, tensor, text_encoder

PROMPT = "a boat"
BEFORE = "adf26c555f17766b3523fade5383be9db36cc2ee25921832720d4df248c84378"


def images(count: int, seed: int) -> list[tuple[RGB, str]]:
    return [(picture, PROMPT) for picture in pictures(count, 120, 200, seed)]


def fitted(name: str, qualities: int = 1) -> Network:
    network = small(name, qualities=qualities)
    fit(network, images(3, 1))
    return network


@pytest.mark.parametrize("name", ["mean-scale-power", "catc-light-no-text-power"])
def test_fitted_codecs_need_fewer_bytes_and_estimate_them(name: str, tmp_path: Path) -> None:
    network = fitted(name, qualities=2)
    plain = LearnedCodec(small(name, qualities=2), "cpu")
    network.save_pretrained(tmp_path)
    found = load(tmp_path, device="cpu", lossless=False)
    assert found.weights != plain.weights, "other tables, another codec"
    saved = []
    for picture, _ in images(2, 2):
        for quality in (1, 2):
            coded = found.encode_and_reconstruct(picture, PROMPT, quality)
            assert np.array_equal(found.decode(coded.data), coded.reconstruction)
            before = plain.encode_and_reconstruct(picture, PROMPT, quality)
            assert np.array_equal(before.reconstruction, coded.reconstruction)
            saved.append(1 - len(coded.data) / len(before.data))
            with pytest.raises(AigiError, match="made with model"):
                plain.decode(coded.data)
            bits = found.network(_input(picture), None, torch.tensor([quality])).bits()
            around = len(found.encode(np.zeros_like(picture[:1, :1]), PROMPT, quality))
            assert len(coded.data) == pytest.approx(float(bits) / 8, rel=0.01, abs=around)
    assert np.mean(saved) > 0.01


def test_each_latent_is_counted_once_at_each_quality() -> None:
    network = small("catc-light-power", qualities=2)
    assert fit(network, images(2, 1), text_encoder()) == 2 * 2 * network.sizes.m * 8 * 16


def test_large_images_are_cut_and_small_ones_filled_up() -> None:
    assert _input(np.zeros((3000, 70, 3), np.uint8)).shape == (1, 3, 1024, 128)
    line = np.arange(2000, dtype=np.uint8)[None, :, None].repeat(3, 2)
    assert _input(line)[0, 0, 63, 0] * 255 == 488 % 256


def test_training_goes_on_as_before() -> None:
    network = small("mean-scale-power").train()
    fit(network, images(1, 1))
    assert network.training
    out = network(tensor(pictures(1)[0]))
    (grad,) = torch.autograd.grad(out.bits(), [next(network.g_a.parameters())])
    assert grad.isfinite().all() and grad.any()


def test_weights_from_before_are_read(tmp_path: Path) -> None:
    """Of a codec with a tail that has no tables of its own; and one of them can be taken back."""
    small("mean-scale-power").save_pretrained(tmp_path)
    assert TABLE not in load_file(tmp_path / WEIGHTS)
    assert load_network(tmp_path).conditional.table is None
    other = small("mean-scale-power")
    other.load_state_dict(fitted("mean-scale-power").state_dict())
    assert other.conditional.table is not None


def test_a_tail_is_part_of_the_fingerprint_and_none_is_not() -> None:
    plain, power = small("mean-scale"), small("mean-scale-power")
    power.load_state_dict(plain.state_dict())
    assert power.fingerprint() != plain.fingerprint()
    # As it was before there were tails.
    assert plain.fingerprint().hex() == BEFORE


@pytest.mark.parametrize("value", [0, -1, 1 << 24])
def test_damaged_tables_are_refused(value: int, tmp_path: Path) -> None:
    fitted("mean-scale-power").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights[TABLE][700] = value
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(AigiError, match="tables of mean-scale-power cannot be coded with"):
        load(tmp_path, device="cpu")
    weights[TABLE] = weights[TABLE][:-1].contiguous()
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(AigiError, match=r"conditional\.table"):
        load(tmp_path, device="cpu")


def test_there_is_nothing_to_fit_without_a_tail_or_images() -> None:
    with pytest.raises(AigiError, match="mean-scale has no tail"):
        fit(small("mean-scale"), images(1, 1))
    with pytest.raises(AigiError, match="no images"):
        fit(small("mean-scale-power"), [])


def test_export_fits_to_the_weights_that_it_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (module, exporting):
        monkeypatch.setattr(one, "FOLDER", tmp_path / "weights")
    run, folder = tmp_path / "run", tmp_path / "images"
    small("mean-scale-power").save_pretrained(run / "last")
    for log in ("curve.csv", "validation.csv"):
        (run / log).write_text("")
    folder.mkdir()
    for number, (picture, _) in enumerate(images(2, 1)):
        (folder / f"{number}.png").write_bytes(png_bytes(picture, "small"))
    export("name", [run], images=folder)
    stored = load_network(module.shipped()["name"])
    assert stored.conditional.table is not None
    again = load_network(module.shipped()["name"])
    fit(again, images(2, 1))
    assert again.conditional.table is not None
    assert again.conditional.table.equal(stored.conditional.table)
