"""The text experiment: its arms differ in their prompts alone, and it never measures twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.perf import text_gain


def test_arms_see_the_same_scenes_and_other_prompts() -> None:
    scenes = text_gain.drawn(range(3))
    assert scenes.images.shape == (3, 3, 128, 128) and float(scenes.images.min()) >= 0
    assert torch.equal(scenes.images, text_gain.drawn(range(3)).images)
    own, empty, foreign = (prompts(scenes.captions) for prompts in text_gain.ARMS.values())
    assert own == scenes.captions and empty == [""] * 3
    assert sorted(foreign) == sorted(own) and all(a != b for a, b in zip(own, foreign, strict=True))


def test_the_entropy_of_captions_is_below_what_they_take_in_a_file() -> None:
    from pipeline.learned.bitstream import pack_prompt

    texts = text_gain.drawn(range(8)).captions
    stored = 8 * sum(len(pack_prompt(text)) for text in texts) / len(texts)
    assert 5 < text_gain.entropy_of_captions(300) < stored


def test_an_experiment_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    given = ["text_gain", "--steps", "1", "--seeds", "1", "--scenes", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(text_gain, "entropy_of_captions", lambda count: 37.0)
    monkeypatch.setattr(text_gain, "BATCH", 2)
    text_gain.main()
    found = json.loads(out.read_text())
    assert set(found["measured"]) == {"own 0", "empty 0", "foreign 0"}
    table = capsys.readouterr().out
    saved = found["measured"]["empty 0"]["j"] - found["measured"]["own 0"]["j"]
    assert f"{saved:+.1f}" in table and "at most 37 bits" in table
    monkeypatch.setattr(text_gain, "train", lambda *_: pytest.fail("it was trained again"))
    text_gain.main()
    assert json.loads(out.read_text()) == found
    monkeypatch.setattr(sys, "argv", [*given, "--steps", "2"])
    with pytest.raises(SystemExit):
        text_gain.main()
