"""A seed and sentences in, tiny Stable Diffusion and SDXL pipelines in diffusers layout out.

Same classes, same folder layout, same loading code as the real models; random weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = 400
_WORD = re.compile("[a-z]+")


def _tokenizer(sentences: Iterable[str]) -> Any:
    """A CLIP tokenizer that knows the commonest words of the sentences, and every byte.

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
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=77)


def _text_encoder(tokenizer: Any, width: int, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _vae(scaling_factor: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
    )


def _unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        **options,
    )


def _schedule(**options: Any) -> dict[str, Any]:
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        **options,
    }


def _quiet() -> None:
    """No progress bars for files of a megabyte."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def save_sd(folder: Path, sentences: Iterable[str], seed: int, v_prediction: bool) -> None:
    """Write a pipeline in the layout of SD 2.1 (`v_prediction`) or SD 2.1-base.

    Args:
        folder: made if missing; safetensors and JSON only.
        sentences: what the tokenizer learns its byte pairs from.
        seed: of the random weights; the caller's own random state is left as it was.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    _quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(sentences)
        pipe = StableDiffusionPipeline(
            vae=_vae(0.18215),
            text_encoder=_text_encoder(tokenizer, 32, projection=False),
            tokenizer=tokenizer,
            unet=_unet(sample_size=16, cross_attention_dim=32),
            scheduler=DDIMScheduler(
                **_schedule(
                    clip_sample=False,
                    set_alpha_to_one=False,
                    prediction_type="v_prediction" if v_prediction else "epsilon",
                )
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(folder, safe_serialization=True)


def save_sdxl(folder: Path, sentences: Iterable[str], seed: int) -> None:
    """Write a pipeline in the layout of SDXL: two text encoders, size conditioning.

    Args: as for `save_sd`.
    """
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    _quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(sentences)
        pipe = StableDiffusionXLPipeline(
            vae=_vae(0.13025),
            text_encoder=_text_encoder(tokenizer, 32, projection=False),
            text_encoder_2=_text_encoder(tokenizer, 32, projection=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=_unet(
                sample_size=32,
                cross_attention_dim=64,
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            scheduler=EulerDiscreteScheduler(**_schedule()),
            add_watermarker=False,
        )
        pipe.save_pretrained(folder, safe_serialization=True)
