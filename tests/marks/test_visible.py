"""Visible marks: their golden pixels, their places, their names, and logos in other processes."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import AigiError
from pipeline.marks import visible as marks
from pipeline.marks.names import embed, parse
from pipeline.marks.visible import Visible, place
from pipeline.plan import specification
from pipeline.plan.specification import SplitSpec
from tests.marks.test_watermark import picture


def visible(text: str) -> Visible:
    found = parse(text)
    assert isinstance(found, Visible)
    return found


def test_text_has_its_golden_pixels() -> None:
    """The same pixels on every machine: a change here is a change of datasets."""
    rgb = (np.arange(150 * 211 * 3) % 251).astype(np.uint8).reshape(150, 211, 3)
    name = "visible:text=AI generated (gpqy),position=bottom,opacity=0.7,scale=0.6"
    found = hashlib.sha256(embed(rgb, name).tobytes()).hexdigest()
    assert found == "fbb8aa132727a04ead5a3ab281ac66f3a16c14a5d1e0d69dfbfd8673215151a1"


def test_every_ascii_character_has_a_shape() -> None:
    shapes = {marks._text_grey(chr(code)).tobytes() for code in range(33, 127)}
    assert len(shapes) == 94


def test_a_font_of_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "FONT_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="draws its built-in font differently"):
        parse("visible:text=AI")


@pytest.mark.parametrize("position", marks.POSITIONS)
def test_only_the_place_changes(position: str) -> None:
    rgb = np.full((90, 200, 3), 128, np.uint8)
    mark = visible(f"visible:text=AI,position={position},scale=0.3,opacity=0.4")
    rows, columns = place(mark, 90, 200)
    changed = (embed(rgb, str(mark)) != rgb).any(axis=2)
    assert changed[rows, columns].mean() > 0.9
    changed[rows, columns] = False
    assert not changed.any()
    assert columns.stop - columns.start == 60
    middle = ((rows.start + rows.stop) / 180, (columns.start + columns.stop) / 400)
    for where, low, high in zip(middle, ("top", "left"), ("bottom", "right"), strict=True):
        side = 0 if low in position else 1 if high in position else 0.5
        assert abs(where - side) < (0.01 if side == 0.5 else 0.5)
        assert (where < 0.45, where > 0.55) == (side == 0, side == 1)


def logo(folder: Path, rgba: tuple[int, int, int, int] = (200, 10, 30, 255)) -> str:
    """A logo of 40x20 pixels: this colour on the left, nothing on the right. Its sha256."""
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20] = rgba
    Image.fromarray(pixels).save(folder / "mark.png")
    return hashlib.sha256((folder / "mark.png").read_bytes()).hexdigest()


def test_a_logo_is_mixed_by_its_alpha_and_the_opacity(tmp_path: Path) -> None:
    digest = logo(tmp_path)
    found = parse("visible:logo=mark.png,opacity=0.5,scale=0.5,position=top-left", tmp_path)
    assert str(found) == (
        f"visible:logo=mark.png,sha256={digest},position=top-left,opacity=0.5,scale=0.5"
    )
    rgb = np.full((40, 60, 3), 100, np.uint8)
    marked = embed(rgb, str(found))
    rows, columns = place(visible(str(found)), 40, 60)
    assert (rows, columns) == (slice(0, 15), slice(0, 30))
    np.testing.assert_array_equal(marked[:15, :15], np.full((15, 15, 3), (150, 55, 65)))
    marked[:15, :15] = 100
    np.testing.assert_array_equal(marked, rgb)


def test_values_have_one_spelling() -> None:
    full = "visible:text=AI, made by us,position=bottom-right,opacity=0.5,scale=0.2"
    for same in (full, "visible:text=AI, made by us", "visible:scale=0.200, text=AI, made by us"):
        assert str(parse(same)) == full


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dwtdct", "'dwtdct' is no watermark; use none, dwt-dct, dwt-dct-svd or visible:"),
        ("visible", "is no watermark"),
        ("visible:", "expected one of text=, logo="),
        ("visible:text=", "either text=WORDS or logo=FILE"),
        ("visible:text=AI,logo=a.png", "either text=WORDS or logo=FILE"),
        ("visible:text=AI,opacty=0.5", "'opacty=0.5': expected one of"),
        ("visible:text=AI,scale=0.1,scale=0.2", "scale= is given twice"),
        ("visible:text=AI,opacity=0", "opacity=0: expected 0.001 to 1"),
        ("visible:text=AI,opacity=nan", "opacity=nan: expected 0.001 to 1"),
        ("visible:text=AI,scale=1.001", "scale=1.001: expected 0.001 to 1"),
        ("visible:text=AI,scale=0.1234", "at most three decimals"),
        ("visible:text=AI,scale=big", "scale=big: expected"),
        ("visible:text=AI,position=middle", "position=middle: expected top-left, top"),
        ("visible:text=KÜNSTLICH", "ASCII characters, not 'Ü'"),
        ("visible:text=two\nlines", "ASCII characters"),
        ("visible:text=" + "a" * 101, "at most 100"),
        ("visible:text=AI,sha256=" + "0" * 64, "belongs to a logo"),
        ("visible:logo=absent.png", "absent.png: cannot be read"),
        ("visible:logo=no.png", "no.png: not a readable PNG image"),
        ("visible:logo=mark.png,sha256=12", "sha256=12: expected 64"),
        ("visible:logo=mark.png,sha256=" + "0" * 64, "put the right file there"),
    ],
)
def test_a_wrong_name_is_explained_with_file_and_field(
    tmp_path: Path, name: str, said: str
) -> None:
    logo(tmp_path)
    (tmp_path / "no.png").write_text("no picture")
    spec = tmp_path / "dataset.yaml"
    source = {
        "title": "t",
        "licence": "l",
        "kind": "import",
        "model": "m",
        "splits": {"train": {"watermarks": ["none", name]}},
    }
    data = {"name": "n", "title": "t", "licence": "l", "sources": {"mj": source}}
    spec.write_text(yaml.safe_dump(data))
    with pytest.raises(AigiError) as error:
        specification.load(str(spec))
    assert f"{spec}: sources.mj.splits.train.watermarks.1: " in str(error.value)
    assert said in str(error.value)


def test_a_variant_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"opacity=0\.5,scale=0\.2 is listed twice"):
        SplitSpec.model_validate({"watermarks": ["visible:text=AI", "visible:text=AI,opacity=0.5"]})


def test_the_logo_goes_along_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logo(tmp_path)
    name = f"visible:logo={tmp_path}/mark.png"
    spec = SplitSpec.model_validate({"watermarks": ["none", name]})
    rgb = picture(40, 60, 0, "noise")
    here = embed(rgb, spec.watermarks[1])
    assert str(tmp_path) not in spec.watermarks[1], "a release does not depend on the place"
    sent = pickle.dumps(spec)
    monkeypatch.setattr(marks, "_logos", {})
    marks._mark_rgba.cache_clear()
    marks.layer.cache_clear()
    with pytest.raises(ValueError, match=r"logo=mark\.png: no file with this sha256"):
        embed(rgb, spec.watermarks[1])
    assert pickle.loads(sent) == spec  # noqa: S301
    np.testing.assert_array_equal(embed(rgb, spec.watermarks[1]), here)
