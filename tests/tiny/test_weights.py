"""The embedded models: they load as real ones do, are the pinned files, and draw what is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from pipeline.demo import MODELS
from pipeline.models.clip import Clip
from pipeline.tiny import measure, models, train
from pipeline.tiny.corpus import FIRST_SEED, said
from pipeline.tiny.measure import held_out

ROOT = Path(__file__).parents[2]
MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def clip() -> Clip:
    return measure.clip_of(MODELS)


@pytest.fixture(scope="module")
def cases() -> list[measure.Case]:
    return held_out(64)


def test_weights_are_small_safetensors() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 8
    for path in weights:
        with safe_open(path, "np") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        assert {str(t.dtype) for t in tensors} <= {"float16", "int64"}, path
    assert sum(path.stat().st_size for path in weights) <= MOST_BYTES


def test_the_demo_pins_every_weight_file() -> None:
    sources = yaml.safe_load((ROOT / "manifests" / "demo.yaml").read_text())["sources"]
    for name, folder in (("sd21-base", "sd"), ("sd21", "sd"), ("sdxl", "sdxl")):
        weights = (MODELS / folder).rglob("*.safetensors")
        found = {
            str(path.relative_to(MODELS / folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in weights
        }
        assert sources[name]["sha256"] == found
    clip = (MODELS / "clip" / "open_clip_model.safetensors").read_bytes()
    embeddings = yaml.safe_load((ROOT / "workflows" / "demo.yaml").read_text())["embeddings"]
    assert embeddings["sha256"] == hashlib.sha256(clip).hexdigest()


def test_the_model_card_tells_what_was_measured_on_these_weights() -> None:
    """The file is made by `python -m pipeline.tiny.measure --json FILE`."""
    record = json.loads((MODELS / "figures.json").read_text())
    assert record["weights"] == measure.weights_of(MODELS)
    figures = record["figures"]
    assert not {k: figures[k] for k, least in measure.TARGETS.items() if figures[k] < least}
    card = (MODELS / "README.md").read_text()
    assert measure.table(figures) in card
    assert record["weights"]["clip/open_clip_model.safetensors"] in card
    size = sum(path.stat().st_size for path in MODELS.rglob("*.safetensors"))
    assert f"{size:,} bytes" in card


def test_the_model_card_tells_the_settings_of_the_training() -> None:
    card = " ".join((MODELS / "README.md").read_text().split())
    for part, settings in train.plan(1.0, 0).items():
        steps = f"{settings.steps:,} steps of {settings.batch}"
        assert f"{part.upper()} {steps}" in card


def test_the_unets_are_those_of_the_code() -> None:
    """Shipped weights fit what `models` builds, so `train` makes such models."""
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(MODELS / "sd" / "tokenizer")
    for name, pipe in (("sd", models.sd(tokens)), ("sdxl", models.sdxl(tokens))):
        for part in ("unet", "vae"):
            path = MODELS / name / part / "diffusion_pytorch_model.safetensors"
            own = getattr(pipe, part).state_dict()
            assert {k: v.shape for k, v in load_file(path).items()} == {
                k: v.shape for k, v in own.items()
            }


def test_held_out_captions_are_in_no_training_scene(cases: list[measure.Case]) -> None:
    known = measure._trained_captions()
    assert len(known) > 100_000
    assert not known & {case.caption for case in cases}
    for seed in range(FIRST_SEED, FIRST_SEED + 500):
        for text in said(seed):  # with an ending of the grammar or without
            assert text in known or text.rsplit(", ", 1)[0] in known
    assert len({case.caption for case in cases}) == len(cases)


def test_clip_finds_the_caption(clip: Clip, cases: list[measure.Case]) -> None:
    assert measure.retrieval(clip, cases) >= 0.6
    # Shuffled captions are found by chance only.
    wrong = [
        measure.Case(case.scene, case.seed, other.caption)
        for case, other in zip(cases, cases[1:] + cases[:1], strict=True)
    ]
    assert measure.retrieval(clip, wrong) < 0.2


def test_clip_tells_twins_from_others(clip: Clip, cases: list[measure.Case]) -> None:
    shares = measure.duplicates(clip, cases)
    assert min(shares.values()) >= 0.95
    assert shares["different captions below 0.9 cosine"] >= 0.99


def test_vae_reconstructs(cases: list[measure.Case]) -> None:
    pipe = measure.load_pipeline(MODELS / "sd")
    assert measure.vae_psnr(pipe.vae, cases[:16], 128) >= 26


@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_pipelines_draw_what_is_said(name: str, clip: Clip, cases: list[measure.Case]) -> None:
    """Far above chance; the full measurement is `python -m pipeline.tiny.measure`."""
    pipe = measure.load_pipeline(MODELS / name)
    some = cases[:32]
    pictures = measure.generate(pipe, [case.caption for case in some], measure.PIPELINES[name])
    shares = measure.rule_shares(pictures, [case.scene for case in some])
    turned = measure.rule_shares(pictures, [case.scene for case in some[1:] + some[:1]])
    assert shares["night"] >= 0.85
    assert shares["all"] >= turned["all"] + 0.15
    assert (
        measure.best_of(clip, pictures, [case.caption for case in some]) >= 0.25
    )  # by chance 1 in 16


def test_size_conditioning_changes_the_picture() -> None:
    import torch

    pipe = measure.load_pipeline(MODELS / "sdxl")
    prompts = [
        "two red houses in a green field on a clear day",
        "three yellow cups on a wooden table in front of a green wall",
        "a white boat on a blue sea under a cloudy sky",
        "four green trees in a brown field",
    ]
    detail = [
        np.abs(
            np.diff(
                pipe(
                    prompts,
                    width=192,
                    height=192,
                    num_inference_steps=8,
                    guidance_scale=1.0,
                    original_size=size,
                    generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
                    output_type="np",
                ).images,
                axis=1,
            )
        ).mean()
        for size in ((192, 192), (64, 64))
    ]
    assert detail[1] < 0.95 * detail[0], "said to be enlarged from 64x64, it is not smoother"
