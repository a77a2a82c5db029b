"""What the tiny models are trained on: pictures drawn once, and words shared with the grammar."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo import MODELS
from pipeline.tiny import corpus, measure, models


def test_a_chunk_of_pictures_is_drawn_once_and_holds_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 6)
    corpus._draw_chunk(tmp_path, 0)
    with np.load(tmp_path / "00000.npz") as file:
        shapes = {name: file[name].shape for name in file}
        first, second = file["first"].astype(int), file["second"].astype(int)
    assert shapes["first"] == (6, 128, 128, 3)
    assert shapes["large"] == (2, 192, 192, 3)
    assert shapes["clip"] == (6, 2, models.CLIP_SIZE, models.CLIP_SIZE, 3)
    apart = np.abs(first - second).mean((1, 2, 3))
    others = np.abs(first - first[::-1]).mean((1, 2, 3))
    assert (apart < others).all()
    assert (apart > 0).all()
    stamp = (tmp_path / "00000.npz").stat().st_mtime_ns
    corpus._draw_chunk(tmp_path, 0)
    assert (tmp_path / "00000.npz").stat().st_mtime_ns == stamp


def test_only_as_many_scenes_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    corpus.draw_pictures(tmp_path, 7, 1)
    assert len(corpus.load_pictures(tmp_path, "first", 7)) == 7
    assert len(corpus.load_pictures(tmp_path, "large", 7)) == 2


def test_prompts_of_the_demo_are_in_words_that_the_scenes_teach() -> None:
    """Of the words in the grammar's core, counted as often as they are used."""
    word = re.compile("[a-z]+")
    first = corpus.FIRST_SEED
    taught = {
        found
        for seed in range(first, first + 1_500)
        for text in corpus.said(seed)
        for found in word.findall(text.lower())
    }
    used = Counter(
        found for text in measure.demo_prompts(500) for found in word.findall(text.lower())
    )
    known = sum(count for found, count in used.items() if found in taught)
    assert known / used.total() > 0.95


@pytest.mark.parametrize("folder", ["sd/tokenizer", "sdxl/tokenizer", "sdxl/tokenizer_2", "clip"])
def test_shipped_tokenizers_are_those_of_the_words_of_today(tmp_path: Path, folder: str) -> None:
    """Else a change of the grammar or of the captions would need new models."""
    corpus.vocabulary().save_pretrained(tmp_path)
    new, old = (
        json.loads((where / "tokenizer.json").read_text())["model"]
        for where in (tmp_path, MODELS / folder)
    )
    assert (new["vocab"], new["merges"]) == (old["vocab"], old["merges"])
    settings = json.loads((MODELS / folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == models.CONTEXT
