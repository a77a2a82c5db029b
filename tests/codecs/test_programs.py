"""What is missing is named with its remedy; what a program does wrong is an error of its call."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import AigiError
from pipeline.codecs import color, programs
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.command import CodecFailed, Missing, find_ffmpeg, run, split_size, with_size
from pipeline.codecs.table import CODECS, conversion, opened, qualities, row_of
from tests.codecs.conftest import stand_ins
from tests.codecs.test_contract import picture


def test_every_rgb_value_survives_the_conversion() -> None:
    values = np.arange(0, 256, 5, dtype=np.uint8)
    every = np.stack(np.meshgrid(values, values, values), -1).reshape(52, -1, 3)
    planes = color.to_ycbcr(every)
    assert planes.dtype == np.uint16 and planes.max() <= 1023
    assert (color.to_rgb(planes) == every).all()


def test_conversion_is_bt709_full_range() -> None:
    pure = np.array([[[255, 0, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], np.uint8)
    y, cb, cr = color.to_ycbcr(pure)
    assert y[0].tolist() == [217, 74, 1023, 0]  # 0.2126, 0.0722, 1 and 0 of 1023
    assert cb[0].tolist() == [395, 1023, 512, 512]  # 512 - 1023 * 0.2126 / 1.8556
    assert cr[0].tolist() == [1023, 465, 512, 512]


def test_rounding_not_cutting() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)  # 401.18 of 1023
    assert color.to_ycbcr(grey)[0, 0, 0] == 401
    grey = np.full((4, 4, 3), 101, np.uint8)  # 405.19
    assert color.to_ycbcr(grey)[0, 0, 0] == 405
    grey = np.full((4, 4, 3), 201, np.uint8)  # 806.36
    assert color.to_ycbcr(grey)[0, 0, 0] == 806
    grey = np.full((4, 4, 3), 204, np.uint8)  # 818.4
    assert color.to_ycbcr(grey)[0, 0, 0] == 818
    grey = np.full((4, 4, 3), 149, np.uint8)  # 597.75
    assert color.to_ycbcr(grey)[0, 0, 0] == 598


def test_missing_programs_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name, program in (("vtm", "EncoderApp"), ("bpg", "bpgenc")):
        given = CodecSettings(codec=name)
        with pytest.raises(Missing, match=rf"{program} is not on PATH\. Build"):
            row_of(given).version(given, Here())
        with pytest.raises(Missing, match=program):
            opened(given, 32, Here())
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(Missing, match=r"pip install 'aigi\[codecs\]'"):
        find_ffmpeg("libvvenc", {})
    with pytest.raises(Missing, match=r"/nowhere/ffmpeg: no such file"):
        find_ffmpeg("libvvenc", {"ffmpeg": "/nowhere/ffmpeg"})


def test_a_format_that_pillow_was_built_without_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("PIL.features.check", lambda feature: feature == "webp")
    with pytest.raises(Missing, match=r"Pillow [0-9.]+ was built without AVIF: pip install"):
        CODECS["avif"].version(CodecSettings(codec="avif"), Here())
    assert CODECS["webp"].version(CodecSettings(codec="webp"), Here()).startswith("webp ")
    # JPEG is there without libjpeg-turbo too.
    assert CODECS["jpeg"].version(CodecSettings(codec="jpeg"), Here()).startswith("libjpeg_turbo ")


def test_ffmpeg_without_the_encoder_is_missing(tmp_path: Path) -> None:
    poor = tmp_path / "ffmpeg"
    poor.write_text("#!/bin/sh\necho ' V....D libx265              H.265'\n")
    poor.chmod(0o755)
    assert find_ffmpeg("libx265", {"ffmpeg": str(poor)}) == str(poor)
    with pytest.raises(Missing, match="was built without libvvenc"):
        find_ffmpeg("libvvenc", {"ffmpeg": str(poor)})


def test_vtm_finds_its_configuration_beside_the_program(tmp_path: Path) -> None:
    names = stand_ins(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("EncoderApp", "DecoderApp"):
        os.replace(names[name], tmp_path / "bin" / name)
        names[name] = str(tmp_path / "bin" / name)
    place = names.pop("encoder_intra_vtm.cfg")
    (tmp_path / "cfg").mkdir()
    os.replace(place, tmp_path / "cfg" / "encoder_intra_vtm.cfg")
    found = programs.vtm(32, names, CODECS["vtm"].settings)
    assert found.configuration == str((tmp_path / "cfg" / "encoder_intra_vtm.cfg").resolve())
    shutil.rmtree(tmp_path / "cfg")
    with pytest.raises(Missing, match=r"encoder_intra_vtm\.cfg is not beside"):
        programs.vtm(32, names, CODECS["vtm"].settings)


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(CodecFailed, match=r"sh: exit code 3: no space here"):
        run(["/bin/sh", "-c", "echo no space here >&2; exit 3"])
    names = stand_ins(tmp_path)
    Path(names["EncoderApp"]).write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(CodecFailed, match=r"EncoderApp: wrote no file out\.bin"):
        programs.vtm(32, names, CODECS["vtm"].settings).encode(picture(20, 20))
    Path(names["DecoderApp"]).write_text("#!/bin/sh\ntouch $4\n")
    with pytest.raises(CodecFailed, match="0 bytes of planes are no 20x20 image"):
        programs.vtm(32, names, CODECS["vtm"].settings).decode(
            with_size(picture(20, 20), b"stream")
        )


def test_size_stands_before_a_raw_stream() -> None:
    data = with_size(np.zeros((3, 70_000 // 2, 3), np.uint8), b"x")
    assert len(data) == 5 and split_size(data) == (35_000, 3, b"x")
    with pytest.raises(CodecFailed, match="longer than 65,535"):
        with_size(np.zeros((1, 70_000, 3), np.uint8), b"")
    with pytest.raises(CodecFailed, match="no image"):
        split_size(b"\1\0\1\0")
    with pytest.raises(CodecFailed, match="damaged"):
        split_size(b"\0\0\1\0xxx")


def test_conversion_loss_of_420_is_seen_and_that_of_444_is_none(here: Here) -> None:
    image = picture(21, 33)
    image[::2, ::2] = (250, 20, 30)  # chroma that half the resolution cannot hold
    vtm = conversion(opened(CodecSettings(codec="vtm"), 32, here), image)
    assert vtm is not None and (vtm == image).all()
    assert conversion(opened(CodecSettings(codec="jpeg"), 50, here), image) is None
    pytest.importorskip("imageio_ffmpeg")
    vvc = conversion(opened(CodecSettings(codec="vvc"), 32, here), image)
    assert vvc is not None and vvc.shape == image.shape
    assert 10 < np.sqrt(np.mean((vvc.astype(float) - image) ** 2)) < 100


def test_vvc_agrees_with_the_recorded_figures(shared: Path) -> None:
    """No container, no perceptual QP, no cut-off chroma: each would move these."""
    pytest.importorskip("imageio_ffmpeg")
    from pipeline.pixels import decode

    image = decode((shared / "kodak" / "kodim05.png").read_bytes(), 1 << 24).rgb[:128, :192]
    codec = opened(CodecSettings(codec="vvc"), 37, Here())
    data = codec.encode(image)
    psnr = 10 * np.log10(255**2 / np.mean((codec.decode(data).astype(float) - image) ** 2))
    assert len(data) - 4 == pytest.approx(VVC_BYTES, rel=0.02)  # without width and height
    assert psnr == pytest.approx(VVC_PSNR, abs=0.1)


# Of libvvenc in ffmpeg 9.0.2: the command line of its manual, PNG in, .266 file out.
VVC_BYTES, VVC_PSNR = 1629, 29.319


def _of_this_machine(name: str, shared: Path) -> tuple[int, float]:
    """Bytes and PSNR of a codec at QP 37, over the picture of VVC_BYTES."""
    from pipeline.pixels import decode

    image = decode((shared / "kodak" / "kodim05.png").read_bytes(), 1 << 24).rgb[:128, :192]
    given = CodecSettings(codec=name)
    try:
        codec = opened(given, 37, Here())
    except Missing as missing:
        pytest.skip(str(missing))
    assert re.search(r"[0-9]\.[0-9]", row_of(given).version(given, Here()))
    data = codec.encode(image)
    assert codec.encode(image) == data
    decoded = codec.decode(data)
    assert decoded.shape == image.shape
    assert codec.decode(codec.encode(image[:17, :33])).shape == (17, 33, 3)
    error = float(np.mean((decoded.astype(float) - image) ** 2))
    return len(data), 10 * math.log10(255**2 / error)


def test_vtm_of_the_machine(shared: Path) -> None:
    """Stand-ins are lossless: what VTM makes of its arguments is seen where it is at hand."""
    size, psnr = _of_this_machine("vtm", shared)
    # VTM 23.13 on a picture of 512 x 512, at QP 37: 0.3754 bpp and 29.90 dB, where libvvenc's
    # medium has 0.4120 bpp and 29.57 dB.
    assert size - 4 == pytest.approx(VVC_BYTES * 0.3754 / 0.4120, rel=0.12)
    assert psnr == pytest.approx(VVC_PSNR + 0.33, abs=0.5)


def test_bpg_of_the_machine(shared: Path) -> None:
    """It is x265 too, with other decisions: in the neighbourhood of ours at the same QP."""
    size, psnr = _of_this_machine("bpg", shared)
    pytest.importorskip("imageio_ffmpeg")
    ours, nearly = _of_this_machine("hevc", shared)
    assert size == pytest.approx(ours, rel=0.3)
    assert psnr == pytest.approx(nearly, abs=1.5)


def test_settings_that_make_no_sense_are_refused() -> None:
    for given, said in (
        (CodecSettings(codec="mp3"), 'no codec "mp3"; there are jpeg'),
        (CodecSettings(codec="compressai"), "give one network as models"),
        (CodecSettings(codec="jpeg", models=("x",)), "jpeg takes no models"),
        (CodecSettings(codec="jpeg", preset="slow"), "jpeg takes no preset"),
        (CodecSettings(codec="jpegxl", preset="slow"), "jpegxl takes no preset"),
        (CodecSettings(codec="jpg"), '^benchmark.codecs: no codec "jpg"; did you mean "jpeg"'),
        (CodecSettings(codec="vvc", preset="fastt"), 'no preset "fastt"; did you mean "fast"'),
        (CodecSettings(codec="vvc", preset="placebo"), 'no preset "placebo"; there are medium'),
        (CodecSettings(codec="jpeg", qualities=(75, 75.2)), r"75\.2 is no whole number"),
        (CodecSettings(codec="vtm", qualities=(32.5,)), r"32\.5 is no whole number"),
        (CodecSettings(codec="compressai", models=("x",), qualities=(2.5,)), "no whole number"),
        (CodecSettings(codec="webp", prompts=False), "webp takes no prompts"),
        (CodecSettings(codec="jpeg", qualities=(0,)), "quality 0 is not in 1 to 100"),
        (CodecSettings(codec="learned", models=("x",), qualities=(2,)), "2 is not in 1 to 1"),
    ):
        with pytest.raises(AigiError, match=said):
            row_of(given)
    row_of(CodecSettings(codec="hevc", preset="placebo"))
    row_of(CodecSettings(codec="jpegxl", qualities=(1.5,)))
    row_of(CodecSettings(codec="jpeg2000", qualities=(12.5,)))


def test_version_says_what_was_measured(tmp_path: Path) -> None:
    made = tmp_path / "catc-mse-0.013" / "best"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    models = (str(made.parent), "org/name")
    learned = CodecSettings(codec="learned", models=models)
    said = row_of(learned).version(learned, Here())
    assert said.endswith(f", catc-mse-0.013 {sha256(b'weights').hexdigest()[:8]}, org/name")
    pytest.importorskip("imageio_ffmpeg")
    for name, preset in (("vvc", None), ("hevc", None), ("vvc", "fast")):
        given = CodecSettings(codec=name, preset=preset)
        usual = {"vvc": "medium", "hevc": "slow"}[name]
        assert row_of(given).version(given, Here()).endswith(f", {preset or usual}")


def test_a_network_of_the_hub_is_of_the_revision_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def loaded(model: str, revision: str | None, *more: object, **switches: object) -> None:
        asked.append((model, revision))

    monkeypatch.setitem(sys.modules, "pipeline.learned.codec", SimpleNamespace(load=loaded))
    folder = tmp_path / "a@b"
    folder.mkdir()
    for model in ("org/name@0123abc", "org/name", str(folder)):
        opened(CodecSettings(codec="learned", models=(model,)), 1, Here())
    assert asked == [("org/name", "0123abc"), ("org/name", None), (str(folder), None)]


def test_qualities_are_each_once_and_from_low_to_high_rate() -> None:
    assert qualities(CodecSettings(codec="vvc", qualities=(32, 37, 32))) == (37, 32)
    assert qualities(CodecSettings(codec="jpeg", qualities=(90, 5))) == (5, 90)
    assert qualities(CodecSettings(codec="jpeg2000", qualities=(10, 160))) == (160, 10)
    four = CodecSettings(codec="learned", models=("a", "b", "c", "d"), qualities=(4, 1, 3))
    assert qualities(four) == (1, 3, 4)
    assert qualities(CodecSettings(codec="learned", models=("a", "b"))) == (1, 2)
    assert qualities(CodecSettings(codec="learned")) == (1, 2, 3, 4)  # those that come with aigi
    assert all(row.qualities or name == "learned" for name, row in CODECS.items())
