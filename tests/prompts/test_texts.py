"""Captions are read once and scored shard by shard; thresholds only choose among them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import AigiError
from pipeline.progress import Progress
from pipeline.prompts import prompts, texts
from pipeline.prompts.filters import COLUMNS, RULES, PromptFilters, reasons
from pipeline.prompts.grammar import Grammar
from pipeline.prompts.scored import SCORERS, Filter
from pipeline.prompts.sweep import limits_of, sweep
from pipeline.prompts.texts import name_of, origins
from pipeline.running import run_stages
from pipeline.settings import check
from pipeline.store import Store
from pipeline.tables import TEXTS
from pipeline.workflow import Workflow
from tests.conftest import ROOT, aigi_here

SENTENCES = list(Grammar.load(str(ROOT / "prompts" / "grammar.yaml")).sentences(600, seed=2))
BAD = {
    "a naked lady on a bed": "unsafe: lexicon 0.9 > 0.5: sexual: naked lady",
    "ein Mann mit Hut wartet auf den Bus": "language: de (0.99)",
    "write to me@example.com for a red boat": "personal: email",
    "the the the the the the": "repeats: 0.84 > 0.6",
    "too short": "too few words: 2 < 3",
    "#a #b #c cat": "noise: 0.75 > 0.2",
    "": "empty",
}


def stages_of(folder: Path, name: str = "run", **sections: Any) -> tuple[Workflow, Store]:
    data = {"run": str(folder / name), "prompts": sections}
    workflow = check(Workflow, data, str(folder / "flow.yaml"))
    return workflow, Store(workflow.run)


def make(folder: Path, name: str = "run", **sections: Any) -> tuple[Store, str]:
    """Run all stages up to the prompts; returns the store and what was said."""
    workflow, store = stages_of(folder, name, **sections)
    said = io.StringIO()
    assert workflow.prompts is not None
    found = prompts.stages(workflow.prompts, workflow.split, workflow.compute)
    run_stages(found, store, workflow.compute, Progress(said))
    return store, said.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Captions in two files of a folder; a shard has fifty of them."""
    monkeypatch.setattr(texts, "SHARD_ROWS", 50)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("".join(f"{text}\n" for text in SENTENCES[:120]))
    (tmp_path / "in" / "b.txt").write_text(
        "".join(f"{text}\n" for text in [*BAD, *SENTENCES[120:160]])
    )
    return tmp_path


def source(folder: Path) -> list[dict[str, str]]:
    return [{"kind": "text", "path": str(folder / "in")}]


def test_every_score_is_a_column_and_every_rule_has_its_columns() -> None:
    made = [column for scorer in SCORERS for column in scorer.columns]
    assert sorted(made) == sorted(set(TEXTS.names) - {"line", "raw", "text", "problem"})
    assert set(COLUMNS) <= set(TEXTS.names)
    limits = set(PromptFilters.model_fields)
    assert {rule.setting for rule in RULES if rule.setting} <= limits


def test_texts_have_all_scores_and_prompts_one_reason(folder: Path) -> None:
    store, said = make(folder, sources=source(folder))
    assert len(store.shards("lines")) == len(store.shards("texts")) == 4
    rows = store.read_all("texts").to_pylist()
    assert len(rows) == 120 + len(BAD) + 40
    found = {row["text"]: row for row in rows}
    assert found["a naked lady on a bed"]["unsafe"] == [("lexicon", 0.9)]
    assert found["a naked lady on a bed"]["unsafe_for"] == "sexual: naked lady"
    assert found["ein Mann mit Hut wartet auf den Bus"]["language"] == "de"
    assert found["write to me@example.com for a red boat"]["personal"] == ["email"]
    assert found["#a #b #c cat"]["noise"] == 0.75
    assert all(row["raw"] is None for row in rows if row["problem"] is None)
    why = {row["text"]: row["reason"] for row in store.read("rejects", "prompts").to_pylist()}
    assert why == BAD
    assert "1 unsafe" in said and "1 language" in said


