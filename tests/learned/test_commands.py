"""`aigi encode` and `aigi decode`: a picture to a file and back, with errors that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.learned.codec import load
from pipeline.learned.shipped import DEFAULT
from tests.learned.conftest import pictures, small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "model"
    small("catc-small").save_pretrained(folder)
    return folder


def aigi(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_picture_goes_to_a_file_and_back(tmp_path: Path, model: Path) -> None:
    (picture,) = pictures(1, 50, 90)
    Image.fromarray(picture).save(tmp_path / "in.png")
    done = aigi(
        *("encode", tmp_path / "in.png", "--prompt", "a boat", "--model", model),
        *("-o", tmp_path / "x.aigi", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    data = (tmp_path / "x.aigi").read_bytes()
    assert f"{len(data):,} bytes, {8 * len(data) / 4500:.4f} bpp" in done.stdout
    assert "without the prompt" in done.stdout and "next: aigi decode" in done.stderr
    done = aigi("decode", tmp_path / "x.aigi", "--model", model, "-o", tmp_path / "y.png")
    assert done.exit_code == 0, done.output
    codec = load(model, device="cpu")
    assert codec.encode(picture, "a boat") == data
    assert np.array_equal(np.asarray(Image.open(tmp_path / "y.png")), codec.decode(data))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "x.aigi", "y.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_other_kinds_of_pictures(tmp_path: Path, model: Path, mode: str) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGBA" if mode == "P" else mode)
        picture = picture.quantize(16) if mode == "P" else picture
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(grey.T.copy()))
    picture.save(tmp_path / "in.png")
    done = aigi("encode", tmp_path / "in.png", "--model", model, "-o", tmp_path / "x.aigi")
    assert done.exit_code == 0, done.output
    assert ("laid over white" in done.stdout) == (mode in ("RGBA", "LA"))
    decoded = load(model, device="cpu").decode((tmp_path / "x.aigi").read_bytes())
    assert decoded.shape == (64, 64, 3)


def test_errors_name_the_remedy(tmp_path: Path, model: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "in.png")
    out = ("-o", tmp_path / "x.aigi")
    for arguments, said in (
        (("encode", tmp_path / "absent.png", "--model", model, *out), "absent.png: no such file"),
        (("encode", tmp_path / "text.png", "--model", model, *out), "not a picture"),
        (("encode", tmp_path / "in.png", "--model", tmp_path, *out), "no config.json"),
        (("encode", tmp_path / "in.png", "--model", "no/such", *out), "one of catc-light"),
        (("decode", tmp_path / "text.png", "--model", model, *out), "not an aigi file"),
    ):
        done = aigi(*arguments)
        assert done.exit_code == 1 and said in done.stderr, done.output
        assert not (tmp_path / "x.aigi").exists()
    aigi("encode", tmp_path / "in.png", "--model", model, *out)
    done = aigi("decode", tmp_path / "x.aigi", "-o", tmp_path / "y.png")
    assert done.exit_code == 1 and "made with model catc-small" in done.stderr
    done = aigi("encode", tmp_path / "in.png", "--model", model, "-o", tmp_path / "no" / "x.aigi")
    assert done.exit_code == 1 and "no such file or folder" in done.stderr


def test_a_picture_is_coded_without_naming_a_model(tmp_path: Path) -> None:
    picture, prompt = pictures(1, 96, 130)[0], "a red boat"
    Image.fromarray(picture).save(tmp_path / "in.png")
    file, out = tmp_path / "x.aigi", tmp_path / "y.png"
    done = aigi("encode", tmp_path / "in.png", "--prompt", prompt, "-o", file)
    assert done.exit_code == 0, done.output
    assert f"next: aigi decode {file}" in done.stderr
    assert file.read_bytes() == load(DEFAULT, device="cpu").encode(picture, prompt)
    assert aigi("decode", file, "-o", out).exit_code == 0
    assert np.array_equal(
        np.asarray(Image.open(out)), load(DEFAULT, device="cpu").decode(file.read_bytes())
    )
    # Another one, which reads no prompts: the file says which model it wants.
    done = aigi(
        "encode", tmp_path / "in.png", "--model", "mean-scale-small", "-o", file, "--prompt", "x"
    )
    assert done.exit_code == 0 and aigi("decode", file, "-o", out).exit_code == 0
    assert "mean-scale-small does not use prompts, so the prompt is not stored" in done.stderr


def test_a_quality_is_asked_for(tmp_path: Path) -> None:
    small("catc", qualities=3).save_pretrained(tmp_path / "model")
    Image.fromarray(pictures(1, 96, 130)[0]).save(tmp_path / "in.png")
    sizes = []
    for quality in ("1", "3"):
        file = tmp_path / f"{quality}.aigi"
        where = ("--model", tmp_path / "model")
        done = aigi("encode", tmp_path / "in.png", *where, "--quality", quality, "-o", file)
        assert done.exit_code == 0, done.output
        assert aigi("decode", file, *where, "-o", tmp_path / "y.png").exit_code == 0
        sizes.append(file.stat().st_size)
    assert sizes[0] < 0.8 * sizes[1]
    done = aigi("encode", tmp_path / "in.png", *where, "-q", "4", "-o", tmp_path / "z.aigi")
    assert done.exit_code == 1 and "codes at 1 to 3" in done.stderr
    assert not (tmp_path / "z.aigi").exists()


def test_without_names_files_are_beside_the_image(tmp_path: Path, model: Path) -> None:
    picture = tmp_path / "in.png"
    Image.fromarray(pictures(1)[0]).save(picture)
    before = picture.read_bytes()
    assert aigi("encode", picture, "--model", model, "--device", "cpu").exit_code == 0
    assert aigi("decode", tmp_path / "in.aigi", "--model", model).exit_code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["in-decoded.png", "in.aigi", "in.png"] and picture.read_bytes() == before
    done = aigi("encode", "--recipe", f"{tmp_path}#x")
    assert done.exit_code == 1 and "--out FILE is needed" in done.stderr
