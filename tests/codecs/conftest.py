"""Every codec of the dict, ready to code: with stand-ins where its program is not at hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.codecs.codec import CodecSettings, Here, Row
from pipeline.codecs.command import Missing
from pipeline.codecs.table import CODECS, row_of

ENCODER_APP = """
import sys, zlib
a = sys.argv[1:]
value = dict(zip(a[:18:2], a[1:18:2]))
assert set(value) == {"-i", "-c", "-q", "-o", "-b", "-wdt", "-hgt", "-fr", "-f"}, value
assert a[18:] == ["--InputChromaFormat=444", "--InputBitDepth=10", "--ConformanceWindowMode=1"], a
assert "[VTM" in open(value["-c"]).read() and 0 < int(value["-q"]) <= 63
raw = open(value["-i"], "rb").read()
assert len(raw) == 6 * int(value["-wdt"]) * int(value["-hgt"])
open(value["-b"], "wb").write(zlib.compress(raw))
"""
DECODER_APP = """
import sys, zlib
assert sys.argv[1::2][:3] == ["-b", "-o", "-d"] and sys.argv[6] == "10"
open(sys.argv[4], "wb").write(zlib.decompress(open(sys.argv[2], "rb").read()))
"""
BPGENC = """
import sys, zlib
a = sys.argv[1:]
assert a[:8] == ["-e", "x265", "-f", "444", "-c", "ycbcr", "-b", "8"], a
assert a[8] == "-q" and 0 <= int(a[9]) <= 51 and a[10] == "-o", a
open(a[11], "wb").write(b"BPG" + zlib.compress(open(a[12], "rb").read()))
"""
BPGDEC = """
import sys, zlib
assert sys.argv[1] == "-o"
open(sys.argv[2], "wb").write(zlib.decompress(open(sys.argv[3], "rb").read()[3:]))
"""


def _program(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def stand_ins(folder: Path) -> dict[str, str]:
    """Programs that take VTM's and BPG's arguments, and are lossless."""
    configuration = folder / "encoder_intra_vtm.cfg"
    configuration.write_text("# [VTM]\n")
    found = {"encoder_intra_vtm.cfg": str(configuration)}
    for name, text in (
        ("EncoderApp", ENCODER_APP),
        ("DecoderApp", DECODER_APP),
        ("bpgenc", BPGENC),
        ("bpgdec", BPGDEC),
    ):
        found[name] = _program(folder, name, text)
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with text, in a folder."""
    from tests.learned.conftest import small

    folder = tmp_path_factory.mktemp("model")
    small("catc-small").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """This machine, with stand-ins for VTM and BPG."""
    return Here(stand_ins(tmp_path_factory.mktemp("programs")), "cpu")


@pytest.fixture(params=CODECS)
def settings(request: pytest.FixtureRequest, model: str, here: Here) -> CodecSettings:
    """Settings of each codec; one that this machine cannot run is skipped, with the reason."""
    models = {"learned": (model,), "compressai": ("mbt2018-mean",)}
    found = CodecSettings(codec=request.param, models=models.get(request.param, ()))
    if request.param == "compressai":
        pytest.skip("its weights come from the network; test_zoo has networks without")
    if request.param == "recipe":
        pytest.skip("it codes images of a release by their rows; test_recipe has such")
    try:
        row_of(found).version(found, here)
    except Missing as missing:
        pytest.skip(str(missing))
    return found


@pytest.fixture
def row(settings: CodecSettings) -> Row:
    """The codec's row."""
    return row_of(settings)
