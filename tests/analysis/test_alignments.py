"""Scores by real models of all three kinds, attributes, and which source is best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.analysis import alignments
from pipeline.analysis.alignments import ALIGNMENTS, variants
from pipeline.analysis.best import attributes, best
from pipeline.analysis.scorers import BlipScorer, PickScorer, load
from pipeline.collection import Collection, Pictures
from pipeline.demo import MODELS, TINY
from pipeline.pages.report import report
from pipeline.pixels import RGB, png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.store import Store
from tests.conftest import ROOT

COLORS = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "grey", "black")
TEXTS = ["a red boat", "two green trees under a sky", "a house"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The demo's imported pictures, beside a folder without captions, scored by the tiny CLIP."""
    folder = tmp_path_factory.mktemp("alignments")
    (folder / "bare").mkdir()
    (folder / "bare" / "a.png").write_bytes(png_bytes(np.zeros((8, 8, 3), np.uint8)))
    (folder / "bare" / "b.png").write_bytes(b"no picture")
    drawn = TINY / "pictures" / "mj52"
    given = {
        "run": str(folder / "run"),
        "alignments": {
            "pictures": [
                {"place": str(drawn), "name": "drawn", "captions": str(drawn / "captions.csv")},
                {"place": str(folder / "bare")},
            ],
            "models": {"clip": {"kind": "open_clip", "folder": str(MODELS / "clip")}},
            "attributes": {"color": list(COLORS), "light": ["night", "dawn", "sunset"]},
            "batch_size": 5,
        },
    }
    (folder / "w.yaml").write_text(yaml.safe_dump(given))
    loaded = workflows.load(folder / "w.yaml")
    store = Store(loaded.run)
    assert loaded.alignments is not None
    stage = alignments.stage(loaded.alignments, loaded.run, loaded.compute)
    run_stages([stage], store, loaded.compute, Progress(quiet=True))
    return store


def test_scores_go_on_at_any_batch(run: Store) -> None:
    """As after a kill: `alignments` keeps its finished batches."""
    given = {"models": {"clip": {"kind": "open_clip", "folder": str(MODELS / "clip")}}}
    settings = alignments.Alignments.model_validate(given | {"batch_size": 5})
    drawn = TINY / "pictures" / "mj52"
    pictures = Pictures(place=str(drawn), captions=str(drawn / "captions.csv"))
    collection = Collection(pictures)
    rows = collection.read(collection.parts[0].name)
    worker = alignments.Aligner(settings, "cpu")
    chunks = list(worker(rows))
    assert len(chunks) > 2
    assert list(worker(rows, start=5)) == chunks[1:]


def test_pictures_that_show_their_prompt_score_high(run: Store) -> None:
    rows = run.read_all("alignments").to_pylist()
    drawn = [row for row in rows if row["source"] == "drawn"]
    scores = {row["text"]: dict(row["scores"])["clip"] for row in drawn}
    assert len(drawn) == 16
    wrong = scores[
        "three orange flowers and a small yellow flower in a green field under a grey sky"
    ]
    assert wrong < 0.2 < np.median(list(scores.values())), "the picture of another caption"
    bare, broken = (row for row in rows if row["source"] == "bare")
    assert (bare["scores"], bare["attributes"], bare["error"]) == ([], [], None)
    assert broken["error"] == "not a picture"
    found = attributes(run.read_all("alignments"))
    assert found["color", "drawn"][1] == 2, "two captions name one of the colours alone"
    right, total = found["light", "drawn"]
    assert total == 8 and right >= 7, "by chance it were a third"
    text, _ = report(run)
    assert "Attributes: images that match" in text and "Alignment" in text


def noise(count: int) -> list[RGB]:
    """Noise, each picture about another colour."""
    random = np.random.default_rng(7)
    colors = random.integers(0, 200, (count, 1, 1, 3))
    return list((colors + random.integers(0, 56, (count, 40, 48, 3))).astype(np.uint8))


def tiny_blip(folder: Path) -> Path:
    """A random BLIP with a matching head, of transformers' own layout."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForImageTextRetrieval,
        BlipImageProcessor,
        BlipProcessor,
    )

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "initializer_range": 0.5}  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(" ".join(TEXTS).split()))]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 20,
                     "encoder_hidden_size": 16, "pad_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        image_text_hidden_size=8,
    )  # fmt: skip
    BlipForImageTextRetrieval(config).save_pretrained(folder / "blip")
    size = {"height": 32, "width": 32}
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder / "blip")
    return folder / "blip"


def tiny_pick(folder: Path) -> Path:
    """A random CLIP of transformers' own layout, with the tiny models' tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "sd" / "tokenizer")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "projection_dim": 8, "initializer_range": 0.5}  # fmt: skip
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77,
                     "eos_token_id": tokenizer.eos_token_id},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder / "pick")
    reads = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(reads, tokenizer).save_pretrained(folder / "pick")
    return folder / "pick"


