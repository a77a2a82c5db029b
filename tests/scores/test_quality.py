"""Pictures whose faults are known in, scores that show them out; a tiny random safety checker."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import stages
from pipeline.models.clip import Embeddings
from pipeline.pixels import RGB, png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.scores import quality
from pipeline.scores.embeddings import column_vectors
from pipeline.scores.measures import blockiness, luminance, measures, perceptual_hash
from pipeline.scores.quality import Inspector, Quality, concept_scores
from pipeline.settings import check
from pipeline.store import Store
from pipeline.tables import IMAGES, QUALITY
from pipeline.workflow import Workflow
from tests.conftest import WorkflowMaker
from tests.scores.test_embeddings import clip_folder, picture

CONCEPTS = {
    "boat": {"texts": ["two red boats on a calm lake", "a boat"], "neutral": ["a house"]},
    "a tree": {"texts": ["one green tree"], "neutral": ["a red house", "a yellow boat", "clouds"]},
}

INPUT = pa.schema(
    [
        *(IMAGES.field(i) for i in range(4)),
        ("planned_width", pa.int32()),
        ("planned_height", pa.int32()),
    ]
)


def cloud(seed: int, width: int = 128, height: int = 96) -> RGB:
    """A picture with the spectrum of a photo: amplitude one over frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(3):
        wave = np.fft.fft2(rng.standard_normal((height, width))) / frequency
        wave[0, 0] = 0
        plane = np.fft.ifft2(wave).real
        layers.append(128 + 45 * plane / plane.std())
    return np.stack(layers, axis=2).clip(0, 255).astype(np.uint8)


def jpeg(rgb: RGB, at_quality: int) -> RGB:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=at_quality)
    return np.asarray(Image.open(out).convert("RGB"))


def flat(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> RGB:
    return np.full((height, width, 3), colour, np.uint8)


def noise(seed: int, width: int = 128, height: int = 96) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows_of(pictures: list[RGB | None], planned: tuple[int | None, int | None]) -> pa.Table:
    rows = []
    for i, rgb in enumerate(pictures):
        row: dict[str, Any] = {"image_id": f"id-{i}"}
        row |= {"planned_width": planned[0], "planned_height": planned[1]}
        if rgb is not None:
            row["image"] = {"bytes": png_bytes(rgb), "path": f"{i}.png"}
            row |= {"width": rgb.shape[1], "height": rgb.shape[0]}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=INPUT)


def inspected(worker: Inspector, rows: pa.Table) -> list[dict[str, Any]]:
    chunks = list(worker(rows))
    assert all(chunk.schema == QUALITY for chunk in chunks)
    assert all(chunk.num_rows <= worker.settings.batch_size for chunk in chunks)
    found: list[dict[str, Any]] = pa.concat_tables(chunks).to_pylist()
    assert [row["image_id"] for row in found] == rows["image_id"].to_pylist()
    return found


# Pixels


def test_known_pictures_have_known_measures() -> None:
    white = measures(flat((255, 255, 255)))
    assert white == {
        "black": 0,
        "blank": 1,
        "luminance_mean": 255,
        "luminance_std": 0,
        "entropy": 0,
        "blockiness": 1,
    }
    assert measures(flat((0, 0, 0)))["black"] == 1
    assert measures(flat((8, 0, 8)))["black"] == 1
    assert measures(flat((9, 0, 0)))["black"] == 0
    half = flat((0, 0, 0))
    half[:, 40:] = 255
    half = half[:, 16:]  # now 24 columns of each
    found = measures(half)
    assert found["black"] == found["blank"] == 0.5
    assert found["luminance_mean"] == found["luminance_std"] == 127.5
    assert found["entropy"] == 1
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    found = measures(ramp)
    assert found["entropy"] == 8
    assert found["blank"] == 16 / 256
    assert found["black"] == 9 / 256
    assert found["luminance_mean"] == 127.5


def test_luminance_is_that_of_jpeg() -> None:
    rgb = cloud(0)
    expected = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luminance(rgb) - expected).max() <= 0.51


