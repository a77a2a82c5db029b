"""What is installed decides what works: the codec alone, or all; the rest is said in one line."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def closure(wanted: Iterable[str]) -> set[str]:
    """Distributions that pip would install for these requirements, and theirs."""
    found: set[str] = set()
    left = [Requirement(text) for text in wanted]
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        if name == "aigi" or name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        extras = one.extras or {""}
        left += [
            need
            for need in map(Requirement, needs)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        ]
    return found


def only(folder: Path, names: set[str]) -> Path:
    """A folder of packages with these distributions alone."""
    folder.mkdir()
    for name in names:
        files = metadata.distribution(name).files or []
        for top in {Path(str(file)).parts[0] for file in files if ".." not in str(file)}:
            place = Path(str(metadata.distribution(name).locate_file(top)))
            if place.exists() and not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = [*PROJECT["dependencies"], *EXTRAS["codec"]]
    return only(tmp_path_factory.mktemp("codec") / "site", closure(wanted))


def aigi(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where only these packages are installed."""
    code = "from pipeline.cli import app; app(prog_name='aigi')"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{site}"}
    return subprocess.run([sys.executable, "-S", "-c", code, *arguments], cwd=folder,
                          env=environment, capture_output=True, text=True)  # fmt: skip


def test_the_extra_of_the_codec_has_neither_diffusers_nor_ray(codec: Path) -> None:
    there = {path.name for path in codec.iterdir()}
    assert {"torch", "constriction", "datasets"} <= there
    assert not {"diffusers", "ray", "accelerate", "icu4py", "wordllama", "py3langid"} & there
    everything = {Requirement(text).name for extra in ("codec", "all") for text in EXTRAS[extra]}
    assert {"diffusers", "ray", "torch"} <= everything
    assert "aigi[all,codecs,jxl,lora,metrics,s3,train]" in EXTRAS["dev"], "all is tested"


def test_the_codec_alone_encodes_decodes_and_loads(
    codec: Path, tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    done = aigi(codec, tmp_path, "encode", "x.png", "--prompt", "a boat", "--quality", "1")
    assert done.returncode == 0, done.stderr
    done = aigi(codec, tmp_path, "decode", "x.aigi")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "x-decoded.png").size == (96, 64)
    release = str(finished[1] / "release")
    assert aigi(codec, tmp_path, "verify", release).returncode == 0
    load = (
        "import pipeline; "
        f"print(pipeline.load({release!r}, 'sd', 'train', cache_dir='cache')[0]['image'].size)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", load], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{codec}"},
    )  # fmt: skip
    assert done.stdout == "(64, 64)\n", done.stderr


def test_what_needs_more_says_what_to_install(
    codec: Path, tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    run = f"run={tmp_path}/run"
    done = aigi(codec, tmp_path, "run", str(finished[0]), "--set", run)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "which is not installed: pip install 'aigi[all]'" in done.stderr