def test_blip_and_pick_score(tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import BlipForImageTextRetrieval, BlipProcessor, CLIPModel, CLIPProcessor

    blip, pick = tiny_blip(tmp_path), tiny_pick(tmp_path)
    settings: Any = {
        "itm": BlipScorer(kind="blip_itm", folder=str(blip)),
        "pick": PickScorer(kind="pick_score", folder=str(pick)),
    }
    scorers = load(settings, 2, "cpu")
    pictures = noise(3)
    found = {name: scorer(pictures, TEXTS) for name, scorer in scorers.items()}
    assert all(np.isfinite(scores).all() and len(scores) == 3 for scores in found.values())
    # Each pair by itself, by hand.
    model, reads = (
        BlipForImageTextRetrieval.from_pretrained(blip),
        BlipProcessor.from_pretrained(blip),
    )
    other, sees = CLIPModel.from_pretrained(pick), CLIPProcessor.from_pretrained(pick)
    for i, (rgb, text) in enumerate(zip(pictures, TEXTS, strict=True)):
        image = Image.fromarray(rgb)
        with torch.inference_mode():
            logits = model(**reads(images=image, text=text, return_tensors="pt")).itm_score
            both = other(**sees(images=image, text=text, return_tensors="pt"))
        assert found["itm"][i] == pytest.approx(float(logits.softmax(1)[0, 1]), abs=1e-5)
        assert found["pick"][i] == pytest.approx(float(both.logits_per_image), abs=1e-4)
    for name, scorer in scorers.items():
        swapped = scorer([pictures[1], pictures[0], pictures[2]], TEXTS)
        assert not np.allclose(swapped[:2], found[name][:2], atol=1e-7), "pictures count"
        assert swapped[2] == pytest.approx(found[name][2], abs=1e-5)


def test_missing_models_are_named(tmp_path: Path) -> None:
    settings: Any = {"mine": BlipScorer(kind="blip_itm", folder=str(tmp_path / "absent"))}
    with pytest.raises(AigiError, match=r"alignments\.models\.mine\.folder: .*absent: no such"):
        load(settings, 2, "cpu")


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("a red boat", ("red", "orange"), ["a red boat", "an orange boat"]),
        ("an Orange boat", ("red", "orange"), ["an Orange boat", "a red boat"]),
        ("a red boat under a red sky", ("red", "blue"), []),
        ("a reddish boat", ("red", "blue"), []),
        ("the light blue boat", ("blue", "light blue", "red"),
         ["the light blue boat", "the blue boat", "the red boat"]),
    ],
)  # fmt: skip
def test_variants(text: str, words: tuple[str, ...], expected: list[str]) -> None:
    assert variants(text, words) == expected


@given(st.sampled_from(COLORS), st.text("abc ", max_size=8))
def test_variants_differ_in_the_word_alone(color: str, rest: str) -> None:
    found = variants(f"the {color} {rest}", COLORS)
    assert found == [f"the {color} {rest}", *(f"the {c} {rest}" for c in COLORS if c != color)]


def table(*rows: tuple[str, str, float]) -> pa.Table:
    given = [
        {"source": source, "text": text, "scores": [("s", score)], "attributes": []}
        for source, text, score in rows
    ]
    return pa.Table.from_pylist(given, ALIGNMENTS)


def test_best_of_the_prompts_that_all_share() -> None:
    found = best(
        table(
            ("a", "one", 0.1), ("a", "one", 0.6), ("b", "one", 0.45),  # b by the mean
            ("a", "two", 0.4), ("b", "two", 0.3),  # a
            ("a", "three", 0.2), ("b", "three", 0.2),  # both
            ("a", "alone", 0.9), ("c", "other", 0.9),  # no prompt of c is shared
        )
    )["s"]  # fmt: skip
    assert found.prompts == 3 and found.left_out == ("c",)
    assert found.shares == pytest.approx({"a": 0.5, "b": 0.5})
    assert best(table(("a", "one", 0.1), ("b", "two", 0.1))) == {}


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    models = {"itm": {"kind": "blip_itm", "folder": "x"}}
    section = {"models": models, "attributes": {"color": ["red", "blue"]}}
    path.write_text(yaml.safe_dump({"run": "r", "alignments": section}))
    with pytest.raises(AigiError, match="attributes need a model of kind open_clip"):
        workflows.load(path)
    models["clip"] = {"kind": "open_clip", "folder": "x"}
    section["attributes"] = {"color": ["red", "red"]}
    path.write_text(yaml.safe_dump({"run": "r", "alignments": section}))
    with pytest.raises(AigiError, match=r"attributes\.color: give two different words"):
        workflows.load(path)


def test_the_workflow_file_is_valid() -> None:
    loaded = workflows.load(ROOT / "workflows" / "align.yaml")
    assert loaded.alignments is not None and loaded.alignments.attributes
