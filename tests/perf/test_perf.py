"""The benchmarks run end to end at small sizes. No time is looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.perf import benchmark, captions, codecs, containers, crops
from tests.perf.report import Measurement, machine, machine_line, number, table

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    """Run a module of tests.perf as people do; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        # One thread: on a busy machine, threads that wait for one another take minutes.
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def test_captions_reports_rates_and_memory(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    said = run("tests.perf", "captions", "--quick", "--rows", "12000", "--json", str(out))
    assert "### captions" in said and "Machine: " in said and "at most 2 GiB" in said
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] == os.cpu_count()
    rate, memory = found["benchmarks"]["captions"]
    detail = rate["detail"]
    assert detail["rows"] == 12_000
    assert [side["rows"] for side in detail["peers"]] == [12_000, 12_000]
    assert detail["ours"]["kept"] == detail["wanted"] == 3_000
    assert 0.05 < detail["ours"]["rejected"] / 12_000 < 0.2
    assert rate["ratio"] == pytest.approx(rate["ours"] / rate["peer"])
    assert 0.1 < memory["ours"] < 8 and memory["peer"] < memory["ours"]


def test_captions_are_a_function_of_the_row(tmp_path: Path) -> None:
    for name, rows in (("a", 30_000), ("b", 30_000), ("short", 10_000)):
        captions.write_captions(tmp_path / name, rows)
    whole = (tmp_path / "a").read_bytes()
    assert whole == (tmp_path / "b").read_bytes()
    assert whole.startswith((tmp_path / "short").read_bytes())
    lines = whole.decode().splitlines()
    assert len(lines) == 30_000
    texts = [text for url, tab, text in (line.partition("\t") for line in lines) if tab]
    assert 0 < len(lines) - len(texts) < 100
    assert len({line.partition("\t")[0] for line in lines}) == len(lines)
    plain = Counter(text for text in texts if len(text.split()) > 5 and text.isascii())
    repeated = sum(count - 1 for count in plain.values()) / len(texts)
    assert 0.03 < repeated < 0.06
    assert 18 < sum(len(text.split()) for text in texts) / len(texts) < 22
    assert 0.05 < sum("<PERSON>" in text for text in texts) / len(texts) < 0.1


def test_gpu_check_works_without_a_gpu(tmp_path: Path) -> None:
    out, models = tmp_path / "found.json", ("sd21-base", "sdxl", "flux-schnell")
    said = run(
        *("tests.perf.gpu_check", "--tiny", "--modes", "eager", "--models", *models),
        *("--batch", "2", "--steps", "2", "--seconds", "0", "--out", str(out)),
    )
    assert "| sd21-base    | eager |" in said and "| flux-schnell | eager |" in said
    found = json.loads(out.read_text())
    assert found["status"] == "done"
    assert set(found["models"]) == {*models}
    rows: list[dict[str, Any]] = found["measurements"]
    assert [(row["model"], row["mode"]) for row in rows] == [(name, "eager") for name in models]
    for row in rows:
        assert row["errors"] == []
        assert row["batch_sizes"] == [2]
        assert row["images"] == 2 * row["batches"] == 4
        assert row["bare_images_per_s"] > 0 and row["ours_images_per_s"] > 0
        assert row["png_bytes"] > 100
        # Of the published sizes; the tiny ones have none.
        assert row["ours_tflops"] is None and row["share_of_peak"] is None
    assert [row["evaluations"] for row in rows] == [3, 2, 2]


def test_work_of_an_image_is_counted_from_the_specification() -> None:
    from pipeline.plan import specification
    from pipeline.plan.specification import DiffusersSpec
    from tests.perf import gpu_check

    sources = specification.load(str(gpu_check.SPECIFICATION)).sources
    mine = {name for name, spec in sources.items() if isinstance(spec, DiffusersSpec)}
    assert set(gpu_check.BATCH) == {*mine, "flux-schnell"}
    spec = gpu_check.spec_of("sdxl")
    train = spec.splits["train"]
    assert train.unet_tflop is not None and train.vae_tflop is not None
    found = gpu_check.tflop_an_image(spec, 50)
    assert found == pytest.approx(100 * train.unet_tflop + train.vae_tflop)
    # Its guidance is in its weights: one evaluation a step.
    assert gpu_check.tflop_an_image(gpu_check.FLUX, 4) == pytest.approx(4 * 74.385 + 10.472)