def test_faults_stand_out() -> None:
    good, bad = measures(cloud(1)), measures(jpeg(cloud(1), 10))
    static, nothing, dark = measures(noise(1)), measures(flat((90, 91, 92))), cloud(1) // 32
    assert good["entropy"] > 6.5 and static["entropy"] > good["entropy"] > nothing["entropy"] == 0
    assert nothing["blank"] == 1 > 0.1 > good["blank"] > static["blank"]
    assert measures(dark)["black"] > 0.9 > 0.01 > good["black"]
    assert nothing["luminance_std"] == 0 < 20 < good["luminance_std"] < static["luminance_std"]
    assert bad["blockiness"] > 1.4 > 1.1 > good["blockiness"]
    assert static["blockiness"] < 1.1
    bits = [
        8 * len(png_bytes(rgb)) / rgb[..., 0].size
        for rgb in (flat((90, 91, 92), 128, 96), jpeg(cloud(1), 10), cloud(1), noise(1))
    ]
    assert bits == sorted(bits) and bits[0] < 0.5 and bits[-1] > 24


@pytest.mark.parametrize("seed", range(3))
def test_blockiness_rises_as_quality_falls(seed: int) -> None:
    rgb = cloud(seed, 192, 160)
    found = [blockiness(luminance(jpeg(rgb, q))) for q in (95, 75, 50, 30, 10, 5)]
    assert found == sorted(found)
    # Wherever the grid begins.
    cropped = blockiness(luminance(jpeg(rgb, 10)[3:, 5:]))
    assert cropped == pytest.approx(found[4], rel=0.1)
    turned = blockiness(luminance(jpeg(rgb, 10)[::-1].transpose(1, 0, 2)))
    assert turned == pytest.approx(found[4], rel=0.1)


