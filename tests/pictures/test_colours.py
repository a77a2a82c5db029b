"""Colour profiles of RGB and grey images."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageCms

from pipeline.images.importer import Importer
from pipeline.pictures.colours import in_srgb, profile_of
from pipeline.pictures.sources import ImportSource
from pipeline.pixels import RGB, decode, pixels_sha256
from pipeline.tables import PLAN

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exchanged() -> bytes:
    """A profile whose red is the blue of sRGB, and the other way round."""
    profile = srgb()
    for one, other in ((b"rXYZ", b"bXYZ"),):
        profile = profile.replace(one, b"????", 1).replace(other, one, 1).replace(b"????", other, 1)
    return profile


def grey(gamma: float) -> bytes:
    """A profile of grey with a gamma."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Grey\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = [(b"wtpt", white), (b"kTRC", curve), (b"desc", text), (b"cprt", b"text\0\0\0\0-\0")]
    start, listed, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        listed += name + struct.pack(">2I", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + listed + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"    ", 0x02100000, b"mntr", b"GRAY",
                         b"XYZ ") + bytes(12) + b"acsp" + bytes(28)  # fmt: skip
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + body


def written(rgb: RGB, profile: bytes, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, kind, icc_profile=profile, **FORMATS[kind])
    return out.getvalue()


@pytest.fixture
def rgb() -> RGB:
    rows, columns = np.mgrid[:32, :48].astype(np.uint8)
    return np.dstack([rows * 7, columns * 5, 255 - rows * 3]).astype(np.uint8)


@pytest.mark.parametrize("kind", FORMATS)
def test_another_profile_is_converted_in_every_format(rgb: RGB, kind: str) -> None:
    data = written(rgb, exchanged(), kind)
    stored = decode(data, 10**6).rgb
    found, note = in_srgb(stored, data)
    assert np.abs(found.astype(int) - stored[..., ::-1]).max() <= 1
    assert note is not None and note.startswith("converted to sRGB from its colour profile (")
    same, note = in_srgb(stored, data, convert=False)
    assert same is stored
    assert note is not None and note.endswith(", not in sRGB")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("colours", ["srgb", "stored"])
def test_an_import_converts_or_notes(rgb: RGB, kind: str, colours: str, tmp_path: Path) -> None:
    data = written(rgb, exchanged(), kind)
    (tmp_path / "a.image").write_bytes(data)
    (tmp_path / "a.image").rename(tmp_path / f"a.{kind.lower()}")
    source = ImportSource.model_validate(
        {"kind": "import", "path": str(tmp_path), "colours": colours}
    )
    rows = pa.Table.from_pylist([{"image_id": "1", "path": f"a.{kind.lower()}"}], schema=PLAN)
    [row] = pa.concat_tables(Importer(source)(rows)).to_pylist()
    shown = decode(row["image"]["bytes"], 10**6).rgb
    stored = decode(data, 10**6).rgb
    expected = stored[..., ::-1] if colours == "srgb" else stored
    assert np.abs(shown.astype(int) - expected).max() <= 1
    assert row["pixels_sha256"] == pixels_sha256(shown)
    assert ("converted to sRGB" if colours == "srgb" else "not in sRGB") in row["note"]
    kept = profile_of(row["image"]["bytes"])
    assert (kept is not None) == (kind == "PNG" and colours == "stored")


def test_records_of_before_are_those_of_now() -> None:
    source = ImportSource(kind="import", path="p")
    assert "colours" not in source.recorded() and "keep_metadata" not in source.recorded()
    other = source.model_copy(update={"colours": "stored"})
    assert other.recorded() == {**source.recorded(), "colours": "stored"}


@pytest.mark.parametrize("kind", FORMATS)
def test_srgb_and_no_profile_change_nothing(rgb: RGB, kind: str) -> None:
    for profile in (srgb(), b""):
        data = written(rgb, profile, kind)
        stored = decode(data, 10**6).rgb
        found, note = in_srgb(stored, data)
        assert found is stored and note is None


def test_grey_is_converted_by_a_profile_of_grey() -> None:
    level = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    out = io.BytesIO()
    Image.fromarray(level).save(out, "PNG", icc_profile=grey(1.0))
    stored = decode(out.getvalue(), 10**6).rgb
    found, note = in_srgb(stored, out.getvalue())
    light = np.arange(256) / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found[0, :, 0] - expected).max() < 2
    assert (found == found[..., :1]).all()
    assert note == "converted to sRGB from its colour profile (Grey)"


@pytest.mark.parametrize("cut", [0, 16, 40, 131, 200, 400])
def test_a_damaged_profile_is_noted_and_nothing_else(rgb: RGB, cut: int) -> None:
    profile = exchanged()
    broken = profile[:cut] + bytes(len(profile) - cut) if cut else b"RGB " * 40
    data = written(rgb, broken, "PNG")
    found, note = in_srgb(rgb, data)
    assert found is rgb
    assert note in (None, "damaged colour profile, taken to be sRGB")
    if profile_of(data) is not None:
        assert note is not None


def test_control_characters_of_a_profiles_name_are_not_noted(rgb: RGB) -> None:
    profile = exchanged()
    name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    wide = name.encode("utf-16-be")
    hostile = profile.replace(wide, ("\x1b[31m" + name)[: len(name)].encode("utf-16-be"))
    assert hostile != profile
    note = in_srgb(rgb, written(rgb, hostile, "PNG"))[1]
    assert note is not None and note.isprintable()
