"""Targets in bits a pixel and dB: the nearest file on the right side, or what there is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline import AigiError
from pipeline.benchmark.metrics import psnr
from pipeline.cli import app
from pipeline.learned.bitstream import unpack
from pipeline.learned.codec import LearnedCodec
from pipeline.learned.targets import Met, _bracket, meet
from tests.learned.conftest import pictures, ready, small


@cache
def several() -> LearnedCodec:
    return LearnedCodec(small("mean-scale", qualities=3), "cpu")


@pytest.mark.parametrize("unit", ["bpp", "psnr"])
@pytest.mark.parametrize("goal", [200, 233.3, 417, 599.9, 600])
def test_a_bracket_ends_at_the_neighbours_of_a_target(unit: str, goal: float) -> None:
    known: dict[int, float] = {}

    def value(steps: int) -> float:
        known[steps] = 1.003**steps if unit == "bpp" else steps / 10 + 3 * np.sin(steps / 90)
        return known[steps]

    curve = {steps: value(steps) for steps in range(200, 601)}
    target = float(np.interp(goal, list(curve), list(curve.values())))
    known.clear()
    _bracket(value, 200, 600, unit, target)  # type: ignore[arg-type]
    ends = [value(200), value(600)]
    assert len(known) <= 14 and ends
    if unit == "bpp":
        best = max(v for v in curve.values() if v <= target)
        assert max(v for v in known.values() if v <= target) == best
    else:
        best = min(v for v in curve.values() if v >= target)
        assert min(v for v in known.values() if v >= target) == best


def test_a_rate_is_not_exceeded_and_a_psnr_is_reached() -> None:
    (image,) = pictures(1, 100, 130)
    codec, tried = several(), list[Met]()
    least, most = (8 * len(codec.encode(image, quality=q)) / image[..., 0].size for q in (1, 3))
    target = (least + most) / 2
    found = meet(codec, image, "", "bpp", target, tried=tried.append)
    assert found.bpp <= target < found.bpp * 1.03
    assert 8 * len(found.data) / (100 * 130) == found.bpp
    assert unpack(found.data)[0].quality == found.quality
    assert codec.encode(image, quality=found.quality) == found.data
    assert psnr(image, codec.decode(found.data)) == pytest.approx(found.psnr)
    assert found in tried and len(tried) <= 14
    low, high = sorted(met.psnr for met in tried if met.quality in (1, 3))
    wanted = (low + high) / 2
    reached = meet(codec, image, "", "psnr", wanted)
    assert wanted <= reached.psnr
    assert reached.psnr == pytest.approx(psnr(image, codec.decode(reached.data)))


def test_what_cannot_be_had_is_refused_with_the_range() -> None:
    (image,) = pictures(1)
    for target, nearest in ((0.001, 1), (1000.0, 3)):
        with pytest.raises(
            AigiError,
            match=rf"bpp: {target:g}: out of reach: mean-scale codes this image at [0-9.]+ to "
            rf"[0-9.]+ bits a pixel. The nearest is --quality {nearest}",
        ):
            meet(several(), image, "", "bpp", target)
    with pytest.raises(AigiError, match=r"psnr: 99: out of reach: .* dB"):
        meet(several(), image, "", "psnr", 99)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AigiError, match="a number above 0"):
            meet(several(), image, "", "bpp", bad)
    with pytest.raises(AigiError, match="codes at one rate"):
        meet(ready("mean-scale"), image, "", "bpp", 1)


def aigi(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_meets_targets_and_searches(tmp_path: Path) -> None:
    small("mean-scale", qualities=3).save_pretrained(tmp_path / "model")
    (image,) = pictures(1)
    Image.fromarray(image).save(tmp_path / "in.png")
    file = tmp_path / "x.aigi"
    coding = ("encode", tmp_path / "in.png", "--model", tmp_path / "model", "-o", file)
    done = aigi(*coding, "--quality", "2.5", "--effort", "1")
    assert done.exit_code == 0, done.output
    assert "quality 2.5; search of 15 steps: " in done.stdout and " dB, quality" in done.stdout
    assert unpack(file.read_bytes())[0].quality == 2.5
    bpp = 8 * file.stat().st_size / 64**2
    done = aigi(*coding, "--bpp", f"{bpp}")
    assert done.exit_code == 0, done.output
    assert 8 * file.stat().st_size / 64**2 <= bpp
    quality = unpack(file.read_bytes())[0].quality
    assert f"quality {quality:g}" in done.stdout and "quality 1: " in done.stderr
    file.unlink()
    for more, said in (
        (("--bpp", "1", "--psnr", "30"), "exclude each other"),
        (("--quality", "1", "--bpp", "1"), "exclude each other"),
        (("--psnr", "98"), "out of reach"),
        (("--quality", "1.234"), "in steps of 0.005"),
    ):
        done = aigi(*coding, *more)
        assert done.exit_code == 1 and said in done.stderr, done.output
    assert aigi(*coding, "--effort", "3").exit_code == 2
    assert not file.exists()