def test_blockiness_is_no_edge_detector() -> None:
    framed = flat((255, 255, 255), 256, 256)
    framed[64:192, 64:192] = 0  # every edge on the grid
    assert blockiness(luminance(framed)) == 1
    stripes = flat((255, 255, 255), 256, 256)
    stripes[:, ::3] = 0
    assert blockiness(luminance(stripes)) < 1.01
    rows, columns = np.mgrid[:512, :512]
    # Steps of one level, unseen: across the grid, and on its very lines.
    assert blockiness(((rows + columns) // 8).astype(np.uint8)) < 1.2
    assert blockiness((columns // 8).astype(np.uint8)) <= 1.5
    assert blockiness((columns // 8 + rows // 8).astype(np.uint8)) <= 2
    assert blockiness(luminance(jpeg(flat((30, 90, 200), 256, 256), 5))) == 1
    tiny = jpeg(noise(0, 31, 31), 5)
    assert blockiness(luminance(tiny)) == 1


def test_blockiness_of_photos(shared: Path) -> None:
    files = sorted((shared / "kodak").glob("*.png"))[:3]
    for file in files:
        rgb = np.asarray(Image.open(file).convert("RGB"))
        found = [blockiness(luminance(jpeg(rgb, q))) for q in (75, 50, 30, 10)]
        assert blockiness(luminance(rgb)) < 1.08 < found[0]
        assert found == sorted(found) and found[-1] > 1.7


@st.composite
def pictures(draw: st.DrawFn) -> RGB:
    """Any size from 1x1; flat, two colours, noise, or a compressed one."""
    width, height = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    seed, kind = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 3))
    rng = np.random.default_rng(seed)
    if kind == 0:
        return np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    if kind == 1:
        return (rng.integers(0, 2, (height, width, 1)) * rng.integers(0, 256, 3)).astype(np.uint8)
    rgb = noise(seed, width, height)
    return rgb if kind == 2 else jpeg(rgb, 5)


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_measures_stay_in_range(rgb: RGB) -> None:
    found = measures(rgb)
    assert all(np.isfinite(value) for value in found.values())
    assert 0 <= found["black"] <= 1
    assert 1 / rgb[..., 0].size <= found["blank"] <= 1
    assert 0 <= found["luminance_mean"] <= 255
    assert 0 <= found["luminance_std"] <= 127.5 + 1e-6
    assert 0 <= found["entropy"] <= min(8, np.log2(rgb[..., 0].size)) + 1e-9
    assert 1 <= found["blockiness"] <= 256
    turned = measures(np.ascontiguousarray(rgb.transpose(1, 0, 2)))
    assert turned == pytest.approx(found)


def test_rows_of_the_table() -> None:
    given = [cloud(0), None, flat((0, 0, 0), 128, 96), cloud(1, 64, 96), None]
    rows = inspected(Inspector(Quality(batch_size=2)), rows_of([*given], (128, 96)))
    for row, rgb in zip(rows, given, strict=True):
        if rgb is None:
            assert {name for name, value in row.items() if value is not None} == {"image_id"}
            continue
        for name, value in measures(rgb).items():
            assert row[name] == pytest.approx(value, rel=1e-6)
        assert row["nsfw"] is None and row["concepts"] == []
        assert row["perceptual_hash"] == perceptual_hash(rgb)
        assert row["png_bpp"] == pytest.approx(8 * len(png_bytes(rgb)) / rgb[..., 0].size)
    assert [row["width_ok"] for row in rows] == [True, None, True, False, None]
    kept = inspected(Inspector(Quality()), rows_of([*given], (None, None)))
    assert [row["width_ok"] for row in kept] == [True, None, True, True, None]
    table = rows_of([*given], (128, 96))
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 2), table.slice(3)])
    assert inspected(Inspector(Quality(batch_size=3, decode_threads=1)), pieces) == rows
    assert list(Inspector(Quality())(rows_of([], (1, 1)))) == []


# The safety checker


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random safety checker of 32x32 pixels whose thresholds flag about half of the clouds."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import (
        StableDiffusionSafetyChecker,
    )
    from transformers import CLIPConfig, CLIPImageProcessor

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = CLIPConfig(
        vision_config=shape | {"image_size": 32, "patch_size": 8, "initializer_factor": 20.0},
        text_config=shape | ends,
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("checker")
    torch.manual_seed(5)
    model = StableDiffusionSafetyChecker(config).eval()
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    with torch.no_grad():
        model.concept_embeds.copy_(torch.randn(17, 16))
        model.special_care_embeds.copy_(torch.randn(3, 16))
        pixels = processor([np.array(rgb) for rgb in CLOUDS], return_tensors="pt")["pixel_values"]
        vectors = model.visual_projection(model.vision_model(pixels)[1])
        for name, share in (("concept_embeds", 0.93), ("special_care_embeds", 0.8)):
            cosines = torch.nn.functional.cosine_similarity(
                vectors[:, None], getattr(model, name)[None], dim=2
            )
            getattr(model, f"{name}_weights").copy_(cosines.quantile(share, dim=0))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


CLOUDS = [cloud(seed, 48, 40) for seed in range(14)] + [picture(seed, 40, 40) for seed in range(6)]


def with_checker(folder: Path, **values: Any) -> Quality:
    return Quality.model_validate({"safety_checker": {"folder": str(folder)}, **values})


def flagged(worker: Inspector, pictures: list[RGB]) -> list[bool]:
    """What diffusers' own class says of the same pictures."""
    import torch

    assert worker.checker is not None
    pixels = torch.from_numpy(np.stack([worker.checker.prepare(rgb) for rgb in pictures]))
    images = [np.array(rgb) for rgb in pictures]
    _, found = worker.checker.model(clip_input=pixels, images=images)
    return [bool(flag) for flag in found]


def test_nsfw_is_above_zero_where_diffusers_flags(checker: Path) -> None:
    worker = Inspector(with_checker(checker, batch_size=4), device="cpu")
    rows = inspected(worker, rows_of([None, *CLOUDS[:7], None, *CLOUDS[7:]], (48, 40)))
    scores = [row["nsfw"] for row in rows if row["black"] is not None]
    assert len(scores) == len(CLOUDS)
    expected = flagged(worker, CLOUDS)
    assert 3 < sum(expected) < len(CLOUDS) - 3  # or the test would say nothing
    assert [score > 0 for score in scores] == expected
    assert rows[0]["nsfw"] is None and rows[8]["nsfw"] is None
    assert len(set(scores)) > 10
    alone = Inspector(with_checker(checker, batch_size=1), device="cpu")
    again = inspected(alone, rows_of([*CLOUDS], (48, 40)))
    assert [row["nsfw"] for row in again] == pytest.approx(scores, abs=0.0011)


def test_a_special_concept_raises_the_others(checker: Path) -> None:
    import torch

    worker = Inspector(with_checker(checker), device="cpu")
    assert worker.checker is not None
    model, rows = worker.checker.model, rows_of([CLOUDS[0]], (48, 40))
    pixels = torch.from_numpy(worker.checker.prepare(CLOUDS[0]))[None]
    with torch.no_grad():
        vector = model.visual_projection(model.vision_model(pixels)[1])
        cosines = torch.nn.functional.cosine_similarity(vector, model.concept_embeds)
        model.concept_embeds_weights.copy_(cosines + 0.005)
        for threshold, score in ((2.0, -0.005), (-2.0, 0.005)):
            model.special_care_embeds_weights.fill_(threshold)
            (row,) = inspected(worker, rows)
            assert row["nsfw"] == pytest.approx(score, abs=1e-6)
            assert flagged(worker, CLOUDS[:1]) == [score > 0]
        # At its threshold a concept is not flagged, nor within the rounding of diffusers.
        model.special_care_embeds_weights.fill_(2.0)
        for over, score in ((0.0, 0.0), (0.0004, 0.0), (0.0007, 0.001)):
            model.concept_embeds_weights.copy_(cosines - over)
            (row,) = inspected(worker, rows)
            assert row["nsfw"] == pytest.approx(score, abs=1e-6)
            assert flagged(worker, CLOUDS[:1]) == [score > 0]


def test_weights_in_the_layout_of_the_hub(tmp_path: Path, checker: Path) -> None:
    """Published weights were saved before transformers shortened the names of vision models."""
    from safetensors.torch import load_file, save_file

    old = tmp_path / "old"
    shutil.copytree(checker, old)
    weights = {
        name.replace("vision_model.", "vision_model.vision_model.", 1)
        if name.startswith("vision_model.") and not name.startswith("vision_model.vision_model.")
        else name: value
        for name, value in load_file(checker / "model.safetensors").items()
    }
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    rows = rows_of([*CLOUDS], (48, 40))
    assert inspected(Inspector(with_checker(old), device="cpu"), rows) == inspected(
        Inspector(with_checker(checker), device="cpu"), rows
    )


def _unlink(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _without_vision(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "vision_model" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (shutil.rmtree, r"quality\.safety_checker\.folder: .*no such folder"),
        (_unlink("preprocessor_config.json"), "has no preprocessor_config.json"),
        (_pickled, "has no model.safetensors; .*pickle files are not read"),
        (_without_vision, r"its weights lack 39 tensors \(vision_model\..* Copy or download"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99),
            "is damaged or cut",
        ),
        (lambda folder: (folder / "config.json").write_bytes(b"{"), "cannot be loaded"),
    ],
)
def test_a_damaged_checker(
    tmp_path: Path, checker: Path, harm: Callable[[Path], object], reason: str
) -> None:
    shutil.copytree(checker, tmp_path / "m")
    harm(tmp_path / "m")
    with pytest.raises(AigiError, match=reason):
        Inspector(with_checker(tmp_path / "m"), device="cpu")


