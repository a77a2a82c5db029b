"""Tiny random pipelines of many families, in the layout in which the Hub has the real ones.

Classes, configurations and tokenizers are those of diffusers and transformers; only the sizes are
small. Each is some hundred kilobytes of safetensors.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.tiny.models import _text_encoder, tokenizer

WORDS = [
    "one red boat on a calm lake at dawn under heavy clouds beside an old stone wall",
    "two blue houses green trees yellow boats number",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _clip_tokens() -> Any:
    return tokenizer(WORDS)


def _t5(width: int = 32) -> dict[str, Any]:
    """A T5 encoder and its tokenizer, which knows letters and a few words."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -5.0) for letter in string.ascii_lowercase + string.digits + ".,"]
    pieces += [(f"▁{word}", -1.0) for word in sorted({w for text in WORDS for w in text.split()})]
    tokens = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return {"tokens": tokens, "encoder": T5EncoderModel(config)}


def _qwen_tokens() -> Any:
    """A byte-level tokenizer of the kind of Qwen's, with its marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab |= {mark: len(vocab) + number for number, mark in enumerate(marks)}
    made = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=4096)
    made.add_special_tokens({"additional_special_tokens": marks[1:]})
    made.chat_template = CHAT
    return made


def _vae(channels: int, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        mid_block_add_attention=False,
        **{"scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False, **options},
    )


def _flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd() -> Any:
    from pipeline.tiny.models import sd

    return sd(_clip_tokens())


def sdxl() -> Any:
    from pipeline.tiny.models import sdxl

    return sdxl(_clip_tokens())


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    clip, t5 = _clip_tokens(), _t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=1,
            attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
            caption_projection_dim=32, pooled_projection_dim=32,
        ),
        scheduler=_flow(shift=3.0),
        vae=_vae(4, shift_factor=0.06),
        text_encoder=_text_encoder(clip, 16, 1, projection=True),
        tokenizer=clip,
        text_encoder_2=_text_encoder(clip, 16, 1, projection=True),
        tokenizer_2=clip,
        text_encoder_3=t5["encoder"],
        tokenizer_3=t5["tokens"],
    )  # fmt: skip


def flux(guidance: bool = True) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    clip, t5 = _clip_tokens(), _t5()
    return FluxPipeline(
        scheduler=_flow(use_dynamic_shifting=True),
        vae=_vae(4, shift_factor=0.1),
        text_encoder=_text_encoder(clip, 32, 1, projection=False),
        tokenizer=clip,
        text_encoder_2=t5["encoder"],
        tokenizer_2=t5["tokens"],
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
        ),
    )  # fmt: skip


def pixart_sigma() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    t5 = _t5()
    return PixArtSigmaPipeline(
        tokenizer=t5["tokens"],
        text_encoder=t5["encoder"],
        vae=_vae(4),
        transformer=PixArtTransformer2DModel(
            sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip


def sana(sample_size: int = 32) -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokens = _gemma_tokens()
    return SanaPipeline(
        tokenizer=tokens,
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokens), hidden_size=16, intermediate_size=32, head_dim=8,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            )
        ),
        vae=AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2,
            encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
            decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
            encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6,
            encoder_qkv_multiscales=((),) * 5 + ((5,),),
            decoder_qkv_multiscales=((),) * 5 + ((5,),),
            encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6,
            downsample_block_type="conv", upsample_block_type="interpolate",
            decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
            attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
            cross_attention_dim=8, caption_channels=16, sample_size=sample_size,
        ),
        scheduler=_flow(shift=3.0),
    )  # fmt: skip


def _gemma_tokens() -> Any:
    from transformers import GemmaTokenizer

    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5, "\n": 6}
    letters = string.ascii_letters + string.digits + "'\"-:.,>()"
    vocab |= {letter: len(vocab) + number for number, letter in enumerate(letters)}
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=4096)


def qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokens = _qwen_tokens()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 16,
            "bos_token_id": None, "eos_token_id": None,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "rope_scaling": {
                "mrope_section": [1, 1, 2], "rope_type": "default", "type": "default",
            },
            "rope_theta": 1000000.0,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16,
        },
        bos_token_id=None, eos_token_id=None, hidden_size=16, vocab_size=len(tokens),
        vision_end_token_id=1, vision_start_token_id=2,
        vision_token_id=3,
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=_flow(shift=1.0, use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokens,
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
    )  # fmt: skip


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokens = _qwen_tokens()
    return ZImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=_vae(4, shift_factor=0.1),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokens), hidden_size=16, intermediate_size=16, head_dim=8,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            )
        ),
        tokenizer=tokens,
        transformer=ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1,
            n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        ),
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart-sigma": pixart_sigma,
    "sana": sana,
    "qwen-image": qwen_image,
    "z-image": z_image,
}
"""Pipelines by their name in FAMILIES."""


def save(folder: Path, make: Callable[[], Any], seed: int = 0, variant: str | None = None) -> Path:
    """A pipeline of random weights, as a folder of safetensors."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    torch.manual_seed(seed)
    pipe = make()
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            # Initial values leave whole branches at zero; then no prompt or seed moves a pixel.
            with torch.no_grad():
                for parameter in part.parameters():
                    if parameter.dim() > 1 or name in ("unet", "transformer"):
                        parameter.add_(torch.randn_like(parameter) * 0.05)
    pipe.save_pretrained(folder, safe_serialization=True, variant=variant)
    return folder
