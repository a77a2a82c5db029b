"""The text encoder: what it returns, what it keeps, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import AigiError
from pipeline.learned.sizes import TextSizes
from pipeline.learned.text import EMBEDDED, STEPS, TextEncoder
from pipeline.models.clip import Clip, Embeddings
from tests.learned.conftest import TEXT, text_encoder


def test_features_lie_on_a_grid_and_the_last_is_clips_vector() -> None:
    prompts = ["a red boat", "two trees at night", ""]
    tokens, pooled = text_encoder("tokens")(prompts), text_encoder("pooled")(prompts)
    assert tokens.features.dtype == torch.float64
    assert torch.equal(tokens.features * STEPS, torch.round(tokens.features * STEPS))
    assert pooled.features.shape == (3, 1, 96) and pooled.there.all()
    lengths = tokens.there.sum(1)
    for row, length, vector in zip(tokens.features, lengths, pooled.features, strict=True):
        assert torch.equal(row[length - 1], vector[0])
    clip = Clip(Embeddings(folder=str(EMBEDDED["tiny"])), "cpu").text_vectors(prompts)
    unit = torch.nn.functional.normalize(pooled.features[:, 0], dim=1).numpy()
    assert np.allclose(unit, clip, atol=1e-3)


def test_an_empty_prompt_has_features() -> None:
    text = text_encoder()([""])
    assert text.features.shape[1] == 2, "begin and end"
    assert text.there.all()


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(TextSizes.model_validate(TEXT))
    asked: list[list[str]] = []
    whole = encoder._encode

    def watched(prompts: Sequence[str]) -> list[torch.Tensor]:
        asked.append(list(prompts))
        return whole(prompts)

    monkeypatch.setattr(encoder, "_encode", watched)
    first = encoder(["a", "b", "a"])
    again = encoder(["b", "c", "a"])
    assert asked == [["a", "b"], ["c"]]
    assert torch.equal(first.features[1], again.features[0])
    monkeypatch.setattr("pipeline.learned.text.CACHED", 2)
    assert encoder(["a", "b", "c", "d"]).features.shape[0] == 4, "more than are kept"
    assert len(encoder._cache) == 2


def test_alone_or_in_a_batch_is_the_same() -> None:
    prompts = ["a red boat on a calm lake at dawn", "x", ""]
    together = TextEncoder(TextSizes.model_validate(TEXT))(prompts)
    for prompt, row, there in zip(prompts, *together, strict=True):
        alone = TextEncoder(TextSizes.model_validate(TEXT))([prompt])
        assert torch.equal(alone.features[0], row[there])


def test_wrong_towers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match="vectors have 96"):
        TextEncoder(TextSizes(tower="tiny", width=512))
    with pytest.raises(AigiError, match="sha256"):
        TextEncoder(TextSizes(tower="tiny", width=96, sha256="0" * 64))
    with pytest.raises(AigiError, match=r"open_clip_config.json"):
        TextEncoder(TextSizes(tower="tiny", width=96), tmp_path)
    copy = tmp_path / "clip"
    shutil.copytree(EMBEDDED["tiny"], copy)
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(AigiError, match="pickle"):
        TextEncoder(TextSizes(tower="tiny", width=96), copy)
    with pytest.raises(AigiError, match="--text FOLDER"):
        TextEncoder(TextSizes(tower="nobody/nothing-here"))