def test_published_architectures_have_their_parameters() -> None:
    import torch

    from pipeline.tiny import models
    from tests.perf import bare, published

    tokenizer = models.tokenizer(bare.sentences(16))
    with torch.device("meta"):
        for architecture in published.PUBLISHED.values():
            made = published.parts(architecture, tokenizer)
            assert set(made) == set(architecture.parameters)


def test_table_says_what_is_met() -> None:
    text = table(
        [
            Measurement("fast", "rows/s", 12_345.6, 20_000.0, "ratio of at least 0.5", True),
            Measurement("slow", "rows/s", 1.5, None, "at least 2", False),
            Measurement("free", "GiB", 0.25),
        ]
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text]
    assert len({len(line) for line in text}) == 1
    assert cells[2][2:] == ["12,346", "20,000", "0.617", "ratio of at least 0.5", "met"]
    assert cells[3][2:] == ["1.5", "", "", "at least 2", "NOT MET"]
    assert cells[4][2:] == ["0.25", "", "", "", ""]
    assert number(None) == ""
    assert machine_line(machine()).startswith("Machine: ")


@pytest.mark.slow
def test_codecs_exchange_pictures(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    said = run(
        *("tests.perf.codec_exchange", "--pictures", "3", "--device", "cpu", "--size", "64"),
        *("--out", str(out)),
    )
    assert "cpu to device: 0 of 3 failed" in said and "device to cpu: 0 of 3 failed" in said
    found = json.loads(out.read_text())
    assert found["network"] == "catc-small" and found["device"] == "cpu"
    for total in found["exchanges"].values():
        assert total["pictures"] == 3 and total["bytes"] > 0 and total["most"] <= 1


def test_codecs_reports_times_shares_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.perf.codecs.PEERS", {"mean-scale": "mbt2018-mean"})
    monkeypatch.delenv("AIGI_COMPRESSAI", raising=False)
    encode, encode_share, decode, decode_share, memory = codecs.run(quick=True)
    assert encode.detail["ours"]["bytes"] > 100 and encode.ours > 0 < decode.ours
    assert 0 < encode_share.ours < 1 and 0 < decode_share.ours < 1
    assert encode_share.target and 0.1 < memory.ours < 8


def test_benchmark_reports_its_time_and_its_own_share() -> None:
    whole, share = benchmark.run(quick=True)
    assert whole.ours > 0 and whole.peer is None
    assert 0 < share.ours < 1 and share.detail["rows"] == 2 * (7 + 6)


def test_containers_reports_bytes_and_speed_beside_png() -> None:
    found = containers.run(quick=True)
    assert len(found) == (9 if containers.REAL.is_dir() else 3)
    for one in found:
        assert one.ours > 0 and one.peer is not None and one.peer > 0
        if one.unit == "bits/pixel":
            assert one.ratio is not None and one.ratio < 1, one.what
    assert 3.0 < containers.DEVICE < 3.3


def test_crops_reports_both_sides_and_how_many_workers_a_gpu_wants() -> None:
    for found in crops.run(quick=True):
        assert found.ours > 0 and found.peer is not None and found.peer > 0
        assert found.detail["workers_wanted"] >= 1


@pytest.mark.slow
def test_gpu_train_works_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    small = ("--tiny", "--no-compile", "--network", "catc-small", "--steps", "2")
    said = run("tests.perf.gpu_train", *small, "--out", str(out))
    assert "| catc-small | eager |" in said
    found = json.loads(out.read_text())
    assert (found["batch"], found["crop"]) == (2, 64)
    (row,) = found["measurements"]
    assert row["steps"] == 2 and row["steps_without_gradient"] == 0
    assert row["crops_per_s"] == pytest.approx(2 * row["steps_per_s"])
    # Forward and backward of 2 crops of 64 x 64; the peak of a CPU is not known.
    assert 1e-3 < row["tflop_per_step"] < 1e-2 and row["share_of_peak"] is None


def test_gpu_train_has_the_settings_of_the_workflow() -> None:
    from tests.perf import gpu_train

    settings = gpu_train.settings_of("catc", tiny=False)
    assert (settings.batch, settings.crop, settings.precision) == (8, 256, "bfloat16")
    assert isinstance(settings.network, dict) and settings.network["n"] == 128