def test_other_thresholds_score_nothing_anew(folder: Path) -> None:
    make(folder, sources=source(folder))
    before = {path: path.stat().st_mtime_ns for path in (folder / "run/texts").iterdir()}
    workflow, store = stages_of(
        folder, sources=source(folder), filters={"max_unsafe": 0.95, "min_words": 2}
    )
    assert workflow.prompts is not None
    store.remove("prompts")
    store.remove("_stages", "prompts.json")
    found = prompts.stages(workflow.prompts, workflow.split, workflow.compute)
    run_stages(found, store, workflow.compute, Progress(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in (folder / "run/texts").iterdir()} == before
    kept = set(store.read_all("prompts", ["text"])["text"].to_pylist())
    assert {"a naked lady on a bed", "too short"} <= kept


def test_another_file_is_scored_alone(folder: Path) -> None:
    make(folder, sources=source(folder))
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "run/texts").iterdir()}
    (folder / "in" / "aa.txt").write_text("".join(f"{text}\n" for text in SENTENCES[200:210]))
    said = aigi_like(folder)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "run/texts").iterdir()}
    assert len(after) == len(before) + 1
    assert {name: after[name] for name in before} == before
    assert "texts" in said


def aigi_like(folder: Path) -> str:
    """The stages before the prompts, as a run makes them before it looks at the prompts."""
    workflow, store = stages_of(folder, sources=source(folder))
    said = io.StringIO()
    assert workflow.prompts is not None
    found = prompts.stages(workflow.prompts, workflow.split, workflow.compute)[:-1]
    run_stages(found, store, workflow.compute, Progress(said))
    return said.getvalue()


def test_what_is_scored_does_not_depend_on_its_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make(folder, "first", sources=source(folder))
    monkeypatch.setattr(texts, "SHARD_ROWS", 7)
    second, _ = make(folder, "second", sources=source(folder))
    assert first.read_all("texts").equals(second.read_all("texts"))
    assert first.read_all("prompts").equals(second.read_all("prompts"))


def test_reasons_of_rows_do_not_depend_on_other_rows(folder: Path) -> None:
    store, _ = make(folder, sources=source(folder))
    rows = store.read_all("texts")
    whole = reasons(rows, PromptFilters()).to_pylist()
    each = [reasons(rows.slice(n, 1), PromptFilters())[0].as_py() for n in range(rows.num_rows)]
    assert whole == each
    assert reasons(rows.slice(0, 0), PromptFilters()).to_pylist() == []


def test_a_killed_scoring_goes_on_where_it_was(folder: Path) -> None:
    """After kill -9 amid the shards, the same command makes the rest, and the same bytes."""
    lines = "".join(f"{text}\n" for text in SENTENCES * 180)
    (folder / "in" / "a.txt").write_text(lines)
    (folder / "w.yaml").write_text(
        f"run: run\nprompts: {{sources: [{{kind: text, path: {folder / 'in'}}}]}}\n"
    )
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "w.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    shards = folder / "run" / "texts"
    while process.poll() is None and not (shards.is_dir() and list(shards.glob("*.parquet"))):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert 0 < len(there) < len(list((folder / "run" / "lines").glob("*.parquet")))
    subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
    assert {name: (shards / name).stat().st_mtime_ns for name in there} == there
    fresh = [*command, "--set", f"run={folder / 'fresh'}"]
    subprocess.run(fresh, cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
    for path in shards.glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(folder / "fresh" / "texts" / path.name))


