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
from pipeline.clip import file_sha256
from pipeline.learned import shipped as module
from pipeline.learned.bitstream import rates
from pipeline.learned.codec import load, load_network
from pipeline.learned.shipped import DEFAULT, FOLDER, export, members, rate_points, shipped
from pipeline.learned.sizes import NETWORKS, parse
from pipeline.pixels import RGB, decode
from tests.learned.conftest import scene, small

CATC = [f"catc-small-{number}" for number in (1, 2, 3, 4)]


def test_two_families_come_with_aigi_and_they_are_small() -> None:
    assert list(shipped()) == [*CATC, "mean-scale-small"]
    assert DEFAULT in shipped()
    assert list(members("catc-small")) == CATC
    assert list(members("mean-scale-small")) == ["mean-scale-small"]
    for family, most in (("catc-small", 20_000_000), ("mean-scale-small", 5_000_000)):
        files = (folder / "model.safetensors" for folder in members(family).values())
        assert sum(file.stat().st_size for file in files) <= most
    for name, folder in shipped().items():
        sizes = parse(json.loads((folder / "config.json").read_text()))
        change: dict[str, object] = {"name": name, "text": sizes.text}
        if name in CATC:
            assert sizes == NETWORKS["catc-small"].model_copy(update=change)
            assert sizes.text is not None and sizes.text.tower == "tiny"
        else:
            change |= {"n": 64, "m": 128, "qualities": 4}
            assert sizes == NETWORKS["mean-scale"].model_copy(update=change)


@pytest.mark.parametrize(("family", "card"), [("catc-small", "."), ("mean-scale-small",) * 2])
def test_the_card_has_the_hash_of_every_file(family: str, card: str) -> None:
    text = (FOLDER / card / "README.md").read_text(encoding="utf-8")
    pins = dict(re.findall(r"\| `([a-z0-9-]+)` \| `([0-9a-f]{64})` \|", text))
    assert pins == {
        name: file_sha256(str(folder / "model.safetensors"))
        for name, folder in members(family).items()
    }


@pytest.mark.parametrize("family", ["catc-small", "mean-scale-small"])
def test_rates_rise_and_files_decode_to_what_was_promised(family: str) -> None:
    picture, prompt = scene(1)
    found = []
    for name in members(family):
        codec = load(name, device="cpu")
        for quality in range(1, codec.qualities + 1):
            coded = codec.encode_and_reconstruct(picture, prompt, quality)
            assert np.array_equal(codec.decode(coded.data), coded.reconstruction)
            found.append((rates(coded.data).bpp, psnr(picture, coded.reconstruction)))
    assert len(found) == 4
    assert found == sorted(found) and found[0][1] + 1 < found[-1][1]


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
    monkeypatch.setattr(module, "FOLDER", tmp_path / "weights")
    trained = tmp_path / "trained"
    network = small("catc-small")
    network.save_pretrained(trained / "last")
    for name in ("curve.csv", "validation.csv"):
        (trained / name).write_text("step\n1\n")
    export("family", [trained])
    (folder,) = members("family").values()
    assert sorted(p.name for p in folder.iterdir()) == [
        *("config.json", "curve.csv", "model.safetensors", "validation.csv")
    ]
    before, after = ((f / "model.safetensors").stat().st_size for f in (trained / "last", folder))
    assert after < 0.7 * before
    stored = load_network(folder)
    tables = stored.prior.table.clone()
    stored.update()
    assert stored.prior.table.equal(tables), "tables of other weights than those in the file"


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
