"""What prompts cost and can save: by hand, and on the page of a codec that stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.benchmark.prompts import compared, spent, without_prompts
from pipeline.store import Store
from tests.benchmark.conftest import PROMPT, cells_of, execute, page_of, write_workflow


def table(*rows: dict[str, Any]) -> pa.Table:
    """Measurements with these columns; the rest is the same for all."""
    usual = {
        "source": "a", "watermark": "none", "width": 100, "height": 80, "encode_ms": 1.0,
        "decode_ms": 1.0, "prompt_bytes": 0, "error": None,
    }  # fmt: skip
    whole = [usual | {"bpp": 8 * row["bytes"] / 8000} | row for row in rows]
    return pa.Table.from_pylist(whole)


def test_what_a_prompt_takes_and_can_save() -> None:
    found = spent(
        table(
            {"image_id": "1", "codec": "text", "quality": 1.0, "bytes": 1100, "prompt_bytes": 100},
            {"image_id": "2", "codec": "text", "quality": 1.0, "bytes": 3050, "prompt_bytes": 50},
            {"image_id": "3", "codec": "text", "quality": 1.0, "bytes": 999},
            {"image_id": "1", "codec": "jpeg", "quality": 1.0, "bytes": 999},
        )
    )
    assert [(one.codec, one.quality, one.images) for one in found] == [("text", 1.0, 2)]
    (one,) = found
    assert one.bpp == pytest.approx((1.1 + 3.05) / 2)
    assert one.bpp_without_prompt == pytest.approx((1 + 3) / 2)
    assert one.prompt_bits == pytest.approx(600) and one.most == pytest.approx(150 / 4000)


def test_without_their_bytes_a_codec_is_the_one_that_never_had_them() -> None:
    sizes = {1.0: 1000, 2.0: 2000, 3.0: 4000}
    rows: list[dict[str, Any]] = [
        {
            "image_id": image, "codec": codec, "quality": quality, "psnr": 30 + 4 * quality,
            "bytes": size + (100 if codec == "text" else 0),
            "prompt_bytes": 100 if codec == "text" else 0,
        }
        for image in "12"
        for codec in ("plain", "text")
        for quality, size in sizes.items()
    ]  # fmt: skip
    measured = table(*rows)
    assert without_prompts(measured)["bpp"].to_pylist() == pytest.approx(
        [8 * sizes[row["quality"]] / 8000 for row in rows]
    )
    found = compared(measured, ["plain", "text"], "plain", "pchip")["a"]["text"]
    assert found.rate is not None and found.rate.value == pytest.approx(0, abs=1e-6)


def test_the_page_has_both_rates_and_the_bound(tmp_path: Path, pictures: Path) -> None:
    store, _ = execute(
        write_workflow(
            tmp_path / "w.yaml",
            pictures,
            {},
            codecs=["jpeg", {"codec": "learned", "name": "with", "qualities": [1]}],
            anchor="jpeg",
            strips=None,
        ),
        device="cpu",
    )
    html = page_of(store)
    heading, *rows = cells_of(html, "What prompts cost, and can save")
    assert heading[-1] == "can save at most" and [row[:3] for row in rows] == [
        ["with", "1", "3"]
    ]  # fmt: skip
    from pipeline.learned.bitstream import pack_prompt

    for row in rows:
        assert float(row[3]) > float(row[4]) > 0
        assert row[5] == f"{8 * len(pack_prompt(PROMPT))}"
    assert Path(store.path("benchmark", "tables", "bd-rate-psnr-without-prompts.md")).exists()


def test_the_page_of_codecs_without_prompts_has_no_word_of_them(
    measured: tuple[Path, Store, str],
) -> None:
    assert "What prompts cost" not in page_of(measured[1])