@pytest.mark.slow
def test_ray_scores_what_one_process_scores(folder: Path) -> None:
    (folder / "w.yaml").write_text(
        f"run: run\nprompts: {{sources: [{{kind: text, path: {folder / 'in'}}}]}}\n"
    )
    for run, more in (("one", []), ("two", ["compute.ray=local", "compute.workers=2"])):
        given = [part for value in (f"run={folder / run}", *more) for part in ("--set", value)]
        done = aigi_here("run", str(folder / "w.yaml"), *given)
        assert done.returncode == 0, done.stderr
    for table in ("texts", "prompts"):
        for path in (folder / "one" / table).glob("*.parquet"):
            assert path.read_bytes() == (folder / "two" / table / path.name).read_bytes()


def test_a_sweep_counts_what_each_threshold_alone_refuses(folder: Path) -> None:
    (folder / "w.yaml").write_text(
        f"run: run\nprompts: {{sources: [{{kind: text, path: {folder / 'in'}}}]}}\n"
    )
    assert aigi_here("run", str(folder / "w.yaml")).returncode == 0
    workflow, store = stages_of(folder, sources=source(folder))
    assert workflow.prompts is not None
    sources = {one.prefix(): name_of(one.source) for one in origins(workflow.prompts.sources)}
    lines = list(sweep(workflow.prompts.filters, store, 2, sources))
    assert limits_of(store) == workflow.prompts.filters
    by_setting = {(line.setting, line.threshold): line for line in lines}
    assert by_setting["max_unsafe", 0.5].current
    assert by_setting["max_unsafe", 0.8].examples == ["a naked lady on a bed"]
    assert by_setting["max_unsafe", 0.95].refused == 0
    assert by_setting["min_words", 3].refused == 1
    assert by_setting["min_words", 2].refused == 0
    assert by_setting["min_language", 0.4].sources == {"text": 1}
    scored = len(BAD) - 1 + 160
    assert {line.scored for line in lines} == {scored}
    for setting in {line.setting for line in lines}:
        counts = [line.refused for line in lines if line.setting == setting]
        assert counts == sorted(counts), setting
    off = PromptFilters(max_unsafe=None)
    assert not [line for line in sweep(off, store, 0) if line.current and "unsafe" in line.setting]
    shown = aigi_here("sweep", str(folder / "w.yaml"))
    assert shown.returncode == 0 and "a naked lady on a bed" in shown.stdout


def test_a_manifest_of_before_scored_and_refused_nothing() -> None:
    """What it does not name is off, and is not named when its release is made again."""
    old = {
        "sources": [{"kind": "text", "path": "a.txt", "name": None, "licence": None}],
        "filters": {"min_words": 4, "max_words": 77, "max_tokens": None, "min_ascii_letters": 0.9,
                    "max_noise": 0.2, "person": "person", "blocklist": None},
        "near_duplicates": 0.8,
        "select": {"count": 5, "method": "random", "seed": 0, "pool": 4.0},
    }  # fmt: skip
    read = prompts.Prompts.model_validate(prompts.as_before(old))
    assert read.safety == () and read.filters.languages is None and read.filters.personal == ()
    assert read.filters.max_unsafe is None and read.filters.max_repeated is None
    again = prompts.as_recorded(read.model_dump(mode="json"))
    del again["sources"][0]["table"]
    assert again["filters"] == old["filters"] and again.keys() == old.keys()
    # Of now: whatever is on or off stays so.
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"filters": {"languages": None, "max_unsafe": 0.9}},
        {"safety": []},
        {"safety": [], "filters": {"max_repeated": None, "personal": ["ip"]}},
    )
    for given in cases:
        now = prompts.Prompts.model_validate({"sources": old["sources"], **given})
        written = prompts.as_recorded(now.model_dump(mode="json"))
        assert prompts.Prompts.model_validate(prompts.as_before(written)) == now, given
    assert prompts.as_before({"filters": ["odd"]}) == {"filters": ["odd"]}


