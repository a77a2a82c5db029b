"""Files as people have them: variants, one file, LoRAs, other components; checked, not ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.plan.options import parsed
from pipeline.plan.specification import DiffusersSpec
from tests.families import MAKERS, save
from tests.images.test_diffuser import pixels, plan_rows, run, spec

Folder = Callable[[str], Path]


def made(asked: DiffusersSpec, **local: Any) -> Any:
    """Pixels of one image, by a source whose check found nothing."""
    source = DiffusersSource(batch_size=1, **local)
    assert check_weights("x", asked, source) == []
    loaded = Diffuser("x", asked, source, "cpu")
    (row,) = run(loaded, plan_rows(1, options=asked.row_options))
    assert row["error"] is None
    return pixels(row)


def plain(pipe: Any) -> Any:
    """The same image by diffusers itself."""
    (row,) = plan_rows(1)
    return np.asarray(
        pipe(
            prompt=[row["text"]], negative_prompt=[""], width=64, height=64, num_inference_steps=2,
            guidance_scale=5.0, generator=[torch.Generator("cpu").manual_seed(row["seed"])],
        ).images[0]
    )  # fmt: skip


def refused(asked: DiffusersSpec, **local: Any) -> str:
    with pytest.raises(AigiError) as error:
        check_weights("x", asked, DiffusersSource(**local))
    return str(error.value)


# --- Variants ------------------------------------------------------------------------------------


def test_a_variant_is_other_files_and_a_missing_one_is_said(family: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(family("sd3"), folder)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folder)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.5)
    pipe.transformer.save_pretrained(folder / "transformer", variant="fp16")
    one = spec(pipeline="sd3", scheduler="own")
    other = spec(pipeline="sd3", scheduler="own", variant="fp16")
    assert parsed(other.row_options) == {"variant": "fp16"} and one.row_options is None
    with_it = made(other, folder=str(folder))
    np.testing.assert_array_equal(with_it, plain(pipe))
    assert not np.array_equal(with_it, made(one, folder=str(folder)))
    absent = other.model_copy(update={"variant": "bf16"})
    assert "has no weights of variant bf16" in refused(absent, folder=str(folder))
    data = (folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors").read_bytes()
    (folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(data[:99])
    said = refused(other, folder=str(folder))
    assert "transformer: diffusion_pytorch_model.fp16.safetensors is damaged or cut short" in said


# --- One file ------------------------------------------------------------------------------------


def test_one_file_has_the_denoiser_and_the_rest_is_of_the_config(
    family: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "config"
    shutil.copytree(family("flux"), folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tuned = {key: value * 1.5 for key, value in load_file(weights).items()}
    weights.unlink()
    file = tmp_path / "tuned.safetensors"
    save_file(tuned, file)
    asked = spec(
        pipeline="auto", scheduler="own", file=file_sha256(str(file)), config="test/flux@v1"
    )
    assert parsed(asked.row_options) == {"file": file_sha256(str(file)), "config": "test/flux@v1"}
    pipe = diffusers.FluxPipeline.from_pretrained(family("flux"))
    pipe.transformer.load_state_dict(tuned)
    found = made(asked, folder=str(folder), file=str(file))
    np.testing.assert_array_equal(found, plain(pipe))
    # What can be wrong with it.
    assert "set where it is" in refused(asked, folder=str(folder))
    there = {"folder": str(folder), "file": str(file)}
    none = spec(pipeline="flux", scheduler="own")
    assert "x.file: the specification pins no file" in refused(none, **there)
    other = asked.model_copy(update={"file": "0" * 64})
    assert f"has sha256 {asked.file}, expected is 000" in refused(other, **there)
    tuned.pop(next(key for key in tuned if key.startswith("proj_out")))
    tuned["x_embedder.weight"] = torch.zeros(3, 3)
    save_file(tuned, file)
    short = asked.model_copy(update={"file": file_sha256(str(file))})
    said = refused(short, **there)
    assert "transformer: its weights lack 1 tensor (proj_out" in said
    assert "x_embedder.weight of 3x3 instead of 32x16" in said
    pickled = tmp_path / "tuned.ckpt"
    pickled.write_bytes(b"x")
    assert "pickle files are not read" in refused(asked, folder=str(folder), file=str(pickled))


def ldm_unet(unet: Any) -> dict[str, Any]:
    """Weights of a UNet of the tiny SD under the names of the original implementation.

    Levels of `input_blocks`: one convolution, then resnet (with attention) and downsampling.
    """
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
    }
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    return {
        f"model.diffusion_model.{key}": value
        for key, value in _renamed(unet.state_dict(), names, inner).items()
    }


def ldm_vae(vae: Any) -> dict[str, Any]:
    names = {"encoder.mid_block.resnets.0": "encoder.mid.block_1",
             "encoder.mid_block.resnets.1": "encoder.mid.block_2",
             "decoder.mid_block.resnets.0": "decoder.mid.block_1",
             "decoder.mid_block.resnets.1": "decoder.mid.block_2"}  # fmt: skip
    for side in ("encoder", "decoder"):
        names |= {f"{side}.{end}": f"{side}.{end}" for end in ("conv_in", "conv_out")}
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    names |= {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for level in range(4):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        for block in range(2):
            names[f"{down}.resnets.{block}"] = f"encoder.down.{level}.block.{block}"
            names[f"{up}.resnets.{block}"] = f"decoder.up.{3 - level}.block.{block}"
        names[f"{down}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        names[f"{up}.upsamplers.0.conv"] = f"decoder.up.{3 - level}.upsample.conv"
    inner = {"conv_shortcut": "nin_shortcut"}
    return {
        f"first_stage_model.{key}": value
        for key, value in _renamed(vae.state_dict(), names, inner).items()
    }


def _renamed(state: dict[str, Any], names: dict[str, str], inner: dict[str, str]) -> dict[str, Any]:
    found = {}
    for key, value in state.items():
        lead = max((name for name in names if key.startswith(f"{name}.")), key=len)
        rest = key.removeprefix(f"{lead}.")
        part, dot, last = rest.rpartition(".")
        found[f"{names[lead]}.{inner.get(part, part)}{dot}{last}"] = value
    return found


def test_one_file_has_all_of_a_pipeline(family: Folder, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(family("sd"))
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)  # a fine-tuned model
    text = {
        f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
        for key, value in pipe.text_encoder.state_dict().items()
    }
    tensors = {**ldm_unet(pipe.unet), **ldm_vae(pipe.vae), **text}
    file = tmp_path / "all.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    config = tmp_path / "config"
    shutil.copytree(family("sd"), config, ignore=shutil.ignore_patterns("*.safetensors"))
    asked = spec(pipeline="sd", scheduler="own", file=file_sha256(str(file)))
    found = made(asked, folder=str(config), file=str(file))
    pipe.safety_checker = None
    np.testing.assert_array_equal(found, plain(pipe))
    tensors.pop("model.diffusion_model.out.2.weight")
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    short = asked.model_copy(update={"file": file_sha256(str(file))})
    said = refused(short, folder=str(config), file=str(file))
    assert "unet: its weights lack 1 tensor (conv_out.weight)" in said


# --- LoRAs ---------------------------------------------------------------------------------------


def lora(folder: Path, name: str = "style", layer: str = "", rows: int = 0) -> dict[str, Any]:
    """A LoRA of rank 2 for some layers of the tiny FLUX's transformer, and its entry."""
    model = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer")
    generator = torch.Generator().manual_seed(len(name))
    tensors = {}
    for key, module in model.named_modules():
        if key.endswith(("attn.to_q", "attn.to_v")):
            lead = f"transformer.{layer or key}"
            size = module.weight.shape
            tensors[f"{lead}.lora_A.weight"] = torch.randn(2, size[1], generator=generator)
            tensors[f"{lead}.lora_B.weight"] = torch.randn(rows or size[0], 2, generator=generator)
    file = folder.parent / f"{name}.safetensors"
    save_file(tensors, file)
    return {"name": name, "sha256": file_sha256(str(file)), "scale": 0.8}


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return save(tmp_path / "flux", MAKERS["flux"])


