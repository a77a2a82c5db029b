"""The tokenizer takes any text, text towers are alike, saved weights are finite halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.demo import MODELS
from pipeline.tiny import models


@pytest.fixture(scope="module")
def shipped() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODELS / "sd" / "tokenizer")


@given(st.text(max_size=40))
@example("ABCDEFGHIJKLM NOPQRSTUVWXYZ")
@example("\u00c0\u00c1\u00d5 \u0130 \u00df \U0010ffff \U000fffff \u07ff \u0800 \x00\x7f")
def test_no_text_has_a_token_outside_the_vocabulary(shipped: Any, text: str) -> None:
    """Capitals and bytes that UTF-8 lacks are left out of it: no text may need them."""
    ids = shipped(text, add_special_tokens=False)["input_ids"]
    if "<|" not in text:
        assert shipped.unk_token_id not in ids


def test_capitals_and_impossible_bytes_have_no_tokens(shipped: Any) -> None:
    vocabulary = shipped.get_vocab()
    assert "a" in vocabulary and "A" not in vocabulary and "A</w>" not in vocabulary
    assert len(vocabulary) == len(set(vocabulary.values())) == max(vocabulary.values()) + 1
    assert shipped("A Red BALL")["input_ids"] == shipped("a red ball")["input_ids"]


def test_pipelines_begin_with_clips_text_tower() -> None:
    torch.manual_seed(0)
    tokens = models.tokenizer(["a red ball on a table", "two blue boats"])
    clip = models.clip(tokens).eval()
    encoder = models.sd(tokens).text_encoder.eval()
    models.take_clip_text(encoder, clip)
    ids = torch.tensor(tokens(["a red boat"], padding="max_length")["input_ids"])
    end = int(ids.argmax())
    with torch.no_grad():
        own = encoder(ids).last_hidden_state[:, end] @ clip.text_projection
        assert torch.allclose(own, clip.encode_text(ids), atol=1e-5)


def test_saved_weights_are_finite_halves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = models.tokenizer(["a red ball"])
    models.save_clip(tmp_path / "clip", models.clip(tokens), tokens)
    weights = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    assert kinds == {torch.float16}
