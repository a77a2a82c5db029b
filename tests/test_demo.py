"""What the demo promises: planted faults are found, quotas are met all the same, nothing leaks."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import workflow as workflows
from pipeline.build import make, stages
from pipeline.demo import code_at_hand, code_pictures, demo_workflow, findings
from pipeline.plan import specification
from pipeline.plan.rounds import rounds_made, summary
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.selection.tally import lacks
from pipeline.store import Store
from tests.conftest import PLANNING, ROOT

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's imported sources alone; the README's test runs the whole demo."""
    out = tmp_path_factory.mktemp("demo")
    workflow = demo_workflow(out, ["plan.sources=[mj52, mod]"])
    make(workflow, Store(workflow.run), Progress(quiet=True))
    return out


def test_planted_faults_are_found_with_the_right_reason(run: Path) -> None:
    _, files = findings(run)
    reasons = dict(files)
    assert reasons.pop("blank-grey.png") == "blank"
    assert reasons.pop("blank-black.png") == "blank"
    assert reasons.pop("mismatched.png") == "clip_score"
    assert reasons.pop("unsafe.png") == "concept"
    assert reasons.pop("leak-of-08.png") == "duplicate"
    twins = {"00.png", "duplicate-of-00.jpg"} & set(reasons)
    assert len(twins) == 1
    assert reasons.pop(twins.pop()) == "duplicate"
    assert reasons == {}, "a good picture was dropped"


def test_quotas_are_met_by_further_rounds(run: Path) -> None:
    store = Store(str(run))
    rows = {
        name: sum(
            store.rows("release", s) or 0 for s in store.shards("release") if s.startswith(name)
        )
        for name in ("mj52/train", "mj52/validation", "mj52/test", "mod/train")
    }
    assert rows == {"mj52/train": 8, "mj52/validation": 1, "mj52/test": 1, "mod/train": 6}
    rounds = {
        row["round"] for s in store.shards("plan") for row in store.read("plan", s).to_pylist()
    }
    assert max(rounds) >= 1


def test_the_kept_twin_of_a_leak_is_the_held_out_one(run: Path) -> None:
    store = Store(str(run))
    plan = {
        r["image_id"]: r for s in store.shards("plan") for r in store.read("plan", s).to_pylist()
    }
    dropped = [
        row
        for shard in store.shards("selection")
        for row in store.read("selection", shard).to_pylist()
        if row["reason"] == "duplicate"
    ]
    twins = {plan[row["image_id"]]["path"]: plan[row["duplicate_of"]] for row in dropped}
    assert twins["leak-of-08.png"]["path"] == "08.png"
    assert twins["leak-of-08.png"]["split"] == "validation"
    assert all(row["similarity"] >= 0.96 for row in dropped)


def test_it_ends_with_files_of_a_codec_trained_on_it(run: Path) -> None:
    from pipeline.learned.codec import load
    from pipeline.learned.shipped import DEFAULT
    from tests.training.release import trained

    few = ["train.steps=3", "train.validation_pictures=0", "train.shuffle_buffer=8"]
    (folder,) = trained(demo_workflow(run, few), Progress(quiet=True))
    model = str(folder / "last")
    rows = code_pictures(run, {"demo": model, DEFAULT: DEFAULT})
    assert [(name, count) for name, count, *_ in rows] == [
        ("demo", 2),
        *[(f"{DEFAULT}-q{quality}", 2) for quality in (1, 2, 3, 4)],
    ]
    (_, _, short, unread, begun), *_, (_, _, bpp, prompt, good) = rows
    assert unread < prompt < bpp and unread < short
    # Three steps keep what training begins with; random weights give 10 dB.
    assert min(begun, good) > 20
    files = sorted((run / "coded").glob("*-demo.aigi"))
    assert len(files) == 2
    decoded = load(model, device="cpu").decode(files[0].read_bytes())
    written = np.asarray(Image.open(files[0].with_suffix(".png")))
    assert np.array_equal(decoded, written)


def test_every_codec_at_hand_codes_its_images_or_says_why_not(run: Path) -> None:
    found, notes = code_at_hand(run)
    assert {"jpeg 50", "webp 70"} <= {one.codec for one in found}
    assert all(one.images == 2 and one.psnr > 20 for one in found)
    assert sum("no recipe: an imported image" in note for note in notes) == 2


def test_an_import_at_its_end_is_asked_once(tmp_path: Path) -> None:
    """Six pictures cannot meet a quota that most of them fail; another run asks no more."""
    said = io.StringIO()
    rules = ["plan.sources=[mod]", "selection.min_clip_score=0.7"]
    workflow = demo_workflow(tmp_path, rules)
    store = Store(workflow.run)
    make(workflow, store, Progress(said))
    assert rounds_made(store) == 1
    assert "round 1:" in said.getvalue() and "round 2:" not in said.getvalue()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    make(workflow, store, Progress(quiet=True))
    assert rounds_made(store) == 1
    short = [str(lack) for lack in lacks(workflow.planned("selection"), store)]
    assert any(re.match(r"mod train: \d of 6: .*\d clip_score", line) for line in short), short
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before


def test_the_committed_record_is_enough_for_the_same_plan(tmp_path: Path) -> None:
    """`manifests/releases/`: no release at hand, the plan comes out as recorded all the same."""
    record = ROOT / "manifests" / "releases" / "aigi-demo-0.1.0.json"
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'again'}\n")
    demo = demo_workflow(tmp_path / "again", []).model_dump(mode="json")
    places = [
        f"plan.manifest={record}",
        f"prompts.sources.0.path={ROOT / 'prompts' / 'grammar.yaml'}",
        f"prompts.filters.blocklist={ROOT / 'prompts' / 'blocklist.txt'}",
        f"embeddings.folder={demo['embeddings']['folder']}",
        *(
            f"sources.{name}.{place}={source[place]}"
            for name, source in demo["sources"].items()
            for place in ("folder", "path", "captions")
            if source.get(place) is not None
        ),
    ]
    workflow = workflows.load(bare, places)
    store = Store(workflow.run)
    tables = [stage for stage in stages(workflow) if stage.table in PLANNING]
    run_stages(tables, store, workflow.compute, Progress(quiet=True))  # refuses another plan
    recorded = json.loads(record.read_text())
    assert summary(store)["sha256"] == recorded["plan"]["sha256"]
    pinned = specification.load(str(ROOT / "manifests" / "demo.yaml")).sources["sdxl"]
    assert recorded["specification"]["sources"]["sdxl"]["sha256"] == pinned.sha256  # type: ignore[union-attr]
