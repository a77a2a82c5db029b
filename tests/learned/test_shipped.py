"""The codecs that come with aigi: whole, small, ready without asking, and better than JPEG."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import AigiError
from pipeline.benchmark.metrics import psnr
from pipeline.files import file_sha256
from pipeline.learned import export as exporting
from pipeline.learned import shipped as module
from pipeline.learned.bitstream import rates
from pipeline.learned.codec import load, load_network
from pipeline.learned.export import export, rate_points, write_card
from pipeline.learned.shipped import DEFAULT, FOLDER, shipped
from pipeline.learned.sizes import NETWORKS, CatcSizes, parse
from pipeline.pixels import RGB, decode
from tests.learned.conftest import scene, small

NAMES = ("catc-light", "catc-small", "mean-scale-small")


def test_three_codecs_come_with_aigi_and_they_are_small() -> None:
    assert tuple(shipped()) == NAMES
    assert DEFAULT == "catc-small"
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.safetensors")) <= 30_000_000
    found = [
        parse(json.loads((folder / "config.json").read_text())) for folder in shipped().values()
    ]
    light, catc, mean_scale = found
    change = {"name": "catc-light", "qualities": 4}
    assert light == NETWORKS["catc-light-no-text"].model_copy(update=change)
    assert isinstance(catc, CatcSizes) and catc.text is not None and catc.text.tower == "tiny"
    assert catc == NETWORKS["catc-small"].model_copy(update={"text": catc.text, "qualities": 4})
    change = {"name": "mean-scale-small", "n": 64, "m": 128, "qualities": 4}
    assert mean_scale == NETWORKS["mean-scale"].model_copy(update=change)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_hash_of_the_weights(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    pins = re.findall(r"sha256 of `model.safetensors`: `([0-9a-f]{64})`", text)
    assert pins == [file_sha256(str(FOLDER / name / "model.safetensors"))]
    assert f"| {name} 4 | Kodak (24) |" in text


@pytest.mark.parametrize("name", NAMES)
def test_rates_rise_and_files_decode_to_what_was_promised(name: str) -> None:
    picture, prompt = scene(1)
    found = []
    codec = load(name, device="cpu")
    for quality in range(1, codec.qualities + 1):
        coded = codec.encode_and_reconstruct(picture, prompt, quality)
        assert np.array_equal(codec.decode(coded.data), coded.reconstruction)
        found.append((rates(coded.data).bpp, psnr(picture, coded.reconstruction)))
    assert len(found) == 4
    assert found == sorted(found) and found[0][1] + 1 < found[-1][1]


@pytest.mark.parametrize("quality", [1, 4])
def test_no_prompt_does_harm(quality: int) -> None:
    """Nor one of things that the picture does not show, or in words that its text encoder knows."""
    codec, (picture, own) = load("catc-small", device="cpu"), scene(2)
    found = {}
    for prompt in ("", own, "four dogs", "five little orange balls", "12 34", "a portrait, 8k"):
        coded = codec.encode_and_reconstruct(picture, prompt, quality)
        rate = rates(coded.data).bpp_without_prompt
        found[prompt] = (rate, psnr(picture, coded.reconstruction))
    rate, near = found[""]
    for prompt, (other, decibels) in found.items():
        assert other < 1.1 * rate and decibels > near - 1, f"{prompt}: {found}"


def _jpeg_at(picture: RGB, bpp: float) -> float:
    """PSNR of JPEG at a rate, between the two qualities around it."""
    points = []
    for quality in range(1, 100, 3):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality, optimize=True)
        rate = 8 * file.tell() / (picture.shape[0] * picture.shape[1])
        points.append((rate, psnr(picture, np.asarray(Image.open(file)))))
    return float(np.interp(bpp, [p[0] for p in points], [p[1] for p in points]))


def test_photos_are_nearer_than_jpeg_has_them(shared: Path) -> None:
    codecs = [load(name, device="cpu") for name in shipped()]
    pictures = [
        decode((shared / "kodak" / f"kodim{n}.png").read_bytes(), 1 << 24).rgb[64:448, 128:512]
        for n in ("04", "23")
    ]
    for codec in codecs:
        for quality in range(1, codec.qualities + 1):
            gains = []
            for picture in pictures:
                coded = codec.encode_and_reconstruct(picture, quality=quality)
                bpp = rates(coded.data).bpp
                gains.append(psnr(picture, coded.reconstruction) - _jpeg_at(picture, bpp))
            assert np.mean(gains) > 0, f"{codec.name}, quality {quality}: {gains}"


def test_export_halves_and_the_tables_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (module, exporting):
        monkeypatch.setattr(one, "FOLDER", tmp_path / "weights")
    first, trained = tmp_path / "first", tmp_path / "trained"
    small("catc-small").save_pretrained(trained / "last")
    for part in (first, trained):
        part.mkdir(exist_ok=True)
        for log in ("curve.csv", "validation.csv"):
            (part / log).write_text(f"{log} of {part.name}")
    export("name", [first, trained])
    folder = shipped()["name"]
    assert sorted(p.name for p in folder.iterdir()) == [
        *("config.json", "curve-1.csv", "curve-2.csv", "model.safetensors"),
        *("validation-1.csv", "validation-2.csv"),
    ]
    assert (folder / "curve-1.csv").read_text() == "curve.csv of first"
    assert (folder / "validation-2.csv").read_text() == "validation.csv of trained"
    before, after = ((f / "model.safetensors").stat().st_size for f in (trained / "last", folder))
    assert after < 0.7 * before
    stored = load_network(folder)
    tables = stored.prior.table.clone()
    stored.update()
    assert stored.prior.table.equal(tables), "tables of other weights than those in the file"

    (folder / "TRAINING.md").write_text("Trained by hand.")
    points = tmp_path / "measurements.csv"
    points.write_text(
        "source,codec,quality,width,height,bytes,prompt_bytes,bpp,psnr,ms_ssim,error\n"
        "Kodak,name,10,64,32,256,0,1.0,30.0,,\nKodak,name,9,64,32,128,0,0.5,29.0,,\n"
    )
    write_card("name", [points])
    said = (folder / "README.md").read_text()
    assert "Trained by hand." in said and "--model name" in said
    assert said.index("| name 9 | Kodak (1) |") < said.index("| name 10 | Kodak (1) |")
    assert file_sha256(str(folder / "model.safetensors")) in said


def test_points_are_means_of_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "measurements.csv"
    path.write_text(
        "source,codec,quality,width,height,bytes,prompt_bytes,bpp,psnr,ms_ssim,error\n"
        "kodak,jpeg,50.0,64,32,256,0,1.0,30.0,,\n"
        "kodak,jpeg,50.0,64,32,512,128,2.0,32.0,0.9,\n"
    )
    (point,) = rate_points(path)
    assert (point.codec, point.pictures, point.count) == ("jpeg 50", "kodak", 2)
    assert (point.bpp, point.bpp_without_prompt, point.psnr) == (1.5, 1.25, 31.0)
    assert point.ms_ssim == 0.9
    path.write_text(path.read_text() + "kodak,jpeg,50.0,64,32,,,,,,it broke\n")
    with pytest.raises(AigiError, match="it broke"):
        rate_points(path)
