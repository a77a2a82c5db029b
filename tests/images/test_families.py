"""Every family of text-to-image models on tiny random pipelines: one contract for all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import AigiError
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.pipelines import listing_problems, size_multiple
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.plan.families import FAMILIES
from pipeline.plan.ids import plan_table
from pipeline.plan.options import text_of
from pipeline.retry import MISSING
from tests.families import MAKERS, save
from tests.images.test_diffuser import pixels, plan_rows, run, spec

Folder = Callable[[str], Path]
# Without it, these make images of the published sizes, and resize them.
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "flux": {"true_cfg_scale": 2.0, "max_sequence_length": 64},
    "z-image": {"cfg_truncation": 0.5},
}


def given(name: str, **changes: Any) -> Any:
    options = OPTIONS.get(name, {})
    return spec(pipeline=name, scheduler="own", options=options, **changes)


def rows_of(name: str, count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    return plan_rows(count, options=text_of(OPTIONS.get(name, {})), **changes)


def source(folder: Path, batch_size: int = 2) -> DiffusersSource:
    return DiffusersSource(folder=str(folder), batch_size=batch_size)


def test_there_are_as_many_as_the_table_has() -> None:
    assert list(MAKERS) == list(FAMILIES) and len(MAKERS) >= 8


@pytest.mark.parametrize("name", MAKERS)
def test_pixels_are_those_of_plain_diffusers(family: Folder, name: str) -> None:
    folder = family(name)
    check_weights("x", given(name), source(folder))
    ours = Diffuser("x", given(name), source(folder), "cpu")
    rows = rows_of(name)
    made = run(ours, rows)
    plain = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    guidance = "true_cfg_scale" if name == "qwen-image" else "guidance_scale"
    for start, end in ((0, 2), (2, 3)):
        batch = rows[start:end]
        images = plain(
            prompt=[row["text"] for row in batch],
            negative_prompt=[""] * len(batch),
            width=64,
            height=64,
            num_inference_steps=2,
            generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in batch],
            **{guidance: 5.0},
            **OPTIONS.get(name, {}),
        ).images
        for image, row in zip(images, made[start:end], strict=True):
            assert row["error"] is None
            np.testing.assert_array_equal(pixels(row), np.asarray(image))
    assert len({row["pixels_sha256"] for row in made}) == 3
    assert json.loads(made[0]["versions"])["weights"] == ours.loaded
    stated = FAMILIES[name]
    assert stated.denoiser in ours.loaded
    assert size_multiple(ours.pipe, stated) == stated.multiple, "the table and the model agree"


@pytest.mark.parametrize("name", MAKERS)
def test_an_image_of_a_filled_batch_is_the_same_whatever_is_beside_it(
    family: Folder, name: str
) -> None:
    ours = Diffuser("x", given(name), source(family(name), 3), "cpu", fill=True)
    long = "a very long prompt about many small boats, old houses and blue trees by a lake "
    rows = [
        {**row, "text": text}
        for row, text in zip(
            rows_of(name, 5), ("a red boat", long * 3, "trees", long, "x"), strict=True
        )
    ]
    whole = run(ours, rows)
    assert [row["batch_size"] for row in whole] == [3] * 5
    for mine in ([0], [4], [1, 2], [3], [2, 4], [0, 1, 4]):
        missing = pa.array([number in mine for number in range(5)])
        left = plan_table(rows, True).append_column(MISSING, missing)
        for number, row in zip(mine, pa.concat_tables(ours(left)).to_pylist(), strict=True):
            assert row == whole[number], (number, mine)
    if name == "qwen-image":
        return  # it pads prompts to the longest of a batch
    for count in (1, 2, 4):
        assert run(ours, rows[:count]) == whole[:count], "as if the dataset had ended there"


@pytest.mark.parametrize("name", ["sd", "flux", "z-image"])
def test_auto_is_the_class_that_the_model_names(family: Folder, name: str) -> None:
    auto = given(name).model_copy(update={"pipeline": "auto"})
    assert check_weights("x", auto, source(family(name))) == []
    found = Diffuser("x", auto, source(family(name)), "cpu")
    assert found.family is FAMILIES[name]
    named = Diffuser("x", given(name), source(family(name)), "cpu")
    assert run(found, rows_of(name, 1)) == run(named, rows_of(name, 1))


def test_guidance_is_counted_as_the_class_evaluates_it(family: Folder) -> None:
    """The denoiser's real calls, or rows of a call, against the table's arithmetic."""
    for name, scale, options in (
        ("sd", 5.0, {}),
        ("sd3", 1.0, {}),
        ("flux", 5.0, {}),
        ("flux", 5.0, {"true_cfg_scale": 2.0}),
        ("qwen-image", 5.0, {}),
        ("qwen-image", 1.0, {}),
        ("z-image", 0.5, {}),
        ("z-image", 0.0, {}),
    ):
        asked = spec(pipeline=name, scheduler="own", guidance_scale=scale, options=options)
        loaded = Diffuser("x", asked, source(family(name)), "cpu")
        seen = 0

        def count(module: Any, args: Any, kwargs: Any) -> None:
            nonlocal seen
            first = next(iter([*args, *kwargs.values()]))
            seen += len(first)

        denoiser = getattr(loaded.pipe, loaded.family.denoiser)
        denoiser.register_forward_pre_hook(count, with_kwargs=True)
        row = plan_rows(1, guidance_scale=scale, options=text_of(options))
        assert run(loaded, row)[0]["error"] is None
        assert seen == asked.evaluations, (name, scale, options)


def test_options_decide_pixels_and_what_is_not_given_is_the_default(family: Folder) -> None:
    loaded = Diffuser("x", spec(pipeline="flux", scheduler="own"), source(family("flux")), "cpu")
    long = "one red boat on a calm lake at dawn under heavy clouds " * 20

    def made(**options: Any) -> str:
        (row,) = run(loaded, plan_rows(1, text=long, options=text_of(options)))
        assert row["error"] is None, row["error"]
        return str(row["pixels_sha256"])

    plain = made()
    assert made(max_sequence_length=512) == plain, "the class's own default"
    assert made(max_sequence_length=32) != plain, "the end of a long prompt was read"
    assert made(true_cfg_scale=3.0) != plain


def test_too_little_memory_halves_the_batch(
    family: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "qwen-image"
    four = Diffuser("x", given(name), source(family(name), 4), "cpu")
    denoiser = type(four.pipe.transformer)
    real = denoiser.forward

    def small(module: Any, hidden_states: Any, **options: Any) -> Any:
        if len(hidden_states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, hidden_states, **options)

    monkeypatch.setattr(denoiser, "forward", small)
    made = run(four, rows_of(name, 5))
    assert [row["batch_size"] for row in made] == [2, 2, 2, 2, 1]
    assert all(row["error"] is None for row in made)


def test_a_class_without_a_row_runs_as_it_is_assumed_and_says_so(tmp_path: Path) -> None:
    from tests.families import _flow, _t5, _vae

    def chroma() -> Any:
        t5 = _t5()
        return diffusers.ChromaPipeline(
            scheduler=_flow(use_dynamic_shifting=True),
            vae=_vae(4, shift_factor=0.1),
            text_encoder=t5["encoder"],
            tokenizer=t5["tokens"],
            transformer=diffusers.ChromaTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
                attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
                axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
                approximator_num_channels=16,
            ),
        )  # fmt: skip

    folder = save(tmp_path / "chroma", chroma)
    asked = spec(pipeline="auto", scheduler="own", options={"max_sequence_length": 32})
    (said,) = check_weights("x", asked, source(folder))
    assert said.startswith("sources.x: ChromaPipeline has no row among the families: guidance")
    (row,) = run(Diffuser("x", asked, source(folder), "cpu"), plan_rows(1))
    assert row["error"] is None
    with pytest.raises(AigiError, match=r"72x64: this model makes sizes that are multiples of 16"):
        odd = {"train": {"count": 1, "width": 72, "height": 64}}
        check_weights("x", spec(pipeline="auto", scheduler="own", splits=odd), source(folder))


# --- What cannot be ------------------------------------------------------------------------------


def indexed(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a pipeline whose index differs; a component that becomes None is dropped."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    index |= changes
    index = {name: value for name, value in index.items() if value != "gone"}
    (to / "model_index.json").write_text(json.dumps(index))
    return to


NOT_NOW = {
    "StableDiffusionXLImg2ImgPipeline": "changes an image",
    "FluxInpaintPipeline": "changes an image",
    "QwenImageEditPipeline": "changes an image",
    "StableDiffusionControlNetPipeline": "ControlNet",
    "WanPipeline": "makes video",
    "StableVideoDiffusionPipeline": "makes video",
    "StableAudioPipeline": "makes sound",
    "AudioLDM2Pipeline": "makes sound",
    "KandinskyV22CombinedPipeline": "second model",
    "DDPMPipeline": "takes no prompt",
}


@pytest.mark.parametrize("kind", NOT_NOW)
def test_models_for_other_tasks_are_refused_by_name(
    family: Folder, tmp_path: Path, kind: str
) -> None:
    folder = indexed(family("sd3"), tmp_path / "other", _class_name=kind)
    with pytest.raises(AigiError) as error:
        check_weights("x", spec(pipeline="auto", scheduler="own"), source(folder))
    said = str(error.value)
    assert said.startswith(f"sources.x.folder: {folder}: {kind} ")
    assert NOT_NOW[kind] in said and "not supported now" in said and "\n" not in said


WRONG: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "another family": ("flux", {}, {"pipeline": "sd"}, [
        "a model of FluxPipeline, not of pipeline: sd (that is StableDiffusionPipeline). Set "
        "pipeline: flux",
    ]),
    "refiner": (
        "sdxl",
        {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]},
        {"pipeline": "auto"},
        ["is the refiner of SDXL, which changes images: not supported now"],
    ),
    "no such class": ("flux", {"_class_name": "FluxxPipeline"}, {"pipeline": "auto"}, [
        'has no pipeline FluxxPipeline; did you mean "FluxPipeline"?',
    ]),
    "code of its own": ("flux", {"_class_name": ["mine", "Mine"]}, {"pipeline": "auto"}, [
        "code of its own", "never run",
    ]),
    "components are missing": ("flux", {"vae": "gone", "scheduler": [None, None]}, {}, [
        "has no component vae, which FluxPipeline needs", "its component scheduler is empty",
    ]),
    "no text encoder": ("z-image", {"text_encoder": [None, None]}, {}, ["has no text encoder"]),
    "option and size": (
        "flux", {},
        {"pipeline": "auto", "options": {"max_sequence_lenght": 64, "true_cfg_scale": "2"},
         "splits": {"train": {"count": 1, "width": 72, "height": 64}}},
        ['sources.x.options.max_sequence_lenght: FluxPipeline has no such argument; did you mean "'
         'max_sequence_length"?', "options.true_cfg_scale: '2'; expected a value like 1.0",
         "sources.x.splits.train: 72x64: this model makes sizes that are multiples of 16"],
    ),
    "option that aigi sets": (
        "qwen-image", {}, {"pipeline": "auto", "options": {"true_cfg_scale": 2.0}},
        ["options.true_cfg_scale: guidance_scale is this argument"],
    ),
    "negative prompt without effect": (
        "flux", {}, {"negative_prompt": "blur"}, ["negative_prompt: without effect"],
    ),
    "sigmas": ("flux", {}, {"options": {"sigmas": [1.0]}}, ["1 of them, but steps is 2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_all_that_is_wrong_is_said_before_any_work(
    family: Folder, tmp_path: Path, case: str
) -> None:
    name, index, changes, said = WRONG[case]
    folder = indexed(family(name), tmp_path / "wrong", **index)
    asked = spec(**{"pipeline": name, "scheduler": "own", **changes})
    with pytest.raises(AigiError) as error:
        check_weights("x", asked, source(folder))
    for words in said:
        assert words in str(error.value)
    assert all(line.startswith("sources.x.") for line in str(error.value).splitlines())


def test_missing_files_of_several_components_are_named_together(
    family: Folder, tmp_path: Path
) -> None:
    folder = indexed(family("flux"), tmp_path / "wrong")
    shutil.rmtree(folder / "vae")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AigiError) as error:
        check_weights("x", given("flux"), source(folder))
    lines = str(error.value).splitlines()
    assert [f"{folder}: {part}: has no diffusion" in line for part, line in zip(
        ("transformer", "vae"), lines, strict=True)] == [True, True]  # fmt: skip


def test_guidance_of_a_model_that_takes_none_is_refused(tmp_path: Path) -> None:
    from tests.families import flux

    folder = save(tmp_path / "schnell", lambda: flux(guidance=False))
    asked = spec(pipeline="flux", scheduler="own", guidance_scale=3.5)
    with pytest.raises(AigiError, match=r"guidance_scale: this model takes no guidance; set 0"):
        check_weights("x", asked, source(folder))
    assert (
        check_weights("x", asked.model_copy(update={"guidance_scale": 0.0}), source(folder)) == []
    )
    with pytest.raises(AigiError, match=r"attention_slicing: FluxPipeline has none. Remove it"):
        local = DiffusersSource(folder=str(folder), attention_slicing=True)
        Diffuser("x", asked, local, "cpu")


def test_weights_that_a_repository_lacks_are_named_from_its_list(family: Folder) -> None:
    index = json.loads((family("flux") / "model_index.json").read_text())
    names = [str(file.relative_to(family("flux"))) for file in family("flux").rglob("*.*")]
    assert listing_problems(index, names, [], None) == []
    assert listing_problems(index, names, [], "fp16") == [
        "has no weights of variant fp16; leave it out"
    ]
    some = [name.replace("safetensors", "bin") if "vae/" in name else name for name in names]
    (said,) = listing_problems(index, some, [], None)
    assert said.startswith("vae: has no weights as safetensors")
    assert listing_problems(index, some, ["vae"], None) == []


def test_a_unet_for_inpainting_in_a_text_to_image_folder_is_refused(
    family: Folder, tmp_path: Path
) -> None:
    folder = indexed(
        family("sd"), tmp_path / "inpaint", _class_name="StableDiffusionInpaintPipeline"
    )
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(AigiError, match=r"x\.pipeline: its UNet takes 9 channels, of which 8 are"):
        check_weights("x", spec(), source(folder))
