"""Sentences in, untrained tiny models out: Stable Diffusion, SDXL and CLIP in their usual layouts.

Classes, folder layouts and loading code are those of the real models; `pipeline.tiny.train` trains
the weights. The sizes keep everything together below 12 MB in fp16.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.models.clip import untrained

WORDS = 400
WIDTH, LAYERS = 96, 3
"""Of CLIP's text tower, which is where the pipelines' text encoders begin."""
LATENT_CHANNELS = 8
"""At 8 channels for 8x8 pixels the best linear code of the scenes has 25 dB; at 4, 23 dB."""
CONTEXT = 48
CLIP_SIZE = 96
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation that CLIP models expect of their input (Radford et al., 2021)."""
_NEVER = frozenset(map(chr, (*range(ord("A"), ord("Z") + 1), 0xC0, 0xC1, *range(0xF5, 0x100))))
"""Bytes that no text contains, each as its character in a byte-level vocabulary: capitals, because
CLIP's tokenizer makes all letters small first, and bytes that UTF-8 lacks."""
_WORD = re.compile("[a-z]+")


def tokenizer(sentences: Iterable[str]) -> Any:
    """A CLIP tokenizer that knows the commonest words of the sentences, and every byte of a text.

    The merges are written down, not trained: the trainer of `tokenizers` breaks ties by the order
    of a hash map, and the same seed must give the same model.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    counts = Counter(word for sentence in sentences for word in _WORD.findall(sentence.lower()))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    merges: dict[tuple[str, str], None] = {}
    for word in words[:WORDS]:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for i in range(1, len(letters)):
            merges["".join(letters[:i]), letters[i]] = None
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - _NEVER)
    tokens = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=CONTEXT)


def _text_encoder(tokens: Any, width: int, layers: int, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def take_clip_text(encoder: Any, clip_model: Any) -> None:
    """Give a `CLIPTextModel` the weights of the text tower of an open_clip model of its size.

    Stable Diffusion was made in this way: its text encoder is that of CLIP.
    """
    source = clip_model.state_dict()
    names = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    found = {new: source[old] for old, new in names.items()}
    for i in range(encoder.config.num_hidden_layers):
        old, new = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            parts = source[f"{old}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{new}.self_attn.{letter}_proj.{kind}"] = part
            for before, after in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{new}.{after}.{kind}"] = source[f"{old}.{before}.{kind}"]
    # transformers has had these names with and without a leading part.
    lead = "text_model." if "text_model.final_layer_norm.bias" in encoder.state_dict() else ""
    encoder.load_state_dict({lead + name: value for name, value in found.items()}, strict=True)


def vae() -> Any:
    """An untrained VAE with eight times smaller latents, without attention, for any size."""
    from diffusers import AutoencoderKL
    from torch import nn

    model = AutoencoderKL(
        block_out_channels=(16, 32, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            # Residual branches begin at zero and the rest keeps lengths: without this the same
            # training is 5 dB behind after 200 steps.
            zero = name.endswith("conv2")
            nn.init.zeros_(part.weight) if zero else nn.init.orthogonal_(part.weight)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    return model


def _unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel
    from torch import nn

    model = UNet2DConditionModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(40, 80),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, by this class's old naming
        norm_num_groups=4,
        use_linear_projection=True,
        **options,
    )
    for name, part in model.named_modules():
        if name.endswith(("conv2", "conv_out", "proj_out")):
            nn.init.zeros_(part.weight)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    return model


SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
"""With zero terminal SNR (Lin et al., arXiv:2305.08891); otherwise nights do not become dark."""


def sd(tokens: Any) -> Any:
    """An untrained `StableDiffusionPipeline` in the layout of SD 2.1.

    Args:
        tokens: its tokenizer.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=_text_encoder(tokens, WIDTH, LAYERS, projection=False),
        tokenizer=tokens,
        unet=_unet(sample_size=16, cross_attention_dim=WIDTH),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tokens: Any) -> Any:
    """An untrained `StableDiffusionXLPipeline`: two text encoders, size conditioning.

    Args:
        tokens: the tokenizer of both text encoders.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    small = 32
    return StableDiffusionXLPipeline(
        vae=vae(),
        # SDXL reads the last layer but one of both, and the projection of the second.
        text_encoder=_text_encoder(tokens, WIDTH, LAYERS, projection=False),
        text_encoder_2=_text_encoder(tokens, small, 2, projection=True),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=_unet(
            sample_size=24,
            cross_attention_dim=WIDTH + small,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + small,
        ),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )


def clip_config(tokens: Any) -> dict[str, Any]:
    """The content of `open_clip_config.json`: a small ResNet beside a text transformer."""
    return {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": CLIP_SIZE,
                "layers": [1, 1, 1, 1],
                "width": 8,
                "head_width": 32,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": len(tokens),
                "width": WIDTH,
                "heads": 4,
                "layers": LAYERS,
                "hf_tokenizer_name": "tokenizer beside this file",
            },
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }


def clip(tokens: Any) -> Any:
    """An untrained `open_clip.model.CLIP`."""
    return untrained(clip_config(tokens)["model_cfg"])


def save_clip(folder: Path, model: Any, tokens: Any) -> None:
    """Write config, fp16 weights and tokenizer, to be loaded as `local-dir:FOLDER`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokens.save_pretrained(folder)
    text = json.dumps(clip_config(tokens), indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")


def save_pipeline(folder: Path, pipe: Any) -> None:
    """Write a pipeline as fp16 safetensors and JSON, without progress bars for such small files."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.half()
    pipe.save_pretrained(folder, safe_serialization=True)