def test_a_checker_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        AigiError, match=r"(?s)CompVis/stable-diffusion-safety-checker@main.*folder"
    ):
        Inspector(Quality.model_validate({"safety_checker": {}}), device="cpu")


# Concepts


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def test_concepts_are_the_zero_shot_probabilities_of_open_clip(clip_model: Path) -> None:
    import open_clip
    import torch

    from pipeline.tables import embeddings_schema

    name = f"local-dir:{clip_model}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    words = open_clip.get_tokenizer(name)
    given = [picture(seed) for seed in range(7)]
    expected: dict[str, Any] = {}
    with torch.inference_mode():
        stack = torch.stack([transform(Image.fromarray(rgb)) for rgb in given])
        images = model.encode_image(stack, normalize=True)
        for concept, texts in CONCEPTS.items():
            sentences = words(texts["texts"] + texts["neutral"])
            logits = model.logit_scale.exp() * images @ model.encode_text(sentences, True).T
            shares = logits.softmax(dim=1)[:, : len(texts["texts"])].sum(dim=1)
            expected[concept] = shares.numpy()
    assert all(np.ptp(values) > 0.01 for values in expected.values())  # the picture matters

    there = np.array([True, True, False, True, True, True, True])
    vector = embeddings_schema(96).field("image_vector").type
    vectors = [
        row.astype(np.float16) if t else None for row, t in zip(images.numpy(), there, strict=True)
    ]
    rows = rows_of([rgb if t else None for rgb, t in zip(given, there, strict=True)], (80, 64))
    rows = rows.append_column("image_vector", pa.array(vectors, vector))
    section = Quality.model_validate({"concepts": CONCEPTS, "batch_size": 3})
    worker = Inspector(section, Embeddings(folder=str(clip_model)), "cpu")
    found = inspected(worker, rows)
    assert found[2]["concepts"] is None
    for i in np.flatnonzero(there):
        assert [name for name, _ in found[i]["concepts"]] == sorted(CONCEPTS)
        for name, share in found[i]["concepts"]:
            # The vectors were rounded to float16.
            assert share == pytest.approx(expected[name][i], abs=2e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 5000), st.integers(0, 999))
