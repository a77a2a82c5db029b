"""Operations are counted, memory is a codec's own, and one that fails costs its row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.benchmark.complexity import Weigher, measure, square
from pipeline.codecs import codec as codecs
from pipeline.codecs import table
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.command import CodecFailed, peak_mib, run
from pipeline.faults import MachineFault
from pipeline.learned.codec import load
from pipeline.pixels import png_bytes
from tests.benchmark.conftest import execute, write_workflow
from tests.codecs.conftest import model, stand_ins
from tests.codecs.test_contract import picture

__all__ = ["model"]  # a fixture


class OneConvolution:
    """An encoder of 10 * 3 * 9 products a pixel and a decoder of none; it takes 200 MiB."""

    def __init__(self) -> None:
        self.network = torch.nn.Conv2d(3, 10, 3, padding=1)

    def encode(self, image: Any, prompt: str = "") -> bytes:
        """Convolve, and forget."""
        held = np.ones(200 << 17)
        with torch.no_grad():
            self.network(torch.zeros(1, 3, *image.shape[:2]))
        return b"x" * int(held[0])

    def decode(self, data: bytes) -> Any:
        """No picture of any use."""
        return picture(16, 16)


def weighed() -> None:
    """Print as JSON what is measured of OneConvolution."""
    row = table.CODECS["jpeg"]
    fake = codecs.Row(**{**vars(row), "network": True, "open": lambda *given: OneConvolution()})
    table.CODECS["jpeg"] = fake
    given = CodecSettings(codec="jpeg")
    print(json.dumps(measure(given, 50, Here(device="cpu"), picture(32, 32), 2)))


def test_operations_weights_and_memory_are_counted() -> None:
    # In a process of its own, as codecs are measured: other tests' garbage, freed meanwhile, would
    # count as memory given back.
    code = "from tests.benchmark.test_complexity import weighed; weighed()"
    found = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert found["encode_kmac_per_pixel"] == pytest.approx(0.27)
    assert found["decode_kmac_per_pixel"] == 0
    assert found["parameters"] == 280
    # Torch itself takes some at its first convolution.
    assert 200 < found["peak_mib"] < 450
    assert found["encode_s_per_mp"] > 0 < found["decode_s_per_mp"]


def test_memory_of_a_program_is_its_own(tmp_path: Path) -> None:
    programs = stand_ins(tmp_path)
    encoder = Path(programs["bpgenc"])
    encoder.write_text(encoder.read_text() + "\nheld = bytearray(b'x') * (150 << 20)\n")
    held = np.ones(400 << 17)  # what starts the program is larger
    found = measure(CodecSettings(codec="bpg"), 32, Here(programs), picture(32, 32), 1)
    assert held[0] and 150 < found["peak_mib"] < 200
    with pytest.raises(CodecFailed, match="exit code 3: out of luck"):
        peak_mib(lambda: run(["/bin/sh", "-c", "echo out of luck >&2; exit 3"]))
    assert run(["/bin/sh", "-c", "echo $PPID"]).strip() == str(os.getpid()).encode()


def test_square_cuts_or_mirrors() -> None:
    image = picture(20, 30)
    assert (square(image, 16) == image[:16, :16]).all()
    large = square(image, 100)
    assert large.shape == (100, 100, 3)
    assert (large[20:40, :30] == image[::-1]).all()


def test_a_program_that_is_killed_fails_the_shard_and_not_the_row(tmp_path: Path) -> None:
    programs = stand_ins(tmp_path)
    given = CodecSettings(codec="bpg")
    row = {"settings": given.model_dump_json(), "side": 32, "quality": 32.0,
           "image": png_bytes(picture(32, 32)), "known": None}  # fmt: skip
    weigher = Weigher(Here(programs, "cpu"), 1, 1, {})
    Path(programs["bpgenc"]).write_text("#!/bin/sh\nkill -KILL $$\n")
    with pytest.raises(MachineFault, match=r"bpg at 32 pixels a side: .*ended by SIGKILL"):
        list(weigher(pa.Table.from_pylist([row])))
    # So does the death of what starts it.
    Path(programs["bpgenc"]).write_text("#!/bin/sh\n[ $# = 0 ] || kill -KILL $PPID\n")
    with pytest.raises(MachineFault, match="bpg at 32 pixels a side: "):
        list(weigher(pa.Table.from_pylist([row])))


def test_a_table_of_codecs_and_sizes(tmp_path: Path, pictures: Path, model: str) -> None:
    programs = stand_ins(tmp_path)
    broken = Path(programs["bpgenc"])
    broken.write_text("#!/bin/sh\necho out of luck >&2; exit 2\n")
    workflow = write_workflow(
        tmp_path / "w.yaml",
        pictures,
        programs,
        codecs=[{"codec": "learned", "models": [model], "name": "ours"}, "vtm", "bpg"],
        strips=None,
        complexity={"sides": [64]},
    )
    store, _ = execute(workflow)
    rows = {row["codec"]: row for row in store.read_all("complexity").to_pylist()}
    assert set(rows) == {"ours", "vtm", "bpg"}
    ours, vtm = rows["ours"], rows["vtm"]
    loaded = load(model, device="cpu")
    assert loaded.text is not None
    weights = [*loaded.network.parameters(), *loaded.text.model.parameters()]
    assert ours["error"] is None and ours["parameters"] == sum(w.numel() for w in weights)
    assert ours["encode_kmac_per_pixel"] > 0.1 < ours["decode_kmac_per_pixel"]
    assert vtm["error"] is None and vtm["parameters"] is None
    assert vtm["encode_kmac_per_pixel"] is None and vtm["peak_mib"] > 5
    assert rows["bpg"]["error"] == "bpgenc: exit code 2: out of luck"
    page = Path(store.path("benchmark", "README.md")).read_text()
    assert "## Complexity" in page and "bpgenc: exit code 2" in page.replace("&#58;", ":")
    # Networks and programs stand in the measurements too.
    measured = store.read_all("measurements").to_pylist()
    mine = [row for row in measured if row["codec"] == "ours" and row["error"] is None]
    assert len(mine) == 3 and all(row["prompt_bytes"] > 10 for row in mine)