def test_names_and_blocklist_are_lists_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# people\nAda Example\nÅsa Prøve\n", encoding="utf-8")
    (tmp_path / "block.txt").write_text("glue gun\n")
    limits = PromptFilters(
        names=str(tmp_path / "names.txt"), blocklist=str(tmp_path / "block.txt"),
        min_ascii_letters=0,
    )  # fmt: skip
    chosen = Filter(limits, safety=())
    found = {
        "a portrait of Ada Example by a lake": "name: ada example",
        "ADA EXAMPLE's garden in the morning": "name: ada example",
        "a painting of åsa prøve with a hat": "name: åsa prøve",
        "Ada Example with a glue gun": "blocklist: glue gun",
        "an example by Ada on the wall": None,
    }
    assert {text: chosen.clean(text)[1] for text in found} == found
    for name in ("names", "blocklist"):
        with pytest.raises(AigiError, match=rf"no such file; correct `prompts\.filters\.{name}`"):
            Filter(PromptFilters.model_validate({name: str(tmp_path / "absent.txt")}))
    (tmp_path / "names.txt").write_bytes(b"Ada \xff\n")
    with pytest.raises(AigiError, match="save it as UTF-8"):
        Filter(limits)


def test_half_a_surrogate_pair_costs_nothing_but_itself(tmp_path: Path) -> None:
    lines = [r'{"text": "a red \ud83d boat on a lake"}', '{"text": "a dog in the snow"}']
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"text": null}', ""]))
    given = {"kind": "jsonl", "path": str(tmp_path / "in.jsonl"), "column": "text"}
    store, _ = make(tmp_path, sources=[given])
    assert store.read_all("lines", ["text"])["text"].to_pylist()[:2] == [
        "a red  boat on a lake", "a dog in the snow"
    ]  # fmt: skip
    made = sorted(store.read_all("prompts", ["text"])["text"].to_pylist())
    assert made == ["a dog in the snow", "a red boat on a lake"]


def test_captions_that_lie_elsewhere_are_not_scored_anew(tmp_path: Path) -> None:
    """Nor are they where another file is beside them."""
    made = []
    for name, files in (("one", "ab"), ("other", "abc")):
        folder = tmp_path / name / "in"
        folder.mkdir(parents=True)
        for number, file in enumerate(files):
            some = SENTENCES[20 * number : 20 * number + 20]
            (folder / f"{file}.txt").write_text("\n".join(some) + "\n")
        given = [{"kind": "text", "path": str(folder)}]
        workflow, store = stages_of(tmp_path, sources=given)
        assert workflow.prompts is not None
        found = prompts.stages(workflow.prompts, workflow.split, workflow.compute)
        run_stages(found[:-1], store, workflow.compute, Progress(io.StringIO()))
        there = (tmp_path / "run" / "texts").iterdir()
        made.append({path.name: path.stat().st_mtime_ns for path in there})
    assert len(made[0]) == 2 and len(made[1]) == 3
    assert made[0].items() < made[1].items()


def test_prompts_that_were_chosen_stay_though_they_say_the_same(tmp_path: Path) -> None:
    twins = ["a red boat on a lake", "A red boat on the lake."]
    path = tmp_path / "flow.yaml"
    (tmp_path / "in.txt").write_text("\n".join([*twins, *SENTENCES[:5]]) + "\n")
    sources = [{"kind": "text", "path": "in.txt"}]
    for near, more in ((False, {}), (True, {"max_words": 70})):
        given = {"sources": sources, "near_duplicates": near, "filters": more}
        path.write_text(yaml.safe_dump({"run": "run", "prompts": given}))
        done = aigi_here("run", str(path))
        assert done.returncode == 0, done.stderr
        found = pq.read_table(tmp_path / "run" / "prompts")["text"].to_pylist()
        assert set(found) == {*twins, *SENTENCES[:5]}
    # Those of a new run say different things.
    done = aigi_here("run", str(path), "--set", f"run={tmp_path}/new")
    found = pq.read_table(tmp_path / "new" / "prompts")["text"].to_pylist()
    assert len(set(twins) & set(found)) == 1