def test_loras_are_fused_as_diffusers_does_it(flux: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    entries = [lora(flux), {**lora(flux, "second"), "scale": 0.5}]
    asked = spec(pipeline="flux", scheduler="own", loras=entries)
    first = asked.row_options
    assert asked.model_copy(update={"loras": asked.loras[:1]}).row_options != first
    places = {one["name"]: str(tmp_path / f"{one['name']}.safetensors") for one in entries}
    found = made(asked, folder=str(flux), loras=places)
    pipe = diffusers.FluxPipeline.from_pretrained(flux)
    before = plain(pipe)
    # The arithmetic of a LoRA, without the library that fuses it.
    with torch.no_grad():
        for one in entries:
            tensors = load_file(places[one["name"]])
            for key in [key for key in tensors if key.endswith("lora_A.weight")]:
                layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
                up = tensors[key.replace("lora_A", "lora_B")]
                weight = pipe.transformer.get_submodule(layer).weight
                weight.add_(one["scale"] * (up @ tensors[key]))
    assert not np.array_equal(found, before)
    assert np.abs(found.astype(int) - plain(pipe).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": "no.such.layer"}, "1 of its layers fit nothing (transformer.no.such.layer)"),
        ({"rows": 7}, "attn.to_q of 7x32 instead of 32x32"),
    ],
)
def test_a_lora_of_another_model_is_refused(
    flux: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    entry = lora(flux, **changes)
    asked = spec(pipeline="flux", scheduler="own", loras=[entry])
    place = {"style": str(tmp_path / "style.safetensors")}
    found = refused(asked, folder=str(flux), loras=place)
    assert said in found and "it was made for another model" in found
    assert "sources.x.loras.style: the specification has a file with sha256" in refused(
        asked, folder=str(flux)
    )
    strange = refused(asked, folder=str(flux), loras={"stile": place["style"]})
    assert 'x.loras.stile: the specification has no such one; did you mean "style"?' in strange
    other = spec(pipeline="flux", scheduler="own", loras=[{**entry, "sha256": "0" * 64}])
    assert "expected is 0000" in refused(other, folder=str(flux), loras=place)


def test_two_loras_of_one_name_and_lone_configs_are_no_specification(flux: Path) -> None:
    entry = lora(flux)
    with pytest.raises(ValueError, match="loras: a name is given twice"):
        spec(pipeline="flux", loras=[entry, entry])
    with pytest.raises(ValueError, match="config: only beside file"):
        spec(pipeline="flux", config="a/b@c")
    with pytest.raises(ValueError, match="variant: one file has none"):
        spec(pipeline="flux", file="0" * 64, variant="fp16")


# --- Other components ----------------------------------------------------------------------------


def test_another_text_encoder_takes_the_place_of_the_models_own(
    family: Folder, tmp_path: Path
) -> None:
    pipe = diffusers.FluxPipeline.from_pretrained(family("flux"))
    with torch.no_grad():
        for parameter in pipe.text_encoder_2.parameters():
            parameter.mul_(1.2)
    other = tmp_path / "t5"
    pipe.text_encoder_2.save_pretrained(other)
    sha256 = {"model.safetensors": file_sha256(str(other / "model.safetensors"))}
    entry = {"model": "test/t5", "revision": "v1", "sha256": sha256}
    asked = spec(pipeline="flux", scheduler="own", components={"text_encoder_2": entry})
    assert parsed(asked.row_options)["components"]["text_encoder_2"]["sha256"] == sha256
    there = {"folder": str(family("flux")), "components": {"text_encoder_2": str(other)}}
    np.testing.assert_array_equal(made(asked, **there), plain(pipe))
    unknown = spec(pipeline="flux", scheduler="own", components={"text_encoder_9": entry})
    said = refused(unknown, folder=str(family("flux")), components={"text_encoder_9": str(other)})
    assert "components.text_encoder_9: the model has no such component; it has text_encoder" in said
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    said = refused(asked, **there)
    assert said.startswith("sources.x.components.text_encoder_2: ") and "its weights lack" in said
    wrong = {**entry, "sha256": {"model.safetensors": "0" * 64}}
    forged = spec(pipeline="flux", scheduler="own", components={"text_encoder_2": wrong})
    assert "expected is 0000" in refused(forged, **there)
