"""Settings that save memory: what they do to a real pipeline, to records, and where they cannot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import make, stages
from pipeline.images.diffusion import memory
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.images.images import check_sources
from pipeline.models.hub import Place
from pipeline.models.weights import Part, digest
from pipeline.progress import Progress
from pipeline.store import Store
from tests.conftest import WorkflowMaker
from tests.images.test_diffuser import pixels, plan_rows, run, spec


def local(models: Path, **settings: Any) -> DiffusersSource:
    return DiffusersSource(folder=str(models / "sd"), batch_size=2, **settings)


def made(models: Path, **settings: Any) -> list[dict[str, Any]]:
    return run(Diffuser("sd", spec(), local(models, **settings), "cpu"), plan_rows(2))


def test_a_run_of_before_is_the_same_run(make_workflow: WorkflowMaker) -> None:
    """The settings that were recorded before these settings were there, to the letter."""
    before = {
        "kind": "diffusers",
        "batch_size": 3,
        "vae": None,
        "vae_tiling": None,
        "attention_slicing": False,
        "compile": False,
    }
    workflow = workflows.load(make_workflow(images={"format": "png", "fill_batches": False}))
    (images,) = [stage for stage in stages(workflow) if stage.table == "images"]
    recorded = {"sd": before, "sdxl": before | {"batch_size": 2}}
    assert images.settings == {"png": "fast", "threads": 1, "sources": recorded}
    # Where weights wait changes no byte; all else is part of what decides them.
    assert DiffusersSource(offload="model").recorded() == DiffusersSource().recorded()
    changed = DiffusersSource(quantise="8bit", vae_slicing=True, attention="native").recorded()
    assert changed == before | {
        "batch_size": 4, "quantise": "8bit", "vae_slicing": True, "attention": "native",
    }  # fmt: skip


def test_other_settings_of_a_finished_run_are_refused(make_workflow: WorkflowMaker) -> None:
    path = make_workflow(release=None)
    small = ("plan.sources=[sd]", "plan.limit=1")
    workflow = workflows.load(path, small)
    make(workflow, Store(workflow.run), Progress(quiet=True))
    other = workflows.load(path, [*small, "sources.sd.vae_slicing=true"])
    with pytest.raises(AigiError, match=r"sources\.sd\.vae_slicing: \(absent\) -> True"):
        make(other, Store(other.run), Progress(quiet=True))
    moved = workflows.load(path, [*small, "compute.device=cpu"])
    make(moved, Store(moved.run), Progress(quiet=True))


def test_one_image_at_a_time_is_decoded_as_well_and_rows_say_so(models: Path) -> None:
    plain, sliced = made(models), made(models, vae_slicing=True)
    for one, other in zip(plain, sliced, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1
        assert "settings" not in json.loads(one["versions"])
        assert json.loads(other["versions"])["settings"] == {"vae_slicing": True}


def test_the_vae_gets_one_latent_at_a_time(models: Path) -> None:
    diffuser = Diffuser("sd", spec(), local(models, vae_slicing=True), "cpu")
    sizes: list[int] = []
    diffuser.pipe.vae.decoder.register_forward_pre_hook(
        lambda module, given: sizes.append(len(given[0]))
    )
    run(diffuser, plan_rows(2))
    assert sizes == [1, 1]


# --- offload -------------------------------------------------------------------------------------


def test_offload_gives_the_same_pixels(models: Path) -> None:
    """The hooks of accelerate, with the CPU in the place of a GPU."""
    diffuser = Diffuser("sd", spec(), local(models), "cpu")
    expected = run(diffuser, plan_rows(2))
    cpu = torch.device("cpu")
    diffuser.pipe = memory.placed(diffuser.pipe, local(models, offload="model"), cpu)
    parts = [diffuser.pipe.unet, diffuser.pipe.vae, diffuser.pipe.text_encoder]
    assert all(hasattr(part, "_hf_hook") for part in parts)
    assert run(diffuser, plan_rows(2)) == expected
    # Of single layers, accelerate cannot use a CPU as the device: that they wait is all to be seen.
    diffuser.pipe = memory.placed(diffuser.pipe, local(models, offload="sequential"), cpu)
    assert {weight.device.type for weight in diffuser.pipe.unet.parameters()} == {"meta"}


def test_offload_on_a_cpu_is_refused_before_any_work(make_workflow: WorkflowMaker) -> None:
    workflow = workflows.load(make_workflow(), ["sources.sdxl.offload=model"])
    compute = workflow.compute.model_copy(update={"device": "cpu"})
    with pytest.raises(AigiError, match=r"sources\.sdxl\.offload: model moves weights"):
        check_sources(workflow.planned("images"), workflow.sources, compute)
    # A cluster's workers have devices of their own.
    elsewhere = compute.model_copy(update={"ray": "auto"})
    check_sources(workflow.planned("images"), workflow.sources, elsewhere)


@pytest.mark.parametrize("other", [{"quantise": "8bit"}, {"compile": True}])
def test_what_does_not_work_with_single_layers_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"does not work with {next(iter(other))}"):
        DiffusersSource(offload="sequential", **other)


# --- weights in fewer bits -----------------------------------------------------------------------


def test_a_missing_library_is_named_with_how_to_install_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for quantise, package in (("8bit", "torchao"), ("4bit", "bitsandbytes")):
        expected = (
            rf"sources\.sd\.quantise: {quantise} needs the package {package}.*aigi\[quantise\]"
        )
        with pytest.raises(AigiError, match=expected):
            check_weights("sd", spec(), local(models, quantise=quantise), "cuda")


def test_a_device_where_it_cannot_work_is_refused(models: Path) -> None:
    with pytest.raises(AigiError, match=r"works on cuda, and .* here is cpu\. Set quantise: 8bit"):
        check_weights("sd", spec(), local(models, quantise="4bit"), "cpu")
    with pytest.raises(AigiError, match=r"works on cuda or cpu.*here is mps\. Set quantise: none"):
        check_weights("sd", spec(), local(models, quantise="8bit"), "mps")
    with pytest.raises(AigiError, match="quantise: 4bit"):
        Diffuser("sd", spec(), local(models, quantise="4bit"), "cpu")


def test_8_bits_make_nearly_the_same_image_of_smaller_weights(models: Path) -> None:
    pytest.importorskip("torchao")
    plain = Diffuser("sd", spec(), local(models), "cpu")
    small = Diffuser("sd", spec(), local(models, quantise="8bit"), "cpu")
    assert small.loaded["vae"] == plain.loaded["vae"]
    for part in ("unet", "text_encoder"):
        assert small.loaded[part] != plain.loaded[part]
    again = Diffuser("sd", spec(), local(models, quantise="8bit"), "cpu")
    assert again.loaded == small.loaded
    kinds = {type(weight).__name__ for weight in small.pipe.unet.state_dict().values()}
    assert len(kinds) == 2, "linear layers alone"
    for one, other in zip(run(plain, plan_rows(2)), run(small, plan_rows(2)), strict=True):
        difference = np.abs(pixels(one).astype(int) - pixels(other))
        assert 0 < difference.mean() < 8
        assert json.loads(other["versions"])["settings"] == {"quantise": "8bit"}


def test_a_tensor_of_tensors_has_a_digest_of_what_is_in_it() -> None:
    class Two(torch.Tensor):
        """As libraries hold weights in fewer bits."""

        def __tensor_flatten__(self) -> tuple[list[str], Any]:
            return ["numbers", "scale", "zero"], {"block": 4}

    def two(numbers: list[int], scale: float) -> Any:
        made: Any = torch.zeros(3).as_subclass(Two)
        made.numbers, made.scale, made.zero = torch.tensor(numbers), torch.tensor(scale), None
        made.detach = lambda: made
        return made

    part = Part("here", Place("here", "here", "m"), "unet")
    first = digest(part, {"w": two([1, 2], 0.5)})
    assert digest(part, {"w": two([1, 2], 0.5)}) == first
    assert (
        len({first, digest(part, {"w": two([1, 3], 0.5)}), digest(part, {"w": two([1, 2], 1)})})
        == 3
    )
    with pytest.raises(AigiError, match="infinite or undefined"):
        digest(part, {"w": two([1, 2], float("nan"))})


# --- attention -----------------------------------------------------------------------------------


WRONG = [
    ("natve", 'sources.sd.attention: no "natve"; did you mean "native"?'),
    ("sage_hub", "sage_hub would download code from the Hub and run it"),
    ("sage", "Please install `sageattention"),
    ("native", "the attention of UNet2DConditionModel takes no backend by name"),
]


@pytest.mark.parametrize(("backend", "why"), WRONG, ids=[backend for backend, _ in WRONG])
def test_a_wrong_backend_is_refused_before_any_work(models: Path, backend: str, why: str) -> None:
    with pytest.raises(AigiError) as error:
        check_weights("sd", spec(), local(models, attention=backend), "cpu")
    assert why in str(error.value)
    with pytest.raises(AigiError) as error:
        Diffuser("sd", spec(), local(models, attention=backend), "cpu")
    assert why in str(error.value)


def test_a_backend_is_that_of_one_model_alone() -> None:
    from diffusers import FluxTransformer2DModel
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    def flux() -> Any:
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
            axes_dims_rope=(4, 2, 2),
        )  # fmt: skip

    mine, other = flux(), flux()
    usual = Registry._active_backend
    memory.set_attention(mine, "_native_math")
    assert Registry._active_backend == usual
    assert {one._attention_backend.value for one in memory._choosing(mine)} == {"_native_math"}
    assert {one._attention_backend for one in memory._choosing(other)} == {None}
