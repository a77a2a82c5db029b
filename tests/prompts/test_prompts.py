"""Prompts: every caption is kept, rejected with a reason, or not needed; the order is fixed."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.prompts import prompts
from pipeline.prompts.diversity import features, most_diverse
from pipeline.prompts.spool import Spool
from pipeline.prompts.text import prompt_id, split_of
from pipeline.running import run_stages
from pipeline.settings import check
from pipeline.store import Store
from pipeline.workflow import Workflow


def make(folder: Path, name: str = "run", **sections: Any) -> tuple[Store, str]:
    """Run the prompts stage alone; returns the store and what it said."""
    data = {"run": str(folder / name), "prompts": sections}
    workflow = check(Workflow, data, str(folder / "flow.yaml"))
    store, said = Store(workflow.run), io.StringIO()
    assert workflow.prompts is not None
    stages = prompts.stages(workflow.prompts, workflow.split, workflow.compute)
    run_stages(stages, store, workflow.compute, Progress(said))
    return store, said.getvalue()


def captions(folder: Path, lines: list[str], name: str = "a.txt") -> dict[str, str]:
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return {"kind": "text", "path": str(folder / name)}


def rows(store: Store) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.read_all("prompts").to_pylist()
    return found


def rejects(store: Store) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.read("rejects", "prompts").to_pylist()
    return found


THINGS = ["boat", "castle", "teapot", "lantern", "meadow", "violin", "harbour", "staircase"]
LINES = [
    f"a {color} {thing} {place} number {word}"
    for color in ("red", "blue", "golden")
    for thing in THINGS
    for place in ("beside the river", "under heavy rain")
    for word in ("alpha", "bravo", "charlie", "delta")
]


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    source = {**captions(tmp_path, ["  A small &amp; red boat ", "x"]), "name": "mine"}
    store, _ = make(tmp_path, sources=[source])
    (row,) = rows(store)
    assert row == {
        "prompt_id": prompt_id("A small & red boat"),
        "text": "A small & red boat",
        "source": "mine",
        "source_ref": "a.txt:1",
        "split": row["split"],
        "tokens": 7,
        "truncated": False,
    }
    (reject,) = rejects(store)
    assert (reject["source"], reject["file"], reject["line"], reject["text"]) == (
        "mine",
        "a.txt",
        2,
        "x",
    )
    assert reject["reason"] == "too few words: 1 < 3"


def test_duplicates_keep_the_first_of_the_first_source(tmp_path: Path) -> None:
    first = captions(tmp_path, ["a red boat on a lake", "a red  boat on a lake"], "first.txt")
    second = captions(tmp_path, ["a red boat on a lake", "a dog in a field"], "second.txt")
    store, _ = make(tmp_path, sources=[second, first], near_duplicates=None)
    assert {row["text"]: row["source_ref"] for row in rows(store)} == {
        "a red boat on a lake": "second.txt:1",
        "a dog in a field": "second.txt:2",
    }
    assert [(row["file"], row["line"], row["reason"]) for row in rejects(store)] == [
        ("first.txt", 1, "duplicate"),
        ("first.txt", 2, "duplicate"),
    ]


def test_spilling_to_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = captions(tmp_path, LINES + LINES[:50] + ["no"] * 30)
    plain, _ = make(tmp_path, "plain", sources=[source])
    monkeypatch.setattr(Spool.__init__, "__defaults__", (7,))
    spilled, _ = make(tmp_path, "spilled", sources=[source])
    assert rows(plain) == rows(spilled)
    assert sorted(map(str, rejects(plain))) == sorted(map(str, rejects(spilled)))


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(
        st.one_of(st.sampled_from(LINES[:20]), st.text(max_size=30)), min_size=1, max_size=60
    ),
    count=st.one_of(st.none(), st.integers(1, 5)),
)
def test_every_caption_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int | None
) -> None:
    folder = tmp_path_factory.mktemp("p")
    path = folder / "a.jsonl"
    import json

    path.write_text("".join(json.dumps({"t": line}) + "\n" for line in lines))
    source = {"kind": "jsonl", "path": str(path), "column": "t"}
    try:
        store, said = make(folder, sources=[source], select={"count": count})
    except AigiError as error:
        assert "captions pass" in str(error) or "no caption passes" in str(error)
        return
    kept, refused = rows(store), rejects(store)
    unread = int(said.split(" not needed")[0].split(", ")[-1].replace(",", ""))
    assert len(kept) + len(refused) + unread == len(lines)
    assert all(row["reason"] for row in refused)
    assert len({row["prompt_id"] for row in kept}) == len(kept)


def test_random_choice_is_a_stable_prefix(tmp_path: Path) -> None:
    source = captions(tmp_path, LINES)
    few = rows(make(tmp_path, "few", sources=[source], select={"count": 10})[0])
    many = rows(make(tmp_path, "many", sources=[source], select={"count": 60})[0])
    assert many[:10] == few
    turned = captions(tmp_path, LINES[::-1], "turned.txt")
    other = rows(make(tmp_path, "turned", sources=[turned], select={"count": 60})[0])
    assert [row["text"] for row in other] == [row["text"] for row in many]
    seeded = make(tmp_path, "seed", sources=[source], select={"count": 60, "seed": 1})[0]
    assert {row["text"] for row in rows(seeded)} != {row["text"] for row in many}


def test_split_is_a_function_of_the_text(tmp_path: Path) -> None:
    from pipeline.prompts.text import SplitShares

    found = rows(make(tmp_path, sources=[captions(tmp_path, LINES)])[0])
    assert found
    for row in found:
        assert row["split"] == split_of(prompt_id(row["text"]), SplitShares())


def test_near_duplicates_are_named(tmp_path: Path) -> None:
    pair = [
        "a very old wooden fishing boat rests on the sand beside the sea at sunset",
        "a very old wooden fishing boat rests on the sand beside the sea at sunset!",
    ]
    store, _ = make(tmp_path, sources=[captions(tmp_path, pair)])
    (kept,) = rows(store)
    (reject,) = rejects(store)
    assert reject["reason"] == f"near duplicate: {kept['text']}"


def test_a_similarity_of_letters_is_read_as_true_and_that_is_said(tmp_path: Path) -> None:
    pair = ["a red bus and a blue car on a road", "a blue bus and a red car on a road"]
    store, said = make(tmp_path, sources=[captions(tmp_path, pair)], near_duplicates=0.5)
    assert len(rows(store)) == 2
    assert "near_duplicates is 0.5, but similar letters no longer make two prompts one" in said


def test_too_many_tokens_and_truncation(tmp_path: Path) -> None:
    long = " ".join(f"lighthouse{i % 7} harbour" for i in range(30))
    source = captions(tmp_path, [long, "a red boat on a lake"])
    many = {"max_repeated": None}
    marked, _ = make(tmp_path, "marked", sources=[source], filters=many)
    assert {row["truncated"] for row in rows(marked) if row["tokens"] > 77} == {True}
    refused, _ = make(tmp_path, "refused", sources=[source], filters={"max_tokens": 77, **many})
    assert [row["text"] for row in rows(refused)] == ["a red boat on a lake"]
    assert rejects(refused)[0]["reason"].startswith("too many tokens: ")


def test_too_few_captions_say_what_to_do(tmp_path: Path) -> None:
    source = captions(tmp_path, ["a red boat on a lake"])
    with pytest.raises(AigiError, match=r"5 needed \(prompts.select.count\), only 1"):
        make(tmp_path, sources=[source], select={"count": 5})
    with pytest.raises(AigiError, match="no such file"):
        make(tmp_path, "b", sources=[{"kind": "text", "path": str(tmp_path / "absent.txt")}])


def test_changed_content_is_refused(tmp_path: Path) -> None:
    source = captions(tmp_path, ["a red boat on a lake"])
    make(tmp_path, sources=[source])
    captions(tmp_path, ["a red boat on a lake", "a dog in a field"])
    with pytest.raises(AigiError, match=r"sources\.0\.content\.bytes: 21 -> 38"):
        make(tmp_path, sources=[source])


def test_diverse_choice_covers_more_of_the_vocabulary(shared: Path) -> None:
    """On real captions: more words, more word pairs and fewer repeats than the first at random."""
    import csv

    with (shared / "prompts" / "coco_30k.csv").open(newline="") as file:
        texts = list(dict.fromkeys(row["prompt"].strip() for row in csv.DictReader(file)))[:4000]
    chosen = [texts[i] for i in most_diverse(texts, 500)]
    assert len(set(chosen)) == 500
    count = {
        name: len({feature for text in some for feature in features(text)})
        for name, some in (("random", texts[:500]), ("diverse", chosen))
    }
    assert count["diverse"] > 1.3 * count["random"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=12), min_size=1, max_size=9), st.data())
def test_lazy_greedy_equals_plain_greedy(texts: list[str], data: st.DataObject) -> None:
    import math

    count = data.draw(st.integers(1, len(texts)))
    found = [features(text) for text in texts]
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    for _ in range(count):
        gains = [
            math.fsum(math.sqrt(seen[f] + 1) - math.sqrt(seen[f]) for f in features)
            / math.sqrt(max(1, len(features)))
            for features in found
        ]
        best = max((i for i in range(len(texts)) if i not in chosen), key=lambda i: (gains[i], -i))
        chosen.append(best)
        seen.update(found[best])
    assert most_diverse(texts, count) == chosen


def test_real_captions(shared: Path, tmp_path: Path) -> None:
    source = {
        "kind": "csv",
        "path": str(shared / "prompts" / "coco_30k.csv"),
        "column": "prompt",
    }
    store, _ = make(tmp_path, sources=[source], near_duplicates=None)
    reasons = Counter(row["reason"].split(":")[0] for row in rejects(store))
    # 505 captions are equal to the letter; some more once white space is normalised.
    assert 505 <= reasons["duplicate"] <= 600
    assert len(rows(store)) + sum(reasons.values()) == 30_000
    assert not any("\n" in row["text"] or row["text"] != row["text"].strip() for row in rows(store))
