"""Prompts chosen among more: by vectors of what they are about, and how far they spread."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.models.clip import Clip, Embeddings
from pipeline.pages.build import prompts_section
from pipeline.prompts import coverage, spread, vectors
from pipeline.prompts.choice import SPREAD, Chooser, PromptSelection, spread_of
from pipeline.prompts.coverage import most_covering, stands_for
from pipeline.prompts.diversity import most_diverse
from pipeline.prompts.spread import spreads, topics_of
from pipeline.prompts.vectors import LENGTH, Vectors, rounded, vectors_of
from pipeline.store import Store
from tests.conftest import ROOT, aigi_here
from tests.prompts.test_texts import make, stages_of
from tests.scores.test_embeddings import clip_folder


def scattered(count: int, size: int = 16, seed: int = 0) -> Vectors:
    return rounded(np.random.default_rng(seed).standard_normal((count, size)))


def cosine(vectors: Vectors, one: int, other: int) -> float:
    return float(vectors[one] @ vectors[other]) / LENGTH**2


def test_vectors_tell_what_prompts_are_about() -> None:
    texts = ["a dog runs on the beach", "a puppy playing by the sea", "a report on tax law", "狗"]
    found = vectors_of(texts)
    assert found.shape == (4, 256) and (found == np.rint(found)).all()
    assert np.abs(np.linalg.norm(found, axis=1) - LENGTH).max() < 8
    assert cosine(found, 0, 1) > 0.3 > 0.15 > cosine(found, 0, 2)
    one_by_one = np.concatenate([vectors_of([text]) for text in texts])
    assert (one_by_one == found).all(), "a vector does not depend on the texts beside it"
    assert (vectors_of(["", "a dog"])[0] == 0).all()


def test_products_of_vectors_are_exact() -> None:
    """So no order of summation, and no number of threads, makes another choice."""
    found = vectors_of([f"a {word} boat on a lake" for word in ["red", "blue", "old"]])  # fmt: skip
    exact = found.astype(np.int64) @ found.astype(np.int64).T
    assert (exact == (found @ found.T).astype(np.int64)).all()
    assert (exact == (found[:, ::-1] @ found[:, ::-1].T).astype(np.int64)).all()
    assert exact.max() < 1 << 24


def test_a_damaged_or_absent_model_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors._wordllama.cache_clear()
    monkeypatch.setattr(vectors, "find_spec", lambda name: None)
    with pytest.raises(AigiError, match="Install the package anew"):
        vectors_of(["a dog"])
    monkeypatch.undo()
    assert vectors_of(["a dog"]).any()


def plain_greedy(vectors: Vectors, count: int, first: int) -> list[int]:
    """The definition: each time the one that adds most, of equal ones the first."""
    similar = np.maximum(vectors.astype(np.int64) @ vectors.astype(np.int64).T, 0)
    best = np.zeros(len(vectors), np.int64)
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.maximum(similar - best, 0).sum(axis=1)
        gains[chosen] = -1
        one = len(chosen) if len(chosen) < first else int(gains.argmax())
        chosen.append(one)
        best = np.maximum(best, similar[one])
    return chosen


@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 1_000), st.data())
def test_lazy_choice_is_the_greedy_one(
    size: int, first: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    found = scattered(size, 4, seed)
    found = found[np.random.default_rng(seed).integers(0, size, size)]  # some are equal
    assert most_covering(found, count, first, near=size) == plain_greedy(found, count, first)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 1_000))
def test_each_prompt_looks_at_its_nearest_and_of_equal_ones_at_the_first(
    size: int, near: int, seed: int
) -> None:
    found = scattered(size, 3, seed)[np.random.default_rng(seed).integers(0, size, size)]
    table = stands_for(found, near).tocsr()
    for one in range(size):
        similar = found.astype(np.int64) @ found[one].astype(np.int64)
        order = np.argsort(-similar, kind="stable")[:near]
        wanted = sorted(int(other) for other in order if similar[other] > 0)
        span = slice(table.indptr[one], table.indptr[one + 1])
        assert sorted(table.indices[span].tolist()) == wanted
        assert (similar[table.indices[span]] == table.data[span]).all()


def test_a_large_pool_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rounded(
        np.repeat(np.random.default_rng(1).standard_normal((20, 16)), 30, axis=0)[
            np.random.default_rng(2).permutation(600)
        ]
        + 0.3 * np.random.default_rng(3).standard_normal((600, 16))
    )
    whole = stands_for(found)
    monkeypatch.setattr(coverage, "_GROUP", 30)
    parts = list(coverage._parts(found))
    assert len(parts) > 8, "not all in one"
    assert sorted(np.concatenate([mine for mine, _ in parts]).tolist()) == list(range(600))
    assert all(np.isin(mine, others).all() for mine, others in parts)
    some = stands_for(found)
    assert some.sum() > 0.95 * whole.sum(), "nearly all nearest ones are found"
    chosen = most_covering(found, 60)
    monkeypatch.setattr(coverage, "_BLOCK", 7)
    assert most_covering(found, 60) == chosen, "blocks change nothing"


def test_rare_topics_are_not_lost() -> None:
    """Of 300 captions of dogs and ten of other things, each of these is among 42 chosen."""
    others = "violin volcano lighthouse submarine dentist tractor cactus chess astronaut pizza"
    rare = [f"a {thing} in the morning" for thing in others.split(" ")]
    dogs = [
        f"a {shade} {color} dog {does} the {place}"
        for shade in ("dark", "light", "pale", "bright", "deep")
        for color in ("brown", "white", "black", "golden", "grey")
        for does in ("runs on", "sits by", "sleeps near", "waits at")
        for place in ("lawn", "beach", "fence")
    ]
    texts = [(rare + dogs)[i] for i in np.random.default_rng(0).permutation(len(rare + dogs))]
    chosen = {texts[i] for i in most_covering(vectors_of(texts), 42)}
    assert chosen.issuperset(rare)
    assert len(set(texts[:42]).intersection(rare)) < 5, "at random they are lost"


def test_measures_of_spread_are_those_of_their_definitions() -> None:
    found = scattered(50, 12, 5)
    texts = [f"prompt {number}" for number in range(50)]
    measured = spreads(texts, found, {"all": range(50), "one": [0] * 50})
    unit = found.astype(np.float64) / LENGTH
    kernel = unit @ unit.T
    values = np.linalg.eigvalsh(kernel / np.trace(kernel))
    entropy = -sum(value * np.log(value) for value in values if value > 1e-12)
    assert measured["all"].vendi == pytest.approx(np.exp(entropy))
    np.fill_diagonal(kernel, -1)
    assert measured["all"].nearest == pytest.approx(kernel.max(axis=1).mean())
    assert measured["all"].words == 101  # "prompt", 50 numbers, 50 pairs
    assert measured["all"].topics == len(np.unique(topics_of(found, 25)))
    assert measured["one"].vendi == pytest.approx(1, abs=1e-6)
    assert measured["one"].nearest == pytest.approx(1, abs=0.01)
    assert (measured["one"].topics, measured["one"].clusters) == (1, 25)


def test_topics_are_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    centres = np.random.default_rng(1).standard_normal((5, 32))
    kinds = np.random.default_rng(2).integers(0, 5, 400)
    noise = np.random.default_rng(3).standard_normal((400, 32))
    found = rounded(centres[kinds] + 0.2 * noise)
    topics = topics_of(found, 25)
    assert all(len(set(kinds[topics == topic])) == 1 for topic in np.unique(topics))
    monkeypatch.setattr(spread, "_BLOCK", 9)
    assert (topics_of(found, 25) == topics).all()


@pytest.mark.parametrize("name", ["coco", "cc3m"])
def test_vectors_choose_more_topics_than_chance_on_real_captions(name: str, shared: Path) -> None:
    if name == "coco":
        with (shared / "prompts" / "coco_30k.csv").open(newline="") as file:
            texts = [row["prompt"].strip() for row in csv.DictReader(file)]
    else:
        lines = (shared / "prompts" / "cc3m_val_cc12m_layout.tsv").read_text().splitlines()
        texts = [line.split("\t")[1] for line in lines]
    texts = list(dict.fromkeys(texts))
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:4_000]]
    found = vectors_of(texts)
    choices = {
        "random": range(1_000),
        "diverse": most_diverse(texts, 1_000),
        "facility_location": most_covering(found, 1_000),
    }
    measured = spreads(texts, found, choices)
    chance = measured["random"]
    for choice in ("diverse", "facility_location"):
        mine = measured[choice]
        assert mine.topics > chance.topics and mine.vendi > chance.vendi, choice
        assert mine.nearest < chance.nearest and mine.words > chance.words, choice
    assert measured["facility_location"].topics > 1.1 * chance.topics


TEXTS = [
    f"{count} {thing} {place}"
    for thing in ("cat", "dog", "boat", "castle", "violin", "pizza", "rocket", "garden")
    for count in ("one old", "a new", "the tall")
    for place in ("in the morning sun", "under a dark sky", "by the river at night")
]


def captions(folder: Path, lines: list[str]) -> dict[str, str]:
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return {"kind": "text", "path": str(folder / "captions.txt")}


def test_a_run_says_how_far_its_prompts_spread(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "sources": [captions(tmp_path, TEXTS)], "near_duplicates": None,
        "select": {"count": 12, "method": "facility_location"},
    }  # fmt: skip
    store, said = make(tmp_path, **given)
    assert "choosing 12 of 48 by facility_location" in said
    assert "12 kept, 60 not needed" in said
    table = spread_of(store)
    assert table is not None
    rows = {row["choice"]: row for row in table.to_pylist()}
    assert rows["facility_location"]["topics"] > rows["random"]["topics"]
    images = store.read_all("prompts", ["text"])
    shown = prompts_section(store, images).tables
    (mine,) = [one for one in shown if one.caption == "How far the prompts spread"]
    assert [row[0] for row in mine.rows] == ["facility_location", "random"]
    assert mine.rows[0][2] == f"{rows['facility_location']['topics']} of 6"
    # Chosen at random, nothing is said, and what was said before is gone.
    path = tmp_path / "flow.yaml"
    path.write_text(json.dumps({"run": "run", "prompts": {**given, "select": {"count": 12}}}))
    aigi_here("run", str(path), "--replace")
    store = Store(store.url)
    assert spread_of(store) is None and store.size("prompts", SPREAD) is None
    assert not any("spread" in one.caption for one in prompts_section(store, images).tables)


def test_one_prompt_has_none_beside_it(tmp_path: Path) -> None:
    select = {"count": 1, "method": "diverse"}
    store, _ = make(tmp_path, sources=[captions(tmp_path, TEXTS)], select=select)
    table = spread_of(store)
    assert table is not None and np.isnan(table["nearest"].to_pylist()).all()
    shown = prompts_section(store, store.read_all("prompts", ["text"])).tables
    (mine,) = [one for one in shown if one.caption == "How far the prompts spread"]
    assert [row[3] for row in mine.rows] == ["", ""]


def test_a_choice_by_words_needs_no_section_of_embeddings(tmp_path: Path) -> None:
    select = {"count": 5, "method": "diverse", "embedder": "clip"}
    store, _ = make(tmp_path, sources=[captions(tmp_path, TEXTS)], select=select)
    assert store.read_all("prompts").num_rows == 5 and spread_of(store) is not None


def test_clip_of_the_workflow_chooses(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    captions(tmp_path, TEXTS)
    select = {"count": 10, "method": "facility_location", "embedder": "clip"}
    flow = {"run": "run", "prompts": {"sources": [{"kind": "text", "path": "captions.txt"}],
            "select": select}}  # fmt: skip
    path = tmp_path / "flow.yaml"
    path.write_text(json.dumps(flow))
    failed = aigi_here("run", str(path))
    assert failed.returncode != 0
    assert (
        "prompts.select.embedder: clip is the text model of the embeddings"
        in failed.stdout + failed.stderr
    )
    workflow, _ = stages_of(tmp_path, **flow["prompts"])  # type: ignore[arg-type]
    assert workflow.prompts is not None
    settings = Embeddings(folder=str(folder))
    chooser = Chooser(workflow.prompts.select, settings)
    assert set(chooser.recorded()["embedder"]) == {"folder"}
    found = vectors_of(TEXTS, settings)
    expected = Clip(settings, "cpu").text_vectors(TEXTS)
    assert np.abs(found / LENGTH - expected).max() < 1e-3
    assert (found == np.rint(found)).all()


def test_the_content_of_the_model_is_recorded() -> None:
    files = vectors.recorded(None)["wordllama"]
    assert [len(sha256) for sha256 in files] == [64, 64] and files[0] != files[1]


def test_choices_without_vectors_are_recorded_as_ever() -> None:
    assert "embedder" not in PromptSelection(method="diverse").model_dump(mode="json")
    assert "embedder" in PromptSelection(method="facility_location").model_dump(mode="json")


def test_threads_choose_the_same(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.prompts.test_choice import *; "
        "make(Path(sys.argv[1]), sys.argv[2], sources=[captions(Path(sys.argv[1]), TEXTS)], "
        "near_duplicates=None, select={'count': 20, 'method': 'facility_location'})"
    )
    found = []
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PATH": "",
                       "PYTHONPATH": str(ROOT)}  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), threads],
            check=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        found.append(pq.read_table(tmp_path / threads / "prompts")["text"].to_pylist())
    assert found[0] == found[1] and len(found[0]) == 20
    assert (
        Store(str(tmp_path / "1"))
        .read_arrow("prompts", SPREAD)
        .equals(  # type: ignore[union-attr]
            Store(str(tmp_path / "2")).read_arrow("prompts", SPREAD)
        )
    )
