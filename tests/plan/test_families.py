"""Families: every row is a pipeline of diffusers, and wrong names are answered with near ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import AigiError
from pipeline.plan import specification
from pipeline.plan.families import FAMILIES
from tests.conftest import ROOT


def test_every_row_names_what_diffusers_has() -> None:
    import inspect

    import diffusers

    for family in FAMILIES.values():
        pipeline = getattr(diffusers, family.pipeline)
        takes = inspect.signature(pipeline.__call__).parameters
        assert ("negative_prompt" in takes) or not family.negative_prompt
        built = inspect.signature(pipeline.__init__).parameters
        assert {family.denoiser, *family.options} <= built.keys()


def test_guidance_doubles_the_evaluations() -> None:
    family = FAMILIES["sd"]
    assert [family.evaluations(20, scale) for scale in (0, 1, 1.5, 7.5)] == [20, 20, 40, 40]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "pipeline: sdxl",
            "pipeline: sdlx",
            r'sdxl\.pipeline: no "sdlx"; did you mean "sdxl"\?',
        ),
        ("scheduler: ", "scheduler: x", r'scheduler: no "x'),
    ],
)
def test_a_wrong_name_is_answered_with_a_near_one(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = (ROOT / "manifests" / "demo.yaml").read_text()
    assert old in text
    (tmp_path / "spec.yaml").write_text(text.replace(old, new))
    with pytest.raises(AigiError, match=said):
        specification.load(str(tmp_path / "spec.yaml"))
