"""Compiled pipelines: how often they are compiled, and what their rows record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.images.diffusion import compiled
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.source import DiffusersSource
from tests.images.test_diffuser import pixels, plan_rows, run, spec


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as for compiled code, without any: tracing takes half a minute."""
    monkeypatch.setattr(compiled, "compile_parts", lambda pipe, denoiser: ["nothing"])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and guard as for compiled code, and run the traced operations as they are."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")


def loaded(models: Path, **settings: Any) -> Diffuser:
    given = {"batch_size": 2, "compile": True, **settings}
    return Diffuser("sd", spec(), DiffusersSource(folder=str(models / "sd"), **given), "cpu")


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_the_last_smaller_batch_is_not_compiled_for(models: Path, traced: None) -> None:
    diffuser = loaded(models)
    decoded: list[int] = []
    diffuser.pipe.vae.decoder.register_forward_pre_hook(
        lambda module, given: decoded.append(len(given[0]))
    )
    first = run(diffuser, plan_rows(2))
    once = compilations()
    assert once >= 2, "denoiser and decoder"
    rows = run(diffuser, plan_rows(5))
    assert compilations() == once
    # The batch that decides the bits of an image is the padded one.
    assert [row["batch_size"] for row in rows] == [2] * 5
    assert [row["image_id"] for row in rows] == [f"id{i}" for i in range(5)]
    assert rows[:2] == first
    assert len({row["pixels_sha256"] for row in rows}) == 5
    plain = run(loaded(models, compile=False), plan_rows(5))
    for row, other in zip(rows, plain, strict=True):
        assert np.abs(pixels(row).astype(int) - pixels(other)).max() <= 1
    assert plain[-1]["batch_size"] == 1
    assert json.loads(rows[0]["versions"])["compiled"] == [
        "UNet2DConditionModel",
        "AutoencoderKL: decoder",
    ]
    assert "compiled" not in json.loads(plain[0]["versions"])


def test_a_padded_batch_that_is_too_large_is_halved(
    models: Path, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffuser = loaded(models, batch_size=5)
    real, sizes = diffuser._infer, []

    def small(rows: list[Any]) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows)

    monkeypatch.setattr(diffuser, "_infer", small)
    made = run(diffuser, plan_rows(6))
    assert sizes == [5, 3, 3, 5, 3]
    assert [row["batch_size"] for row in made] == [3] * 6
    assert all(row["error"] is None for row in made)


def test_a_bad_row_fails_alone_at_the_size_that_is_compiled(models: Path, untraced: None) -> None:
    rows = plan_rows(3)
    rows[1]["text"] = None
    made = run(loaded(models, batch_size=4), rows)
    assert [row["error"] is None for row in made] == [True, False, True]
    assert [row["batch_size"] for row in made] == [4] * 3


def test_of_a_transformer_the_repeated_blocks_are_compiled_once(traced: None) -> None:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=3, num_single_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip

    class Pipe:
        vae = None

    found = compiled.compile_parts(Pipe, model)
    assert found == ["FluxTransformer2DModel: FluxTransformerBlock, FluxSingleTransformerBlock"]
    with torch.no_grad():
        for _ in range(2):
            model(
                torch.zeros(2, 4, 4),
                encoder_hidden_states=torch.zeros(2, 3, 16),
                pooled_projections=torch.zeros(2, 16),
                timestep=torch.ones(2),
                img_ids=torch.zeros(4, 3),
                txt_ids=torch.zeros(3, 3),
            )
    assert 2 <= compilations() < 6, "blocks of a kind share their code"


@pytest.mark.slow
def test_really_compiled_images_differ_in_their_last_bits_alone(models: Path) -> None:
    rows = run(loaded(models), plan_rows(3))
    once = compilations()
    assert run(loaded(models), plan_rows(3)) == rows and once >= 2
    plain = run(loaded(models, compile=False), plan_rows(3))
    for row, other in zip(rows, plain, strict=True):
        assert np.abs(pixels(row).astype(int) - pixels(other)).max() <= 2
