"""What CLIP and marks say of decoded pictures: true figures, on request, and originals once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import AigiError
from pipeline.benchmark import measurements, rates, references
from pipeline.benchmark.measurements import MEASUREMENTS, measurements_schema
from pipeline.benchmark.references import REFERENCES
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.table import opened
from pipeline.collection import COLUMNS, Collection, Pictures
from pipeline.marks.detection import detect
from pipeline.marks.names import embed
from pipeline.models.clip import Clip, Embeddings
from pipeline.pixels import RGB, decode, png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.workflow import load
from tests.benchmark.conftest import cells_of, execute, page_of, write_pictures, write_workflow
from tests.benchmark.test_measurements import rows_of
from tests.benchmark.test_metrics import pair
from tests.codecs.conftest import stand_ins
from tests.conftest import ROOT

CLIP_FOLDER = ROOT / "pipeline" / "tiny" / "weights" / "clip"
VISIBLE = "visible:text=AI,position=center,opacity=0.5,scale=0.5"
# Source, mark and prompt of every picture; the last of the first source is damaged.
PICTURES = [
    ("lake", "none", "a red boat on a lake"),
    ("lake", "dwt-dct", "a red boat on a lake"),
    ("lake", "dwt-dct-svd", "a red boat on a lake"),
    ("lake", VISIBLE, "two blue cups on a table"),
    ("lake", "dwt-dct-svd", "a house on a clear day"),
    ("wood", "dwt-dct-svd", ""),
    ("wood", "none", ""),
]
DAMAGED = 4
CODECS: list[Any] = [
    {"codec": "jpeg", "qualities": [20, 95]},
    {"codec": "vtm", "qualities": [37], "name": "lossless"},
]


def write_release(folder: Path) -> Path:
    """A release of two sources with marked pictures, a damaged one and some without prompts."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for i, (source, mark, text) in enumerate(PICTURES):
        rgb = embed(pair(i, 144, 160 + 8 * i)[0], mark)
        data = png_bytes(rgb)
        rows.setdefault(source, []).append(
            {
                "image_id": f"{i:032x}",
                "image": {"bytes": data[: len(data) // 2] if i == DAMAGED else data, "path": None},
                "text": text,
                "source": source,
                "width": rgb.shape[1],
                "height": rgb.shape[0],
                "watermark": mark,
            }
        )
    files = []
    for source, of in rows.items():
        path = f"{source}/test-00000-of-00001.parquet"
        (folder / source).mkdir(parents=True)
        schema = pa.schema([COLUMNS.field(name) for name in of[0]])
        pq.write_table(pa.Table.from_pylist(of, schema), folder / path)
        sha256 = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        files.append({"path": path, "config": source, "split": "test", "sha256": sha256})
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small release with marks."""
    return write_release(tmp_path_factory.mktemp("marked") / "release")


def asking(path: Path, release: Path, programs: dict[str, str], **more: Any) -> Path:
    """A workflow that asks for both, but for what `more` says."""
    wanted: dict[str, Any] = {"codecs": CODECS, "strips": None, "watermarks": True}
    wanted |= {"clip": {"folder": str(CLIP_FOLDER), "batch_size": 2}}
    return write_workflow(
        path, release, programs, **wanted | {"pictures": {"place": str(release)}} | more
    )


def measure(workflow: Path) -> Store:
    """Make the tables alone, without a page."""
    found = load(workflow)
    assert found.benchmark is not None
    collection, compute = Collection(found.benchmark.measured), Compute()
    stages = [of.stage(found.benchmark, compute, collection) for of in (references, measurements)]
    store = Store(found.run)
    run_stages(stages, store, compute, Progress(quiet=True))
    return store


Looked = tuple[Path, Store]


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Looked:
    """A workflow and the run that was made of it; not to be changed."""
    folder = tmp_path_factory.mktemp("looked")
    workflow = asking(folder / "w.yaml", release, stand_ins(folder))
    return workflow, execute(workflow)[0]


@pytest.fixture(scope="module")
def originals(release: Path) -> dict[str, tuple[str, str, RGB]]:
    """Mark, prompt and pixels by id."""
    collection = Collection(Pictures(place=str(release)))
    return {
        row["image_id"]: (row["watermark"], row["text"], decode(row["image"]["bytes"], 1 << 20).rgb)
        for part in collection.parts
        for row in collection.read(part.name).to_pylist()
        if row["image_id"] != f"{DAMAGED:032x}"
    }


def test_columns_are_what_clip_and_marks_say(
    looked: Looked, originals: dict[str, tuple[str, str, RGB]]
) -> None:
    rows = rows_of(looked[1])
    assert looked[1].read_all("measurements").schema == measurements_schema(True, True)
    assert len(rows) == 3 * len(PICTURES)
    clip = Clip(Embeddings(folder=str(CLIP_FOLDER)), "cpu")
    checked: Counter[str] = Counter()
    for row in rows:
        if row["error"] is not None or row["codec"] != "jpeg":
            continue
        mark, text, image = originals[row["image_id"]]
        codec = opened(CodecSettings(codec="jpeg"), row["quality"], Here())
        decoded = codec.decode(codec.encode(image))
        before, after = clip.image_vectors([image, decoded])
        assert row["clip_similarity"] == pytest.approx(float(before @ after), abs=1e-5)
        assert row["clip_similarity"] < 0.99999
        if text:
            words = clip.text_vectors([text])[0]
            change = float(after @ words) - float(before @ words)
            assert row["clip_score_change"] == pytest.approx(change, abs=1e-5)
            assert abs(change) > 1e-4
        else:
            assert row["clip_score_change"] is None
        if mark.startswith("dwt"):
            assert row["watermark_accuracy"] == detect(decoded, mark).bit_accuracy
        else:
            assert row["watermark_accuracy"] is None
        checked[mark] += 1
    assert checked == {"none": 4, "dwt-dct": 2, "dwt-dct-svd": 4, VISIBLE: 2}


def test_a_codec_without_loss_changes_nothing(looked: Looked) -> None:
    before = {row["image_id"]: row for row in rows_of(looked[1], "references")}
    found = [row for row in rows_of(looked[1]) if row["codec"] == "lossless" and not row["error"]]
    assert len(found) == len(PICTURES) - 1
    for row in found:
        assert row["clip_similarity"] == pytest.approx(1, abs=1e-6)
        assert row["clip_score_change"] in (None, pytest.approx(0, abs=1e-6))
        assert row["watermark_accuracy"] == before[row["image_id"]]["watermark_accuracy"]


def test_references_are_of_the_originals(
    looked: Looked, originals: dict[str, tuple[str, str, RGB]]
) -> None:
    table = looked[1].read_all("references")
    assert table.schema == REFERENCES and table.num_rows == len(PICTURES)
    clip = Clip(Embeddings(folder=str(CLIP_FOLDER)), "cpu")
    for row in table.to_pylist():
        if row["image_id"] == f"{DAMAGED:032x}":
            assert row["error"].startswith("picture: truncated")
            assert row["image_vector"] is row["clip_score"] is row["watermark_accuracy"] is None
            continue
        mark, text, image = originals[row["image_id"]]
        vector = clip.image_vectors([image])[0]
        np.testing.assert_allclose(row["image_vector"], vector, atol=1e-5)
        assert row["error"] is None
        if text:
            assert row["clip_score"] == pytest.approx(
                float(vector @ clip.text_vectors([text])[0]), abs=1e-5
            )
        else:
            assert row["clip_score"] is row["text_vector"] is None
        if mark == "dwt-dct-svd":
            assert row["watermark_accuracy"] == 1
        assert (row["watermark_accuracy"] is None) == (not mark.startswith("dwt"))


def test_a_damaged_picture_costs_its_rows_alone(looked: Looked) -> None:
    failed = [row for row in rows_of(looked[1]) if row["error"] is not None]
    assert {row["image_id"] for row in failed} == {f"{DAMAGED:032x}"} and len(failed) == 3
    for row in failed:
        assert row["error"].startswith("picture: truncated")
        assert all(row[name] is None for name in ("clip_similarity", "watermark_accuracy"))


def test_a_picture_that_clip_cannot_take_costs_its_columns_alone(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Clip.prepare

    def picky(self: Clip, rgb: RGB) -> Any:
        if rgb.shape[1] == 168:
            raise MemoryError("too wide")
        return prepare(self, rgb)

    monkeypatch.setattr(Clip, "prepare", picky)
    workflow = asking(tmp_path / "w.yaml", release, {}, codecs=["jpeg"], watermarks=False)
    store, said = execute(workflow)
    assert "failed" not in said
    (bad,) = (row for row in rows_of(store, "references") if row["image_id"] == f"{1:032x}")
    assert bad["error"] == "clip: MemoryError: too wide"
    assert {row["watermark_accuracy"] for row in rows_of(store, "references")} == {None}
    for row in rows_of(store):
        if row["image_id"] != f"{DAMAGED:032x}":
            assert row["error"] is None and row["psnr"] > 20
            assert (row["clip_similarity"] is None) == (row["width"] == 168)
    assert "1 without: clip: MemoryError: too wide" in page_of(store)


def test_originals_and_prompts_are_looked_at_once(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Counter[str] = Counter()
    texts, pictures = Clip.text_vectors, Clip.prepared_vectors

    def text_vectors(self: Clip, found: Any) -> Any:
        given["texts"] += len(found)
        return texts(self, found)

    def prepared_vectors(self: Clip, found: Any) -> Any:
        given["pictures"] += len(found)
        return pictures(self, found)

    monkeypatch.setattr(Clip, "text_vectors", text_vectors)
    monkeypatch.setattr(Clip, "prepared_vectors", prepared_vectors)
    codecs = [{"codec": name, "qualities": [20, 60]} for name in ("jpeg", "webp")]
    workflow = asking(tmp_path / "w.yaml", release, {}, codecs=codecs)
    measure(workflow)
    assert given == {"texts": 2, "pictures": 6 + 4 * 6}
    # Another codec looks at what it decoded, and at nothing again.
    given.clear()
    asking(workflow, release, {}, codecs=[*codecs, {"codec": "avif", "qualities": [50]}])
    measure(workflow)
    assert given == {"pictures": 6}


def test_nothing_changes_where_nothing_is_asked(tmp_path: Path, release: Path) -> None:
    few = {"codecs": ["jpeg"], "pictures": {"place": str(release), "sources": ["wood"]}}
    workflow = asking(tmp_path / "w.yaml", release, {}, **few, clip=None, watermarks=False)
    found = load(workflow).benchmark
    assert found is not None
    stage = measurements.stage(found, Compute(threads=3), Collection(found.measured))
    assert stage.schema == MEASUREMENTS and stage.version == 1 and stage.inputs == ()
    assert stage.settings == {"pictures": found.measured.model_dump(mode="json")}
    store, said = execute(workflow)
    assert "references" not in said and not store.shards("references")
    assert "What images show" not in Path(store.path("benchmark", "README.md")).read_text()
    # Asked for later, it is refused by name, and what is there stays.
    asking(workflow, release, {}, **few, clip=None)
    kept = store.shards("measurements")
    with pytest.raises(AigiError, match=r"watermarks: \(absent\) -> True"):
        execute(workflow)
    asking(workflow, release, {}, **few, watermarks=False)
    with pytest.raises(AigiError, match=r"(?s)references: made with other.*clip\.batch_size"):
        execute(workflow)
    assert store.shards("measurements") == kept


def test_one_may_be_asked_for_alone(tmp_path: Path, release: Path) -> None:
    few = {"codecs": ["jpeg"], "pictures": {"place": str(release), "sources": ["wood"]}}
    workflow = asking(tmp_path / "w.yaml", release, {}, **few, clip=None)
    store, _ = execute(workflow)
    assert store.read_all("measurements").schema == measurements_schema(False, True)
    assert {row["image_vector"] is None for row in rows_of(store, "references")} == {True}
    html = page_of(store)
    assert "CLIP" not in html and "watermark bits right" in html


def test_a_folder_without_a_model_is_refused_before_any_work(tmp_path: Path, release: Path) -> None:
    workflow = asking(tmp_path / "w.yaml", release, {}, clip={"folder": str(tmp_path)})
    with pytest.raises(AigiError, match=r"^benchmark\.clip\.folder: .*open_clip_config\.json"):
        execute(workflow)
    assert not (tmp_path / "run").exists()
    asking(workflow, release, {}, clip={"folder": str(CLIP_FOLDER), "sha256": "0" * 64})
    with pytest.raises(AigiError, match=r"^benchmark\.clip\.sha256: "):
        execute(workflow)
    with pytest.raises(AigiError, match=r"^benchmark\.clip\.folder: "):
        measurements.Measurer(Here(), 1, Embeddings(folder=str(tmp_path)))


def test_measurements_follow_the_content_of_their_references(tmp_path: Path, release: Path) -> None:
    workflow = asking(tmp_path / "w.yaml", release, {}, codecs=["jpeg"], clip=None)
    store = measure(workflow)
    record = store.read_json("_stages", "references.json")
    assert record is not None
    found = load(workflow).benchmark
    assert found is not None
    stage = measurements.stage(found, Compute(), Collection(found.measured))
    store.write_json({**record, "fingerprint": "other"}, "_stages", "references.json")
    before = store.record("measurements")
    run_stages([stage], store, Compute(), Progress(quiet=True))
    after = store.record("measurements")
    assert before is not None and after is not None
    assert before.shards == after.shards, "their content is what it was"


def test_references_of_other_pictures_are_made_again(tmp_path: Path, release: Path) -> None:
    workflow = asking(tmp_path / "w.yaml", release, {}, codecs=[CODECS[0]])
    store = measure(workflow)
    name = next(name for name in store.shards("references") if name.startswith("lake"))
    rows = store.read("references", name)
    store.write("references", name, [rows.take(list(range(rows.num_rows))[::-1])], REFERENCES)
    asking(workflow, release, {}, codecs=[{"codec": "jpeg", "qualities": [50]}])
    assert measure(workflow).read("references", name).equals(rows)


# --- the page ---------------------------------------------------------------------------------


def test_tables_hold_the_means(looked: Looked) -> None:
    html = page_of(looked[1])
    rows = [row for row in rows_of(looked[1]) if not row["error"]]
    group = "lake (dwt-dct-svd)"
    head, *body = cells_of(html, group)
    assert head[6:9] == ["CLIP similarity", "change of clip_score", "watermark bits right"]
    for cells in body:
        (mine,) = (
            row
            for row in rows
            if (row["source"], row["watermark"]) == ("lake", "dwt-dct-svd")
            and (row["codec"], f"{row['quality']:g}") == (cells[0], cells[1])
        )
        assert cells[6] == f"{mine['clip_similarity']:.4f}"
        assert cells[7] == f"{mine['clip_score_change']:+.4f}"
        assert cells[8] == f"{mine['watermark_accuracy']:.3f}"
    assert len(body) == 3
    # Where there is no mark or prompt there is no column; nor of marks over all sources.
    assert cells_of(html, "lake")[0][6:8] == ["CLIP similarity", "change of clip_score"]
    assert cells_of(html, "wood")[0][6:8] == ["CLIP similarity", "encode, s/MP"]
    head, *body = cells_of(html, rates.POOLED)
    assert head[6:9] == ["CLIP similarity", "change of clip_score", "encode, s/MP"]
    for cells in body:
        some = [r for r in rows if (r["codec"], f"{r['quality']:g}") == (cells[0], cells[1])]
        changes = [r["clip_score_change"] for r in some if r["clip_score_change"] is not None]
        assert len(some) == 6 and len(changes) == 4
        assert cells[7] == f"{np.mean(changes):+.4f}"
    tex = Path(looked[1].path("benchmark", "tables", "rd-lake-dwt-dct-svd.tex")).read_text()
    assert r"change of clip\_score & watermark bits right" in tex


def test_the_page_says_what_originals_read_back(looked: Looked) -> None:
    html = page_of(looked[1])
    head, *body = cells_of(html, "What images show")
    assert head == [
        *("before any codec", "pictures", "clip_score"),
        *("watermark bits right", "all of them right"),
    ]
    found = {cells[0]: cells[1:] for cells in body}
    before = rows_of(looked[1], "references")
    assert found["wood"] == ["1", "-", "-", "-"]
    assert found["wood (dwt-dct-svd)"] == ["1", "-", "1.000", "1 of 1"]
    assert found["lake (dwt-dct-svd)"][0] == "2" and found["lake (dwt-dct-svd)"][3] == "1 of 1"
    (mine,) = (row for row in before if row["watermark"] == "dwt-dct")
    assert found["lake (dwt-dct)"][2] == f"{mine['watermark_accuracy']:.3f}"
    assert mine["watermark_accuracy"] < 1 and found["lake (dwt-dct)"][3] == "0 of 1"
    assert found["lake (dwt-dct)"][1] == f"{mine['clip_score']:.4f}"
    assert "the model of the folder clip" in html and "1 without: picture: truncated" in html


def test_marks_have_a_figure_each(looked: Looked) -> None:
    folder = Path(looked[1].path("benchmark"))
    drawn = {path.name for path in (folder / "figures").glob("watermark-*.svg")}
    assert drawn == {
        f"watermark-{name}.svg" for name in ("lake-dwt-dct", "lake-dwt-dct-svd", "wood-dwt-dct-svd")
    }
    page = (folder / "README.md").read_text()
    for name in drawn:
        assert f"](figures/{name})" in page
        assert f"](figures/{name.removesuffix('svg')}png)" in page


def test_pictures_of_a_folder_have_no_marks(tmp_path: Path) -> None:
    boats = write_pictures(tmp_path / "boats")
    workflow = write_workflow(
        tmp_path / "w.yaml", boats, {}, codecs=["jpeg"], strips=None, watermarks=True
    )
    store, _ = execute(workflow)
    assert {row["watermark_accuracy"] for row in rows_of(store)} == {None}
    assert not list(Path(store.path("benchmark", "figures")).glob("watermark-*"))
