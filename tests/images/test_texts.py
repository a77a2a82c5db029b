"""Prompts that are encoded once: the same bits as without that, and how often encoders run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.images.diffusion.texts import Texts
from pipeline.plan.options import text_of
from tests.families import MAKERS
from tests.images.test_diffuser import plan_rows, run, spec
from tests.images.test_families import OPTIONS

KINDS = ["sd", "sdxl"]
PROMPTS = ["a red boat", "two blue houses under heavy clouds, beside an old stone wall", "a tree"]


@pytest.fixture(scope="module", params=KINDS)
def diffuser(models: Path, request: pytest.FixtureRequest) -> Diffuser:
    folder = str(models / request.param)
    scheduler = {"sd": "ddim", "sdxl": "euler"}[request.param]
    given = spec(pipeline=request.param, scheduler=scheduler)
    return Diffuser(request.param, given, DiffusersSource(folder=folder, batch_size=4), "cpu")


@pytest.fixture
def encoded(diffuser: Diffuser, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the first text encoder."""
    rows: list[int] = []
    real = diffuser.pipe.text_encoder.forward

    def forward(ids: Any, *given: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return real(ids, *given, **options)

    monkeypatch.setattr(diffuser.pipe.text_encoder, "forward", forward)
    assert diffuser.texts is not None
    diffuser.texts.plan = None
    return rows


def without(diffuser: Diffuser, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What plain diffusers makes of them."""
    texts, diffuser.texts = diffuser.texts, None
    assert texts is not None
    diffuser.pipe.encode_prompt = texts.encode
    try:
        return run(diffuser, rows)
    finally:
        diffuser.texts = texts
        diffuser.pipe.encode_prompt = texts


def asking(texts: list[str], **changes: Any) -> list[dict[str, Any]]:
    rows = plan_rows(len(texts), **changes)
    return [row | {"text": text} for row, text in zip(rows, texts, strict=True)]


def test_prompts_that_repeat_are_encoded_once_and_no_bit_changes(
    diffuser: Diffuser, encoded: list[int]
) -> None:
    prompts = [f"{text}, number {n}" for n in range(6) for text in PROMPTS[:2]]
    rows = asking([text for text in prompts for _ in range(2)])  # 24 images of 12 prompts
    expected = without(diffuser, rows)
    assert encoded == [4] * 12, "six batches, each with its negative prompts"
    encoded.clear()
    assert run(diffuser, rows) == expected
    # The first batch as ever, what it is compared with, and ten other prompts, four at a time.
    assert encoded == [4, 4, 4, 4, 4, 4]
    encoded.clear()
    assert run(diffuser, rows) == expected
    assert encoded == [4, 4, 4], "the next shard: nothing is compared again, the negative is known"


def test_prompts_far_apart_and_the_last_smaller_batch(
    diffuser: Diffuser, encoded: list[int]
) -> None:
    rows = asking([*PROMPTS, "a bird", "a red house", *PROMPTS, "a bird", PROMPTS[0]])
    expected = without(diffuser, rows)
    encoded.clear()
    made = run(diffuser, rows)
    assert made == expected
    assert [row["batch_size"] for row in made] == [4] * 8 + [2] * 2
    assert encoded.count(2) == 2, "the last batch, and its negative prompts, are as ever"


@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {"negative_prompt": "blur, noise"}])
def test_without_guidance_and_with_a_negative_prompt(
    diffuser: Diffuser, changes: dict[str, Any], encoded: list[int]
) -> None:
    rows = asking([text for text in (*PROMPTS, "a bird") for _ in range(2)], **changes)
    expected = without(diffuser, rows)
    before = len(encoded)
    assert run(diffuser, rows) == expected
    assert len(encoded) - before <= before + 1, "and one that is compared"


def test_a_bad_prompt_that_comes_later_fails_alone(diffuser: Diffuser) -> None:
    rows = asking([*PROMPTS, "a bird", *PROMPTS, "a fish"])
    rows[6]["text"] = None
    made = run(diffuser, rows)
    assert [row["error"] is None for row in made] == [index != 6 for index in range(8)]
    assert [row["batch_size"] for row in made] == [4] * 4 + [1] * 4


def test_kept_texts_are_those_that_come_again(diffuser: Diffuser) -> None:
    texts = diffuser.texts
    assert texts is not None
    run(diffuser, asking([*PROMPTS, "a bird"] * 2))
    assert texts.kept == {} and "" in texts.kept_negative


KEPT = {"sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana"}
"""Families whose embeddings of a prompt are the same in every batch of one size."""


@pytest.mark.parametrize("name", MAKERS)
def test_in_every_family_no_bit_changes(family: Callable[[str], Path], name: str) -> None:
    given = {"pipeline": name, "scheduler": "own", "options": OPTIONS.get(name, {})}
    local = DiffusersSource(folder=str(family(name)), batch_size=2)
    loaded = Diffuser("x", spec(**given), local, "cpu")
    a, b, c = PROMPTS
    rows = asking([a, b, b, a, c, c, a, b, c], options=text_of(OPTIONS.get(name, {})))
    expected = without(loaded, rows)
    assert all(row["error"] is None for row in expected)
    assert run(loaded, rows) == expected
    texts = loaded.texts
    assert texts is not None and texts.plan is not None
    assert texts.plan.safe == (name in KEPT)


class Fake:
    """A pipeline whose encoder does what some real ones do."""

    def __init__(self, padded: bool = False, placed: bool = False) -> None:
        self.padded, self.placed, self.calls = padded, placed, 0

    def encode_prompt(
        self,
        prompt: list[str],
        negative_prompt: list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: Any = None,
        other: int = 0,
    ) -> tuple[Any, ...]:
        """Embeddings, negative ones, and something that is the same for all."""
        self.calls += 1
        negative = None
        if do_classifier_free_guidance:
            negative = self.embedded(negative_prompt or [""] * len(prompt))
        return self.embedded(prompt) + other, negative, torch.arange(7)

    def embedded(self, texts: list[str]) -> torch.Tensor:
        length = max(len(text) for text in texts) if self.padded else 5
        made = torch.tensor([[float(hash(text) % 1000)] * length for text in texts])
        return made + torch.arange(len(texts))[:, None] * 1e-3 if self.placed else made


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fault", ["padded", "placed"])
def test_an_encoder_whose_rows_depend_on_the_batch_is_left_alone(fault: str) -> None:
    """Of prompts padded to the longest; of kernels that treat rows differently."""
    pipe: Any = Fake(**{fault: True})
    texts = Texts(pipe, 2)
    texts.expect(2, ["aaa", "b", "aaa", "b", "b", "aaa"])
    for prompts in (["aaa", "b"], ["aaa", "b"], ["b", "aaa"]):
        given = {"prompt": prompts, "do_classifier_free_guidance": False}
        assert same(pipe.encode_prompt(**given), texts.encode(**given))
    assert texts.plan is not None and not texts.plan.safe
    texts = Texts(Fake(**{fault: True}), 2)
    both = {"prompt": ["aaa", "b"], "negative_prompt": ["", ""]}
    for _ in range(2):
        assert same(texts(**both), texts.encode(**both))
    assert texts.plan is not None and not texts.plan.safe


def test_other_arguments_are_other_texts() -> None:
    pipe: Any = Fake()
    texts = Texts(pipe, 2)
    texts.expect(2, ["a", "b"] * 3)
    for other in (0, 0, 5, 5, 0):
        given = {"prompt": ["a", "b"], "negative_prompt": ["", ""], "other": other}
        expected = texts.encode(**given)
        assert same(pipe.encode_prompt(**given), expected)
    before = pipe.calls
    pipe.encode_prompt(prompt=["a", "b"], negative_prompt=["", ""], prompt_embeds=torch.zeros(2))
    pipe.encode_prompt(prompt="a", negative_prompt="")
    pipe.encode_prompt(prompt=["a", "b"])  # what a family does without one is its own affair
    assert pipe.calls == before + 3


def test_a_pipeline_without_such_a_method_has_none() -> None:
    assert Texts.of(object(), 2) is None
