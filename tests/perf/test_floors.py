"""The floors of a codec are measured on real files, and what is missed is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.benchmark.metrics import psnr
from pipeline.learned.codec import load, load_network
from tests.learned.conftest import small
from tests.perf.floors import Floor, best_jpeg, floors, jpegs, odd, summary


def test_floors_are_those_of_the_files(tmp_path: Path) -> None:
    small("catc-light-no-text", qualities=2).save_pretrained(tmp_path)
    codec, bare = load(tmp_path, device="cpu"), load_network(tmp_path).eval()
    image = odd()["text"]
    rows = floors(codec, bare, "text", image)
    data = codec.encode(image, "", 1)
    assert [row.quality for row in rows] == [1, 2]
    assert rows[0].bpp == 8 * len(data) / image[..., 0].size
    assert rows[0].psnr == psnr(image, codec.decode(data))
    assert 0.5 < rows[0].estimate < 1.5
    ladder = jpegs(image)
    # JPEG of as many bytes, and no worse with more of them.
    assert best_jpeg(ladder, 50) is None
    little, more = best_jpeg(ladder, 4000), best_jpeg(ladder, 40000)
    assert little is not None and more is not None and little < more
    # What is missed is named.
    good = Floor("a", 1, 0.1, 10_000, 30, 20, 1.001, 50)
    better = replace(good, quality=2, psnr=35)
    assert [line.rpartition(": ")[2] for line in summary([good, better])][1:4] == ["nowhere"] * 3
    bad = replace(better, psnr=29, jpeg=30, estimate=0.98)
    assert [line.rpartition(": ")[2] for line in summary([good, bad])][1:4] == ["a", "a", "a 2"]
    # Four bytes are the end of a tile, not a wrong estimate.
    assert not replace(bad, bits=1000, estimate=0.97).off