def test_concept_and_neutral_share_one(texts: int, neutral: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def unit(count: int) -> Any:
        rows = rng.standard_normal((count, 12)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    images, a, b = unit(6), unit(texts), unit(neutral)
    found = concept_scores(images, a, b, scale)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found + concept_scores(images, b, a, scale), 1, atol=1e-4)
    images[2] = np.nan
    assert np.isnan(concept_scores(images, a, b, scale)).tolist() == [i == 2 for i in range(6)]


def test_concepts_need_embeddings(tmp_path: Path) -> None:
    data: dict[str, Any] = {"run": "run", "quality": {"concepts": CONCEPTS}}
    flow = check(Workflow, data, str(tmp_path / "w.yaml"))
    with pytest.raises(AigiError, match=r"quality\.concepts: .* no embeddings section"):
        stages(flow)
    with pytest.raises(AigiError, match=r"quality\.concepts"):
        Inspector(Quality.model_validate(data["quality"]))
    for section, reason in (
        ({"concepts": {"a": {"texts": [], "neutral": ["b"]}}}, "concepts.a.texts"),
        ({"concepts": {"a": {"texts": ["b"]}}}, "concepts.a.neutral"),
        ({"threshold": 0.5}, "quality.threshold"),
    ):
        with pytest.raises(AigiError, match=reason):
            check(Workflow, {"run": "r", "quality": section}, str(tmp_path / "w.yaml"))
    plain = check(Workflow, {"run": "r", "quality": {}}, str(tmp_path / "w.yaml"))
    (stage,) = stages(plain)
    assert stage.inputs == ("plan", "images")


# All of it


def test_through_a_workflow(
    make_workflow: WorkflowMaker,
    clip_model: Path,
    checker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_workflow(
        plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 3},
        compute={"device": "cpu"},
        embeddings={"folder": str(clip_model), "batch_size": 2},
        quality={
            "safety_checker": {"folder": str(checker)},
            "concepts": CONCEPTS,
            "batch_size": 2,
        },
    )
    flow = workflows.load(path)
    made = stages(flow)
    names = ["lines", "texts", "prompts", "plan", "images", "embeddings", "quality", "selection"]
    assert [stage.table for stage in made[:8]] == names
    store = Store(flow.run)
    run_stages(made, store, flow.compute, Progress(quiet=True))

    shards = store.shards("images")
    assert set(store.shards("embeddings")) == set(store.shards("quality")) == set(shards)
    plan, images, scores = (store.read_all(n) for n in ("plan", "images", "quality"))
    vectors = store.read_all("embeddings")
    assert plan["image_id"] == images["image_id"] == vectors["image_id"] == scores["image_id"]
    assert scores.schema.equals(QUALITY)
    cosines = (
        column_vectors(vectors["image_vector"]) * column_vectors(vectors["text_vector"])
    ).sum(axis=1)
    np.testing.assert_allclose(cosines, np.asarray(vectors["clip_score"]), atol=2e-3)
    rows = list(zip(images.to_pylist(), scores.to_pylist(), strict=True))
    assert len(rows) > 10
    for image, score in rows:
        assert image["error"] is None
        assert all(value is not None for value in score.values())
        assert score["width_ok"] and dict(score["concepts"]).keys() == CONCEPTS.keys()
        rgb = np.asarray(Image.open(io.BytesIO(image["image"]["bytes"])))
        assert score["luminance_mean"] == pytest.approx(measures(rgb)["luminance_mean"])

    # A lost shard is made again, the same, and nothing else is.
    def bytes_of() -> dict[str, str]:
        return {name: store.sha256("quality", f"{name}.parquet") for name in shards}

    first = bytes_of()
    store.remove("quality", f"{next(iter(shards))}.parquet")
    run_stages(stages(flow), store, flow.compute, Progress(quiet=True))
    assert bytes_of() == first
    monkeypatch.setattr(quality, "_make_worker", lambda *_: pytest.fail("nothing was to do"))
    # A copy of the checker is the same checker; fewer threads make the same scores.
    shutil.copytree(checker, tmp_path / "copy")
    moved = f"quality.safety_checker.folder={tmp_path / 'copy'}"
    for override in (moved, "quality.decode_threads=1"):
        again = workflows.load(path, [override])
        run_stages(stages(again)[:8], store, again.compute, Progress(quiet=True))
    for override, reason in (
        ("quality.concepts.boat.texts=[a ship]", r"concepts\.boat\.texts: "),
        ("quality.safety_checker=null", "safety_checker"),
        ("quality.batch_size=3", "batch_size: 2 -> 3"),
        ("embeddings.precision=bfloat16", "precision: float32 -> bfloat16"),
    ):
        changed = workflows.load(path, [override])
        with pytest.raises(AigiError, match=reason):
            run_stages(stages(changed)[5:7], store, changed.compute, Progress(quiet=True))
